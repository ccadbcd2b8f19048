"""LoRA in SFT and GRPO: what is trained, what the reference is, what is on disk at the end and in between."""

import json
import signal
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from training_process import FixedRollouts
from training_runs import SFT, Runs, assert_same, flags_of

from humanomni.loading import LoadOptions, load_model
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.training.checkpoints import checkpoint_bytes
from humanomni.training.model import load_model as prepared_model
from humanomni.training.run import ConfigurationError, parse_arguments
from humanomni.training.sft import SFTArguments

LORA = {"lora_rank": 4, "lora_alpha": 16}
IDS = torch.tensor([[5, 9, 33, 77, 120, 6]])


@torch.no_grad()
def logits_of(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def logged(run: Path, key: str) -> list[float]:
    state = json.loads((run / "trainer_state.json").read_text())
    return [row[key] for row in state["log_history"] if key in row]


def trained_model(runs: Runs, **settings: Any) -> HumanOmniForConditionalGeneration:
    flags = flags_of("sft", runs.folder / "unused", runs.model, runs.data, SFT | settings)
    return prepared_model(runs.model, parse_arguments(SFTArguments, flags))


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_adapter_on_base_is_the_folder_of_the_run_and_the_base_is_untouched(stage: str, runs: Runs) -> None:
    learnt = runs.here(stage, "run", trainable_parts=["projector", "gate", "language_model"], **LORA)
    adapter = runs.folder / "run/adapter"
    whole = load_model(LoadOptions(runs.folder / "run"))
    for options in (LoadOptions(adapter), LoadOptions(runs.model, adapter=adapter)):
        torch.testing.assert_close(logits_of(load_model(options)), logits_of(whole), atol=0, rtol=0)
    base = load_model(LoadOptions(runs.model))
    assert not torch.equal(logits_of(base), logits_of(whole))
    worn: Any = peft.PeftModel.from_pretrained(HumanOmniForConditionalGeneration.from_pretrained(runs.model), adapter)
    with worn.disable_adapter():
        assert torch.equal(logits_of(worn), logits_of(base))
    before = load_file(runs.model / "model.safetensors")
    changed = {name.rsplit(".", 1)[0] for name in learnt if not torch.equal(learnt[name], before[name])}
    layers = {name.rsplit(".", 1)[0] for name in learnt if "language_model.layers" in name and "_proj.weight" in name}
    full = {name.rsplit(".", 1)[0] for name in learnt if name.startswith(("model.projector.", "model.gate."))}
    assert layers <= changed <= layers | full
    assert changed & full


class KeepsReferenceScores(FixedRollouts):
    scores: list[torch.Tensor]

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        if model is self.ref_model:
            self.scores.append(result[0])
        return result


@pytest.mark.slow
def test_the_reference_is_the_starting_model_at_every_step(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRA's reference scores completions as that of a run without LoRA, whose weights are its own; slow: two runs."""
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", KeepsReferenceScores)
    scores = {}
    for name, settings in (("full", {}), ("lora", LORA)):
        KeepsReferenceScores.scores = scores[name] = []
        runs.here("grpo", name, learning_rate=1e-2, **settings)
    assert len(scores["lora"]) == len(scores["full"]) > 2
    assert all(torch.equal(*pair) for pair in zip(scores["lora"], scores["full"], strict=True))
    first, *later = logged(runs.folder / "lora", "kl")
    assert first == 0 < min(later)


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_accumulation_and_gradient_checkpointing_change_nothing(
    stage: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("humanomni.training.grpo.HumanOmniGRPOTrainer", FixedRollouts)
    settings = LORA | {"optim": "sgd", "learning_rate": 0.1, "num_train_epochs": 1}
    batches = {"sft": (4, 1), "grpo": (8, 2)}[stage]
    settings |= {"records_per_step": {"sft": 4, "grpo": 2}[stage]}
    whole = runs.here(stage, "whole", per_device_train_batch_size=batches[0], **settings)
    split = runs.here(stage, "split", per_device_train_batch_size=batches[1], gradient_checkpointing=True, **settings)
    assert_same(split, whole, runs.model, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "step"), [("sft", 3), ("grpo", 6)])
def test_a_killed_run_goes_on_from_its_adapter_as_if_nothing_had_been(stage: str, step: int, runs: Runs) -> None:
    """Slow: three runs, one of them in a process of its own."""
    settings = LORA | {"lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    straight = runs.here(stage, "straight", **settings)
    killed = runs.elsewhere(stage, "cut", {"KILL_AT_STEP": str(step)}, **settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    checkpoint = runs.folder / f"cut/checkpoint-{step - 1}"
    said = checkpoint_bytes(trained_model(runs, **LORA), sharded=False)
    assert said < sum(file.stat().st_size for file in checkpoint.iterdir()) < 1.1 * said + 2**20
    assert not list(checkpoint.glob("model*.safetensors")), "the base is in its own folder"
    assert not torch.equal(
        logits_of(load_model(LoadOptions(checkpoint))), logits_of(load_model(LoadOptions(runs.model)))
    )
    with pytest.raises(ConfigurationError, match="lora_rank was 4 and is 2"):
        runs.here(stage, "cut", **settings | {"lora_rank": 2})
    resumed = runs.here(stage, "cut", **settings)
    assert {name for name in resumed if not torch.equal(resumed[name], straight[name])} == set()


def keeping_the_best(runs: Runs) -> dict[str, Any]:
    """Settings of a run that goes back to its best checkpoint; steps too large, so that this is not the last."""
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "optim": "sgd", "learning_rate": 30.0}
    return settings | {"validation_data": runs.data / "sft.jsonl"}


def assert_best_is_result(runs: Runs, name: str) -> None:
    learnt = runs.weights(name)
    state = json.loads((runs.folder / name / "trainer_state.json").read_text())
    assert state["best_global_step"] < state["global_step"]
    assert state["best_model_checkpoint"] == str(runs.folder / name / f"checkpoint-{state['best_global_step']}")
    best = load_model(LoadOptions(Path(state["best_model_checkpoint"]), dtype="float32")).state_dict()
    assert {key for key in learnt if not torch.equal(learnt[key], best[key])} == set()


def test_the_best_checkpoint_of_a_run_is_its_result(runs: Runs) -> None:
    runs.here("sft", "run", **keeping_the_best(runs), **LORA)
    assert_best_is_result(runs, "run")


@pytest.mark.parametrize("parts", [LORA, pytest.param({}, marks=pytest.mark.slow)], ids=["lora", "full"])
def test_every_process_goes_back_to_the_best_checkpoint(parts: dict[str, Any], runs: Runs) -> None:
    """Slow with full weights, which fail for the same reason: once is enough for most."""
    settings = keeping_the_best(runs) | {"per_device_train_batch_size": 2}
    done = runs.elsewhere("sft", "run", {}, processes=2, **settings, **parts)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Could not locate the best model" not in done.stderr
    assert_best_is_result(runs, "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--lora_rank 8 --trainable_parts gate projector",
            "lora_rank 8 adapts .* not among trainable_parts .gate, proj",
        ),
        ("--lora_alpha 8", "lora_alpha and lora_dropout go with lora_rank"),
        ("--lora_rank -1", "lora_rank -1 .* give 0 or more"),
        ("--lora_rank 8 --lora_dropout 1", "lora_dropout 1.0: .* a share below 1"),
    ],
)
def test_what_cannot_be_is_refused_with_the_mend(flags: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_arguments(SFTArguments, ["--output_dir", str(tmp_path), "--use_cpu", *flags.split()])
