"""A real server process over real HTTP."""

import socket

import httpx
import pytest
from server_process import StartServer

from fgce.client import FgceClient
from fgce.rubric import load_rubric
from fgce.schema import ScoreItem

EXPLANATION = "Her brows are lowered. Her loud voice suggests anger. Overall, she is angry."


@pytest.fixture
def http(server_url: str):
    with httpx.Client(base_url=server_url, timeout=10) as client:
        yield client


def test_health_readiness_and_rubric(http: httpx.Client):
    assert http.get("/healthz").json() == {"status": "ok"}
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()["ready"], ready.json()["drifted"]) == (200, True, [])
    rubric = http.get("/v1/rubric").json()
    assert rubric["sha256"] == load_rubric().info.sha256
    assert rubric["rubric"]["functions"]["conclusion"]["weight"] == 2


def test_score_answers_each_item_in_order(http: httpx.Client):
    body = {
        "items": [
            {"id": "text", "explanation": EXPLANATION, "predicted_emotion": "angry"},
            {"id": "sentences", "sentences": ["She smiles."], "predicted_emotion": "happy"},
            {"id": "empty", "explanation": "", "predicted_emotion": "happy"},
        ],
        "gen_explanation": True,
    }
    answer = http.post("/v1/score", json=body).json()
    assert [result["id"] for result in answer["results"]] == ["text", "sentences", "empty"]
    assert answer["rubric"]["sha256"] == load_rubric().info.sha256
    assert answer["judge"]["backend"] == "lexicon"
    text, sentences, empty = answer["results"]
    assert [s["function"] for s in text["sentences"]] == [
        "information extraction",
        "information analysis",
        "conclusion",
    ]
    assert text["normalised"] == pytest.approx((text["score"] - 1) / 4)
    assert all(s["explanation"] for s in text["sentences"])
    assert sentences["score"] == 5
    assert (empty["score"], empty["normalised"], empty["flags"]) == (None, 0, ["no_evidence"])


def test_malformed_requests_are_refused_with_the_field(http: httpx.Client):
    item = {"id": "a", "explanation": "x", "sentences": ["x"], "predicted_emotion": "sad"}
    answer = http.post("/v1/score", json={"items": [item]})
    assert answer.status_code == 422
    assert "exactly one of" in answer.text
    assert http.post("/v1/score", json={"items": [], "mode": 1}).status_code == 422


def test_the_published_clients_request_works_unchanged(http: httpx.Client):
    body = {
        "explanation_sentence_batch": ["Her voice is loud.", "She is angry.", "Hello."],
        "predicted_emotion": "angry",
        "score_mode": "fine_grained",
        "gen_explanation": False,
        "temperature": 0.0,
        "max_tokens": 128,
        "top_p": 1.0,
    }
    answer = http.post("/function_eval", json=body)
    assert answer.status_code == 200
    first, second, third = answer.json()
    assert first == {
        "function": "information extraction",
        "modality": "audio",
        "confidence": first["confidence"],
        "score": 4,
        "explanation": None,
    }
    assert second["function"] == "conclusion"
    assert third == {
        "function": "others",
        "score": 0,
        "explanation": "Not information extraction, analysis or conclusion.",
    }
    assert http.post("/function_eval", json={}).json() == []
    assert (
        http.post("/function_eval", json=body | {"score_mode": "other"}).json()
        == [{"error": "second-stage build_input error: 'other'"}] * 3
    )
    refused = http.post("/function_eval", json=body | {"score_mode": None})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["type"] == "string_type"


def test_a_sentence_the_judge_cannot_read_is_an_error_item(http: httpx.Client):
    body = {
        "explanation_sentence_batch": ["她很难过。"],
        "predicted_emotion": "sad",
        "score_mode": "fine_grained",
    }
    (item,) = http.post("/function_eval", json=body).json()
    assert item["error"].startswith("first-stage batch generation error: the lexicon judge knows English")


def test_metrics_count_what_happened(http: httpx.Client):
    items = [{"id": "a", "explanation": "她很难过。", "predicted_emotion": "sad"}]
    http.post("/v1/score", json={"items": items})
    metrics = http.get("/metrics").text
    assert 'fgce_missing_total{level="item",reason="unsupported_language"}' in metrics
    assert 'fgce_requests_total{path="/v1/score",status="200"}' in metrics


async def test_client_scores_over_http(server_url: str):
    items = [ScoreItem(id=str(i), explanation=EXPLANATION, predicted_emotion="anger") for i in range(8)]
    response = await FgceClient(server_url).score(items)
    assert [result.id for result in response.results] == [str(i) for i in range(8)]
    assert all(result.status == "ok" and result.normalised > 0.7 for result in response.results)
    assert response.rubric == load_rubric().info


def test_an_ipv6_address_is_logged_as_a_url(start_server: StartServer):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 on this machine")
    url = start_server("--host", "::1")
    assert url.startswith("http://[::1]:")
    item = ScoreItem(id="a", explanation="She is angry.", predicted_emotion="anger")
    assert FgceClient(url).score_sync([item]).results[0].score == 5
