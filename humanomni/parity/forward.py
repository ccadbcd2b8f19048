"""Comparisons without gradients: media, towers, branches, gate, tokens, logits, greedy ids."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from humanomni.media_timeline import sample_frame_indices
from humanomni.parity.golden import GoldenSet

# Of the golden data's own description.
PIXELS, MEL, LOGITS = 1e-5, 1e-4, 2e-3
# Our decoders are the authors' decord: frames and waveforms are theirs up to the rounding of a stored number.
FRAME_MEAN, WAVEFORM = 1e-2, 1e-6

# The reference's defect: the data's tags are added a second time.
_DUPLICATED = "readme_dup"
_SUBSAMPLED = re.compile(r"(.+?)(_frame0)?(?:_every(\d+))?")


def check_units(golden: GoldenSet) -> None:
    """Frame sampling, squaring and normalising of images, the mel of a tone."""
    numbers, arrays, table = golden.numbers("units"), golden.arrays("units"), golden.table
    if numbers is None:
        table.not_checked("units", "units.json is not there")
        return
    cases = numbers["frame_sample_uniform"]
    ours = [sample_frame_indices(case["duration"], case["num_frames"]) for case in cases]
    table.equal("frame sampling", ours, [case["indices"] for case in cases])
    for fit, suffix in (("pad", ""), ("squash", "_squash")):
        for name in [name for name in arrays if re.fullmatch(r"img\d+", name)]:
            pixels = golden.pixels(arrays[name][None], fit)[0]
            table.close(f"pixels of {name}, {fit}", pixels, arrays[f"{name}_pixels{suffix}"], PIXELS)
    for text in numbers["placeholder_tokenise"]:
        table.equal(f"tokens of {text['text'][:20]!r}", golden.sentinel_ids(text["text"]), text["ids"])
    if "tone_wave" in arrays:
        mel = golden.processor.mel(arrays["tone_wave"])
        name = next(name for name in arrays if name.startswith("tone_mel"))
        table.close("mel of a tone", mel[:, : arrays[name].shape[1]], arrays[name], MEL)
    silence = golden.processor.mel(None)
    table.close("mel of silence", [silence.min(), silence.max()], [-1.5, -1.5], MEL)


def check_synthetic(golden: GoldenSet) -> None:
    """The cases whose inputs are formulas."""
    numbers, arrays, table = golden.numbers("synthetic"), golden.arrays("synthetic"), golden.table
    if numbers is None:
        table.not_checked("synthetic", "synthetic.json is not there")
        return
    for case in numbers["cases"]:
        with table.section(case["name"]):
            pixels = torch.from_numpy(_pixels(case["seed"], numbers["inputs"]["image_size"]))
            mel = golden.processor.mel(_waveform(case["seed"]))
            prompt, gate = golden.prompt(case["question"], "authors_inference")
            table.equal("prompt ids", golden.sentinel_ids(prompt), case["input_ids"])
            table.equal("gate ids", gate["gate_input_ids"][0].tolist(), case["bert_ids"])
            inputs = _inputs(golden, prompt, gate, pixels, mel)
            prefix = case["name"] + "."
            wanted = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
            _compare(golden, wanted, inputs)
            _greedy(golden, inputs, case["greedy_ids"])


def check_clip(golden: GoldenSet, name: str) -> None:
    """A real clip: its decoding, and the model's cases on it."""
    numbers, arrays, table = golden.numbers(name) or {}, golden.arrays(name), golden.table
    clip = golden.clip(numbers["clip"])
    media = {key: torch.from_numpy(arrays[key]) for key in arrays if key.startswith(("pixel_values_", "input_feat"))}
    if "waveform" in arrays and "input_features" in arrays:
        mel = golden.processor.mel(arrays["waveform"])
        table.close("mel from the stored waveform", mel, arrays["input_features"], MEL)
    else:
        table.not_checked("mel from the stored waveform", "the waveform is not stored whole")
    if clip is None or clip.frames is None or clip.waveform is None:
        table.not_checked("own decode", f"--clips has no {numbers['clip']}, or not with picture and sound")
    else:
        _check_decode(golden, numbers, arrays, clip)
        for fit in ("pad", "squash"):
            media[f"pixel_values_{fit}"] = golden.pixels(clip.frames, fit)
        media["input_features"] = golden.processor.mel(clip.waveform)
    for case_name, case in numbers["cases"].items():
        with table.section(case_name):
            pixels, stored_mel = media.get(case["pixels"]), media.get("input_features")
            if case_name == _DUPLICATED:
                table.not_checked("all", "the reference doubles the data's tags; no style here does")
            elif pixels is None or stored_mel is None:
                table.not_checked("all", f"{case['pixels']} or the mel is not stored: give --clips")
            else:
                _check_case(golden, case_name, case, numbers, arrays, pixels, stored_mel)


def check_batch(golden: GoldenSet) -> None:
    """Batches give, row by row, what the single samples gave; the authors' own unequal batch does not."""
    numbers, table = golden.numbers("batch"), golden.table
    if numbers is None:
        table.not_checked("batch", "batch.json is not there")
        return
    for name, batch in numbers.items():
        clips = [golden.clip(f"{clip}.mp4") for clip in batch["clips"]]
        with table.section(name.removesuffix("_REFERENCE_BUG")):
            if any(clip is None for clip in clips):
                table.not_checked("greedy ids", "needs --clips")
                continue
            prompts = [golden.prompt(question, "authors_inference")[0] for question in batch["instructs"]]
            inputs = {
                **golden.processor.text_inputs(prompts),
                **golden.processor.gate_inputs(batch["instructs"]),
                "pixel_values": torch.stack([golden.pixels(clip.frames, "squash") for clip in clips if clip]),
                "input_features": torch.stack([golden.processor.mel(clip.waveform) for clip in clips if clip]),
            }
            wanted = batch["single_greedy_ids"]
            new = golden.model.generate(**inputs, max_new_tokens=max(map(len, wanted)), do_sample=False)
            for row, ids in enumerate(wanted):
                ours = new[row, inputs["input_ids"].shape[1] :].tolist()
                table.equal(f"greedy ids of row {row}", ours[: len(ids)], ids)


def _check_decode(golden: GoldenSet, numbers: dict[str, Any], arrays: Mapping[str, np.ndarray], clip: Any) -> None:
    table, video = golden.table, numbers["video"]
    length = video["duration_frames"]
    by_count = video.get("frame_indices_by_n", {})
    ours = [sample_frame_indices(length, int(count)) for count in by_count]
    table.equal("frame indices", ours, list(by_count.values()))
    table.close("frames (mean colours)", clip.frames.mean(axis=(1, 2)), video["raw_frames_mean_rgb"], FRAME_MEAN)
    for fit in ("pad", "squash"):
        pixels = golden.pixels(clip.frames, fit).numpy()
        name = f"pixel_values_{fit}"
        if name in arrays:
            table.close(f"pixels, {fit}", pixels, arrays[name], PIXELS)
        if f"{name}_frame0" in arrays:
            table.close(f"pixels of frame 0, {fit}", pixels[0], arrays[f"{name}_frame0"], PIXELS)
        statistics = [pixels.mean(dtype=np.float64), pixels.std(dtype=np.float64), pixels.min(), pixels.max()]
        table.close(
            f"pixel statistics, {fit}", statistics, [video[name][key] for key in ("mean", "std", "min", "max")], PIXELS
        )
    for name in ("waveform", "waveform_first_4096"):
        if name in arrays:
            table.close("waveform, own decode", clip.waveform[: len(arrays[name])], arrays[name], WAVEFORM)
    mel = golden.processor.mel(clip.waveform).numpy()
    if "input_features" in arrays:
        table.close("mel, own decode", mel, arrays["input_features"], MEL)
    stored = numbers["audio"]["input_features"]
    statistics = [mel.mean(dtype=np.float64), mel.std(dtype=np.float64)]
    table.close("mel statistics, own decode", statistics, [stored["mean"], stored["std"]], MEL)


def _check_case(
    golden: GoldenSet,
    name: str,
    case: dict[str, Any],
    numbers: dict[str, Any],
    arrays: Mapping[str, np.ndarray],
    pixels: Tensor,
    mel: Tensor,
) -> None:
    prompt, gate = golden.prompt(case["instruct"], "authors_inference")
    golden.table.equal("prompt ids", golden.sentinel_ids(prompt), case["input_ids"])
    golden.table.equal("gate ids", gate["gate_input_ids"][0].tolist(), case["bert_input_ids"])
    inputs = _inputs(golden, prompt, gate, pixels, mel)
    wanted = {key.removeprefix(f"{name}."): value for key, value in arrays.items() if key.startswith(f"{name}.")}
    if numbers.get("intermediates_case") == name:
        wanted |= {key.removeprefix("mid."): value for key, value in arrays.items() if key.startswith("mid.")}
    _compare(golden, wanted, inputs)
    _greedy(golden, inputs, case["greedy_ids"])


def _inputs(
    golden: GoldenSet, prompt: str, gate: Mapping[str, Tensor], pixels: Tensor, mel: Tensor
) -> dict[str, Tensor]:
    text = golden.processor.text_inputs([prompt])
    return {**text, **gate, "pixel_values": pixels[None], "input_features": mel[None]}


def _greedy(golden: GoldenSet, inputs: Mapping[str, Tensor], wanted: list[int]) -> None:
    new = golden.model.generate(**inputs, max_new_tokens=len(wanted), do_sample=False)
    golden.table.equal("greedy ids", new[0, inputs["input_ids"].shape[1] :].tolist(), wanted)


def _compare(golden: GoldenSet, wanted: Mapping[str, np.ndarray], inputs: dict[str, Tensor]) -> None:
    """Compares stored arrays, which may be of frame 0 only or of every k-th row, with the model's."""
    ours = intermediates(golden.model, inputs)
    for name, array in wanted.items():
        if last := re.fullmatch(r"logits_last(\d+)", name):
            golden.table.close(name, ours["logits"][-int(last[1]) :], array, LOGITS)
            continue
        base, frame, step = _SUBSAMPLED.fullmatch(name).groups()  # type: ignore[union-attr] # matches any name
        if base not in ours:
            golden.table.not_checked(name, "no comparison is known for this array")
            continue
        tensor = ours[base][0] if frame else ours[base]
        if step and base == "mel":
            tensor = tensor[..., :: int(step)]
        elif step:
            tensor = tensor[:: int(step)]
        if tensor.numel() == array.size:
            tensor = tensor.reshape(array.shape)  # batch and frame axes are stored in several ways
        golden.table.scaled(name, tensor, array)


@torch.no_grad()
def intermediates(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one sample's forward pass computes on its way, by the golden data's names, without a batch axis."""
    core, found = model.model, {}
    media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    branches = core.projector
    modules = {
        "proj_s1_video": branches.video.stage1,
        "sampler": branches.video.sampler,
        "proj_s2_video": branches.video.stage2,
        "projector_video": branches.video,
        "projector_body": branches.body,
        "projector_face": branches.face.mlp,
        "face_pooled": branches.face,
        "fused_tokens": branches,
        "bert_last_hidden": core.bert,
        "gate_logits": core.gate,
        "vision_features": core.vision_tower,
        "audio_tower_last_hidden": core.audio_tower,
        "audio_tokens": core.audio_projector,
    }

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            found[name] = getattr(output, "last_hidden_state", output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        found["inputs_embeds"] = core.embed(inputs["input_ids"], **media)
    finally:
        for handle in handles:
            handle.remove()
    frames = inputs["pixel_values"].shape[1]
    found["proj_sampler_video"] = F.silu(found.pop("sampler"))
    found["gate_probs"] = found["gate_logits"].softmax(dim=-1)
    states = found["audio_tower_last_hidden"]
    found["audio_pooled"] = F.avg_pool1d(states.transpose(1, 2), model.config.audio_pool).transpose(1, 2)
    found["projector_face"] = found["projector_face"].flatten(1, 2)
    found["face_pooled"] = found["face_pooled"].unflatten(1, (frames, -1)).flatten(0, 1)
    for name in ("projector_video", "projector_body", "fused_tokens", "audio_tokens", "gate_probs"):
        found[name] = found[name][0]
    found |= {
        "fused_video_tokens": found["fused_tokens"],
        "video_branch": found["projector_video"],
        "body_branch": found["projector_body"],
        "face_branch": found["projector_face"],
        "mel": inputs["input_features"][0],
        "logits": model(**inputs).logits[0],
    }
    return found


def _pixels(seed: int, size: int) -> np.ndarray:
    t, c, y, x = np.ogrid[:8, :3, :size, :size]
    y, x = y / size, x / size
    carrier = np.sin(2 * np.pi * ((1 + seed) * x + (0.5 + 0.3 * c) * y + 0.11 * t * (1 + c)) + 0.7 * seed)
    return (carrier * np.cos(2 * np.pi * (x * y * (1 + 0.2 * t) + 0.1 * c))).astype(np.float32)


def _waveform(seed: int) -> np.ndarray:
    n = np.arange(48_000) / 16_000
    voice = 0.4 * np.sin(2 * np.pi * (180 + 60 * seed + 40 * n) * n)
    return (voice + 0.1 * np.sin(2 * np.pi * (900 - 90 * n) * n) * np.exp(-n)).astype(np.float32)
