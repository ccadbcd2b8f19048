"""Small media files of every kind: each frame carries its number, and the sound carries its own time.

A frame shows its number as black and white blocks, so that a test can read back which frame it was given. The sound
is a row of chirps, no two alike nearby, so that a test can measure by how much a waveform is shifted.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

WIDE, TALL = (3, 4), (4, 3)  # rows and columns of blocks: 12 bits, so numbers up to 4095


def counter_frame(number: int, size: tuple[int, int] = (48, 64), grid: tuple[int, int] = WIDE) -> np.ndarray:
    """RGB frame of `size` [H, W, 3] whose blocks are the bits of `number`, lowest first."""
    bits = ((number >> np.arange(12)) & 1).reshape(grid)
    grey = np.kron(bits, np.ones((size[0] // grid[0], size[1] // grid[1]))) * 200 + 28
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def read_counters(frames: np.ndarray, grid: tuple[int, int] = WIDE) -> list[int]:
    """The numbers that `counter_frame` drew on frames [T, H, W, 3], whatever their size is now."""
    height, width = frames.shape[1] // grid[0], frames.shape[2] // grid[1]
    centres = frames[:, height // 2 :: height, width // 2 :: width].mean(axis=3)[:, : grid[0], : grid[1]]
    return ((centres.reshape(len(frames), 12) > 128) << np.arange(12)).sum(axis=1).tolist()


def chirps(seconds: float, rate: int) -> np.ndarray:
    """Waveform [n] with a 50 ms chirp every half second, the first at 0.1 s."""
    wave = np.zeros(round(seconds * rate))
    time = np.arange(round(0.05 * rate)) / rate
    for k, begin in enumerate(np.arange(0.1, seconds - 0.05, 0.5)):
        at = round(begin * rate)
        sweep = np.sin(2 * np.pi * (400 + 150 * (k % 8) + 20_000 * time) * time) * np.hanning(len(time)) / 2
        wave[at : at + len(sweep)] = sweep
    return wave


def lag_ms(waveform: np.ndarray, expected: np.ndarray, rate: int) -> float:
    """Milliseconds by which `waveform` [n] lags behind `expected` [m]; negative when it leads."""
    size = 1 << (len(waveform) + len(expected)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(waveform, size) * np.conj(np.fft.rfft(expected, size)), size)
    shift = int(np.argmax(correlation))
    return 1000 * (shift if shift < size // 2 else shift - size) / rate


def write_clip(
    path: Path,
    *,
    frames: int | Sequence[np.ndarray] = 50,
    fps: int = 25,
    times: Callable[[int], float] | None = None,
    codec: str | None = "libx264",
    pixels: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    sound: str | None = "aac",
    sound_rate: int = 48_000,
    sound_at: float = 0.0,
    seconds: float = 2.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a clip of counted frames and `seconds` of chirps.

    Args:
        frames: the number of counted frames, or the frames themselves.
        times: second at which frame i is shown; None is a constant rate.
        codec: of the video; None for sound alone.
        sound: codec of the sound; None for a silent film.
        sound_at: second at which the sound track starts.
        options: of the container.
    """
    images = [counter_frame(i) for i in range(frames)] if isinstance(frames, int) else frames
    with _same_scheduling(), av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=codec_options or {}) if codec else None
        audio = container.add_stream(sound, rate=sound_rate, layout="mono") if sound else None
        if video is not None:
            video.height, video.width, video.pix_fmt = *images[0].shape[:2], pixels
            video.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, fps)
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = round(times(i) * 1000) if times else i, video.codec_context.time_base
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None:
            _write_sound(container, audio, chirps(seconds, sound_rate), round(sound_at * sound_rate))
    return path


@contextmanager
def _same_scheduling() -> Iterator[None]:
    """SVT-AV1 makes the thread that calls it real-time where it may, as root. Every later child of this process would
    inherit that, and its spinning workers would starve the machine."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def _write_sound(container: OutputContainer, stream: AudioStream, wave: np.ndarray, first: int) -> None:
    rate = stream.codec_context.sample_rate
    to_codec = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
    samples = (wave * 32767).astype(np.int16)
    for begin in range(0, len(samples), 1024):
        frame = av.AudioFrame.from_ndarray(samples[None, begin : begin + 1024], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, first + begin, Fraction(1, rate)
        for piece in to_codec.resample(frame):
            container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def turn(path: Path, degrees: int) -> None:
    """Tag the first track of an mp4 as to be shown turned clockwise by 90, 180 or 270 degrees, as phones do."""
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 0x10000
    _patch(path, b"tkhd", 44, struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000))


def hide_first_frames(path: Path, frames: int, fps: int = 25) -> None:
    """Cut the first frames off an mp4 by its edit list, as an editor that does not encode again does."""
    data = path.read_bytes()
    at = data.index(b"elst") + 12
    duration, begin = struct.unpack(">2i", data[at : at + 8])
    scale = struct.unpack(">i", data[data.index(b"mdhd") + 16 :][:4])[0]
    duration -= 1000 * frames // fps
    _patch(path, b"elst", 12, struct.pack(">2i", duration, begin + scale * frames // fps))


def replace(path: Path, old: bytes, new: bytes) -> None:
    """Replace every `old` in the file by a `new` of the same length."""
    path.write_bytes(path.read_bytes().replace(old, new))


def _patch(path: Path, box: bytes, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(box) + offset
    content[at : at + len(data)] = data
    path.write_bytes(content)
