"""TRL's GRPO trainer with clips: media reach policy and reference, and each clip is encoded once a step.

TRL carries the fields that it knows through generation, scoring and loss, and drops all others. Here the step's media
are kept beside its buffers, one entry a clip, and every row carries the index of its clip. The private methods that
are overridden belong to trl 1.16; the model raises when placeholders come without media, so a change there is seen.
"""

import functools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from humanomni.media import MediaError
from humanomni.modeling import HumanOmniModel
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import Turn
from humanomni.training.checkpoints import WholeCheckpoints
from humanomni.training.clips import ClipLoader, TrainingClip, batch_media
from humanomni.training.completion_log import CompletionLog, sample_of
from humanomni.training.judge_watch import JudgeWatch
from humanomni.training.rewards import CoherenceReward, text_of
from humanomni.training.run import require_finite

logger = logging.getLogger(__name__)

_DECODING_THREADS = 8


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order of its own in each epoch, also where a run resumes (TRL's replays the first)."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of an epoch."""
        self.generator.manual_seed((self.seed or 0) + epoch)


class HumanOmniGRPOTrainer(WholeCheckpoints, GRPOTrainer):
    """GRPO on clips.

    Two rules differ from TRL's. A reward that is missing for one completion is left out for its whole group:
    completions are compared on the rewards that all of them have, so a judge's silence never makes an answer look worse
    than its siblings. And completions of a clip that cannot be read have no reward at all, and so no advantage.

    Args:
        clips: decodes the conversations' clips.
        judge_watch: told of every step's missing judgements; the run stops with a checkpoint when it says so.
        completion_log: gets a sample of completions every few steps; None for none.
    """

    args: GRPOConfig
    model: nn.Module
    processing_class: HumanOmniProcessor
    num_generations: int
    num_generations_eval: int
    reward_funcs: list[Any]

    def __init__(
        self,
        *args: Any,
        clips: ClipLoader,
        judge_watch: JudgeWatch,
        completion_log: CompletionLog | None = None,
        **kwargs: Any,
    ) -> None:
        self.clips = clips
        self.judge_watch = judge_watch
        self.completion_log = completion_log
        self._records: list[dict[str, Any]] = []
        # Media of the last generation, one row a clip, by mode: an evaluation between two steps of one buffer must not
        # replace the training clips.
        self._media: dict[str, dict[str, Tensor]] = {}
        self._clip_index = torch.empty(0, dtype=torch.long)
        self._unreadable = torch.empty(0, dtype=torch.bool)
        super().__init__(*args, **kwargs)
        self.add_callback(judge_watch)  # whose state each checkpoint keeps

    @property
    def _coherence_rewards(self) -> list[CoherenceReward]:
        return [reward for reward in self.reward_funcs if isinstance(reward, CoherenceReward)]

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        stock = cast(RepeatSampler, super()._get_train_sampler(dataset))
        return EpochSampler(
            data_source=stock.data_source,
            mini_repeat_count=stock.mini_repeat_count,
            batch_size=stock.batch_size,
            repeat_count=stock.repeat_count,
            shuffle=stock.shuffle,
            seed=stock.seed,
        )

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict[str, Tensor]]:
        """Token ids a row, and the media of each distinct clip, expanded to the rows for generation."""
        turns = [Turn.of(prompt) for prompt in prompts]
        distinct = list(dict.fromkeys(turns))
        device = self.accelerator.device
        self._clip_index = torch.tensor([distinct.index(turn) for turn in turns], device=device)

        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            decoded = list(pool.map(self._decode, distinct))
        unreadable = [turn.video is not None and clip is None for turn, clip in zip(distinct, decoded, strict=True)]
        self._unreadable = torch.tensor(unreadable, device=device)[self._clip_index]

        processor = self.processing_class
        texts = [processor.prompt(turn.question, turn.modality) for turn in distinct]
        ids = processor.tokenizer([processor.expand(text) for text in texts], add_special_tokens=False)["input_ids"]
        media = self._encode(decoded, distinct)
        self._media[self._mode] = media
        rows = self._clip_index.tolist()
        return [ids[row] for row in rows], None, {name: value[self._clip_index] for name, value in media.items()}

    def _decode(self, turn: Turn) -> TrainingClip | None:
        if turn.video is None:
            return None
        try:
            return self.clips.load(Path(turn.video), turn.start, turn.end)
        except MediaError as error:
            logger.warning("no reward for the completions of a clip that cannot be read: %s", error)
            return None

    def _encode(self, clips: Sequence[TrainingClip | None], turns: Sequence[Turn]) -> dict[str, Tensor]:
        """The model's media inputs, one row a clip; the outputs of frozen towers in place of their inputs."""
        modalities = [turn.modality for turn in turns]
        media = batch_media(clips, modalities, self.processing_class)
        if "pixel_values" in media:
            media |= self.processing_class.gate_inputs([turn.question for turn in turns], modalities)
        media = {name: value.to(self.accelerator.device) for name, value in media.items()}
        core: HumanOmniModel = self.accelerator.unwrap_model(self.model).model
        with torch.no_grad(), self.accelerator.autocast():
            if "pixel_values" in media and _is_frozen(core.vision_tower):
                media["vision_features"] = core.encode_frames(media.pop("pixel_values"))
            if "input_features" in media and _is_frozen(core.audio_tower):
                media["audio_features"] = core.encode_audio(media.pop("input_features"))
        return media

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._records = inputs
        output = super()._generate_and_score_completions(inputs)
        output["clip_index"] = self._clip_index
        output["record_ids"] = [row["id"] for row in inputs]
        return output

    def _generate(self, prompts: list) -> Any:
        """TRL's rollouts; the judge then reads them while the reference model scores them."""
        generated = super()._generate(prompts)
        for reward in self._coherence_rewards:
            reward.begin(generated[3], [row["solution"] for row in self._records])
        return generated

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._clip_index = inputs["clip_index"]
        loss = super()._compute_loss(model, inputs)
        require_finite(loss, self.state.global_step, inputs["record_ids"])
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """TRL's, in chunks of ``batch_size`` rows with the media of each row's clip."""
        media, clip_index = self._media[self._mode], self._clip_index
        chunk_size = batch_size or input_ids.shape[0]
        chunks = []
        for start in range(0, input_ids.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            with_media = functools.partial(model, **{name: value[clip_index[rows]] for name, value in media.items()})
            chunks.append(
                super()._get_per_token_logps_and_entropies(
                    with_media, input_ids[rows], attention_mask[rows], logits_to_keep, **kwargs
                )
            )
        logps, entropies, aux_losses = zip(*chunks, strict=True)
        return (
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """Rewards [rows of all processes, functions], NaN where missing, by the two rules of this class."""
        started = time.perf_counter()
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._metrics[self._mode]["rewards/seconds"].append(time.perf_counter() - started)
        rewards[gather(self._unreadable)] = torch.nan
        if self._mode == "train":
            self._watch_judge()
            self._log_sample(completions, rewards)
        group_size = self.num_generations if self._mode == "train" else self.num_generations_eval
        return comparable_rewards(rewards, gather(self._unreadable), group_size)

    def _watch_judge(self) -> None:
        judged = self._coherence_rewards
        if not judged:
            return
        counts = torch.tensor([[reward.asked, reward.missing] for reward in judged], device=self.accelerator.device)
        asked, missing = gather(counts.sum(dim=0, keepdim=True)).sum(dim=0).tolist()
        self.judge_watch.add(asked, missing)
        for reward in judged:
            self.judge_watch.see(reward.response)
        self.judge_watch.share(self.accelerator.device)
        if self.accelerator.is_main_process:
            for name, value in self.judge_watch.canaries(self.state.global_step).items():
                self._metrics["train"][name].append(value)
        if self.judge_watch.message:
            logger.error("%s", self.judge_watch.message)
            self.control.should_save = True
            self.control.should_training_stop = True

    def _log_sample(self, completions: list[Any], rewards: Tensor) -> None:
        """Rows of the first process, which stand first among the gathered rewards."""
        log, step = self.completion_log, self.state.global_step
        if log is None or not log.due(step) or not self.accelerator.is_main_process:
            return
        judged = self._coherence_rewards[0].results if self._coherence_rewards else {}
        samples = []
        for row in range(min(log.rows, len(completions))):
            values = [None if value != value else value for value in rewards[row].tolist()]
            named = dict(zip(self.reward_func_names, values, strict=True))
            samples.append(sample_of(step, self._records[row], text_of(completions[row]), named, judged.get(row)))
        log.write(samples, step, self.callback_handler.callbacks)


def comparable_rewards(rewards: Tensor, unreadable: Tensor, group_size: int) -> Tensor:
    """Leaves a reward that is missing for one readable completion out for its whole group.

    Args:
        rewards: [rows, functions], NaN where missing; rows of a group follow one another.
        unreadable: [rows], completions of clips that cannot be read, which have no rewards and take none away.
        group_size: completions of one prompt.

    Returns:
        [rows, functions].
    """
    missing = (rewards.isnan() & ~unreadable.unsqueeze(1)).view(-1, group_size, rewards.shape[1])
    missing_in_group = missing.any(dim=1, keepdim=True).expand_as(missing).reshape(rewards.shape)
    return rewards.masked_fill(missing_in_group, torch.nan)


def _is_frozen(module: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())
