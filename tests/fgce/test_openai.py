"""The openai judge over a real socket: both protocols, constraints, failover, and endpoints that misbehave."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from fake_openai import FakeOpenAI, fake_openai, is_label_step

from fgce.config import load_config
from fgce.endpoints import AttemptError, Endpoints
from fgce.judges import build_judge
from fgce.judges.lexicon import LexiconJudge
from fgce.judges.openai import OpenAIConfig
from fgce.rubric import load_rubric
from fgce.schema import ExplanationScore, MissingReason, ScoreItem, ScoreMode, ScoreRequest, ScoreResponse
from fgce.scorer import Scorer
from fgce.service import make_scorer

RUBRIC = load_rubric()
TEXT = "Her brows are lowered. Her loud voice suggests anger. Let me think. Overall, she is angry."


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with fake_openai() as server:
        yield server


def scorer_over(*urls: str, timeout: float = 20.0, **settings) -> Scorer:
    config = OpenAIConfig(backend="openai", model="m", base_urls=list(urls), **settings)
    return Scorer(build_judge(config, RUBRIC), RUBRIC, timeout=timeout)


async def score(
    scorer: Scorer, text: str = TEXT, mode: ScoreMode = "fine_grained", gen_explanation: bool = False
) -> ExplanationScore:
    item = ScoreItem(id="a", explanation=text, predicted_emotion="anger")
    request = ScoreRequest(items=[item], score_mode=mode, gen_explanation=gen_explanation)
    return (await scorer.score(request)).results[0]


@pytest.mark.parametrize("mode", ["fine_grained", "binary"])
@pytest.mark.parametrize(("protocol", "constraints"), [("json", "json_schema"), ("json", "vllm"), ("fast", "vllm")])
async def test_both_protocols_score_as_the_model_behind_them(fake: FakeOpenAI, protocol, constraints, mode: ScoreMode):
    scorer = scorer_over(fake.url, protocol=protocol, constraints=constraints)
    result = await score(scorer, mode=mode)
    truth = await score(Scorer(LexiconJudge(), RUBRIC), mode=mode)
    assert [(s.function, s.modality, s.score) for s in result.sentences] == [
        (s.function, s.modality, s.score) for s in truth.sentences
    ]
    assert (result.score, result.normalised) == (truth.score, truth.normalised)
    assert len(fake.bodies) == 4 + 3  # others get no second question
    assert {body["temperature"] for body in fake.bodies} == {0.0}


async def test_the_fast_protocol_gives_expected_scores_and_confidence(fake: FakeOpenAI):
    result = await score(scorer_over(fake.url, protocol="fast", constraints="vllm"))
    first = result.sentences[0]
    assert first.score == 4
    assert first.expected == pytest.approx((4 * 0.9 + 3 * 0.06) / 0.96)
    assert first.confidence == pytest.approx(0.81)
    assert result.expected is not None
    assert result.score is not None
    assert result.expected < result.score
    assert result.expected_normalised == pytest.approx((result.expected - 1) / 4)
    assert fake.bodies[0]["structured_outputs"]["choice"][0] == "E1"
    assert {body["max_tokens"] for body in fake.bodies} == {4, 1}


async def test_a_reason_is_asked_for_only_on_request(fake: FakeOpenAI):
    assert {s.explanation for s in (await score(scorer_over(fake.url))).sentences} == {None}
    for protocol, constraints in (("json", "json_schema"), ("fast", "vllm")):
        scorer = scorer_over(fake.url, protocol=protocol, constraints=constraints)
        explained = await score(scorer, gen_explanation=True)
        assert all(s.explanation for s in explained.sentences if s.score)


async def test_the_sentence_comes_last_and_instructions_are_shared(fake: FakeOpenAI):
    await score(scorer_over(fake.url))
    for body in fake.bodies:
        assert body["messages"][1]["content"].endswith("</sentence>")
    labels = [body["messages"] for body in fake.bodies if is_label_step(body)]
    assert len({messages[0]["content"] for messages in labels}) == 1
    assert len({messages[1]["content"].split("<sentence>")[0] for messages in labels}) == 1
    conclusion = next(b for b in fake.bodies if "of this kind: conclusion" in b["messages"][0]["content"])
    assert "<explanation>" not in conclusion["messages"][1]["content"]


async def test_tokens_and_attempts_are_traced(fake: FakeOpenAI):
    failures = iter(["500", "truncated"])
    fake.misbehaviour = lambda body: next(failures, None)
    (sentence,) = (await score(scorer_over(fake.url), "Her brows are lowered.")).sentences
    assert sentence.status == "ok"
    assert sentence.trace.attempts == 3 + 1
    assert [usage.cached for usage in sentence.trace.usage] == [7, 7]
    assert sentence.trace.raw[1] == '{"score": 4}'


@pytest.mark.parametrize("how", ["500", "400", "truncated", "empty", "not json", "reset", "cut short"])
async def test_an_endpoint_that_misbehaves_gives_missing_sentences(fake: FakeOpenAI, how: str):
    fake.misbehaviour = lambda body: how
    result = await score(scorer_over(fake.url, attempts=2))
    assert (result.status, result.reason, result.score) == ("missing", "judge_error", None)


async def test_a_hanging_endpoint_is_missing_in_time(fake: FakeOpenAI):
    fake.misbehaviour = lambda body: "hang"
    start = time.monotonic()
    result = await score(scorer_over(fake.url, timeout=0.4))
    assert (result.reason, time.monotonic() - start < 3) == ("timeout", True)


@pytest.mark.parametrize(
    ("step", "answer", "reason"),
    [
        ("label", '{"function": "summary", "modality": "audio"}', "unparseable"),
        ("label", '{"function": "conclusion", "modality": "smell"}', "unparseable"),
        ("label", "It is a conclusion.", "unparseable"),
        ("rate", '{"score": 9}', "out_of_range"),
        ("rate", '{"score": null}', "out_of_range"),
        ("rate", '{"score": NaN}', "out_of_range"),
        ("rate", "five", "unparseable"),
        ("rate", "[" * 3000, "unparseable"),
    ],
)
async def test_an_answer_outside_labels_or_scale_is_missing(fake: FakeOpenAI, step: str, answer: str, reason: str):
    fake.script = lambda body: answer if is_label_step(body) == (step == "label") else None
    (sentence,) = (await score(scorer_over(fake.url, constraints="none"), "Her brows are lowered.")).sentences
    assert (sentence.status, sentence.reason, sentence.score) == ("missing", reason, None)
    assert sentence.trace.raw[-1] == answer


async def test_another_endpoint_takes_over_and_load_is_shared(fake: FakeOpenAI):
    async with fake_openai() as other, fake_openai() as dead:
        dead.misbehaviour = lambda body: "reset"
        fake.delay = other.delay = 0.02
        scorer = scorer_over(dead.url, fake.url, other.url)
        results = await asyncio.gather(*(score(scorer, f"{TEXT} Number {i}.") for i in range(6)))
        assert all(result.status == "ok" for result in results)
        assert min(len(fake.bodies), len(other.bodies)) > 10
        assert len(dead.bodies) <= 20


async def test_a_dead_endpoint_is_left_before_a_request_fails_and_comes_back(fake: FakeOpenAI):
    async with fake_openai() as other:
        scorer = scorer_over(fake.url, other.url, health_every=0.05)
        assert (await score(scorer)).status == "ok"
        fake.kill()
        await asyncio.sleep(0.3)
        before = len(fake.bodies), len(other.bodies)
        left = await score(scorer, f"{TEXT} Once more.")
        assert {sentence.trace.attempts for sentence in left.sentences} == {1, 2}  # one a step: none was wasted
        assert len(fake.bodies) == before[0]
        await fake.start()
        checks = other.health_checks
        while other.health_checks < checks + 3:
            await asyncio.sleep(0.02)
        other.kill()
        await asyncio.sleep(0.3)
        back = await score(scorer, f"{TEXT} And again.")
        assert {sentence.trace.attempts for sentence in back.sentences} == {1, 2}
        assert len(fake.bodies) > before[0]
        await scorer.aclose()
        checks = fake.health_checks
        await asyncio.sleep(0.2)
        assert fake.health_checks == checks


def test_a_health_check_reopens_what_was_down_and_not_what_only_fails_requests():
    endpoints = Endpoints(["http://judge"], failures=1)
    (endpoint,) = endpoints.all
    with pytest.raises(AttemptError), endpoints.using(endpoint):
        raise AttemptError(MissingReason.JUDGE_ERROR, "HTTP 500")
    endpoints.note_health(endpoint, alive=True)
    assert endpoints.pick() is None
    endpoints.note_health(endpoint, alive=False)
    endpoints.note_health(endpoint, alive=True)
    assert endpoints.pick() is endpoint


async def test_concurrency_is_bounded(fake: FakeOpenAI):
    fake.delay = 0.05
    start = time.monotonic()
    await score(scorer_over(fake.url, concurrency=1), "Her brows are lowered. Her voice is loud.")
    assert time.monotonic() - start >= 4 * 0.05


async def test_answers_tell_protocols_and_splitters_apart(fake: FakeOpenAI):
    judge = ["judge.backend=openai", "judge.model=m", f"judge.base_urls=[{fake.url}]"]
    identities = []
    for settings in ([], ["judge.protocol=fast", "judge.constraints=vllm"], ["splitter=punkt"]):
        scorer = make_scorer(load_config(overrides=[*judge, *settings]))
        response = await scorer.score(ScoreRequest(items=[]))
        identities.append(ScoreResponse.model_validate_json(response.model_dump_json()).identity)
        await scorer.aclose()
    assert [identity and identity["method"] for identity in identities] == [
        {"decoding": "json", "splitter": "sentencex"},
        {"decoding": "fast", "splitter": "sentencex"},
        {"decoding": "json", "splitter": "punkt"},
    ]


async def test_a_burst_beyond_the_slots_of_all_endpoints_is_shared_too(fake: FakeOpenAI):
    async with fake_openai() as other:
        fake.delay = other.delay = 0.01
        scorer = scorer_over(fake.url, other.url, concurrency=2)
        results = await asyncio.gather(*(score(scorer, f"Her voice is loud, {i}.") for i in range(40)))
        assert all(result.status == "ok" for result in results)
        assert min(len(fake.bodies), len(other.bodies)) > 30  # of 80


async def test_the_key_comes_from_the_environment(fake: FakeOpenAI, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_KEY", "k3y")
    await score(scorer_over(fake.url, api_key_variable="MY_KEY"))
    assert "authorization: Bearer k3y".lower() in fake.headers[0].lower()
