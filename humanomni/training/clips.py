"""Clips for training: decoded once, kept on disk, and a record of those that failed."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import MODALITIES
from humanomni.training.tensor_cache import TensorCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingClip:
    """What a model needs of a clip: frames uint8 [T, 3, S, S] and log-mel float32 [M, F], as its modality asks.

    A clip without sound has the mel of silence, and ``has_audio`` says so.
    """

    pixels: Tensor | None
    mel: Tensor | None
    has_audio: bool = True


class ClipLoader:
    """Decodes clips for a processor, through a cache on disk when it has a folder.

    Args:
        processor: squares and resizes frames, and makes the mel.
        modality: a key of :data:`humanomni.prompts.MODALITIES`.
        cache: folder of a :class:`~humanomni.training.tensor_cache.TensorCache`; None decodes every time.

    Attributes:
        settings: what the processor does to a clip.
    """

    def __init__(self, processor: HumanOmniProcessor, modality: str, cache: Path | None = None) -> None:
        self.processor, self.modality = processor, modality
        self.settings = json.dumps(
            [
                processor.num_frames,
                processor.frame_fit,
                processor.image_processor.to_dict(),
                processor.feature_extractor.to_dict(),
                modality,
            ],
            sort_keys=True,
            default=str,
        )
        self._cache = None if cache is None else TensorCache(cache, self.settings)
        self._takes_more = True

    def of(self, modality: str) -> "ClipLoader":
        """A loader of another modality, through the same cache."""
        if modality == self.modality:
            return self
        return ClipLoader(self.processor, modality, self._cache.folder if self._cache else None)

    def load(
        self, path: Path, start: float | None = None, end: float | None = None, gpu: int | None = None
    ) -> TrainingClip:
        """The clip, or its part between two seconds; a text prompt has none, and its file is not touched.

        Args:
            gpu: of :func:`humanomni.media.load_clip`.

        Raises:
            MediaError: when the file is missing, cannot be decoded, or holds no pictures where some are asked for.
        """
        if not MODALITIES[self.modality]:
            return TrainingClip(pixels=None, mel=None)
        tensors = self._cache.read(path, start, end) if self._cache else None
        if tensors is not None:
            return TrainingClip(tensors.get("pixels"), tensors.get("mel"), bool(tensors["has_audio"]))
        clip = self._decode(path, start, end, gpu)
        if self._cache and self._takes_more:
            try:
                self._cache.write(
                    path, start, end, {k: torch.as_tensor(v) for k, v in vars(clip).items() if v is not None}
                )
            except OSError as error:
                self._takes_more = False
                logger.warning(
                    "%s takes no more clips (%s): those that it lacks are decoded every time", self._cache.folder, error
                )
        return clip

    def _decode(self, path: Path, start: float | None, end: float | None, gpu: int | None) -> TrainingClip:
        clip = self.processor.load_clip(path, self.modality, start, end, gpu)
        return TrainingClip(
            pixels=None if clip.frames is None else self.processor.resize(clip.frames),
            mel=self.processor.mel(clip.waveform) if "audio" in MODALITIES[self.modality] else None,
            has_audio=clip.has_audio,
        )

    def batch(self, clips: Sequence[TrainingClip | None], modalities: Sequence[str]) -> dict[str, Tensor]:
        """The media of a training batch; of a kind that no row asks for, no rows (:func:`absent_media`)."""
        return absent_media(self.processor) | batch_media(clips, modalities, self.processor)


def batch_media(
    clips: Sequence[TrainingClip | None],
    modalities: Sequence[str],
    processor: HumanOmniProcessor,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """The media of a batch that any of its rows asks for; zeros where a row does not, or its clip is missing.

    Args:
        device: where the batch is put together; frames travel there as bytes, a fourth of their size as numbers.

    Returns:
        pixel_values [B, T, 3, S, S] and input_features [B, M, F].
    """
    kinds = {kind for modality in modalities for kind in MODALITIES[modality]}
    zeros, media = absent_media(processor, rows=1), {}
    if kinds & {"video", "image"}:
        blank = zeros["pixel_values"][0].to(device)
        frames = [clip.pixels.to(device) if clip and clip.pixels is not None else None for clip in clips]
        media["pixel_values"] = torch.stack([blank if one is None else processor.normalise(one) for one in frames])
    if "audio" in kinds:
        mels, silent = [clip.mel if clip else None for clip in clips], zeros["input_features"][0]
        media["input_features"] = torch.stack([(silent if one is None else one).to(device) for one in mels])
    return media


def absent_media(processor: HumanOmniProcessor, rows: int = 0) -> dict[str, Tensor]:
    """Media of so many rows of zeros; without rows they ask the model to run their parts all the same.

    In training on many processes, every one of them then has the same gradients to reduce, whatever its batch.
    """
    frame, extractor = processor.image_processor.size, processor.feature_extractor
    return {
        "pixel_values": torch.zeros(rows, processor.num_frames, 3, frame["height"], frame["width"]),
        "input_features": torch.zeros(rows, extractor.feature_size, extractor.nb_max_frames),
    }
