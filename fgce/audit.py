"""The audit log: one JSON line an explanation, with all that is needed to recompute its score."""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from fgce.schema import (
    ExplanationScore,
    JudgeInfo,
    RubricInfo,
    ScoreItem,
    ScoreMode,
    ScoreRequest,
    ScoreResponse,
    SentenceTrace,
)

logger = logging.getLogger(__name__)


class AuditError(ValueError):
    """An audit log is unusable; the message names the file, the line and the mend."""


class AuditRecord(BaseModel):
    """One scored explanation. `time` is Unix time; `traces` go with `result.sentences`, one each."""

    time: float
    request: str
    item: ScoreItem
    sha256: str
    mode: ScoreMode
    rubric: RubricInfo
    judge: JudgeInfo
    result: ExplanationScore
    traces: list[SentenceTrace]

    @classmethod
    def make(
        cls, request_id: str, item: ScoreItem, mode: ScoreMode, response: ScoreResponse, result: ExplanationScore
    ) -> Self:
        """The record of one item of a response that a scorer gave."""
        return cls.model_construct(
            time=time.time(),
            request=request_id,
            item=item,
            sha256=hashlib.sha256((item.explanation or " ".join(item.sentences or [])).encode()).hexdigest(),
            mode=mode,
            rubric=response.rubric,
            judge=response.judge,
            result=result,
            traces=[sentence.trace for sentence in result.sentences],
        )


class AuditLog:
    """Appends to a JSONL file; every request's lines are on their way to disk before it is answered.

    A server that continues a file begins a line of its own: one that a killed server left torn spoils no other.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = path.open("a", encoding="utf-8")
            if self._lines.tell():
                self._lines.write("\n")
        except OSError as error:
            raise AuditError(f"{path}: cannot be written: {error.strerror}; give another audit path") from error

    def write(self, request_id: str, request: ScoreRequest, response: ScoreResponse) -> None:
        """Logs every item of an answered request."""
        for item, result in zip(request.items, response.results, strict=True):
            record = AuditRecord.make(request_id, item, request.score_mode, response, result)
            self._lines.write(record.model_dump_json() + "\n")
        self._lines.flush()

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


def read_audit(path: Path) -> Iterator[tuple[int, AuditRecord]]:
    """The log's records with their line numbers; a torn line, as a killed server leaves it, is logged and left out.

    Raises:
        AuditError: the file cannot be read, or a line is no audit record.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip() and (record := _read_line(path, number, line)):
                    yield number, record
    except OSError as error:
        raise AuditError(f"{path}: cannot be read: {error.strerror}") from error


def _read_line(path: Path, number: int, line: str) -> AuditRecord | None:
    try:
        return AuditRecord.model_validate_json(line)
    except ValidationError as error:
        problem: Any = error.errors()[0]
        if problem["type"] == "json_invalid":
            logger.warning("%s:%d: a torn line: %s", path, number, problem["msg"])
            return None
        raise AuditError(f"{path}:{number}: no audit record: {problem['loc']}: {problem['msg']}") from error
