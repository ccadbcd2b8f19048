"""Supervised fine-tuning: where the loss lies, what is skipped, and a real run through the command line."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Subset
from transformers import AutoModelForCausalLM

from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.training.clips import ClipLoader
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.model import compile_layers, gather_by_blocks
from humanomni.training.run import DEFAULT_PARTS, ConfigurationError
from humanomni.training.sft import SFTArguments, SFTCollator, SFTDataset, SFTSample, SFTTrainer


@pytest.fixture(scope="module")
def processor(tiny_model_dir: Path) -> HumanOmniProcessor:
    return HumanOmniProcessor.from_pretrained(tiny_model_dir)


def dataset(path: Path, processor: HumanOmniProcessor, tmp_path: Path, **more: Any) -> SFTDataset:
    args = SFTArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **more)
    records = read_mixture(parse_sources("train_data", str(path)), None, args.seed)
    return SFTDataset(records, processor, ClipLoader(processor, args.modality, tmp_path / "cache"), args)


def with_broken_clip(toy_world_dir: Path, tmp_path: Path) -> Path:
    """Four records of the world, the second with a clip that cannot be decoded."""
    records = [json.loads(line) for line in (toy_world_dir / "sft_train.jsonl").read_text().splitlines()[:4]]
    for record in records:
        record["video"] = str(toy_world_dir / record["video"])
    records[1] |= {"id": "broken", "video": str(tmp_path / "broken.mp4")}
    (tmp_path / "broken.mp4").write_bytes(b"no film")
    path = tmp_path / "sft.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_loss_lies_on_the_assistants_turn_and_its_end(
    toy_world_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    samples = dataset(toy_world_dir / "sft_train.jsonl", processor, tmp_path)
    batch = SFTCollator(processor, samples.clips)([samples[0], samples[3]])
    for row, sample in enumerate((samples[0], samples[3])):
        learnt = batch["input_ids"][row][batch["labels"][row] != -100]
        assert processor.tokenizer.decode(learnt) == f"{sample.record.target}<|im_end|>\n"
        read = sample.prompt_ids + sample.target_ids
        assert batch["input_ids"][row].tolist()[: len(read)] == read


def test_padding_changes_nothing_for_the_rows_that_it_fills(
    toy_world_dir: Path, tiny_model_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    """A batch has no attention mask: what stands before padding does not see it."""
    samples = dataset(toy_world_dir / "sft_train.jsonl", processor, tmp_path)
    chosen = sorted((samples[index] for index in range(4)), key=lambda sample: len(sample.target_ids))
    assert len(chosen[0].target_ids) < len(chosen[-1].target_ids)
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)

    def summed_loss(samples: list[SFTSample]) -> torch.Tensor:
        batch = SFTCollator(processor, ClipLoader(processor, "video_audio"))(samples)
        return model(
            **{name: batch[name] for name in batch if name not in ("ids", "problems")}, num_items_in_batch=1
        ).loss

    alone = sum(summed_loss([sample]) for sample in chosen)
    assert summed_loss(chosen).item() == pytest.approx(alone.item(), rel=1e-5)


def test_the_prompt_is_the_one_of_inference(toy_world_dir: Path, processor: HumanOmniProcessor, tmp_path: Path) -> None:
    sample = dataset(toy_world_dir / "sft_train.jsonl", processor, tmp_path)[0]
    asked = processor.text_inputs([processor.prompt(sample.record.question)])
    assert asked["input_ids"][0].tolist() == sample.prompt_ids


def test_a_broken_clip_and_a_long_sample_carry_no_loss_and_say_why(
    toy_world_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    path = with_broken_clip(toy_world_dir, tmp_path)
    samples = dataset(path, processor, tmp_path)
    batch = SFTCollator(processor, samples.clips)([samples[0], samples[1]])
    assert (batch["labels"][0] != -100).any()
    assert (batch["labels"][1] == -100).all()
    [(record, problem)] = batch["problems"]
    assert record.id == "broken"
    assert "broken.mp4" in problem
    assert "max_length 100" in dataset(path, processor, tmp_path, max_length=100)[0].problem


def test_the_clip_cache_gives_what_decoding_gives(
    toy_world_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    clip = next(iter(sorted((toy_world_dir / "clips").iterdir())))
    decoded = ClipLoader(processor, "video_audio").load(clip)
    cached = ClipLoader(processor, "video_audio", tmp_path)
    cached.load(clip)
    (entry,) = tmp_path.iterdir()
    again = cached.load(clip)
    assert torch.equal(again.pixels, decoded.pixels)
    assert torch.equal(again.mel, decoded.mel)
    entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(cached.load(clip).mel, decoded.mel), "a damaged entry is made again"


def test_a_cache_that_takes_no_more_costs_no_clip(
    toy_world_dir: Path, processor: HumanOmniProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = sorted((toy_world_dir / "clips").iterdir())[:3]
    cached = ClipLoader(processor, "video_audio", tmp_path)
    cached.load(first)
    kept = list(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the file system's "no"
    try:
        clips = [cached.load(clip) for clip in (first, second, third)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [clip.has_audio for clip in clips] == [True] * 3
    assert list(tmp_path.iterdir()) == kept
    [said] = [message for message in caplog.messages if "takes no more clips" in message]
    assert str(tmp_path) in said


def test_records_without_a_target_are_refused(
    toy_world_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    record = json.loads((toy_world_dir / "sft_train.jsonl").read_text().splitlines()[0])
    record["conversations"].pop()
    path = tmp_path / "no_target.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match=record["id"]):
        dataset(path, processor, tmp_path)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_record_that_cannot_be_used_is_no_part_of_the_validation_loss(
    batch: int, toy_world_dir: Path, tiny_model_dir: Path, processor: HumanOmniProcessor, tmp_path: Path
) -> None:
    """Alone in its batch it would count as a loss of 0."""
    records = dataset(with_broken_clip(toy_world_dir, tmp_path), processor, tmp_path)
    args = SFTArguments(
        output_dir=str(tmp_path / "run"), use_cpu=True, report_to="none", per_device_eval_batch_size=batch
    )
    trainer = SFTTrainer(
        model=HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir),
        args=args,
        data_collator=SFTCollator(processor, records.clips),
        processing_class=processor,
    )
    with_it = trainer.evaluate(records)["eval_loss"]
    without_it = trainer.evaluate(Subset(records, [0, 2, 3]))["eval_loss"]
    assert with_it == pytest.approx(without_it, rel=1e-5)
    assert with_it > 1
    assert "eval_loss" not in trainer.evaluate(Subset(records, [1]))


@pytest.mark.parametrize(
    ("sharding_stage", "gradient_checkpointing", "compiles"),
    [(0, False, True), (2, False, True), (0, True, False), (2, True, False), (3, False, False)],
)
def test_layers_are_compiled_on_a_gpu_where_nothing_recomputes_or_gathers_them(
    sharding_stage: int,
    gradient_checkpointing: bool,
    compiles: bool,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What gradient checkpointing recomputes may come from another compiled graph than the backward pass."""
    compiled: list[torch.nn.Module] = []
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    arguments = SimpleNamespace(sharding_stage=sharding_stage, gradient_checkpointing=gradient_checkpointing)
    with torch._dynamo.config.patch(recompile_limit=8):  # and back
        compile_layers(model, arguments)
    assert (model.model.language_model.layers[0] in compiled) == compiles


@pytest.mark.parametrize(
    ("trained", "whole"),
    [
        (DEFAULT_PARTS, {"vision_tower", "audio_tower", "bert", "language_model.layers.0", "projector.body.stage2"}),
        (("vision_tower", "projector"), {"audio_tower", "bert", "language_model.layers.0", "projector.body.stage2"}),
        ((), {"vision_tower", "audio_tower", "bert", "language_model.layers.0", "projector.body.stage2"}),
        (("gate", "language_model"), {"vision_tower", "audio_tower", "bert", "projector.body.stage2"}),
    ],
)
def test_blocks_that_zero3_gathers_whole_are_frozen_or_have_inputs_with_gradients(
    trained: tuple[str, ...], whole: set[str], tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of other blocks DeepSpeed reduces the gradients before they are there."""
    marked: list[torch.nn.Module] = []
    deepspeed = SimpleNamespace(set_z3_leaf_module=lambda module, _: marked.append(module))
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(utils=deepspeed))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", deepspeed)
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir)
    model.set_trainable(trained)
    model.model.language_model.embed_tokens.requires_grad_("projector" in trained)  # as under LoRA
    gather_by_blocks(model)
    looked_at = {"vision_tower", "audio_tower", "bert", "language_model.layers.0", "projector.body.stage1", *whole}
    assert {name for name in looked_at if model.model.get_submodule(name) in marked} == whole


@pytest.mark.slow
def test_a_run_learns_measures_itself_and_leaves_its_record(
    repo: Path, toy_world_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Slow: a real run of the command."""
    data = with_broken_clip(toy_world_dir, tmp_path)

    def run(output: Path, *flags: str) -> None:
        command = [sys.executable, repo / "train_sft.py", "--config", repo / "configs/toy/sft.yaml"]
        command += ["--model_path", tiny_model_dir, "--train_data", data, "--validation_data", data]
        command += ["--clip_cache", tmp_path / "cache", "--output_dir", output, "--report_to", "none"]
        command += ["--per_device_train_batch_size", "2", "--num_train_epochs", "2", "--lr_scheduler_type", "constant"]
        command += ["--save_strategy", "no", "--eval_strategy", "epoch", "--warmup_steps", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*map(str, command), *flags], check=True, cwd=repo, env=environment, capture_output=True)

    run(tmp_path / "straight")
    straight, start = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "straight", tiny_model_dir)
    )
    changed = {name for name, tensor in straight.items() if not torch.equal(start[name], tensor)}
    assert any("language_model" in name for name in changed)
    assert not any("_tower" in name or ".bert." in name for name in changed)

    history = json.loads((tmp_path / "straight/trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[0] > losses[1] > 0
    assert history[-1]["skipped"] == 1
    skipped = [json.loads(line) for line in (tmp_path / "straight/skipped.rank0.jsonl").read_text().splitlines()]
    assert [one["id"] for one in skipped] == ["broken"]
    manifest = json.loads((tmp_path / "straight/manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["packages"]["transformers"].startswith("5.17")
    assert (tmp_path / "straight/config.yaml").is_file()
