"""One clip of every kind that users have: the right frames, sound in step with them, memory within bounds."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from media_factory import (
    TALL,
    WIDE,
    chirps,
    counter_frame,
    hide_first_frames,
    lag_ms,
    read_counters,
    replace,
    turn,
    write_clip,
)
from PIL import Image

from humanomni.media import Clip, MediaError, load_clip, sample_frame_indices

RATE = 16_000
LOSSLESS_AVI = {"sound": "pcm_s16le"}  # mp3 and aac in AVI carry no record of their priming, so nobody can place them


def slowing(i: int) -> float:
    """25 frames a second for a second, then 10."""
    return i / 25 if i < 25 else 1 + (i - 25) / 10


ORDINARY = {
    "h264.mp4": {},
    "many_keys.mp4": {"codec_options": {"g": "10", "bf": "2"}},
    "hevc.mp4": {"codec": "libx265", "codec_options": {"x265-params": "log-level=none"}},
    "av1.mp4": {"codec": "libsvtav1"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "fragmented.mp4": {"options": {"movflags": "frag_keyframe+delay_moov"}},
    "h264.mov": {"sound": "pcm_s16le"},
    "mjpeg.mov": {"codec": "mjpeg", "pixels": "yuvj420p", "sound": "pcm_s16le"},
    "mpeg4.avi": {"codec": "mpeg4"} | LOSSLESS_AVI,
    "h264.avi": {"codec_options": {"bf": "3"}} | LOSSLESS_AVI,
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"} | LOSSLESS_AVI,
    "h264.mkv": {"sound": "flac"},
    "ac3.mkv": {"sound": "ac3"},
    "no_index.mkv": {"sound": "libopus", "options": {"live": "1"}},
    "vp8.webm": {"codec": "libvpx", "sound": "libopus"},
    "vp9.webm": {"codec": "libvpx-vp9", "sound": "libopus"},
    "h264.ts": {},
    "open_gop.mpg": {"codec": "mpeg2video", "sound": "mp2"},
    "h264.flv": {"sound_rate": 44_100},
    "silent.mp4": {"sound": None},
    "animation.gif": {"codec": "gif", "pixels": "rgb8", "sound": None},
    "late_sound.mp4": {"sound_at": 0.7},
    "late_sound.mkv": {"sound_at": 0.7, "sound": "flac"},
    "slowing.mp4": {"times": slowing, "seconds": 3.5},
    "slowing.mkv": {"times": slowing, "seconds": 3.5, "sound": "flac"},
    "slowing.webm": {"times": slowing, "seconds": 3.5, "codec": "libvpx", "sound": "libopus"},
}


def check_sound(clip: Clip, options: dict, start: float = 0.0, end: float = 10.0) -> None:
    if options.get("sound", "aac") is None:
        assert not clip.has_audio
        return
    at = options.get("sound_at", 0.0)
    heard = np.concatenate([np.zeros(round(at * RATE)), chirps(options.get("seconds", 2.0), RATE)])
    assert clip.waveform is not None
    assert clip.waveform.dtype == np.float32
    assert abs(lag_ms(clip.waveform, heard[round(start * RATE) : round(end * RATE)], RATE)) < 2


@pytest.mark.parametrize("name", ORDINARY)
def test_frames_and_sound_of_every_container(tmp_path: Path, name: str) -> None:
    clip = load_clip(write_clip(tmp_path / name, **ORDINARY[name]))
    assert clip.frames is not None
    assert clip.frames.shape == (8, 48, 64, 3)
    assert read_counters(clip.frames) == sample_frame_indices(50, 8)
    slow = "times" in ORDINARY[name]
    assert clip.duration == pytest.approx(3.5 if slow else 2.0, abs=0.05)
    assert clip.fps == pytest.approx(50 / 3.5 if slow else 25, rel=0.02)
    check_sound(clip, ORDINARY[name])


@pytest.mark.parametrize("name", ORDINARY)
def test_part_of_every_container(tmp_path: Path, name: str) -> None:
    """A constant rate follows the authors' formula; a variable one takes what is on screen in that time."""
    path = write_clip(tmp_path / name, **ORDINARY[name])
    clip = load_clip(path, start=0.6, end=1.8, num_frames=60)
    shown = range(15, 33) if "times" in ORDINARY[name] else range(14, 45)
    assert clip.frames is not None
    assert sorted(set(read_counters(clip.frames))) == list(shown)
    check_sound(clip, ORDINARY[name], 0.6, 1.8)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open_gop.mp4", "libx264", {"x264-params": "open-gop=1:keyint=5:bframes=2"}),
        ("open_gop.mov", "libx265", {"x265-params": "log-level=none:keyint=30"}),
        ("b_frames.avi", "libx264", {"g": "12", "bf": "3"}),
        ("b_frames.mov", "mpeg4", {"bf": "2"}),
        ("b_frames.wmv", "libx264", {"bf": "2"}),
    ],
)
def test_files_whose_frames_decord_confuses(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    clip = load_clip(write_clip(tmp_path / name, frames=200, codec=codec, codec_options=options, sound=None))
    assert clip.frames is not None
    assert read_counters(clip.frames) == sample_frame_indices(200, 8)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("size", [(96, 128), (36, 48)], ids=["decord", "too narrow for decord"])
def test_rotated_phone_video_is_upright(tmp_path: Path, degrees: int, size: tuple[int, int]) -> None:
    sensor = [np.rot90(counter_frame(i, size), degrees // 90) for i in range(20)]
    path = write_clip(tmp_path / "phone.mp4", frames=[np.ascontiguousarray(image) for image in sensor])
    turn(path, degrees)
    clip = load_clip(path)
    assert clip.frames is not None
    assert clip.frames.shape == (8, *size, 3)
    assert read_counters(clip.frames) == sample_frame_indices(20, 8)


@pytest.mark.parametrize(
    ("size", "grid", "count"),
    [((128, 96), TALL, 20), ((64, 48), TALL, 20), ((2160, 3840), WIDE, 2), ((48, 64), WIDE, 1)],
)
def test_portrait_4k_and_one_frame(tmp_path: Path, size: tuple[int, int], grid: tuple[int, int], count: int) -> None:
    images = [counter_frame(i, size, grid) for i in range(count)]
    clip = load_clip(write_clip(tmp_path / "x.mp4", frames=images, codec_options={"preset": "ultrafast"}))
    assert clip.frames is not None
    assert clip.frames.shape == (8, *size, 3)
    assert read_counters(clip.frames, grid) == sample_frame_indices(count, 8)


def test_frames_cut_off_by_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "cut.mp4", sound=None, codec_options={"g": "10", "bf": "2"})
    hide_first_frames(path, 7)
    clip = load_clip(path, num_frames=43)
    assert clip.frames is not None
    assert read_counters(clip.frames) == list(range(7, 50))


def test_avi_without_its_index(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "x.avi", codec="mpeg4", **LOSSLESS_AVI)
    replace(path, b"idx1", b"JUNK")
    clip = load_clip(path)
    assert clip.frames is not None
    assert read_counters(clip.frames) == sample_frame_indices(50, 8)
    check_sound(clip, LOSSLESS_AVI)


@pytest.mark.parametrize("name", ["x.mkv", "x.avi", "x.mp4"])
def test_a_broken_off_copy_gives_what_it_holds(tmp_path: Path, name: str) -> None:
    codec = {"codec_options": {"g": "10"}, "sound": "flac"} if name != "x.avi" else {"codec": "mpeg4"} | LOSSLESS_AVI
    path = write_clip(tmp_path / name, **codec, options={"movflags": "faststart"} if name == "x.mp4" else {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    clip = load_clip(path)
    numbers = read_counters(clip.frames) if clip.frames is not None else []
    assert numbers == sorted(numbers)
    assert 5 < numbers[-1] < 49
    assert 0.2 < clip.duration < 2.0
    check_sound(clip, codec, end=clip.duration)


@pytest.mark.parametrize(
    ("name", "codec"), [("x.wav", "pcm_s16le"), ("x.flac", "flac"), ("x.mp3", "libmp3lame"), ("x.m4a", "aac")]
)
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_sound_files(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    path = write_clip(tmp_path / name, codec=None, sound=codec, sound_rate=rate)
    clip = load_clip(path)
    assert clip.frames is None
    assert clip.duration == pytest.approx(2.0, abs=0.07)  # aac pads its last block
    check_sound(clip, {})
    check_sound(load_clip(path, start=0.6, end=1.8), {}, 0.6, 1.8)
    with pytest.raises(MediaError, match="no pictures"):
        load_clip(path, audio=False)


def test_folder_of_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for i in range(12):
        Image.fromarray(counter_frame(i)).save(tmp_path / f"frame_{i}.png")
    clip = load_clip(tmp_path, num_frames=12)
    assert clip.frames is not None
    assert read_counters(clip.frames) == sample_frame_indices(12, 12)
    assert (clip.fps, clip.duration, clip.has_audio) == (3.0, 4.0, False)
    Image.fromarray(counter_frame(0, (96, 128))).save(tmp_path / "frame_12.png")
    with pytest.raises(MediaError, match="frame_12.png: 128x96 pixels, but frame_0.png has 64x48"):
        load_clip(tmp_path, num_frames=26)


def test_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    Image.fromarray(np.rot90(counter_frame(77, (96, 128)))).save(tmp_path / "x.jpg", exif=exif)
    clip = load_clip(tmp_path / "x.jpg")
    assert clip.frames is not None
    assert clip.frames.shape == (8, 96, 128, 3)
    assert read_counters(clip.frames) == [77] * 8


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("zero.mp4", b""),
        ("zero.wav", b""),
        ("text.mp4", b"not a film\n" * 100),
        ("noise.webm", bytes(np.random.default_rng(0).integers(0, 256, 5000, np.uint8))),
        ("zero.jpg", b""),
    ],
)
def test_what_is_no_media_is_an_error_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MediaError, match=name):
        load_clip(tmp_path / name)


def test_mp4_whose_recording_never_ended(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "x.mp4")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(MediaError, match="x.mp4: damaged"):
        load_clip(path)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="without images"):
        load_clip(tmp_path)


def test_undecodable_sound_is_an_error_but_the_frames_can_be_had(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "x.mkv", sound="flac")
    replace(path, b"A_FLAC", b"A_NONE")
    with pytest.raises(MediaError, match=r"x\.mkv: no decoder for its audio track"):
        load_clip(path)
    clip = load_clip(path, audio=False)
    assert clip.frames is not None
    assert read_counters(clip.frames) == sample_frame_indices(50, 8)


def test_part_beyond_the_end(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "x.mp4")
    with pytest.raises(MediaError, match="no frame between second 5 and 6: it lasts 2.00 s"):
        load_clip(path, start=5, end=6)


def test_time_range_follows_the_authors(tmp_path: Path) -> None:
    """Swapped ends are turned round, an empty range lasts a second, negatives are 0."""
    path = write_clip(tmp_path / "x.mp4")

    def numbers(**part: float) -> list[int]:
        frames = load_clip(path, num_frames=50, **part).frames
        return sorted(set(read_counters(frames))) if frames is not None else []

    assert numbers(start=1.2, end=0.4) == list(range(9, 30))
    assert numbers(start=0.4, end=0.4) == list(range(9, 35))
    assert numbers(start=-3.0, end=1.0) == list(range(25))


def test_ten_minutes_in_the_memory_of_ten_seconds(tmp_path: Path) -> None:
    def peak_mib(path: Path, seconds: int) -> float:
        code = (
            "import resource, sys; from humanomni.media import load_clip\n"
            "clip = load_clip(sys.argv[1], max_audio_seconds=10); assert clip.duration == float(sys.argv[2])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(clip.waveform))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, path, str(seconds)], capture_output=True, text=True, check=True
        )
        memory, samples = done.stdout.split()
        assert int(samples) == 10 * RATE
        return float(memory)

    options: dict = {"fps": 2, "sound": "flac", "sound_rate": 8000, "codec_options": {"g": "20"}}
    short = write_clip(tmp_path / "short.mkv", frames=20, seconds=10, **options)
    long = write_clip(tmp_path / "long.mkv", frames=1200, seconds=600, **options)
    assert peak_mib(long, 600) < peak_mib(short, 10) + 20
    clip = load_clip(long, audio=False)
    assert clip.frames is not None
    assert read_counters(clip.frames) == sample_frame_indices(1200, 8)
