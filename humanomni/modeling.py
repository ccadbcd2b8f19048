"""HumanOmni: Qwen2 that reads SigLIP frames and Whisper audio through a gated three-branch projector.

Shape suffixes: B batch, S sequence, T frames, N patches of a frame, L video or audio tokens, V/A/D widths of vision,
audio and language model, M mel bins, F mel frames.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BertModel, GenerationMixin, PreTrainedModel, Qwen2Model
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from humanomni.configuration import HumanOmniConfig
from humanomni.decoding import Decoder, ReadPrompts
from humanomni.decoding_layers import DecodingLayers
from humanomni.late_look import LateLook
from humanomni.projector import ThreeBranchProjector, mlp
from humanomni.token_rules import Ending, scoring
from humanomni.towers import VisionTower, audio_tower, encode_audio, encode_frames, vision_tower

# Inputs that only the prefill reads. `*_features` are tower outputs, which may stand in for the towers' inputs, so that
# frozen towers run once a clip however often its prompt is scored.
MEDIA_INPUTS = (
    "pixel_values",
    "vision_features",
    "input_features",
    "audio_features",
    "gate_input_ids",
    "gate_attention_mask",
)

# The parts that training recipes name, each with the prefixes of its parameters.
PARTS = {
    "vision_tower": ("model.vision_tower.",),
    "audio_tower": ("model.audio_tower.",),
    "projector": ("model.projector.",),
    "audio_projector": ("model.audio_projector.",),
    "gate": ("model.gate.",),
    "bert": ("model.bert.",),
    "language_model": ("model.language_model.", "lm_head."),
}


@dataclass
class HumanOmniOutput(ModelOutput):
    """What :class:`HumanOmniForConditionalGeneration` returns: loss, logits [B, S, vocabulary], cache, states."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class HumanOmniPreTrainedModel(PreTrainedModel):
    """What transformers has to know of every HumanOmni class."""

    config_class = HumanOmniConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen2DecoderLayer", "SiglipEncoderLayer", "WhisperEncoderLayer", "BertLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _can_compile_fullgraph = True


class HumanOmniModel(HumanOmniPreTrainedModel):
    """Towers, projectors, gate and language model, without the vocabulary head."""

    def __init__(self, config: HumanOmniConfig) -> None:
        super().__init__(config)
        width = config.text_config.hidden_size
        self.vision_tower = vision_tower(config.vision_config)
        self.audio_tower = audio_tower(config.audio_config)
        self.projector = ThreeBranchProjector(config)
        self.audio_projector = mlp(config.audio_config.d_model, width)
        self.bert = BertModel._from_config(config.bert_config, add_pooling_layer=False)
        self.gate = nn.Sequential(
            nn.Linear(config.bert_config.hidden_size, config.gate_hidden_size),
            nn.GELU(),
            nn.Linear(config.gate_hidden_size, 3),
        )
        self.language_model = Qwen2Model._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def train(self, mode: bool = True) -> "HumanOmniModel":
        """Training mode, except for frozen encoders: BERT's dropout would only make the gate noisy.

        The authors' release leaves that dropout on, so its policy and reference differ before the first step.
        """
        super().train(mode)
        for encoder in (self.vision_tower, self.audio_tower, self.bert):
            if not any(p.requires_grad for p in encoder.parameters()):
                encoder.eval()
        return self

    def gate_weights(self, gate_input_ids: Tensor, gate_attention_mask: Tensor) -> Tensor:
        """Instruction tokens [B, S] -> weights [B, 3] of the video, body and face branches (softmax, float32)."""
        hidden = self.bert(gate_input_ids, attention_mask=gate_attention_mask).last_hidden_state
        return self.gate(hidden[:, 0]).softmax(dim=-1, dtype=torch.float32)

    def video_tokens(self, vision_features: Tensor, gate_input_ids: Tensor, gate_attention_mask: Tensor) -> Tensor:
        """SigLIP patches [B, T, N, V] and the gate's text -> fused video tokens [B, L, D]."""
        return self.projector(vision_features, self.gate_weights(gate_input_ids, gate_attention_mask))

    def audio_tokens(self, audio_features: Tensor) -> Tensor:
        """Whisper states [B, F/2, A] -> audio tokens [B, L, D], L = floor(F/2 / audio_pool)."""
        pooled = F.avg_pool1d(audio_features.transpose(1, 2), self.config.audio_pool).transpose(1, 2)
        return self.audio_projector(pooled)

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_features: Tensor | None = None,
        gate_input_ids: Tensor | None = None,
        gate_attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings with the media's tokens in the placeholders' places.

        Row b of every media tensor belongs to row b of ``input_ids``; rows without a placeholder of that kind are not
        run through its tower. A media tensor without rows, for prompts without its placeholders, runs its parts on
        one row of zeros whose tokens go nowhere: processes that reduce gradients together then all have theirs.

        Args:
            input_ids: [B, S] with one placeholder a feature, as the processor writes them.
            pixel_values: [B, T, 3, H, W], or ``vision_features`` [B, T, N, V] in its place.
            input_features: [B, M, F], or ``audio_features`` [B, F/2, A] in its place.
            gate_input_ids: [B, S'] tokens of the gate's tokenizer, with ``gate_attention_mask``.

        Returns:
            [B, S, D].

        Raises:
            ValueError: when placeholders and features differ in number, or the gate's text is missing.
        """
        video_mask = (input_ids == self.config.video_token_id) | (input_ids == self.config.image_token_id)
        audio_mask = input_ids == self.config.audio_token_id
        # A placeholder's own id may lie beyond the embedding table; its row is overwritten below.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(video_mask | audio_mask, 0))

        has_video = placeholder_rows(video_mask, self.config.num_video_tokens, pixel_values, vision_features, "video")
        if has_video is not None:
            if gate_input_ids is None or gate_attention_mask is None:
                raise ValueError("a prompt with <video> needs gate_input_ids and gate_attention_mask")
            media = cast(Tensor, pixel_values if vision_features is None else vision_features)
            rows = rows_or_zeros(media, has_video)
            patches = encode_frames(self.vision_tower, rows) if vision_features is None else rows
            asking = has_video if len(media) else slice(0, 1)
            tokens = self.video_tokens(patches, gate_input_ids[asking], gate_attention_mask[asking])
            embeds = embeds.masked_scatter(video_mask.unsqueeze(-1), tokens.to(embeds.dtype))

        has_audio = placeholder_rows(audio_mask, self.config.num_audio_tokens, input_features, audio_features, "audio")
        if has_audio is not None:
            media = cast(Tensor, input_features if audio_features is None else audio_features)
            rows = rows_or_zeros(media, has_audio)
            tokens = self.audio_tokens(encode_audio(self.audio_tower, rows) if audio_features is None else rows)
            embeds = embeds.masked_scatter(audio_mask.unsqueeze(-1), tokens.to(embeds.dtype))
        return embeds

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the language model over text and media; the media inputs are those of :meth:`embed`.

        Positions count from each row's first token, so left padding does not change a row by a rounding.
        """
        media = {name: kwargs.pop(name, None) for name in MEDIA_INPUTS}
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            if input_ids.shape[1] > 1:
                inputs_embeds = self.embed(input_ids, **media)
            else:  # A decoding step: no placeholder can be there, and no look at values keeps it compilable.
                inputs_embeds = self.get_input_embeddings()(input_ids)
        tokens = inputs_embeds.shape[:2] if inputs_embeds is not None else None
        if position_ids is None and attention_mask is not None and attention_mask.shape == tokens:
            position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            **kwargs,
        )


class HumanOmniForConditionalGeneration(HumanOmniPreTrainedModel, GenerationMixin):
    """HumanOmni with its vocabulary head: ``<think>explanation</think>\\n<answer>emotion</answer>`` from a clip."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: HumanOmniConfig) -> None:
        super().__init__(config)
        self.model = HumanOmniModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self._decoding_layers: DecodingLayers | None = None
        self._idle_decoders: list[Decoder] = []  # their caches and graphs serve the batches to come
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def set_trainable(self, parts: Iterable[str]) -> None:
        """Trains the named parts (keys of :data:`PARTS`) and freezes all others.

        Raises:
            ValueError: for a name that is no part.
        """
        parts = tuple(parts)
        if unknown := [part for part in parts if part not in PARTS]:
            raise ValueError(f"unknown parts {unknown}; a HumanOmni model has {', '.join(PARTS)}")
        prefixes = tuple(prefix for part in parts for prefix in PARTS[part])
        for name, parameter in self.named_parameters():
            # Whisper's sinusoidal positions are constants that happen to be stored as a parameter.
            parameter.requires_grad_(name.startswith(prefixes) and "audio_tower.embed_positions" not in name)
        self.model.train(self.training)

    def train(self, mode: bool = True) -> "HumanOmniForConditionalGeneration":
        """Nothing where training goes on: transformers' trainer asks before every pass, 10 ms for 3,000 modules."""
        return self if mode and self.training else super().train(mode)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_features: Tensor | None = None,
        gate_input_ids: Tensor | None = None,
        gate_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> HumanOmniOutput:
        """Next-token logits and, with labels, the shifted cross-entropy.

        Args:
            input_ids: [B, S]; the media inputs are those of :meth:`HumanOmniModel.embed`.
            position_ids: [B, S]; generate makes them only for a forward that names them.
            labels: [B, S], -100 where no loss is wanted; the mean runs over the others (or ``num_items_in_batch``).
            logits_to_keep: the last positions to compute logits for (0: all), or their indices.

        Raises:
            ValueError: when placeholders and features differ in number.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            vision_features=vision_features,
            input_features=input_features,
            audio_features=audio_features,
            gate_input_ids=gate_input_ids,
            gate_attention_mask=gate_attention_mask,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        return HumanOmniOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """The library's, under this model's names: after a load with ZeRO-3 it writes BERT's old ones (gamma, beta)."""
        super().save_pretrained(*args, **({"save_original_format": False} | kwargs))

    def prepare_inputs_for_generation(
        self, *args: Any, read: ReadPrompts | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The library's inputs; once the prompt is in the cache, without the media.

        ``read`` is named for ``generate`` to accept it, which refuses what no argument is named like.
        """
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if not kwargs.get("is_first_iteration"):
            for name in MEDIA_INPUTS:
                inputs.pop(name, None)
        return inputs

    def read_prompts(
        self, input_ids: Tensor, attention_mask: Tensor, max_length: int, copies: int = 1, **media: Tensor
    ) -> ReadPrompts:
        """Encodes the media and reads the prompts into a decoder's cache; ``generate(..., read=...)`` goes on there.

        Args:
            input_ids: [B, S], left-padded, with its mask; the media inputs are those of :meth:`HumanOmniModel.embed`.
            max_length: tokens of the longest prompt and its response together.
            copies: responses to each prompt, which share its reading.

        Raises:
            ValueError: when placeholders and features differ in number.
        """
        device = input_ids.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.lm_head.weight.dtype
        layers = self._decoding_layers
        if layers is None or not layers.serve(self.lm_head, dtype):
            layers = self._decoding_layers = None  # their memory is free before that of the next ones is taken
            self._idle_decoders.clear()
            layers = self._decoding_layers = DecodingLayers(self.model.language_model, self.lm_head, dtype)
        decoder = self._take_decoder(layers, len(input_ids) * copies, max_length)
        by_fsdp = isinstance(self, FSDPModule)
        if by_fsdp or hasattr(self.lm_head.weight, "ds_id"):
            self._decoding_layers = None  # a whole copy is not kept; what ZeRO-3 gathers is elsewhere the next time
        layers.refresh()
        if by_fsdp:  # whose weights are whole within the model's own forward alone
            cache = DynamicCache()
            outputs = self(input_ids, attention_mask=attention_mask, past_key_values=cache, logits_to_keep=1, **media)
            decoder.adopt(cache, attention_mask, copies)
            return ReadPrompts(decoder, outputs.logits[:, -1].float().repeat_interleave(copies, dim=0))
        embeds = self.model.embed(input_ids, **media)
        with torch.autocast(device, enabled=False):
            return ReadPrompts(decoder, decoder.prefill(embeds, attention_mask, copies))

    def _take_decoder(self, layers: DecodingLayers, rows: int, positions: int) -> Decoder:
        while self._idle_decoders:
            decoder = self._idle_decoders.pop()
            if decoder.fits(layers, rows, positions):
                return decoder
            del decoder  # its memory is free before that of the next one is taken
        return Decoder(layers, rows, positions)

    @contextmanager
    def _given_back(self, decoder: Decoder) -> Iterator[None]:
        """The decoder is idle afterwards, also where decoding fails: what is tried again then takes no second cache."""
        try:
            yield
        finally:
            if self.device.type == "cuda":  # its next prompts may be read on another stream
                torch.cuda.current_stream(self.device).synchronize()
            if decoder.layers is self._decoding_layers:
                self._idle_decoders.append(decoder)

    def _is_sharded(self) -> bool:
        # ZeRO-3's shards are empty but for those who gather them first; of FSDP only the second version is known here.
        by_fsdp = is_fsdp_managed_module(self) and not isinstance(self, FSDPModule)
        return by_fsdp or not all(parameter.numel() for parameter in self.parameters())

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """Greedy decoding and sampling over a static cache, in the place of transformers' loop.

        It goes on from the prompts that :meth:`read_prompts` has ``read``, or reads them. The ``num_return_sequences``
        rows of a prompt, which follow one another, share its reading. What this loop has no use for goes to the
        library's: sharded weights, streams, scores and caches to return.
        """
        read: ReadPrompts | None = model_kwargs.get("read")
        wants_more = streamer is not None or generation_config.return_dict_in_generate
        reads_embeddings = model_kwargs.get("inputs_embeds") is not None
        if wants_more or reads_embeddings or (read is None and self._is_sharded()):
            return super()._sample(  # type: ignore[misc] # its self is a protocol
                cast(torch.LongTensor, input_ids),
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus,
                streamer,
                **model_kwargs,
            )
        if read is None:
            copies = generation_config.num_return_sequences or 1
            media = {name: model_kwargs[name][::copies] for name in MEDIA_INPUTS if model_kwargs.get(name) is not None}
            prompts, mask = input_ids[::copies], model_kwargs["attention_mask"][::copies]
            read = self.read_prompts(prompts, mask, stopping_criteria.max_length, copies, **media)
        decoder, logits = read.decoder, read.logits
        rows, length = input_ids.shape
        score, ending, look = scoring(logits_processor), Ending(stopping_criteria), LateLook(rows, input_ids.device)
        with self._given_back(decoder), torch.autocast(input_ids.device.type, enabled=False):
            ids = input_ids.new_zeros(rows, stopping_criteria.max_length)
            ids[:, :length] = input_ids
            going_on = torch.ones(rows, dtype=torch.bool, device=input_ids.device)
            while True:
                scores = score(ids[:, :length], logits)
                if generation_config.do_sample:
                    # torch.multinomial's own way to draw one, without its check, which would wait for the GPU.
                    probabilities = scores.softmax(dim=-1)
                    tokens = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=-1)
                else:
                    tokens = scores.argmax(dim=-1)
                if generation_config._pad_token_tensor is not None:
                    tokens = tokens.where(going_on, generation_config._pad_token_tensor)
                ids[:, length] = tokens
                length += 1
                ending.strike_out(going_on, ids[:, :length])
                if length == ids.shape[1] or not look.any_goes_on(going_on):
                    break
                logits = decoder.step(tokens)
        return ids[:, :length]


def cast_ahead(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the frozen weights that autocast would cast at every use, those of matrix products and convolutions.

    Norms and embeddings keep their precision, as under autocast. Frozen towers are cast whole, for they then compute in
    ``dtype`` throughout, as the authors' do.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        tower = isinstance(module, VisionTower | WhisperEncoder)
        if tower or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            for parameter in module.parameters():
                if not parameter.requires_grad and (tower or id(parameter) not in embeddings):
                    parameter.data = parameter.data.to(dtype)


def rows_or_zeros(features: Tensor, mask: Tensor) -> Tensor:
    """The rows of ``features`` [B, ...] in the mask [B], or a row of zeros where it has none."""
    return features[mask] if len(features) else features.new_zeros(1, *features.shape[1:])


def placeholder_rows(
    mask: Tensor, tokens_per_clip: int, raw: Tensor | None, encoded: Tensor | None, kind: str
) -> Tensor | None:
    """Rows [B] (bool) that hold the placeholders of one clip, or None when no row does.

    Raises:
        ValueError: when a row holds another number than ``tokens_per_clip``, when there are placeholders and neither
            raw nor encoded features, or features and no placeholder.
    """
    counts = mask.sum(dim=1).tolist()
    features = raw if raw is not None else encoded
    if features is None:
        if any(counts):
            raise ValueError(
                f"the prompts hold {counts} <{kind}> placeholders a row but no {kind} features came with them: "
                "pass the processor's media outputs to every forward"
            )
        return None
    if not features.shape[0] and not any(counts):
        return mask.any(dim=1)
    if features.shape[0] != mask.shape[0]:
        raise ValueError(f"{features.shape[0]} rows of {kind} features for {mask.shape[0]} prompts")
    if any(count not in (0, tokens_per_clip) for count in counts) or not any(counts):
        raise ValueError(
            f"the prompts hold {counts} <{kind}> placeholders a row and the features make {tokens_per_clip} tokens a "
            "clip: prepare prompts and media with the same processor"
        )
    return mask.any(dim=1)


AutoModelForCausalLM.register(HumanOmniConfig, HumanOmniForConditionalGeneration)
