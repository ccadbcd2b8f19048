"""Supervised fine-tuning: the cold start of CA-EMER, on explanations with their answers."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from humanomni.media import MediaError
from humanomni.modeling import PARTS, HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import MODALITIES
from humanomni.records import JsonlWriter, Record
from humanomni.training.clips import ClipLoader, TrainingClip, batch_media
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.run import (
    ConfigurationError,
    describe_run,
    last_checkpoint,
    output_folder,
    require_known,
    require_path,
    save_manifest,
    set_up_logging,
)

logger = logging.getLogger(__name__)

# The authors freeze both towers and BERT.
SFT_PARTS = ("projector", "audio_projector", "gate", "language_model")


@dataclass
class SFTArguments(TrainingArguments):
    """Keys of ``configs/*/sft.yaml``, besides those of transformers' TrainingArguments."""

    model_path: str = field(default="", metadata={"help": "native HumanOmni folder to start from"})
    train_data: list[str] | str = field(
        default="", metadata={"help": "JSONL of SFT records; PATH@random:20%% for a part"}
    )
    validation_data: str | None = field(default=None, metadata={"help": "JSONL for the validation loss"})
    data_root: str | None = field(default=None, metadata={"help": "folder of relative clip paths; the JSONL's"})
    clip_cache: str | None = field(default=None, metadata={"help": "folder for decoded clips; none: decode every time"})
    modality: str = field(default="video_audio", metadata={"help": "media in the prompt"})
    trainable_parts: list[str] = field(
        default_factory=lambda: list(SFT_PARTS), metadata={"help": f"parts to train, of {', '.join(PARTS)}"}
    )
    max_length: int = field(default=4096, metadata={"help": "tokens with media; longer samples are skipped, not cut"})
    dry_run: bool = field(default=False, metadata={"help": "say what would happen and stop"})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known("modality", [self.modality], MODALITIES)
        require_known("trainable_parts", self.trainable_parts, PARTS)
        self.remove_unused_columns = False
        self.label_names = ["labels"]


@dataclass(frozen=True)
class SFTSample:
    """One record, tokenised; ``problem`` says why it carries no loss."""

    record: Record
    modality: str
    prompt_ids: list[int]
    target_ids: list[int]
    clip: TrainingClip | None
    problem: str | None = None


class SFTDataset(Dataset):
    """Records as :class:`SFTSample`; a clip that cannot be read is a sample with a problem, never another record."""

    def __init__(
        self, records: Sequence[Record], processor: HumanOmniProcessor, clips: ClipLoader, args: SFTArguments
    ) -> None:
        self.records = records
        self.processor, self.clips = processor, clips
        self.modality, self.max_length = args.modality, args.max_length
        if without := [record.id for record in self.records if record.target is None]:
            raise ConfigurationError(f"{len(without)} records have no gpt turn, the first is {without[0]}")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> SFTSample:
        record = self.records[index]
        processor = self.processor
        prompt = processor.expand(processor.prompt(record.question, self.modality))
        # The end token and the newline after it belong to the target, as in the chat template.
        target = f"{record.target}{processor.tokenizer.eos_token}\n"
        prompt_ids, target_ids = processor.tokenizer([prompt, target], add_special_tokens=False)["input_ids"]
        clip, problem = None, None
        if len(prompt_ids) + len(target_ids) > self.max_length:
            problem = f"{len(prompt_ids) + len(target_ids)} tokens are over max_length {self.max_length}"
            target_ids = []
        try:
            clip = self.clips.load(Path(record.video), record.start, record.end)
        except MediaError as error:
            problem = str(error)
        return SFTSample(record, self.modality, prompt_ids, target_ids, clip, problem)


class SFTCollator:
    """Right-padded batches whose loss lies on the assistant's turn alone, its end token included."""

    def __init__(self, processor: HumanOmniProcessor) -> None:
        self.processor = processor

    def __call__(self, samples: Sequence[SFTSample]) -> dict[str, Any]:
        ids, labels = [], []
        for sample in samples:
            masked = [-100] * len(sample.prompt_ids)
            target = [-100] * len(sample.target_ids) if sample.problem else sample.target_ids
            ids.append(torch.tensor(sample.prompt_ids + sample.target_ids))
            labels.append(torch.tensor(masked + target))
        pad = self.processor.tokenizer.pad_token_id
        media = batch_media([sample.clip for sample in samples], self.processor)
        if "pixel_values" in media:
            media |= self.processor.gate_inputs(
                [sample.record.question for sample in samples], [sample.modality for sample in samples]
            )
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            # By length, not by id: a genuine end-of-text in a target must not be masked.
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            **media,
            "problems": [(sample.record, sample.problem) for sample in samples if sample.problem],
        }


class SFTTrainer(Trainer):
    """transformers' trainer that writes down what it could not learn from and stops at a loss that is no number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped = SkippedSamples(output_folder(self.args) / f"skipped.rank{self.args.process_index}.jsonl")

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        problems = inputs.pop("problems", [])
        for record, problem in problems:
            self.skipped.add(record, problem)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss: Tensor = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss) and (inputs["labels"] != -100).any():
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step}; lower the learning rate, or look at the "
                "data of this step (the sampler is seeded: the same run stops at the same batch)"
            )
        return result


class SkippedSamples:
    """A JSONL of the samples that carried no loss, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[str] = set()

    def add(self, record: Record, problem: str) -> None:
        """Writes the record's id, clip and problem down, the first time it is met."""
        if record.id in self._seen:
            return
        self._seen.add(record.id)
        logger.warning("skipped %s: %s (%d so far; all in %s)", record.id, problem, len(self._seen), self.path)
        with JsonlWriter(self.path) as writer:
            writer.write({"id": record.id, "video": record.video, "problem": problem})


def run_sft(args: SFTArguments) -> None:
    """Runs, or goes on with, the stage that ``args`` describe.

    Raises:
        ConfigurationError: for a path that is missing or data that cannot be used.
    """
    set_up_logging(args)
    model_path = require_path("model_path", args.model_path)
    sources = parse_sources("train_data", args.train_data)
    data_root = require_path("data_root", args.data_root) if args.data_root else None

    processor = HumanOmniProcessor.from_pretrained(model_path)
    # float32 masters whatever the checkpoint holds: AdamW's steps at these rates are lost in bfloat16 weights.
    model = HumanOmniForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32)
    model.set_trainable(args.trainable_parts)
    clips = ClipLoader(processor, args.modality, Path(args.clip_cache) if args.clip_cache else None)
    train = SFTDataset(read_mixture(sources, data_root, args.seed), processor, clips, args)
    validation = None
    if args.validation_data:
        held_out = read_mixture(parse_sources("validation_data", args.validation_data), data_root, args.seed)
        validation = SFTDataset(held_out, processor, clips, args)

    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    logger.info("SFT\n%s", describe_run(args, model, len(train), per_step))
    if args.dry_run:
        return
    if args.process_index == 0:
        save_manifest(args, stage="sft", records=len(train))
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=SFTCollator(processor),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(args))
    trainer.save_model()
    trainer.save_state()
