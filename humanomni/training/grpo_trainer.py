"""TRL's GRPO trainer with clips: media reach policy and reference, and each clip is encoded once a step.

TRL carries the fields that it knows through generation, scoring and loss, and drops all others. Here the step's media
are kept beside its buffers, one entry a clip, and every row carries the index of its clip. The private methods that
are overridden belong to trl 1.16; the model raises when placeholders come without media, so a change there is seen.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import RepeatSampler, add_fused_lm_head, split_tensor_dict

from humanomni.decoding_layers import cast_parameters
from humanomni.media import MediaError
from humanomni.modeling import HumanOmniForConditionalGeneration, HumanOmniModel, cast_ahead
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import Turn
from humanomni.towers import encode_audio, encode_frames
from humanomni.training.checkpoints import WholeCheckpoints
from humanomni.training.clips import ClipLoader, TrainingClip, batch_media
from humanomni.training.completion_log import CompletionLog, sample_of
from humanomni.training.groups import pack_groups
from humanomni.training.judge_watch import JudgeWatch
from humanomni.training.lora import switch_off_adapter
from humanomni.training.model import gather_by_blocks, is_frozen
from humanomni.training.rewards import CoherenceReward, text_of
from humanomni.training.run import StageArguments, require_finite

logger = logging.getLogger(__name__)

_DECODING_THREADS = 8


class EpochSampler(RepeatSampler):
    """TRL's sampler with an order of its own in each epoch, also where a run resumes (TRL's replays the first)."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of an epoch."""
        if self.shuffle:
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
    _buffered_inputs: Any

    def __init__(
        self,
        model: HumanOmniForConditionalGeneration,
        args: GRPOConfig,
        *,
        clips: ClipLoader,
        judge_watch: JudgeWatch,
        completion_log: CompletionLog | None = None,
        **kwargs: Any,
    ) -> None:
        self.clips = clips
        self.judge_watch = judge_watch
        self.completion_log = completion_log
        # Records and media of the last generation, a medium a clip, by mode: an evaluation between two steps of one
        # buffer must not replace those of training.
        self._records: dict[str, list[dict[str, Any]]] = {}
        self._media: dict[str, dict[str, Tensor]] = {}
        self._clip_index = torch.empty(0, dtype=torch.long)
        self._unreadable = torch.empty(0, dtype=torch.bool)
        self._shuffled = False
        beta = args.beta
        reference = self._reference(model, args) if beta else None
        args.beta = 0.0  # TRL's reference would be a second full model
        super().__init__(model=model, args=args, **kwargs)
        args.beta = self.beta = beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            if cast(StageArguments, args).sharding_stage < 3:
                self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            else:
                shard: Callable[..., Any] = prepare_fsdp if self.is_fsdp_enabled else prepare_deepspeed
                self.ref_model = shard(reference, self.accelerator)
        self.add_callback(judge_watch)  # whose state each checkpoint keeps

    @staticmethod
    def _reference(model: HumanOmniForConditionalGeneration, args: Any) -> HumanOmniForConditionalGeneration:
        """The model that the policy starts from: its own frozen parts, or read again where weights are sharded."""
        if args.sharding_stage == 3:
            reference = HumanOmniForConditionalGeneration.from_pretrained(args.model_path, dtype=model.dtype)
            reference.requires_grad_(False)
            if args.deepspeed:
                gather_by_blocks(reference)
            return reference
        reference = reference_of(model)
        if args.bf16:
            # Under autocast, what it would cast at every use, once; DeepSpeed's engine has no autocast and no float32.
            (cast_parameters if args.deepspeed else cast_ahead)(reference, torch.bfloat16)
        return reference

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
        media = batch_media(clips, modalities, self.processing_class, self.accelerator.device)
        if "pixel_values" in media:
            media |= self.processing_class.gate_inputs([turn.question for turn in turns], modalities)
        media = {name: value.to(self.accelerator.device) for name, value in media.items()}
        if self.is_fsdp_enabled:
            return media  # FSDP gathers a tower's weights within the model's own forward alone
        core: HumanOmniModel = self.accelerator.unwrap_model(self.model).model
        with torch.no_grad(), self.accelerator.autocast():
            if "pixel_values" in media and is_frozen(core.vision_tower):
                media["vision_features"] = encode_frames(core.vision_tower, media.pop("pixel_values"))
            if "input_features" in media and is_frozen(core.audio_tower):
                media["audio_features"] = encode_audio(core.audio_tower, media.pop("input_features"))
        return media

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: None,
        multimodal_fields: dict[str, Tensor],
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], None]:
        """TRL's, with one prefill for the completions of a prompt, which follow one another; decoding is in bf16."""
        group = math.gcd(num_generations, len(prompt_ids))
        self.generation_config.num_return_sequences = group
        media = {name: value[::group] for name, value in multimodal_fields.items()}
        with self.accelerator.autocast():
            return super()._generate_single_turn(prompt_ids[::group], images, media, num_generations)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._records[self._mode] = inputs
        output = super()._generate_and_score_completions(inputs)
        output["clip_index"] = self._clip_index
        output["row"] = torch.arange(len(inputs), device=self._clip_index.device)
        self._shuffled = self._mode == "train"
        return output

    def _generate(self, prompts: list) -> Any:
        """TRL's rollouts; the judge then reads them while the reference model scores them."""
        generated = super()._generate(prompts)
        for reward in self._coherence_rewards:
            reward.begin(generated[3], [row["solution"] for row in self._records[self._mode]])
        return generated

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's buffers, with the completions of a prompt side by side again, so that one pass can share the prompt."""
        inputs = super()._prepare_inputs(generation_batch)
        if self._shuffled:
            self._shuffled = False
            parts: list[dict[str, Any]] = self._buffered_inputs
            order = torch.cat([part["clip_index"] for part in parts]).argsort(stable=True)
            whole = {
                name: torch.cat([part[name] for part in parts])[order] if value.dim() else value
                for name, value in parts[0].items()
            }
            self._buffered_inputs = split_tensor_dict(whole, len(parts))
            inputs = self._buffered_inputs[self._step % len(parts)]
        return inputs

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._clip_index = inputs["clip_index"]
        loss = super()._compute_loss(model, inputs)
        records = self._records[self._mode]
        require_finite(loss, self.state.global_step, [records[row]["id"] for row in inputs["row"].tolist()])
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probs and entropies of the completions [rows, tokens], as TRL's, 0 where masked.

        The completions of a prompt that follow one another are one sequence, in which the prompt runs once; about
        ``batch_size`` rows at a time.
        """
        clip_index = self._clip_index
        group = math.gcd(*torch.unique_consecutive(clip_index, return_counts=True)[1].tolist())
        prompts = clip_index[::group]
        packed = pack_groups(input_ids, attention_mask, logits_to_keep, group)
        media = self._media[self._mode]
        a_pass = max(1, (batch_size or len(input_ids)) // group)
        logps, entropies = [], []
        for rows in torch.arange(len(prompts), device=clip_index.device).split(a_pass):
            inputs = {name: value[rows] for name, value in packed.items()}
            inputs |= {name: value[prompts[rows]] for name, value in media.items()}
            with self.accelerator.autocast():
                outputs = model(**inputs, fused_lm_head=True)
            scored = -group * logits_to_keep
            logps.append(outputs.log_probs[:, scored:].reshape(-1, logits_to_keep))
            if compute_entropy:
                entropies.append(outputs.entropy[:, scored:].reshape(-1, logits_to_keep))
        return torch.cat(logps), torch.cat(entropies) if entropies else None, None

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
            samples.append(
                sample_of(step, self._records["train"][row], text_of(completions[row]), named, judged.get(row))
            )
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


def reference_of(policy: HumanOmniForConditionalGeneration) -> HumanOmniForConditionalGeneration:
    """The policy as it is before training, frozen: its frozen parts are the policy's own, the others are copied."""
    memo = {id(parameter): parameter for parameter in policy.parameters() if not parameter.requires_grad}
    reference = copy.deepcopy(policy, memo).requires_grad_(False).eval()
    # The frozen parts are shared, so their trainability is the policy's; they had none.
    switch_off_adapter(reference)  # it changes nothing yet, and would cost time
    return reference
