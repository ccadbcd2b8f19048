"""The figures of every stage and of the steps between them: what becomes summary.json."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from humanomni.evaluation import metrics
from humanomni.evaluation.anatomy import coherence_summary
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.published import PUBLISHED
from humanomni.evaluation.significance import compare
from humanomni.evaluation.stage import Stage

STATISTICS = {"war": metrics.war, "uar": metrics.uar, "macro_f1": metrics.macro_f1}


def evaluation_summary(
    stages: Sequence[Stage], label_set: str, classes: Sequence[str], scorer: CoherenceScorer, seed: int
) -> dict[str, Any]:
    """What summary.json holds: the stages' figures, who scored them, and a message where scores are missing."""
    return {
        "seed": seed,
        "label_set": label_set,
        "classes": list(classes),
        "fgce": {"rubric": None, "judge": None} | (scorer.identity or {}) | {"message": _message(scorer, stages)},
        "stages": [stage_summary(stage, classes, seed) for stage in stages],
        "comparisons": [compare(before, after, classes, seed) for before, after in _steps(stages)],
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


def stage_summary(stage: Stage, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """The stage's entry in summary.json.

    War, uar and macro_f1 are over the predictions whose truth is known; the rates over all; `format_rate` is
    None where the file keeps no raw responses. Intervals are 95 % bootstrap intervals.
    """
    known = [p for p in stage.predictions if p.truth is not None]
    confusion = metrics.confusion_matrix([str(p.truth) for p in known], [p.predicted for p in known], classes)
    formats = [p.well_formed for p in stage.predictions if p.well_formed is not None]
    coherence = coherence_summary(stage.predictions, stage.scores, seed)
    intervals = {name: metrics.bootstrap(confusion, function, seed) for name, function in STATISTICS.items()}
    if formats:
        intervals["format_rate"] = metrics.bootstrap_mean(formats, seed)
    intervals["s_coh"] = coherence.pop("s_coh_interval")
    return {
        "name": stage.name,
        **{key: value for key, value in stage.info.items() if key != "log_history"},
        "n": len(stage.predictions),
        "n_labelled": len(known),
        "n_failed": stage.failed,
        **{name: float(function(confusion)) for name, function in STATISTICS.items()},
        "format_rate": sum(formats) / len(formats) if formats else None,
        "parse_rate": sum(p.predicted is not None for p in stage.predictions) / len(stage.predictions),
        **coherence,
        "intervals": intervals,
        "per_class": _per_class(confusion, classes),
        "confusion": confusion.tolist(),
    }


def _per_class(confusion: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float | int | None]]:
    columns = {
        "recall": metrics.recalls(confusion),
        "precision": metrics.precisions(confusion),
        "f1": metrics.f1_scores(confusion),
    }
    return {
        emotion: {"support": int(confusion[row].sum())}
        | {name: None if np.isnan(values[row]) else float(values[row]) for name, values in columns.items()}
        for row, emotion in enumerate(classes)
    }
