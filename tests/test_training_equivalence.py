"""What must not change what is learnt: accumulation, processes, checkpointing, a kill and its resume; tiny models."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_process import FixedRollouts
from training_runs import SHARDING, Runs, assert_same, needs_deepspeed, validation_losses

from humanomni.modeling import HumanOmniModel
from humanomni.training.run import ConfigurationError


def test_sft_learns_the_same_whatever_the_batch_and_with_gradient_checkpointing(runs: Runs) -> None:
    whole = runs.here("sft", "whole", optim="sgd", learning_rate=0.1)
    split = runs.here("sft", "split", optim="sgd", learning_rate=0.1, per_device_train_batch_size=1, records_per_step=4)
    assert_same(split, whole, runs.model, 1e-3)
    checkpointed = runs.here("sft", "checkpointed", optim="sgd", learning_rate=0.1, gradient_checkpointing=True)
    assert_same(checkpointed, whole, runs.model, 1e-3)


def test_two_processes_learn_what_one_learns_of_mixed_modalities_and_a_broken_clip(runs: Runs) -> None:
    """A process whose batch has no video, or nothing to learn from, must still take part in every reduction."""
    settings = {"optim": "sgd", "learning_rate": 0.1, "gradient_checkpointing": True}
    settings |= {"validation_data": runs.data / "sft.jsonl", "eval_strategy": "epoch"}
    one = runs.here("sft", "one", **settings)
    # One record a step, and three records an evaluation: the last batches of the two are filled up to be as many.
    batches = {"per_device_train_batch_size": 1, "records_per_step": 4, "per_device_eval_batch_size": 3}
    done = runs.elsewhere("sft", "two", {}, processes=2, **batches, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(runs.weights("two"), one, runs.model, 1e-3)
    assert validation_losses(runs.folder / "two") == pytest.approx(validation_losses(runs.folder / "one"), rel=1e-4)
    skipped = [line for rank in (0, 1) for line in read_lines(runs.folder / f"two/skipped.rank{rank}.jsonl")]
    assert {json.loads(line)["id"] for line in skipped} == {"broken"}  # training and evaluation may spread it otherwise


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


@pytest.mark.parametrize(
    ("stage", "settings", "steps"),
    [
        # 8 records are 3 batches of 3, and those 2 steps, twice; 4 prompts are 2 generations, each used 3 times, twice.
        ("sft", {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}, 4),
        ("sft", {"per_device_train_batch_size": 3, "num_train_epochs": 0.5}, 2),
        ("grpo", {"per_device_train_batch_size": 4, "records_per_step": 2, "num_iterations": 3}, 12),
    ],
)
def test_a_dry_run_says_the_steps_that_the_run_takes(
    stage: str, settings: dict[str, Any], steps: int, runs: Runs, capsys: pytest.CaptureFixture
) -> None:
    folder = runs.folder / "run"
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        runs.here(stage, "run", **settings, dry_run=True)
    assert f"optimizer steps    {steps}\n" in capsys.readouterr().err
    runs.here(stage, "run", **settings)
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == steps


@pytest.mark.parametrize(("stage", "key", "value"), [("sft", "seed", 4), ("grpo", "beta", 0.0)])
def test_a_run_of_another_configuration_does_not_go_on_from_a_checkpoint(
    stage: str, key: str, value: float, runs: Runs
) -> None:
    """A longer run does, and so does one whose batches are cut otherwise."""
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-3}
    rows = {"sft": 4, "grpo": 8}[stage]
    runs.here(stage, "run", **settings, max_steps=1, per_device_train_batch_size=rows)
    record = [(runs.folder / "run" / name).read_text() for name in ("config.yaml", "manifest.json")]
    with pytest.raises(ConfigurationError, match="learning_rate was 0.001 and is 0.002.*--output_dir") as caught:
        runs.here(stage, "run", **settings | {"learning_rate": 2e-3, "max_steps": 2, key: value})
    assert f"{key} was " in str(caught.value)
    assert "max_steps" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="records_per_step was "):
        runs.here(stage, "run", **settings, max_steps=2, per_device_train_batch_size=2 * rows)
    assert record == [(runs.folder / "run" / name).read_text() for name in ("config.yaml", "manifest.json")]
    smaller = {"per_device_train_batch_size": rows // 2, "gradient_accumulation_steps": 2}
    runs.here(stage, "run", **settings, max_steps=2, **smaller)
    assert json.loads((runs.folder / "run/trainer_state.json").read_text())["global_step"] == 2


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


def cases(*named: tuple[str, str, int]) -> list[Any]:
    """Stage, sharding and lora_rank, skipped where they need DeepSpeed and it is missing."""
    return [pytest.param(*case, marks=needs_deepspeed if "zero" in case[1] else []) for case in named]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "lora_rank"),
    cases(
        ("grpo", "none", 0),  # of SFT, the test of mixed modalities is this one
        ("grpo", "none", 4),
        ("sft", "fsdp2", 0),
        ("sft", "fsdp2", 4),
        ("grpo", "fsdp2", 0),
        ("grpo", "fsdp2", 4),
        *((stage, zero, rank) for stage in ("sft", "grpo") for zero in ("zero2", "zero3") for rank in (0, 4)),
    ),
)
def test_processes_learn_what_one_learns_however_the_model_is_sharded(
    stage: str, sharding: str, lora_rank: int, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow: two processes load torch and, with ZeRO, DeepSpeed, whose first run also builds an extension.

    Without an adapter they also recompute activations, and the one does not.
    """
    settings: dict[str, Any] = {"max_steps": 2, "lora_rank": lora_rank}
    settings |= {"sft": {"records_per_step": 4}, "grpo": {"records_per_step": 2}}[stage]
    # By default AdamW makes whole steps of gradients that are nothing but rounding.
    settings["adam_epsilon"] = 1e-2
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", FixedRollouts)
    one = runs.here(stage, "one", **settings)
    batch = {"per_device_train_batch_size": {"sft": 2, "grpo": 4}[stage], "gradient_checkpointing": lora_rank == 0}
    done = runs.elsewhere(stage, "many", {"FIXED_ROLLOUTS": "1"}, processes=2, **settings | batch | SHARDING[sharding])
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(runs.weights("many"), one, runs.model, 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "lora_rank"),
    cases(("grpo", "none", 0), *(("grpo", name, rank) for name in ("zero2", "zero3", "fsdp2") for rank in (0, 4))),
)
def test_grpo_in_bfloat16_starts_with_policy_and_reference_alike(
    stage: str, sharding: str, lora_rank: int, runs: Runs
) -> None:
    """Slow: two processes load torch and DeepSpeed, which computes in bfloat16 throughout, unlike autocast."""
    settings: dict[str, Any] = {"bf16": True, "gradient_checkpointing": True, "records_per_step": 2, "max_steps": 2}
    settings |= {"learning_rate": 1e-2, "lora_rank": lora_rank} | SHARDING[sharding]
    done = runs.elsewhere(stage, "run", {"FIXED_ROLLOUTS": "1"}, processes=0 if sharding == "none" else 2, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((runs.folder / "run/trainer_state.json").read_text())["log_history"]
    first, second = (row["kl"] for row in log if "kl" in row)
    assert first < 1e-6 < second  # the forward that keeps gradients may round differently


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "lora_rank"),
    cases(*(("grpo", sharding, rank) for sharding in ("zero3", "fsdp2") for rank in (0, 4))),
)
def test_rollouts_are_those_of_whole_weights(stage: str, sharding: str, lora_rank: int, runs: Runs) -> None:
    """Slow: two runs of two processes. The second step samples from weights that the first has changed."""
    settings = {"max_steps": 2, "records_per_step": 2, "lora_rank": lora_rank, "sample_steps": 1, "learning_rate": 1e-2}
    for name, how in (("whole", {}), ("sharded", SHARDING[sharding])):
        done = runs.elsewhere(stage, name, {"OWN_LOOP": "1"}, processes=2, **settings | how)
        assert done.returncode == 0, done.stderr[-3000:]
    whole, sharded = (
        [json.loads(line)["completion"] for line in read_lines(runs.folder / name / "completions.jsonl")]
        for name in ("whole", "sharded")
    )
    assert sharded == whole
    assert len(set(whole)) > 4


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [pytest.param("zero3", marks=needs_deepspeed), "fsdp2"])
def test_one_process_can_do_what_is_made_to_be_sharded(sharding: str, runs: Runs) -> None:
    """Slow: a process loads torch and DeepSpeed. Its rollouts are those of one GPU with a cluster's configuration."""
    done = runs.elsewhere("grpo", "run", {}, processes=1, bf16=True, max_steps=1, **SHARDING[sharding])
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "sharding", "lora_rank"),
    cases(("grpo", "zero3", 0), ("sft", "zero3", 4), ("sft", "fsdp2", 4)),
)
def test_a_killed_run_goes_on_where_the_model_is_sharded(stage: str, sharding: str, lora_rank: int, runs: Runs) -> None:
    """Slow: three runs of two processes; GRPO's rollouts are sampled, so the ranks' random states count too."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "lora_rank": lora_rank} | SHARDING[sharding]
    settings |= {"records_per_step": 2, "per_device_train_batch_size": {"sft": 1, "grpo": 4}[stage]}
    assert runs.elsewhere(stage, "straight", {}, processes=2, **settings).returncode == 0
    killed = runs.elsewhere(stage, "cut", {"KILL_AT_STEP": "3"}, processes=2, **settings)
    assert killed.returncode != 0
    assert (runs.folder / "cut/checkpoint-2").is_dir()
    assert not (runs.folder / "cut/model.safetensors").exists()
    done = runs.elsewhere(stage, "cut", {}, processes=2, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, resumed = runs.weights("straight"), runs.weights("cut")
    assert {name for name in straight if not torch.equal(straight[name], resumed[name])} == set()
