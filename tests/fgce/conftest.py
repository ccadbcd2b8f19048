"""Fixtures of the evaluator's tests."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from server_process import StartServer, server_process


@pytest.fixture(scope="session")
def start_server() -> Iterator[StartServer]:
    """Starts a server process with these extra arguments and returns its URL; all end with the session."""
    with ExitStack() as processes:
        yield lambda *arguments: processes.enter_context(server_process(*arguments))[0]


@pytest.fixture(scope="session")
def server_url(start_server: StartServer, repo: Path) -> str:
    """The shipped lexicon configuration, served."""
    return start_server("--config", str(repo / "configs/fgce/lexicon.yaml"))
