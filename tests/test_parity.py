"""The authors' numbers: a legacy checkpoint, converted, must compute what their code computed.

Golden data: tests/data/golden (synthetic inputs) and, where it lies beside the checkout, ../shared/golden (real clips).
Tolerances are those that the golden data's own description suggests.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from humanomni.media import load_clip
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor

SYNTHETIC = Path(__file__).parent / "data/golden/synthetic"
CASES = json.loads((SYNTHETIC / "synthetic.json").read_text())["cases"]
CLIPS = ["01", "02", "03"]


@pytest.fixture(scope="module")
def golden_model(golden_checkpoint: Path) -> HumanOmniForConditionalGeneration:
    return HumanOmniForConditionalGeneration.from_pretrained(golden_checkpoint).eval()


@pytest.fixture(scope="module")
def processor(golden_checkpoint: Path) -> HumanOmniProcessor:
    return HumanOmniProcessor.from_pretrained(golden_checkpoint)


def synthetic_pixels(seed: int, size: int = 48) -> np.ndarray:
    """The formula in synthetic.json: [8, 3, S, S], already normalised."""
    t, c, y, x = np.ogrid[:8, :3, :size, :size]
    y, x = y / size, x / size
    carrier = np.sin(2 * np.pi * ((1 + seed) * x + (0.5 + 0.3 * c) * y + 0.11 * t * (1 + c)) + 0.7 * seed)
    return (carrier * np.cos(2 * np.pi * (x * y * (1 + 0.2 * t) + 0.1 * c))).astype(np.float32)


def synthetic_waveform(seed: int) -> np.ndarray:
    """The formula in synthetic.json: 3 s at 16 kHz."""
    n = np.arange(48_000) / 16_000
    voice = 0.4 * np.sin(2 * np.pi * (180 + 60 * seed + 40 * n) * n)
    return (voice + 0.1 * np.sin(2 * np.pi * (900 - 90 * n) * n) * np.exp(-n)).astype(np.float32)


def largest_difference(ours: torch.Tensor, golden: np.ndarray) -> float:
    return float(np.abs(ours.detach().numpy() - golden).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_synthetic_case(
    case: dict, golden_model: HumanOmniForConditionalGeneration, processor: HumanOmniProcessor
) -> None:
    golden = np.load(SYNTHETIC / "synthetic.npz")
    golden = {key.split(".", 1)[1]: golden[key] for key in golden.files if key.startswith(case["name"] + ".")}
    pixels = torch.from_numpy(synthetic_pixels(case["seed"]))[None]
    mel = processor.mel(synthetic_waveform(case["seed"]))[None]
    gate = processor.gate_inputs([case["question"]])
    prompt = processor.prompt(case["question"])
    text = processor.text_inputs([prompt])

    assert prompt == case["prompt"]
    assert gate["gate_input_ids"][0].tolist() == case["bert_ids"]
    assert text["input_ids"].shape[1] == case["sequence_length"]
    assert largest_difference(mel[0, :, ::100], golden["mel_every100"]) < 1e-4

    core = golden_model.model
    with torch.no_grad():
        patches = core.encode_frames(pixels)
        weights = core.gate_weights(**gate)
        fused = core.video_tokens(patches, **gate)[0]
        audio = core.audio_tokens(core.encode_audio(mel))[0]
        grid = patches.transpose(2, 3).unflatten(3, (6, 6))
        logits = golden_model(**text, pixel_values=pixels, input_features=mel, **gate).logits[0]
    assert largest_difference(patches[0, 0], golden["vision_features_frame0"]) < 1e-4
    assert largest_difference(weights[0], golden["gate_probs"]) < 1e-5
    for branch in ("video", "body"):
        tokens = getattr(core.projector, branch)(grid)[0]
        assert largest_difference(tokens[::8], golden[f"{branch}_branch_every8"]) < 1e-4
    assert largest_difference(fused, golden["fused_tokens"]) < 1e-4
    assert largest_difference(audio[::10], golden["audio_tokens_every10"]) < 1e-4
    assert largest_difference(logits[-4:], golden["logits_last4"]) < 2e-3

    generated = golden_model.generate(
        **text,
        pixel_values=pixels,
        input_features=mel,
        **gate,
        max_new_tokens=len(case["greedy_ids"]),
        do_sample=False,
    )
    assert generated[0, text["input_ids"].shape[1] :].tolist() == case["greedy_ids"]


@pytest.mark.parametrize("clip", CLIPS)
def test_real_clip(
    clip: str,
    shared_dir: Path,
    golden_model: HumanOmniForConditionalGeneration,
    processor: HumanOmniProcessor,
) -> None:
    folder = shared_dir / "golden/golden/small-A"
    golden = np.load(folder / f"clip_{clip}.npz")
    cases = json.loads((folder / f"clip_{clip}.json").read_text())["cases"]
    decoded = load_clip(shared_dir / f"clips/{clip}.mp4")

    processor.frame_fit = "squash"
    squashed = processor.pixel_values(decoded.frames)
    processor.frame_fit = "pad"
    padded = processor.pixel_values(decoded.frames)
    for fit, pixels in (("pad", padded), ("squash", squashed)):
        if f"pixel_values_{fit}" in golden.files:
            assert largest_difference(pixels, golden[f"pixel_values_{fit}"]) < 1e-5
        if f"pixel_values_{fit}_frame0" in golden.files:
            assert largest_difference(pixels[0], golden[f"pixel_values_{fit}_frame0"]) < 1e-5
    stored = golden["waveform"] if "waveform" in golden.files else golden["waveform_first_4096"]
    assert largest_difference(torch.from_numpy(decoded.waveform[: len(stored)]), stored) < 1e-6
    mel = processor.mel(decoded.waveform)
    if "input_features" in golden.files:
        assert largest_difference(mel, golden["input_features"]) < 1e-4

    for name, pixels in (("pad", padded), ("infer", squashed), ("short", padded)):
        case = cases[name]
        prompt = case["prompt"]
        gate = processor.gate_inputs([case["bert_text"]])
        inputs = {
            **processor.text_inputs([prompt]),
            **gate,
            "pixel_values": pixels[None],
            "input_features": mel[None],
        }
        assert inputs["input_ids"].shape[1] == case["total_seq_len"]
        with torch.no_grad():
            logits = golden_model(**inputs).logits[0]
        assert largest_difference(logits[-16:], golden[f"{name}.logits_last16"]) < 2e-3, name
        steps = len(case["greedy_ids"])
        generated = golden_model.generate(**inputs, max_new_tokens=steps, do_sample=False)
        assert generated[0, -steps:].tolist() == case["greedy_ids"], name
