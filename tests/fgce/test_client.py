"""The client against servers that are dead, slow, overloaded, refusing or garbled: missing, with the reason."""

import asyncio
import json
import time
from collections.abc import Callable
from types import SimpleNamespace

import httpx
import pytest

from fgce import client as client_module
from fgce.client import FgceClient, connect_args, score
from fgce.schema import ScoreItem

ITEMS = [ScoreItem(id=name, explanation="She is sad.", predicted_emotion="sad") for name in "ab"]
GOOD = {
    "rubric": {"version": "1", "sha256": "0"},
    "judge": {"backend": "x", "model": "y", "revision": "z"},
    "results": [{"id": name, "status": "ok", "score": 5.0, "normalised": 1.0} for name in "ab"],
}


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client_module, "_backoff", lambda state: 0.01)


def client(answer: Callable[[httpx.Request], httpx.Response], **settings) -> FgceClient:
    return FgceClient("http://judge", transport=httpx.MockTransport(answer), **settings)


def shuffled(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=GOOD | {"results": GOOD["results"][::-1]})


def reset(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda request: httpx.Response(500, text="boom"), "server_error"),
        (lambda request: httpx.Response(503, headers={"Retry-After": "0"}), "overloaded"),
        (lambda request: httpx.Response(401, text="token"), "refused"),
        (lambda request: httpx.Response(200, text='{"results": [{"id": "a", "st'), "bad_response"),
        (lambda request: httpx.Response(200, json=[]), "bad_response"),
        (lambda request: httpx.Response(200, json=GOOD | {"results": GOOD["results"][:1]}), "bad_response"),
        (shuffled, "bad_response"),
        (reset, "unreachable"),
    ],
)
async def test_a_failing_judge_gives_missing_results(answer, reason: str):
    response = await client(answer, attempts=2).score(ITEMS)
    assert [(r.id, r.status, r.reason, r.score, r.normalised) for r in response.results] == [
        (name, "missing", reason, None, None) for name in "ab"
    ]
    assert response.rubric is None


async def test_it_tries_again_until_an_answer_comes():
    answers = iter([500, 429, 200])

    def flaky(request: httpx.Request) -> httpx.Response:
        status = next(answers)
        return httpx.Response(status, json=GOOD if status == 200 else None)

    response = await client(flaky).score(ITEMS)
    assert [result.score for result in response.results] == [5, 5]


async def test_a_refusal_is_not_retried():
    seen = []

    def refuse(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(413, text="too large")

    await client(refuse).score(ITEMS)
    assert len(seen) == 1


async def test_retry_after_is_honoured():
    times: list[float] = []

    def later(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        return httpx.Response(429, headers={"Retry-After": "1"}) if len(times) == 1 else httpx.Response(200, json=GOOD)

    await client(later).score(ITEMS)
    assert times[1] - times[0] >= 1


async def test_the_deadline_bounds_a_hanging_judge():
    async def hang(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200)

    start = time.monotonic()
    response = await client(hang, deadline=0.3).score(ITEMS)
    assert time.monotonic() - start < 2
    assert {result.reason for result in response.results} == {"timeout"}


async def test_the_token_is_sent():
    def check(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer s3cret"
        assert json.loads(request.content)["items"][0]["id"] == "a"
        return httpx.Response(200, json=GOOD)

    assert (await client(check, token="s3cret").score(ITEMS)).results[0].status == "ok"


def test_where_to_connect(monkeypatch: pytest.MonkeyPatch):
    for name in ("FGCE_URL", "FGCE_TOKEN", "POD_IP"):
        monkeypatch.delenv(name, raising=False)
    assert connect_args() == (["http://127.0.0.1:8000"], None)
    monkeypatch.setenv("POD_IP", "10.0.0.7")
    assert connect_args()[0] == ["http://10.0.0.7:8000"]
    monkeypatch.setenv("POD_IP", "fd00::7")
    assert connect_args()[0] == ["http://[fd00::7]:8000"]
    monkeypatch.setenv("FGCE_URL", "http://node3:9000/, http://node4:9000\n")
    monkeypatch.setenv("FGCE_TOKEN", "t")
    assert connect_args() == (["http://node3:9000", "http://node4:9000"], "t")
    assert connect_args("http://mine", "u") == (["http://mine"], "u")


def test_nobody_listening_is_missing_too():
    response = score(ITEMS, "http://127.0.0.1:9")
    assert {result.reason for result in response.results} == {"unreachable"}


async def test_another_server_answers_for_a_dead_one(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("fgce.endpoints.time", SimpleNamespace(monotonic=lambda: now[0]))
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return reset(request) if request.url.host == "dead" else httpx.Response(200, json=GOOD)

    two = FgceClient("http://dead,http://alive", transport=httpx.MockTransport(answer))
    for _ in range(6):
        assert (await two.score(ITEMS)).results[0].score == 5
    assert asked.count("dead") == 1  # the other one comes first for a moment
    for _ in range(6):
        now[0] += 1.5
        assert (await two.score(ITEMS)).results[0].score == 5
    assert asked.count("dead") == 5  # then it is left alone


@pytest.mark.parametrize("status", [429, 503])
async def test_another_server_is_asked_at_once_where_one_is_busy_draining_or_not_ready(status: int):
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        busy = request.url.host == "busy"
        return httpx.Response(status, headers={"Retry-After": "30"}) if busy else httpx.Response(200, json=GOOD)

    start = time.monotonic()
    two = FgceClient("http://busy,http://free", transport=httpx.MockTransport(answer))
    assert (await two.score(ITEMS)).results[0].score == 5
    assert (asked, time.monotonic() - start < 5) == (["busy", "free"], True)


async def test_a_server_that_keeps_failing_is_left_alone_until_it_has_cooled_down(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("fgce.endpoints.time", SimpleNamespace(monotonic=lambda: now[0]))
    asked: list[float] = []
    alive = False

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(now[0])
        return httpx.Response(200, json=GOOD) if alive else httpx.Response(500)

    one = client(answer)
    for _ in range(5):
        assert (await one.score(ITEMS)).results[0].status == "missing"
    assert len(asked) == 5
    now[0] += 6
    await one.score(ITEMS)
    assert len(asked) == 6  # one attempt found it still failing
    alive = True
    now[0] += 6
    assert (await one.score(ITEMS)).results[0].reason == "unreachable"  # it is left alone for longer now
    now[0] += 6
    assert (await one.score(ITEMS)).results[0].score == 5
