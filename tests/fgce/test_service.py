"""The application over a judge that the test controls: queue, token, limits, audit, readiness, drain."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fake_judge import FakeJudge

from fgce.audit import AuditLog
from fgce.cache import ScoreCache
from fgce.config import ConfigError, FgceConfig, Limits
from fgce.rubric import load_rubric
from fgce.scorer import Scorer
from fgce.server import create_app
from fgce.service import ScoringService

ITEM = {"id": "a", "explanation": "One. Two.", "predicted_emotion": "sad"}


@asynccontextmanager
async def app(
    judge: FakeJudge, audit: Path | None = None, cache: Path | None = None, probe_holds: float = 0.0, **settings
) -> AsyncIterator[httpx.AsyncClient]:
    config = FgceConfig(**settings)
    kept = ScoreCache(cache) if cache else None
    scorer = Scorer(judge, load_rubric(), cache=kept, max_sentences=config.limits.sentences)
    log = AuditLog(audit) if audit else None
    service = ScoringService(scorer, queue=config.limits.queue, audit=log, probe_holds=probe_holds)
    server = create_app(config, service)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(server), base_url="http://fgce") as http:
        if "canary_every" not in settings:
            yield http
            return
        async with server.router.lifespan_context(server):
            yield http


def items(count: int, name: Callable[[int], str] = str) -> dict:
    return {"items": [ITEM | {"id": name(i), "explanation": f"Number {i}."} for i in range(count)]}


async def test_a_full_queue_answers_429_with_retry_after_and_recovers():
    async with app(FakeJudge(delay=0.2), limits=Limits(queue=4)) as http:
        first = asyncio.create_task(http.post("/v1/score", json=items(3)))
        await asyncio.sleep(0.05)
        assert "fgce_queue_depth 3.0" in (await http.get("/metrics")).text
        second = await http.post("/v1/score", json=items(2))
        assert second.status_code == 429
        assert int(second.headers["Retry-After"]) >= 1
        assert (await first).status_code == 200
        assert (await http.post("/v1/score", json=items(2))).status_code == 200


async def test_a_request_larger_than_the_queue_is_let_in_when_it_is_alone():
    async with app(FakeJudge(), limits=Limits(queue=2)) as http:
        assert (await http.post("/v1/score", json=items(5))).status_code == 200


async def test_limits_on_bodies_items_and_sentences():
    async with app(FakeJudge(), limits=Limits(body_bytes=2000, items=4, sentences=5)) as http:
        assert (await http.post("/v1/score", json=items(5))).status_code == 413
        assert (await http.post("/v1/score", json=items(100))).status_code == 413
        long = ITEM | {"explanation": "One. " * 6}
        answer = (await http.post("/v1/score", json={"items": [long, ITEM]})).json()
        assert [result["reason"] for result in answer["results"]] == ["too_large", None]
        batch = {"explanation_sentence_batch": ["One."] * 6, "predicted_emotion": "sad"}
        assert (await http.post("/function_eval", json=batch)).status_code == 413

        async def endless():
            for _ in range(100):
                yield b" " * 100

        assert (await http.post("/v1/score", content=endless())).status_code == 413


async def test_a_token_is_asked_for_except_by_probes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FGCE_TOKEN", "s3cret")
    async with app(FakeJudge(), host="0.0.0.0") as http:
        for path in ("/healthz", "/readyz"):
            assert (await http.get(path)).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            for request in (
                http.get("/metrics", headers=headers),
                http.post("/v1/score", json=items(1), headers=headers),
            ):
                assert (await request).status_code == 401
        headers = {"Authorization": "Bearer s3cret"}
        assert (await http.post("/v1/score", json=items(1), headers=headers)).status_code == 200


async def test_an_open_address_without_a_token_is_refused_unless_allowed_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FGCE_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "node7"):
        with pytest.raises(ConfigError, match=r"set a token in \$FGCE_TOKEN"):
            FgceConfig(host=host).token  # noqa: B018 - reading it checks it
        assert FgceConfig(host=host, allow_without_token=True).token is None
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert FgceConfig(host=host).token is None


async def test_the_audit_log_holds_what_a_score_came_from(tmp_path: Path):
    log = tmp_path / "logs/audit.jsonl"
    async with app(FakeJudge(), audit=log) as http:
        await http.post("/v1/score", json={"items": [ITEM, ITEM | {"id": "b", "explanation": "This will fail."}]})
    first, second = [json.loads(line) for line in log.read_text().splitlines()]
    assert first["item"] == ITEM | {"sentences": None}
    assert first["request"] == second["request"]
    assert first["rubric"]["sha256"] == load_rubric().info.sha256
    assert first["judge"]["backend"] == "fake"
    assert [sentence["score"] for sentence in first["result"]["sentences"]] == [4, 4]
    assert len(first["traces"]) == 2
    assert (second["result"]["status"], second["result"]["reason"]) == ("missing", "judge_error")


async def test_readiness_goes_red_with_the_judge_and_health_does_not():
    judge = FakeJudge()
    async with app(judge) as http:
        assert (await http.get("/readyz")).status_code == 200
        judge.dead = True
        red = await http.get("/readyz")
        assert red.status_code == 503
        assert "engine died" in red.json()["reasons"]["coherent"]
        assert (await http.get("/healthz")).status_code == 200


async def test_a_judge_that_changes_its_mind_is_reported():
    judge = FakeJudge()
    async with app(judge) as http:
        assert (await http.get("/readyz")).json()["drifted"] == []
        judge.score = lambda sentence: 2
        report = (await http.get("/readyz")).json()
        assert report["ready"]
        assert report["drifted"] == ["coherent", "contradictory", "irrelevant"]
        assert 'fgce_canary_score{canary="coherent"} 2.0' in (await http.get("/metrics")).text


async def test_a_judge_that_is_not_ready_answers_503_with_retry_after_until_it_is():
    judge = FakeJudge()
    async with app(judge) as http:
        judge.dead = True
        await http.get("/readyz")
        refused = await http.post("/v1/score", json=items(1))
        assert (refused.status_code, int(refused.headers["Retry-After"]) > 0) == (503, True)
        assert "the judge is not ready" in refused.json()["detail"]
        batch = {"explanation_sentence_batch": ["One."], "predicted_emotion": "sad"}
        assert (await http.post("/function_eval", json=batch)).status_code == 503
        assert "fgce_ready 0.0" in (await http.get("/metrics")).text
        judge.dead = False
        await http.get("/readyz")
        assert (await http.post("/v1/score", json=items(1))).status_code == 200


async def test_a_judge_that_is_not_ready_is_not_needed_for_what_the_cache_holds(tmp_path: Path):
    judge = FakeJudge()
    async with app(judge, cache=tmp_path / "scores.db") as http:
        first = await http.post("/v1/score", json=items(2))
        judge.dead = True
        await http.get("/readyz")
        again = await http.post("/v1/score", json=items(2))
        assert (again.status_code, again.json()) == (200, first.json())
        assert (await http.post("/v1/score", json=items(3))).status_code == 503


async def test_a_judge_that_breaks_its_contract_turns_readiness_red_and_the_checks_go_on():
    judge = FakeJudge()
    async with app(judge, canary_every=0.05) as http:
        judge.broken = True
        await asyncio.sleep(0.2)
        assert "fgce_ready 0.0" in (await http.get("/metrics")).text
        assert "KeyError('a mistake in the judge')" in (await http.get("/readyz")).json()["reasons"]["coherent"]
        judge.broken = False
        await asyncio.sleep(0.2)
        assert "fgce_ready 1.0" in (await http.get("/metrics")).text


async def test_a_canary_that_lost_a_sentence_has_not_drifted():
    judge = FakeJudge()
    async with app(judge) as http:
        judge.unlucky = "wall behind her"
        judge.score = lambda sentence: 5 if "angry" in sentence else 1
        first = (await http.get("/readyz")).json()
        assert (first["ready"], first["drifted"]) == (True, [])
        judge.unlucky = "fail"
        assert (await http.get("/readyz")).json()["drifted"] == []


async def test_canaries_are_scored_by_the_clock_and_drift_is_in_metrics_and_log(caplog: pytest.LogCaptureFixture):
    judge = FakeJudge()
    async with app(judge, canary_every=0.05) as http:
        await asyncio.sleep(0.2)
        assert len(judge.asked) >= 2 * (4 + 4 + 3)
        metrics = (await http.get("/metrics")).text
        assert "fgce_ready 1.0" in metrics
        assert 'fgce_canary_drifted{canary="coherent"} 0.0' in metrics
        judge.score = lambda sentence: 2
        await asyncio.sleep(0.2)
        assert 'fgce_canary_drifted{canary="coherent"} 1.0' in (await http.get("/metrics")).text
        assert "the judge has drifted" in caplog.text
        judge.dead = True
        await asyncio.sleep(0.2)
        assert (await http.post("/v1/score", json=items(1))).status_code == 503
        judge.dead = False
        await asyncio.sleep(0.2)
        assert (await http.post("/v1/score", json=items(1))).status_code == 200
    asked = len(judge.asked)
    await asyncio.sleep(0.1)
    assert len(judge.asked) == asked


async def test_probes_that_come_close_together_share_one_answer():
    judge = FakeJudge()
    async with app(judge, probe_holds=60) as http:
        for _ in range(3):
            assert (await http.get("/readyz")).status_code == 200
    assert len(judge.asked) == 4 + 4 + 3  # the sentences of the canaries, once
