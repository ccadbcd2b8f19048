"""Predictions on disk: shards that survive any kill, one file in input order at the end. Needs neither torch nor a GPU.

A job is one input file under one model and one set of settings. For the output ``test.jsonl`` the folder holds

    test.jsonl, test.errors.jsonl   the result: predictions, and records that failed, each in input order
    test.job.json                   what the result or the shards belong to, how often failures were retried, and
                                    whether the job is finished
    test.shards/rank*.jsonl         one line with a checksum a record done so far; gone once merged
    test.shards/carried.jsonl       in a retry: the predictions that were there before it, in the same form

Each rank appends to a shard of its own and takes every n-th record, so ranks never talk to one another; whoever
finishes last merges. Every line is on the disk before its record counts as done.

Records that failed are predicted again by a retry. Retries are numbered and the command names the number, because ranks
that do not talk could not tell a retry that has come and gone without them from one that they are to begin: with the
number, the rank that comes first begins it, the others join, and a late one or the same command again after a kill goes
on with it or finds it finished. The result of before stays in its place until the merge.
"""

import fcntl
import hashlib
import itertools
import json
import logging
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

from humanomni.loading import LoadOptions
from humanomni.records import BadLine, JsonlWriter, Line, Record, read_jsonl, read_records, write_whole

logger = logging.getLogger(__name__)

# What decides a model's answers; a trainer leaves more in the folder, which must not make a job start afresh.
MODEL_FILES = (
    "*config.json",
    "*.safetensors",
    "*.index.json",
    "*.jinja",
    "tokenizer*",
    "*_tokenizer/*",
    "vocab*",
    "merges*",
)


class JobError(RuntimeError):
    """A job that cannot start; the message says why and what to do."""


def read_inputs(path: Path) -> dict[int, Record | BadLine]:
    """The input's records, and the lines that are none, by line number and in the file's order.

    A record that holds half a surrogate pair ("\\ud83d" alone) is a bad line: no UTF-8 file can repeat it.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: the file begins like a JSON array but is none.
    """
    numbers = (entry.number for entry in read_jsonl(path, "skip"))
    entries = zip(numbers, read_records(path, "skip"), strict=True)
    return {number: entry if _is_text(entry) else _not_text(path, number) for number, entry in entries}


def _is_text(entry: Record | BadLine) -> bool:
    try:
        json.dumps(vars(entry), ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_text(path: Path, number: int) -> BadLine:
    return BadLine(path, number, "holds half a surrogate pair (\\ud800 to \\udfff), which is no text", "")


def file_fingerprint(path: Path) -> str:
    """Tells inputs apart by their bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def model_fingerprint(folder: Path) -> str:
    """Tells models apart by the names, sizes and times of their files: weights are too large to be read for it."""
    files = sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)})
    status = [(str(file.relative_to(folder)), file.stat()) for file in files]
    identity = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in status]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def model_identity(loading: LoadOptions) -> dict[str, str | None]:
    """Of a job's settings those that say which model answers, and how it is loaded."""
    return {
        "model": model_fingerprint(loading.model),
        "adapter": model_fingerprint(loading.adapter) if loading.adapter else None,
        "dtype": loading.dtype,
        "attention": loading.attention,
        "quantize": loading.quantize,
    }


class PredictionJob:
    """The files of one job.

    Args:
        output: the JSONL to write.
        inputs: from :func:`read_inputs`.
        settings: all that decides the predictions; plain JSON values.
        paths: where settings that are fingerprints come from, for messages: a file that was moved is the same job.
        retry_failed: number of the retry that is asked for, the first is 1; 0 leaves failed records as they are.
    """

    def __init__(
        self,
        output: Path,
        inputs: Mapping[int, Record | BadLine],
        settings: Mapping[str, Any],
        paths: Mapping[str, Path | None] | None = None,
        retry_failed: int = 0,
    ) -> None:
        self.output, self.inputs, self.settings = output, inputs, dict(settings)
        self.paths = {key: str(path.absolute()) for key, path in (paths or {}).items() if path is not None}
        self.retry_failed = retry_failed
        self.errors = output.with_suffix(".errors.jsonl")  # the name that evaluation looks for
        self.shards = output.with_suffix(".shards")
        self._state_file = output.with_suffix(".job.json")

    @property
    def finished(self) -> bool:
        """The result is there and belongs to these settings; a retry of its failures may still be due."""
        return self._is_finished(self._state())

    def _is_finished(self, state: Mapping[str, Any]) -> bool:
        return bool(state.get("finished")) and state["settings"] == self.settings and self.output.is_file()

    @property
    def _retry_due(self) -> bool:
        """Nobody has begun the retry that is asked for, and there may be something to retry."""
        state = self._state()
        nothing_failed = self._is_finished(state) and not state["finished"]["errors"]
        return self.retry_failed > state.get("retries", 0) and not nothing_failed

    def open_shard(self, rank: int) -> "Shard | None":
        """The shard of a rank, which knows what any rank has done before; None when the job is finished.

        Shards and results of other settings make way: all files of that job get the first free suffix of ``.old``,
        ``.old2`` and so on, without which they are that job again.

        Raises:
            JobError: another process works on this job under the same rank or without the retry, or on this output with
                other settings; or the result, whose failures are to be retried, was changed.
            OSError: the folder cannot be written.
        """
        if self.finished and not self._retry_due and not self.shards.exists():
            return None
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self.finished:
                # Still there only if the merging rank was killed in its last act, for that rank had the lock.
                shutil.rmtree(self.shards, ignore_errors=True)
                if not self._retry_due:
                    return None
            if self._state().get("settings") != self.settings:
                self._make_way()
            self.shards.mkdir(exist_ok=True)
            if self._retry_due:
                self._begin_retry()
            self._write_state(finished=None)
            lock = _try_lock(self.shards / f"rank{rank}.lock")
            if lock is None:
                raise JobError(f"rank {rank} of this job is at work already (it holds {self.shards}); let it finish")
            return Shard(self.shards / f"rank{rank}.jsonl", lock, frozenset(self._outcomes()))

    def merge(self) -> int:
        """Writes the result when every record is done and no other rank has; the shards then go away.

        Returns:
            Records that are still to be done: by ranks at work, or by the same command after a kill.

        Raises:
            OSError: the disk is full; the shards stay.
        """
        with self._locked():
            if self.finished:
                return 0
            outcomes = self._outcomes()
            if missing := len(self.inputs.keys() - outcomes.keys()):
                return missing
            in_order = [outcomes[line] for line in self.inputs]
            failures = [outcome["failure"] for outcome in in_order if "failure" in outcome]
            if failures:
                _write_rows(self.errors, failures)
            else:
                self.errors.unlink(missing_ok=True)
            _write_rows(self.output, [outcome["prediction"] for outcome in in_order if "prediction" in outcome])
            kinds = dict(Counter(failure["error"] for failure in failures).most_common())
            self._write_state(finished={"predictions": len(self.inputs) - len(failures), "errors": kinds})
            shutil.rmtree(self.shards)
            return 0

    def summary(self) -> str:
        """Counts of a finished job, in words."""
        state = self._state()
        finished = state["finished"]
        text = f"{finished['predictions']} predictions in {self.output}"
        if kinds := finished["errors"]:
            listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
            text += f"; {sum(kinds.values())} records failed ({listed}), listed in {self.errors}"
            text += f"; --retry_failed {state.get('retries', 0) + 1} predicts them again"
        return text

    def _outcomes(self) -> dict[int, dict[str, Any]]:
        """What the shards hold, by line number."""
        outcomes: dict[int, dict[str, Any]] = {}
        for outcome in _read_shards(self.shards):
            outcomes.setdefault(outcome["line"], outcome)
        return outcomes

    def _begin_retry(self) -> None:
        """Leaves in the shards the predictions alone. A kill on the way leaves the result, or the same to be done."""
        self._require_idle("another run, which was not asked to retry,")
        predictions = self._carried()
        rows = ({"line": line, "prediction": prediction} for line, prediction in predictions.items())
        _write_rows(self.shards / "carried.jsonl", map(_checked, rows))
        for shard in self.shards.glob("rank*.jsonl"):
            shard.unlink()

    def _carried(self) -> dict[int, dict[str, Any]]:
        """The predictions so far, by line number: of a finished job its result's, of an unfinished one its shards'."""
        if not self.finished:
            outcomes = self._outcomes().items()
            return {line: outcome["prediction"] for line, outcome in outcomes if "prediction" in outcome}
        failed = {row["line"] for row in _rows(self.errors)} if self.errors.is_file() else set()
        good = {line: entry for line, entry in self.inputs.items() if line not in failed}
        rows = _rows(self.output)
        identities = [entry.id for entry in good.values() if isinstance(entry, Record)]
        if len(identities) != len(good) or [row.get("id") for row in rows] != identities:
            raise JobError(
                f"{self.output} and {self.errors.name} do not hold each record of the input once and in its order: "
                "they were changed since they were written, and no retry can build on them; choose another --output_dir"
            )
        return dict(zip(good, rows, strict=True))

    def _require_idle(self, who: str) -> None:
        if locked := [lock for lock in self.shards.glob("rank*.lock") if not _is_free(lock)]:
            raise JobError(
                f"{who} is writing {self.output} (it holds {locked[0]}); let it finish, or choose another --output_dir"
            )

    def _make_way(self) -> None:
        self._require_idle("another run with other settings")
        if not any(shard.stat().st_size for shard in self.shards.glob("*.jsonl")):
            shutil.rmtree(self.shards, ignore_errors=True)  # of a start that was killed before any record was done
        # The state last: a kill on the way leaves the rest to the next start.
        files = (self.output, self.errors, self.shards, self._state_file)
        there = [path for path in files if path.exists()]
        if not there:
            return
        suffixes = itertools.chain([".old"], (f".old{number}" for number in itertools.count(2)))
        suffix = next(suffix for suffix in suffixes if not any(Path(f"{path}{suffix}").exists() for path in files))
        logger.warning(
            "%s: starting afresh, nothing that is there belongs to this run (%s); it is kept as %s",
            self.output,
            self._differences(),
            ", ".join(f"{path.name}{suffix}" for path in there),
        )
        for path in there:
            path.rename(f"{path}{suffix}")

    def _differences(self) -> str:
        state = self._state()
        if not state:
            return f"there is no {self._state_file.name}"
        known, paths = state["settings"], state.get("paths", {})
        return "; ".join(
            f"{key} was {_shown(known.get(key), paths.get(key))} and is {_shown(value, self.paths.get(key))}"
            for key, value in self.settings.items()
            if known.get(key) != value
        )

    def _state(self) -> dict[str, Any]:
        try:
            return json.loads(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}

    def _write_state(self, finished: dict[str, Any] | None) -> None:
        retries = max(self._state().get("retries", 0), self.retry_failed)
        state = {"settings": self.settings, "paths": self.paths, "retries": retries, "finished": finished}
        _write_rows(self._state_file, [state])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One rank at a time; a killed rank's lock is free. The file stays: others may be waiting for it."""
        with self.output.with_name(f".{self.output.stem}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _shown(value: Any, path: str | None) -> str:
    return f"{path} ({value})" if path else repr(value)


def read_failures(output: Path) -> list[dict[str, Any]]:
    """Records of an output that failed: of a finished job its error file, of an unfinished one its shards so far.

    Raises:
        JobError: there is neither.
    """
    shards = output.with_suffix(".shards")
    if shards.is_dir():
        outcomes = sorted(_read_shards(shards), key=lambda outcome: outcome["line"])
        return [outcome["failure"] for outcome in outcomes if "failure" in outcome]
    errors = output.with_suffix(".errors.jsonl")
    if errors.is_file():
        return _rows(errors)
    if output.is_file():
        return []
    raise JobError(f"{output} is not there, nor shards of it: nothing was predicted yet")


def _read_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """Outcomes whose checksum holds. A torn or damaged line is none: its record is done again."""
    for shard in sorted(folder.glob("*.jsonl")):
        for entry in read_jsonl(shard, "skip"):
            if isinstance(entry, Line) and entry.value.pop("crc32", None) == _checksum(entry.value):
                yield entry.value
            else:
                logger.warning("%s:%d is damaged; its record is done again", shard, entry.number)


def _checked(outcome: dict[str, Any]) -> dict[str, Any]:
    return outcome | {"crc32": _checksum(outcome)}


def _checksum(outcome: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(outcome, ensure_ascii=False).encode())


class Shard:
    """One rank's lines, open for appending, and what is done already.

    Attributes:
        done: line numbers that need no work, whichever rank and run did them.
    """

    def __init__(self, path: Path, lock: IO[bytes], done: frozenset[int]) -> None:
        self.done = done
        self._lock = lock
        self._writer = JsonlWriter(path)

    def add_prediction(self, line: int, prediction: Mapping[str, Any]) -> None:
        """Writes a prediction down for good."""
        self._write({"line": line, "prediction": prediction})

    def add_failure(self, line: int, entry: Record | BadLine, error: str, detail: str) -> None:
        """Writes down that a record has no prediction.

        Args:
            error: the error's kind, for counting.
            detail: its message.
        """
        record = entry if isinstance(entry, Record) else None
        failure = {
            "id": record and record.id,
            "video": record and record.video,
            "line": line,
            "error": error,
            "detail": detail,
        }
        self._write({"line": line, "failure": failure})

    def _write(self, outcome: dict[str, Any]) -> None:
        self._writer.write(_checked(outcome))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._writer.close()
        self._lock.close()


def _try_lock(path: Path) -> IO[bytes] | None:
    """The open file, locked until it is closed or the process dies; None when another process has it."""
    stream = path.open("ab")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def _is_free(path: Path) -> bool:
    lock = _try_lock(path)
    if lock is None:
        return False
    lock.close()
    return True


def _rows(path: Path) -> list[dict[str, Any]]:
    return [entry.value for entry in read_jsonl(path) if isinstance(entry, Line)]


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_whole(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
