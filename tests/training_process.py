"""A training run in a process of its own, to be killed at a given moment or run in several: python ... sft|grpo FLAGS.

KILL_AT_STEP=N kills it (SIGKILL) when optimizer step N has been taken, KILL_IN_SAVE=N amid its N-th checkpoint.
FIXED_ROLLOUTS=1 has GRPO's rollouts sampled, and then replaced by the same ones whatever the number of processes.
OWN_LOOP=1 ends it where transformers' loop, slow but right for weights of any kind, would sample them.
"""

import hashlib
import os
import signal
import sys
from typing import Any

import transformers.trainer
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from transformers import GenerationMixin, Trainer, TrainerCallback

from humanomni.training import grpo
from humanomni.training.grpo import GRPOArguments, run_grpo
from humanomni.training.grpo_trainer import HumanOmniGRPOTrainer
from humanomni.training.run import parse_arguments
from humanomni.training.sft import SFTArguments, run_sft


class KillAtStep(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == int(os.environ["KILL_AT_STEP"]):
            os.kill(os.getpid(), signal.SIGKILL)


def kill_in_save() -> None:
    saves = int(os.environ["KILL_IN_SAVE"])
    save = Trainer._save_rng_state

    def save_or_die(self: Trainer, folder: str) -> None:
        nonlocal saves
        saves -= 1
        if not saves:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, folder)

    Trainer._save_rng_state = save_or_die


class FixedRollouts(HumanOmniGRPOTrainer):
    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        super()._generate_single_turn(*args, **kwargs)
        completions = []
        for row, record in enumerate(self._records[self._mode]):
            answer = record["solution"] if row % self.num_generations % 2 else "contempt"
            cue = hashlib.sha256(f"{record['id']} {row % self.num_generations}".encode()).hexdigest()[:4]
            text = f"<think>She smiles {cue}.</think>\n<answer>{answer}</answer>"
            completions.append([*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id])
        return completions, None


def refuse_the_library_s_loop(*_: Any, **__: Any) -> None:
    raise AssertionError("transformers' loop samples the rollouts")


def shard_on_cpus() -> None:
    """Has accelerate take FSDP's plugin on CPUs, as it does on GPUs; there it drops it without a word and runs DDP."""
    start = AcceleratorState.__init__

    def with_plugin(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = with_plugin


def main() -> None:
    if "KILL_AT_STEP" in os.environ:
        transformers.trainer.DEFAULT_CALLBACKS.append(KillAtStep)
    if "KILL_IN_SAVE" in os.environ:
        kill_in_save()
    if "FIXED_ROLLOUTS" in os.environ:
        grpo.HumanOmniGRPOTrainer = FixedRollouts
    if "OWN_LOOP" in os.environ:
        GenerationMixin._sample = refuse_the_library_s_loop
    stage, *flags = sys.argv[1:]
    args = parse_arguments(SFTArguments if stage == "sft" else GRPOArguments, flags)
    if args.deepspeed and args.use_cpu:  # where nothing else tells it of the processes before it loads
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    if args.fsdp and args.use_cpu:
        shard_on_cpus()
    run_sft(args) if isinstance(args, SFTArguments) else run_grpo(args)


if __name__ == "__main__":
    main()
