"""Frames and waveforms of real clips equal what the authors' code gave."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from humanomni.media import Clip, MediaError, load_clip, sample_frame_indices


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_sampling_is_the_authors(shared_dir: Path) -> None:
    table = json.loads((shared_dir / "golden/golden/small-A/units.json").read_text())["frame_sample_uniform"]
    for row in table:
        assert sample_frame_indices(row["duration"], row["num_frames"]) == row["indices"], row


@pytest.mark.parametrize("name", ["clip_01", "clip_02", "clip_03"])
def test_clip_is_bit_identical_to_the_authors(shared_dir: Path, name: str) -> None:
    golden = json.loads((shared_dir / f"golden/golden/small-A/{name}.json").read_text())
    clip = load_clip(shared_dir / "clips" / golden["clip"], num_frames=golden["num_frames"])
    assert clip.frames is not None
    assert clip.waveform is not None
    assert [sha256(frame) for frame in clip.frames] == golden["video"]["raw_frames_sha256"]
    assert len(clip.waveform) == golden["audio"]["num_samples"]
    assert clip.fps == pytest.approx(golden["video"]["avg_fps"])


@pytest.mark.parametrize("name", ["clip_01", "clip_02"])
def test_waveform_is_the_authors_to_float_rounding(shared_dir: Path, name: str) -> None:
    with np.load(shared_dir / f"golden/golden/small-A/{name}.npz") as golden:
        clip = load_clip(shared_dir / f"clips/{name[-2:]}.mp4", video=False)
        np.testing.assert_allclose(clip.waveform, golden["waveform"], rtol=0, atol=1e-6)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="absent.mp4: no such file"):
        load_clip(tmp_path / "absent.mp4")


def test_no_audio_is_a_state() -> None:
    assert not Clip(frames=np.zeros((1, 2, 2, 3), np.uint8), waveform=None, fps=25.0, duration=0.04).has_audio
