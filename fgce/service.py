"""What a server does with a request, whatever endpoint it came by: queue, score, count, log."""

import asyncio
import logging
import time
import uuid
from typing import Any

from fgce.admission import Admission, UnavailableError
from fgce.audit import AuditLog
from fgce.cache import ScoreCache
from fgce.canary import Canaries, CanaryReport
from fgce.config import FgceConfig
from fgce.emotion import EmotionReader, EmotionRequest, EmotionResponse
from fgce.judges import build_judge
from fgce.metrics import Metrics
from fgce.rubric import load_rubric
from fgce.schema import ScoreRequest, ScoreResponse
from fgce.scorer import Scorer

logger = logging.getLogger(__name__)

_RECHECK = 2  # seconds until a judge that is not ready is asked again, and a refused client may come back


class ScoringService:
    """A scorer with a bounded queue, canaries, metrics and an audit log.

    Args:
        scorer: what scores.
        queue: explanations that may be in work at once.
        audit: where every answer is logged.
        probe_holds: seconds for which a readiness probe's answer holds.
    """

    def __init__(self, scorer: Scorer, *, queue: int, audit: AuditLog | None = None, probe_holds: float = 10.0) -> None:
        self.scorer = scorer
        self.admission = Admission(queue)
        self.metrics = Metrics(queue_depth=lambda: self.admission.waiting)
        self._canaries = Canaries(scorer)
        self._probe_holds = probe_holds
        self._audit = audit
        self._reader = EmotionReader(scorer.judge, scorer.timeout)
        self._draining = False

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Scores a request.

        Raises:
            OverloadedError: the queue is full.
            UnavailableError: the judge did not score the canaries last time and is needed, since the cache does not
                hold all that is asked for; or the server is about to stop.
        """
        if self._draining:
            raise UnavailableError("the server is about to stop", _RECHECK)
        if self._canaries.last and not self._canaries.last.ready and not self.scorer.is_cached(request):
            raise UnavailableError(f"the judge is not ready: {self._canaries.last.reasons}", _RECHECK)
        start = time.monotonic()
        with self.admission.admit(len(request.items)):
            response = await self.scorer.score(request)
        for result in response.results:
            self.metrics.count(result)
        request_id = uuid.uuid4().hex
        if self._audit:
            self._audit.write(request_id, request, response)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("scored", extra=_counts(request_id, response, time.monotonic() - start))
        return response

    async def read_emotions(self, request: EmotionRequest) -> EmotionResponse:
        """Which emotion each explanation conveys.

        Raises:
            OverloadedError: the queue is full.
            UnavailableError: the judge is not ready, or the server is about to stop.
        """
        if self._draining or (self._canaries.last and not self._canaries.last.ready):
            raise UnavailableError("the judge is not ready, or the server is about to stop", _RECHECK)
        with self.admission.admit(len(request.items)):
            return await self._reader.read(request)

    async def readiness(self) -> CanaryReport:
        """Whether requests are taken: the judge answers, shown by the canaries, and the server is not draining."""
        report = await self._check_canaries(self._probe_holds)
        if self._draining:
            return report.model_copy(update={"ready": False, "reasons": {"server": "about to stop"}})
        return report

    async def watch(self, every: float) -> None:
        """Scores the canaries now and every `every` seconds, more often while the judge is not ready."""
        while True:
            report = await self._check_canaries(max_age=0)
            await asyncio.sleep(every if report.ready else min(every, _RECHECK))

    def drain(self) -> None:
        """Refuses requests from now on; those accepted before go on."""
        self._draining = True
        logger.info("stopping: no more requests are taken, %d explanations are in work", self.admission.waiting)

    async def _check_canaries(self, max_age: float) -> CanaryReport:
        report = await self._canaries.check(max_age)
        self.metrics.note_canaries(report)
        return report

    async def aclose(self) -> None:
        """Lets go of judge, cache and log."""
        await self.scorer.aclose()
        if self._audit:
            self._audit.close()


def _counts(request_id: str, response: ScoreResponse, seconds: float) -> dict[str, Any]:
    sentences = [sentence for result in response.results for sentence in result.sentences]
    return {
        "request": request_id,
        "items": len(response.results),
        "missing": sum(result.status == "missing" for result in response.results),
        "sentences": len(sentences),
        "cached": sum(sentence.trace.cached for sentence in sentences),
        "seconds": round(seconds, 4),
    }


def make_scorer(config: FgceConfig) -> Scorer:
    """Judge, rubric, cache and limits as configured.

    Raises:
        RubricError, CacheError: the configured file is unusable.
    """
    rubric = load_rubric(config.rubric)
    return Scorer(
        build_judge(config.judge, rubric),
        rubric,
        cache=ScoreCache(config.cache) if config.cache else None,
        splitter=config.splitter,
        max_missing_share=config.max_missing_share,
        max_sentences=config.limits.sentences,
        max_sentence_chars=config.limits.sentence_chars,
        timeout=config.timeout,
    )


def make_service(config: FgceConfig) -> ScoringService:
    """The service that a configuration describes.

    Raises:
        RubricError, CacheError, AuditError: the configured file is unusable.
    """
    audit = AuditLog(config.audit) if config.audit else None
    return ScoringService(make_scorer(config), queue=config.limits.queue, audit=audit)
