"""Batch inference as a user meets it: whatever is killed or broken, one prediction a record, the same every time."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from media_factory import write_clip

from humanomni.decoding import Decoder
from humanomni.evaluation.predictions import read_predictions
from humanomni.inference import FORCED_EMPTY_THINK, Failure, Item, Predictor, Reading, Row
from humanomni.loading import LoadOptions
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import EMOTION_QUESTION, MODALITIES
from humanomni.records import Record, read_records
from humanomni.training.clips import ClipLoader

SCRIPT = Path(__file__).parents[1] / "inference_batch.py"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def model_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model, made to say something different about each clip, in as many tokens as it may."""
    output = tmp_path_factory.mktemp("chatty") / "model"
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)
    processor = HumanOmniProcessor.from_pretrained(tiny_model_dir)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and ("language_model.layers" in name or "projector" in name):
            parameter.data *= 4
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.suppress_tokens = processor.placeholder_ids + processor.tokenizer.all_special_ids
    model.save_pretrained(output)
    processor.save_pretrained(output)
    return output


@pytest.fixture(scope="module")
def records(toy_world_dir: Path) -> list[Record]:
    return [record for record in read_records(toy_world_dir / "test.jsonl") if isinstance(record, Record)]


@dataclass(frozen=True)
class Run:
    """The command without its output folder, and what a run of it must give."""

    command: list[str]
    predictions: bytes
    errors: bytes
    log: str

    def start(self, output: Path, *flags: str, launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, *self.command, "--output_dir", str(output), *flags]
        return subprocess.Popen(command, env=ONE_THREAD, text=True, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def straight(
    model_dir: Path, toy_world_dir: Path, records: list[Record], tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """One process, batches of eight, over 28 good records of two question lengths, a corrupt clip, a missing one and a
    line that is no JSON."""
    folder = tmp_path_factory.mktemp("straight")
    corrupt = folder / "corrupt.mp4"
    corrupt.write_bytes((toy_world_dir / records[0].video).read_bytes()[:700])
    lines = [as_line(record.id, record.video, EMOTION_QUESTION) for record in records]
    lines[2:2] = [as_line("corrupt", str(corrupt)), as_line("missing", "clips/missing.mp4"), "", '{"id": "torn", "vid']
    lines += [as_line(f"{record.id} again", record.video, "Which emotion is it?") for record in records]
    source = folder / "held_out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    command = f"{SCRIPT} --model_path {model_dir} --input_jsonl {source} --data_root {toy_world_dir}"
    command += f" --max_new_tokens {NEW_TOKENS} --num_workers 2"
    run = Run(command.split(), b"", b"", "")
    process = run.start(folder / "out", "--batch_size", "8")
    log = process.communicate(timeout=120)[1]
    assert process.returncode == 0, log
    outputs = [(folder / "out" / name).read_bytes() for name in ("held_out.jsonl", "held_out.errors.jsonl")]
    return Run(run.command, *outputs, log)


def as_line(identity: str, video: str, question: str = "Which emotion?") -> str:
    turns = [{"from": "human", "value": f"<video>\n<audio>\n{question}"}, {"from": "gpt", "value": "anger"}]
    return json.dumps({"id": identity, "video": video, "conversations": turns})


def test_every_record_is_predicted_or_listed_as_failed(straight: Run, records: list[Record], tmp_path: Path) -> None:
    predictions = [json.loads(line) for line in straight.predictions.splitlines()]
    identities = [record.id for record in records]
    assert [p["id"] for p in predictions] == identities + [f"{identity} again" for identity in identities]
    assert all(list(p) == ["id", "video", "gt", "pred", "think_text", "raw_response", "has_audio"] for p in predictions)
    assert {p["gt"] for p in predictions} == {"anger"}
    assert len({p["raw_response"] for p in predictions}) > 20, "the model should tell clips apart"

    errors = [json.loads(line) for line in straight.errors.splitlines()]
    assert [(e["id"], e["line"], e["error"]) for e in errors] == [
        ("corrupt", 3, "MediaError"),
        ("missing", 4, "MediaError"),
        (None, 6, "RecordError"),
    ]
    assert "missing.mp4: no such file" in errors[1]["detail"]
    last = straight.log.splitlines()[-1]
    assert "28 predictions" in last
    assert "3 records failed (2 MediaError, 1 RecordError)" in last
    assert "held_out.errors.jsonl" in last

    (tmp_path / "held_out.jsonl").write_bytes(straight.predictions)
    assert len(read_predictions(tmp_path / "held_out.jsonl")) == 28


def test_a_gpu_cannot_decode_where_there_is_none(straight: Run, tmp_path: Path) -> None:
    process = straight.start(tmp_path, "--gpu_decoding", "--device", "cpu")
    log = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert log.splitlines()[-1] == (
        "inference_batch: --gpu_decoding: clips cannot be decoded by cpu, only by an NVIDIA GPU"
    )


@pytest.mark.slow
def test_interrupted_killed_and_continued_by_two_ranks_equals_a_straight_run(straight: Run, tmp_path: Path) -> None:
    """Slow because it is five processes that import torch, and only real processes can be killed."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell inherits "ignored"
    interrupted = straight.start(tmp_path, "--batch_size", "1")
    wait_for_lines(interrupted, tmp_path, 4)
    interrupted.send_signal(signal.SIGINT)
    log = interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 130, log
    assert "what is done is kept" in log
    assert "Traceback" not in log

    kept = done_lines(tmp_path)
    killed = straight.start(tmp_path, "--batch_size", "1")
    wait_for_lines(killed, tmp_path, len(kept) + 4)
    killed.kill()
    killed.communicate(timeout=60)
    assert not (tmp_path / "held_out.jsonl").exists()

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    ranks = straight.start(tmp_path, "--batch_size", "3", launcher=launcher)
    log = ranks.communicate(timeout=120)[1]
    assert ranks.returncode == 0, log
    assert (tmp_path / "held_out.jsonl").read_bytes() == straight.predictions
    assert (tmp_path / "held_out.errors.jsonl").read_bytes() == straight.errors
    assert not (tmp_path / "held_out.shards").exists()

    again = straight.start(tmp_path)
    assert "nothing is left to do" in again.communicate(timeout=60)[1]


def done_lines(output: Path) -> list[int]:
    shards = output.glob("held_out.shards/rank*.jsonl")
    whole = [line for shard in shards for line in shard.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [json.loads(line)["line"] for line in whole]


def wait_for_lines(process: subprocess.Popen[str], output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(done_lines(output)) < count:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_without_any_record_needs_no_model_and_early_has_its_own_name(tmp_path: Path, model_dir: Path) -> None:
    source = tmp_path / "in.json"
    source.write_text('["not an object"]')
    flags = ["--model_path", model_dir, "--input_jsonl", source, "--output_dir", tmp_path, "--early"]
    subprocess.run([sys.executable, SCRIPT, *flags, "--bert_path", "anywhere"], check=True, timeout=60)
    assert (tmp_path / "in_early.jsonl").read_bytes() == b""
    assert json.loads((tmp_path / "in_early.errors.jsonl").read_text())["error"] == "RecordError"


def test_the_input_is_never_overwritten(tmp_path: Path, model_dir: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    flags = ["--model_path", model_dir, "--input_jsonl", source, "--output_dir", tmp_path]
    refused = subprocess.run([sys.executable, SCRIPT, *flags], check=False, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "would overwrite the input" in refused.stderr
    assert source.read_text() == "{}\n"


@pytest.fixture
def predictor(model_dir: Path) -> Predictor:
    return Predictor(LoadOptions(model_dir), max_new_tokens=8)


@pytest.fixture(scope="module")
def items(toy_items: list[Item]) -> list[Item]:
    return toy_items[:6]


def out_of_memory(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, most: int, part: str = "generate"
) -> list[int]:
    """Lets a part of the model hold ``most`` rows at once; returns the list of the batch sizes to come."""
    attempts, works = [], getattr(predictor.model, part)

    def limited(*texts: torch.Tensor, **inputs: Any) -> Any:
        attempts.append(len(texts[0] if texts else inputs["input_ids"]))
        if attempts[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return works(*texts, **inputs)

    monkeypatch.setattr(predictor.model, part, limited)
    return attempts


@pytest.mark.parametrize("part", ["read_prompts", "generate"])
def test_lack_of_memory_halves_the_batch_for_good(
    part: str, predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(predictor.predict(items, batch_size=3))
    attempts = out_of_memory(predictor, monkeypatch, 2, part)
    assert list(predictor.predict(items, batch_size=6)) == expected
    assert list(predictor.predict(items, batch_size=4)) == expected
    assert attempts == [6, 3, 2, 1, 2, 1] + [2, 2, 2]


def test_what_is_tried_again_takes_no_second_cache(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(predictor.predict(items, batch_size=6))
    decoders, step, sizes = list(predictor.model._idle_decoders), Decoder.step, []

    def small_steps_only(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(decoder, tokens)

    monkeypatch.setattr(Decoder, "step", small_steps_only)
    assert list(predictor.predict(items, batch_size=6)) == expected
    assert set(sizes) == {6, 3}
    assert predictor.model._idle_decoders == decoders


def test_memory_is_freed_when_no_prompts_are_being_read(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second of reading, in which nothing may be freed: on a GPU a graph may be captured in it."""
    expected = list(predictor.predict(items, batch_size=3))
    step, read_prompts = Decoder.step, predictor.model.read_prompts
    reading, freed = threading.Event(), threading.Event()
    reads, freed_meanwhile = itertools.count(), []

    def small_steps_only(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
        assert reading.wait(60)
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(decoder, tokens)

    def slow_reading(*texts: torch.Tensor, **media: Any) -> Any:
        if next(reads) == 1:
            reading.set()
            freed_meanwhile.append(freed.wait(0.5))
        return read_prompts(*texts, **media)

    monkeypatch.setattr(Decoder, "step", small_steps_only)
    monkeypatch.setattr(predictor.model, "read_prompts", slow_reading)
    monkeypatch.setattr(torch.cuda, "empty_cache", freed.set)
    assert list(predictor.predict(items, batch_size=3)) == expected
    assert freed_meanwhile == [False]
    assert freed.is_set()


def test_prompts_are_read_while_the_batch_before_is_decoded(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits for the other, so that one after the other would not end; the weights are there once."""
    expected = list(predictor.predict(items, batch_size=6))
    layers = predictor.model._decoding_layers
    step, read_prompts = Decoder.step, predictor.model.read_prompts
    reading, decoding = threading.Event(), threading.Event()
    reads = itertools.count()

    def slow_step(decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
        decoding.set()
        assert reading.wait(60)
        return step(decoder, tokens)

    def slow_reading(*texts: torch.Tensor, **media: Any) -> Any:
        if next(reads):
            assert decoding.wait(60)
            reading.set()
        return read_prompts(*texts, **media)

    monkeypatch.setattr(Decoder, "step", slow_step)
    monkeypatch.setattr(predictor.model, "read_prompts", slow_reading)
    assert list(predictor.predict(items, batch_size=2)) == expected
    assert len(predictor.model._idle_decoders) == 2
    assert all(decoder.layers is layers for decoder in predictor.model._idle_decoders)


def test_a_record_too_large_for_the_memory_alone_is_recorded(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory(predictor, monkeypatch, most=0)
    outcomes = [outcome for _, outcome in predictor.predict(items[:2])]
    assert outcomes == [Failure("OutOfMemoryError", "CUDA out of memory")] * 2


@pytest.mark.parametrize("part", ["read_prompts", "generate"])
def test_a_failing_record_takes_no_other_with_it(
    part: str, predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it fails while the batch before is decoded or in its own turn."""
    asking = [replace(item, record=replace(item.record, question=f"Which? {item.line}")) for item in items]
    expected = [outcome for _, outcome in predictor.predict(asking)]
    works = getattr(predictor.model, part)
    bad = predictor.inputs([Row(asking[4], predictor._clips.load(items[4].clip), {})])["input_ids"][0]

    def picky(*texts: torch.Tensor, **inputs: Any) -> Any:
        ids = inputs["input_ids"] if part == "generate" else texts[0]
        if any(torch.equal(row[-len(bad) :], bad) for row in ids):
            raise ValueError("a row that this model cannot bear")
        return works(*texts, **inputs)

    monkeypatch.setattr(predictor.model, part, picky)
    for size in (2, 6):
        outcomes = [outcome for _, outcome in predictor.predict(asking, batch_size=size)]
        assert outcomes == expected[:4] + [Failure("ValueError", "a row that this model cannot bear")] + expected[5:]


def test_early_mode_puts_an_empty_explanation_into_the_models_mouth(
    model_dir: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(LoadOptions(model_dir), early=True)
    seen = []

    def generate(reading: Reading) -> list[str]:
        seen.extend(predictor.processor.tokenizer.batch_decode(reading.input_ids))
        return ["happy</answer>", "happy"]

    monkeypatch.setattr(predictor, "_generate", generate)
    predictions = [prediction for _, prediction in predictor.predict(items[:2])]
    assert all(prompt.endswith(f"assistant\n{FORCED_EMPTY_THINK}") for prompt in seen)
    assert [(p["pred"], p["think_text"], p["raw_response"]) for p in predictions] == [
        ("happy", None, "happy</answer>"),
        ("happy", None, "happy"),
    ]


SHOWN = {
    "video_audio": {"pixel_values", "input_features"},
    "video": {"pixel_values"},
    "audio": {"input_features"},
    "image": {"pixel_values"},
    "text": set(),
}


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_modality_shows_the_model_nothing_else(
    modality: str, model_dir: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(LoadOptions(model_dir), modality=modality, max_new_tokens=4)
    read_prompts, seen = predictor.model.read_prompts, []

    def spy(*text: torch.Tensor, **media: torch.Tensor) -> Any:
        seen.append({"pixel_values", "input_features"} & media.keys())
        return read_prompts(*text, **media)

    monkeypatch.setattr(predictor.model, "read_prompts", spy)
    together = [outcome for _, outcome in predictor.predict(items[:3])]
    assert seen == [SHOWN[modality]]
    assert not any(isinstance(outcome, Failure) for outcome in together)
    assert together == [outcome for _, outcome in predictor.predict(items[:3], batch_size=1)]


def test_a_record_may_mean_a_part_of_its_clip(model_dir: Path, items: list[Item]) -> None:
    predictor = Predictor(LoadOptions(model_dir), max_new_tokens=8)
    whole = items[0].record
    parts = [dataclasses.replace(whole, start=start, end=end) for start, end in ((None, None), (0.0, 0.5), (50, 51))]
    outcomes = list(predictor.predict([Item(line, part, items[0].clip) for line, part in enumerate(parts)]))
    (_, shown_whole), (_, shown_part), *_ = outcomes
    assert shown_whole["raw_response"] != shown_part["raw_response"]
    assert "end" not in shown_whole
    assert (shown_part["start"], shown_part["end"], shown_part["has_audio"]) == (0.0, 0.5, True)
    assert isinstance(outcomes[2][1], Failure)
    assert "no frame between second 50 and 51" in outcomes[2][1].detail


def test_a_clip_without_sound_is_marked(model_dir: Path, items: list[Item], tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "silent.mp4", frames=20, sound=None)
    for modality, marked in (("video_audio", {"has_audio": False}), ("video", {})):
        predictor = Predictor(LoadOptions(model_dir), modality, max_new_tokens=4)
        [(_, outcome)] = predictor.predict([Item(1, items[0].record, clip)])
        assert {name: outcome[name] for name in outcome.keys() & {"has_audio"}} == marked


def test_clips_in_the_cache_are_not_decoded_again(
    model_dir: Path, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(cache: Path | None) -> list[Any]:
        return list(Predictor(LoadOptions(model_dir), max_new_tokens=4, clip_cache=cache).predict(items[:3]))

    expected = predict(None)
    assert predict(tmp_path) == expected
    assert len(list(tmp_path.iterdir())) == len({item.clip for item in items[:3]})
    monkeypatch.delattr(ClipLoader, "_decode")
    assert predict(tmp_path) == expected


def test_text_alone_needs_no_clip(model_dir: Path, items: list[Item]) -> None:
    predictor = Predictor(LoadOptions(model_dir), modality="text", max_new_tokens=4)
    [(_, outcome)] = predictor.predict([Item(1, items[0].record, Path("nowhere.mp4"))])
    assert not isinstance(outcome, Failure)


def test_a_failure_that_passes_is_no_failure(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(predictor.predict(items[:2]))
    generate, load, tries = predictor.model.generate, predictor._clips.load, {"generate": 0, "load": 0}

    def flaky_generate(**inputs: Any) -> torch.Tensor:
        tries["generate"] += 1
        if tries["generate"] in (1, 2):  # the batch, and its first row alone
            raise RuntimeError("a passing fault")
        return generate(**inputs)

    def flaky_load(path: Path, *part: float | None) -> Any:
        tries["load"] += 1
        if tries["load"] == 1:
            raise OSError("Stale file handle")
        return load(path, *part)

    monkeypatch.setattr(predictor.model, "generate", flaky_generate)
    monkeypatch.setattr(predictor._clips, "load", flaky_load)
    assert list(predictor.predict(items[:2], num_workers=0)) == expected
    assert tries == {"generate": 4, "load": 3}


def test_a_record_whose_prompt_cannot_be_made_takes_no_other_with_it(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [outcome for _, outcome in predictor.predict(items[:2])]
    prompt = predictor.processor.prompt

    def strict(question: str, modality: str) -> str:
        if question == "unbearable":
            raise ValueError("a question that this tokenizer cannot bear")
        return prompt(question, modality)

    monkeypatch.setattr(predictor.processor, "prompt", strict)
    bad = replace(items[2], record=replace(items[2].record, question="unbearable"))
    outcomes = {item.line: outcome for item, outcome in predictor.predict([items[0], bad, items[1]])}
    assert outcomes[bad.line] == Failure("ValueError", "a question that this tokenizer cannot bear")
    assert [outcomes[item.line] for item in items[:2]] == expected


def test_a_token_budget_makes_batches_and_changes_no_response(
    predictor: Predictor, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["Which emotion?", EMOTION_QUESTION]
    mixed = [replace(i, record=replace(i.record, question=questions[i.line % 2])) for i in items]
    expected = {item.line: outcome for item, outcome in predictor.predict(mixed, batch_size=1)}
    longest = max(predictor._lengths(mixed))
    sizes = out_of_memory(predictor, monkeypatch, most=100)
    outcomes = {item.line: outcome for item, outcome in predictor.predict(mixed, token_budget=2 * longest)}
    assert outcomes == expected
    assert max(sizes) == 2
    assert sum(sizes) == len(items)


def test_a_template_asks_with_keys_of_the_records_and_errors_are_summed_up(
    model_dir: Path, toy_world_dir: Path, records: list[Record], tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    lines = [json.loads(as_line(record.id, record.video)) | {"subtitle": "Hello."} for record in records[:2]]
    del lines[1]["subtitle"]
    source.write_text("\n".join(map(json.dumps, lines)))
    flags = ["--model_path", model_dir, "--input_jsonl", source, "--output_dir", tmp_path / "out"]
    flags += ["--data_root", toy_world_dir, "--max_new_tokens", "4", "--template", "They say: {subtitle} {question}"]
    subprocess.run([sys.executable, SCRIPT, *flags], check=True, timeout=120, env=ONE_THREAD)
    plain = [flag for flag in flags if flag != "--template" and "{" not in str(flag)]
    assert [json.loads(line)["id"] for line in (tmp_path / "out/in.jsonl").read_text().splitlines()] == [records[0].id]
    report = subprocess.run([sys.executable, SCRIPT, *plain, "--errors"], capture_output=True, text=True, check=True)
    assert report.stdout.startswith("1 records failed\nRecordError: 1\n  line 2, ")
    assert "has no 'subtitle' for the template" in report.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n", "4"], "give a --temperature"),
        (["--template", "no keys"], "must hold keys of the records"),
        (["--template", "{question"], "a brace of the text itself is doubled"),
        (["--temperature", "-1"], "below 0"),
    ],
)
def test_flags_that_make_no_sense_are_refused(flags: list[str], message: str, model_dir: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        SCRIPT,
        "--model_path",
        model_dir,
        "--input_jsonl",
        "x",
        "--output_dir",
        tmp_path,
        *flags,
    ]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert message in refused.stderr
