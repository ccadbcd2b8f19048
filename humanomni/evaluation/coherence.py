"""Has every explanation of a stage scored by FG-CE, against the emotion that the model itself predicted."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fgce.client import FgceClient
from fgce.schema import ExplanationScore, MissingReason, ScoreItem, ScoreResponse
from humanomni.evaluation.predictions import Prediction
from humanomni.records import BadLine, JsonlWriter, read_jsonl

log = logging.getLogger(__name__)

Identity = dict[str, Any]  # {"rubric": {...}, "judge": {...}}: scores of different identities do not compare

_BATCH = 32
_NOBODY_THERE = {MissingReason.UNREACHABLE, MissingReason.REFUSED}


class JudgeChangedError(Exception):
    """The server's rubric or judge changed between two requests, so the scores do not compare."""


class CoherenceScorer:
    """Scores explanations and keeps each score on disk, so that an evaluation run again asks nothing twice.

    A kept score is used where the server that answers now has the same rubric and judge, and where no server
    answers. Missing scores are not kept: they are asked for again.

    Args:
        client: the FG-CE server.
        scores_file: JSONL of kept scores, made or continued.
        reasons: ask the judge for a sentence of reason a score, which costs a judge that generates text much more.

    Attributes:
        identity: rubric and judge of the scores; None while nobody has answered.
        failure: why no server answers, in words; None while one does.
    """

    def __init__(self, client: FgceClient, scores_file: Path, reasons: bool = True) -> None:
        self._client = client
        self._reasons = reasons
        self._kept = _KeptScores(scores_file)
        self.failure: str | None = None
        # An empty explanation costs the judge nothing and shows who answers.
        greeting = self._ask([ScoreItem(id="", explanation="", predicted_emotion="neutral")])
        self.identity = _identity(greeting) or self._kept.last_identity
        if self.failure and self.identity:
            log.warning("FG-CE: no server answers; taking what %s holds", scores_file)

    def score(self, predictions: Sequence[Prediction], name: str) -> list[ExplanationScore]:
        """One score a prediction, in order. A judge that fails gives missing scores, never an error.

        A prediction without an explanation, or without an emotion to judge it against, needs no judge: it
        gets the flag `no_evidence` and the normalised score 0.

        Raises:
            JudgeChangedError: the server's rubric or judge is not that of the first answer.
        """
        judged = {_key(p): p for p in predictions if p.explanation and p.predicted}
        todo = [key for key in judged if self._kept.get(key, self.identity) is None]
        lost: dict[str, ExplanationScore] = {}
        with tqdm(total=len(todo), desc=f"FG-CE {name}", leave=False, disable=None) as progress:
            for start in range(0, len(todo), _BATCH):
                items = [_item(key, judged[key]) for key in todo[start : start + _BATCH]]
                lost |= self._keep(self._ask(items))
                progress.update(len(items))
        return [self._result(prediction, lost) for prediction in predictions]

    def _ask(self, items: list[ScoreItem]) -> ScoreResponse:
        """One request; none once the server is known to be gone, so that its absence costs one wait."""
        if self.failure is not None:
            gone = [ExplanationScore.missing(i.id, MissingReason.UNREACHABLE, self.failure) for i in items]
            return ScoreResponse(rubric=None, judge=None, results=gone)
        response = self._client.score_sync(items, gen_explanation=self._reasons)
        first = response.results[0]
        if response.rubric is None and first.reason in _NOBODY_THERE:
            self.failure = first.detail
        return response

    def _keep(self, response: ScoreResponse) -> dict[str, ExplanationScore]:
        """Keeps what was scored and returns what is missing, by key."""
        identity = _identity(response)
        if identity is not None:
            if self.identity not in (None, identity):
                raise JudgeChangedError(
                    f"FG-CE changed during the evaluation, from {self.identity} to {identity}; run it again"
                )
            self.identity = identity
            self._kept.add([result for result in response.results if result.status == "ok"], identity)
        return {result.id: result for result in response.results if result.status == "missing"}

    def _result(self, prediction: Prediction, lost: dict[str, ExplanationScore]) -> ExplanationScore:
        if not (prediction.explanation and prediction.predicted):
            flag = "no_answer" if prediction.explanation else "no_explanation"
            return ExplanationScore(
                id=prediction.id,
                status="ok",
                flags=["no_evidence", flag],
                normalised=0.0,
                unweighted_normalised=0.0,
            )
        key = _key(prediction)
        score = self._kept.get(key, self.identity) or lost[key]
        return score.model_copy(update={"id": prediction.id})


class _KeptScores:
    """The scores file: a line an explanation, `{"key", "scorer", "score"}`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scores: dict[tuple[str, str], ExplanationScore] = {}
        self.last_identity: Identity | None = None
        JsonlWriter(path).close()  # makes the file, or drops the line that a killed evaluation was writing
        for line in read_jsonl(path, "skip"):
            if isinstance(line, BadLine):
                log.warning("%s; that explanation is scored again", line)
                continue
            self.last_identity = line.value["scorer"]
            score = ExplanationScore.model_validate(line.value["score"])
            self._scores[line.value["key"], _hashable(self.last_identity)] = score

    def get(self, key: str, identity: Identity | None) -> ExplanationScore | None:
        return self._scores.get((key, _hashable(identity)))

    def add(self, scores: list[ExplanationScore], identity: Identity) -> None:
        with JsonlWriter(self._path) as writer:
            for score in scores:
                self._scores[score.id, _hashable(identity)] = score
                writer.write({"key": score.id, "scorer": identity, "score": score.model_dump(mode="json")})


def _identity(response: ScoreResponse) -> Identity | None:
    if response.rubric is None or response.judge is None:
        return None
    return {"rubric": response.rubric.model_dump(), "judge": response.judge.model_dump()}


def _item(key: str, prediction: Prediction) -> ScoreItem:
    return ScoreItem(id=key, explanation=prediction.explanation, predicted_emotion=prediction.predicted or "")


def _key(prediction: Prediction) -> str:
    return hashlib.sha256(f"{prediction.predicted}\n{prediction.explanation}".encode()).hexdigest()[:32]


def _hashable(identity: Identity | None) -> str:
    return json.dumps(identity, sort_keys=True)
