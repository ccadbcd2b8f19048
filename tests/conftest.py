"""Fixtures shared by all tests."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import training_runs

    from humanomni.decode_ahead import Item

REPO = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPO


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the specification's golden data and clips, which lies beside a developer's checkout only."""
    folder = REPO.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("needs the golden data in ../shared, which this checkout does not have")
    return folder


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny golden checkpoint in the native format, converted once a session."""
    from humanomni.conversion import convert

    golden, output = REPO / "tests/data/golden", tmp_path_factory.mktemp("golden") / "native"
    convert(
        golden / "checkpoints/humanomni-tiny-small-A",
        output,
        vision_tower=golden / "components-A/siglip-tiny-small",
        audio_tower=golden / "components-A/whisper-tiny",
        bert=golden / "components-A/bert-tiny",
    )
    return output


@pytest.fixture(scope="session")
def toy_world_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy world of 28 + 7 + 14 clips; tests read it and write elsewhere."""
    output = tmp_path_factory.mktemp("world") / "toy"
    run_script("make_toy_data.py", "--output", output, "--train", 28, "--val", 7, "--test", 14)
    return output


@pytest.fixture(scope="session")
def tiny_model_dir(toy_world_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny HumanOmni whose words are those of the toy world; tests read it and write elsewhere."""
    output = tmp_path_factory.mktemp("model") / "tiny"
    run_script("make_tiny_model.py", "--corpus", toy_world_dir / "sft_train.jsonl", "--output", output)
    return output


@pytest.fixture(scope="session")
def toy_items(toy_world_dir: Path) -> "list[Item]":
    """The toy world's records to be tested on, with their clips and, from 1, their line numbers."""
    from humanomni.decode_ahead import Item
    from humanomni.records import Record, read_records, resolve_video

    source = toy_world_dir / "test.jsonl"
    records = [record for record in read_records(source) if isinstance(record, Record)]
    return [Item(line, record, resolve_video(record.video, source)) for line, record in enumerate(records, start=1)]


@pytest.fixture(scope="session")
def training_data(toy_world_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``sft.jsonl`` and ``grpo.jsonl``; tests read it, and write decoded clips."""
    from training_runs import write_data

    folder = tmp_path_factory.mktemp("data")
    write_data(toy_world_dir, folder)
    return folder


@pytest.fixture
def runs(
    tiny_model_dir: Path, training_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[training_runs.Runs]":
    """Runs stages of the tiny model in a folder of the test's own."""
    import torch
    from training_runs import Runs

    monkeypatch.chdir(REPO)  # where the paths in the configurations start
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the other processes: another number rounds differently
    yield Runs(tiny_model_dir, training_data, tmp_path)
    torch.set_num_threads(threads)


def run_script(name: str, *flags: object) -> None:
    """Runs one of the repository's scripts; its output is shown when it fails."""
    subprocess.run([sys.executable, REPO / "scripts" / name, *map(str, flags)], check=True, timeout=120)
