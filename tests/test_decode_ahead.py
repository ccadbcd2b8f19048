"""Clips come in the order of the records, each as decoded alone, whoever decodes them and however many at a time."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
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


@pytest.mark.parametrize(
    ("cores", "num_workers", "gpu"),
    [(4, 0, None), (1, None, None), (4, 1, None), (6, 2, None), (3, 3, None), (40, 13, None), (4, 2, 0), (4, 0, 0)],
)
def test_clips_in_order(
    items: list[Item],
    tiny_model_dir: Path,
    cores: int,
    num_workers: int | None,
    gpu: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no GPU, workers that are to use one leave it at that."""
    loader = ClipLoader(HumanOmniProcessor.from_pretrained(tiny_model_dir), "video_audio")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    clips = list(decode_ahead(items, loader, num_workers, 4, gpu))
    assert [item.clip.stem for item, clip in zip(items, clips, strict=True) if isinstance(clip, Failure)] == [
        "damaged",
        "missing",
    ]
    for item, clip in zip(items, clips, strict=True):
        if isinstance(clip, TrainingClip):
            alone = loader.load(item.clip)
            assert torch.equal(clip.pixels, alone.pixels)
            assert torch.equal(clip.mel, alone.mel)


WAITING = """
import sys, time
from pathlib import Path
from humanomni.decode_ahead import Item, decode_ahead
from humanomni.processing import HumanOmniProcessor
from humanomni.records import Record
from humanomni.training.clips import ClipLoader

if __name__ == "__main__":
    clip, model, gpu = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else None
    items = [Item(line, Record(str(line), str(clip), "?", None), clip) for line in range(1000)]
    loader = ClipLoader(HumanOmniProcessor.from_pretrained(model), "video_audio")
    clips = decode_ahead(items, loader, 2, 4, gpu)
    next(clips)
    print("decoding", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("gpu", [None, 0])
def test_workers_do_not_outlive_a_killed_process(
    gpu: int | None, items: list[Item], tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [
        sys.executable,
        tmp_path / "waiting.py",
        items[0].clip,
        tiny_model_dir,
        *([] if gpu is None else [str(gpu)]),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"decoding\n"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []
