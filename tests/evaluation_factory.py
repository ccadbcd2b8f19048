"""A small world for the evaluation's tests: prediction files of three stages, and an FG-CE server.

The server is a stand-in with the real wire format: it reads "[function modality score]" at the end of each
sentence and answers just that, so that a test can dictate every score; "[fails]" makes the sentence missing because
of the judge, "[too long]" because of the text. An explanation conveys
the last emotion that it names; "[fails]" is missing there too.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fgce.aggregate import aggregate
from fgce.emotion import ConveyedEmotion, EmotionItem, EmotionRequest, EmotionResponse
from fgce.schema import JudgeInfo, MethodInfo, MissingReason, RubricInfo, ScoreRequest, ScoreResponse, SentenceScore

_MARK = re.compile(r"\s*\[([^\]]*)\]")
_FUNCTIONS = {"e": "information extraction", "a": "information analysis", "c": "conclusion", "o": "others"}
_MISSING = {
    "fails": (MissingReason.TIMEOUT, "the judge timed out"),
    "too long": (MissingReason.TOO_LARGE, "4001 characters; the limit is 4000"),
}
_MODALITIES = {"a": "audio", "v": "visual", "x": "contextual", "av": "audio-visual"}


class DictatedJudge:
    """An FG-CE server on loopback whose answers stand in the texts.

    Attributes:
        asked: how many explanations have been scored.
        asked_to_name: of how many the emotion has been named.
        revision: the judge's revision; changing it makes another judge.
        method: how it is asked; changing it makes answers that do not compare.
        broken: answers every request with nonsense.
    """

    def __init__(self) -> None:
        self.asked = self.asked_to_name = 0
        self.revision = "1"
        self.method = MethodInfo(decoding="json", splitter="sentencex")
        self.broken = False
        self.url = ""

    def answer(self, path: str, body: bytes) -> bytes:
        if self.broken:
            return b"<html>proxy error</html>"
        if path == "/v1/emotion":
            return self.name_emotions(EmotionRequest.model_validate_json(body)).model_dump_json().encode()
        request = ScoreRequest.model_validate_json(body)
        self.asked += sum(bool(item.explanation) for item in request.items)
        results = [aggregate(item.id, _sentences(item.explanation or "")) for item in request.items]
        rubric = RubricInfo(version="test", sha256="ab" * 32)
        response = ScoreResponse(rubric=rubric, judge=self.info, method=self.method, results=results)
        return response.model_dump_json().encode()

    @property
    def info(self) -> JudgeInfo:
        return JudgeInfo(backend="dictated", model="none", revision=self.revision)

    def name_emotions(self, request: EmotionRequest) -> EmotionResponse:
        self.asked_to_name += sum(bool(item.explanation) for item in request.items)
        question = RubricInfo(version="test", sha256="cd" * 32)
        results = [_conveyed(item, request.emotions) for item in request.items]
        return EmotionResponse(question=question, judge=self.info, results=results)


def _conveyed(item: EmotionItem, emotions: list[str]) -> ConveyedEmotion:
    if "[fails]" in item.explanation:
        return ConveyedEmotion.missing(item.id, MissingReason.TIMEOUT, "the judge timed out")
    named = [word for word in re.findall(r"\w+", item.explanation) if word in emotions]
    return ConveyedEmotion(id=item.id, status="ok", emotion=named[-1] if named else None)


def _sentences(explanation: str) -> list[SentenceScore]:
    sentences = []
    marks = _MARK.split(explanation)
    for text, mark in zip(marks[::2], marks[1::2], strict=False):
        if mark in _MISSING:
            reason, detail = _MISSING[mark]
            sentences.append(SentenceScore(text=text, status="missing", reason=reason, detail=detail))
            continue
        function, modality, score = mark.split()
        others = function == "o"
        sentences.append(
            SentenceScore(
                text=text.strip(),
                status="ok",
                function=_FUNCTIONS[function],
                modality=_MODALITIES[modality],
                confidence=0.9,
                score=None if others else int(score),
                weight=0.0 if others else (2.0 if function == "c" else 1.0),
                explanation=None if others else f"Scored {score} because the test says so.",
            )
        )
    return sentences


@contextmanager
def dictated_judge() -> Iterator[DictatedJudge]:
    """Runs the stand-in on a free port."""
    judge = DictatedJudge()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # noqa: N802 - the base class names it
            answer = judge.answer(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


GOOD = (
    "The corners of the mouth are raised. [e v {s}] The pitch of the voice rises at the end. [e a {s}] "
    "Raised corners and a rising pitch together suggest delight. [a av {s}] She shows {answer}. [c v 5]"
)
WEAK = "There is a person in front of a wall. [o x 0] The brows are lowered. [e v {s}] Perhaps {answer}. [c x {s}]"


def prediction(
    number: int, truth: str, answer: str | None, think: str | None, video: str | None = None
) -> dict[str, Any]:
    raw = f"<think>{think}</think>\n<answer>{answer}</answer>" if think and answer else (think or answer or "")
    return {
        "id": f"clip-{number:03d}",
        "video": video or f"clips/{number:03d}.mp4",
        "gt": truth,
        "pred": answer,
        "think_text": think,
        "raw_response": raw,
    }


def write_predictions(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def three_stages(folder: Path, clips: int = 28, videos: list[Path] | None = None) -> dict[str, Path]:
    """Prediction files of a model that improves: one answer in two, two in three, four in five are right."""
    emotions = ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")
    files = {}
    for stage, (name, every, template, score) in enumerate(
        [("sft", 2, WEAK, 2), ("grpo1", 3, WEAK, 3), ("grpo2", 5, GOOD, 4)]
    ):
        rows = []
        for number in range(clips):
            truth = emotions[number % 7]
            wrong = number % every == every - 1
            answer: str | None = emotions[(number + 3) % 7] if wrong else truth
            think: str | None = template.format(s=max(1, score - number % 2), answer=answer)
            if stage == 0 and number in (5, 12):
                answer, think = (None, think) if number == 5 else ("who knows", None)
            video = str(videos[number % len(videos)]) if videos else None
            rows.append(prediction(number, truth, answer, think, video))
        files[name] = write_predictions(folder / f"{name}.jsonl", rows)
    return files
