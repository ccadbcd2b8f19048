"""Comparisons with gradients: the SFT batches and one GRPO step, in float32 without dropout."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from humanomni.conversion import LEGACY_FOLDER
from humanomni.modeling import PARTS
from humanomni.parity.golden import GoldenSet
from humanomni.prompts import EMOTION_QUESTION
from humanomni.training.clips import ClipLoader
from humanomni.training.data_mixing import DataSource, read_mixture
from humanomni.training.run import DEFAULT_PARTS
from humanomni.training.sft import SFTArguments, SFTCollator, SFTDataset
from humanomni.weight_files import read_json

LOSS, GRADIENT, LOGITS, LOG_PROBS, ADVANTAGES = 1e-4, 1e-3, 2e-3, 2e-3, 1e-5
# Relative differences mean nothing for gradients of about zero.
_SMALLEST_NORM = 1e-6

GRPO_PARTS = tuple(part for part in PARTS if part not in ("vision_tower", "audio_tower"))


def check_sft(golden: GoldenSet) -> None:
    """Ids, labels, gate text, loss and gradient norms of SFT, through the data set and collator that train."""
    numbers, arrays, table = golden.numbers("sft"), golden.arrays("sft"), golden.table
    if numbers is None:
        table.not_checked("all", "sft.json is not there")
        return
    if any(golden.clip(record["video"]) is None for record in numbers["records"]):
        table.not_checked("all", "needs --clips")
        return
    samples, collate = _sft_samples(golden, numbers["records"])
    for index, (sample, wanted) in enumerate(zip(samples, numbers["samples"], strict=True)):
        batch = collate([sample])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        kept = [golden.is_kept(ids, place) for place in range(len(ids))]
        table.equal(f"ids of sample {index}", golden.collapse(ids), wanted["input_ids"])
        ours = [label for label, keep in zip(labels, kept, strict=True) if keep]
        table.equal(f"labels of sample {index}", ours, wanted["labels"])
        table.equal(f"gate ids of sample {index}", batch["gate_input_ids"][0].tolist(), wanted["bert_input_ids"])
    for name, wanted in numbers["batches"].items():
        with table.section(name):
            batch = collate([samples[index] for index in wanted["sample_indices"]])
            del batch["problems"], batch["ids"]
            model = golden.fresh_model()
            model.set_trainable(DEFAULT_PARTS)
            output = model.eval()(**batch)
            table.close("loss", output.loss.item(), wanted["loss"], LOSS, relative=True)
            golden_logits = arrays.get(f"{name}.logits_last16")
            if golden_logits is None:
                table.not_checked("logits", "not stored")
            else:
                # Rows that are padded end in positions that nothing reads.
                whole = batch["labels"][:, -1] != -100
                last = output.logits[whole, -golden_logits.shape[1] :].detach()
                table.close("logits of unpadded rows", last, golden_logits[whole.numpy()], LOGITS)
            output.loss.backward()
            _compare_gradients(golden, model, wanted)


def check_grpo(golden: GoldenSet) -> None:
    """Prompt, log-probs, KL, advantages, loss and gradient norms of one step over fixed completions and rewards.

    The loss is written out here from the release's formula; what trains is TRL's, which has tests of its own.
    """
    numbers, arrays, table = golden.numbers("grpo"), golden.arrays("grpo"), golden.table
    if numbers is None:
        table.not_checked("all", "grpo.json is not there")
        return
    prompt, gate = golden.prompt(EMOTION_QUESTION, "authors_grpo")
    table.equal("prompt ids", golden.sentinel_ids(prompt), numbers["prompt_input_ids"])
    table.equal("gate ids", gate["gate_input_ids"][0].tolist(), numbers["bert_input_ids"][0])
    rewards, group = torch.tensor(numbers["rewards"]), numbers["num_generations"]
    by_group = rewards.view(-1, group)
    spread = by_group.std(dim=1, keepdim=True) + 1e-4
    advantages = ((by_group - by_group.mean(dim=1, keepdim=True)) / spread).flatten()
    table.close("advantages", advantages, numbers["advantages"], ADVANTAGES)
    clips = [golden.clip(f"{name}.mp4") for name in numbers["clips"]]
    if any(clip is None for clip in clips):
        table.not_checked("log-probs, loss, gradient norms", "need --clips")
        return

    rows = torch.arange(len(clips)).repeat_interleave(group)
    completions, mask = torch.tensor(numbers["completion_ids"]), torch.tensor(numbers["completion_mask"])
    prompts = golden.processor.text_inputs([prompt] * len(rows))
    inputs = {
        "input_ids": torch.cat([prompts["input_ids"], completions], dim=1),
        "attention_mask": torch.cat([prompts["attention_mask"], mask], dim=1),
        "pixel_values": torch.stack([golden.pixels(clip.frames, "pad") for clip in clips if clip])[rows],
        "input_features": torch.stack([golden.processor.mel(clip.waveform) for clip in clips if clip])[rows],
        **{name: value.expand(len(rows), -1) for name, value in gate.items()},
    }
    model, reference = golden.fresh_model(), golden.fresh_model()
    reference.model.language_model.norm.weight.data *= 0.9  # as the golden data's reference_model says
    model.set_trainable(GRPO_PARTS)
    log_probs = _log_probs(model.eval(), inputs, completions)
    with torch.no_grad():
        reference_log_probs = _log_probs(reference, inputs, completions)
    distance = reference_log_probs - log_probs
    kl = distance.exp() - distance - 1
    # What follows a completion's end is masked.
    kept = mask.bool()
    for name, ours in (("per_token_logps", log_probs), ("ref_per_token_logps", reference_log_probs)):
        table.close(name, ours[kept].detach(), arrays[name][kept.numpy()], LOG_PROBS)
    table.scaled("per_token_kl", kl[kept].detach(), arrays["per_token_kl"][kept.numpy()], LOG_PROBS)
    gain = (log_probs - log_probs.detach()).exp() * advantages[:, None]
    loss = (-(gain - numbers["beta"] * kl) * mask).sum(dim=1) / mask.sum(dim=1)
    table.close("loss", loss.mean().item(), numbers["loss"], LOSS, relative=True)
    mean_kl = ((kl * mask).sum(dim=1) / mask.sum(dim=1)).mean()
    table.close("mean KL", mean_kl.item(), numbers["mean_kl"], LOSS, relative=True)
    loss.mean().backward()
    _compare_gradients(golden, model, numbers)


def _sft_samples(golden: GoldenSet, records: list[dict[str, Any]]) -> tuple[list[Any], SFTCollator]:
    processor = type(golden.processor).from_pretrained(golden.native)
    processor.prompt_style, processor.frame_fit = "authors_sft", "pad"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "sft.jsonl"
        data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        arguments = SFTArguments(output_dir=folder, use_cpu=True)
        mixture = read_mixture([DataSource(data)], golden.clips, seed=0)
        clips = ClipLoader(processor, "video_audio")
        dataset = SFTDataset(mixture, processor, clips, arguments)
        samples = [dataset[index] for index in range(len(dataset))]
    return samples, SFTCollator(processor, clips)


def _log_probs(model: Any, inputs: Mapping[str, Tensor], completions: Tensor) -> Tensor:
    """Log-probs [rows, C] of the completions' tokens."""
    length = completions.shape[1]
    logits = model(**inputs, logits_to_keep=length + 1).logits[:, :-1]
    return logits.log_softmax(dim=-1).gather(2, completions.unsqueeze(2)).squeeze(2)


def _compare_gradients(golden: GoldenSet, model: Any, wanted: dict[str, Any]) -> None:
    gradients = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    keys = read_json(golden.native / LEGACY_FOLDER / "keys.json")
    norms = {key: gradients[name] for key, name in keys.items() if name in gradients and key != "lm_head.weight"}
    by_module = wanted["grad_norm_by_module"]
    ours = {
        module: sum(norm**2 for key, norm in norms.items() if key.startswith(f"{module}.")) ** 0.5
        for module in by_module
    }
    _relative(golden, "gradient norms by module", ours, by_module)
    if by_parameter := wanted.get("grad_norm_by_param"):
        # Biases before a norm and the like have no gradient but rounding.
        named = {key if key in norms else f"model.{key}": norm for key, norm in by_parameter.items()}
        named = {key: norm for key, norm in named.items() if norm > _SMALLEST_NORM}
        _relative(golden, "gradient norms by parameter", {key: norms[key] for key in named}, named)
    total = sum(norm**2 for norm in norms.values()) ** 0.5
    golden.table.close("gradient norm", total, wanted["grad_norm_total"], GRADIENT, relative=True)


def _relative(golden: GoldenSet, quantity: str, ours: dict[str, float], wanted: dict[str, float]) -> None:
    golden.table.close(quantity, [ours[key] for key in wanted], list(wanted.values()), GRADIENT, relative=True)
