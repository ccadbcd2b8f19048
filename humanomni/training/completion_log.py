"""A sample of completions with their rewards and sentence scores, for people to read while a run goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.integrations import TensorBoardCallback, WandbCallback

from fgce.schema import ExplanationScore
from humanomni.records import JsonlWriter


class CompletionLog:
    """Writes ``completions.jsonl`` in the run's folder, and the same as text to tensorboard and wandb.

    Args:
        path: the JSONL; a run that goes on appends.
        steps: every how many steps.
        rows: completions a sample, at most: a group's or a few, of the first process.
    """

    def __init__(self, path: Path, steps: int, rows: int) -> None:
        self.path = path
        self.steps = steps
        self.rows = rows

    def due(self, step: int) -> bool:
        """Whether this step's completions are a sample."""
        return self.steps > 0 and step % self.steps == 0

    def write(self, samples: Sequence[dict[str, Any]], step: int, callbacks: Sequence[Any]) -> None:
        """Appends the samples and shows them in the reports that are on."""
        with JsonlWriter(self.path) as writer:
            for sample in samples:
                writer.write(sample)
        for callback in callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_text("completions", "\n\n---\n\n".join(map(as_markdown, samples)), step)
            elif isinstance(callback, WandbCallback) and callback._wandb is not None:
                table = callback._wandb.Table(columns=["step", "id", "completion"])
                for sample in samples:
                    table.add_data(step, sample["id"], as_markdown(sample))
                callback._wandb.log({"completions": table})


def sample_of(
    step: int,
    record: dict[str, Any],
    completion: str,
    rewards: dict[str, float | None],
    judged: ExplanationScore | None,
) -> dict[str, Any]:
    """One line of the log: a completion, its rewards, and the judge's two answers on each sentence."""
    sentences = judged.sentences if judged else []
    return {
        "step": step,
        "id": record["id"],
        "solution": record["solution"],
        "completion": completion,
        "rewards": rewards,
        "coherence": judged.score if judged else None,
        "sentences": [
            {key: getattr(one, key) for key in ("text", "status", "function", "modality", "score", "weight")}
            for one in sentences
        ],
    }


def as_markdown(sample: dict[str, Any]) -> str:
    """A sample for a report's text panel; completions come fenced, since they are data."""
    lines = [f"**{sample['id']}**, truth {sample['solution']}, rewards {sample['rewards']}", ""]
    lines += ["    " + line for line in sample["completion"].splitlines()]
    lines += ["", "| function | modality | score | sentence |", "|---|---|---|---|"] * bool(sample["sentences"])
    lines += [
        f"| {one['function']} | {one['modality']} | {one['score']} | {one['text'].replace('|', ' ')} |"
        for one in sample["sentences"]
    ]
    return "\n".join(lines)
