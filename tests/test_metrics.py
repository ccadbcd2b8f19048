"""Recognition metrics: equal to scikit-learn's, and as the specification says where that has no answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from humanomni.evaluation import metrics

CLASSES = ("anger", "fear", "neutral", "sadness")
ANSWERS = (*CLASSES, "calm", None)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CLASSES), st.sampled_from(ANSWERS)), min_size=1, max_size=60))
def test_metrics_equal_scikit_learns(pairs: list[tuple[str, str | None]]) -> None:
    truths, answers = zip(*pairs, strict=True)
    confusion = metrics.confusion_matrix(truths, answers, CLASSES)
    predicted = [answer if answer in CLASSES else "none of these" for answer in answers]
    present = sorted(set(truths))
    macro = {"labels": present, "average": "macro", "zero_division": 0}
    assert metrics.war(confusion) == pytest.approx(accuracy_score(truths, predicted))
    assert metrics.uar(confusion) == pytest.approx(recall_score(truths, predicted, **macro))
    assert metrics.macro_f1(confusion) == pytest.approx(f1_score(truths, predicted, **macro))
    for index, name in enumerate(CLASSES):
        one = {"labels": [name], "average": "macro", "zero_division": np.nan}
        expected = precision_score(truths, predicted, **one)
        assert metrics.precisions(confusion)[index] == pytest.approx(expected, nan_ok=True)


def test_an_unparseable_answer_is_wrong_and_stays_in_the_denominator() -> None:
    confusion = metrics.confusion_matrix(["fear"] * 4, ["fear", None, None, "calm"], CLASSES)
    assert metrics.war(confusion) == 0.25
    assert metrics.uar(confusion) == 0.25
    assert confusion[1].tolist() == [0, 1, 0, 0, 3]


def test_uar_is_over_the_classes_that_have_samples() -> None:
    confusion = metrics.confusion_matrix(["fear", "fear", "anger"], ["fear", "anger", "anger"], CLASSES)
    assert metrics.uar(confusion) == pytest.approx((0.5 + 1.0) / 2)
    assert np.isnan(metrics.recalls(confusion)[2])


def test_bootstrap_interval_is_seeded_and_of_the_right_width() -> None:
    rng = np.random.default_rng(0)
    truths = rng.choice(CLASSES, 400)
    answers = np.where(rng.random(400) < 0.7, truths, "neutral")
    confusion = metrics.confusion_matrix(list(truths), list(answers), CLASSES)
    low, high = metrics.bootstrap(confusion, metrics.war, seed=1)
    assert (low, high) == metrics.bootstrap(confusion, metrics.war, seed=1)
    accuracy = float(metrics.war(confusion))
    half = 1.96 * (accuracy * (1 - accuracy) / 400) ** 0.5
    assert low == pytest.approx(accuracy - half, abs=0.01)
    assert high == pytest.approx(accuracy + half, abs=0.01)


def test_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 500).tolist()
    low, high = metrics.bootstrap_mean(values, seed=0)
    assert high - low == pytest.approx(2 * 1.96 / 500**0.5, rel=0.15)
    assert metrics.bootstrap_mean([2.0, 2.0], seed=0) == (2.0, 2.0)
