"""Stand-ins for the commands that a launcher starts: Slurm's, torchrun and a virtual environment's python."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

# Starts the command once a node, as srun does.
FAKE_SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for task in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_PROCID=$task "$@" & done
trap 'kill $(jobs -p); wait' TERM
wait
"""

# Writes down how it was called, then does what is left of its job in a test.
RECORDER = """#!{python}
import json, os, sys
from pathlib import Path
name = Path(sys.argv[0]).name
call = {{"command": name, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
with open("{record}", "a") as record:
    record.write(json.dumps(call) + "\\n")
{action}
"""


@dataclass(frozen=True)
class Call:
    """One call of a recorded command."""

    command: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


class Commands:
    """A virtual environment, and a folder on PATH, of stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "venv"
        self.bin = self.environment / "bin"
        self.bin.mkdir(parents=True)
        self.record = folder / "calls.jsonl"
        (self.bin / "activate").write_text(f'PATH="{self.bin}:$PATH"\n')

    def add(self, name: str, script: str) -> None:
        """A command of this name that runs the script."""
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def add_recorded(self, name: str, action: str = "") -> None:
        """A command that writes its call down and runs a line of Python."""
        self.add(name, RECORDER.format(python=sys.executable, record=self.record, action=action))

    def variables(self, **more: str) -> dict[str, str]:
        """An environment in which a launcher meets the stand-ins, and nothing of the machine's own Slurm or judge."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "FGCE_", "GPUS_"))}
        return own | {"VENV": str(self.environment), "PATH": f"{self.bin}:{own['PATH']}"} | more

    def calls(self, name: str) -> list[Call]:
        """The recorded calls of a command."""
        if not self.record.exists():
            return []
        calls = [Call(**json.loads(line)) for line in self.record.read_text().splitlines()]
        return [call for call in calls if call.command == name]
