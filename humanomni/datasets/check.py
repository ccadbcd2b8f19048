"""Every clip decoded once, as training would, and a table of what is in it."""

import argparse
import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from humanomni.datasets.source import SOUND_SUFFIXES
from humanomni.media import Clip, MediaError, load_clip
from humanomni.media_container import open_container
from humanomni.media_images import list_images
from humanomni.media_video import scan_video
from humanomni.records import JsonlWriter, Line, read_jsonl, write_whole

logger = logging.getLogger(__name__)

RESULTS = "clip_checks.jsonl"

SHORT = 0.5  # seconds
SILENT = -60.0  # dBFS: below the noise of any microphone
UNEQUAL = 1.0  # seconds by which the sound may end before the pictures
_QUIETEST = 1e-6  # -120 dBFS stands for digital silence


@dataclass(frozen=True)
class ClipCheck:
    """What is in a clip; zeros and None where it cannot be read.

    Attributes:
        seconds: that the pictures last.
        fps: average frames a second.
        frames: of the whole clip.
        width, height: pixels, upright.
        has_audio: whether there is sound to listen to.
        loudness: root mean square of the waveform at 16 kHz, in dBFS; None without sound.
        problems: what a user should look at; none of them keeps the clip out.
        error: why it cannot be used; None when it can.
    """

    seconds: float = 0.0
    fps: float = 0.0
    frames: int = 0
    width: int = 0
    height: int = 0
    has_audio: bool = False
    loudness: float | None = None
    problems: tuple[str, ...] = field(default=())
    error: str | None = None


def worker_count(text: str) -> int:
    """The value of a --workers flag."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def check_clips(paths: Sequence[Path], output: Path, workers: int) -> dict[Path, ClipCheck]:
    """Decodes what could not be decoded before or has changed, by path, size and time.

    Each result is on the disk as soon as it is known, so an interrupted check goes on where it was.

    Args:
        paths: clips, each once.
        output: folder of ``clip_checks.jsonl``, the results so far.
        workers: threads; decoding is outside the interpreter's lock.

    Raises:
        OSError: the output cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    known = _known(output / RESULTS)
    states = {path: _state(path) for path in paths}
    checks = {path: known[path, state] for path, state in states.items() if (path, state) in known}
    missing = [path for path in paths if path not in checks]
    logger.info("%d clips to decode, %d are known from before", len(missing), len(checks))
    with JsonlWriter(output / RESULTS) as writer, ThreadPoolExecutor(workers, "check") as pool:
        try:
            running = {pool.submit(check_clip, path): path for path in missing}
            for done in tqdm(as_completed(running), total=len(running), desc="check", unit="clip"):
                path = running[done]
                checks[path] = done.result()
                size, time = states[path]
                writer.write({"path": str(path), "size": size, "mtime_ns": time, **asdict(checks[path])})
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return {path: checks[path] for path in paths}


def check_clip(path: Path) -> ClipCheck:
    """Decodes 8 frames and all sound of one clip."""
    try:
        clip = load_clip(path)
        images = list_images(path)
        track = None
        if not images:
            with open_container(path) as container:
                track = scan_video(container)
    except (MediaError, OSError, MemoryError, RuntimeError, ValueError) as error:
        return ClipCheck(error=error.reason if isinstance(error, MediaError) else f"{type(error).__name__}: {error}")
    if clip.frames is None and path.suffix.lower() not in SOUND_SUFFIXES:
        return ClipCheck(seconds=round(clip.duration, 3), has_audio=clip.has_audio, error="holds no pictures")
    frames = len(images) if track is None else len(track.keys)
    height, width = (0, 0) if clip.frames is None else clip.frames.shape[1:3]
    loudness = None
    if clip.waveform is not None:
        energy = float(np.sqrt(np.mean(np.square(clip.waveform, dtype=np.float64))))
        loudness = round(20 * math.log10(max(energy, _QUIETEST)), 1)
    return ClipCheck(
        seconds=round(clip.duration, 3),
        fps=round(clip.fps, 3),
        frames=frames,
        width=width,
        height=height,
        has_audio=clip.has_audio,
        loudness=loudness,
        problems=tuple(_problems(clip, frames, loudness)),
    )


def _problems(clip: Clip, frames: int, loudness: float | None) -> list[str]:
    problems = []
    if frames == 0:
        problems.append("no pictures")
    elif frames == 1:
        problems.append("one frame")
    elif clip.duration < SHORT:
        problems.append(f"shorter than {SHORT} s")
    if clip.waveform is None:
        problems.append("no sound")
    elif loudness is not None and loudness < SILENT:
        problems.append("silent")
    elif len(clip.waveform) / 16_000 < clip.duration - UNEQUAL:
        problems.append(f"sound ends {clip.duration - len(clip.waveform) / 16_000:.1f} s early")
    return problems


def _state(path: Path) -> tuple[int, int]:
    """Size and time; zeros for a clip that is not there, whose check says so."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _known(results: Path) -> dict[tuple[Path, tuple[int, int]], ClipCheck]:
    """What was decoded; an error may have passed or been mended with no trace in the size and time of a folder."""
    if not results.is_file():
        return {}
    known: dict[tuple[Path, tuple[int, int]], ClipCheck] = {}
    names = {entry.name for entry in fields(ClipCheck)}
    for line in read_jsonl(results, "skip"):
        if isinstance(line, Line) and names <= line.value.keys() and line.value["error"] is None:
            value: dict[str, Any] = {name: line.value[name] for name in names}
            value["problems"] = tuple(value["problems"])
            key = Path(line.value["path"]), (line.value["size"], line.value["mtime_ns"])
            known[key] = ClipCheck(**value)
    return known


def write_table(path: Path, checks: Mapping[Path, ClipCheck]) -> None:
    """One CSV row a clip.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", "seconds", "fps", "frames", "width", "height", "audio", "loudness_dbfs", "problems"])
    for clip, check in checks.items():
        loudness = "" if check.loudness is None else check.loudness
        problems = "; ".join([f"unreadable: {check.error}"] if check.error else check.problems)
        audio = "yes" if check.has_audio else "no"
        size = (check.seconds, check.fps, check.frames, check.width, check.height)
        writer.writerow([clip, *size, audio, loudness, problems])
    write_whole(path, [text.getvalue()])
