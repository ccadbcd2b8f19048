"""The HTTP server: the evaluator's own endpoint, the authors' one, health, readiness and metrics."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from fgce.config import FgceConfig
from fgce.judges import build_judge
from fgce.metrics import Metrics
from fgce.rubric import Rubric, load_rubric
from fgce.schema import ScoreItem, ScoreMode, ScoreRequest, ScoreResponse
from fgce.scorer import Scorer
from fgce.wire import FunctionEvalRequest, to_wire

logger = logging.getLogger(__name__)

CANARY = ScoreItem(
    id="canary",
    explanation="Her brows are lowered and her voice is loud. Both suggest anger. Overall, she is angry.",
    predicted_emotion="anger",
)


def create_app(config: FgceConfig, scorer: Scorer | None = None) -> FastAPI:
    """The application. `scorer` is made from the configuration unless one is given.

    Raises:
        RubricError: the configured rubric file is unusable.
    """
    scorer = scorer or make_scorer(config)
    metrics = Metrics()
    app = FastAPI(title="FG-CE", description="Fine-Grained Coherence Evaluator", version=scorer.rubric.version)

    @app.middleware("http")
    async def _measure(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.monotonic()
        response = await handle(request)
        route = request.scope.get("route")
        path = route.path if route else "unknown"
        metrics.requests.labels(path, response.status_code).inc()
        if request.method == "POST":
            metrics.latency.labels(path).observe(time.monotonic() - start)
        return response

    @app.post("/v1/score")
    async def score(request: ScoreRequest) -> ScoreResponse:
        """Scores many explanations; the answer holds one result an item, in order."""
        response = await scorer.score(request)
        for result in response.results:
            metrics.count_explanation(result)
        return response

    @app.post("/function_eval")
    async def function_eval(request: FunctionEvalRequest) -> list[dict[str, Any]]:
        """Scores the sentences of one explanation in the format of the authors' server."""
        if request.mode_error is not None:
            return request.mode_error
        sentences = await scorer.score_sentences(
            request.explanation_sentence_batch,
            request.explanation,
            request.predicted_emotion,
            mode=cast(ScoreMode, request.score_mode),
            gen_explanation=request.gen_explanation,
        )
        metrics.count_sentences(sentences)
        return [to_wire(sentence) for sentence in sentences]

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is up."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """The judge is loaded and has just scored the canary; 503 otherwise."""
        result = (await scorer.score(ScoreRequest(items=[CANARY]))).results[0]
        ready = result.status == "ok"
        return JSONResponse(result.model_dump(mode="json"), status_code=200 if ready else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Prometheus metrics."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/rubric")
    async def rubric() -> dict[str, Any]:
        """The rubric in use, with its hash."""
        return {**scorer.rubric.info.model_dump(), "rubric": scorer.rubric.model_dump(mode="json")}

    return app


def make_scorer(config: FgceConfig) -> Scorer:
    """Judge, rubric and limits as configured."""
    rubric: Rubric = load_rubric(config.rubric)
    return Scorer(
        build_judge(config.judge),
        rubric,
        max_missing_share=config.max_missing_share,
        sentence_timeout=config.sentence_timeout,
    )


class _Server(uvicorn.Server):
    """Says where it listens once it does, whatever port it was given."""

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            logger.info("FG-CE ready at http://%s:%d", host, port)


def serve(config: FgceConfig) -> None:
    """Runs the server until it is told to stop (SIGINT, SIGTERM: finishes what it is doing first)."""
    app = create_app(config)
    settings = uvicorn.Config(app, host=config.host, port=config.port, log_config=None, access_log=False)
    asyncio.run(_Server(settings).serve())
