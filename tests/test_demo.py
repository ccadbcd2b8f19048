"""The demo: a clip goes in, the answer and its scored explanation come out, in the page and over HTTP."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from chromium import Page, chromium, needs_chromium, opened
from media_factory import write_clip

from fgce.emotion import ConveyedEmotion, EmotionRequest, EmotionResponse
from fgce.schema import ExplanationScore, ScoreRequest, ScoreResponse, SentenceScore
from humanomni.evaluation import demo

ATTACK = "<img src=x onerror=\"document.title='taken'\">"


class Judge:
    """Scores one sentence, and hears another emotion than the one predicted."""

    def score(self, request: ScoreRequest) -> ScoreResponse:
        text = request.items[0].explanation or ""
        sentence = SentenceScore(
            text=text,
            status="ok",
            function="information analysis",
            modality="audio",
            score=4,
            weight=1.0,
            explanation="A clear cue.",
        )
        score = ExplanationScore(id="", status="ok", score=4.0, normalised=0.75, sentences=[sentence])
        return ScoreResponse(rubric=None, judge=None, results=[score])

    def name_emotions(self, request: EmotionRequest) -> EmotionResponse:
        conveyed = ConveyedEmotion(id="", status="ok", emotion="fear")
        return EmotionResponse(question=None, judge=None, results=[conveyed])


def respond(clip: Path) -> dict[str, Any] | str:
    if clip.stat().st_size < 1000:
        return f"{clip}: no such luck"
    said = f"<think>Her voice is loud. {ATTACK}</think>\n<answer>anger</answer>"
    return {"id": "clip", "video": clip.name, "gt": None, "raw_response": said}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The demo's server in this process, with a model and a judge that always say the same."""
    app = demo.create_app(respond, Judge(), "tiny")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "her clip.mp4", frames=16, seconds=0.7)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    with opened(browser, url, f"demo_{request.node.name}", *getattr(request, "param", ())) as page:
        yield page


@needs_chromium
@pytest.mark.parametrize("page", [(1280, "light"), (390, "dark")], indirect=True, ids=["desk", "dark phone"])
def test_a_clip_gets_its_card(page: Page, clip: Path) -> None:
    page.script("return document.querySelector('#file')").send_keys(str(clip))
    sentence = page.wait_for(".sentence")
    assert page.one(".card h2").text == "her clip.mp4"
    assert page.script("return document.querySelector('.strip').naturalWidth > 300")
    assert page.one(".wave").size["height"] > 20
    assert page.one(".card .verdict").text == "anger"
    assert ATTACK in sentence.text
    assert "4 of 5" in sentence.text
    assert "The explanation alone reads as fear." in page.one(".card").text
    page.script("arguments[0].focus()", sentence)
    assert page.one(".reason").text == "A clear cue. (weight 1)"
    assert page.browser.title == "Emotion, and the reasons given for it"
    assert not page.all(".status")
    assert page.script("return document.documentElement.scrollWidth <= innerWidth")
    assert page.poor_contrasts() == []


@needs_chromium
def test_the_page_says_what_went_wrong(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no clip")
    page.script("return document.querySelector('#file')").send_keys(str(broken))
    assert page.wait_for(".card [role=alert]").text == "broken.mp4: no such luck"
    assert "The clip cannot be shown" in page.one(".card").text


@needs_chromium
def test_the_keyboard_reaches_the_drop_zone(page: Page) -> None:
    page.press("\ue004")  # Tab
    assert page.script("return document.activeElement.id") == "file"


def test_a_clip_that_is_too_large_is_refused(url: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MAX_BYTES", 1000)
    answer = httpx.post(f"{url}/answer", params={"name": "a.mp4"}, content=clip.read_bytes())
    assert answer.status_code == 413


@pytest.mark.slow
def test_a_real_model_answers(repo: Path, golden_checkpoint: Path, clip: Path) -> None:
    """Slow: another process imports torch. The golden checkpoint is untrained: it answers, whatever it says."""
    command = [sys.executable, repo / "scripts/demo.py", "--model_path", golden_checkpoint, "--port", "0"]
    process = subprocess.Popen([*command, "--max_new_tokens", "4"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.search(r"open (http://\S+)", line) for line in process.stderr)))
        with clip.open("rb") as body:
            answer = httpx.post(f"{found[1]}/answer", params={"name": clip.name}, content=body.read(), timeout=60)
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()
    parts = [json.loads(line) for line in answer.text.splitlines()]
    assert [next(iter(part)) for part in parts] == ["clip", "said", "judged"]
    assert parts[0]["clip"]["strip"].startswith("data:image/jpeg")
    assert parts[2]["judged"]["malformed"]


def test_a_folder_without_a_model_is_named(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, repo / "scripts/demo.py", "--model_path", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "holds no config.json" in result.stderr
