"""Writes frames and a waveform as an mp4 file with H.264 video and AAC audio."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_AAC_FRAME = 1024  # samples
# x264's macroblock tree is off: on frames as small as these its assembly gives other bytes from run to run.
_X264 = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}


def write_mp4(path: Path, frames: np.ndarray, fps: int, waveform: np.ndarray | None, sample_rate: int) -> None:
    """Encodes one clip; the same input gives the same bytes on the same machine and libraries.

    Args:
        path: where to write; the container is mp4 whatever the suffix.
        frames: uint8 RGB [T, H, W, 3]; H and W even.
        fps: frames a second.
        waveform: float32 mono [samples] in -1..1, or None for a file without an audio track.
        sample_rate: of the waveform, in Hz.
    """
    with av.open(path, mode="w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps, options=_X264)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1  # threads cost more than they give on small frames
        audio = None
        if waveform is not None:
            audio = container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_coder": "fast"})
            audio.bit_rate = 64_000
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        if audio is not None and waveform is not None:
            for start in range(0, len(waveform), _AAC_FRAME):
                block = waveform[None, start : start + _AAC_FRAME]
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="fltp", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = sample_rate, start, Fraction(1, sample_rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
