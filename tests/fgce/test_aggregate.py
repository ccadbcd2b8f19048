"""S_coh and its decided edge cases."""

import pytest

from fgce.aggregate import aggregate
from fgce.rubric import load_rubric
from fgce.schema import Function, MissingReason, Modality, SentenceScore

RUBRIC = load_rubric()


def scored(function: Function, modality: Modality, score: int) -> SentenceScore:
    weight = RUBRIC.weight(function, modality)
    return SentenceScore(text="x", status="ok", function=function, modality=modality, score=score, weight=weight)


def missing(reason: MissingReason = MissingReason.TIMEOUT) -> SentenceScore:
    return SentenceScore(text="x", status="missing", reason=reason)


OTHERS = SentenceScore(text="x", status="ok", function="others", modality="contextual")


def test_weights_are_function_times_modality():
    result = aggregate(
        "a",
        [
            scored("information extraction", "contextual", 2),
            scored("information analysis", "audio-contextual", 5),
            scored("conclusion", "audio-visual-contextual", 1),
        ],
    )
    assert result.score == pytest.approx((1 * 2 + 2 * 5 + 6 * 1) / 9, abs=1e-12)
    assert result.normalised == pytest.approx(0.25, abs=1e-12)
    assert result.unweighted == pytest.approx(8 / 3, abs=1e-12)
    assert result.unweighted_normalised == pytest.approx(5 / 12, abs=1e-12)


@pytest.mark.parametrize("sentences", [[], [OTHERS, OTHERS]])
def test_nothing_to_score_is_a_flagged_zero(sentences: list[SentenceScore]):
    result = aggregate("a", sentences)
    assert (result.status, result.score, result.normalised, result.flags) == (
        "ok",
        None,
        0.0,
        ["no_evidence"],
    )


def test_others_do_not_move_the_score():
    sentence = scored("conclusion", "visual", 3)
    assert aggregate("a", [sentence, OTHERS]).score == aggregate("a", [sentence]).score == 3


def test_half_missing_is_partial_and_more_is_missing_never_a_number():
    half = aggregate("a", [scored("conclusion", "visual", 4), missing()])
    assert (half.status, half.score, half.flags) == ("ok", 4, ["partial", "timeout"])
    most = aggregate("a", [scored("conclusion", "visual", 4), missing(), missing(MissingReason.JUDGE_ERROR), missing()])
    assert (most.status, most.reason, most.score, most.normalised) == ("missing", "timeout", None, None)


def test_the_share_of_missing_sentences_is_a_setting():
    sentences = [scored("conclusion", "visual", 4), scored("conclusion", "visual", 4), missing()]
    assert aggregate("a", sentences, max_missing_share=0.2).status == "missing"


def test_an_unscored_rest_beside_a_failure_is_missing_not_zero():
    assert aggregate("a", [OTHERS, missing()]).status == "missing"


def test_binary_scores_are_their_own_scale():
    result = aggregate("a", [scored("conclusion", "visual", 1), scored("conclusion", "visual", 0)], mode="binary")
    assert (result.score, result.normalised) == (0.5, 0.5)
