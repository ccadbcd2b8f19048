"""Scores for rejection sampling: every one of them, or an error. A judge that is gone never looks like a low score."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fgce.schema import ExplanationScore, MissingReason
from humanomni.evaluation.anatomy import s_coh
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.predictions import Prediction

# Answers, though of no use: the judge is there, and decodes greedily, so it would mostly say the same again.
_ANSWERED = {MissingReason.UNPARSEABLE, MissingReason.OUT_OF_RANGE}


class JudgeFailedError(RuntimeError):
    """The judge left explanations without a score; the message says what to do."""


class StrictJudge:
    """Scores explanations against the emotion that they were written for.

    Args:
        scorer: asks the server and keeps the scores on disk.
        name: of this judge, for progress and messages.
    """

    def __init__(self, scorer: CoherenceScorer, name: str) -> None:
        self._scorer = scorer
        self.name = name

    @property
    def identity(self) -> dict[str, Any]:
        """Rubric, judge and method of the scores."""
        return dict(self._scorer.identity or {})

    def score(self, texts: Sequence[tuple[str, str]]) -> list[ExplanationScore]:
        """One score an (explanation, emotion), in order; missing, whole or in a sentence, only for the text's sake.

        Raises:
            JudgeFailedError: the judge owes a judgement or a sentence of one, or most are missing for whatever reason.
            JudgeChangedError: rubric or judge changed on the way.
        """
        scores = self._scorer.score([_prediction(*text) for text in texts], self.name)
        owed = [detail for score in scores for detail in _owed(score)]
        lost = [score for score in scores if score.status == "missing" or _owed(score)]
        if owed or len(lost) > len(scores) / 2:
            counts = Counter(reason.value for score in lost for reason in score.lost).most_common()
            example = owed[0] if owed else lost[0].detail
            raise JudgeFailedError(
                f"{len(lost)} of {len(scores)} explanations have no score, or one without all their sentences, from "
                f"{self.name} ({', '.join(f'{count} {reason}' for reason, count in counts)}; for example: {example}). "
                "None of them is taken for a low score. See that the server answers /readyz, then run the same "
                "command: it asks only for what is missing"
            )
        return scores


def value_of(score: ExplanationScore) -> float | None:
    """S_coh in [1, 5]; None where the text cannot be scored, in whole or in a sentence."""
    return None if any(sentence.status == "missing" for sentence in score.sentences) else s_coh(score)


def _owed(score: ExplanationScore) -> list[str | None]:
    """Details of what the judge owes: it gave no answer at all."""
    return [detail for reason, detail in score.lost.items() if not reason.lies_with_text and reason not in _ANSWERED]


def _prediction(explanation: str, emotion: str) -> Prediction:
    return Prediction(
        id="", video="", truth=emotion, predicted=emotion, answer=emotion, explanation=explanation, response=None
    )
