"""What each part of CA-EMER is good for, on the toy world: the quickstart again with one part left out at a time.

    python scripts/ablations.py --seeds 0 1
    python scripts/ablations.py --seeds 0 --only no_rft no_reassembly

An ablation goes on from the stages of the full run that it does not change, so that only what it changes differs.
Prints a Markdown table of means over the seeds; what is finished is not done again. docs/ablations.md reads the result.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from safetensors.torch import load_file, save_file

logger = logging.getLogger("ablations")

REPO = Path(__file__).resolve().parents[1]
TRAINED = ("sft", "grpo1", "grpo2", "rft", "grpo3")


@dataclass(frozen=True)
class Ablation:
    """One part left out.

    Attributes:
        name: of its runs, behind that of the full run.
        words: for the table.
        shared: stages that it takes from the full run.
        flags: of scripts/run_caemer.sh.
    """

    name: str
    words: str
    shared: tuple[str, ...]
    flags: tuple[str, ...]


NO_GATE = Ablation(
    "no_gate",
    "without the gate: its weights are 1/3 each from the start to the end",
    (),
    tuple(
        flag
        for stage in TRAINED
        for flag in ("--set", f"{stage}.trainable_parts=projector,audio_projector,language_model")
    ),
)
ABLATIONS = (
    Ablation(
        "no_fgce",
        "without the FG-CE reward in GRPO 2",
        ("sft", "grpo1"),
        ("--set", "grpo2.rewards=format,accuracy"),
    ),
    Ablation(
        "unweighted",
        "the FG-CE reward without weights, and for wrong answers too",
        ("sft", "grpo1"),
        ("--set", "grpo2.rewards=format,accuracy,fgce_unweighted"),
    ),
    Ablation("no_rft", "without RFT: GRPO 3 after GRPO 2", ("sft", "grpo1", "grpo2"), ("--without_rft",)),
    Ablation(
        "no_reassembly",
        "RFT on the best candidates as they stand",
        ("sft", "grpo1", "grpo2", "candidates"),
        ("--set", "rejection.reassemble=false"),
    ),
    NO_GATE,
)


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    chosen = [one for one in ABLATIONS if not arguments.only or one.name in arguments.only]
    rows: dict[str, list[dict[str, Any]]] = {"the whole of it": [], **{one.words: [] for one in chosen}}
    for seed in arguments.seeds:
        full = Path("runs") / ("quickstart" if seed == 0 else f"quickstart-seed{seed}")
        _quickstart(seed)
        rows["the whole of it"].append(_summary(full))
        for ablation in chosen:
            rows[ablation.words].append(_ablate(ablation, full, seed))
    sys.stdout.write(table(rows))


def _ablate(ablation: Ablation, full: Path, seed: int) -> dict[str, Any]:
    """Runs one ablation of a full run; returns its summary."""
    run = full.with_name(f"{full.name}-{ablation.name}")
    logger.info("%s, seed %d: %s", ablation.name, seed, run)
    flags = ["--name", run.name, *ablation.flags]
    if ablation is NO_GATE:
        flags += ["--model", str(_without_gate(full / "model", run / "model"))]
    steps = [step for stage in ablation.shared for step in (stage, f"infer-{stage}") if step != "infer-candidates"]
    if steps:
        command = [sys.executable, "scripts/manifest.py", "borrow", str(run), *steps, "--source", str(full)]
        subprocess.run(command, cwd=REPO, check=True)
    _quickstart(seed, *flags)
    return _summary(run)


def _quickstart(seed: int, *flags: str) -> None:
    command = ["bash", "scripts/quickstart.sh", "--seed", str(seed), "--", *flags]
    subprocess.run(command, cwd=REPO, check=True, stdout=sys.stderr)  # stdout is the table's


def _without_gate(source: Path, target: Path) -> Path:
    """The model with a gate that weighs all branches alike whatever it reads: a last layer of zeros."""
    if not (REPO / target).exists():
        part = REPO / target.with_suffix(".part")
        shutil.copytree(REPO / source, part, dirs_exist_ok=True)
        weights = load_file(part / "model.safetensors")
        for name in ("model.gate.2.weight", "model.gate.2.bias"):
            weights[name].zero_()
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        part.replace(REPO / target)
    return target


def _summary(run: Path) -> dict[str, Any]:
    """The figures of a run's stages, by stage."""
    content = json.loads((REPO / run / "summary.json").read_text(encoding="utf-8"))
    return {stage["name"]: stage for stage in content["stages"]}


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Markdown: a row for each {words: a summary a seed}; a figure is the mean, with the seeds' own behind it."""
    columns = (("WAR", "grpo3", "war"), ("UAR", "grpo3", "uar"), ("S_coh", "grpo3", "s_coh_normalised"))
    earlier = (("S_coh after GRPO 2", "grpo2", "s_coh_normalised"), ("after RFT", "rft", "s_coh_normalised"))
    lines = [
        "| " + " | ".join(["CA-EMER", *(title for title, _, _ in (*columns, *earlier))]) + " |",
        "|---" * (1 + len(columns) + len(earlier)) + "|",
    ]
    for words, summaries in rows.items():
        cells = [
            _cell([summary.get(stage, {}).get(figure) for summary in summaries])
            for _, stage, figure in (*columns, *earlier)
        ]
        lines.append("| " + " | ".join([words, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    seeds = f" ({', '.join(f'{value:.2f}' for value in known)})" if len(known) > 1 else ""
    return f"{fmean(known):.2f}{seeds}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the quickstart (%(default)s)")
    add("--only", nargs="+", choices=[one.name for one in ABLATIONS], help="these, not all")
    return parser


if __name__ == "__main__":
    main()
