"""Read one clip: a few RGB frames and the mono waveform.

Frames are chosen by the authors' formula, and an ordinary file gives the numbers that their decoder gave. Squaring,
resizing and normalising frames is the processor's work, not this file's.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from humanomni.media_audio import read_waveform
from humanomni.media_container import MediaError, open_container, video_stream
from humanomni.media_images import FOLDER_FPS, list_images, read_images
from humanomni.media_timeline import Timeline, sample_frame_indices
from humanomni.media_video import read_frames, scan_video

__all__ = ["Clip", "MediaError", "kind_of", "load_clip", "sample_frame_indices"]


@dataclass(frozen=True)
class Clip:
    """One decoded clip, or the part of it between `start` and `end`.

    Attributes:
        frames: uint8 RGB [T, H, W, 3], or None when video was not asked for or the file holds none.
        waveform: float32 mono [n] at the rate asked for, or None when not asked for or without sound.
        fps: average frame rate of the source; 0.0 for sound alone.
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


def load_clip(
    path: str | Path,
    *,
    num_frames: int = 8,
    sampling_rate: int = 16_000,
    start: float | None = None,
    end: float | None = None,
    video: bool = True,
    audio: bool = True,
    max_audio_seconds: float = math.inf,
    gpu: int | None = None,
) -> Clip:
    """Decode `num_frames` frames and the waveform of a video, a sound file, an image or a folder of frames.

    Args:
        path: a file, or a folder of images, which counts as a video of 3 frames a second.
        num_frames: frames to take, evenly spread over the part between `start` and `end`.
        sampling_rate: of the waveform, in Hz.
        start: second at which the part begins; None is the beginning.
        end: second at which it ends; None is the end.
        video: whether to decode frames.
        audio: whether to decode the waveform.
        max_audio_seconds: length at which the waveform is cut; nothing beyond it is decoded.
        gpu: number of the GPU whose decoder reads ordinary H.264, to the same frames; None leaves all to the cores.

    Raises:
        MediaError: the file is missing, empty, damaged beyond decoding, or holds nothing that was asked for. An
            absent audio track is no error: see `Clip.has_audio`.
    """
    path = Path(path)
    if not (path.is_file() or path.is_dir()):
        raise MediaError(path, "no such file or folder")
    begin, stop = time_range(start, end)
    if images := list_images(path):
        timeline = Timeline.even(len(images), FOLDER_FPS)
        part = _part(path, timeline, begin, stop)
        chosen = [images[part[i]] for i in sample_frame_indices(len(part), num_frames)]
        return Clip(read_images(chosen) if video else None, None, timeline.fps, timeline.duration(part))
    with open_container(path) as container:
        track = scan_video(container)
        waveform = None
        if audio:
            as_decord = track is not None and track.ordinary
            last = min(stop, begin + max_audio_seconds)
            waveform = read_waveform(path, sampling_rate, begin, last, as_decord=as_decord)
        if track is None:
            if waveform is None:
                raise MediaError(path, "holds no pictures" + (f" and no sound after {begin:g} s" if audio else ""))
            return Clip(None, waveform, 0.0, len(waveform) / sampling_rate)
        part = _part(path, track.timeline, begin, stop)
        indices = [part[i] for i in sample_frame_indices(len(part), num_frames)]
        frames = read_frames(container, track, indices, gpu) if video else None
    return Clip(frames, waveform, track.timeline.fps, track.timeline.duration(part))


def kind_of(path: Path) -> Literal["video", "image", "audio"]:
    """What a file is by its content: a folder of frames and a moving picture are videos, sound alone is audio.

    Raises:
        MediaError: the file is missing, or no media file.
    """
    if not path.exists():
        raise MediaError(path, "no such file or folder")
    if list_images(path):
        return "video" if path.is_dir() else "image"
    with open_container(path) as container:
        return "audio" if video_stream(container) is None else "video"


def time_range(start: float | None, end: float | None) -> tuple[float, float]:
    """The authors' rule: negatives are 0, a swapped pair is turned round, an empty range lasts a second."""
    begin, stop = sorted((max(start or 0.0, 0.0), math.inf if end is None else max(end, 0.0)))
    return begin, stop if stop > begin else begin + 1.0


def _part(path: Path, timeline: Timeline, begin: float, stop: float) -> range:
    part = timeline.between(begin, stop)
    if not part:
        whole = timeline.duration(range(len(timeline.seconds)))
        raise MediaError(path, f"no frame between second {begin:g} and {stop:g}: it lasts {whole:.2f} s")
    return part
