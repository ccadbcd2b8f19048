"""JSON lines on disk: reading that names file and line, the record, and a writer that survives a kill."""

import dataclasses
import gzip
import io
import itertools
import json
import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from humanomni.completion import label_of

log = logging.getLogger(__name__)

BadLinePolicy = Literal["raise", "skip"]

GZIP_MAGIC = b"\x1f\x8b"
GZIP_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
_BOM = b"\xef\xbb\xbf"
_KEYS = {"id", "video", "conversations", "start", "end"}


class RecordError(ValueError):
    """A line that cannot be used; the message names the file, the line, the fault and the mend."""


@dataclass(frozen=True)
class Line:
    """A JSON object and where it stood: a line of JSONL or an element of a JSON array, counted from 1."""

    path: Path
    number: int
    value: dict[str, Any]

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


@dataclass(frozen=True)
class BadLine:
    """A line that is no record, with the reason; `text` is its beginning."""

    path: Path
    number: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """One clip with its question and, where known, its target.

    Attributes:
        id: unique in the file; the video's path where the data names none ("PATH#2" for its second record).
        video: the path as written; `resolve_video` finds the file.
        question: the human turn as written; a prompt holds each media tag once, whether or not it stands here.
        target: the gpt turn: an SFT completion or a bare label; None in data without a truth.
        extra: the record's other keys (dataset, split, fold, provenance), kept as they are.
        start, end: seconds between which the clip is meant; None is its beginning or its end.
    """

    id: str
    video: str
    question: str
    target: str | None
    extra: dict[str, Any] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None

    @property
    def label(self) -> str | None:
        """The target's canonical emotion; None without a target or with a compound or unknown label."""
        return None if self.target is None else label_of(self.target)

    @property
    def part(self) -> dict[str, float]:
        """`start` and `end` where they are given, as whatever is written about the clip must repeat them."""
        return {key: second for key, second in (("start", self.start), ("end", self.end)) if second is not None}

    @classmethod
    def from_json(cls, line: Line) -> Self:
        """Validates one line.

        Raises:
            RecordError: a key is missing or of the wrong type; names it.
        """
        value = line.value
        video = value.get("video")
        if not isinstance(video, str) or not video.strip():
            raise RecordError(f'{line.where}: "video" must be the path of a clip, not {video!r}')
        turns = value.get("conversations")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise RecordError(f'{line.where}: "conversations" must be a list of {{"from", "value"}} objects')
        identity = value.get("id", video)
        if not isinstance(identity, str | int):
            raise RecordError(f'{line.where}: "id" must be a string or an integer, not {identity!r}')
        question = _turn(line, turns, "human")
        if question is None:
            raise RecordError(f'{line.where}: "conversations" has no turn with "from": "human"')
        return cls(
            id=str(identity),
            video=video,
            question=question,
            target=_turn(line, turns, "gpt"),
            extra={key: item for key, item in value.items() if key not in _KEYS},
            start=_seconds(line, "start"),
            end=_seconds(line, "end"),
        )


def _turn(line: Line, turns: list[dict[str, Any]], speaker: str) -> str | None:
    for turn in turns:
        if turn.get("from") == speaker:
            text = turn.get("value")
            if not isinstance(text, str):
                raise RecordError(f'{line.where}: the {speaker} turn\'s "value" must be text, not {text!r}')
            return text
    return None


def _seconds(line: Line, key: str) -> float | None:
    value = line.value.get(key)
    if value is None:
        return None
    # The bound keeps out NaN, infinity and integers that no float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise RecordError(f'{line.where}: "{key}" must be a number of seconds, not {value!r}')
    return value


def resolve_video(video: str, jsonl: Path, data_root: Path | None = None) -> Path:
    """The clip's file; a relative path starts at `data_root`, without one at the JSONL's folder."""
    return (data_root or jsonl.parent) / video


def read_records(path: Path, on_bad: BadLinePolicy = "raise") -> Iterator[Record | BadLine]:
    """Reads a training or inference file; see `read_jsonl` for the accepted forms and the policy.

    An id that the data gives twice is a bad line, because results are keyed by it.
    """
    seen: dict[str, int] = {}
    for line in read_jsonl(path, on_bad):
        if isinstance(line, BadLine):
            yield line
            continue
        try:
            record = _with_unique_id(Record.from_json(line), line, seen)
        except RecordError as error:
            if on_bad == "raise":
                raise
            reason = str(error).removeprefix(f"{line.where}: ")
            yield BadLine(path, line.number, reason, _beginning(line.value))
            continue
        seen[record.id] = line.number
        yield record


def _with_unique_id(record: Record, line: Line, seen: dict[str, int]) -> Record:
    if record.id not in seen:
        return record
    if "id" in line.value:
        raise RecordError(f'{line.where}: "id" {record.id!r} already stands in line {seen[record.id]}; make it unique')
    free = (f"{record.id}#{copy}" for copy in itertools.count(2))
    return dataclasses.replace(record, id=next(identity for identity in free if identity not in seen))


def _beginning(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:200]


def read_jsonl(path: Path, on_bad: BadLinePolicy = "raise") -> Iterator[Line | BadLine]:
    """Reads JSON objects, one a line, or one JSON array of them; either may be gzipped.

    CRLF line ends, a UTF-8 byte order mark and blank lines are accepted.

    Args:
        path: the file.
        on_bad: "raise" stops at the first bad line; "skip" yields a `BadLine` in its place and goes on.

    Raises:
        FileNotFoundError: there is no such file.
        RecordError: a bad line under "raise"; under both policies an array that is no JSON.
    """
    with _open(path) as stream:
        if _beginning_of(stream).removeprefix(_BOM).lstrip().startswith(b"["):
            entries = _array_entries(path, stream)
        else:
            entries = _line_entries(path, stream)
        for entry in entries:
            if isinstance(entry, BadLine) and on_bad == "raise":
                raise RecordError(f"{entry}; mend the line, or skip bad lines")
            yield entry


def _beginning_of(stream: io.BufferedReader | gzip.GzipFile) -> bytes:
    try:
        return stream.peek(4096)
    except GZIP_DAMAGE:
        return b""  # whoever reads on meets the damage and names the line


def _open(path: Path) -> io.BufferedReader | gzip.GzipFile:
    with path.open("rb") as stream:
        zipped = stream.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _line_entries(path: Path, stream: Iterable[bytes]) -> Iterator[Line | BadLine]:
    number = 0
    try:
        for number, raw in enumerate(stream, start=1):
            text = raw.removeprefix(_BOM) if number == 1 else raw
            if text.strip():
                yield _parse(path, number, text)
    except GZIP_DAMAGE as error:
        yield BadLine(path, number + 1, f"the gzip stream is damaged from here on: {error}", "")


def _array_entries(path: Path, stream: io.BufferedReader | gzip.GzipFile) -> Iterator[Line | BadLine]:
    try:
        values = json.loads(stream.read().decode("utf-8-sig"))
    except (ValueError, RecursionError, *GZIP_DAMAGE) as error:
        raise RecordError(f"{path}: begins like a JSON array but is none: {error}") from error
    for number, value in enumerate(values, start=1):
        yield _object(path, number, value, _beginning(value))


def _parse(path: Path, number: int, raw: bytes) -> Line | BadLine:
    beginning = raw[:200].decode("utf-8", errors="replace").rstrip()
    try:
        value = json.loads(raw.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return BadLine(path, number, f"not UTF-8 at byte {error.start}", beginning)
    except json.JSONDecodeError as error:
        return BadLine(path, number, f"not JSON: {error.msg} at column {error.colno}", beginning)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in brackets
        return BadLine(path, number, f"not JSON that can be read: {error}", beginning)
    return _object(path, number, value, beginning)


def _object(path: Path, number: int, value: Any, beginning: str) -> Line | BadLine:
    if isinstance(value, dict):
        return Line(path, number, value)
    return BadLine(path, number, f"a JSON object is expected, not {type(value).__name__}", beginning)


class JsonlWriter:
    """Appends JSON lines so that every line that was written stays, whenever the process dies.

    Opening drops a torn last line, so that the file holds whole lines only; each line is written and synced
    at once. One process writes a file.
    """

    def __init__(self, path: Path) -> None:
        """Opens, makes or repairs `path`.

        Raises:
            OSError: the folder is missing or read-only.
        """
        self.path = path
        _drop_torn_line(path)
        self._file = path.open("ab", buffering=0)

    def write(self, value: dict[str, Any]) -> None:
        """Appends one line and returns once the disk has it.

        Raises:
            OSError: the disk is full or gone; the file ends with its last whole line.
        """
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(json.dumps(value, ensure_ascii=False).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _drop_torn_line(path: Path) -> None:
    """Cuts what follows the last newline: a line is written with its newline, so what follows is torn."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as stream:
        size = stream.seek(0, os.SEEK_END)
        end = size
        block = b""
        while end and b"\n" not in block:
            start = max(0, end - 65536)
            stream.seek(start)
            block = stream.read(end - start)
            end = start
        whole = end + block.rfind(b"\n") + 1
        if whole < size:
            log.warning("%s: dropping a torn last line (%d bytes) of a run that was killed", path, size - whole)
            stream.truncate(whole)


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Replaces a file by lines that end in newlines, through a temporary name: nobody ever reads half a file.

    Raises:
        OSError: the disk is full or the folder read-only; what was there stays.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as stream:
            stream.writelines(lines)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
