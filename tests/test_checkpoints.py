"""Checkpoints on a full disk, and a run that is asked to stop."""

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from humanomni.training.checkpoints import STOP_FILE, CheckpointError, StopOnRequest, WholeCheckpoints, last_checkpoint


class Line(nn.Module):
    """y = wx, enough to be trained and saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


class Points(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.tensor([index / 8]), "labels": torch.tensor([index / 4])}


class LineTrainer(WholeCheckpoints, Trainer):
    pass


def trainer(folder: Path, *callbacks: TrainerCallback, **settings: Any) -> LineTrainer:
    arguments = {"max_steps": 6, "save_steps": 1, "save_total_limit": 2, "report_to": "none", "use_cpu": True}
    args = TrainingArguments(str(folder), disable_tqdm=True, **(arguments | settings))
    return LineTrainer(
        model=Line(), args=args, train_dataset=Points(), eval_dataset=Points(), callbacks=list(callbacks)
    )


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))


def test_the_last_ones_are_kept_and_nothing_else_is_left(tmp_path: Path) -> None:
    trainer(tmp_path).train()
    assert steps(tmp_path) == [5, 6]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "checkpoint-6"}


@pytest.mark.parametrize("save_steps", [6, 4])
def test_a_run_that_goes_on_from_its_end_takes_no_step_more(tmp_path: Path, save_steps: int) -> None:
    """Killed after its last checkpoint, or after one amid the last epoch: the result is that of a straight run."""
    settings = {"per_device_train_batch_size": 2, "save_steps": save_steps, "save_strategy": "steps"}  # 4 an epoch
    torch.manual_seed(0)
    straight = trainer(tmp_path, **settings)
    straight.train()
    again = trainer(tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save_steps}"))
    assert again.state.global_step == 6
    assert all(
        torch.equal(one, other)
        for one, other in zip(again.model.parameters(), straight.model.parameters(), strict=True)
    )


def test_the_best_one_is_found_under_its_own_name(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    done = trainer(tmp_path, **best)
    done.train()
    assert Path(done.state.best_model_checkpoint).is_dir()
    assert Path(done.state.best_model_checkpoint).parent == tmp_path


def test_a_best_step_that_was_not_saved_is_not_looked_for(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    done = trainer(tmp_path, **best, save_steps=2, max_steps=4, learning_rate=0.0)
    done.train()  # no step is better than the first
    assert done.state.best_global_step == 1
    assert done.state.best_model_checkpoint is None


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("PytorchStreamWriter failed writing file"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2816 vs 2708"),
    ],
)
def test_a_disk_that_gets_full_amid_a_save_leaves_the_checkpoint_before_it(
    fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def fill(*args: Any, **kwargs: Any) -> None:
        if "checkpoint-3" in str(args[1]):
            raise fault
        save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(CheckpointError, match="disk under .* is full .*; checkpoint-2 is whole. Make room"):
        trainer(tmp_path).train()
    assert steps(tmp_path) == [1, 2]
    assert not (tmp_path / ".saving").exists(), "what was written is room for others"
    monkeypatch.undo()
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path)))
    assert steps(tmp_path) == [5, 6]


def test_a_fault_that_is_not_the_disks_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="something else"):
        trainer(tmp_path).train()


def test_too_little_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100, 90, 10))
    with pytest.raises(CheckpointError, match="there is no earlier one"):
        trainer(tmp_path).train()
    assert steps(tmp_path) == []


class Ask(TrainerCallback):
    """Asks for a stop in step 2."""

    def __init__(self, ask: Any) -> None:
        self.ask = ask

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.ask()


@pytest.mark.parametrize("way", ["SIGTERM", "SIGUSR1", "file"])
def test_a_run_that_is_asked_to_stop_ends_its_step_and_saves(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stop"
    monkeypatch.setenv(STOP_FILE, str(file))
    before = signal.getsignal(signal.SIGTERM)
    ask = Ask(file.touch if way == "file" else lambda: os.kill(os.getpid(), getattr(signal, way)))
    stop = StopOnRequest()
    trainer(tmp_path / "run", stop, ask, save_strategy="no").train()
    assert stop.stopped
    assert steps(tmp_path / "run") == [2]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_request_in_the_last_step_does_not_undo_the_run(tmp_path: Path) -> None:
    stop = StopOnRequest()
    trainer(tmp_path, stop, Ask(lambda: os.kill(os.getpid(), signal.SIGUSR1)), max_steps=2).train()
    assert not stop.stopped
