"""Golden folders: which checkpoint belongs to which numbers, and the model that is compared."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from humanomni.conversion import convert, to_legacy, verify
from humanomni.media import Clip, load_clip
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.parity.table import Table
from humanomni.processing import PLACEHOLDERS, HumanOmniProcessor
from humanomni.weight_files import ConversionError, WeightFolder, read_json

# The authors' ids of video, audio and image in a prompt.
SENTINELS = (-201, -202, -200)


@dataclass(frozen=True)
class GoldenSet:
    """Numbers of one checkpoint, and its native conversion.

    Attributes:
        folder: the numbers' folder.
        native: the converted checkpoint.
        clips: folder of the clips that the numbers were made of, if there is one.
        table: where the comparisons go.
    """

    folder: Path
    native: Path
    clips: Path | None
    table: Table

    @cached_property
    def model(self) -> Any:
        return self.fresh_model()

    @cached_property
    def processor(self) -> HumanOmniProcessor:
        return HumanOmniProcessor.from_pretrained(self.native)

    def fresh_model(self) -> Any:
        """Another copy of the model, in float32 and eval mode."""
        return HumanOmniForConditionalGeneration.from_pretrained(self.native, dtype=torch.float32).eval()

    def numbers(self, name: str) -> dict[str, Any] | None:
        """The object in ``name``.json, None when the set has none."""
        path = self.folder / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays in ``name``.npz; none when the set has none."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def clip(self, name: str) -> Clip | None:
        """The decoded clip of a file's name, None when it is not at hand."""
        if self.clips is None or not (self.clips / name).is_file():
            return None
        return load_clip(self.clips / name, num_frames=self.processor.num_frames)

    def pixels(self, frames: Any, fit: str) -> Tensor:
        """Frames [T, H, W, 3] -> pixels [T, 3, S, S], padded or squashed."""
        before, self.processor.frame_fit = self.processor.frame_fit, fit
        try:
            return self.processor.pixel_values(frames)
        finally:
            self.processor.frame_fit = before

    def prompt(self, question: str, style: str) -> tuple[str, dict[str, Tensor]]:
        """A question's prompt, and the gate's inputs, in one of the authors' styles."""
        before, self.processor.prompt_style = self.processor.prompt_style, style
        try:
            return self.processor.prompt(question), self.processor.gate_inputs([question])
        finally:
            self.processor.prompt_style = before

    def sentinel_ids(self, text: str) -> list[int]:
        """Token ids of a prompt with the authors' sentinels in the media's places."""
        ids = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self._sentinels.get(token, token) for token in ids]

    def collapse(self, ids: list[int]) -> list[int]:
        """Expanded ids as the authors write them: one sentinel a medium."""
        return [self._sentinels.get(token, token) for place, token in enumerate(ids) if self.is_kept(ids, place)]

    def is_kept(self, ids: list[int], place: int) -> bool:
        """False for the second and later placeholders of a run."""
        return place == 0 or ids[place] not in self._sentinels or ids[place] != ids[place - 1]

    @cached_property
    def _sentinels(self) -> dict[int, int]:
        return dict(zip(self.processor.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS)), SENTINELS, strict=True))


def convert_golden(checkpoint: Path, root: Path, output: Path, table: Table) -> None:
    """Converts a golden checkpoint there and back; its config.json names the towers relative to ``root``."""
    config = read_json(checkpoint / "config.json")
    vision = _component(root, config["mm_vision_tower"])
    report = convert(
        checkpoint,
        output,
        vision_tower=vision,
        audio_tower=_component(root, config["mm_audio_tower"]),
        bert=_bert_beside(vision),
    )
    verify(output, checkpoint, report)
    back = output.with_name(output.name + "-legacy")
    to_legacy(output, back)
    before, after = WeightFolder(checkpoint), WeightFolder(back)
    table.equal("tensor names, there and back", sorted(after), sorted(before))
    table.equal(
        "tensors, there and back", [torch.equal(after[key], before[key]) for key in before], [True] * len(before)
    )


def checkpoint_of(folder: Path, root: Path) -> Path | None:
    """The checkpoint that a folder of numbers belongs to; None for a folder without a model's numbers.

    Raises:
        ConversionError: when it cannot be told.
    """
    if not any(list(folder.glob(f"{name}.json")) for name in ("synthetic", "sft", "grpo", "batch", "clip_*")):
        return None
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("checkpoint"), str):
            return root / content["checkpoint"]
    named = [path for path in (root / "checkpoints").iterdir() if path.name.endswith(folder.name)]
    if len(named) != 1:
        raise ConversionError(f"{folder}: no file names its checkpoint, and {len(named)} are called *{folder.name}")
    return named[0]


def _component(root: Path, name: str) -> Path:
    candidates = [root / name, *sorted(root.glob(f"components-*/{Path(name).name}"))]
    for path in candidates:
        if path.is_dir():
            return path
    raise ConversionError(f"{root} lacks {name}, which a checkpoint's config.json names")


def _bert_beside(component: Path) -> Path:
    for config in sorted(component.parent.glob("*/config.json")):
        if read_json(config).get("model_type") == "bert":
            return config.parent
    raise ConversionError(f"{component.parent} holds no BERT")
