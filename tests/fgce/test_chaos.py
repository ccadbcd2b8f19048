"""Everything goes wrong at once, between a real server process, a judge on a real socket and the client.

200 explanations: every result is right, or missing with a reason; none is lost; all within a bounded time.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_openai import FakeOpenAI, fake_openai
from server_process import server_process

from fgce.client import FgceClient
from fgce.judges.lexicon import LexiconJudge
from fgce.rubric import load_rubric
from fgce.schema import ExplanationScore, ScoreItem, ScoreRequest
from fgce.scorer import Scorer

EMOTIONS = ("anger", "sadness", "happiness", "fear")
ITEMS = [
    ScoreItem(
        id=str(i),
        explanation=f"Her brows are lowered, take {i}. Her loud voice suggests anger. Overall, she is angry.",
        predicted_emotion=EMOTIONS[i % 4],
    )
    for i in range(200)
]
FAILURES = ["500", "truncated", "empty", "not json", "reset", "cut short", "hang", "wrong enum", "wrong type", "late"]


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with fake_openai() as server:
        yield server


@pytest.fixture(scope="module")
def truth() -> dict[str, ExplanationScore]:
    scorer = Scorer(LexiconJudge(), load_rubric())
    return {result.id: result for result in asyncio.run(scorer.score(ScoreRequest(items=ITEMS))).results}


def judge_settings(fake: FakeOpenAI, *more: str) -> list[str]:
    judge = f"{{backend: openai, model: m, base_urls: ['{fake.url}'], constraints: none, timeout: 1.0}}"
    return [part for setting in (f"judge={judge}", *more) for part in ("--set", setting)]


def check(results: list[ExplanationScore], items: list[ScoreItem], truth: dict[str, ExplanationScore]) -> int:
    """Every result is right or missing with a reason. Returns how many are whole."""
    assert [result.id for result in results] == [item.id for item in items]
    whole = 0
    for result in results:
        if result.status == "missing":
            assert result.reason is not None
            assert result.score is result.normalised is None
            continue
        for sentence, right in zip(result.sentences, truth[result.id].sentences, strict=True):
            if sentence.status == "ok":
                assert (sentence.function, sentence.modality, sentence.score) == (
                    right.function,
                    right.modality,
                    right.score,
                )
            else:
                assert sentence.reason is not None
                assert "partial" in result.flags
        whole += not result.flags
    return whole


async def after_canaries(url: str, fake: FakeOpenAI) -> None:
    """Waits for those that a server scores when it starts, and forgets their requests."""
    async with httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/readyz")).status_code == 200
    fake.bodies.clear()


async def test_a_judge_that_fails_in_every_way(fake: FakeOpenAI, truth: dict[str, ExplanationScore]):
    dice = random.Random(0)

    def misbehave(body: dict[str, Any]) -> str | None:
        how = dice.choice(FAILURES) if dice.random() < 0.2 else None
        fake.script = {
            "wrong enum": lambda body: '{"function": "verdict", "modality": "smell", "score": 11}',
            "wrong type": lambda body: '{"function": 3, "modality": [], "score": "high"}',
        }.get(how or "", lambda body: None)
        fake.delay = 0.3 if how == "late" else 0.0
        return how if how in FAILURES[:7] else None

    fake.misbehaviour = misbehave
    with server_process(*judge_settings(fake, "timeout=10.0")) as (url, _):
        start = time.monotonic()
        batches = [ITEMS[i : i + 25] for i in range(0, 200, 25)]
        answers = await asyncio.gather(*(FgceClient(url, deadline=30).score(batch) for batch in batches))
        assert time.monotonic() - start < 30
    whole = sum(check(a.results, batch, truth) for a, batch in zip(answers, batches, strict=True))
    assert whole > 50


async def test_a_judge_that_restarts(fake: FakeOpenAI, truth: dict[str, ExplanationScore]):
    gone = True
    fake.misbehaviour = lambda body: "reset" if gone else None
    with server_process(*judge_settings(fake, "timeout=20.0")) as (url, _):
        scoring = asyncio.create_task(FgceClient(url).score(ITEMS[:20]))
        await asyncio.sleep(1.0)
        gone = False
        results = (await scoring).results
        check(results, ITEMS[:20], truth)
        again = (await FgceClient(url).score(ITEMS[:20])).results
        assert check(again, ITEMS[:20], truth) == 20


async def test_the_server_is_killed_and_comes_back(tmp_path: Path, truth: dict[str, ExplanationScore]):
    settings = ("--set", f"cache={tmp_path / 'scores.db'}")
    with server_process(*settings) as (url, process):
        client = FgceClient(url, deadline=20)
        assert check((await client.score(ITEMS[:50])).results, ITEMS[:50], truth) == 50
        process.kill()
        process.wait()
        dead = (await client.score(ITEMS[50:100])).results
        assert {result.reason for result in dead} == {"unreachable"}
    port = url.rsplit(":", 1)[1]
    with server_process(*settings, "--port", port) as (url, _):
        client = FgceClient(url, deadline=20)
        assert check((await client.score(ITEMS)).results, ITEMS, truth) == 200
        metrics = httpx.get(f"{url}/metrics").text
        assert "fgce_cache_hits_total 150.0" in metrics  # what was scored before the kill


async def test_sigterm_lets_the_server_finish_what_it_has(fake: FakeOpenAI, truth: dict[str, ExplanationScore]):
    with server_process(*judge_settings(fake)) as (url, process):
        await after_canaries(url, fake)
        fake.delay = 0.5
        scoring = asyncio.create_task(FgceClient(url).score(ITEMS[:8]))
        while not fake.bodies:
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        late = (await FgceClient(url, attempts=1).score(ITEMS[8:9])).results[0]
        assert (late.reason, "HTTP 503" in str(late.detail)) == ("overloaded", True)
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get("/readyz")).json()["reasons"] == {"server": "about to stop"}
        assert check((await scoring).results, ITEMS[:8], truth) == 8
        assert await asyncio.to_thread(process.wait, 10) == -signal.SIGTERM  # passed on once all is done
        assert (await FgceClient(url, attempts=1).score(ITEMS[:1])).results[0].reason == "unreachable"


async def test_a_client_that_goes_away_stops_costing(fake: FakeOpenAI):
    with server_process(*judge_settings(fake, "judge.concurrency=2")) as (url, _):
        await after_canaries(url, fake)
        fake.delay = 0.3
        await FgceClient(url, deadline=0.5, attempts=1).score(ITEMS[:20])
        await asyncio.sleep(0.5)
        asked = len(fake.bodies)
        assert asked < 15  # of 120
        await asyncio.sleep(1.0)
        assert len(fake.bodies) == asked
        assert "fgce_queue_depth 0.0" in (await asyncio.to_thread(httpx.get, f"{url}/metrics")).text


async def test_tokens_and_judge_times_are_in_the_metrics(fake: FakeOpenAI):
    with server_process(*judge_settings(fake)) as (url, _):
        await FgceClient(url).score(ITEMS[:1])
        metrics = (await asyncio.to_thread(httpx.get, f"{url}/metrics")).text
    assert 'fgce_tokens_total{kind="prefix_cache_hit"} 42.0' in metrics
    assert "fgce_judge_seconds_count 3.0" in metrics
