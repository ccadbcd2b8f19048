"""What must not change what is learnt: accumulation, processes, checkpointing, a kill and its resume; tiny models."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_process import FixedRollouts

from humanomni.modeling import HumanOmniModel
from humanomni.training.grpo import GRPOArguments, run_grpo
from humanomni.training.run import parse_arguments
from humanomni.training.sft import SFTArguments, run_sft

PROGRAM = Path(__file__).parent / "training_process.py"
COMMON = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "seed": 3}
COMMON |= {"learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler_type": "linear", "save_strategy": "no"}
SFT = COMMON | {"num_train_epochs": 2, "per_device_train_batch_size": 4}
GRPO = COMMON | {"num_train_epochs": 2, "num_generations": 4, "per_device_train_batch_size": 4}
GRPO |= {"max_completion_length": 6, "beta": 0.04, "loss_type": "grpo", "rewards": ["format", "accuracy"]}


@pytest.fixture(scope="module")
def data(toy_world_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight SFT records of mixed modalities, one with a broken clip, and four GRPO records."""
    folder = tmp_path_factory.mktemp("data")
    for stage, count in (("sft", 8), ("grpo", 4)):
        records = [json.loads(line) for line in (toy_world_dir / f"{stage}_train.jsonl").read_text().splitlines()]
        records = [record | {"video": str(toy_world_dir / record["video"])} for record in records[:count]]
        if stage == "sft":
            for place, modality in ((1, "audio"), (2, "video"), (5, "text"), (6, "audio")):
                records[place]["modality"] = modality
            (folder / "broken.mp4").write_bytes(b"no film")
            records[3] |= {"id": "broken", "video": str(folder / "broken.mp4")}
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


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
        self, stage: str, name: str, environment: dict[str, str], processes: int = 1, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        """In processes of their own, under torchrun where they are several."""
        flags = flags_of(stage, self.folder / name, self.model, self.data, (SFT if stage == "sft" else GRPO) | settings)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return subprocess.run(
            [sys.executable, *(torchrun if processes > 1 else []), str(PROGRAM), stage, *flags],
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model.safetensors")


@pytest.fixture
def runs(
    tiny_model_dir: Path, data: Path, tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Runs]:
    monkeypatch.chdir(repo)  # where the paths in the configurations start
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other processes: another number rounds differently
    yield Runs(tiny_model_dir, data, tmp_path)
    torch.set_num_threads(threads)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], start: Path, tolerance: float) -> None:
    """The largest difference is small beside the largest change that training made."""
    before = load_file(start / "model.safetensors")
    change = max((theirs[name] - before[name]).abs().max().item() for name in theirs)
    difference = max((ours[name].float() - theirs[name]).abs().max().item() for name in theirs)
    assert change > 1e-4
    assert difference <= tolerance * change, f"{difference:.2e} beside changes of {change:.2e}"


def test_sft_learns_the_same_whatever_the_batch_and_with_gradient_checkpointing(runs: Runs) -> None:
    whole = runs.here("sft", "whole", optim="sgd", learning_rate=0.1)
    split = runs.here("sft", "split", optim="sgd", learning_rate=0.1, per_device_train_batch_size=1, records_per_step=4)
    assert_same(split, whole, runs.model, 1e-3)
    checkpointed = runs.here("sft", "checkpointed", optim="sgd", learning_rate=0.1, gradient_checkpointing=True)
    assert_same(checkpointed, whole, runs.model, 1e-3)


def test_two_processes_learn_what_one_learns_of_mixed_modalities_and_a_broken_clip(runs: Runs) -> None:
    """A process whose batch has no video, or nothing to learn from, must still take part in every reduction."""
    settings = {"optim": "sgd", "learning_rate": 0.1, "gradient_checkpointing": True}
    one = runs.here("sft", "one", **settings)
    done = runs.elsewhere("sft", "two", {}, processes=2, per_device_train_batch_size=1, records_per_step=4, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(runs.weights("two"), one, runs.model, 1e-3)
    skipped = [line for rank in (0, 1) for line in read_lines(runs.folder / f"two/skipped.rank{rank}.jsonl")]
    assert [json.loads(line)["id"] for line in skipped] == ["broken"]


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize(
    ("stage", "moment"),
    [("sft", {"KILL_AT_STEP": "3"}), ("sft", {"KILL_IN_SAVE": "2"}), ("grpo", {"KILL_AT_STEP": "6"})],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(stage: str, moment: dict[str, str], runs: Runs) -> None:
    """In the second epoch, whose order and sampling differ from the first's, and amid the writing of a checkpoint."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    straight = runs.here(stage, "straight", **settings)
    killed = runs.elsewhere(stage, "cut", moment, **settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    checkpoints = sorted(path.name for path in (runs.folder / "cut").glob("checkpoint-*"))
    whole = {"3": ["checkpoint-1", "checkpoint-2"], "6": ["checkpoint-4", "checkpoint-5"]}
    assert checkpoints == whole.get(moment.get("KILL_AT_STEP", ""), ["checkpoint-1"])
    resumed = runs.here(stage, "cut", **settings)
    assert {name: tensor for name, tensor in resumed.items() if not torch.equal(tensor, straight[name])} == {}
    assert len(list((runs.folder / "cut").glob("checkpoint-*"))) == 2
    assert not (runs.folder / "cut/.saving").exists()


def test_a_loss_that_is_no_number_names_the_batch(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    embed = HumanOmniModel.embed

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        return embed(self, *args, **kwargs) * float("nan")

    monkeypatch.setattr(HumanOmniModel, "embed", broken)
    ids = [json.loads(line)["id"] for line in (runs.data / "sft.jsonl").read_text().splitlines()]
    with pytest.raises(FloatingPointError, match="in step 1, on the records") as caught:
        runs.here("sft", "nan")
    assert sum(name in str(caught.value) for name in ids) == 4


def test_grpo_learns_the_same_whatever_the_batch_and_with_gradient_checkpointing(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", FixedRollouts)
    settings = {"optim": "sgd", "learning_rate": 0.1, "records_per_step": 2, "num_train_epochs": 1}
    whole = runs.here("grpo", "whole", per_device_train_batch_size=8, **settings)
    split = runs.here("grpo", "split", per_device_train_batch_size=2, **settings)
    assert_same(split, whole, runs.model, 1e-3)
    checkpointed = runs.here("grpo", "ckpt", per_device_train_batch_size=8, gradient_checkpointing=True, **settings)
    assert_same(checkpointed, whole, runs.model, 1e-3)


ZERO = [
    pytest.param(stage, marks=pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="needs deepspeed"))
    for stage in (2, 3)
]


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, *ZERO])
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_ddp_and_zero_learn_what_one_process_learns(
    stage: str, zero: int, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: two processes load torch and, with ZeRO, DeepSpeed, whose first run also builds an extension."""
    if (stage, zero) == ("sft", 0):
        pytest.skip("the test of mixed modalities is this one")
    settings: dict[str, Any] = {"sft": {"records_per_step": 4}, "grpo": {"records_per_step": 2}}[stage] | {
        "max_steps": 2
    }
    # By default AdamW makes whole steps of gradients that are nothing but rounding.
    settings["adam_epsilon"] = 1e-2
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", FixedRollouts)
    one = runs.here(stage, "one", **settings)
    sharded = {"deepspeed": f"configs/deepspeed/zero{zero}.json"} if zero else {}
    batch = {"per_device_train_batch_size": {"sft": 2, "grpo": 4}[stage]}
    done = runs.elsewhere(stage, "many", {"FIXED_ROLLOUTS": "1"}, processes=2, **settings | batch | sharded)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(runs.weights("many"), one, runs.model, 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ZERO[1:])
def test_a_killed_run_goes_on_under_zero_3(zero: int, runs: Runs) -> None:
    """Slow: three runs of two processes with DeepSpeed; rollouts are sampled, so the ranks' random states count too."""
    settings = {"save_strategy": "steps", "save_steps": 1, "deepspeed": f"configs/deepspeed/zero{zero}.json"}
    settings |= {"records_per_step": 2}
    assert runs.elsewhere("grpo", "straight", {}, processes=2, **settings).returncode == 0
    killed = runs.elsewhere("grpo", "cut", {"KILL_AT_STEP": "3"}, processes=2, **settings)
    assert killed.returncode != 0
    assert (runs.folder / "cut/checkpoint-2").is_dir()
    assert not (runs.folder / "cut/model.safetensors").exists()
    done = runs.elsewhere("grpo", "cut", {}, processes=2, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, resumed = runs.weights("straight"), runs.weights("cut")
    assert {name for name in straight if not torch.equal(straight[name], resumed[name])} == set()
