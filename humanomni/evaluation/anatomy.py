"""What a stage's coherence is made of: S_coh, its parts by function and modality, and what stays unscored.

S_coh is averaged, on its scale of 1 to 5, over the explanations with status "ok". Those with nothing to
score (flag `no_evidence`: no explanation, no readable answer, only sentences of function `others`) have no
S_coh of their own; they enter as 1.0, the floor of the scale, which is FG-CE's normalised 0.0. So a model
cannot raise its mean by writing nothing. Missing explanations, on which the judge failed, are in no mean;
they are counted by reason.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, get_args

from fgce.schema import ExplanationScore, Function, Modality, SentenceScore
from humanomni.evaluation.metrics import bootstrap_mean
from humanomni.evaluation.predictions import Prediction

FUNCTIONS: tuple[str, ...] = get_args(Function)
MODALITIES: tuple[str, ...] = get_args(Modality)
FLOOR = 1.0
SPAN = 4.0
NEAR_DUPLICATE = 0.8  # Jaccard index of the words from which two sentences say the same

_WORD = re.compile(r"\w+")


def s_coh(score: ExplanationScore) -> float | None:
    """S_coh as it enters a mean, in [1, 5]; None when missing."""
    return None if score.status == "missing" else (FLOOR if score.score is None else score.score)


def stage_s_coh(scores: Sequence[ExplanationScore]) -> list[float | None]:
    """S_coh of a stage's explanations as they enter its means, in [1, 5], in order; None when missing.

    Where nothing was judged, for want of a judge, all are None: the clips without an explanation, alone, would make
    every mean the floor.
    """
    judged = any(score.sentences for score in scores if score.status == "ok")
    nobody_there = not judged and any(score.status == "missing" for score in scores)
    return [None if nobody_there else s_coh(score) for score in scores]


def coherence_summary(
    predictions: Sequence[Prediction], scores: Sequence[ExplanationScore], seed: int
) -> dict[str, Any]:
    """The stage's figures for summary.json; means are None where nothing was scored.

    Args:
        predictions: the stage's predictions.
        scores: their scores, in the same order.
        seed: of the bootstrap interval.
    """
    values = stage_s_coh(scores)
    pairs = list(zip(predictions, values, strict=True))
    scored = [score for score in scores if score.status == "ok"]
    counted = [score for score, value in zip(scores, values, strict=True) if value is not None]
    sentences = [sentence for score in scores for sentence in score.sentences]
    present = _defined(values)
    mean = _mean(present)
    return {
        "s_coh": mean,
        "s_coh_normalised": None if mean is None else (mean - FLOOR) / SPAN,
        "s_coh_interval": bootstrap_mean(present, seed) if present else None,
        "s_coh_unweighted": _mean([FLOOR if score.unweighted is None else score.unweighted for score in counted]),
        "s_coh_correct": _mean(_defined(value for p, value in pairs if p.correct)),
        "s_coh_wrong": _mean(_defined(value for p, value in pairs if not p.correct)),
        "s_coh_by_class": _by_class(pairs),
        "n_scored": len(scored),
        "n_missing": len(scores) - len(scored),
        "missing_reasons": _counts(score.reason for score in scores if score.status == "missing"),
        "flags": _counts(flag for score in scored for flag in score.flags),
        "n_sentences_missing": sum(sentence.status == "missing" for sentence in sentences),
        "by_function": _by(sentences, "function", FUNCTIONS),
        "by_modality": _by(sentences, "modality", MODALITIES),
        "function_modality": {
            function: _by([s for s in sentences if s.function == function], "modality", MODALITIES)
            for function in FUNCTIONS
        },
        "sentences": _mean([len(score.sentences) for score in scored]),
        "words": _mean([len(_WORD.findall(p.explanation)) for p in predictions]),
        "redundancy": redundancy([[sentence.text for sentence in score.sentences] for score in scored]),
    }


def redundancy(explanations: Iterable[Sequence[str]]) -> float | None:
    """Share of sentences that nearly repeat an earlier one of their explanation; None without sentences."""
    repeats = total = 0
    for sentences in explanations:
        words = [set(_WORD.findall(sentence.lower())) for sentence in sentences]
        total += len(words)
        repeats += sum(any(_alike(words[i], words[j]) for j in range(i)) for i in range(len(words)))
    return repeats / total if total else None


def _alike(a: set[str], b: set[str]) -> bool:
    return len(a & b) >= NEAR_DUPLICATE * len(a | b)


def _by(sentences: Iterable[SentenceScore], part: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Count and mean score of the sentences of each function or modality; the score of `others` is None."""
    grouped: dict[str, list[SentenceScore]] = defaultdict(list)
    for sentence in sentences:
        grouped[getattr(sentence, part)].append(sentence)
    return {
        name: {
            "count": len(grouped[name]),
            "score": _mean(_defined(sentence.score for sentence in grouped[name])),
        }
        for name in names
    }


def _by_class(pairs: Iterable[tuple[Prediction, float | None]]) -> dict[str, float | None]:
    grouped: dict[str, list[float | None]] = defaultdict(list)
    for prediction, value in pairs:
        if prediction.truth is not None:
            grouped[prediction.truth].append(value)
    return {truth: _mean(_defined(grouped[truth])) for truth in sorted(grouped)}


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(str(name) for name in names).items()))


def _defined(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
