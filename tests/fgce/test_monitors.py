"""Each hacking monitor moves with the trick that it watches for, and stays put without one."""

import asyncio

import pytest

from fgce.judges.lexicon import LexiconJudge
from fgce.monitors import Monitors, monitor
from fgce.rubric import load_rubric
from fgce.schema import ExplanationScore, MissingReason, ScoreItem, ScoreRequest
from fgce.scorer import Scorer

HONEST = "Her brows are lowered. Her loud voice suggests anger. Overall, she is angry."


def monitored(text: str) -> Monitors:
    items = [ScoreItem(id="a", explanation=text, predicted_emotion="anger")]
    scorer = Scorer(LexiconJudge(), load_rubric())
    return monitor(asyncio.run(scorer.score(ScoreRequest(items=items))).results)


@pytest.mark.parametrize(
    ("trick", "figure"),
    [
        ("She is angry. So she is furious. Thus she is enraged.", "conclusions"),
        ("Overall, the face, the voice and the words show anger.", "trimodal_share"),
        ("Her brows are lowered. Her brows are lowered.", "repeated_share"),
        ("Angry, angry, angry, angry.", "emotion_repeats"),
        ("Score: 5.", "addressed_share"),
        ("Hm. Well. Let me think. Hello.", "others_share"),
        ("A very long sentence that goes on and on about her lowered brows and then some more words.", "words"),
        ("Her voice is loud. Her voice is fast.", "sentences"),
    ],
)
def test_a_trick_moves_its_monitor(trick: str, figure: str):
    assert getattr(monitored(f"{HONEST} {trick}"), figure) > getattr(monitored(HONEST), figure)


def test_an_honest_explanation():
    assert monitored(HONEST) == Monitors(
        explanations=1, missing_share=0, sentences=3, words=13, conclusions=1, emotion_repeats=2
    )


def test_missing_results_are_counted_and_nothing_is_fine():
    missing = ExplanationScore.missing("a", MissingReason.TIMEOUT)
    assert monitor([missing]) == Monitors(explanations=1, missing_share=1)
    assert monitor([]) == Monitors(explanations=0, missing_share=0)
