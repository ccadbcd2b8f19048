"""Real server processes for the tests that speak HTTP."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[1]

# Starts a server with these extra arguments and returns its URL.
StartServer = Callable[..., str]


@contextmanager
def server_process(*arguments: str, options: Sequence[str] = ()) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`python -m fgce serve` on a free port: its URL, once it is ready, and the process, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fgce", *options, "serve", "--port", "0", *arguments],
        cwd=REPO,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        log = []
        for line in process.stderr:
            log.append(line)
            if match := re.search(r"FG-CE ready at (http://[\w.:\[\]]+)", line):
                yield match.group(1), process
                return
        raise AssertionError("the server did not start:\n" + "".join(log))
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()
