"""Seconds and memory of an optimizer step of GRPO and of SFT, through the real trainers.

python benchmarks/train_bench.py --size 0.5B                    # both stages; 2 minutes on one H200
python benchmarks/train_bench.py --size 7B --stage grpo --profile
torchrun --nproc_per_node 2 benchmarks/train_bench.py --size 0.5B --stage grpo --sharding zero3

Several GPUs do the work of one each, so the time of one over theirs is the efficiency with which they scale.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import PartialState
from measure import Ceilings, Phases, profiled, synchronised_time
from roofline import Roofline
from torch import Tensor
from transformers import Trainer, TrainerCallback
from workload import SIZES, make_clips, make_model, make_processor, question_of, save_model, write_records

from fgce.client import FgceClient
from humanomni.configuration import HumanOmniConfig
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.training.clips import ClipLoader
from humanomni.training.data_mixing import DataSource, read_mixture
from humanomni.training.encoded_clips import EncodedClips, Towers
from humanomni.training.grpo import GRPOArguments, load_prompts
from humanomni.training.grpo_trainer import HumanOmniGRPOTrainer
from humanomni.training.judge_watch import JudgeWatch
from humanomni.training.model import compile_layers, load_model, prepare
from humanomni.training.rewards import make_rewards
from humanomni.training.sft import SFTArguments, SFTCollator, SFTDataset, SFTTrainer

PROMPT_TEXT_TOKENS = 100  # of GRPO, besides the media's
SFT_TEXT_TOKENS = 306
COMPLETION_TOKENS = 256
MODALITY = "video_audio"
CONFIGS = Path(__file__).parents[1] / "configs"
SHARDING: dict[str, dict[str, Any]] = {
    "none": {},
    "zero2": {"deepspeed": str(CONFIGS / "deepspeed/zero2.json")},
    "zero3": {"deepspeed": str(CONFIGS / "deepspeed/zero3.json")},
    "fsdp2": {"fsdp": "full_shard", "fsdp_config": str(CONFIGS / "fsdp2.json")},
}


@dataclass(frozen=True)
class Workload:
    """A row pair of the table: what one optimizer step works on, on each GPU."""

    prompts: int
    completions: int
    sft_rows: int = 32
    grpo_pass: int = 32
    sft_pass: int = 16
    gradient_checkpointing: bool = False


WORKLOADS = {
    "0.5B": Workload(prompts=4, completions=8),
    "7B": Workload(prompts=2, completions=4, grpo_pass=4, sft_pass=4, gradient_checkpointing=True),
}


class StepClock(TrainerCallback):
    """Times whole optimizer steps, data loading included, and profiles the last."""

    def __init__(self, profile: bool) -> None:
        self.seconds: list[float] = []
        self._begin = synchronised_time()
        self._profile = profile
        self._profiler: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = synchronised_time()
        self.seconds.append(now - self._begin)
        if state.global_step == 1:
            torch.cuda.reset_peak_memory_stats()
        if self._profile and state.global_step == state.max_steps - 1:
            self._profiler = profiled()
            self._profiler.__enter__()
        elif self._profiler:
            self._profiler.__exit__(None, None, None)
        self._begin = synchronised_time()


def bench_grpo(workload: Workload, config: HumanOmniConfig, folder: Path, options: Any) -> dict[str, Any]:
    """One GRPO step: rollouts, reference, rewards, loss, optimizer."""
    processor = make_processor(config)
    model_path, records = folder / "model", folder / "grpo.jsonl"
    loader = ClipLoader(processor, MODALITY, folder / "cache")
    if _is_first():
        clips = make_clips(folder / "clips", workload.prompts * int(os.environ.get("WORLD_SIZE", "1")))
        write_records(records, clips, question_of(processor, PROMPT_TEXT_TOKENS), "happy")
        save_model(config, processor, model_path, _weights(config, options))
        for clip in clips:
            loader.load(clip)
    rows = workload.prompts * workload.completions
    a_pass = min(options.rows or workload.grpo_pass, rows)
    args = GRPOArguments(
        output_dir=str(folder / "grpo"),
        model_path=str(model_path),
        train_data=str(records),
        max_steps=options.steps,
        num_generations=workload.completions,
        per_device_train_batch_size=a_pass,
        gradient_accumulation_steps=rows // a_pass,
        max_completion_length=COMPLETION_TOKENS,
        top_k=50,
        beta=0.04,
        use_bias_correction_kl=False,
        loss_type="grpo",
        learning_rate=1e-6,
        bf16=True,
        gradient_checkpointing=recomputes(workload, options),
        lora_rank=options.lora_rank,
        # Random weights would end a completion at any token.
        generation_kwargs={"suppress_tokens": [*processor.placeholder_ids, processor.tokenizer.eos_token_id]},
        **_quiet(),
        **SHARDING[options.sharding],
    )
    model = _model(config, model_path, args, options)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    clock = StepClock(options.profile)
    trainer = HumanOmniGRPOTrainer(
        model=model,
        args=args,
        reward_funcs=make_rewards(["format", "accuracy"], FgceClient("http://127.0.0.1:9", deadline=1.0)),
        train_dataset=load_prompts(read_mixture([DataSource(records)], None, seed=0), MODALITY),
        processing_class=processor,
        clips=loader,
        judge_watch=JudgeWatch(20, 0.5),
        callbacks=[clock],
    )
    phases = Phases(options.profile)
    for method, name in (
        ("_tokenize_prompts", "clips, towers"),
        ("_generate_single_turn", "rollouts"),
        ("_calculate_rewards", "rewards"),
        ("_get_per_token_logps_and_entropies", "log-probs (reference and policy, forward)"),
        ("_prepare_inputs", "all before the loss"),
        ("training_step", "all but the optimizer"),
    ):
        phases.watch(trainer, method, name)
    floor = None
    if args.sharding_stage < 3:  # which counts whole weights
        roofline = Roofline(config, model, Ceilings.measure(), PROMPT_TEXT_TOKENS)
        floor = roofline.grpo(workload.prompts, workload.completions, COMPLETION_TOKENS, args.gradient_checkpointing)
    return run(trainer, clock, phases, rows, floor)


def bench_sft(workload: Workload, config: HumanOmniConfig, folder: Path, options: Any) -> dict[str, Any]:
    """One SFT step of the effective batch."""
    processor = make_processor(config)
    target = "<think>" + " a" * 150 + "</think>\n<answer>happy</answer>"
    target_tokens = len(processor.tokenizer(f"{target}<|im_end|>\n", add_special_tokens=False)["input_ids"])
    question = question_of(processor, SFT_TEXT_TOKENS - target_tokens)
    model_path, records = folder / "model", folder / "sft.jsonl"
    loader: ClipLoader | EncodedClips
    loader = ClipLoader(processor, MODALITY, folder / "cache")
    if _is_first():
        clips = make_clips(folder / "clips", workload.sft_rows)
        repeats = (options.steps + 1) * int(os.environ.get("WORLD_SIZE", "1"))
        write_records(records, clips * repeats, question, target)
        save_model(config, processor, model_path, _weights(config, options))
        for clip in clips:
            loader.load(clip)
    rows = min(options.rows or workload.sft_pass, workload.sft_rows)
    args = SFTArguments(
        output_dir=str(folder / "sft"),
        train_data=str(records),
        max_steps=options.steps,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=workload.sft_rows // rows,
        learning_rate=2e-5,
        bf16=True,
        gradient_checkpointing=recomputes(workload, options),
        lora_rank=options.lora_rank,
        dataloader_num_workers=8,
        **_quiet(),
        **SHARDING[options.sharding],
    )
    model = _model(config, model_path, args, options)
    mixture = read_mixture([DataSource(records)], None, seed=0)
    if options.tower_cache:
        loader = EncodedClips(loader, Towers(model_path, torch.bfloat16), folder / "towers")
        loader.encode([(record, MODALITY) for record in mixture], args.device)
    compile_layers(model, args)
    clock = StepClock(options.profile)
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=SFTCollator(processor, loader),
        train_dataset=SFTDataset(mixture, processor, loader, args),
        processing_class=processor,
        callbacks=[clock],
    )
    phases = Phases(options.profile)
    phases.watch(trainer, "compute_loss", "forward")
    phases.watch(trainer, "training_step", "forward and backward")
    floor = None
    if args.sharding_stage < 3:
        roofline = Roofline(config, model, Ceilings.measure(), SFT_TEXT_TOKENS)
        floor = roofline.sft(workload.sft_rows, target_tokens, args.gradient_checkpointing, options.tower_cache)
    return run(trainer, clock, phases, workload.sft_rows, floor)


def run(trainer: Trainer, clock: StepClock, phases: Phases, rows: int, floor: float | None) -> dict[str, Any]:
    """Trains and sums up: the median of the steps after the second."""
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    step = median(clock.seconds[2:])
    return {
        "step_s": round(step, 3),
        "roofline_s": floor and round(floor, 3),
        "rows_a_s": round(rows / step, 2),
        "steps_s": [round(one, 3) for one in clock.seconds],
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "phases_mean_s": {name: round(total / len(clock.seconds), 3) for name, total in phases.seconds.items()},
    }


def recomputes(workload: Workload, options: Any) -> bool:
    """Whether activations are recomputed in the backward pass."""
    return workload.gradient_checkpointing and not options.keep_activations


def _is_first() -> bool:
    """Whether this process writes what all read."""
    return os.environ.get("RANK", "0") == "0"


def _weights(config: HumanOmniConfig, options: Any) -> dict[str, Tensor]:
    """Of the seeded model, those that are read from its folder: by shards all, by the towers' cache theirs."""
    sharded = options.sharding in ("zero3", "fsdp2")
    if not sharded and not options.tower_cache:
        return {}
    model = make_model(config, "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, options.dtype))
    return {name: weight.data for name, weight in model.named_parameters() if sharded or "_tower." in name}


def _model(config: HumanOmniConfig, path: Path, args: Any, options: Any) -> HumanOmniForConditionalGeneration:
    """The seeded model with its parts trained and frozen; whole, it is drawn where it is to run."""
    PartialState().wait_for_everyone()  # the first process has written what all read
    if args.sharding_stage == 3:
        return load_model(path, args)
    model = make_model(config, args.device.type, getattr(torch, options.dtype))
    prepare(model, path, args)
    return model


def _quiet() -> dict[str, Any]:
    return {
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def main(command_line: Sequence[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--stage", choices=("grpo", "sft"), help="both, one after the other")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps, of which the first two warm up")
    parser.add_argument("--rows", type=int, help="rows of a forward and backward pass")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the trained weights")
    parser.add_argument("--lora_rank", type=int, default=0, help="LoRA on the language model")
    parser.add_argument("--tower_cache", action="store_true", help="SFT on clips that the towers have encoded before")
    parser.add_argument("--keep_activations", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--sharding", choices=SHARDING, default="none", help="of the weights, under torchrun")
    parser.add_argument("--profile", action="store_true", help="time the phases, and name the last step's top costs")
    options = parser.parse_args(command_line)
    benches = {"grpo": bench_grpo, "sft": bench_sft}
    # One folder, which the first process fills and all read.
    folder = Path(tempfile.gettempdir()) / f"train_bench_{os.environ.get('TORCHELASTIC_RUN_ID', os.getpid())}"
    for stage in [options.stage] if options.stage else list(benches):
        try:
            result = benches[stage](WORKLOADS[options.size], SIZES[options.size].config(), folder / stage, options)
        finally:
            if _is_first():
                shutil.rmtree(folder, ignore_errors=True)
        if _is_first():
            of = {"size": options.size, "stage": stage, "gpus": int(os.environ.get("WORLD_SIZE", "1"))}
            sys.stdout.write(json.dumps(of | {"sharding": options.sharding, **result}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
