"""Clips come in the order of the records, each as decoded alone, whoever decodes them and however many at a time."""

import os
from pathlib import Path

import pytest
import torch
from media_factory import write_clip

from humanomni.decode_ahead import Failure, Item, decode_ahead
from humanomni.processing import HumanOmniProcessor
from humanomni.records import Record
from humanomni.training.clips import ClipLoader, TrainingClip

CLIPS = 11


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Clips of unlike length, one of which is damaged and one missing."""
    folder = tmp_path_factory.mktemp("clips")
    paths = [write_clip(folder / f"{i}.mp4", frames=5 + 40 * (i % 3), seconds=0.5) for i in range(CLIPS - 2)]
    (folder / "damaged.mp4").write_bytes(b"no film")
    paths[3:3] = [folder / "damaged.mp4", folder / "missing.mp4"]
    return [Item(line, Record(path.stem, str(path), "?", None), path) for line, path in enumerate(paths)]


@pytest.mark.parametrize(("cores", "num_workers"), [(4, 0), (1, None), (4, 1), (6, 2), (3, 3), (40, 13)])
def test_clips_in_order(
    items: list[Item], tiny_model_dir: Path, cores: int, num_workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ClipLoader(HumanOmniProcessor.from_pretrained(tiny_model_dir), "video_audio")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    clips = list(decode_ahead(items, loader, num_workers, ahead=4))
    assert [item.clip.stem for item, clip in zip(items, clips, strict=True) if isinstance(clip, Failure)] == [
        "damaged",
        "missing",
    ]
    for item, clip in zip(items, clips, strict=True):
        if isinstance(clip, TrainingClip):
            alone = loader.load(item.clip)
            assert torch.equal(clip.pixels, alone.pixels)
            assert torch.equal(clip.mel, alone.mel)
