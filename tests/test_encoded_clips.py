"""SFT on clips that the frozen towers have encoded before: what is learnt, what runs, and what can go wrong."""

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_runs import SFT, SHARDING, Runs, assert_same, flags_of, needs_deepspeed, validation_losses

from humanomni.media import MediaError
from humanomni.processing import HumanOmniProcessor
from humanomni.records import Record
from humanomni.training import encoded_clips
from humanomni.training.clips import ClipLoader
from humanomni.training.encoded_clips import EncodedClips, Towers
from humanomni.training.run import ConfigurationError, parse_arguments
from humanomni.training.sft import SFTArguments, run_sft
from humanomni.training.tensor_cache import TensorCache

CPU = torch.device("cpu")


def encoded(model: Path, folder: Path, modality: str = "video_audio") -> EncodedClips:
    clips = ClipLoader(HumanOmniProcessor.from_pretrained(model), modality)
    return EncodedClips(clips, Towers(model, torch.float32), folder)


def wanted(world: Path, count: int) -> list[tuple[Record, str]]:
    clips = sorted((world / "clips").iterdir())[:count]
    return [(Record(clip.stem, str(clip), "how?", None), "video_audio") for clip in clips]


def test_sft_learns_of_encoded_clips_what_it_learns_of_decoded_ones(runs: Runs) -> None:
    """Of mixed modalities and a broken clip, its validation loss too."""
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1}
    settings |= {"validation_data": runs.data / "sft.jsonl", "eval_strategy": "epoch"}
    decoded = runs.here("sft", "decoded", **settings)
    assert_same(runs.here("sft", "encoded", **settings, tower_cache=runs.folder / "cache"), decoded, runs.model, 1e-3)
    assert len(list((runs.folder / "cache").iterdir())) == 6  # of eight records one has no clip and one a broken one
    losses = [validation_losses(runs.folder / name) for name in ("decoded", "encoded")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    skipped = [(runs.folder / name / "skipped.rank0.jsonl").read_text() for name in ("decoded", "encoded")]
    assert skipped[1] == skipped[0]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", pytest.param("zero3", marks=needs_deepspeed), "fsdp2"])
def test_processes_share_the_encoding(sharding: str, runs: Runs) -> None:
    """Slow: two processes load torch. Those whose towers are spread encode with whole ones."""
    settings = {"max_steps": 2, "records_per_step": 4, "adam_epsilon": 1e-2}
    one = runs.here("sft", "one", **settings)
    settings |= {"per_device_train_batch_size": 2, "tower_cache": runs.folder / "cache"} | SHARDING[sharding]
    done = runs.elsewhere("sft", "two", {}, processes=2, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(runs.weights("two"), one, runs.model, 2e-3)
    assert len(list((runs.folder / "cache").iterdir())) == 6


def test_a_dry_run_says_what_the_cache_will_take(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    cache = runs.folder / "cache"
    flags = flags_of("sft", runs.folder / "dry", runs.model, runs.data, SFT | {"tower_cache": cache, "dry_run": True})
    run_sft(parse_arguments(SFTArguments, flags))
    assert f"tower_cache: 7 clips to encode, up to 0.0 GB in {cache} (" in capsys.readouterr().err
    assert list(cache.iterdir()) == []


def test_a_stage_that_follows_runs_neither_towers_nor_decoders(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is another folder, with the same frozen towers."""
    settings = {"tower_cache": runs.folder / "cache", "max_steps": 2}
    runs.here("sft", "first", **settings)

    def fails(*_: Any, **__: Any) -> None:
        raise AssertionError("a tower or a decoder ran")

    for name in ("vision_tower", "audio_tower", "decode_ahead"):
        monkeypatch.setattr(encoded_clips, name, fails)
    monkeypatch.setattr(ClipLoader, "_decode", fails)
    whole = [line for line in (runs.data / "sft.jsonl").read_text().splitlines() if json.loads(line)["id"] != "broken"]
    data = runs.folder / "whole.jsonl"
    data.write_text("\n".join(whole))
    runs.here("sft", "second", **settings, model_path=runs.folder / "first", train_data=data)


def test_other_towers_or_a_changed_clip_meet_no_old_entry(
    tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path
) -> None:
    records = wanted(toy_world_dir, 2)
    encoded(tiny_model_dir, tmp_path / "cache").encode(records, CPU)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    weights = load_file(other / "model.safetensors")
    weights["model.audio_tower.layer_norm.bias"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    encoded(other, tmp_path / "cache").encode(records, CPU)
    assert len(list((tmp_path / "cache").iterdir())) == 4
    changed = tmp_path / "changed.mp4"
    shutil.copy(records[0][0].video, changed)
    record = Record("changed", str(changed), "how?", None)
    encoded(tiny_model_dir, tmp_path / "cache").encode([(record, "video_audio")], CPU)
    shutil.copy(records[1][0].video, changed)
    with pytest.raises(MediaError, match="changed.mp4: could not be read when the clips were encoded"):
        encoded(tiny_model_dir, tmp_path / "cache").load(changed)


def test_a_damaged_entry_is_made_again(tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path) -> None:
    records = wanted(toy_world_dir, 1)
    clips = encoded(tiny_model_dir, tmp_path)
    clips.encode(records, CPU)
    before = clips.load(Path(records[0][0].video))
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.unlink()  # what was loaded is mapped from the file
    entry.write_bytes(whole[:100])
    clips.encode(records, CPU)
    after = clips.load(Path(records[0][0].video))
    assert torch.equal(before.vision, after.vision)
    assert torch.equal(before.audio, after.audio)


def test_a_disk_that_does_not_hold_them_stops_the_run_before_it_trains(
    tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # the file system's "no"
    try:
        with pytest.raises(ConfigurationError, match="tower_cache: .* cannot hold .* leave tower_cache out"):
            encoded(tiny_model_dir, tmp_path).encode(wanted(toy_world_dir, 1), CPU)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_nodes_do_not_share_is_named(
    tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TensorCache, "write", lambda *_: None)  # as another node's entries are: not here
    with pytest.raises(ConfigurationError, match=f"{tmp_path} lacks 2 clips on process 0.* that all nodes share"):
        encoded(tiny_model_dir, tmp_path).encode(wanted(toy_world_dir, 2), CPU)


def test_towers_that_are_trained_have_no_cache(tmp_path: Path) -> None:
    parts = ["vision_tower", "projector"]
    with pytest.raises(ConfigurationError, match="trainable_parts trains vision_tower"):
        SFTArguments(output_dir=str(tmp_path), tower_cache=str(tmp_path), trainable_parts=parts, use_cpu=True)
