"""Clips for training: decoded once, kept on disk, and a record of those that failed."""

import hashlib
import json
import logging
import os
import tempfile
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
    """What a model needs of a clip: frames uint8 [T, 3, S, S] and log-mel float32 [M, F], as its modality asks."""

    pixels: Tensor | None
    mel: Tensor | None


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
        self.processor = processor
        self.modality = modality
        self.video = bool({"video", "image"} & set(MODALITIES[modality]))
        self.audio = "audio" in MODALITIES[modality]
        self.cache = cache
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

    def load(self, path: Path) -> TrainingClip:
        """The clip.

        Raises:
            MediaError: when the file is missing or cannot be decoded.
        """
        if self.cache is None:
            return self._decode(path)
        entry = self.cache / f"{self._key(path)}.safetensors"
        try:
            tensors = load_file(entry)
        except FileNotFoundError:
            pass
        except SafetensorError as error:
            logger.warning("%s is damaged (%s) and is made again", entry, error)
        else:
            return TrainingClip(tensors.get("pixels"), tensors.get("mel"))
        clip = self._decode(path)
        self._store(entry, clip)
        return clip

    def _decode(self, path: Path) -> TrainingClip:
        clip = self.processor.load_clip(str(path), video=self.video, audio=self.audio)
        if self.video and clip.frames is None:
            raise MediaError(path, "holds no video stream")
        return TrainingClip(
            pixels=None if clip.frames is None else self.processor.resize(clip.frames),
            mel=self.processor.mel(clip.waveform) if self.audio else None,
        )

    def _key(self, path: Path) -> str:
        try:
            status = path.stat()
        except OSError as error:
            raise MediaError(path, error.strerror or "cannot be read") from error
        identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}\n{self._settings}"
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def _store(self, entry: Path, clip: TrainingClip) -> None:
        """Writes through a temporary name, so that ranks and workers never read half an entry."""
        tensors = {name: value for name, value in vars(clip).items() if value is not None}
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".part")
        os.close(handle)
        save_file(tensors, temporary)
        Path(temporary).replace(entry)


def batch_media(
    clips: Sequence[TrainingClip | None], modalities: Sequence[str], processor: HumanOmniProcessor
) -> dict[str, Tensor]:
    """pixel_values and input_features of a batch; a missing clip is zeros, for a row that carries no loss.

    A medium that no row asks for is a tensor without rows: the model then runs its parts all the same, so that in a run
    of many processes every one of them has the same gradients to reduce, whatever its batch.
    """
    frame, extractor = processor.image_processor.size, processor.feature_extractor
    pixels = torch.zeros(processor.num_frames, 3, frame["height"], frame["width"], dtype=torch.uint8)
    mel = torch.zeros(extractor.feature_size, extractor.nb_max_frames)
    asked = [MODALITIES[modality] for modality in modalities]
    return {
        "pixel_values": processor.normalise(
            _stack([clip and clip.pixels for clip in clips], pixels, any({"video", "image"} & set(m) for m in asked))
        ),
        "input_features": _stack([clip and clip.mel for clip in clips], mel, any("audio" in m for m in asked)),
    }


def _stack(rows: Sequence[Tensor | None], absent: Tensor, asked: bool) -> Tensor:
    if not asked:
        return absent.new_empty(0, *absent.shape)
    return torch.stack([absent if row is None else row for row in rows])
