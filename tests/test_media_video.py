"""Frames that nobody asked for are left out of decoding: those that were asked for are decord's, to the byte."""

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import turn, write_clip

from humanomni.media_container import decoded, open_container, video_stream
from humanomni.media_video import read_frames, scan_video

COUNT = 60


def film(count: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> list[np.ndarray]:
    """A picture that is panned over, with a cut in the middle and grain: what B-frames are made of."""
    draw = np.random.default_rng(seed)
    height, width = size
    coarse = draw.integers(0, 255, (2, height // 8 + 10, width // 8 + 10, 3), dtype=np.uint8)
    pictures = coarse.repeat(8, axis=1).repeat(8, axis=2)
    frames = []
    for i in range(count):
        picture = pictures[2 * i // count][i % 64 : i % 64 + height, i // 2 % 64 : i // 2 % 64 + width]
        frames.append(np.clip(picture + draw.normal(0, 3, (height, width, 1)), 0, 255).astype(np.uint8))
    return frames


def every_frame(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def read(path: Path, indices: Sequence[int]) -> np.ndarray:
    with open_container(path) as container:
        track = scan_video(container)
        assert track is not None
        return read_frames(container, track, list(indices))


@pytest.mark.parametrize("pixels", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize("x264", ["colormatrix=bt709", "colormatrix=bt2020nc:range=pc", "interlaced=1"])
@pytest.mark.parametrize("degrees", [0, 90])
def test_frames_are_decords(tmp_path: Path, pixels: str, x264: str, degrees: int) -> None:
    decord = pytest.importorskip("decord", reason="needs decord, which exists for x86-64 only")
    options = {"x264-params": f"bframes=3:{x264}"}
    path = write_clip(tmp_path / "film.mp4", frames=film(COUNT), pixels=pixels, codec_options=options, sound=None)
    if degrees:
        turn(path, degrees)
    indices = [0, 7, 8, 31, COUNT - 1]
    expected = decord.VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()
    assert np.array_equal(read(path, indices), expected)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
@pytest.mark.parametrize("gop", ["bframes=5:b-pyramid=normal:keyint=250", "bframes=3:b-pyramid=none:ref=6:keyint=12"])
def test_a_frame_does_not_hang_on_which_others_are_asked_for(tmp_path: Path, gop: str, name: str) -> None:
    path = write_clip(tmp_path / name, frames=film(COUNT), codec_options={"x264-params": gop}, sound=None)
    everything = every_frame(path)
    assert len(everything) == COUNT
    draw = np.random.default_rng(0)
    for count in (1, 2, 8, 8, 8):
        indices = sorted(draw.integers(0, COUNT, count).tolist())
        for index, frame in zip(indices, read(path, indices), strict=True):
            assert np.array_equal(frame, everything[index]), index


def test_frames_are_left_out(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "film.mp4", frames=film(COUNT), codec_options={"bf": "3"}, sound=None)
    with open_container(path) as container:
        stream = video_stream(container)
        assert stream is not None
        some = {frame.pts for frame in decoded(container, stream, wanted=set())}
        container.seek(0)
        every = {frame.pts for frame in decoded(container, stream, wanted=range(10**9))}
    assert len(every) == COUNT
    assert some < every
    assert len(some) < 0.8 * COUNT
