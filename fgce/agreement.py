"""How far two scorings of the same sentences agree: two judges, two protocols, or a judge and people."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from pydantic import ValidationError

from fgce.schema import SCALES, ExplanationScore, Function, Modality
from fgce.score_file import InputError

_SAMPLES = 1000
_SEED = 0
_INTERVAL = (2.5, 97.5)  # percentiles

# (id of the explanation, place of the sentence)
Key = tuple[str, int]

# A figure of two arrays of labels or scores, [sentences]; None where it is undefined.
Measure = Callable[[np.ndarray, np.ndarray], float | None]


@dataclass(frozen=True)
class Judgement:
    """One sentence's labels and score; None where there is none."""

    function: str | None
    modality: str | None
    score: int | None


def agreement(one: Path, other: Path) -> dict[str, Any]:
    """Kappas, rank correlations and their bootstrap intervals over the sentences that both files judge.

    Each figure is {"value", "low", "high", "n"}; the interval is the middle 95 % over resampled explanations, since
    sentences of one explanation are not independent. `value` is None where it is undefined, as for constant scores.

    Raises:
        InputError: a file is unusable, or the two share no sentence or no scale.
    """
    mine, theirs = read_judgements(one), read_judgements(other)
    shared = sorted(mine.keys() & theirs.keys())
    if not shared:
        raise InputError(f"{one} and {other} have no sentence in common: ids and sentence numbers must be the same")
    given = {judgement.score for judgement in (*mine.values(), *theirs.values())} - {None}
    scales = [(low, high) for low, high in SCALES.values() if given <= set(range(low, high + 1))]
    if not scales:
        raise InputError(f"{one} and {other} hold scores of different scales: one is fine_grained, one is binary")

    def figure(name: str, measure: Measure) -> dict[str, Any]:
        both = [(key, getattr(mine[key], name), getattr(theirs[key], name)) for key in shared]
        return _with_interval([entry for entry in both if None not in entry], measure)

    return {
        "sentences": {
            "shared": len(shared),
            "only_in_first": len(mine) - len(shared),
            "only_in_second": len(theirs) - len(shared),
        },
        "function_kappa": figure("function", lambda a, b: cohens_kappa(a, b, get_args(Function))),
        "modality_kappa": figure("modality", lambda a, b: cohens_kappa(a, b, get_args(Modality))),
        "score_weighted_kappa": figure("score", lambda a, b: weighted_kappa(a, b, *scales[0])),
        "score_spearman": figure("score", spearman),
    }


def read_judgements(path: Path) -> dict[Key, Judgement]:
    """Sentences of a scoring (JSONL of `score`) or of people's labels (CSV: id, sentence, function, modality, score).

    In the CSV `sentence` counts from 0 within its explanation, and an empty field is no judgement.

    Raises:
        InputError: the file cannot be read, or a line is neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        return dict(_from_row(path, reader.line_num, row) for row in reader)
    return {
        (result.id, place): Judgement(sentence.function, sentence.modality, sentence.score)
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1)
        for result in [_from_line(path, number, line)]
        for place, sentence in enumerate(result.sentences)
    }


def cohens_kappa(a: np.ndarray, b: np.ndarray, labels: Sequence[Any]) -> float | None:
    """Agreement of labels beyond chance, in [-1, 1]."""
    return _kappa(a, b, np.sort(labels), 1.0 - np.eye(len(labels)))


def weighted_kappa(a: np.ndarray, b: np.ndarray, low: int, high: int) -> float | None:
    """Cohen's kappa with quadratic weights, for scores on a scale."""
    scale = np.arange(low, high + 1)
    return _kappa(a, b, scale, (scale[:, None] - scale[None, :]).astype(float) ** 2)


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation, ties sharing their mean rank."""
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    if ranks_a.std() == 0 or ranks_b.std() == 0:
        return None
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _kappa(a: np.ndarray, b: np.ndarray, labels: np.ndarray, cost: np.ndarray) -> float | None:
    """1 - observed cost / cost expected by chance; `labels` ascend, `cost` is [labels, labels] with a zero diagonal."""
    size = len(labels)
    cells = np.searchsorted(labels, a) * size + np.searchsorted(labels, b)
    share = np.bincount(cells, minlength=size * size).reshape(size, size) / len(a)
    expected = (cost * np.outer(share.sum(axis=1), share.sum(axis=0))).sum()
    return float(1 - (cost * share).sum() / expected) if expected else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _with_interval(entries: Sequence[tuple[Key, Any, Any]], measure: Measure) -> dict[str, Any]:
    if not entries:
        return {"value": None, "low": None, "high": None, "n": 0}
    a, b = (np.array([entry[i] for entry in entries]) for i in (1, 2))
    groups: dict[str, list[int]] = {}
    for row, ((explanation, _), _, _) in enumerate(entries):
        groups.setdefault(explanation, []).append(row)
    rows = [np.array(group) for group in groups.values()]
    random = np.random.default_rng(_SEED)
    resampled = []
    for _ in range(_SAMPLES):
        picked = np.concatenate([rows[i] for i in random.integers(len(rows), size=len(rows))])
        value = measure(a[picked], b[picked])
        if value is not None:
            resampled.append(value)
    low, high = np.percentile(resampled, _INTERVAL).tolist() if resampled else (None, None)
    return {"value": measure(a, b), "low": low, "high": high, "n": len(entries)}


def _from_line(path: Path, number: int, line: str) -> ExplanationScore:
    try:
        return ExplanationScore.model_validate_json(line)
    except ValidationError as error:
        raise InputError(f"{path}:{number}: no result of `fgce score`: {error.errors()[0]['msg']}") from error


def _from_row(path: Path, number: int, row: dict[str, str]) -> tuple[Key, Judgement]:
    try:
        function, modality = row["function"] or None, row["modality"] or None
        if function not in (*get_args(Function), None) or modality not in (*get_args(Modality), None):
            raise ValueError(f"'{function}' or '{modality}' is no label of FG-CE")
        score = int(row["score"]) if row["score"] else None
        if score is not None and not any(low <= score <= high for low, high in SCALES.values()):
            raise ValueError(f"the score {score} is on no scale of FG-CE")
        return (row["id"], int(row["sentence"])), Judgement(function, modality, score)
    except KeyError as error:
        raise InputError(f"{path}: the column {error} is missing") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}:{number}: {error}") from error
