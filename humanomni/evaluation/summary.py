"""The figures of every stage and of the steps between them: what becomes summary.json."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from humanomni.evaluation.ablation import ablation_summary
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.conveyed import EmotionNamer
from humanomni.evaluation.published import PUBLISHED
from humanomni.evaluation.significance import compare
from humanomni.evaluation.stage import Stage
from humanomni.evaluation.stage_summary import stage_summary


def evaluation_summary(
    stages: Sequence[Stage],
    ablated: Sequence[Stage],
    label_set: str,
    classes: Sequence[str],
    scorer: CoherenceScorer,
    namer: EmotionNamer,
    seed: int,
) -> dict[str, Any]:
    """What summary.json holds: the stages' figures, who judged them, and a message where scores are missing.

    Args:
        stages: from the first to the last.
        ablated: the last stage's model, shown less.
        label_set: its name, under which figures may have been published.
        classes: its emotions.
        scorer: who scored.
        namer: who named the conveyed emotions.
        seed: of the bootstrap intervals.
    """
    nobody = {"rubric": None, "judge": None, "method": None}
    return {
        "seed": seed,
        "label_set": label_set,
        "classes": list(classes),
        "fgce": nobody | (scorer.identity or {}) | {"message": _message(scorer, [*stages, *ablated])},
        "conveyed": {"question": None, "judge": None} | (namer.identity or {}),
        "stages": [stage_summary(stage, classes, seed) for stage in stages],
        "comparisons": [compare(before, after, classes, seed) for before, after in _steps(stages)],
        "ablations": ablation_summary(stages[-1], ablated, classes, seed),
        "published": {model: list(figures) for model, figures in PUBLISHED.get(label_set, {}).items()},
    }


def _steps(stages: Sequence[Stage]) -> list[tuple[Stage, Stage]]:
    """Each stage and the next, and the first and the last."""
    steps = list(pairwise(stages))
    return steps if len(steps) < 2 else [*steps, (stages[0], stages[-1])]


def _message(scorer: CoherenceScorer, stages: Sequence[Stage]) -> str | None:
    """What a reader must know before trusting the coherence figures; None when all is well."""
    scores = [score for stage in stages for score in stage.scores]
    missing = sum(score.status == "missing" for score in scores)
    if not missing:
        return None
    why = f"No FG-CE server answers ({scorer.failure})." if scorer.failure else "The judge failed on them."
    return (
        f"{missing} of {len(scores)} explanations have no coherence score and are in no mean. {why} "
        "Run the evaluation again with a server: it asks only for these."
    )
