"""Read one clip: a few RGB frames and the 16 kHz mono waveform.

Frames are chosen by the authors' formula and decoded by decord, the decoder the published checkpoints were
trained with. Squaring, resizing and normalising frames is the processor's work, not this file's.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import av
import decord
import numpy as np

logger = logging.getLogger(__name__)

NAN_SAMPLE = -1.5  # what the authors' release puts in place of a NaN sample


class MediaError(Exception):
    """A media file cannot be read; the message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


@dataclass(frozen=True)
class Clip:
    """One decoded clip, or the part of it between `start` and `end`.

    Attributes:
        frames: uint8 RGB [T, H, W, 3], or None when video was not asked for or the file holds none.
        waveform: float32 mono [n] at the rate asked for, or None when not asked for or without a track.
        fps: average frame rate of the source; 0.0 without frames.
        duration: seconds that the part spans.
    """

    frames: np.ndarray | None
    waveform: np.ndarray | None
    fps: float
    duration: float

    @property
    def has_audio(self) -> bool:
        """Whether there is sound to listen to; a clip without an audio track is a state, not an error."""
        return self.waveform is not None


def sample_frame_indices(length: int, num_frames: int) -> list[int]:
    """Spread `num_frames` indices over a range of `length` frames, at the middle of equal segments.

    The authors' formula, rounding half to even; indices repeat when the range is shorter than asked.

    Raises:
        ValueError: `length` or `num_frames` is below 1.
    """
    if length < 1 or num_frames < 1:
        raise ValueError(
            f"need at least one frame to sample from and one to take, not {length} and {num_frames}"
        )
    segment = (length - 1) / num_frames
    edges = segment * np.arange(num_frames + 1, dtype=np.float64)
    return np.round((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(int).tolist()


def load_clip(
    path: str | Path,
    *,
    num_frames: int = 8,
    sampling_rate: int = 16_000,
    start: float | None = None,
    end: float | None = None,
    video: bool = True,
    audio: bool = True,
) -> Clip:
    """Decode `num_frames` frames and the waveform of one media file.

    Args:
        path: a video or audio file.
        num_frames: frames to take, evenly spread over the part between `start` and `end`.
        sampling_rate: of the waveform, in Hz.
        start: seconds at which the part begins; None is the beginning.
        end: seconds at which it ends; None is the end.
        video: whether to decode frames.
        audio: whether to decode the waveform.

    Raises:
        MediaError: the file is missing, empty, damaged beyond decoding, or holds nothing that was asked for.
            An absent audio track is no error: see `Clip.has_audio`.
    """
    path = Path(path)
    if not path.is_file():
        raise MediaError(path, "no such file")
    start, end = _ordered(start, end)
    has_video, has_audio = _streams(path)
    frames, fps, duration = None, 0.0, 0.0
    if video and has_video:
        frames, fps, duration = _read_frames(path, num_frames, start, end)
    waveform = _read_waveform(path, sampling_rate, start, end) if audio and has_audio else None
    if frames is None:
        if waveform is None and video:
            raise MediaError(path, "holds no video stream")
        duration = 0.0 if waveform is None else len(waveform) / sampling_rate
    return Clip(frames, waveform, fps, duration)


def _ordered(start: float | None, end: float | None) -> tuple[float, float | None]:
    """The authors' rule: negatives are 0, a swapped pair is turned round, an empty range lasts a second."""
    start = max(start or 0.0, 0.0)
    if end is None:
        return start, None
    start, end = sorted((start, max(end, 0.0)))
    return start, end if end > start else start + 1.0


def _streams(path: Path) -> tuple[bool, bool]:
    try:
        with av.open(path) as container:
            return bool(container.streams.video), bool(container.streams.audio)
    except av.FFmpegError as error:
        raise MediaError(path, f"not a media file that can be opened ({error.strerror})") from error


def _read_frames(
    path: Path, num_frames: int, start: float, end: float | None
) -> tuple[np.ndarray, float, float]:
    try:
        reader = decord.VideoReader(str(path))
        fps = reader.get_avg_fps()
        first = max(int(start * fps) - 1, 0)
        last = len(reader) - 1 if end is None else min(int(end * fps) - 1, len(reader) - 1)
        if last < first:
            raise MediaError(
                path, f"no frame lies between {start} s and {end} s; it has {len(reader) / fps:.2f} s"
            )
        indices = [first + i for i in sample_frame_indices(last - first + 1, num_frames)]
        return reader.get_batch(indices).asnumpy(), fps, (last - first + 1) / fps
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(path, f"its video cannot be decoded ({str(error).splitlines()[0]})") from error


def _read_waveform(path: Path, sampling_rate: int, start: float, end: float | None) -> np.ndarray:
    """Mono waveform [n]; cut along time, where the authors' release cuts along the channels."""
    try:
        samples = decord.AudioReader(str(path), sample_rate=sampling_rate, mono=True)[:].asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        raise MediaError(path, f"its audio track cannot be decoded ({str(error).splitlines()[0]})") from error
    waveform = np.nan_to_num(samples, nan=NAN_SAMPLE).mean(axis=0)
    stop = None if end is None else round(end * sampling_rate)
    return waveform[round(start * sampling_rate) : stop]
