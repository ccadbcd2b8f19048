"""The HTTP server: the evaluator's own endpoint, the authors' one, health, readiness and metrics."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeVar, cast

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from fgce.admission import OverloadedError, RefusedError
from fgce.canary import CanaryReport
from fgce.config import FgceConfig
from fgce.emotion import EmotionRequest, EmotionResponse
from fgce.endpoints import http_url
from fgce.middleware import BearerToken, BodyLimit, Measured
from fgce.schema import ScoreItem, ScoreMode, ScoreRequest, ScoreResponse
from fgce.service import ScoringService, make_service
from fgce.wire import FunctionEvalRequest, to_wire

logger = logging.getLogger(__name__)

_CLIENT_GONE = 499  # nobody reads it; for the request counts
_DRAIN_POLL = 0.05  # seconds

_Answer = TypeVar("_Answer", ScoreResponse, EmotionResponse)


def create_app(config: FgceConfig, service: ScoringService) -> FastAPI:
    """The application over a service, which it closes when it stops.

    Raises:
        ConfigError: the configured address needs a token and there is none.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        canaries = asyncio.create_task(service.watch(config.canary_every))
        yield
        canaries.cancel()
        await asyncio.wait([canaries])
        await service.aclose()

    rubric = service.scorer.rubric
    app = FastAPI(
        title="FG-CE", description="Fine-Grained Coherence Evaluator", version=rubric.version, lifespan=lifespan
    )
    app.add_middleware(BodyLimit, limit=config.limits.body_bytes)
    if config.token:
        app.add_middleware(BearerToken, token=config.token)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(RefusedError, _come_back)
    app.add_exception_handler(RequestValidationError, _unprocessable)

    @app.post("/v1/score", response_model=ScoreResponse)
    async def score(request: ScoreRequest, http: Request) -> Response:
        """Scores many explanations; the answer holds one result an item, in order."""
        if len(request.items) > config.limits.items:
            return _too_many(request.items, config)
        response = await _unless_gone(http, service.score(request))
        # Serialised here: FastAPI would validate the whole answer once more.
        return Response(response.model_dump_json(), media_type="application/json") if response else _gone()

    @app.post("/v1/emotion", response_model=EmotionResponse)
    async def emotion(request: EmotionRequest, http: Request) -> Response:
        """Names the emotion that each explanation conveys by itself; one result an item, in order."""
        if len(request.items) > config.limits.items:
            return _too_many(request.items, config)
        response = await _unless_gone(http, service.read_emotions(request))
        return Response(response.model_dump_json(), media_type="application/json") if response else _gone()

    @app.post("/function_eval", response_model=list[dict[str, Any]])
    async def function_eval(request: FunctionEvalRequest, http: Request) -> Response:
        """Scores the sentences of one explanation in the format of the authors' server."""
        sentences = request.explanation_sentence_batch
        if len(sentences) > config.limits.sentences:
            return _too_large(f"{len(sentences)} sentences; the limit is {config.limits.sentences}")
        if request.mode_error is not None:
            return JSONResponse(request.mode_error)
        item = ScoreItem(id="function_eval", sentences=sentences, predicted_emotion=request.predicted_emotion)
        mode = cast(ScoreMode, request.score_mode)
        scoring = service.score(ScoreRequest(items=[item], score_mode=mode, gen_explanation=request.gen_explanation))
        response = await _unless_gone(http, scoring)
        return JSONResponse([to_wire(s) for s in response.results[0].sentences]) if response else _gone()

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is up."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=CanaryReport)
    async def readyz() -> Response:
        """The judge is loaded and scores the canaries; 503 otherwise."""
        report = await service.readiness()
        status = HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return JSONResponse(report.model_dump(), status)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Prometheus metrics."""
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/rubric")
    async def show_rubric() -> dict[str, Any]:
        """The rubric in use, with its hash."""
        return {**rubric.info.model_dump(), "rubric": rubric.model_dump(mode="json")}

    return app


def serve(config: FgceConfig) -> None:
    """Runs the server until SIGINT or SIGTERM; it then answers those requests that it has, and 503 to others.

    Raises:
        ConfigError, RubricError, CacheError, AuditError: the configuration is unusable.
    """
    service = make_service(config)
    app = create_app(config, service)
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=round(config.timeout) + 5,
    )
    asyncio.run(_Server(settings, service).serve())


class _Server(uvicorn.Server):
    """Says where it listens once it does, whatever port it was given, and listens on while it drains."""

    def __init__(self, config: uvicorn.Config, service: ScoringService) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            logger.info("FG-CE ready at %s", http_url(host, port))

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        # A port that is closed at once would tell clients of a dead server rather than of one to come back to.
        self._service.drain()
        give_up = time.monotonic() + self._service.scorer.timeout
        while self._service.admission.waiting and not self.force_exit and time.monotonic() < give_up:
            await asyncio.sleep(_DRAIN_POLL)
        await super().shutdown(sockets)


async def _unless_gone(http: Request, scoring: Coroutine[Any, Any, _Answer]) -> _Answer | None:
    """The result of `scoring`; None, with the work given up, where the client goes before it is there."""
    work = asyncio.create_task(scoring)
    gone = asyncio.create_task(_disconnect(http))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        work.cancel()
        gone.cancel()


async def _disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def _gone() -> Response:
    return Response(status_code=_CLIENT_GONE)


def _too_many(items: Sequence[Any], config: FgceConfig) -> JSONResponse:
    return _too_large(f"{len(items)} items; the limit is {config.limits.items} a request")


def _too_large(detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)


async def _come_back(http: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    overloaded = isinstance(error, OverloadedError)
    status = HTTPStatus.TOO_MANY_REQUESTS if overloaded else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse({"detail": str(error)}, status, {"Retry-After": str(error.retry_after)})


async def _unprocessable(http: Request, error: Exception) -> Response:
    """What is wrong and where, without the input: it may be large, and may be no valid Unicode."""
    assert isinstance(error, RequestValidationError)
    problems = [{"loc": list(p["loc"]), "type": p["type"], "msg": p["msg"]} for p in error.errors()]
    return JSONResponse({"detail": problems}, HTTPStatus.UNPROCESSABLE_ENTITY)
