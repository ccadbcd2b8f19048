"""Coherence of a stage: what is asked, what is kept, and what silence costs."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluation_factory import DictatedJudge, dictated_judge

from fgce.client import FgceClient
from fgce.schema import ExplanationScore, MissingReason
from humanomni.evaluation.anatomy import coherence_summary, redundancy
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.judged import JudgeChangedError
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.significance import compare
from humanomni.evaluation.stage import Stage

CLEAR = "The mouth smiles. [e v 4] She is happy. [c v 5]"
VAGUE = "The mouth smiles. [e v 2] There is a wall. [o x 0]"


@pytest.fixture
def judge() -> Iterator[DictatedJudge]:
    with dictated_judge() as judge:
        yield judge


def prediction(identity: str, explanation: str, predicted: str | None = "happiness") -> Prediction:
    return Prediction(identity, f"{identity}.mp4", "happiness", predicted, predicted or "?", explanation, None)


def scorer(judge: DictatedJudge, folder: Path) -> CoherenceScorer:
    return CoherenceScorer(FgceClient(judge.url, attempts=1), folder / "scores.jsonl")


def test_scores_are_in_order_and_averaged_with_their_parts(judge: DictatedJudge, tmp_path: Path) -> None:
    predictions = [prediction("a", CLEAR), prediction("b", VAGUE)]
    scores = scorer(judge, tmp_path).score(predictions, "sft")
    summary = coherence_summary(predictions, scores, seed=0)
    assert [score.id for score in scores] == ["a", "b"]
    assert [score.score for score in scores] == pytest.approx([(4 + 2 * 5) / 3, 2.0])
    assert summary["s_coh"] == pytest.approx(((4 + 2 * 5) / 3 + 2.0) / 2)
    assert summary["s_coh_normalised"] == pytest.approx((summary["s_coh"] - 1) / 4)
    assert summary["s_coh_unweighted"] == pytest.approx((4.5 + 2.0) / 2)
    assert summary["by_function"]["information extraction"] == {"count": 2, "score": 3.0}
    assert summary["by_function"]["others"] == {"count": 1, "score": None}
    assert summary["function_modality"]["conclusion"]["visual"] == {"count": 1, "score": 5.0}
    assert summary["sentences"] == 2


def test_silence_counts_as_the_floor_and_costs_no_judge(judge: DictatedJudge, tmp_path: Path) -> None:
    silent = [
        prediction("no text", ""),
        prediction("no emotion", CLEAR, predicted=None),
        prediction("no evidence", "There is a wall. [o x 0]"),
    ]
    scores = scorer(judge, tmp_path).score(silent, "sft")
    summary = coherence_summary(silent, scores, seed=0)
    assert judge.asked == 1
    assert (summary["s_coh"], summary["s_coh_normalised"], summary["n_missing"]) == (1.0, 0.0, 0)
    assert summary["flags"] == {"no_answer": 1, "no_evidence": 3, "no_explanation": 1}


def test_a_second_evaluation_asks_nothing_twice(judge: DictatedJudge, tmp_path: Path) -> None:
    predictions = [prediction("a", CLEAR), prediction("b", VAGUE), prediction("same as a", CLEAR)]
    first = scorer(judge, tmp_path).score(predictions, "sft")
    assert judge.asked == 2
    assert scorer(judge, tmp_path).score(predictions, "sft") == first
    assert judge.asked == 2
    scorer(judge, tmp_path).score([*predictions, prediction("c", "She frowns. [e v 1]")], "sft")
    assert judge.asked == 3
    torn = (tmp_path / "scores.jsonl").read_bytes()[:-20]
    (tmp_path / "scores.jsonl").write_bytes(torn)
    assert scorer(judge, tmp_path).score(predictions, "sft") == first


def test_another_judge_scores_anew(judge: DictatedJudge, tmp_path: Path) -> None:
    scorer(judge, tmp_path).score([prediction("a", CLEAR)], "sft")
    judge.revision = "2"
    other = scorer(judge, tmp_path)
    other.score([prediction("a", CLEAR)], "sft")
    assert judge.asked == 2
    assert other.identity is not None
    assert other.identity["judge"]["revision"] == "2"


@pytest.mark.parametrize("changed", [{"decoding": "fast"}, {"splitter": "punkt"}])
def test_a_judge_asked_in_another_way_scores_anew(
    judge: DictatedJudge, tmp_path: Path, changed: dict[str, str]
) -> None:
    scorer(judge, tmp_path).score([prediction("a", CLEAR)], "sft")
    running = scorer(judge, tmp_path)
    judge.method = judge.method.model_copy(update=changed)
    scorer(judge, tmp_path).score([prediction("a", CLEAR)], "sft")
    assert judge.asked == 2
    with pytest.raises(JudgeChangedError, match="changed during the evaluation"):
        running.score([prediction("b", VAGUE)], "sft")


def test_a_judge_that_changes_midway_is_refused(judge: DictatedJudge, tmp_path: Path) -> None:
    running = scorer(judge, tmp_path)
    judge.revision = "2"
    with pytest.raises(JudgeChangedError, match="changed during the evaluation"):
        running.score([prediction("a", CLEAR)], "sft")


def test_a_dead_server_gives_missing_scores_and_kept_ones_stay(judge: DictatedJudge, tmp_path: Path) -> None:
    scorer(judge, tmp_path).score([prediction("a", CLEAR)], "sft")
    dead = CoherenceScorer(FgceClient("http://127.0.0.1:9", attempts=1), tmp_path / "scores.jsonl")
    known, unknown = dead.score([prediction("a", CLEAR), prediction("b", VAGUE)], "sft")
    assert known.status == "ok"
    assert unknown.status == "missing"
    assert unknown.reason is MissingReason.UNREACHABLE
    assert dead.failure is not None
    assert "127.0.0.1:9" in dead.failure


def test_missing_explanations_are_in_no_mean_and_are_asked_again(judge: DictatedJudge, tmp_path: Path) -> None:
    predictions = [prediction("a", CLEAR), prediction("b", "She smiles. [fails]")]
    scores = scorer(judge, tmp_path).score(predictions, "sft")
    summary = coherence_summary(predictions, scores, seed=0)
    assert summary["s_coh"] == pytest.approx(14 / 3)
    assert (summary["n_scored"], summary["n_missing"]) == (1, 1)
    assert summary["missing_reasons"] == {"timeout": 1}
    scorer(judge, tmp_path).score(predictions, "sft")
    assert judge.asked == 3


def test_a_score_that_lacks_a_sentence_because_of_the_judge_is_asked_again(
    judge: DictatedJudge, tmp_path: Path
) -> None:
    half = [prediction("a", f"{CLEAR} Her eyes shine. [fails]")]
    (first,) = scorer(judge, tmp_path).score(half, "sft")
    assert (first.status, first.flags) == ("ok", ["partial", "timeout"])
    assert (tmp_path / "scores.jsonl").read_text() == ""
    # also where an older version has kept it
    again = scorer(judge, tmp_path)
    line = {"key": first.id, "scorer": again.identity, "score": first.model_dump(mode="json")}
    (tmp_path / "scores.jsonl").write_text(json.dumps(line) + "\n")
    scorer(judge, tmp_path).score(half, "sft")
    assert judge.asked == 2


def test_a_score_that_lacks_a_sentence_because_of_the_text_is_kept(judge: DictatedJudge, tmp_path: Path) -> None:
    long = [prediction("a", f"{CLEAR} A sentence without end. [too long]")]
    first = scorer(judge, tmp_path).score(long, "sft")
    assert first[0].flags == ["partial", "too_large"]
    assert scorer(judge, tmp_path).score(long, "sft") == first
    assert judge.asked == 1


def test_a_garbled_server_is_missing_too(judge: DictatedJudge, tmp_path: Path) -> None:
    judge.broken = True
    scores = scorer(judge, tmp_path).score([prediction("a", CLEAR)], "sft")
    summary = coherence_summary([prediction("a", CLEAR)], scores, seed=0)
    assert summary["s_coh"] is None
    assert summary["s_coh_interval"] is None
    assert summary["missing_reasons"] == {"bad_response": 1}


def test_without_a_judge_no_figure_of_coherence_is_given(tmp_path: Path) -> None:
    clips = [prediction("a", CLEAR), prediction("b", CLEAR, "anger"), prediction("c", ""), prediction("d", CLEAR, None)]
    dead = CoherenceScorer(FgceClient("http://127.0.0.1:9", attempts=1), tmp_path / "scores.jsonl")
    stage = Stage("sft", clips, dead.score(clips, "sft"))
    summary = coherence_summary(clips, stage.scores, seed=0)
    assert (summary["n_scored"], summary["n_missing"]) == (2, 2)
    for name in ("s_coh", "s_coh_normalised", "s_coh_interval", "s_coh_unweighted", "s_coh_correct", "s_coh_wrong"):
        assert summary[name] is None, name
    assert summary["s_coh_by_class"] == {"happiness": None}
    step = compare(stage, dataclasses.replace(stage, name="grpo"), ["anger", "happiness"], seed=0)
    assert step["s_coh"] == {"n": 0, "difference": None, "interval": None}


def test_redundancy_counts_near_repetitions() -> None:
    repeated = ["She smiles at the camera.", "Her voice is high.", "she smiles at the camera"]
    assert redundancy([repeated, ["Her voice is high."]]) == 0.25
    assert redundancy([]) is None


def test_right_and_wrong_predictions_are_told_apart() -> None:
    predictions = [prediction("a", CLEAR), prediction("b", CLEAR, "anger")]
    scores = [
        ExplanationScore(id="a", status="ok", score=4.0, normalised=0.75),
        ExplanationScore(id="b", status="ok", score=2.0, normalised=0.25),
    ]
    summary = coherence_summary(predictions, scores, seed=0)
    assert (summary["s_coh_correct"], summary["s_coh_wrong"]) == (4.0, 2.0)
    assert summary["s_coh_by_class"] == {"happiness": 3.0}
