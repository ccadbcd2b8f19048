"""Clips for training: decoded once, kept on disk, and a record of those that failed."""

import hashlib
import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from humanomni.media import MediaError
from humanomni.processing import HumanOmniProcessor
from humanomni.prompts import MODALITIES

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

    An entry is named by the file's path, size and time and by what the processor does to it, so a changed clip or
    processor never meets a stale entry.

    Args:
        processor: squares and resizes frames, and makes the mel.
        modality: a key of :data:`humanomni.prompts.MODALITIES`.
        cache: the folder, made where missing; None decodes every time.
    """

    def __init__(self, processor: HumanOmniProcessor, modality: str, cache: Path | None = None) -> None:
        self.processor, self.modality, self.cache = processor, modality, cache
        self._takes_more = True
        self._settings = json.dumps(
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
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)

    def of(self, modality: str) -> "ClipLoader":
        """A loader of another modality, through the same cache."""
        return self if modality == self.modality else ClipLoader(self.processor, modality, self.cache)

    def load(self, path: Path, start: float | None = None, end: float | None = None) -> TrainingClip:
        """The clip, or its part between two seconds; a text prompt has none, and its file is not touched.

        Raises:
            MediaError: when the file is missing, cannot be decoded, or holds no pictures where some are asked for.
        """
        if not MODALITIES[self.modality]:
            return TrainingClip(pixels=None, mel=None)
        if self.cache is None:
            return self._decode(path, start, end)
        entry = self.cache / f"{self._key(path, start, end)}.safetensors"
        try:
            tensors = load_file(entry)
        except FileNotFoundError:
            pass
        except SafetensorError as error:
            logger.warning("%s is damaged (%s) and is made again", entry, error)
        else:
            return TrainingClip(tensors.get("pixels"), tensors.get("mel"), bool(tensors["has_audio"]))
        clip = self._decode(path, start, end)
        if self._takes_more:
            self._store(entry, clip)
        return clip

    def _decode(self, path: Path, start: float | None, end: float | None) -> TrainingClip:
        clip = self.processor.load_clip(path, self.modality, start, end)
        return TrainingClip(
            pixels=None if clip.frames is None else self.processor.resize(clip.frames),
            mel=self.processor.mel(clip.waveform) if "audio" in MODALITIES[self.modality] else None,
            has_audio=clip.has_audio,
        )

    def _key(self, path: Path, start: float | None, end: float | None) -> str:
        try:
            status = path.stat()
        except OSError as error:
            raise MediaError(path, error.strerror or "cannot be read") from error
        part = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{start}\n{end}"
        identity = f"{part}\n{self._settings}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _store(self, entry: Path, clip: TrainingClip) -> None:
        """Writes through a temporary name, so that ranks and workers never read half an entry.

        A full disk costs the entry, not the clip: later ones are read where they are there, and no more are written.
        """
        tensors = {name: torch.as_tensor(value) for name, value in vars(clip).items() if value is not None}
        temporary = entry.with_suffix(f".{uuid.uuid4().hex}.part")
        try:
            save_file(tensors, temporary)
            temporary.replace(entry)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            self._takes_more = False
            logger.warning("%s takes no more clips (%s): those that it lacks are decoded every time", self.cache, error)


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
