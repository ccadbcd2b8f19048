"""The scorer over any judge: cache, joining, limits, deadlines, and what a judge may do wrong."""

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from fake_judge import FakeJudge

from fgce.cache import CacheError, ScoreCache
from fgce.rubric import DEFAULT_RUBRIC, load_rubric
from fgce.schema import ExplanationScore, ScoreItem, ScoreMode, ScoreRequest
from fgce.scorer import Scorer

RUBRIC = load_rubric()


async def score(
    scorer: Scorer, text: str, emotion: str = "sad", mode: ScoreMode = "fine_grained", gen_explanation: bool = False
) -> ExplanationScore:
    item = ScoreItem(id="a", explanation=text, predicted_emotion=emotion)
    request = ScoreRequest(items=[item], score_mode=mode, gen_explanation=gen_explanation)
    return (await scorer.score(request)).results[0]


async def test_a_score_off_the_scale_is_missing_never_clamped():
    for value in (0, 6, 9):
        result = await score(Scorer(FakeJudge(lambda s, value=value: value), RUBRIC), "One.")
        assert (result.status, result.reason, result.score) == ("missing", "out_of_range", None)
    binary = await score(Scorer(FakeJudge(lambda s: 2), RUBRIC), "One.", mode="binary")
    assert binary.reason == "out_of_range"


async def test_a_missing_sentence_leaves_the_others_scored():
    result = await score(Scorer(FakeJudge(), RUBRIC), "One. This will fail. Three.")
    assert [sentence.status for sentence in result.sentences] == ["ok", "missing", "ok"]
    assert (result.score, result.expected, result.flags) == (4, 3.75, ["partial", "judge_error"])


async def test_a_slow_judge_is_missing_in_time_and_its_work_is_given_up():
    judge = FakeJudge(delay=30)
    start = time.monotonic()
    result = await score(Scorer(judge, RUBRIC, timeout=0.2), "One. Two.")
    assert time.monotonic() - start < 2
    assert (result.status, result.reason) == ("missing", "timeout")
    assert judge.cancelled == 2


async def test_the_timeout_bounds_a_request_of_any_size():
    scorer = Scorer(FakeJudge(delay=30), RUBRIC, timeout=0.2)
    items = [ScoreItem(id=str(i), explanation=f"Take {i}.", predicted_emotion="sad") for i in range(1000)]
    start = time.monotonic()
    response = await scorer.score(ScoreRequest(items=items))
    assert time.monotonic() - start < 3
    assert {result.reason for result in response.results} == {"timeout"}


async def test_what_is_too_large_is_missing_unjudged():
    judge = FakeJudge()
    scorer = Scorer(judge, RUBRIC, max_sentences=3, max_sentence_chars=20)
    assert (await score(scorer, "One. Two. Three. Four.")).reason == "too_large"
    result = await score(scorer, "One. A sentence of too many characters.")
    assert [sentence.reason for sentence in result.sentences] == [None, "too_large"]
    assert judge.asked == ["One."]


async def test_the_cache_answers_for_the_same_question_only(tmp_path: Path):
    judge = FakeJudge()
    scorer = Scorer(judge, RUBRIC, cache=ScoreCache(tmp_path / "deep/scores.db"))
    first = await score(scorer, "One. Two.")
    again = await score(scorer, "One. Two.", emotion=" SAD ")
    assert again.model_dump() == first.model_dump()
    assert len(judge.asked) == 2
    await score(scorer, "One. Two.", emotion="happy")
    await score(scorer, "One. Three.")
    await score(scorer, "One. Two.", gen_explanation=True)
    await score(scorer, "One. Two.", mode="binary")
    assert len(judge.asked) == 10


async def test_the_cache_outlives_the_process_and_knows_judge_and_rubric(tmp_path: Path):
    path = tmp_path / "scores.db"
    other_rubric = tmp_path / "rubric.yaml"
    other_rubric.write_text(DEFAULT_RUBRIC.read_text().replace("weak or indirect", "weak"))
    for judge, rubric, asked in (
        (FakeJudge(), RUBRIC, 1),
        (FakeJudge(lambda s: 1), RUBRIC, 0),
        (FakeJudge(name="other"), RUBRIC, 1),
        (FakeJudge(), load_rubric(other_rubric), 1),
    ):
        scorer = Scorer(judge, rubric, cache=ScoreCache(path))
        assert (await score(scorer, "One.")).score == 4
        assert len(judge.asked) == asked
        await scorer.aclose()


async def test_failures_are_not_kept(tmp_path: Path):
    judge = FakeJudge()
    scorer = Scorer(judge, RUBRIC, cache=ScoreCache(tmp_path / "scores.db"))
    judge.dead = True
    assert (await score(scorer, "One.")).status == "missing"
    judge.dead = False
    assert (await score(scorer, "One.")).status == "ok"


async def test_equal_requests_in_flight_are_judged_once():
    judge = FakeJudge(delay=0.05)
    scorer = Scorer(judge, RUBRIC)
    results = await asyncio.gather(*(score(scorer, "One. Two.") for _ in range(8)))
    assert len(judge.asked) == 2
    assert all(result.model_dump() == results[0].model_dump() for result in results)


async def test_a_client_that_goes_does_not_take_those_who_joined_it_along():
    judge = FakeJudge(delay=0.1)
    scorer = Scorer(judge, RUBRIC)
    first = asyncio.create_task(score(scorer, "One."))
    second = asyncio.create_task(score(scorer, "One."))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).score == 4
    assert (len(judge.asked), judge.cancelled) == (1, 0)
    last = asyncio.create_task(score(scorer, "Two."))
    await asyncio.sleep(0.02)
    last.cancel()
    await asyncio.sleep(0.02)
    assert judge.cancelled == 1


def test_an_unusable_cache_file_is_named(tmp_path: Path):
    path = tmp_path / "scores.db"
    path.write_text("this is no database, but a text of some length " * 50)
    with pytest.raises(CacheError, match=str(path)):
        ScoreCache(path)


async def test_a_cache_that_fails_later_on_costs_a_question_and_no_score(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "scores.db"
    judge = FakeJudge()
    scorer = Scorer(judge, RUBRIC, cache=ScoreCache(path))
    await score(scorer, "One.")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE scores SET score = '{\"status\": 1}'")
    assert (await score(scorer, "One.")).score == 4
    assert len(judge.asked) == 2
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE scores")
    assert (await score(scorer, "One.")).score == 4
    assert f"{path}: a score cannot be kept" in caplog.text
