"""One rank's share: what the model answers is written beside its work, and none of it is lost."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from humanomni.prediction_run import predict_share
from humanomni.records import Record

RECORDS = {line: Record(f"r{line}", f"r{line}.mp4", "Which emotion?", "anger") for line in range(1, 2001)}


class Disk:
    """In a shard's place."""

    def __init__(self, room: int = len(RECORDS)) -> None:
        self.lines: list[int] = []
        self.room = room
        self.awake = threading.Event()
        self.awake.set()

    def add_prediction(self, line: int, prediction: dict[str, Any]) -> None:
        assert self.awake.wait(timeout=30)
        if len(self.lines) == self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.lines.append(line)


def run(disk: Disk, count: int, answers: Any) -> None:
    records = {line: RECORDS[line] for line in range(1, count + 1)}
    model = SimpleNamespace(predict=lambda items, *_: answers(items))
    predict_share(records, disk, lambda _: model, lambda record: Path(record.video), 1, None, None)  # type: ignore[arg-type]


def test_the_model_does_not_wait_for_the_disk() -> None:
    disk = Disk()
    disk.awake.clear()

    def answers(items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            yield item, {}
        disk.awake.set()  # not before the last answer is there

    run(disk, 20, answers)
    assert disk.lines == list(range(1, 21))


@pytest.mark.parametrize("room", [0, 3])
def test_a_full_disk_ends_the_run(room: int) -> None:
    disk, answered = Disk(room), []

    def answers(items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            answered.append(item.line)
            yield item, {}

    with pytest.raises(OSError, match="No space left"):
        run(disk, len(RECORDS), answers)
    assert disk.lines == list(range(1, room + 1))
    assert len(answered) < 1000


def test_what_was_answered_before_an_interruption_is_written() -> None:
    disk = Disk()
    disk.awake.clear()

    def answers(items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            if item.line == 10:
                disk.awake.set()
                raise KeyboardInterrupt
            yield item, {}

    with pytest.raises(KeyboardInterrupt):
        run(disk, 20, answers)
    assert disk.lines == list(range(1, 10))
