"""Hostile input: what is judged, what is sent, and who sends it."""

import asyncio
import html
import json
import re
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from server_process import StartServer

from fgce.judges.lexicon import LexiconJudge
from fgce.judges.prompts import escape
from fgce.judges.protocols import make_protocol
from fgce.rubric import load_rubric
from fgce.schema import ScoreItem, ScoreRequest
from fgce.scorer import Scorer

RUBRIC = load_rubric()
INJECTIONS = (Path(__file__).parents[1] / "data/fgce/injections.txt").read_text(encoding="utf-8").split("\n")[:-1]
SCORER = Scorer(LexiconJudge(), RUBRIC)

JSON = {"Content-Type": "application/json"}

CUES = "The corners of her mouth are turned down and her gaze is lowered. Her voice is low and quiet."
CARRIERS = (
    f"{CUES} The lowered gaze and the quiet voice suggest sadness. Overall, she is sad.",
    CUES,
    "She smiles. Overall, she is happy.",
    "She wears a hat.",
)


def s_coh(explanation: str) -> float:
    items = [ScoreItem(id="a", explanation=explanation, predicted_emotion="sadness")]
    score = asyncio.run(SCORER.score(ScoreRequest(items=items))).results[0].score
    assert score is not None
    return score


def test_the_corpus_is_fifty_different_strings():
    assert len(set(INJECTIONS)) == len(INJECTIONS) == 50


@pytest.mark.parametrize("injection", INJECTIONS)
def test_an_injection_never_raises_the_lexicon_judges_score(injection: str):
    for carrier in CARRIERS:
        before = s_coh(carrier)
        for spoilt in (f"{carrier} {injection}", f"{injection} {carrier}", f"{carrier[:-1]}; {injection}"):
            assert s_coh(spoilt) <= before + 1e-12, spoilt


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("protocol", ["json", "fast"])
def test_an_injection_stays_between_its_tags(injection: str, protocol):
    asked = make_protocol(protocol, RUBRIC)
    text = f"She is sad. {injection}"
    queries = [
        asked.ask_label(injection, text),
        asked.ask_rating(injection, text, "information analysis", injection, "fine_grained", False),
    ]
    for query in queries:
        system, user = (message["content"] for message in query.messages)
        assert injection not in system
        tags = re.findall(r"</?\w+>", user)
        assert tags in (
            ["<explanation>", "</explanation>", "<sentence>", "</sentence>"],
            [
                "<explanation>",
                "</explanation>",
                "<predicted_emotion>",
                "</predicted_emotion>",
                "<sentence>",
                "</sentence>",
            ],
        )
        assert "<|" not in user
        assert user.endswith(f"{escape(injection)}\n</sentence>")


@given(st.text(max_size=200))
def test_escaping_keeps_every_visible_character_and_no_tag(text: str):
    escaped = escape(text)
    assert "<" not in escaped
    assert ">" not in escaped
    kept = (
        html.unescape(escaped)
        if "&" not in text
        else escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    assert set(kept) <= set(text)
    assert [char for char in text if char.isalnum() or char in "<>&"] == [c for c in kept if c.isalnum() or c in "<>&"]


@pytest.fixture(scope="module")
def http(start_server: StartServer):
    with httpx.Client(base_url=start_server(), timeout=30) as client:
        yield client


def item(explanation: str, emotion: str = "sad") -> dict:
    return {"items": [{"id": "a", "explanation": explanation, "predicted_emotion": emotion}]}


def test_ten_thousand_sentences_are_missing_and_cost_nothing(http: httpx.Client):
    answer = http.post("/v1/score", json=item("She is sad. " * 10_000))
    assert answer.json()["results"][0]["reason"] == "too_large"
    assert answer.elapsed.total_seconds() < 5
    batch = {"explanation_sentence_batch": ["She is sad."] * 10_000, "predicted_emotion": "sad"}
    assert http.post("/function_eval", json=batch).status_code == 413


def test_one_sentence_without_end_is_missing(http: httpx.Client):
    answer = http.post("/v1/score", json=item("sad " * 100_000))
    assert answer.json()["results"][0]["reason"] == "too_large"


def test_an_oversize_body_is_refused_unread(http: httpx.Client):
    assert http.post("/v1/score", content=b" " * (8 * 2**20 + 1)).status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'{"items":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"items": [{"id": "a", "explanation": "\xff\xfe", "predicted_emotion": "sad"}]}',
        b'{"items": [{"id": 1e999, "explanation": "x", "predicted_emotion": "sad"}]}',
        b'{"items": {"0": 1}}',
    ],
)
@pytest.mark.parametrize("path", ["/v1/score", "/function_eval"])
def test_malformed_bodies_are_the_clients_fault(http: httpx.Client, path: str, body: bytes):
    answer = http.post(path, content=body, headers=JSON)
    assert 400 <= answer.status_code < 500 or path == "/function_eval"
    assert answer.status_code < 500


@pytest.mark.parametrize(
    "text", ["\x00", "\x1b[31mred\x07", "a\r\nb\x0b\x0cc", "\u202eevil\u2066", "\ufeff", "e" + "\u0301" * 500]
)
def test_control_characters_are_text(http: httpx.Client, text: str):
    answer = http.post("/v1/score", json=item(f"She is sad. {text} Her voice is low.", text))
    assert answer.status_code == 200
    assert http.post("/v1/score", json=item(f"She is sad. {text}")).json()["results"][0]["status"] == "ok"


def test_half_a_surrogate_pair_is_replaced(http: httpx.Client):
    body = b'{"items": [{"id": "\\ud800", "explanation": "She is sad. \\udfff", "predicted_emotion": "sad"}]}'
    (result,) = http.post("/v1/score", content=body, headers=JSON).json()["results"]
    assert (result["id"], result["status"]) == ("?", "ok")
    batch = b'{"explanation_sentence_batch": ["\\ud800"], "predicted_emotion": "\\ud800", "score_mode": "\\ud800"}'
    assert http.post("/function_eval", content=batch, headers=JSON).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=12,
)
field_names = [
    "items",
    "id",
    "explanation",
    "sentences",
    "predicted_emotion",
    "score_mode",
    "gen_explanation",
    "explanation_sentence_batch",
]
near_requests = st.recursive(
    json_values | st.sampled_from(["fine_grained", "binary", "She is sad.", "sad"]),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(field_names), children, max_size=7)
    ),
    max_leaves=20,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(body=near_requests, path=st.sampled_from(["/v1/score", "/function_eval"]))
def test_no_body_makes_the_server_fail(http: httpx.Client, body, path: str):
    try:
        content = json.dumps(body).encode()
    except UnicodeEncodeError:
        return
    answer = http.post(path, content=content, headers=JSON)
    assert answer.status_code in {200, 413, 422}
