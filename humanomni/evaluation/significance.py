"""Whether one stage differs from another on the clips that both have answered: paired bootstrap and McNemar."""

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np

from humanomni.evaluation import metrics
from humanomni.evaluation.anatomy import stage_s_coh
from humanomni.evaluation.stage import Stage


def compare(before: Stage, after: Stage, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """Differences `after` - `before` with 95 % paired bootstrap intervals.

    Returns:
        "from", "to", "n" common labelled clips; "war" and "uar" as {"difference", "interval"}; "gained" and
        "lost" clips with the exact "mcnemar_p" of their imbalance; "s_coh" as {"n", "difference", "interval"}
        over the clips that have a score in both. Differences are None where no clip is common.
    """
    earlier = zip(before.predictions, stage_s_coh(before.scores), strict=True)
    answered = {p.id: (p, value) for p, value in earlier}
    pairs = [
        (*answered[p.id], p, value)
        for p, value in zip(after.predictions, stage_s_coh(after.scores), strict=True)
        if p.id in answered and p.truth is not None
    ]
    joint = _joint_counts([(str(p.truth), old.predicted, p.predicted) for old, _, p, _ in pairs], classes)
    gained = sum(p.correct and not old.correct for old, _, p, _ in pairs)
    lost = sum(old.correct and not p.correct for old, _, p, _ in pairs)
    coherence = [new - old for _, old, _, new in pairs if old is not None and new is not None]
    return {
        "from": before.name,
        "to": after.name,
        "n": len(pairs),
        "war": _difference(joint, metrics.war, seed),
        "uar": _difference(joint, metrics.uar, seed),
        "gained": gained,
        "lost": lost,
        "mcnemar_p": mcnemar(gained, lost),
        "s_coh": {
            "n": len(coherence),
            "difference": sum(coherence) / len(coherence) if coherence else None,
            "interval": metrics.bootstrap_mean(coherence, seed) if coherence else None,
        },
    }


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test: could `gained` and `lost` come from a fair coin?"""
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)


def _joint_counts(triples: Sequence[tuple[str, str | None, str | None]], classes: Sequence[str]) -> np.ndarray:
    """Counts [C, C + 1, C + 1] of (truth, answer before, answer after); the last column is "none of the classes"."""
    index = {name: position for position, name in enumerate(classes)}
    other = len(classes)
    counts = np.zeros((other, other + 1, other + 1), dtype=np.int64)
    for truth, old, new in triples:
        counts[index[truth], index.get(old or "", other), index.get(new or "", other)] += 1
    return counts


def _difference(joint: np.ndarray, statistic: metrics.Statistic, seed: int) -> dict[str, Any]:
    if not joint.any():
        return {"difference": None, "interval": None}

    def difference(counts: np.ndarray) -> np.ndarray:
        return statistic(counts.sum(axis=-2)) - statistic(counts.sum(axis=-1))

    return {"difference": float(difference(joint)), "interval": metrics.bootstrap(joint, difference, seed)}
