"""The mono waveform of a media file, streamed, so that nothing beyond the part asked for is kept.

Sound tracks are decoded by PyAV and resampled the way decord does it, to the sample. decord's own audio reader, whose
output the published checkpoints were trained on, never frees the waveforms that it returns (0.7 MB for each load of a
ten-second clip) and can crash on a damaged AVI. Sound files without pictures are read by librosa.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path

import av
import librosa
import numpy as np

from humanomni.media_container import MediaError, audio_stream, decoded, open_container, packets, video_stream

NAN_SAMPLE = -1.5  # the authors' stand-in for a sample that is not a number
SOUND_FILES = {"wav", "flac", "mp3", "ogg", "aiff"}  # container names; librosa reads them without outside help
SMALL_OFFSET = 0.1  # seconds; an encoder's priming samples shift a track by 0.02 to 0.06
BROKEN_OFFSET = 60.0  # seconds; a time stamp further off than this is damage, not a late start


def read_waveform(
    path: Path, rate: int, start: float = 0.0, end: float = math.inf, *, as_decord: bool = False
) -> np.ndarray | None:
    """Mono waveform float32 [n] at `rate` Hz from second `start` to `end`; None where there is no sound.

    Second 0 is the first video frame, wherever the sound track starts. The authors' release cuts `start` and `end`
    along the channels; here they cut time.

    Args:
        as_decord: leave a small offset between sound and pictures uncorrected, as decord leaves any offset.

    Raises:
        MediaError: the container cannot be opened, or nothing in its audio track can be decoded.
    """
    with open_container(path) as container:
        stream = audio_stream(container)
        if stream is None:
            return None
        pictures = video_stream(container)
        if pictures is None and container.format.name in SOUND_FILES:
            sound = _sound_file(path, rate, start, end)
            if sound is not None:
                return _finite(sound)
        frames = decoded(container, stream)
        first = next(frames, None)
        if first is None:
            container.seek(0)
            if next(packets(container, stream), None) is None:
                return None
            raise MediaError(path, f"its audio track ({stream.codec_context.name}) cannot be decoded")
        offset = 0.0
        if pictures is not None and first.pts is not None and stream.time_base and pictures.time_base:
            offset = float(first.pts * stream.time_base - (pictures.start_time or 0) * pictures.time_base)
        if abs(offset) > BROKEN_OFFSET or (as_decord and abs(offset) < SMALL_OFFSET):
            offset = 0.0
        return _finite(_cut(_resampled(chain([first], frames), rate), rate, offset, start, end))


def _sound_file(path: Path, rate: int, start: float, end: float) -> np.ndarray | None:
    """Waveform [n] of a sound file, or None when librosa cannot read it."""
    try:
        with path.open("rb") as file:
            return librosa.load(file, sr=rate, offset=start, duration=None if end == math.inf else end - start)[0]
    except (RuntimeError, ValueError, MemoryError, librosa.ParameterError):  # absurd headers give the middle two
        return None


def _finite(waveform: np.ndarray) -> np.ndarray | None:
    return np.where(np.isfinite(waveform), waveform, np.float32(NAN_SAMPLE)) if waveform.size else None


def _cut(blocks: Iterable[np.ndarray], rate: int, offset: float, start: float, end: float) -> np.ndarray:
    """Join `blocks` [n], the first of which begins at second `offset`, into the part between `start` and `end`."""
    position, first = round(offset * rate), round(start * rate)
    stop = math.inf if end == math.inf else round(end * rate)
    pieces = [np.zeros(int(max(min(position, stop) - first, 0)), np.float32)]
    for block in blocks:
        if position >= stop:
            break
        pieces.append(block[max(first - position, 0) : int(min(stop - position, len(block)))])
        position += len(block)
    return np.concatenate(pieces)


def _resampled(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[np.ndarray]:
    """Mono blocks float32 [n] at `rate` Hz; a track may change its format on the way."""
    for (_, _, source_rate), run in groupby(frames, lambda f: (f.format.name, f.layout.name, f.sample_rate)):
        to_mono = av.AudioResampler(format="fltp", layout="mono", rate=source_rate)
        blocks = (mono.to_ndarray()[0] for frame in run for mono in to_mono.resample(frame))
        if source_rate == rate:
            yield from blocks
            continue
        to_rate = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        for block in _with_decord_lag(blocks, source_rate, rate):
            frame = av.AudioFrame.from_ndarray(block[None], format="fltp", layout="mono")
            frame.sample_rate = source_rate
            yield from (out.to_ndarray()[0] for out in to_rate.resample(frame))


def _with_decord_lag(blocks: Iterator[np.ndarray], source_rate: int, rate: int) -> Iterator[np.ndarray]:
    """Repeat a few source samples in reverse after the first block, as decord's resampler does.

    decord flushes its resampler after the first decoded frame: the samples that still wait in the filter are
    mirrored, half as many as are waiting, and everything after comes about 16 output samples (1 ms) late. It never
    flushes again, so the same number of samples is missing at the end.
    """
    taps = math.ceil(32 / min(0.97 * rate / source_rate, 1.0) / 2) * 2  # libswresample's default filter
    before = (taps - 1) // 2  # it begins this far before the first sample
    head = np.zeros(0, np.float32)
    for block in blocks:
        head = np.concatenate([head, block])
        outputs = -(-(len(head) - taps + before + 1) * rate // source_rate)
        if outputs > 0:
            waiting = len(head) - (outputs * source_rate // rate - before)
            mirrored = head[-((min(waiting, taps) + 1) // 2) :][::-1]
            yield np.concatenate([head, mirrored])
            yield from blocks
            return
    if head.size:
        yield head
