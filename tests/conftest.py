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
