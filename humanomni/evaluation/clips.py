"""What a sample card shows of its clip: the frames as one small JPEG strip, and the waveform's outline."""

import base64
import io
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from humanomni.media import Clip, MediaError, load_clip

STRIP_BYTES = 14_000_000  # of all strips together, before base64 makes them a third larger
PEAKS = 72

# Height and JPEG quality of a strip, tried in this order until it fits its share of STRIP_BYTES.
_SIZES = ((112, 80), (96, 75), (72, 70), (56, 60), (40, 45))


@dataclass(frozen=True)
class ClipView:
    """A clip in a card: strip as a data URI, waveform as peaks in 0..100, a note on what is not there."""

    strip: str | None = None
    peaks: list[int] | None = None
    seconds: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class ClipPart:
    """What a model was shown: a file, or its part between two seconds."""

    path: Path
    start: float | None = None
    end: float | None = None


def view_clips(parts: Mapping[str, ClipPart]) -> dict[str, ClipView]:
    """One view for every key of `parts`; an unreadable clip gives a note with the reason, never an error."""
    if not parts:
        return {}
    share = STRIP_BYTES // len(parts)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        views = pool.map(lambda part: view_clip(part, share), parts.values())
        progress = tqdm(views, total=len(parts), desc="clips", leave=False, disable=None)
        return dict(zip(parts, progress, strict=True))


def view_clip(part: ClipPart, max_bytes: int) -> ClipView:
    """The view of one clip, its strip at most `max_bytes` large."""
    try:
        clip = load_clip(part.path, start=part.start, end=part.end)
    except MediaError as error:
        return ClipView(note=f"The clip cannot be shown: {error.reason}.")
    strip = _strip(clip, max_bytes)
    silent = None if clip.has_audio else "The clip has no sound."
    return ClipView(strip=strip, peaks=_peaks(clip), seconds=round(clip.duration, 2), note=silent)


def _strip(clip: Clip, max_bytes: int) -> str | None:
    """All frames side by side as a JPEG data URI; None when even the smallest form is too large."""
    if clip.frames is None:
        return None
    row = Image.fromarray(np.concatenate(list(clip.frames), axis=1))
    for height, quality in _SIZES:
        height = min(height, row.height)
        small = row.resize((max(1, round(row.width * height / row.height)), height), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= max_bytes:
            return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return None


def _peaks(clip: Clip) -> list[int] | None:
    """Loudest sample of each of 72 equal parts, square root of full scale so that quiet voices show."""
    if clip.waveform is None or not len(clip.waveform):
        return None
    parts = np.array_split(np.abs(clip.waveform), PEAKS)
    return [round(100 * min(float(part.max(initial=0.0)), 1.0) ** 0.5) for part in parts]
