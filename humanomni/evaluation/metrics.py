"""Recognition metrics, all of them functions of one confusion matrix, which makes them cheap to bootstrap.

Shapes: C classes; a confusion matrix is [..., C, C + 1]: rows are true classes, columns predicted ones, the
last column holds answers that are none of the classes (unparseable, or an emotion that the dataset does not
have). Leading dimensions are bootstrap draws.
"""

from collections.abc import Callable, Sequence

import numpy as np

DRAWS = 1000
LEVEL = 0.95
_CELLS_AT_ONCE = 4_000_000  # 32 MB: two runs on 43 compound classes make 80,000 cells a draw

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]


def confusion_matrix(truths: Sequence[str], predictions: Sequence[str | None], classes: Sequence[str]) -> np.ndarray:
    """Counts [C, C + 1].

    Raises:
        ValueError: `truths` and `predictions` differ in length.
        KeyError: a truth is not among `classes`.
    """
    index = {name: position for position, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
    for truth, prediction in zip(truths, predictions, strict=True):
        matrix[index[truth], index.get(prediction or "", len(classes))] += 1
    return matrix


def war(confusion: np.ndarray) -> np.ndarray:
    """Weighted average recall: the accuracy over all samples, [...]. An unparseable answer is a wrong one."""
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return _ratio(hits, confusion.sum(axis=(-2, -1)))


def recalls(confusion: np.ndarray) -> np.ndarray:
    """Recall of each class, [..., C]; NaN for a class without samples. Unparseable answers count as wrong."""
    return _ratio(_hits(confusion), confusion.sum(axis=-1))


def precisions(confusion: np.ndarray) -> np.ndarray:
    """Precision of each class, [..., C]; NaN for a class that was never predicted."""
    return _ratio(_hits(confusion), confusion[..., :-1].sum(axis=-2))


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """F1 of each class, [..., C]; NaN for a class without samples."""
    support = confusion.sum(axis=-1)
    predicted = confusion[..., :-1].sum(axis=-2)
    return np.where(support > 0, _ratio(2 * _hits(confusion), support + predicted), np.nan)


def uar(confusion: np.ndarray) -> np.ndarray:
    """Unweighted average recall, [...]: the mean over the classes that have samples."""
    return _mean_of_defined(recalls(confusion))


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that have samples, [...]."""
    return _mean_of_defined(f1_scores(confusion))


def bootstrap(counts: np.ndarray, statistic: Statistic, seed: int) -> Interval:
    """95 % percentile interval of `statistic` under resampling of the samples that `counts` counts, in any shape.

    Drawing n samples with replacement is one multinomial draw over the cells.
    """
    total = int(counts.sum())
    rng = np.random.default_rng(seed)
    values = []
    for start in range(0, DRAWS, at_once := max(1, _CELLS_AT_ONCE // counts.size)):
        cells = rng.multinomial(total, counts.ravel() / total, size=min(at_once, DRAWS - start))
        values.append(statistic(cells.reshape(-1, *counts.shape)))
    return _percentiles(np.concatenate(values))


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """95 % percentile interval of the mean of `values`."""
    array = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [array[rng.integers(0, len(array), len(array))].mean() for _ in range(DRAWS)]
    return _percentiles(np.asarray(means))


def _hits(confusion: np.ndarray) -> np.ndarray:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.true_divide(part, whole)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=-1), defined.sum(axis=-1))


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
