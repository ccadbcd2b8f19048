"""GRPO of CA-EMER on TRL: phase 1 and 3 with format and accuracy, phase 2 with coherence."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from trl import GRPOConfig

from fgce.canary import CANARIES
from fgce.client import FgceClient
from humanomni.modeling import PARTS, HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import MODALITIES, Turn
from humanomni.records import Record
from humanomni.training.clips import ClipLoader
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.grpo_trainer import HumanOmniGRPOTrainer, JudgeWatch
from humanomni.training.rewards import REWARDS, CoherenceReward, make_rewards
from humanomni.training.run import (
    ConfigurationError,
    describe_run,
    last_checkpoint,
    require_known,
    require_path,
    save_manifest,
    set_up_logging,
)
from humanomni.training.sft import SFT_PARTS

logger = logging.getLogger(__name__)


class JudgeUnavailableError(RuntimeError):
    """The judge left too many explanations without a score; the run stopped with a checkpoint."""


@dataclass
class GRPOArguments(GRPOConfig):
    """Keys of ``configs/*/grpo*.yaml``, besides those of TRL's GRPOConfig."""

    model_path: str = field(default="", metadata={"help": "native HumanOmni folder: the policy and its reference"})
    train_data: list[str] | str = field(
        default="", metadata={"help": "JSONL of records whose gpt turn is the label; PATH@random:20%% for a part"}
    )
    data_root: str | None = field(default=None, metadata={"help": "folder of relative clip paths; the JSONL's"})
    clip_cache: str | None = field(default=None, metadata={"help": "folder for decoded clips; none: decode every time"})
    modality: str = field(default="video_audio", metadata={"help": "media in the prompt"})
    # The authors train BERT too in this stage, though not in SFT.
    trainable_parts: list[str] = field(
        default_factory=lambda: list(SFT_PARTS), metadata={"help": f"parts to train, of {', '.join(PARTS)}"}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["format", "accuracy"], metadata={"help": f"of {', '.join(REWARDS)}"}
    )
    fgce_url: str | None = field(default=None, metadata={"help": "FG-CE server(s); else FGCE_URL, else POD_IP"})
    fgce_deadline: float = field(default=120.0, metadata={"help": "seconds for the judgements of a step"})
    judge_window: int = field(default=20, metadata={"help": "steps over which missing judgements are counted"})
    judge_max_missing: float = field(default=0.5, metadata={"help": "share of them at which the run stops"})
    dry_run: bool = field(default=False, metadata={"help": "say what would happen and stop"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("modality", [self.modality], MODALITIES)
        require_known("trainable_parts", self.trainable_parts, PARTS)
        require_known("rewards", [name.lower() for name in self.rewards], REWARDS)
        self.remove_unused_columns = False


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
        ConfigurationError: for a path that is missing or data that cannot be used.
        JudgeUnavailableError: when the judge failed too often; a checkpoint is written.
    """
    set_up_logging(args)
    model_path = require_path("model_path", args.model_path)
    sources = parse_sources("train_data", args.train_data)
    data_root = require_path("data_root", args.data_root) if args.data_root else None
    processor = HumanOmniProcessor.from_pretrained(model_path)
    # A sampled placeholder would ask the next forward for media that is not there.
    suppressed = {"suppress_tokens": processor.placeholder_ids}
    args.generation_kwargs = suppressed | (args.generation_kwargs or {})  # type: ignore[operator] # TRL made it a dict
    # float32 masters whatever the checkpoint holds: AdamW's steps at these rates are lost in bfloat16 weights.
    model = HumanOmniForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32)
    model.set_trainable(args.trainable_parts)
    prompts = load_prompts(read_mixture(sources, data_root, args.seed), args.modality)
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    per_step //= args.num_generations
    logger.info("GRPO with %s\n%s", ", ".join(args.rewards), describe_run(args, model, len(prompts), per_step))
    if args.dry_run:
        return

    client = FgceClient(args.fgce_url, deadline=args.fgce_deadline)
    rewards = make_rewards(args.rewards, client)
    if args.process_index == 0:
        judge = ask_rubric(client) if any(isinstance(reward, CoherenceReward) for reward in rewards) else None
        save_manifest(args, stage="grpo", records=len(prompts), rewards=args.rewards, judge=judge)
    trainer = HumanOmniGRPOTrainer(
        model=model,
        args=args,
        reward_funcs=rewards,
        train_dataset=prompts,
        processing_class=processor,
        clips=ClipLoader(processor, args.modality, Path(args.clip_cache) if args.clip_cache else None),
        judge_watch=JudgeWatch(args.judge_window, args.judge_max_missing),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args))
    if trainer.judge_watch.message:
        raise JudgeUnavailableError(trainer.judge_watch.message)
    trainer.save_model()
    trainer.save_state()


def ask_rubric(client: FgceClient) -> dict[str, Any] | None:
    """Rubric and judge behind the rewards, for the run's manifest; None (and a warning) when no server answers."""
    response = client.score_sync(CANARIES[:1])
    if response.rubric is None or response.judge is None:
        logger.warning("no FG-CE server answers; its judgements will be missing until one does")
        return None
    return {"rubric": response.rubric.model_dump(), "judge": response.judge.model_dump()}
