"""Has every explanation of a stage scored by FG-CE, against the emotion that the model itself predicted."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from fgce.client import FgceClient
from fgce.schema import ExplanationScore, Identity, ScoreItem
from humanomni.evaluation.judged import Interview, Reply
from humanomni.evaluation.predictions import Prediction

_Question = tuple[str, str]  # explanation, predicted emotion


class CoherenceScorer:
    """Scores explanations and keeps each score on disk; see `Interview` for what is asked again.

    Args:
        client: the FG-CE server.
        scores_file: JSONL of kept scores, made or continued.
        reasons: ask the judge for a sentence of reason a score, which costs a judge that generates text much more.
    """

    def __init__(self, client: FgceClient, scores_file: Path, reasons: bool = True) -> None:
        self._client = client
        self._reasons = reasons
        self._interview: Interview[_Question, ExplanationScore] = Interview(
            self._ask, ("", "neutral"), scores_file, ExplanationScore
        )

    @property
    def identity(self) -> Identity | None:
        """Rubric, judge and method of the scores; None while nobody has answered."""
        return self._interview.identity

    @property
    def failure(self) -> str | None:
        """Why no server answers, in words; None while one does."""
        return self._interview.failure

    def score(self, predictions: Sequence[Prediction], name: str) -> list[ExplanationScore]:
        """One score a prediction, in order. A judge that fails gives missing scores, never an error.

        A prediction without an explanation, or without an emotion to judge it against, needs no judge: it
        gets the flag `no_evidence` and the normalised score 0.

        Raises:
            JudgeChangedError: the server's rubric or judge is not that of the first answer.
        """
        judged = {_key(p): (p.explanation, p.predicted) for p in predictions if p.explanation and p.predicted}
        scores = self._interview.answers(judged, name)
        return [self._result(prediction, scores) for prediction in predictions]

    def _ask(self, questions: Mapping[str, _Question]) -> Reply[ExplanationScore]:
        items = [
            ScoreItem(id=key, explanation=explanation, predicted_emotion=predicted)
            for key, (explanation, predicted) in questions.items()
        ]
        response = self._client.score_sync(items, gen_explanation=self._reasons)
        return Reply(response.identity, response.results)

    def _result(self, prediction: Prediction, scores: Mapping[str, ExplanationScore]) -> ExplanationScore:
        return unscored(prediction) or scores[_key(prediction)].model_copy(update={"id": prediction.id})


def unscored(prediction: Prediction) -> ExplanationScore | None:
    """The score of a prediction that needs no judge, for want of an explanation or an answer; None for all others."""
    if prediction.explanation and prediction.predicted:
        return None
    flag = "no_answer" if prediction.explanation else "no_explanation"
    return ExplanationScore(
        id=prediction.id,
        status="ok",
        flags=["no_evidence", flag],
        normalised=0.0,
        unweighted_normalised=0.0,
    )


def _key(prediction: Prediction) -> str:
    return hashlib.sha256(f"{prediction.predicted}\n{prediction.explanation}".encode()).hexdigest()[:32]
