"""Clips as the frozen towers see them, kept on disk: training on them runs neither a decoder nor a tower.

Shape suffixes as in :mod:`humanomni.modeling`.
"""

import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from humanomni.configuration import HumanOmniConfig
from humanomni.decode_ahead import Failure, Item, decode_ahead
from humanomni.decoding_layers import cast_parameters
from humanomni.media import MediaError
from humanomni.prompts import MODALITIES
from humanomni.records import Record
from humanomni.towers import VisionTower, audio_tower, encode_audio, encode_frames, vision_tower
from humanomni.training.clips import ClipLoader, TrainingClip, batch_media
from humanomni.training.run import ConfigurationError
from humanomni.training.tensor_cache import TensorCache
from humanomni.weight_files import WeightFolder

logger = logging.getLogger(__name__)

_BATCH = 8
_PARTS = ("model.vision_tower.", "model.audio_tower.")


@dataclass(frozen=True)
class EncodedClip:
    """A clip behind the towers: SigLIP's patches [T, N, V] and Whisper's states [F/2, A], as its modality asks."""

    vision: Tensor | None
    audio: Tensor | None


class Towers:
    """The towers of a native model folder, in the precision in which training runs them frozen.

    Attributes:
        identity: a hash of precision and weights; frozen towers are the same in every stage's folder.
    """

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        self.config, self.dtype = HumanOmniConfig.from_pretrained(model), dtype
        self._weights = WeightFolder(model)
        digest = hashlib.sha256(str(dtype).encode())
        for name in sorted(name for name in self._weights if name.startswith(_PARTS)):
            digest.update(name.encode())
            digest.update(self._weights[name].to(dtype).flatten().view(torch.uint8).numpy().tobytes())
        self.identity = digest.hexdigest()

    def load(self, device: torch.device) -> tuple[VisionTower, WhisperEncoder]:
        """SigLIP and Whisper."""
        with torch.device(device):
            towers = vision_tower(self.config.vision_config), audio_tower(self.config.audio_config)
        for tower, part in zip(towers, _PARTS, strict=True):
            names = [name for name in self._weights if name.startswith(part)]
            tower.load_state_dict({name.removeprefix(part): self._weights[name] for name in names})
            cast_parameters(tower, self.dtype)
            tower.eval()
        return towers


class EncodedClips:
    """Reads clips as the towers saw them, in the place of a :class:`~humanomni.training.clips.ClipLoader`.

    Args:
        clips: decodes them.
        towers: what encodes them.
        folder: of a :class:`~humanomni.training.tensor_cache.TensorCache`.
    """

    def __init__(self, clips: ClipLoader, towers: Towers, folder: Path) -> None:
        self.clips, self.modality, self._towers = clips, clips.modality, towers
        self._cache = TensorCache(folder, f"{towers.identity}\n{clips.settings}")

    def of(self, modality: str) -> "EncodedClips":
        """Those of another modality, in the same folder."""
        if modality == self.modality:
            return self
        return EncodedClips(self.clips.of(modality), self._towers, self._cache.folder)

    def load(self, path: Path, start: float | None = None, end: float | None = None) -> EncodedClip:
        """A clip, or its part between two seconds; a text prompt has none.

        Raises:
            MediaError: for a clip that could not be encoded; says why.
        """
        if not MODALITIES[self.modality]:
            return EncodedClip(vision=None, audio=None)
        tensors = self._cache.read(path, start, end)
        if tensors is None:
            self.clips.load(path, start, end)
            raise MediaError(
                path, "could not be read when the clips were encoded; the next start of the run encodes it"
            )
        return EncodedClip(tensors.get("vision"), tensors.get("audio"))

    def batch(self, clips: Sequence[EncodedClip | None], modalities: Sequence[str]) -> dict[str, Tensor]:
        """vision_features [B, T, N, V] and audio_features [B, F/2, A] of a training batch.

        A row that has none has zeros; of a kind that no row asks for there are no rows, so that its parts run all the
        same (:func:`~humanomni.training.clips.absent_media`).
        """
        kinds = {kind for modality in modalities for kind in MODALITIES[modality]}
        media, zeros = {}, self._zeros()
        for name, asked in (("vision", kinds & {"video", "image"}), ("audio", kinds & {"audio"})):
            blank = zeros[name]
            rows = [getattr(clip, name) if clip else None for clip in clips] if asked else []
            filled = [blank if row is None else row for row in rows]
            media[f"{name}_features"] = torch.stack(filled) if filled else blank.new_zeros(0, *blank.shape)
        return media

    def describe(self, wanted: Sequence[tuple[Record, str]]) -> str:
        """How many clips of records, each with its modality, are still to be encoded, and the room that they take."""
        return self._describe(len(self._lacking(wanted)))

    def encode(self, wanted: Sequence[tuple[Record, str]], device: torch.device) -> None:
        """Encodes the clips of records, each with its modality, that the folder lacks.

        Every process takes its share and waits for the others. A clip that cannot be decoded is left to
        :meth:`load`, which says so when it is asked for.

        Raises:
            ConfigurationError: when the disk does not hold them, or the processes do not share the folder; what is
                encoded stays.
        """
        state = PartialState()
        lacking = self._lacking(wanted)
        state.wait_for_everyone()  # before the first writes what another would count as there
        if lacking:
            logger.info("%s", self._describe(len(lacking)))
            size, free = len(lacking) * self._bytes_a_clip(), self._free()
            if free < size:
                raise self._full(f"{size / 1e9:.1f} GB are wanted, {free / 1e9:.1f} GB are free")
        failed = self._encode_all(lacking[state.process_index :: state.num_processes], device, state.is_main_process)
        failed = sum(gather_object([failed]))
        if failed:
            logger.warning("%d clips cannot be decoded; training skips them and says why", failed)
        if (missing := len(self._lacking(wanted))) > failed:
            raise ConfigurationError(
                f"tower_cache: {self._cache.folder} lacks {missing} clips on process {state.process_index}, of which "
                f"{failed} cannot be decoded: name a folder that all nodes share"
            )

    def _describe(self, count: int) -> str:
        size, free = count * self._bytes_a_clip() / 1e9, self._free() / 1e9
        return f"{count} clips to encode, up to {size:.1f} GB in {self._cache.folder} ({free:.1f} GB are free)"

    def _bytes_a_clip(self) -> int:
        return sum(zeros.nbytes for zeros in self._zeros().values())

    def _free(self) -> int:
        return shutil.disk_usage(self._cache.folder).free

    def _zeros(self) -> dict[str, Tensor]:
        """What stands for a clip that is not there."""
        vision, audio = self._towers.config.vision_config, self._towers.config.audio_config
        patches = (vision.image_size // vision.patch_size) ** 2
        frames = self.clips.processor.num_frames
        return {
            "vision": torch.zeros(frames, patches, vision.hidden_size, dtype=self._towers.dtype),
            "audio": torch.zeros(audio.max_source_positions, audio.d_model, dtype=self._towers.dtype),
        }

    def _lacking(self, wanted: Sequence[tuple[Record, str]]) -> list[tuple[str, Item]]:
        """Modality and place of clips that have no entry, each once, one modality after the other."""
        parts = {(modality, record.video, record.start, record.end): record for record, modality in wanted}
        lacking: list[tuple[str, Item]] = []
        for (modality, *_), record in sorted(parts.items(), key=lambda part: part[0][0]):
            path = Path(record.video)
            if not MODALITIES[modality] or not path.exists():
                continue
            if not self.of(modality)._cache.holds(path, record.start, record.end):
                lacking.append((modality, Item(len(lacking), record, path)))
        return lacking

    def _decoded(self, items: list[Item]) -> Iterator[tuple[list[Item], list[TrainingClip | Failure]]]:
        decoded = zip(items, decode_ahead(items, self.clips, None, 2 * _BATCH), strict=True)
        while batch := list(islice(decoded, _BATCH)):
            yield [item for item, _ in batch], [clip for _, clip in batch]

    def _encode_all(self, lacking: Sequence[tuple[str, Item]], device: torch.device, speaks: bool) -> int:
        """Encodes what :meth:`_lacking` named; returns how many clips could not be decoded."""
        if not lacking:
            return 0
        towers, failed = self._towers.load(device), 0
        with tqdm(total=len(lacking), desc="towers", unit="clip", disable=not speaks) as progress:
            for modality, group in groupby(lacking, key=itemgetter(0)):
                encoded = self.of(modality)
                for items, clips in encoded._decoded([item for _, item in group]):
                    failed += encoded._encode(towers, items, clips, device)
                    progress.update(len(items))
        return failed

    def _encode(
        self,
        towers: tuple[VisionTower, WhisperEncoder],
        items: Sequence[Item],
        clips: Sequence[Any],
        device: torch.device,
    ) -> int:
        """Keeps what the towers make of clips; returns how many could not be decoded."""
        read = [(item, clip) for item, clip in zip(items, clips, strict=True) if not isinstance(clip, Failure)]
        if not read:
            return len(items)
        media = batch_media([clip for _, clip in read], [self.modality] * len(read), self.clips.processor, device)
        vision, audio = towers
        states = {}
        with torch.inference_mode():
            if "pixel_values" in media:
                states["vision"] = encode_frames(vision, media["pixel_values"]).cpu()
            if "input_features" in media:
                states["audio"] = encode_audio(audio, media["input_features"]).cpu()
        for row, (item, _) in enumerate(read):
            part = {name: rows[row] for name, rows in states.items()}
            try:
                self._cache.write(item.clip, item.record.start, item.record.end, part)
            except OSError as error:
                raise self._full(str(error)) from error
        return len(items) - len(read)

    def _full(self, reason: str) -> ConfigurationError:
        return ConfigurationError(
            f"tower_cache: {self._cache.folder} cannot hold what the towers make of the clips ({reason}). Make room, "
            "name a folder on another disk, or leave tower_cache out"
        )
