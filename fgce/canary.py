"""Canaries: fixed explanations that show whether a judge answers, and whether it still answers as it did."""

import asyncio
import logging
import time

from pydantic import BaseModel

from fgce.schema import ExplanationScore, MissingReason, ScoreItem
from fgce.scorer import Scorer

logger = logging.getLogger(__name__)

_CUES = "Her brows are lowered and drawn together. Her voice is loud and her speech is fast."
CANARIES = (
    ScoreItem(
        id="coherent",
        explanation=f"{_CUES} The lowered brows and the loud voice suggest anger. Overall, she is angry.",
        predicted_emotion="anger",
    ),
    ScoreItem(
        id="contradictory",
        explanation=f"{_CUES} The lowered brows and the loud voice suggest anger. Overall, she is angry.",
        predicted_emotion="happiness",
    ),
    ScoreItem(
        id="irrelevant",
        explanation="The wall behind her is grey. She wears a blue shirt. Overall, she is angry.",
        predicted_emotion="anger",
    ),
)


class CanaryReport(BaseModel):
    """`ready`: every canary has a score. `drifted`: those whose score is not what it was at the first check.

    Scores are compared where no sentence of the canaries is missing: a lost sentence moves a score and is no drift.
    """

    ready: bool
    scores: dict[str, float | None]
    reasons: dict[str, str]
    drifted: list[str]


class Canaries:
    """Scores the canaries and remembers their first scores; `last` is the newest report."""

    def __init__(self, scorer: Scorer) -> None:
        self.last: CanaryReport | None = None
        self._scorer = scorer
        self._first: dict[str, float | None] = {}
        self._checked = 0.0
        self._lock = asyncio.Lock()

    async def check(self, max_age: float) -> CanaryReport:
        """The state of the judge, not older than `max_age` seconds: probes that come close together share an answer."""
        async with self._lock:
            if self.last is None or time.monotonic() - self._checked > max_age:
                report = await self._score()
                if not report.ready and (self.last is None or self.last.ready):
                    logger.error("the judge is not ready: %s", report.reasons)
                elif report.ready and self.last and not self.last.ready:
                    logger.info("the judge is ready again")
                self.last = report
                self._checked = time.monotonic()
            return self.last

    async def _score(self) -> CanaryReport:
        answers = (self._scorer.score_afresh(item) for item in CANARIES)
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        results = [_result(item, outcome) for item, outcome in zip(CANARIES, outcomes, strict=True)]
        scores = {result.id: result.score for result in results}
        ready = all(result.status == "ok" for result in results)
        whole = ready and not any("partial" in result.flags for result in results)
        if whole and not self._first:
            self._first = scores
        drifted = [name for name in scores if whole and scores[name] != self._first[name]]
        if drifted:
            logger.warning("the judge has drifted: canaries scored %s at first, %s now", self._first, scores)
        reasons = {result.id: f"{result.reason}: {result.detail}" for result in results if result.reason}
        return CanaryReport(ready=ready, scores=scores, reasons=reasons, drifted=drifted)


def _result(item: ScoreItem, outcome: ExplanationScore | BaseException) -> ExplanationScore:
    """A judge that breaks its contract, and raises what it may not, is not ready; the checks go on."""
    if isinstance(outcome, ExplanationScore):
        return outcome
    logger.error("the judge raised an error that is no JudgeError", exc_info=outcome)
    return ExplanationScore.missing(item.id, MissingReason.JUDGE_ERROR, repr(outcome))
