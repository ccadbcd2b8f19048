"""Frames and waveforms equal what the authors' code gave; states and errors are what callers rely on."""

import hashlib
import json
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from media_factory import counter_frame, write_clip
from PIL import Image

from humanomni.media import Clip, MediaError, load_clip, sample_frame_indices
from humanomni.media_images import list_images


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_sampling_is_the_authors(shared_dir: Path) -> None:
    table = json.loads((shared_dir / "golden/golden/small-A/units.json").read_text())["frame_sample_uniform"]
    for row in table:
        assert sample_frame_indices(row["duration"], row["num_frames"]) == row["indices"], row


@pytest.mark.parametrize("name", ["clip_01", "clip_02", "clip_03"])
def test_frames_are_the_authors_to_the_bit(shared_dir: Path, name: str) -> None:
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


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("block", [512, 1152])
def test_resampling_is_decords(tmp_path: Path, rate: int, block: int) -> None:
    decord = pytest.importorskip("decord", reason="needs decord, which exists for x86-64 only")
    samples = np.random.default_rng(rate).integers(-9000, 9000, (1, rate), np.int16)
    path = tmp_path / "noise.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="stereo")
        for begin in range(0, rate // 2, block):  # one packet a block: decord's lag depends on the first
            frame = av.AudioFrame.from_ndarray(samples[:, 2 * begin : 2 * (begin + block)], "s16", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            container.mux(stream.encode(frame))
    expected = decord.AudioReader(str(path), sample_rate=16_000, mono=True)[:].asnumpy()[0]
    np.testing.assert_allclose(load_clip(path).waveform, expected, rtol=0, atol=1e-6)


def test_a_sample_that_is_no_number_is_replaced_as_the_authors_do(tmp_path: Path) -> None:
    wave = np.zeros(16_000, np.float32)
    wave[[100, 200]] = np.nan, np.inf
    soundfile.write(tmp_path / "x.wav", wave, 16_000, subtype="FLOAT")
    waveform = load_clip(tmp_path / "x.wav").waveform
    assert waveform is not None
    assert set(np.flatnonzero(waveform)) == {100, 200}
    assert waveform.min() == -1.5


def test_picture_on_the_cover_of_a_song_is_no_video(tmp_path: Path) -> None:
    song = write_clip(tmp_path / "song.mp3", codec=None, sound="libmp3lame")
    with av.open(str(song)) as source, av.open(str(tmp_path / "cover.mp3"), "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 48, "rgb24", Disposition.attached_pic
        target.mux(cover.encode(av.VideoFrame.from_ndarray(counter_frame(1), format="rgb24")))
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    clip = load_clip(tmp_path / "cover.mp3")
    assert clip.frames is None
    assert clip.has_audio


def test_error_survives_the_way_back_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(MediaError("a/b.mp4", "damaged")))
    assert str(error) == "a/b.mp4: damaged"
    assert (error.path, error.reason) == (Path("a/b.mp4"), "damaged")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="absent.mp4: no such file"):
        load_clip(tmp_path / "absent.mp4")


def test_no_audio_is_a_state() -> None:
    assert not Clip(frames=np.zeros((1, 2, 2, 3), np.uint8), waveform=None, fps=25.0, duration=0.04).has_audio


def test_what_macos_leaves_in_a_folder_of_frames_is_no_frame(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "000.jpg")
    (tmp_path / "._000.jpg").write_bytes(b"\x00\x05\x16\x07")
    assert load_clip(tmp_path).frames is not None
    assert list_images(tmp_path) == [tmp_path / "000.jpg"]
