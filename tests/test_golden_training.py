"""The authors' training numbers through the trainers that train: SFT and one GRPO step over fixed completions.

Golden data: ../shared/golden, made by their code in float32 without dropout. Tolerances are those of its description.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from fgce.client import FgceClient
from humanomni.conversion import LEGACY_FOLDER
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import EMOTION_QUESTION
from humanomni.training.clips import ClipLoader
from humanomni.training.data_mixing import DataSource, read_mixture
from humanomni.training.grpo import GRPOArguments, load_prompts
from humanomni.training.grpo_trainer import HumanOmniGRPOTrainer
from humanomni.training.judge_watch import JudgeWatch
from humanomni.training.rewards import make_rewards
from humanomni.training.run import parse_arguments
from humanomni.training.sft import SFTArguments, SFTCollator, SFTDataset, SFTTrainer

LOSS, GRADIENT, LOG_PROBS = 1e-4, 1e-3, 2e-3
# Biases before a norm have no gradient but rounding, of which relative differences mean nothing.
SMALLEST_NORM = 1e-6
# The gradients are looked at before the optimizer's step, and nothing of the machine changes them.
PLAIN = ["--use_cpu", "--bf16", "false", "--gradient_checkpointing", "false", "--deepspeed", "", "--report_to", "none"]
PLAIN += ["--dataloader_num_workers", "0", "--max_steps", "1", "--save_strategy", "no", "--max_grad_norm", "1e9"]


@pytest.fixture(autouse=True)
def _at_the_root(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo)  # where the paths in the configurations start


class GradientNorms(TrainerCallback):
    """Keeps the norm of each parameter's gradient as the optimizer is about to see it."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module = None, **_: Any) -> None:
        self.norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}

    def agree_with(self, wanted: dict[str, Any], checkpoint: Path) -> None:
        """By parameter, where the golden data has them, by module, and in all."""
        keys = json.loads((checkpoint / LEGACY_FOLDER / "keys.json").read_text())
        norms = {key: self.norms[name] for key, name in keys.items() if name in self.norms and key != "lm_head.weight"}
        by_module = {
            module: sum(norm**2 for key, norm in norms.items() if key.startswith(f"{module}.")) ** 0.5
            for module in wanted["grad_norm_by_module"]
        }
        assert by_module == pytest.approx(wanted["grad_norm_by_module"], rel=GRADIENT)
        named = {
            key if key in norms else f"model.{key}": norm
            for key, norm in wanted.get("grad_norm_by_param", {}).items()
            if norm > SMALLEST_NORM
        }
        assert {key: norms[key] for key in named} == pytest.approx(named, rel=GRADIENT)
        assert sum(norm**2 for norm in norms.values()) ** 0.5 == pytest.approx(wanted["grad_norm_total"], rel=GRADIENT)


def model_and_processor(checkpoint: Path, style: str) -> tuple[Any, HumanOmniProcessor]:
    model = HumanOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    for module in model.modules():  # as the golden data's mode says
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    processor = HumanOmniProcessor.from_pretrained(checkpoint)
    processor.prompt_style, processor.frame_fit = style, "pad"
    return model, processor


def sentinels(processor: HumanOmniProcessor, ids: list[int]) -> list[int]:
    """Expanded ids as the authors write them: one sentinel a medium."""
    names = dict(zip(processor.placeholder_ids, (-201, -202, -200), strict=True))
    kept = [one for before, one in zip([None, *ids], ids, strict=False) if one not in names or one != before]
    return [names.get(one, one) for one in kept]


@pytest.mark.parametrize("name", ["single", "batch_right_padded"])
def test_sft(name: str, shared_dir: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    golden = json.loads((shared_dir / "golden/golden/small-A/sft.json").read_text())
    wanted = golden["batches"][name]
    model, processor = model_and_processor(golden_checkpoint, "authors_sft")
    data = tmp_path / "sft.jsonl"
    data.write_text("".join(json.dumps(golden["records"][i]) + "\n" for i in wanted["sample_indices"]))
    flags = ["--config", "configs/0.5B/sft.yaml", "--output_dir", str(tmp_path), *PLAIN]
    rows = str(len(wanted["sample_indices"]))
    flags += ["--per_device_train_batch_size", rows, "--records_per_step", rows]
    args = parse_arguments(SFTArguments, flags)
    model.set_trainable(args.trainable_parts)
    records = read_mixture([DataSource(data)], shared_dir / "clips", seed=0)
    clips = ClipLoader(processor, "video_audio")
    samples = SFTDataset(records, processor, clips, args)
    for sample, index in zip(samples, wanted["sample_indices"], strict=True):
        assert sample.problem is None
        ids = sample.prompt_ids + sample.target_ids
        assert sentinels(processor, ids) == golden["samples"][index]["input_ids"]
        learnt = [label for label in golden["samples"][index]["labels"] if label != -100]
        assert sample.target_ids == learnt

    norms = GradientNorms()
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=SFTCollator(processor, clips),
        train_dataset=samples,
        processing_class=processor,
        callbacks=[norms],
    )
    output = trainer.train()
    assert output.training_loss == pytest.approx(wanted["loss"], rel=LOSS)
    norms.agree_with(wanted, golden_checkpoint)


class FixedCompletions(HumanOmniGRPOTrainer):
    """A step over given completions; keeps what the trainer made of them."""

    completions: list[list[int]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.log_probs: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        super().__init__(*args, **kwargs)

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        return self.completions, None

    def _prepare_inputs(self, batch: Any) -> Any:
        self.scored = super()._prepare_inputs(batch)
        return self.scored

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        scored = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self.log_probs["reference" if model is self.ref_model else "policy"] = scored[0].detach()
        return scored

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        self.losses.append(loss.item())
        return loss


def test_grpo_as_the_authors_preset_trains(shared_dir: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    golden = json.loads((shared_dir / "golden/golden/small-A/grpo.json").read_text())
    arrays = np.load(shared_dir / "golden/golden/small-A/grpo.npz")
    group = golden["num_generations"]
    model, processor = model_and_processor(golden_checkpoint, "authors_grpo")
    flags = ["--config", "configs/0.5B/authors.yaml", "--output_dir", str(tmp_path), *PLAIN, "--logging_steps", "1"]
    flags += ["--num_generations", str(group), "--per_device_train_batch_size", str(len(golden["rewards"]))]
    flags += ["--records_per_step", str(len(golden["clips"]))]
    args = parse_arguments(GRPOArguments, flags)
    args.generation_kwargs = {"suppress_tokens": processor.placeholder_ids}
    assert (
        sentinels(processor, processor.text_inputs([processor.prompt(EMOTION_QUESTION)])["input_ids"][0].tolist())
        == (golden["prompt_input_ids"])
    )
    records = [
        {
            "video": f"{clip}.mp4",
            "conversations": [{"from": "human", "value": EMOTION_QUESTION}, {"from": "gpt", "value": truth}],
        }
        for clip, truth in zip(golden["clips"], golden["solutions"], strict=True)
    ]
    data = tmp_path / "grpo.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    model.set_trainable(args.trainable_parts)
    norms = GradientNorms()
    trainer = FixedCompletions(
        model=model,
        args=args,
        reward_funcs=make_rewards(args.rewards, FgceClient("http://127.0.0.1:9")),
        train_dataset=load_prompts(read_mixture([DataSource(data)], shared_dir / "clips", seed=0), args.modality),
        processing_class=processor,
        clips=ClipLoader(processor, args.modality),
        judge_watch=JudgeWatch(args.judge_window, args.judge_max_missing),
        callbacks=[norms],
    )
    lengths = [sum(row) for row in golden["completion_mask"]]
    by_clip = defaultdict(list)
    for row, (ids, length) in enumerate(zip(golden["completion_ids"], lengths, strict=True)):
        by_clip[golden["clips"][row // group]].append(ids[:length])
    trainer.ref_model.model.language_model.norm.weight.data *= 0.9  # as the golden data's reference_model says
    order = [Path(row["prompt"][0]["content"][0]["video"]).stem for row in first_prompts(trainer)]
    trainer.completions = [ids for clip in dict.fromkeys(order) for ids in by_clip[clip]]
    trainer.train()

    (log,) = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert log["reward"] == pytest.approx(golden["metrics"]["reward"])
    assert log["rewards/accuracy/mean"] == pytest.approx(golden["metrics"]["rewards/accuracy_reward"])
    assert log["rewards/format/mean"] == pytest.approx(golden["metrics"]["rewards/format_reward"])
    ours = rows_by_completion(trainer.scored, processor)
    theirs = [tuple(ids[:length]) for ids, length in zip(golden["completion_ids"], lengths, strict=True)]
    rows = torch.tensor([ours[ids] for ids in theirs])
    assert trainer.scored["advantages"][rows].tolist() == pytest.approx(golden["advantages"], abs=1e-5)
    mask = np.array(golden["completion_mask"], dtype=bool)
    for name, key in (("policy", "per_token_logps"), ("reference", "ref_per_token_logps")):
        # The reference is scored before TRL shuffles the rows.
        place = rows if name == "policy" else torch.tensor([trainer.completions.index(list(ids)) for ids in theirs])
        assert np.abs(trainer.log_probs[name][place].numpy() - arrays[key])[mask].max() < LOG_PROBS
    assert trainer.losses == pytest.approx([golden["loss"]], rel=LOSS)
    norms.agree_with(golden, golden_checkpoint)


def first_prompts(trainer: HumanOmniGRPOTrainer) -> list[dict[str, Any]]:
    return list(next(iter(trainer.get_train_dataloader())))


def rows_by_completion(scored: dict[str, Any], processor: HumanOmniProcessor) -> dict[tuple[int, ...], int]:
    pairs = zip(scored["completion_ids"], scored["completion_mask"], strict=True)
    return {tuple(ids[mask.bool()].tolist()): row for row, (ids, mask) in enumerate(pairs)}
