"""Checkpoints that a run can trust: whole or not there, and written before a job's time is up."""

import errno
import logging
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from humanomni.loading import LoadOptions, load_model
from humanomni.training.lora import is_adapted, load_adapter, save_adapter

logger = logging.getLogger(__name__)

# What a run that was asked to stop exits with, so that no script takes it for finished (sysexits.h: try again later).
STOPPED = 75
# The variable by which scripts/launch.sh names a file: once that is there, the run saves and stops. Unlike a signal, it
# reaches the ranks of all nodes through srun and torchrun.
STOP_FILE = "HUMANOMNI_STOP_FILE"

_ADAM_BYTES = 8  # two moments in float32
_HEADROOM = 1.05
_PARTIAL = ".saving"  # in the run's folder, so that a rename ends a save


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before it are whole."""


class WholeCheckpoints:
    """A transformers trainer whose checkpoints are written aside and renamed, so that a kill leaves no half of one.

    The ranks of all nodes share the run's folder. A run with LoRA saves its adapter, which inference takes as it does a
    model, and not the weights that it does not change.
    """

    _partial: Path | None = None

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._partial) if self._partial else super()._get_output_dir(trial)  # type: ignore[misc]

    def _init_training_state(
        self: Any, max_steps: int, steps_per_epoch: int, epochs: int, *checkpoint_and_trial: Any
    ) -> tuple[int, int]:
        """Epochs, and batches of the next one, that are done already.

        A run that goes on from its last step's checkpoint, killed before its result was written, has done all of them:
        transformers would take one step too many, because it counts steps after the first.
        """
        done = super()._init_training_state(max_steps, steps_per_epoch, epochs, *checkpoint_and_trial)  # type: ignore[misc]
        return (epochs, 0) if self.state.global_step >= max_steps else done

    def _save_checkpoint(self: Any, model: nn.Module, trial: Any = None) -> None:
        """Writes the checkpoint of this step; then those beyond ``save_total_limit`` go.

        Raises:
            CheckpointError: when the disk is full; what was written of this checkpoint is removed.
        """
        run = Path(self.args.output_dir)
        partial, whole = run / _PARTIAL, run / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            require_space(run, checkpoint_bytes(self.model, self.is_deepspeed_enabled or self.is_fsdp_enabled))
        self.accelerator.wait_for_everyone()
        self._partial = partial
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_full_disk(error):
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(f"{_full_disk_message(run)} ({error})") from error
        finally:
            self._partial = None
        self.accelerator.wait_for_everyone()
        self._name_best_checkpoint(whole)
        if self.args.should_save:
            self.state.save_to_json(str(partial / whole.name / TRAINER_STATE_NAME))
            if whole.exists():  # of a run that came this far before and went on from an earlier one
                shutil.rmtree(whole)
            (partial / whole.name).rename(whole)
            partial.rmdir()
            rotate_checkpoints(str(run), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def save_result(self: Any) -> None:
        """Writes the model into the run's folder; with LoRA the adapter too, from which it is merged in float32."""
        if not is_adapted(self.model):
            self.save_model()
            return
        adapter = Path(self.args.output_dir) / "adapter"
        self.save_model(str(adapter))
        if self.args.should_save:
            unset_hf_deepspeed_config()  # which would spread the weights that are loaded
            merged = load_model(LoadOptions(Path(self.args.model_path), adapter, dtype="float32"))
            merged.save_pretrained(self.args.output_dir)
            self.processing_class.save_pretrained(self.args.output_dir)

    def _save(self: Any, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if is_adapted(self.model):
            save_adapter(self.model, Path(output_dir or self.args.output_dir), state_dict)
        else:
            super()._save(output_dir, state_dict)  # type: ignore[misc]

    @property
    def _loads_adapter(self: Any) -> bool:
        """With sharded weights, DeepSpeed and accelerate write all of them beside it, and read those."""
        return is_adapted(self.model) and not self.is_deepspeed_enabled and not self.is_fsdp_enabled

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self._loads_adapter:
            load_adapter(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_best_model(self: Any) -> None:
        if self._loads_adapter:
            load_adapter(self.model, Path(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()  # type: ignore[misc]

    def _name_best_checkpoint(self: Any, saved: Path) -> None:
        """On every rank, the best checkpoint's path is that of the run's folder, not of where it was written.

        Args:
            saved: the checkpoint of this step, about to get that name. A best step in between was not saved: the best
                checkpoint stays the one before.
        """
        best = saved.with_name(f"checkpoint-{self.state.best_global_step}")
        if best == saved or best.is_dir():
            self.state.best_model_checkpoint = str(best)


class StopOnRequest(TrainerCallback):
    """Ends the run with a checkpoint after the step in which it was asked to stop.

    SIGTERM and SIGUSR1 ask it, and the file that :data:`STOP_FILE` names.

    Attributes:
        stopped: the run ended before its last step because of that.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._signalled = False
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGUSR1):
                self._before[number] = signal.signal(number, self._note)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps or not self._any_rank_asked(args):
            return
        logger.warning("asked to stop: saving checkpoint-%d; the same command goes on from there", state.global_step)
        control.should_save = control.should_training_stop = self.stopped = True

    def _note(self, number: int, frame: Any) -> None:
        self._signalled = True

    def _any_rank_asked(self, args: TrainingArguments) -> bool:
        file = os.environ.get(STOP_FILE)
        asked = self._signalled or bool(file and Path(file).exists())
        if not torch.distributed.is_initialized():
            return asked
        votes = torch.tensor(int(asked), device=args.device)
        torch.distributed.all_reduce(votes, torch.distributed.ReduceOp.MAX)
        return bool(votes)


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint in a run's folder, from which an interrupted run goes on."""
    found = get_last_checkpoint(str(run)) if run.is_dir() else None
    return Path(found) if found else None


def saved_state(checkpoint: Path, callback: str) -> dict[str, Any]:
    """What a callback left in a checkpoint; empty where it left nothing."""
    return left_in(TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)), callback)


def left_in(state: TrainerState, callback: str) -> dict[str, Any]:
    """What a callback left in the state of a run, which may be a checkpoint's; empty where it left nothing."""
    states: Any = state.stateful_callbacks or {}
    return states.get(callback, {}).get("attributes", {})


def checkpoint_bytes(model: nn.Module, sharded: bool) -> int:
    """Bytes of a checkpoint: the weights as they are held, and AdamW's moments of those that are trained.

    Args:
        sharded: DeepSpeed or FSDP writes it, and with it the weights that LoRA leaves as they are.
    """
    whole = sharded or not is_adapted(model)
    return sum(
        count(parameter) * (parameter.element_size() + _ADAM_BYTES * parameter.requires_grad)
        for parameter in model.parameters()
        if whole or parameter.requires_grad
    )


def count(parameter: nn.Parameter) -> int:
    """Elements of a parameter, whole also where ZeRO-3 has it in shards."""
    return getattr(parameter, "ds_numel", parameter.numel())


def require_space(folder: Path, needed: int) -> None:
    """Checks the disk before a checkpoint is written.

    Raises:
        CheckpointError: when less than ``needed`` bytes, and a little, are free.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed * _HEADROOM:
        raise CheckpointError(
            f"{_full_disk_message(folder)} (a checkpoint takes {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free)"
        )


def _full_disk_message(folder: Path) -> str:
    last = last_checkpoint(folder)
    kept = f"{last.name} is whole" if last else "there is no earlier one"
    return (
        f"the disk under {folder} is full and the checkpoint was not written; {kept}. Make room, or set output_dir or "
        "save_total_limit, and start the run again: it goes on from its last checkpoint"
    )


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    # torch's and safetensors' writers put the system's words, or their own, into errors of their own.
    said = ("No space left", "quota", "PytorchStreamWriter", "file write failed", "unexpected pos")
    return any(words in str(error) for words in said)
