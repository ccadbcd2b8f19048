"""The manifest of a pipeline run: what went into each step, what came out, and whether it is to be done again.

    python scripts/manifest.py start RUN STEP --inputs FILE... --outputs FILE... [--metrics FILE] -- COMMAND...
    python scripts/manifest.py finish RUN STEP --seconds 12
    python scripts/manifest.py finished RUN STEP...         exits with 0 where all of them are
    python scripts/manifest.py forget RUN STEP...           to do steps again
    python scripts/manifest.py borrow RUN STEP... --source OTHER   to go on from finished steps of another run
    python scripts/manifest.py stage_info RUN STAGE... > stage_info.json

RUN/manifest.json has an entry a step: command, SHA-256 of inputs and outputs, metrics, seconds. `start` exits with 3
when the step is done: same command, same inputs, outputs as they were left. Where command or inputs differ it exits
with 1 and says which, because checkpoints of the old ones may lie in the step's folder. A folder's hash is that of the
model files in it, so that logs and checkpoints do not count. scripts/steps.sh calls this.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from humanomni.prediction_shards import MODEL_FILES
from humanomni.records import write_whole

DONE = 3  # exit status of `start` for a step that needs no work


class ManifestError(RuntimeError):
    """A step cannot start or finish; the message says what to do."""


class Manifest:
    """RUN/manifest.json.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self._path = run / "manifest.json"
        self._content: dict[str, Any] = _read(self._path) or {"run": run.name, "steps": {}}
        self._hashes_path = run / ".hashes.json"
        self._hashes: dict[str, list[Any]] = _read(self._hashes_path) or {}

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        return self._content["steps"]

    def start(self, step: str, command: list[str], inputs: list[str], outputs: list[str], metrics: str | None) -> bool:
        """Notes that a step begins; False when it is done.

        Raises:
            ManifestError: an input is missing, or command or inputs are not those that the step was begun with.
        """
        known = self.steps.get(step)
        wanted = {"command": command, "inputs": {path: self.sha256(path) for path in inputs}}
        if known:
            self._check_same(step, known, wanted)
            if known["status"] == "finished" and all(self._unchanged(*item) for item in known["outputs"].items()):
                self._save()
                return False
        empty = dict.fromkeys(outputs)
        self.steps[step] = {"status": "started", **wanted, "outputs": empty, "metrics_file": metrics}
        self._save()
        return True

    def finish(self, step: str, seconds: float) -> None:
        """Notes outputs and metrics of a step that came to its end.

        Raises:
            ManifestError: an output is missing.
        """
        entry = self.steps[step]
        entry["outputs"] = {path: self.sha256(path) for path in entry["outputs"]}
        metrics_file = entry.pop("metrics_file")
        entry |= {"status": "finished", "seconds": seconds}
        if metrics_file:
            entry["metrics"] = metrics_of(json.loads(Path(metrics_file).read_text(encoding="utf-8")))
        self._save()

    def sha256(self, path: str) -> str:
        """Hash of a file, or of the model files of a folder by name and content.

        Raises:
            ManifestError: there is nothing to hash.
        """
        location = Path(path)
        if location.is_file():
            return self._file_hash(location)
        files = sorted({file for pattern in MODEL_FILES for file in location.glob(pattern)})
        if not files:
            raise ManifestError(f"{path} is no file and no folder with a model")
        named = [[str(file.relative_to(location)), self._file_hash(file)] for file in files]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def _file_hash(self, path: Path) -> str:
        """Read again only where size or time have changed: weights are large."""
        status = path.stat()
        identity = [status.st_size, status.st_mtime_ns]
        known = self._hashes.get(str(path.absolute()))
        if known is None or known[:2] != identity:
            with path.open("rb") as stream:
                known = [*identity, hashlib.file_digest(stream, "sha256").hexdigest()]
            self._hashes[str(path.absolute())] = known
        return known[2]

    def _unchanged(self, path: str, digest: str) -> bool:
        return Path(path).exists() and self.sha256(path) == digest

    def _check_same(self, step: str, known: dict[str, Any], wanted: dict[str, Any]) -> None:
        changed = [path for path, digest in wanted["inputs"].items() if known["inputs"].get(path) != digest]
        if known["command"] != wanted["command"]:
            changed.append(f"the command (was {' '.join(known['command'])})")
        if changed:
            folders = ", ".join(known["outputs"])
            raise ManifestError(
                f"step {step} of {self.run} was begun with another state of {', '.join(changed)}. To do it again, "
                f"remove {folders} and run: python scripts/manifest.py forget {self.run} {step}; or give the run "
                "another name"
            )

    def forget(self, steps: Sequence[str]) -> None:
        """Drops entries, so that the steps are done again."""
        for step in steps:
            self.steps.pop(step, None)
        self._save()

    def borrow(self, other: "Manifest", steps: Sequence[str]) -> None:
        """Takes finished steps of another run as this one's: links to what they left, and their entries.

        A command with the same arguments then goes on behind them. What this run has of these steps stays as it is.

        Raises:
            ManifestError: the other run has not finished a step, or this one has a folder where a link would be.
        """
        new = [step for step in steps if step not in self.steps]
        if unfinished := [step for step in new if other.steps.get(step, {}).get("status") != "finished"]:
            raise ManifestError(f"{other.run} has not finished {', '.join(unfinished)}; run it to its end first")
        entries = {step: other.steps[step] for step in new}
        folders = {Path(path).relative_to(other.run).parts[0] for one in entries.values() for path in one["outputs"]}
        self.run.mkdir(parents=True, exist_ok=True)
        for folder in sorted(folders):
            link = self.run / folder
            if not link.is_symlink():
                if link.exists():
                    raise ManifestError(f"{link} is in the way of a link to {other.run / folder}; remove it")
                link.symlink_to(os.path.relpath(other.run / folder, self.run))
        for step, entry in entries.items():
            self.steps[step] = _moved(entry, {str(other.run / folder): str(self.run / folder) for folder in folders})
        self._save()

    def _save(self) -> None:
        self.run.mkdir(parents=True, exist_ok=True)
        write_whole(self._hashes_path, [json.dumps(self._hashes)])
        write_whole(self._path, [json.dumps(self._content, indent=1), "\n"])


def _moved(entry: dict[str, Any], folders: dict[str, str]) -> dict[str, Any]:
    """The entry of a step as if it had been done in other folders."""

    def path(text: str) -> str:
        old = next((old for old in folders if text == old or text.startswith(f"{old}/")), None)
        return text if old is None else folders[old] + text.removeprefix(old)

    files = {key: {path(name): digest for name, digest in entry[key].items()} for key in ("inputs", "outputs")}
    return {**entry, **files, "command": [path(word) for word in entry["command"]]}


def metrics_of(content: dict[str, Any]) -> dict[str, Any]:
    """The figures of a step's report: the trainer's last logged ones, each stage's headline, or plain numbers."""
    if "log_history" in content:
        content = content["log_history"][-1] if content["log_history"] else {}
    if "stages" in content:
        return {stage["name"]: _numbers(stage) for stage in content["stages"]}
    return _numbers(content)


def _numbers(content: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in content.items() if isinstance(value, int | float)}


def stage_info(run: Path, stages: Sequence[str]) -> dict[str, Any]:
    """What the report shows of training stages beside their predictions: seconds, steps and the trainer's log."""
    steps = Manifest(run).steps
    states = {stage: json.loads((run / stage / "trainer_state.json").read_text(encoding="utf-8")) for stage in stages}
    return {
        stage: {
            "seconds": steps[stage]["seconds"],
            "steps": state["global_step"],
            "log_history": state["log_history"],
        }
        for stage, state in states.items()
    }


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    try:
        sys.exit(_run(arguments))
    except ManifestError as error:
        sys.exit(f"manifest: {error}")


def _run(arguments: argparse.Namespace) -> int:
    manifest = Manifest(arguments.run)
    match arguments.action:
        case "start":
            step, files = arguments.step, (arguments.inputs, arguments.outputs, arguments.metrics)
            return 0 if manifest.start(step, arguments.command, *files) else DONE
        case "finish":
            manifest.finish(arguments.step, arguments.seconds)
        case "forget":
            manifest.forget(arguments.steps)
        case "borrow":
            manifest.borrow(Manifest(arguments.source), arguments.steps)
        case "finished":
            entries = (manifest.steps.get(step, {}) for step in arguments.steps)
            return 0 if all(entry.get("status") == "finished" for entry in entries) else 1
        case "stage_info":
            json.dump(stage_info(arguments.run, arguments.steps), sys.stdout)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)

    def action(name: str, steps: str, nargs: str | None, text: str) -> argparse.ArgumentParser:
        command = actions.add_parser(name, help=text)
        command.add_argument("run", type=Path)
        command.add_argument(steps, nargs=nargs)
        return command

    start = action("start", "step", None, "begin a step, or exit with 3 where it is done")
    start.add_argument("--inputs", nargs="+", required=True, help="files, or folders with a model")
    start.add_argument("--outputs", nargs="+", required=True)
    start.add_argument("--metrics", help="JSON that the step leaves, whose figures go into the manifest")
    start.add_argument("command", nargs="+")
    action("finish", "step", None, "note a step's outputs").add_argument("--seconds", type=float, required=True)
    action("finished", "steps", "+", "exit with 0 where all of these are finished")
    action("forget", "steps", "+", "drop steps, so that they are done again")
    action("stage_info", "steps", "+", "print what the report shows of training stages")
    borrow = action("borrow", "steps", "+", "take finished steps of another run as this one's")
    borrow.add_argument("--source", type=Path, required=True, help="the other run's folder")
    return parser


if __name__ == "__main__":
    main()
