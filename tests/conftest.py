"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

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
        golden / "checkpoint",
        output,
        vision_tower=golden / "siglip",
        audio_tower=golden / "whisper",
        bert=golden / "bert",
    )
    return output
