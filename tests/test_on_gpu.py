"""What only a GPU runs, the compiled, the captured and the sharded, against a CPU; skipped where there is no GPU."""

import copy
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from media_factory import turn, write_clip
from test_decoding import GREEDY, QUESTIONS, batch
from test_media_video import film
from training_process import FixedRollouts
from training_runs import SHARDING, Runs, needs_deepspeed
from transformers import Qwen2Config, Qwen2ForCausalLM

from humanomni.decode_ahead import decode_ahead
from humanomni.decoding import Decoder
from humanomni.decoding_layers import DecodingLayers, cast_parameters
from humanomni.inference import Failure, Item, Predictor
from humanomni.loading import LoadOptions
from humanomni.media import load_clip
from humanomni.media_nvdec import in_memory, why_not
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.records import Record
from humanomni.training.clips import ClipLoader

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=needs_two)])
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize(
    "sharding",
    ["none", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed), "fsdp2"],
)
@pytest.mark.parametrize(
    ("stage", "gradient_checkpointing"),
    [("sft", False), ("sft", True), ("grpo", True)],
    ids=["sft-compiled", "sft-recomputed", "grpo-recomputed"],
)
def test_the_gradients_are_those_of_a_cpu(
    stage: str,
    gradient_checkpointing: bool,
    sharding: str,
    lora_rank: int,
    processes: int,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slow: compiles layers. In bfloat16 and under torchrun, as the configurations have it."""
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", FixedRollouts)
    settings: dict[str, Any] = {"max_steps": 3, "lora_rank": lora_rank, "save_strategy": "steps", "save_steps": 2}
    settings |= {"sft": {"records_per_step": 8}, "grpo": {"records_per_step": 2}}[stage]
    runs.here(stage, "cpu", **settings)
    settings |= {"use_cpu": False, "bf16": True, "gradient_checkpointing": gradient_checkpointing} | SHARDING[sharding]
    done = runs.elsewhere(stage, "gpu", {"FIXED_ROLLOUTS": "1"}, processes=processes, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, norms = (logged(runs.folder / name, "grad_norm") for name in ("cpu", "gpu"))
    assert norms == pytest.approx(expected, rel=0.05)
    assert (runs.folder / "gpu/checkpoint-2").is_dir()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("trained", [True, False])
def test_every_token_is_the_likeliest_by_a_forward_pass_on_a_cpu(
    trained: bool, device: str, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of several sizes, one after the other through one captured step; of near ties either will do."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # torch's convolutions are in TF32 on a GPU
    processor = HumanOmniProcessor.from_pretrained(tiny_model_dir)
    model = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir).requires_grad_(trained).eval()
    reference = HumanOmniForConditionalGeneration.from_pretrained(tiny_model_dir).eval()
    model.to(device)
    for inputs in (batch(processor, QUESTIONS), batch(processor, QUESTIONS[:1]), batch(processor, QUESTIONS[1:] * 3)):
        tokens = model.generate(**{name: value.to(device) for name, value in inputs.items()}, **GREEDY).cpu()
        new = tokens[:, inputs["input_ids"].shape[1] :]
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
        with torch.no_grad():
            logits = reference(**inputs | {"input_ids": tokens, "attention_mask": mask}).logits
        logits = logits[:, -new.shape[1] - 1 : -1]
        logits[..., reference.generation_config.suppress_tokens or []] = -torch.inf
        behind = logits.amax(dim=-1) - logits.gather(2, new.unsqueeze(2)).squeeze(2)
        ends = (new == processor.tokenizer.eos_token_id).int()
        written = ends.cumsum(dim=1) - ends == 0  # up to the end token itself
        assert behind[written].max() < 1e-4


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@torch.no_grad()
def test_steps_in_half_precision_are_forward_passes(device: str) -> None:
    """With weights that the kernels take, and more sizes of batches than dynamo would compile a function for."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=1024, num_hidden_layers=3, **sizes)
    half = Qwen2ForCausalLM(config).eval().requires_grad_(False).to(device)
    cast_parameters(half, torch.bfloat16)
    exact = copy.deepcopy(half).cpu().double()
    layers = DecodingLayers(half.model, half.lm_head, torch.bfloat16)
    for rows in range(1, 11):
        ids, mask = torch.randint(1024, (rows, 50)), torch.ones(rows, 50, dtype=torch.long)
        mask[0, :5] = 0
        expected, by_library = (
            model(ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 19:].cpu().double()
            for model in (exact, half)
        )
        decoder, runs = Decoder(layers, rows, 50), []
        for _ in range(3):
            embeds = half.model.embed_tokens(ids[:, :20].to(device))
            logits = [decoder.prefill(embeds, mask[:, :20].to(device), 1).clone()]
            logits += [decoder.step(tokens.to(device)).clone() for tokens in ids[:, 20:].T]
            runs.append(torch.stack(logits, dim=1).cpu().double())
        assert all(torch.equal(run, runs[0]) for run in runs)
        assert (runs[0] - expected).abs().max() < 2 * (by_library - expected).abs().max()


@needs_gpu
def test_half_precision_answers_are_the_same_every_time(tiny_model_dir: Path, toy_items: list[Item]) -> None:
    """Also beside the reading of other prompts."""
    predictor = Predictor(LoadOptions(tiny_model_dir), max_new_tokens=32, device="cuda")
    first, *others = [list(predictor.predict(toy_items, batch_size=4)) for _ in range(3)]
    assert all(again == first for again in others)
    assert not any(isinstance(outcome, Failure) for _, outcome in first)


@needs_two
@pytest.mark.slow
def test_two_gpus_write_what_one_writes(repo: Path, tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path) -> None:
    """Slow: two programs that compile. In float32, because otherwise the order of batches may decide near ties."""
    written = []
    for launcher in ([], ["-m", "torch.distributed.run", "--nproc_per_node", "2"]):
        output = tmp_path / str(len(launcher))
        flags = ["--model_path", tiny_model_dir, "--input_jsonl", toy_world_dir / "test.jsonl", "--output_dir", output]
        command = [sys.executable, *launcher, repo / "inference_batch.py", *flags, "--dtype", "float32"]
        subprocess.run(command, check=True, timeout=300)
        assert not (output / "test.errors.jsonl").exists()
        written.append((output / "test.jsonl").read_bytes())
    assert written[0] == written[1]


SIZES = [(720, 1280), (480, 854), (240, 426), (360, 640), (98, 130), (48, 64), (1080, 1920)]
GPU_FILMS: dict[str, dict[str, Any]] = {
    **{f"{height}p": {"size": (height, width)} for height, width in SIZES},
    "one key frame a dozen": {"codec_options": {"x264-params": "keyint=12"}},
    "no B-frames": {"codec_options": {"x264-params": "bframes=0"}},
    "pyramid": {"codec_options": {"x264-params": "bframes=5:b-pyramid=normal:ref=6"}},
    "full range": {"pixels": "yuvj420p"},
    "BT.709": {"codec_options": {"x264-params": "colormatrix=bt709"}},
}
CORES_FILMS: dict[str, dict[str, Any]] = {
    "10 bits": {"pixels": "yuv420p10le"},
    "interlaced": {"codec_options": {"x264-params": "interlaced=1"}},
    "turned": {},
}


def decoded_by_gpu(paths: Sequence[Path]) -> list[tuple[np.ndarray | None, bool]]:
    """Frames of clips, each twice, and whether they come from the GPU; for a process in which torch does not use it."""
    results = []
    for path in [*paths, *paths]:
        with (
            mock.patch("humanomni.media_video.in_memory", side_effect=in_memory) as given,
            mock.patch("humanomni.media_video._warn_once") as warned,
        ):
            frames = load_clip(path, audio=False, gpu=0).frames
        assert not warned.called, path
        formats = {call.args[0].format.name for call in given.call_args_list}
        results.append((frames, formats == {"cuda"}))
    return results


@needs_gpu
def test_a_gpu_decodes_to_the_frames_of_a_core(tmp_path: Path) -> None:
    assert why_not("cuda:0") is None
    paths = []
    for name, options in (GPU_FILMS | CORES_FILMS).items():
        frames, path = film(40, options.get("size", (96, 128))), tmp_path / f"{name}.mp4"
        others = {key: value for key, value in options.items() if key != "size"}
        paths.append(write_clip(path, frames=frames, sound=None, **others))
    turn(paths[-1], 90)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        results = pool.apply(decoded_by_gpu, (paths,))
    for path, (frames, by_gpu) in zip([*paths, *paths], results, strict=True):
        assert np.array_equal(frames, load_clip(path, audio=False).frames), path
        assert by_gpu == (path.stem in GPU_FILMS), path


@needs_gpu
def test_clips_decoded_ahead_by_a_gpu_are_those_of_the_cores(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Damaged ones too, except that a GPU says nothing of damaged pictures."""
    paths = [write_clip(tmp_path / f"{i}.mp4", frames=film(30 + i, (96 + 32 * (i % 3), 128))) for i in range(11)]
    (tmp_path / "no.mp4").write_bytes(b"no film")
    paths[5:5] = [tmp_path / "no.mp4", tmp_path / "missing.mp4"]
    items = [Item(line, Record(path.stem, str(path), "?", None), path) for line, path in enumerate(paths)]
    loader = ClipLoader(HumanOmniProcessor.from_pretrained(tiny_model_dir), "video_audio")
    expected, *others = [list(decode_ahead(items, loader, 2, 4, gpu)) for gpu in (None, 0)]
    for item, clip, other in zip(items, expected, *others, strict=True):
        if isinstance(clip, Failure):
            assert clip == other
        else:
            assert torch.equal(clip.pixels, other.pixels), item
            assert torch.equal(clip.mel, other.mel), item


@needs_gpu
@pytest.mark.slow
def test_predictions_do_not_hang_on_who_decodes(
    repo: Path, tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path
) -> None:
    """Slow: two programs that compile."""
    written = []
    for flag in ([], ["--gpu_decoding"]):
        output = tmp_path / str(len(flag))
        paths = ["--model_path", tiny_model_dir, "--input_jsonl", toy_world_dir / "test.jsonl", "--output_dir", output]
        subprocess.run([sys.executable, repo / "inference_batch.py", *paths, *flag], check=True, timeout=300)
        written.append((output / "test.jsonl").read_bytes())
    assert written[0] == written[1]


def logged(run: Path, name: str) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]
