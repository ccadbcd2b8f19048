"""One clip at a time over HTTP: the page of scripts/demo.py, and what it does with a clip."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from threading import Lock
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from fgce.emotion import EmotionItem, EmotionRequest, EmotionResponse
from fgce.schema import ScoreItem, ScoreRequest, ScoreResponse
from humanomni.evaluation.anatomy import FUNCTIONS, MODALITIES
from humanomni.evaluation.cards import answer_entry
from humanomni.evaluation.clips import ClipPart, view_clip
from humanomni.evaluation.coherence import unscored
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.report import environment
from humanomni.labels import EMOTIONS
from humanomni.records import Line

log = logging.getLogger(__name__)

MAX_BYTES = 200_000_000  # of a clip; those of the data sets have a few megabytes
_STRIP_BYTES = 200_000

Respond = Callable[[Path], dict[str, Any] | str]


class DemoJudge(Protocol):
    """Who scores the explanation and names what it conveys."""

    def score(self, request: ScoreRequest) -> ScoreResponse: ...

    def name_emotions(self, request: EmotionRequest) -> EmotionResponse: ...


def create_app(respond: Respond, judge: DemoJudge, model_name: str) -> FastAPI:
    """The application.

    Args:
        respond: the model: a prediction of a clip as batch inference writes it, or why there is none.
        judge: scores the explanation.
        model_name: shown on the page.
    """
    app = FastAPI(title="CA-EMER demo", docs_url=None, redoc_url=None)
    one_at_a_time = Lock()
    page = (
        environment()
        .get_template("demo.html")
        .render(model=model_name, names={"functions": FUNCTIONS, "modalities": MODALITIES}, functions=FUNCTIONS)
    )

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page)

    @app.post("/answer")
    async def answer(request: Request, name: str) -> Response:
        """Takes a clip as the request's body; answers in JSON lines as each part is there."""
        # Not the caller's name for the file, only its ending, which says how to decode it.
        with tempfile.NamedTemporaryFile(suffix=PurePath(name).suffix[:8], delete=False) as file:
            clip, size = Path(file.name), 0
            async for chunk in request.stream():
                size += len(chunk)
                if size > MAX_BYTES:
                    clip.unlink()
                    return JSONResponse({"detail": f"The clip is larger than {MAX_BYTES // 10**6} MB."}, 413)
                file.write(chunk)
        return StreamingResponse(parts(clip, name), media_type="application/x-ndjson")

    def parts(clip: Path, name: str) -> Iterator[str]:
        try:
            with one_at_a_time:
                for part in answer_parts(clip, name, respond, judge):
                    yield json.dumps(part) + "\n"
        finally:
            clip.unlink()

    return app


def answer_parts(clip: Path, name: str, respond: Respond, judge: DemoJudge) -> Iterator[dict[str, Any]]:
    """What becomes of a clip, part by part: {"clip": its view}, {"said": the answer}, {"judged": the same with scores}.

    A clip that cannot be read, or that the model fails on, ends with {"failed": why}.
    """
    view = view_clip(ClipPart(clip), _STRIP_BYTES)
    yield {"clip": {"id": name, **vars(view)}}
    response = respond(clip)
    if isinstance(response, str):
        yield {"failed": response.replace(str(clip), name)}
        return
    prediction = Prediction.from_json(Line(clip, 1, response | {"gt": None}))
    silent = unscored(prediction)
    yield {"said": {"predicted": prediction.predicted, "words": prediction.answer, "text": prediction.explanation}}
    item = ScoreItem(id="", explanation=prediction.explanation, predicted_emotion=prediction.predicted or "")
    score = silent or judge.score(ScoreRequest(items=[item], gen_explanation=True)).results[0]
    question = EmotionRequest(items=[EmotionItem(id="", explanation=prediction.explanation)], emotions=list(EMOTIONS))
    yield {"judged": answer_entry(prediction, score, judge.name_emotions(question).results[0])}
