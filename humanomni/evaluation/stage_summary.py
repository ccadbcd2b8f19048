"""A stage's figures: recognition, format, coherence and consistency, with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from humanomni.evaluation import metrics
from humanomni.evaluation.anatomy import coherence_summary
from humanomni.evaluation.conveyed import consistency
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.stage import Stage

STATISTICS = {"war": metrics.war, "uar": metrics.uar, "macro_f1": metrics.macro_f1}


def stage_summary(stage: Stage, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """The stage's entry in summary.json.

    War, uar, macro_f1 and, for compound labels, overlap are over the predictions whose truth is known; the rates over
    all; `format_rate` is None where the file keeps no raw responses. Intervals are 95 % bootstrap intervals.
    """
    known = [p for p in stage.predictions if p.truth is not None]
    confusion = metrics.confusion_matrix([str(p.truth) for p in known], [p.predicted for p in known], classes)
    formats = [p.well_formed for p in stage.predictions if p.well_formed is not None]
    coherence = coherence_summary(stage.predictions, stage.scores, seed)
    agreement = consistency(stage.predictions, stage.conveyed, seed)
    intervals = {name: metrics.bootstrap(confusion, function, seed) for name, function in STATISTICS.items()}
    if formats:
        intervals["format_rate"] = metrics.bootstrap_mean(formats, seed)
    intervals["s_coh"] = coherence.pop("s_coh_interval")
    intervals |= agreement.pop("intervals")
    return {
        "name": stage.name,
        **{key: value for key, value in stage.info.items() if key != "log_history"},
        "n": len(stage.predictions),
        "n_labelled": len(known),
        "n_failed": stage.failed,
        **{name: float(function(confusion)) for name, function in STATISTICS.items()},
        "format_rate": sum(formats) / len(formats) if formats else None,
        "parse_rate": sum(p.predicted is not None for p in stage.predictions) / len(stage.predictions),
        "overlap": _overlap(known, classes),
        **coherence,
        **agreement,
        "intervals": intervals,
        "per_class": _per_class(confusion, classes),
        "confusion": confusion.tolist(),
    }


def _overlap(known: Sequence[Prediction], classes: Sequence[str]) -> float | None:
    """Mean Jaccard index of true and predicted emotions, a fairer look at compound labels; None without these."""
    if not any("_" in name for name in classes):
        return None
    pairs = [(set(str(p.truth).split("_")), set((p.predicted or "").split("_"))) for p in known]
    return sum(len(truth & predicted) / len(truth | predicted) for truth, predicted in pairs) / len(pairs)


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
