"""Scores for rejection sampling: every one of them, or an error. A judge that is gone never looks like a low score."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fgce.schema import ExplanationScore, MissingReason
from humanomni.evaluation.anatomy import s_coh
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.predictions import Prediction

# Missing because of the text: the same judge would say the same again.
_OF_THE_TEXT = {
    MissingReason.UNSUPPORTED_LANGUAGE,
    MissingReason.UNSUPPORTED_EMOTION,
    MissingReason.TOO_LARGE,
    MissingReason.NO_INPUT,
    MissingReason.UNPARSEABLE,
    MissingReason.OUT_OF_RANGE,
}


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
        """Rubric and judge of the scores."""
        return dict(self._scorer.identity or {})

    def score(self, texts: Sequence[tuple[str, str]]) -> list[ExplanationScore]:
        """One score an (explanation, emotion), in order; status "missing" only where the text is at fault.

        Raises:
            JudgeFailedError: a judgement is missing because of the judge, or most of them for whatever reason.
            JudgeChangedError: rubric or judge changed on the way.
        """
        scores = self._scorer.score([_prediction(*text) for text in texts], self.name)
        missing = [score for score in scores if score.status == "missing"]
        failed = [score for score in missing if score.reason not in _OF_THE_TEXT]
        if failed or len(missing) > len(scores) / 2:
            counts = Counter(str(score.reason) for score in missing)
            raise JudgeFailedError(
                f"{len(missing)} of {len(scores)} explanations have no score from {self.name} "
                f"({', '.join(f'{count} {reason}' for reason, count in counts.most_common())}; for example: "
                f"{(failed or missing)[0].detail}). None of them is taken for a low score. See that the server answers "
                "/readyz, then run the same command: it asks only for what is missing"
            )
        return scores


def value_of(score: ExplanationScore) -> float | None:
    """S_coh in [1, 5]; None where the text cannot be scored, in whole or in a sentence."""
    return None if any(sentence.status == "missing" for sentence in score.sentences) else s_coh(score)


def _prediction(explanation: str, emotion: str) -> Prediction:
    return Prediction(
        id="", video="", truth=emotion, predicted=emotion, answer=emotion, explanation=explanation, response=None
    )
