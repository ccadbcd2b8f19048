"""GRPO of CA-EMER on TRL: phase 1 and 3 with format and accuracy, phase 2 with coherence."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import datasets
from trl import GRPOConfig

from fgce.client import FgceClient
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import Turn
from humanomni.records import Record
from humanomni.training.checkpoints import STOPPED, StopOnRequest, last_checkpoint
from humanomni.training.clips import ClipLoader
from humanomni.training.completion_log import CompletionLog
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.dry_run import describe_run
from humanomni.training.grpo_trainer import HumanOmniGRPOTrainer
from humanomni.training.judge_watch import (
    JudgeUnavailableError,
    JudgeWatch,
    ask_identity,
    probe_servers,
    require_same_judge,
)
from humanomni.training.model import load_model
from humanomni.training.rewards import REWARDS, CoherenceReward, make_rewards
from humanomni.training.run import (
    ConfigurationError,
    StageArguments,
    end_processes,
    output_folder,
    require_known,
    require_path,
    require_same_run,
    save_manifest,
    set_up_logging,
)

logger = logging.getLogger(__name__)


# TRL looks at these names when the first batch is scored, or not at all.
_NAMES = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@dataclass
class GRPOArguments(StageArguments, GRPOConfig):  # type: ignore[misc] # TRL declares its own type of a field
    """Keys of ``configs/*/grpo*.yaml``, besides those of TRL's GRPOConfig."""

    rewards: list[str] = field(
        default_factory=lambda: ["format", "accuracy"], metadata={"help": f"of {', '.join(REWARDS)}"}
    )
    fgce_url: str | None = field(default=None, metadata={"help": "FG-CE server(s); else FGCE_URL, else POD_IP"})
    fgce_deadline: float = field(default=120.0, metadata={"help": "seconds for the judgements of a step"})
    judge_window: int = field(default=20, metadata={"help": "steps over which missing judgements are counted"})
    judge_max_missing: float = field(default=0.5, metadata={"help": "share of them at which the run stops"})
    canary_steps: int = field(default=50, metadata={"help": "every how many steps the judge's canaries are looked at"})
    allow_another_judge: bool = field(
        default=False, metadata={"help": "go on though rubric, judge or method has changed"}
    )
    sample_steps: int = field(default=10, metadata={"help": "every how many steps completions are logged; 0: never"})
    sample_rows: int = field(default=8, metadata={"help": "how many of them"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("rewards", [name.lower() for name in self.rewards], REWARDS)
        for key, known in _NAMES.items():
            require_known(key, [getattr(self, key)], known)
        if self.sync_ref_model:
            raise ConfigurationError(
                "sync_ref_model: the reference is the model that the run starts from, whose frozen parts are the "
                "policy's own, and is not renewed; leave it out"
            )
        if self.reward_weights is not None and len(self.reward_weights) != len(self.rewards):
            raise ConfigurationError(
                f"reward_weights: {len(self.reward_weights)} numbers for {len(self.rewards)} rewards; give one each"
            )

    @property
    def rows_a_record(self) -> int:
        """Completions of a prompt."""
        return self.num_generations or 1

    @property
    def prompts_a_generation(self) -> int:
        """Prompts whose completions are sampled together, on all GPUs."""
        return cast(int, self.generation_batch_size) // self.rows_a_record

    def batches_an_epoch(self, records: int) -> int:
        """Batches that a process takes in an epoch: of whole generations alone, each of which is gone through again."""
        return records // self.prompts_a_generation * self.num_iterations * cast(int, self.steps_per_generation)


def load_prompts(records: Sequence[Record], modality: str) -> datasets.Dataset:
    """Records as TRL's rows: ``prompt`` (a conversation that carries the clip's path), ``solution``, ``id``.

    Raises:
        ConfigurationError: when a record has no label to reward.
    """
    if without := [record.id for record in records if record.target is None]:
        raise ConfigurationError(f"{len(without)} records have no label, the first is {without[0]}")
    rows = []
    for record in records:
        turn = Turn(record.question, record.video, modality, record.start, record.end)
        rows.append({"prompt": turn.conversation(), "solution": record.target, "id": record.id})
    return datasets.Dataset.from_list(rows)


def run_grpo(args: GRPOArguments) -> None:
    """Runs, or goes on with, the phase that ``args`` describe.

    Raises:
        ConfigurationError: for a path that is missing, data that cannot be used, or a folder that holds the checkpoints
            of a run of another configuration.
        JudgeUnavailableError: when no judge answers at the start, or it failed too often; then a checkpoint is written.
    """
    set_up_logging(args)
    model_path = require_path("model_path", args.model_path)
    sources = parse_sources("train_data", args.train_data)
    data_root = require_path("data_root", args.data_root) if args.data_root else None
    checkpoint = last_checkpoint(output_folder(args))
    if checkpoint is not None:
        require_same_run(args)
    processor = HumanOmniProcessor.from_pretrained(model_path)
    # A sampled placeholder would ask the next forward for media that is not there.
    suppressed = {"suppress_tokens": processor.placeholder_ids}
    args.generation_kwargs = suppressed | (args.generation_kwargs or {})  # type: ignore[operator] # TRL made it a dict
    model = load_model(model_path, args)
    prompts = load_prompts(read_mixture(sources, data_root, args.seed), args.modality)
    if len(prompts) < args.prompts_a_generation:
        raise ConfigurationError(
            f"train_data: {len(prompts)} prompts are fewer than the {args.prompts_a_generation} whose completions are "
            "sampled together, so that no step could be taken; lower records_per_step, or give more records"
        )
    client = FgceClient(args.fgce_url, deadline=args.fgce_deadline)
    rewards = make_rewards(args.rewards, client)
    judged = any(isinstance(reward, CoherenceReward) for reward in rewards)
    described = describe_run(args, model, len(prompts), reference=args.beta != 0)
    logger.info("GRPO with %s\n%s", ", ".join(args.rewards), described)
    if args.dry_run:
        for url, health in probe_servers(args.fgce_url).items() if judged else ():
            logger.info("FG-CE at %s   %s", url, health.text)
        return

    identity = ask_identity(client) if judged else None
    if checkpoint is not None:
        identity = require_same_judge(checkpoint, identity, args.allow_another_judge)
    if args.process_index == 0:
        save_manifest(args, stage="grpo", records=len(prompts), rewards=args.rewards, judge=identity)
    stop = StopOnRequest()
    watch = JudgeWatch(
        args.judge_window,
        args.judge_max_missing,
        identity,
        args.fgce_url,
        args.canary_steps,
        args.allow_another_judge,
    )
    trainer = HumanOmniGRPOTrainer(
        model=model,
        args=args,
        reward_funcs=rewards,
        train_dataset=prompts,
        processing_class=processor,
        clips=ClipLoader(processor, args.modality, Path(args.clip_cache) if args.clip_cache else None),
        judge_watch=watch,
        completion_log=CompletionLog(output_folder(args) / "completions.jsonl", args.sample_steps, args.sample_rows),
        callbacks=[stop],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not watch.message and not stop.stopped:
        trainer.save_result()
        trainer.save_state()
    end_processes(trainer.accelerator)
    if watch.message:
        raise JudgeUnavailableError(watch.message)
    if stop.stopped:
        sys.exit(STOPPED)
