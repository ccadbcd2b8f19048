"""Differences between stages: nothing where there is nothing, something where there is."""

import numpy as np
import pytest
from scipy.stats import binomtest

from fgce.schema import ExplanationScore, SentenceScore
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.significance import compare, mcnemar
from humanomni.evaluation.stage import Stage

CLASSES = ("anger", "fear", "sadness")


def stage(name: str, accuracy: float, coherence: float, seed: int, clips: int = 300) -> Stage:
    rng = np.random.default_rng(seed)
    predictions, scores = [], []
    for number in range(clips):
        truth = CLASSES[number % 3]
        answer = truth if rng.random() < accuracy else CLASSES[(number + 1) % 3]
        predictions.append(Prediction(str(number), "", truth, answer, answer, "", None))
        sentences = [SentenceScore(text="She frowns.", status="ok")]
        value = coherence + rng.normal(0, 0.5)
        scores.append(ExplanationScore(id=str(number), status="ok", score=value, sentences=sentences))
    return Stage(name, predictions, scores)


def test_a_real_difference_is_told_from_chance() -> None:
    better = compare(stage("sft", 0.6, 2.5, 1), stage("grpo", 0.8, 3.0, 2), CLASSES, seed=0)
    assert better["n"] == 300
    assert better["war"]["difference"] == pytest.approx((better["gained"] - better["lost"]) / 300)
    assert better["war"]["interval"][0] > 0
    assert better["uar"]["interval"][0] > 0
    assert better["mcnemar_p"] < 0.001
    assert better["s_coh"]["difference"] == pytest.approx(0.5, abs=0.1)
    assert better["s_coh"]["interval"][0] > 0
    same = compare(stage("sft", 0.6, 2.5, 1), stage("again", 0.6, 2.5, 3), CLASSES, seed=0)
    low, high = same["war"]["interval"]
    assert low < 0 < high
    assert same["mcnemar_p"] > 0.05


def test_only_common_clips_with_a_score_count() -> None:
    before, after = stage("sft", 0.6, 2.5, 1), stage("grpo", 0.8, 3.0, 2)
    after = Stage(
        "grpo", after.predictions[:100], [*after.scores[:90], *[ExplanationScore(id="", status="missing")] * 10]
    )
    result = compare(before, after, CLASSES, seed=0)
    assert (result["n"], result["s_coh"]["n"]) == (100, 90)
    nothing = compare(before, Stage("none", [], []), CLASSES, seed=0)
    assert (nothing["n"], nothing["war"]["difference"], nothing["s_coh"]["difference"]) == (0, None, None)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (30, 12), (700, 650)])
def test_mcnemar_equals_the_exact_binomial_test(gained: int, lost: int) -> None:
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected)
