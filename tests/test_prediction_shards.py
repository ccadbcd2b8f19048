"""Shards and their merge, without a model: what is done stays done, once, and belongs to one set of settings."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from humanomni.evaluation.predictions import count_failed, read_predictions
from humanomni.prediction_shards import JobError, PredictionJob, Shard, model_fingerprint, read_failures, read_inputs
from humanomni.records import BadLine, Record

SETTINGS = {"model": "m1", "max_new_tokens": 256}


def record_line(identity: str) -> str:
    turns = [{"from": "human", "value": "Which emotion?"}, {"from": "gpt", "value": "anger"}]
    return json.dumps({"id": identity, "video": f"{identity}.mp4", "conversations": turns})


@pytest.fixture
def inputs(tmp_path: Path) -> dict[int, Record | BadLine]:
    """Six records and, in line 4 (line 3 is blank), one that is none."""
    lines = [record_line("a"), record_line("b"), "", '{"id": "broken', *map(record_line, "cdef")]
    source = tmp_path / "input.jsonl"
    source.write_text("\n".join(lines))
    return read_inputs(source)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "input.jsonl"


def answer(shard: Shard, inputs: dict[int, Record | BadLine], lines: list[int]) -> None:
    for line in lines:
        entry = inputs[line]
        if isinstance(entry, BadLine):
            shard.add_failure(line, entry, "RecordError", str(entry))
        else:
            prediction = {"id": entry.id, "video": entry.video, "gt": entry.target, "pred": "anger", "think_text": None}
            shard.add_prediction(line, prediction | {"raw_response": f"né {line}"})


def do(job: PredictionJob, rank: int, lines: list[int]) -> int:
    with job.open_shard(rank) as shard:
        answer(shard, job.inputs, [line for line in lines if line not in shard.done])
        return job.merge()


def test_inputs_are_numbered_as_an_editor_numbers_them(inputs: dict[int, Record | BadLine]) -> None:
    assert list(inputs) == [1, 2, 4, 5, 6, 7, 8]
    assert isinstance(inputs[4], BadLine)


def test_half_a_surrogate_pair_is_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "input.jsonl").write_text(record_line("a") + "\n" + record_line("b").replace("b.mp4", "\\ud83d.mp4"))
    first, second = read_inputs(tmp_path / "input.jsonl").values()
    assert isinstance(first, Record)
    assert "surrogate" in str(second)


def test_the_last_rank_merges_in_input_order(inputs: dict[int, Record | BadLine], output: Path) -> None:
    job = PredictionJob(output, inputs, SETTINGS)
    assert do(job, 0, list(inputs)[0::2]) == 3
    assert not output.exists()
    assert do(job, 1, list(inputs)[1::2]) == 0
    assert [prediction.id for prediction in read_predictions(output)] == list("abcdef")
    assert "né" in output.read_text(encoding="utf-8")
    assert count_failed(output) == 1
    assert json.loads(job.errors.read_text())["line"] == 4
    assert "6 predictions" in job.summary()
    assert "1 RecordError" in job.summary()
    assert not job.shards.exists()


def test_what_any_rank_has_done_is_not_done_again(inputs: dict[int, Record | BadLine], output: Path) -> None:
    job = PredictionJob(output, inputs, SETTINGS)
    do(job, 0, [1])
    do(job, 2, [5, 6])
    shard_of_rank_2 = job.shards / "rank2.jsonl"
    shard_of_rank_2.write_bytes(shard_of_rank_2.read_bytes()[:-9])  # the kill came while line 6 was written
    with job.open_shard(0) as shard:
        assert shard.done == {1, 5}
        answer(shard, inputs, [2, 4, 6, 7, 8])
        assert job.merge() == 0
    assert len(read_predictions(output)) == 6


def test_a_damaged_line_is_no_outcome_and_is_told(
    inputs: dict[int, Record | BadLine], output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = PredictionJob(output, inputs, SETTINGS)
    do(job, 0, [1, 2, 5])
    shard_file = job.shards / "rank0.jsonl"
    shard_file.write_bytes(shard_file.read_bytes().replace(b"\xc3\xa9 2", b"\xc3\xa9 3"))  # still JSON, still whole
    with job.open_shard(0) as shard:
        assert shard.done == {1, 5}
        assert "rank0.jsonl:2 is damaged" in caplog.text
        answer(shard, inputs, [2, 4, 6, 7, 8])
        assert job.merge() == 0
    assert [prediction.response for prediction in read_predictions(output)][1] == "né 2"


def test_failures_are_listed_before_and_after_the_merge(inputs: dict[int, Record | BadLine], output: Path) -> None:
    job = PredictionJob(output, inputs, SETTINGS)
    with pytest.raises(JobError, match="nothing was predicted yet"):
        read_failures(output)
    do(job, 0, [1, 4])
    assert [failure["line"] for failure in read_failures(output)] == [4]
    do(job, 1, [2, 5, 6, 7, 8])
    assert job.finished
    assert [failure["line"] for failure in read_failures(output)] == [4]


def test_a_finished_job_is_left_alone(inputs: dict[int, Record | BadLine], output: Path) -> None:
    do(PredictionJob(output, inputs, SETTINGS), 0, list(inputs))
    again = PredictionJob(output, inputs, SETTINGS)
    assert again.finished
    assert again.open_shard(0) is None
    output.unlink()
    with again.open_shard(0) as shard:
        assert shard.done == frozenset()


def predict_all(job: PredictionJob, rank: int, world_size: int, failing: set[int]) -> int | None:
    """A rank's whole part; None when there is none for it."""
    shard = job.open_shard(rank)
    if shard is None:
        return None
    with shard:
        for line in [line for line in list(job.inputs)[rank::world_size] if line not in shard.done]:
            if line in failing:
                shard.add_failure(line, job.inputs[line], "MediaError", "no such file")
            else:
                answer(shard, job.inputs, [line])
        return job.merge()


def test_failed_records_are_predicted_again_and_the_others_are_not(
    inputs: dict[int, Record | BadLine], output: Path, tmp_path: Path
) -> None:
    first = PredictionJob(output, inputs, SETTINGS)
    predict_all(first, 0, 1, failing={1, 6, 8})
    assert "3 MediaError, 1 RecordError), listed in" in first.summary()
    assert first.summary().endswith("; --retry_failed 1 predicts them again")
    before = output.read_bytes()

    retry = PredictionJob(output, inputs, SETTINGS, retry_failed=1)
    with retry.open_shard(0) as shard:
        assert shard.done == {2, 5, 7}
        assert output.read_bytes() == before, "the result of before stays until there is a better one"
    assert predict_all(retry, 0, 1, failing={6}) == 0
    assert [failure["line"] for failure in read_failures(output)] == [4, 6]
    assert retry.summary().endswith("; --retry_failed 2 predicts them again")
    assert retry.open_shard(0) is None, "the same command again has nothing left to do"
    assert PredictionJob(output, inputs, SETTINGS).open_shard(0) is None

    assert predict_all(PredictionJob(output, inputs, SETTINGS, retry_failed=2), 0, 1, failing=set()) == 0
    straight = tmp_path / "straight" / "input.jsonl"
    predict_all(PredictionJob(straight, inputs, SETTINGS), 0, 1, failing=set())
    assert output.read_bytes() == straight.read_bytes()
    assert output.with_suffix(".errors.jsonl").read_bytes() == straight.with_suffix(".errors.jsonl").read_bytes()


def test_ranks_retry_together_once_however_late_they_start(inputs: dict[int, Record | BadLine], output: Path) -> None:
    predict_all(PredictionJob(output, inputs, SETTINGS), 0, 1, failing={1, 6})  # with line 4 all of rank 0's share
    retry = PredictionJob(output, inputs, SETTINGS, retry_failed=1)
    assert predict_all(retry, 0, 2, failing={6}) == 0
    assert predict_all(retry, 1, 2, failing=set()) is None, "the late rank finds the retry done and begins no other"
    assert [failure["line"] for failure in read_failures(output)] == [4, 6]

    second = PredictionJob(output, inputs, SETTINGS, retry_failed=2)
    assert predict_all(second, 1, 2, failing=set()) == 2, "the early rank begins it, and has no share itself"
    assert do(second, 0, [4]) == 1, "rank 0 is killed after line 4, which has failed again"
    with second.open_shard(0) as shard:
        assert shard.done == {1, 2, 4, 5, 7, 8}, "the same command goes on, and does not start the retry anew"


def test_a_run_that_is_not_finished_may_retry_what_has_failed_so_far(
    inputs: dict[int, Record | BadLine], output: Path
) -> None:
    first = PredictionJob(output, inputs, SETTINGS)
    do(first, 0, [1, 4])
    retry = PredictionJob(output, inputs, SETTINGS, retry_failed=1)
    with first.open_shard(1), pytest.raises(JobError, match="not asked to retry, is writing"):
        retry.open_shard(0)
    with retry.open_shard(0) as shard:
        assert shard.done == {1}


def test_a_retry_killed_while_it_begins_loses_nothing(
    inputs: dict[int, Record | BadLine], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_all(PredictionJob(output, inputs, SETTINGS), 0, 1, failing={6})
    retry = PredictionJob(output, inputs, SETTINGS, retry_failed=1)
    with monkeypatch.context() as patch:
        patch.setattr(retry, "_write_state", lambda finished: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retry.open_shard(0)
    assert PredictionJob(output, inputs, SETTINGS).open_shard(0) is None
    assert predict_all(retry, 0, 1, failing=set()) == 0
    assert len(read_predictions(output)) == 6


def test_a_result_that_was_changed_by_hand_is_not_built_on(inputs: dict[int, Record | BadLine], output: Path) -> None:
    predict_all(PredictionJob(output, inputs, SETTINGS), 0, 1, failing={6})
    output.write_text("".join(output.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(JobError, match="were changed since they were written"):
        PredictionJob(output, inputs, SETTINGS, retry_failed=1).open_shard(0)


def test_a_rank_that_comes_amid_the_clearing_up_waits(
    inputs: dict[int, Record | BadLine], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, late = shutil.rmtree, ThreadPoolExecutor(1)

    def slowly(folder: Path, **options: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        opening = late.submit(PredictionJob(output, inputs, SETTINGS).open_shard, 1)
        with pytest.raises(TimeoutError):
            opening.result(timeout=0.2)
        remove(folder, **options)

    job = PredictionJob(output, inputs, SETTINGS)
    with job.open_shard(0) as shard:
        answer(shard, inputs, list(inputs))
        monkeypatch.setattr(shutil, "rmtree", slowly)
        assert job.merge() == 0
    late.shutdown()
    assert len(output.read_text().splitlines()) == 6


def test_other_settings_start_afresh_and_say_so(
    inputs: dict[int, Record | BadLine], output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    do(PredictionJob(output, inputs, SETTINGS), 0, list(inputs))
    first = output.read_bytes()
    other = PredictionJob(output, inputs, SETTINGS | {"max_new_tokens": 64})
    do(other, 0, [1])
    assert "max_new_tokens was 256 and is 64" in caplog.text
    assert not output.exists()
    assert output.with_name("input.jsonl.old").read_bytes() == first
    with PredictionJob(output, inputs, SETTINGS | {"max_new_tokens": 32}).open_shard(0) as shard:
        assert shard.done == frozenset()


def test_every_fold_under_one_name_is_kept(
    inputs: dict[int, Record | BadLine], output: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fold(number: int) -> PredictionJob:
        source = tmp_path / f"fold{number}" / "input.jsonl"
        return PredictionJob(output, inputs, SETTINGS | {"input": f"hash{number}"}, {"input": source})

    for number in (1, 2, 3):
        predict_all(fold(number), 0, 1, failing={number})
    kept = [output.with_name(f"input.jsonl{end}").read_text() for end in ("", ".old", ".old2")]
    assert [json.loads(text.splitlines()[0])["id"] for text in kept] == ["a", "b", "a"], "fold 3, 1 and 2"
    errors = [
        json.loads((output.parent / f"input.errors.jsonl{end}").open().readline()) for end in ("", ".old", ".old2")
    ]
    assert [error["line"] for error in errors] == [4, 1, 2]
    assert f"input was {tmp_path}/fold2/input.jsonl (hash2) and is {tmp_path}/fold3/input.jsonl (hash3)" in caplog.text
    moved = PredictionJob(output, inputs, SETTINGS | {"input": "hash3"}, {"input": tmp_path / "elsewhere.jsonl"})
    assert moved.open_shard(0) is None, "an input that was moved is the same job"


def test_an_unfinished_run_that_made_way_can_go_on(inputs: dict[int, Record | BadLine], output: Path) -> None:
    first = PredictionJob(output, inputs, SETTINGS)
    do(first, 0, [1, 2])
    do(PredictionJob(output, inputs, SETTINGS | {"max_new_tokens": 64}), 0, [1])
    shutil.rmtree(first.shards)
    for path in list(output.parent.glob("input.*.old")):
        path.replace(path.with_suffix(""))
    with first.open_shard(0) as shard:
        assert shard.done == {1, 2}


def test_two_runs_at_once_are_refused(inputs: dict[int, Record | BadLine], output: Path) -> None:
    job = PredictionJob(output, inputs, SETTINGS)
    with job.open_shard(0):
        with pytest.raises(JobError, match="rank 0 of this job is at work"):
            job.open_shard(0)
        with pytest.raises(JobError, match="choose another --output_dir"):
            PredictionJob(output, inputs, SETTINGS | {"model": "m2"}).open_shard(0)
        with job.open_shard(1):
            pass
    with job.open_shard(0):
        pass


def test_a_full_disk_during_the_merge_damages_nothing(
    inputs: dict[int, Record | BadLine], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    job = PredictionJob(output, inputs, SETTINGS)
    with job.open_shard(0) as shard:
        answer(shard, inputs, list(inputs))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                job.merge()
        assert not output.exists()
        assert job.merge() == 0
    assert len(read_predictions(output)) == 6


def test_a_model_is_another_when_its_weights_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = model_fingerprint(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{}")
    assert model_fingerprint(tmp_path) == first
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    assert model_fingerprint(tmp_path) != first
