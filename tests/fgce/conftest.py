"""A real server process for the tests that speak HTTP."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

StartServer = Callable[..., str]


@pytest.fixture(scope="session")
def start_server(repo: Path) -> Iterator[StartServer]:
    """Starts `python -m fgce serve` on a free port with these extra arguments and returns its URL."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> str:
        process = subprocess.Popen(
            [sys.executable, "-m", "fgce", "serve", "--port", "0", *arguments],
            cwd=repo,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if match := re.search(r"FG-CE ready at (http://\S+)", line):
                return match.group(1)
        raise AssertionError("the server did not start:\n" + "".join(log))

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=20)
        if process.stderr:
            process.stderr.close()


@pytest.fixture(scope="session")
def server_url(start_server: StartServer, repo: Path) -> str:
    """The shipped lexicon configuration, served."""
    return start_server("--config", str(repo / "configs/fgce/lexicon.yaml"))
