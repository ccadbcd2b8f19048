"""A decoder that is kept for clips encoded alike gives the frames that each file's own gives.

Here a core stands in for the GPU, of which test_on_gpu.py has the frames.
"""

from pathlib import Path
from unittest import mock

import av
import numpy as np
import pytest
import torch
from media_factory import turn, write_clip
from test_media_video import film

from humanomni import media_nvdec, media_video
from humanomni.media import load_clip

PARTS = [(None, None), (0.5, 1.5), (1.2, None)]


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> mock.Mock:
    """Counts the decoders that are made, each of a core in place of a GPU."""
    monkeypatch.setattr(media_nvdec, "_device", lambda gpu: None)
    made = mock.Mock(wraps=media_nvdec._new_decoder)
    monkeypatch.setattr(media_nvdec, "_new_decoder", made)
    monkeypatch.setattr(media_nvdec, "_this_thread", media_nvdec._ThisThread())
    media_video._warn_once.cache_clear()
    return made


def assert_same_frames(path: Path) -> None:
    for begin, end in PARTS:
        frames = [load_clip(path, start=begin, end=end, audio=False, gpu=gpu).frames for gpu in (None, 0)]
        assert frames[0] is not None
        assert np.array_equal(*frames)


def clip(path: Path, x264: str = "bframes=3", *, size: tuple[int, int] = (96, 128), seed: int = 0) -> Path:
    return write_clip(path, frames=film(60, size, seed), codec_options={"x264-params": x264}, sound=None)


def test_clips_encoded_alike_are_decoded_by_one_decoder(
    tmp_path: Path, decoders: mock.Mock, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        assert_same_frames(clip(tmp_path / f"{seed}.mp4", seed=seed))
    assert decoders.call_count == 1
    assert caplog.text.count("the GPU does not decode 128x96 pixels, or has no memory for it: cores do") == 1


@pytest.mark.parametrize("x264", ["bframes=3:keyint=12", "bframes=0", "bframes=5:b-pyramid=normal:ref=6"])
def test_clips_encoded_otherwise_have_another(x264: str, tmp_path: Path, decoders: mock.Mock) -> None:
    paths = [clip(tmp_path / "0.mp4", size=(48, 64)), clip(tmp_path / "1.mp4", x264), clip(tmp_path / "2.mp4", x264)]
    for path in paths:
        assert_same_frames(path)
    assert decoders.call_count == 2


def test_few_decoders_are_kept(tmp_path: Path, decoders: mock.Mock) -> None:
    sizes = [(48, 64 + 16 * i) for i in range(media_nvdec._DECODERS + 1)]
    paths = [clip(tmp_path / f"{i}.mp4", size=size) for i, size in enumerate(sizes)]
    for path in [*paths, *paths[1:], paths[0]]:
        assert_same_frames(path)
    assert decoders.call_count == len(paths) + 1


@pytest.mark.parametrize("kind", ["turned", "interlaced", "hevc", "avi", "10 bits"])
def test_other_clips_are_left_to_the_cores(kind: str, tmp_path: Path, decoders: mock.Mock) -> None:
    path = tmp_path / "film.mp4"
    if kind == "turned":
        turn(clip(path), 90)
    elif kind == "interlaced":
        clip(path, "interlaced=1")
    elif kind == "hevc":
        write_clip(path, frames=film(60), codec="libx265", sound=None)
    elif kind == "avi":
        path = clip(path.with_suffix(".avi"))
    else:
        write_clip(path, frames=film(60), pixels="yuv420p10le", sound=None)
    assert_same_frames(path)
    assert not decoders.called


def test_a_damaged_clip_is_read_to_its_end(tmp_path: Path, decoders: mock.Mock) -> None:
    path = clip(tmp_path / "film.mp4")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 2000
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    assert_same_frames(path)
    assert decoders.called


def test_the_cores_decode_when_the_gpu_fails(
    tmp_path: Path, decoders: mock.Mock, caplog: pytest.LogCaptureFixture
) -> None:
    decoders.side_effect = av.ExternalError(1, "no memory is left")
    assert_same_frames(clip(tmp_path / "film.mp4"))
    assert "film.mp4: decoded by a core" in caplog.text


def test_frames_of_another_size_are_not_taken(
    tmp_path: Path, decoders: mock.Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU gives them where a stream is to be cut off at the left."""
    monkeypatch.setattr("humanomni.media_video.in_memory", lambda frame: frame.reformat(width=frame.width - 2))
    assert_same_frames(clip(tmp_path / "film.mp4"))
    assert decoders.called


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_process_that_cannot_use_a_gpu_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert not media_nvdec.usable(0)
    assert "decoded by cores, because GPU 0 cannot be used" in caplog.text


def test_what_a_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "only by an NVIDIA GPU" in str(media_nvdec.why_not("cpu"))
    monkeypatch.setattr(media_nvdec, "_LIBRARY", "libnvcuvid-that-is-not-there.so.1")
    assert "NVIDIA_DRIVER_CAPABILITIES" in str(media_nvdec.why_not("cuda:0"))
    monkeypatch.setattr(media_nvdec, "_LIBRARY", "libc.so.6")
    assert media_nvdec.why_not("cuda:0") is None
