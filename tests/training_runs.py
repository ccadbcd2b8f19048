"""Stages run on the toy world with a tiny model, in this process or others, for tests of what they learn."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from humanomni.training.grpo import GRPOArguments, run_grpo
from humanomni.training.run import parse_arguments
from humanomni.training.sft import SFTArguments, run_sft

PROGRAM = Path(__file__).parent / "training_process.py"
COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "seed": 3}
COMMON |= {"learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler_type": "linear", "save_strategy": "no"}
SFT = COMMON | {"num_train_epochs": 2, "per_device_train_batch_size": 4}
GRPO = COMMON | {"num_train_epochs": 2, "num_generations": 4, "per_device_train_batch_size": 4}
GRPO |= {"max_completion_length": 6, "beta": 0.04, "loss_type": "grpo", "rewards": ["format", "accuracy"]}
needs_deepspeed = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs deepspeed")
SHARDING: dict[str, dict[str, Any]] = {
    "none": {},
    "zero2": {"deepspeed": "configs/deepspeed/zero2.json"},
    "zero3": {"deepspeed": "configs/deepspeed/zero3.json"},
    "fsdp2": {"fsdp": "full_shard", "fsdp_config": "configs/fsdp2.json"},
}


def write_data(world: Path, folder: Path) -> None:
    """Eight SFT records of mixed modalities, one with a broken clip, and four GRPO records."""
    for stage, count in (("sft", 8), ("grpo", 4)):
        records = [json.loads(line) for line in (world / f"{stage}_train.jsonl").read_text().splitlines()]
        records = [record | {"video": str(world / record["video"])} for record in records[:count]]
        if stage == "sft":
            for place, modality in ((1, "audio"), (2, "video"), (5, "text"), (6, "audio")):
                records[place]["modality"] = modality
            (folder / "broken.mp4").write_bytes(b"no film")
            records[3] |= {"id": "broken", "video": str(folder / "broken.mp4")}
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def flags_of(stage: str, output: Path, model: Path, data: Path, settings: dict[str, Any]) -> list[str]:
    paths = {"output_dir": output, "model_path": model, "train_data": data / f"{stage}.jsonl"}
    flags = []
    for key, value in (paths | {"clip_cache": data / "cache"} | settings).items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags


class Runs:
    """Runs stages from one model on one data folder, in this process or others; gives the weights learnt."""

    def __init__(self, model: Path, data: Path, folder: Path) -> None:
        self.model, self.data, self.folder = model, data, folder

    def here(self, stage: str, name: str, **settings: Any) -> dict[str, torch.Tensor]:
        """In this process."""
        flags = flags_of(stage, self.folder / name, self.model, self.data, (SFT if stage == "sft" else GRPO) | settings)
        if stage == "sft":
            run_sft(parse_arguments(SFTArguments, flags))
        else:
            run_grpo(parse_arguments(GRPOArguments, flags))
        return self.weights(name)

    def elsewhere(
        self, stage: str, name: str, environment: dict[str, str], processes: int = 0, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """In a process of its own, or under torchrun in so many."""
        flags = flags_of(stage, self.folder / name, self.model, self.data, (SFT if stage == "sft" else GRPO) | settings)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.run(
            [sys.executable, *(torchrun if processes else []), str(PROGRAM), stage, *flags],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model.safetensors")


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: Path, tolerance: float) -> None:
    """The largest difference is small beside the largest change that training made."""
    before = load_file(start / "model.safetensors")
    change = max((theirs[name] - before[name]).abs().max().item() for name in theirs)
    difference = max((ours[name].float() - theirs[name]).abs().max().item() for name in theirs)
    assert change > 1e-4
    assert difference <= tolerance * change, f"{difference:.2e} beside changes of {change:.2e}"


def validation_losses(run: Path) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]
