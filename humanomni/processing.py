"""HumanOmni's processor: text, clips and gate text in, tensors out."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from humanomni.configuration import HumanOmniConfig
from humanomni.media import Clip, MediaError, load_clip
from humanomni.prompts import (
    AUDIO_TOKEN,
    IMAGE_TOKEN,
    MODALITIES,
    VIDEO_TOKEN,
    gate_text,
    modality_of,
    require_style,
    user_content,
)

PLACEHOLDERS = (VIDEO_TOKEN, AUDIO_TOKEN, IMAGE_TOKEN)

# The authors pad frames to a square in training and squash them at inference; here both pad. Published checkpoints are
# compared with the authors' own inference numbers under "squash".
FRAME_FITS = ("pad", "squash")

_SILENCE = np.zeros(1, dtype=np.float32)


class HumanOmniProcessor(ProcessorMixin):
    """Joins the SigLIP image processor, the Whisper feature extractor, the tokenizer and the gate's tokenizer.

    Args:
        num_frames: frames T of a clip.
        num_video_tokens, num_audio_tokens: how often a placeholder is repeated; the configuration's properties.
        frame_fit: one of :data:`FRAME_FITS`.
        prompt_style: a key of :data:`humanomni.prompts.PROMPT_STYLES`: the prompts that the model was trained with.
    """

    def __init__(
        self,
        image_processor: Any = None,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        gate_tokenizer: Any = None,
        chat_template: str | None = None,
        num_frames: int = 8,
        num_video_tokens: int = 392,
        num_audio_tokens: int = 500,
        frame_fit: str = "pad",
        prompt_style: str = "native",
        **kwargs: Any,
    ) -> None:
        if frame_fit not in FRAME_FITS:
            raise ValueError(f"frame_fit is {frame_fit!r}; known are {', '.join(FRAME_FITS)}")
        self.num_frames = num_frames
        self.num_video_tokens = num_video_tokens
        self.num_audio_tokens = num_audio_tokens
        require_style(prompt_style)
        self.frame_fit = frame_fit
        self.prompt_style = prompt_style
        super().__init__(image_processor, feature_extractor, tokenizer, gate_tokenizer, chat_template=chat_template)

    @property
    def placeholder_ids(self) -> list[int]:
        """Ids that stand for media in a prompt and that a model must never generate."""
        return self.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS))

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "input_features",
            "gate_input_ids",
            "gate_attention_mask",
        ]

    def load_clip(
        self,
        path: str | Path,
        modality: str = "video_audio",
        start: float | None = None,
        end: float | None = None,
        gpu: int | None = None,
    ) -> Clip:
        """Decodes what a prompt of this modality shows of a file, or of its part between two seconds.

        An image is one picture, the middle one of a video, in all T frames: the projector's tokens need T, and none of
        them are made up.

        Args:
            gpu: of :func:`humanomni.media.load_clip`.

        Raises:
            MediaError: as :func:`humanomni.media.load_clip`, and when pictures are asked for and there are none.
        """
        media = MODALITIES[modality]
        pictures = "video" in media or "image" in media
        clip = load_clip(
            path,
            num_frames=1 if "image" in media else self.num_frames,
            sampling_rate=self.feature_extractor.sampling_rate,
            start=start,
            end=end,
            video=pictures,
            audio="audio" in media,
            max_audio_seconds=self.feature_extractor.chunk_length,  # the mel holds no more
            gpu=gpu,
        )
        if pictures and clip.frames is None:
            raise MediaError(path, "holds no pictures; of sound alone the modality is audio")
        if "image" in media and clip.frames is not None:
            return dataclasses.replace(clip, frames=np.repeat(clip.frames, self.num_frames, axis=0))
        return clip

    def resize(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [T, H, W, 3] -> uint8 [T, 3, S, S], squared as ``frame_fit`` says: what a cache keeps."""
        size, resample = self.image_processor.size, self.image_processor.resample
        images = [Image.fromarray(frame) for frame in frames]
        height, width = frames.shape[1:3]
        if self.frame_fit == "pad":
            height = width = max(height, width)
        # Width before height, as Pillow always did when the published models were trained; Pillow 13 takes the cheaper
        # order, which differs by up to 19 levels on narrow images. Rows that are all padding need no resizing.
        images = [self._padded(image, width, image.height) for image in images]
        images = [image.resize((size["width"], image.height), resample) for image in images]
        images = [self._padded(image, size["width"], height) for image in images]
        images = [image.resize((size["width"], size["height"]), resample) for image in images]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()

    def _padded(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """The image amid the mean colour, which is what normalising makes zero."""
        if image.size == (width, height):
            return image
        padded = Image.new("RGB", (width, height), tuple(int(255 * mean) for mean in self.image_processor.image_mean))
        padded.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return padded

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 [..., 3, S, S] -> float32, scaled and normalised with SigLIP's mean and deviation a channel."""
        mean, std = (
            torch.tensor(values, device=pixels.device).view(3, 1, 1)
            for values in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        return (pixels.float() * self.image_processor.rescale_factor - mean) / std

    def pixel_values(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [T, H, W, 3] -> float32 [T, 3, S, S], squared, resized and normalised as SigLIP wants them."""
        return self.normalise(self.resize(frames))

    def mel(self, waveform: np.ndarray | None) -> Tensor:
        """Waveform [n] -> log-mel [M, F]; a clip without sound gives the mel of silence."""
        waveform = _SILENCE if waveform is None or not len(waveform) else waveform
        features = self.feature_extractor(
            waveform, sampling_rate=self.feature_extractor.sampling_rate, return_tensors="pt"
        )
        return features["input_features"][0]

    def prompt(self, question: str, modality: str = "video_audio") -> str:
        """The chat prompt of a question, with one placeholder a medium and the assistant's header at the end."""
        turn = {"role": "user", "content": user_content(question, modality, self.prompt_style)}
        return self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)

    def expand(self, text: str) -> str:
        """Repeats each placeholder once a feature.

        Raises:
            ValueError: when a placeholder occurs twice: one prompt holds one clip.
        """
        for token, count in (
            (VIDEO_TOKEN, self.num_video_tokens),
            (IMAGE_TOKEN, self.num_video_tokens),
            (AUDIO_TOKEN, self.num_audio_tokens),
        ):
            if text.count(token) > 1:
                raise ValueError(f"{token} occurs {text.count(token)} times in the prompt {text[:120]!r}")
            text = text.replace(token, token * count)
        return text

    def __call__(
        self,
        text: Sequence[str],
        clips: Sequence[Clip | None] | None = None,
        gate_text: Sequence[str] | None = None,
        padding_side: str = "left",
        **kwargs: Any,
    ) -> BatchFeature:
        """A batch for the model: row b of every tensor belongs to ``text[b]``.

        Args:
            text: prompts, each with at most one placeholder a medium (see :meth:`prompt`).
            clips: what the placeholders stand for; a clip without audio is silence.
            gate_text: questions, of which the gate's BERT reads what the style says.
            padding_side: left for generation, right for training.

        Returns:
            input_ids and attention_mask [B, S]; with clips pixel_values [B, T, 3, H, W] and input_features [B, M, F];
            gate_input_ids and gate_attention_mask [B, S'].

        Raises:
            ValueError: when the numbers of texts, clips and gate texts differ, or a placeholder has nothing behind it.
        """
        clips = clips if clips is not None else [None] * len(text)
        gate_text = gate_text if gate_text is not None else [""] * len(text)
        if not len(text) == len(clips) == len(gate_text):
            raise ValueError(f"{len(text)} texts, {len(clips)} clips and {len(gate_text)} gate texts")
        data = self.text_inputs(text, padding_side) | self.media_inputs(text, clips)
        if "pixel_values" in data:
            data |= self.gate_inputs(gate_text, [modality_of(one) for one in text])
        return BatchFeature(data)

    def text_inputs(self, text: Sequence[str], padding_side: str = "left") -> dict[str, Tensor]:
        """input_ids and attention_mask [B, S], placeholders expanded; what occurs twice is tokenized once."""
        place = {one: row for row, one in enumerate(dict.fromkeys(text))}
        encoded = self.tokenizer(
            [self.expand(one) for one in place],
            add_special_tokens=False,
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
        )
        rows = [place[one] for one in text]
        return {name: encoded[name][rows] for name in ("input_ids", "attention_mask")}

    def media_inputs(self, text: Sequence[str], clips: Sequence[Clip | None]) -> dict[str, Tensor]:
        """pixel_values and input_features of a batch, each present when any row asks for it (others get zeros)."""
        frames = [
            None if not _asks(one, VIDEO_TOKEN, IMAGE_TOKEN) else self.pixel_values(_required(clip, "frames", one))
            for one, clip in zip(text, clips, strict=True)
        ]
        mels = [
            None if not _asks(one, AUDIO_TOKEN) else self.mel(_required(clip, "clip", one).waveform)
            for one, clip in zip(text, clips, strict=True)
        ]
        named = {"pixel_values": stack_rows(frames), "input_features": stack_rows(mels)}
        return {name: value for name, value in named.items() if value is not None}

    def gate_inputs(self, questions: Sequence[str], modality: str | Sequence[str] = "video_audio") -> dict[str, Tensor]:
        """gate_input_ids and gate_attention_mask [B, S'] of the questions in the prompts, right-padded.

        Args:
            modality: that of all rows, or one a row.
        """
        modalities = [modality] * len(questions) if isinstance(modality, str) else modality
        texts = [
            gate_text(question, one, self.prompt_style) for question, one in zip(questions, modalities, strict=True)
        ]
        gate_tokenizer: Any = self.gate_tokenizer  # type: ignore[attr-defined] # ProcessorMixin sets it
        encoded = gate_tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return {"gate_input_ids": encoded["input_ids"], "gate_attention_mask": encoded["attention_mask"]}

    @classmethod
    def for_config(cls, config: HumanOmniConfig, **parts: Any) -> "HumanOmniProcessor":
        """A processor whose placeholder counts are those of ``config``; gives the tokenizer its placeholders.

        The ids of the three placeholders are written into ``config``; they may lie beyond its embedding table.
        """
        tokenizer = parts["tokenizer"]
        tokenizer.add_tokens(list(PLACEHOLDERS), special_tokens=True)
        config.video_token_id, config.audio_token_id, config.image_token_id = (
            tokenizer.convert_tokens_to_ids(token) for token in PLACEHOLDERS
        )
        return cls(
            num_frames=config.num_frames,
            num_video_tokens=config.num_video_tokens,
            num_audio_tokens=config.num_audio_tokens,
            chat_template=tokenizer.chat_template,
            **parts,
        )


def _asks(text: str, *tokens: str) -> bool:
    return any(token in text for token in tokens)


def _required(clip: Clip | None, what: str, text: str) -> Any:
    value = clip if what == "clip" or clip is None else clip.frames
    if value is None:
        raise ValueError(f"the prompt {text[:120]!r} asks for media, but its clip holds no {what}")
    return value


def stack_rows(rows: Sequence[Tensor | None]) -> Tensor | None:
    """[B, ...] with zeros where a row is absent; None when all are."""
    present = next((row for row in rows if row is not None), None)
    if present is None:
        return None
    return torch.stack([torch.zeros_like(present) if row is None else row for row in rows])


AutoProcessor.register(HumanOmniConfig, HumanOmniProcessor)
