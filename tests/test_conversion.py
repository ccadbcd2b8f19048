"""Published checkpoints, to the native format and back: what is in a file, what is refused, what is said."""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from humanomni import published_towers
from humanomni.conversion import ConversionReport, check_complete, convert, native_config, to_legacy, verify
from humanomni.modeling import HumanOmniForConditionalGeneration
from humanomni.weight_files import ConversionError, save_shards

DATA = Path(__file__).parent / "data/golden"
CHECKPOINT = DATA / "checkpoints/humanomni-tiny-small-A"
TOWERS = {
    "vision_tower": DATA / "components-A/siglip-tiny-small",
    "audio_tower": DATA / "components-A/whisper-tiny",
    "bert": DATA / "components-A/bert-tiny",
}
NORM = "model.bert_model.embeddings.LayerNorm"
VISION_BIAS = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.bias"


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """A copy of the golden legacy checkpoint, for a test to change."""
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "legacy"))


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {key: tensor for file in folder.glob("model*.safetensors") for key, tensor in load_file(file).items()}


def change(legacy: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(legacy / "model.safetensors")
    edit(tensors)
    save_file(tensors, legacy / "model.safetensors")


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


def test_there_and_back(golden_checkpoint: Path, tmp_path: Path) -> None:
    to_legacy(golden_checkpoint, tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors_of(CHECKPOINT))
    for file in (CHECKPOINT).glob("*.json"):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_bfloat16_comes_back_as_it_was(legacy: Path, tmp_path: Path) -> None:
    change(legacy, lambda tensors: tensors.update({key: value.bfloat16() for key, value in tensors.items()}))
    report = convert(legacy, tmp_path / "native", **TOWERS)
    assert verify(tmp_path / "native", legacy, report) == len(report.converted)
    to_legacy(tmp_path / "native", tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors_of(legacy))


def test_what_was_trained_goes_back_with_its_base(golden_checkpoint: Path, tmp_path: Path) -> None:
    model = HumanOmniForConditionalGeneration.from_pretrained(golden_checkpoint)
    with torch.no_grad():
        model.model.gate[0].bias += 1
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ConversionError, match="--base"):
        to_legacy(tmp_path / "trained", tmp_path / "back")
    to_legacy(tmp_path / "trained", tmp_path / "back", base=golden_checkpoint)
    before, after = tensors_of(CHECKPOINT), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == ["model.bert_gate.0.bias"]


def test_bin_shards_with_old_norm_names(legacy: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(legacy / "model.safetensors")
    for new, old in (("weight", "gamma"), ("bias", "beta")):
        tensors[f"{NORM}.{old}"] = tensors.pop(f"{NORM}.{new}")
    (legacy / "model.safetensors").unlink()
    keys = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2])):
        name = f"pytorch_model-{number}.bin"
        torch.save({key: tensors[key] for key in part}, legacy / name, _use_new_zipfile_serialization=number == 0)
        weight_map |= dict.fromkeys(part, name)
    (legacy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    convert(legacy, tmp_path / "native", **TOWERS)
    assert same(tensors_of(tmp_path / "native"), tensors_of(golden_checkpoint))
    to_legacy(tmp_path / "native", tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors)

    (legacy / "pytorch_model-1.bin").unlink()
    with pytest.raises(ConversionError, match=r"pytorch_model-1\.bin"):
        convert(legacy, tmp_path / "other", **TOWERS)


def test_shards_are_written_with_an_index(legacy: Path, golden_checkpoint: Path, tmp_path: Path) -> None:
    tensors = load_file(legacy / "model.safetensors")
    (legacy / "model.safetensors").unlink()
    save_shards(iter(tensors.items()), legacy, shard_bytes=500_000)
    assert len(list(legacy.glob("model-*-of-*.safetensors"))) > 2
    convert(legacy, tmp_path / "native", **TOWERS)
    assert same(tensors_of(tmp_path / "native"), tensors_of(golden_checkpoint))


def test_a_checkpoint_without_towers_takes_them_from_folders(
    legacy: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    towers = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in TOWERS.items()}
    prefixes = {"vision_tower": "model.vision_tower.vision_tower.", "audio_tower": "model.audio_tower.audio_tower."}

    def move_out(tensors: dict[str, Tensor]) -> None:
        for name, prefix in prefixes.items():
            theirs = "model." if name == "audio_tower" else ""
            moved = {key: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            renamed = {theirs + key.removeprefix(prefix): tensor for key, tensor in moved.items()}
            # The half that HumanOmni has no use for.
            save_file({**renamed, "text_model.x": torch.ones(1)}, towers[name] / "model.safetensors")

    change(legacy, move_out)
    with pytest.raises(ConversionError, match="--vision_tower"):
        convert(legacy, tmp_path / "without", bert=TOWERS["bert"])
    report = convert(legacy, tmp_path / "native", **towers)
    verify(tmp_path / "native", legacy, report)
    assert same(tensors_of(tmp_path / "native"), tensors_of(golden_checkpoint))
    to_legacy(tmp_path / "native", tmp_path / "back")
    assert same(tensors_of(tmp_path / "back"), tensors_of(legacy))


def test_a_towers_folder_wins_where_it_differs(legacy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tower = Path(shutil.copytree(TOWERS["vision_tower"], tmp_path / "siglip"))
    bias = load_file(legacy / "model.safetensors")[VISION_BIAS]
    save_file({"vision_model.embeddings.patch_embedding.bias": bias + 1}, tower / "model.safetensors")
    with caplog.at_level(logging.WARNING, logger="humanomni"):
        convert(legacy, tmp_path / "native", **{**TOWERS, "vision_tower": tower})
    assert "1 tensors of" in caplog.text
    assert "the folder's are used" in caplog.text
    native = tensors_of(tmp_path / "native")
    assert torch.equal(native["model.vision_tower.embeddings.patch_embedding.bias"], bias + 1)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.update({"model.surprise": torch.ones(1)}), "model.surprise"),
        (lambda tensors: tensors.pop("model.norm.weight"), "norm.weight is missing"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), r"\(3,\)"),
        (lambda tensors: tensors.update({"lm_head.weight": torch.ones(640, 64)}), "ties the embeddings"),
        (lambda tensors: tensors.update({f"{NORM}.gamma": torch.ones(32)}), "under two names"),
    ],
    ids=["unknown", "missing", "misshapen", "untied", "twice"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    edit: Callable[[dict[str, Tensor]], None], message: str, legacy: Path, tmp_path: Path
) -> None:
    change(legacy, edit)
    with pytest.raises(ConversionError, match=message):
        convert(legacy, tmp_path / "native", **TOWERS)
    assert not (tmp_path / "native").exists()


def test_a_bin_file_cannot_run_code(legacy: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "ran"),)

    (legacy / "model.safetensors").unlink()
    (legacy / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin"):
        convert(legacy, tmp_path / "native", **TOWERS)
    assert not (tmp_path / "ran").exists()


def test_the_command_says_what_it_needs(legacy: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts/convert_checkpoint.py"
    command = [sys.executable, script, "--legacy", legacy, "--output", tmp_path / "native"]
    flags = ["--vision_tower", TOWERS["vision_tower"], "--audio_tower", TOWERS["audio_tower"]]
    failed = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "--bert" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_no_checkpoint_is_overwritten_or_mixed_with_another(
    legacy: Path, golden_checkpoint: Path, tmp_path: Path
) -> None:
    native = Path(shutil.copytree(golden_checkpoint, tmp_path / "native"))
    stale = tmp_path / "stale"
    stale.mkdir()
    (stale / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(legacy)
    for write, source, output, message in (
        (convert, legacy, legacy, "is an input itself"),
        (convert, legacy, tmp_path / "link", "is an input itself"),
        (convert, legacy, native, "holds model.safetensors already"),
        (to_legacy, native, native, "is an input itself"),
        (to_legacy, native, native / "legacy", "is an input itself"),
        (to_legacy, native, stale, "holds model.safetensors.index.json already"),
    ):
        with pytest.raises(ConversionError, match=message):
            write(source, output)
    assert there == {path: path.read_bytes() for path in there}


@pytest.mark.parametrize(
    ("source", "flags"),
    [("--to_legacy", ["--verify"]), ("--to_legacy", ["--bert", "bert"]), ("--legacy", ["--base", "base"])],
)
def test_flags_of_the_other_direction_are_refused(source: str, flags: list[str], tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "scripts/convert_checkpoint.py"
    command = [sys.executable, script, source, tmp_path, "--output", tmp_path / "out", *flags]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert f"{flags[0]} means nothing with {source}" in refused.stderr


@pytest.mark.parametrize("size", ["0.5B", "7B"])
def test_every_key_of_the_published_sizes(size: str, shared_dir: Path) -> None:
    manifest = json.loads((shared_dir / f"golden/manifest/HumanOmni-{size}.json").read_text())
    shapes = {key: torch.Size(entry["shape"]) for key, entry in manifest["keys"].items()}
    config = native_config(
        {
            **manifest["meta"]["llm"],
            "mm_projector_type": manifest["meta"]["mm_projector_type"],
            "mm_vision_tower": "a/path/with/clip/in/it",
        },
        published_towers.vision_config(None, shapes),
        published_towers.audio_config(None, shapes),
        published_towers.bert_config(None, shapes),
    )
    with torch.device("meta"):
        model = HumanOmniForConditionalGeneration(config)
    report = ConversionReport.of(shapes, config.vision_config.num_hidden_layers, size)
    native = {name: shapes[key] for key, name in report.converted.items()}
    if config.tie_word_embeddings:
        native["lm_head.weight"] = native["model.language_model.embed_tokens.weight"]
    check_complete(native, model, size)

    converted = sum(prod(shapes[key]) for key in report.converted)
    dropped = sum(prod(shapes[key]) for key in report.dropped)
    assert converted == model.num_parameters()
    assert converted + dropped == {"0.5B": 1_373_177_925, "7B": 9_581_587_845}[size]
    assert config.num_video_tokens == {"0.5B": 392, "7B": 1568}[size]
