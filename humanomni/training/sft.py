"""Supervised fine-tuning: the cold start of CA-EMER, on explanations with their answers."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.utils import add_fused_lm_head

from humanomni.media import MediaError
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import MODALITIES
from humanomni.records import JsonlWriter, Record
from humanomni.training.checkpoints import STOPPED, StopOnRequest, WholeCheckpoints, last_checkpoint
from humanomni.training.clips import ClipLoader, TrainingClip
from humanomni.training.data_mixing import parse_sources, read_mixture
from humanomni.training.dry_run import describe_run
from humanomni.training.encoded_clips import EncodedClip, EncodedClips, Towers
from humanomni.training.model import compile_layers, load_model
from humanomni.training.run import (
    ConfigurationError,
    StageArguments,
    end_processes,
    output_folder,
    require_finite,
    require_known,
    require_path,
    require_same_run,
    save_manifest,
    set_up_logging,
)

logger = logging.getLogger(__name__)


@dataclass
class SFTArguments(StageArguments, TrainingArguments):
    """Keys of ``configs/*/sft.yaml``, besides those of transformers' TrainingArguments."""

    validation_data: str | None = field(default=None, metadata={"help": "JSONL for the validation loss"})
    tower_cache: str | None = field(
        default=None, metadata={"help": "folder for what the frozen towers make of clips; none: they run in every pass"}
    )
    max_length: int = field(default=4096, metadata={"help": "tokens with media; longer samples are skipped, not cut"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tower_cache and (trained := {"vision_tower", "audio_tower"} & set(self.trainable_parts)):
            raise ConfigurationError(
                f"tower_cache keeps what frozen towers make of clips, and trainable_parts trains {', '.join(trained)}: "
                "leave one of them out"
            )
        self.label_names = ["labels"]
        self.prediction_loss_only = True


@dataclass(frozen=True)
class SFTSample:
    """One record, tokenised; ``problem`` says why it carries no loss."""

    record: Record
    modality: str
    prompt_ids: list[int]
    target_ids: list[int]
    clip: TrainingClip | EncodedClip | None
    problem: str | None = None


class SFTDataset(Dataset):
    """Records as :class:`SFTSample`; a clip that cannot be read is a sample with a problem, never another record."""

    def __init__(
        self,
        records: Sequence[Record],
        processor: HumanOmniProcessor,
        clips: ClipLoader | EncodedClips,
        args: SFTArguments,
    ) -> None:
        self.records = records
        self.processor, self.clips = processor, clips
        self.modality, self.max_length = args.modality, args.max_length
        if without := [record.id for record in self.records if record.target is None]:
            raise ConfigurationError(f"{len(without)} records have no gpt turn, the first is {without[0]}")
        for record in self.records:
            require_known(f"modality of {record.id}", [self.modality_of(record)], MODALITIES)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> SFTSample:
        record, processor = self.records[index], self.processor
        modality = self.modality_of(record)
        prompt = processor.expand(processor.prompt(record.question, modality))
        # The end token and the newline after it belong to the target, as in the chat template.
        target = f"{record.target}{processor.tokenizer.eos_token}\n"
        prompt_ids, target_ids = processor.tokenizer([prompt, target], add_special_tokens=False)["input_ids"]
        if (tokens := len(prompt_ids) + len(target_ids)) > self.max_length:
            return self._without_loss(record, f"{tokens} tokens are over max_length {self.max_length}")
        try:
            clip = self.clips.of(modality).load(Path(record.video), record.start, record.end)
        except MediaError as error:
            return self._without_loss(record, str(error))
        return SFTSample(record, modality, prompt_ids, target_ids, clip)

    def modality_of(self, record: Record) -> str:
        """The record's own, or the run's."""
        return record.extra.get("modality", self.modality)

    def _without_loss(self, record: Record, problem: str) -> SFTSample:
        """A row that takes its record's place in the batch, is short and teaches nothing."""
        return SFTSample(record, "text", [self.processor.tokenizer.eos_token_id] * 2, [], None, problem)


class SFTCollator:
    """Right-padded batches whose loss lies on the assistant's turn alone, its end token included.

    They have no attention mask: tokens look back, where no padding is, and the kernel for plain causal attention takes
    a third of the time of the one for a mask (docs/performance.md).
    """

    def __init__(self, processor: HumanOmniProcessor, clips: ClipLoader | EncodedClips) -> None:
        self.processor, self.clips = processor, clips

    def __call__(self, samples: Sequence[SFTSample]) -> dict[str, Any]:
        ids, labels = [], []
        for sample in samples:
            masked = [-100] * len(sample.prompt_ids)
            ids.append(torch.tensor(sample.prompt_ids + sample.target_ids))
            labels.append(torch.tensor(masked + sample.target_ids))
        pad = self.processor.tokenizer.pad_token_id
        modalities = [sample.modality for sample in samples]
        media = self.clips.batch([cast(Any, sample.clip) for sample in samples], modalities)
        media |= self.processor.gate_inputs([sample.record.question for sample in samples], modalities)
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
            **media,
            "ids": [sample.record.id for sample in samples],
            "problems": [(sample.record, sample.problem) for sample in samples if sample.problem],
        }


class SFTTrainer(WholeCheckpoints, Trainer):
    """transformers' trainer that writes down what it could not learn from and stops at a loss that is no number."""

    def __init__(self, model: HumanOmniForConditionalGeneration, *args: Any, **kwargs: Any) -> None:
        # Logits of the targets alone, a tile at a time: all of a batch's in float32 would be its largest tensor.
        add_fused_lm_head(model)
        super().__init__(model, *args, **kwargs)
        self.skipped = SkippedSamples(output_folder(self.args) / f"skipped.rank{self.args.process_index}.jsonl")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The summed loss over the step's target tokens; 0, not 0 / 0, where all of its records were skipped.

        In an evaluation it is the batch's sum; :meth:`evaluation_loop` divides.
        """
        ids, problems = inputs.pop("ids"), inputs.pop("problems")
        for record, problem in problems:
            self.skipped.add(record, problem)
        inputs["fused_lm_head"] = True
        if model.training:
            targets = (inputs["labels"] != -100).sum() if num_items_in_batch is None else num_items_in_batch
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch=max(targets, 1))
        else:
            inputs["labels"] = self._without_repeats(inputs["labels"])
            outputs = model(**inputs, num_items_in_batch=1)  # the sum
            targets = (inputs["labels"] != -100).sum()
            self._evaluated += torch.stack([outputs["loss"].double(), targets.double()])
            result = (outputs["loss"], outputs) if return_outputs else outputs["loss"]
        loss: Any = result[0] if return_outputs else result
        require_finite(loss, self.state.global_step, ids)
        return result

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the library's estimate knows neither media nor frozen parts, and holds the GPU up every pass."""
        return 0

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """transformers', with the mean loss of all target tokens; its own is that of the batches, empty ones as 0."""
        self._evaluated = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        summed, tokens = self.accelerator.reduce(self._evaluated).tolist()
        metrics = cast(dict[str, float], output.metrics)
        metrics.pop(f"{metric_key_prefix}_loss", None)
        if tokens:
            metrics[f"{metric_key_prefix}_loss"] = summed / tokens
        else:
            logger.warning("no record of validation_data can be used, and so there is no validation loss")
        return output

    def _without_repeats(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels [rows, tokens] without those by which accelerate fills the processes' last batches up."""
        last = self.accelerator.gradient_state
        if not last.end_of_dataloader or last.remainder <= 0:
            return labels
        own = last.remainder - self.args.process_index * self.args.per_device_eval_batch_size
        row = torch.arange(len(labels), device=labels.device).unsqueeze(1)
        return labels.masked_fill(row >= own, -100)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs | {"skipped": self.skipped.count}, *args, **kwargs)


class SkippedSamples:
    """A JSONL of the samples that carried no loss, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[str] = set()

    @property
    def count(self) -> int:
        """Samples skipped so far by this process."""
        return len(self._seen)

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
        ConfigurationError: for a path that is missing, data that cannot be used, or a folder that holds the checkpoints
            of a run of another configuration.
    """
    set_up_logging(args)
    model_path = require_path("model_path", args.model_path)
    sources = parse_sources("train_data", args.train_data)
    data_root = require_path("data_root", args.data_root) if args.data_root else None
    checkpoint = last_checkpoint(output_folder(args))
    if checkpoint is not None:
        require_same_run(args)

    processor = HumanOmniProcessor.from_pretrained(model_path)
    model = load_model(model_path, args)
    clips: ClipLoader | EncodedClips
    clips = ClipLoader(processor, args.modality, Path(args.clip_cache) if args.clip_cache else None)
    if args.tower_cache:
        towers = Towers(model_path, torch.bfloat16 if args.bf16 else torch.float32)
        clips = EncodedClips(clips, towers, Path(args.tower_cache))
    train = SFTDataset(read_mixture(sources, data_root, args.seed), processor, clips, args)
    validation = None
    if args.validation_data:
        held_out = read_mixture(parse_sources("validation_data", args.validation_data), data_root, args.seed)
        validation = SFTDataset(held_out, processor, clips, args)

    datasets = [train] if validation is None else [train, validation]
    wanted = [(record, dataset.modality_of(record)) for dataset in datasets for record in dataset.records]
    logger.info("SFT\n%s", describe_run(args, model, len(train)))
    if args.dry_run:
        if isinstance(clips, EncodedClips):
            logger.info("tower_cache: %s", clips.describe(wanted))
        return
    if args.process_index == 0:
        save_manifest(args, stage="sft", records=len(train))
    if isinstance(clips, EncodedClips):
        clips.encode(wanted, args.device)
    compile_layers(model, args)
    stop = StopOnRequest()
    trainer = SFTTrainer(
        model=model,
        args=args,
        data_collator=SFTCollator(processor, clips),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=[stop],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not stop.stopped:
        trainer.save_result()
        trainer.save_state()
    end_processes(trainer.accelerator)
    if stop.stopped:
        sys.exit(STOPPED)
