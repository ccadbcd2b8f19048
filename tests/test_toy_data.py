"""The toy world: what its files hold, that a seed decides them, that an interrupted run is continued."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from fgce.judges.lexicon import LexiconJudge
from fgce.rubric import load_rubric
from fgce.schema import ScoreItem, ScoreRequest
from fgce.scorer import Scorer
from humanomni.completion import parse_completion
from humanomni.labels import LABEL_SETS
from humanomni.prompts import EMOTION_QUESTION, strip_media_tags
from humanomni.records import read_records

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_toy_data.py"
SMALL = ("--train", "28", "--val", "7", "--test", "14")


def make_world(output: Path, *flags: str) -> dict:
    """Runs the script and returns the manifest."""
    subprocess.run([sys.executable, SCRIPT, "--output", output, *flags], check=True, capture_output=True, timeout=120)
    return json.loads((output / "world.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("toy") / "world"
    make_world(output, *SMALL)
    return output


@pytest.fixture(scope="module")
def world(folder: Path) -> dict:
    return json.loads((folder / "world.json").read_text())


def test_every_clip_is_h264_with_aac_unless_the_manifest_says_no_audio_track(folder: Path, world: dict) -> None:
    for clip in world["clips"]:
        with av.open(folder / clip["file"]) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert [stream.codec_context.name for stream in container.streams.audio] == (
                ["aac"] if clip["audio"] else []
            )
            assert sum(1 for _ in container.decode(video=0)) == clip["num_frames"]
            assert container.duration / av.time_base == pytest.approx(clip["duration"], abs=0.15)
        assert 1.9 <= clip["duration"] <= 4.0


def test_decord_reads_pictures_and_sound(folder: Path, world: dict) -> None:
    decord = pytest.importorskip("decord", reason="decord has no wheel for this machine")
    for clip in world["clips"]:
        actor = world["actors"][clip["actor"]]
        video = decord.VideoReader(str(folder / clip["file"]), ctx=decord.cpu(0))
        assert len(video) == clip["num_frames"]
        assert video[len(video) - 1].shape == (*actor["frame_size"][::-1], 3)
        if clip["audio"]:
            sound = decord.AudioReader(str(folder / clip["file"]), sample_rate=16_000, mono=True)[:].asnumpy()
            assert sound.shape[1] / 16_000 == pytest.approx(clip["duration"], abs=0.2)
            assert np.abs(sound).max() > 0.02


def test_the_special_clips_exist(world: dict) -> None:
    assert [clip["split"] for clip in world["clips"] if clip["num_frames"] == 1] == ["train"]
    for split in ("train", "val", "test"):
        clips = [clip for clip in world["clips"] if clip["split"] == split]
        assert any(clip["audio"] is None for clip in clips)
        assert any(clip["audio"] and clip["informative"] == ["visual"] for clip in clips)
        assert any(clip["informative"] == ["audio"] for clip in clips)


def test_cues_can_be_heard_and_seen(folder: Path, world: dict) -> None:
    levels: dict[str, list[float]] = {"loud": [], "moderate": [], "quiet": []}
    changes: dict[str, list[float]] = {}
    for clip in world["clips"]:
        with av.open(folder / clip["file"]) as container:
            frames = [frame.to_ndarray(format="gray").astype(float) for frame in container.decode(video=0)]
        changes.setdefault(clip["visual"]["motion"], []).append(np.abs(np.diff(frames, axis=0)).sum() / len(frames))
        if clip["audio"]:
            with av.open(folder / clip["file"]) as container:
                sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            levels[clip["audio"]["loudness"]].append(20 * np.log10(np.sqrt(np.mean(sound**2))))
    assert np.mean(levels["loud"]) - 6 > np.mean(levels["moderate"]) > np.mean(levels["quiet"]) + 6  # dB
    assert np.mean(changes["trembling"]) > 2 * np.mean(changes["still"])


def test_splits_share_no_actor_and_are_balanced(world: dict) -> None:
    cast = {s: {clip["actor"] for clip in world["clips"] if clip["split"] == s} for s in ("train", "val", "test")}
    assert len(cast["train"] | cast["val"] | cast["test"]) == sum(len(actors) for actors in cast.values())
    for split, each in (("train", 4), ("val", 1), ("test", 2)):
        counts = Counter(clip["emotion"] for clip in world["clips"] if clip["split"] == split)
        assert counts == dict.fromkeys(LABEL_SETS["toy"], each)


def test_records_point_at_clips_and_carry_the_right_answer(folder: Path, world: dict) -> None:
    truth = {clip["id"]: clip["emotion"] for clip in world["clips"]}
    sizes = {"sft_train": 28, "sft_val": 7, "grpo_train": 28, "val": 7, "test": 14}
    for name, size in sizes.items():
        records = list(read_records(folder / f"{name}.jsonl"))
        assert len(records) == size
        for record in records:
            assert (folder / record.video).is_file()
            assert strip_media_tags(record.question) == EMOTION_QUESTION
            assert record.label == truth[record.id]
            if name.startswith("sft"):
                assert record.target.startswith("<think>")
                assert record.target.endswith(f"</think>\n<answer>{record.label}</answer>")
            else:
                assert record.target == record.label
    explained, labelled = (list(read_records(folder / f"{name}_train.jsonl")) for name in ("sft", "grpo"))
    assert [record.video for record in explained] == [record.video for record in labelled]


def test_explanations_have_the_flaws_that_were_asked_for(folder: Path, world: dict) -> None:
    flaws = {clip["id"]: clip["flaws"] for clip in world["clips"] if clip["split"] == "train"}
    shares = Counter(flaw for of_clip in flaws.values() for flaw in of_clip)
    assert shares == {"irrelevant": 16, "no_conclusion": 16, "contradiction": 8}  # of 28, at a rate of 0.57
    for record in read_records(folder / "sft_train.jsonl"):
        text = record.target
        assert ("no_conclusion" in flaws[record.id]) == ("Overall" not in text)
        assert ("irrelevant" in flaws[record.id]) == ("In the picture" in text)
        assert 3 <= text.count(".") <= 5


async def test_the_flaws_cost_coherence(folder: Path, world: dict, tmp_path: Path) -> None:
    async def coherence(of: Path, ids: set[str]) -> float:
        records = [record for record in read_records(of / "sft_train.jsonl") if record.id in ids]
        items = [
            ScoreItem(id=record.id, explanation=parse_completion(record.target).think, predicted_emotion=record.label)
            for record in records
        ]
        response = await Scorer(LexiconJudge(), load_rubric()).score(ScoreRequest(items=items))
        return float(np.mean([result.normalised for result in response.results]))

    flawed = {clip["id"] for clip in world["clips"] if clip["split"] == "train" and clip["flaws"]}
    clean_world = make_world(tmp_path, "--train", "14", "--val", "7", "--test", "7", "--flaw_rate", "0")
    clean = {clip["id"] for clip in clean_world["clips"]}
    assert await coherence(tmp_path, clean) > 0.8
    assert await coherence(tmp_path, clean) > await coherence(folder, flawed) + 0.2


def test_a_seed_decides_every_byte(folder: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "again", *SMALL)
    assert contents(tmp_path / "again") == contents(folder)
    make_world(tmp_path / "other", "--train", "14", "--val", "7", "--test", "7", "--seed", "5")
    assert (tmp_path / "other/clips/train_0000.mp4").read_bytes() != (folder / "clips/train_0000.mp4").read_bytes()


def test_a_second_run_renders_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "clips").iterdir()}
    start = time.monotonic()
    make_world(folder, *SMALL)
    assert time.monotonic() - start < 5.0
    assert {path: path.stat().st_mtime_ns for path in (folder / "clips").iterdir()} == before


def test_a_killed_run_is_continued(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--output", tmp_path, *SMALL],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and len(list((tmp_path / "clips").glob("*.mp4"))) < 3:
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert psutil.wait_procs(workers, timeout=10)[1] == [], "workers outlive the killed script"
    make_world(tmp_path, *SMALL)
    assert contents(tmp_path) == contents(folder)


def test_other_flags_replace_the_clips_of_the_old_world(folder: Path, tmp_path: Path) -> None:
    make_world(tmp_path, "--train", "35", "--val", "7", "--test", "7", "--seed", "5")
    (tmp_path / "clips/mine.txt").write_text("not the script's")
    make_world(tmp_path, *SMALL)
    assert contents(tmp_path) == contents(folder) | {"clips/mine.txt": b"not the script's"}


@pytest.mark.parametrize(("flag", "value"), [("--val", "3"), ("--flaw_rate", "1.5"), ("--seed", "-1")])
def test_a_wrong_flag_is_explained(tmp_path: Path, flag: str, value: str) -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--output", tmp_path, flag, value], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{flag} {value}" in done.stderr
