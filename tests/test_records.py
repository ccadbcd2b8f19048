"""JSONL in the forms that people have on disk, and lines that survive a kill."""

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from humanomni.records import (
    BadLine,
    JsonlWriter,
    Line,
    Record,
    RecordError,
    read_jsonl,
    read_records,
    resolve_video,
)

RECORD = {
    "video": "clips/a.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\n<audio>\nWhich emotion?"},
        {"from": "gpt", "value": "<think>She smiles.</think>\n<answer>happy</answer>"},
    ],
    "fold": 3,
}


def values(path: Path) -> list[dict]:
    return [line.value for line in read_jsonl(path) if isinstance(line, Line)]


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\r\n{"a": 2}',
        b'\xef\xbb\xbf{"a": 1}\n\n   \n{"a": 2}\n',
        b'[{"a": 1}, {"a": 2}]',
        b'\xef\xbb\xbf\r\n[\r\n{"a": 1},\r\n{"a": 2}\r\n]\r\n',
        gzip.compress(b'{"a": 1}\n{"a": 2}\n'),
        gzip.compress(b'[{"a": 1}, {"a": 2}]'),
    ],
    ids=["plain", "crlf", "bom and blank lines", "array", "array with bom", "gzip", "gzipped array"],
)
def test_every_form_reads_the_same(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert values(path) == [{"a": 1}, {"a": 2}]


def test_bad_lines_are_named_and_skipped_on_request(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n"text"\n\xff\xfe\n{"a": 2}\n')
    entries = list(read_jsonl(path, "skip"))
    assert [(type(entry), entry.number) for entry in entries] == [
        (Line, 1), (BadLine, 3), (BadLine, 4), (BadLine, 5), (Line, 6),
    ]  # fmt: skip
    assert "not JSON" in str(entries[1])
    assert "object is expected, not str" in str(entries[2])
    assert "not UTF-8" in str(entries[3])
    with pytest.raises(RecordError, match=r"data\.jsonl:3: not JSON: .* at column 6"):
        list(read_jsonl(path))


def test_a_cut_gzip_file_gives_its_whole_lines_and_then_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    whole = gzip.compress(b"".join(json.dumps({"a": n * 7919 % 1000}).encode() + b"\n" for n in range(5000)))
    path.write_bytes(whole[: len(whole) // 2])
    *lines, last = read_jsonl(path, "skip")
    assert lines
    assert isinstance(last, BadLine)
    assert "gzip stream" in last.reason


def test_a_broken_array_is_fatal(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"a": 1},')
    with pytest.raises(RecordError, match="JSON array"):
        list(read_jsonl(path, "skip"))


def test_a_record_gives_question_target_label_and_the_rest(tmp_path: Path) -> None:
    record = Record.from_json(Line(tmp_path / "a.jsonl", 1, RECORD))
    assert record.id == "clips/a.mp4"
    assert record.question == "<video>\n<audio>\nWhich emotion?"
    assert record.target is not None
    assert record.target.endswith("<answer>happy</answer>")
    assert record.label == "happiness"
    assert record.extra == {"fold": 3}
    assert (record.start, record.end) == (None, None)
    part = Record.from_json(Line(tmp_path / "a.jsonl", 1, RECORD | {"start": 2, "end": 3.5}))
    assert (part.start, part.end, part.extra) == (2, 3.5, {"fold": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": None}, '"video" must be the path'),
        ({"conversations": "hello"}, '"conversations" must be a list'),
        ({"conversations": []}, 'no turn with "from": "human"'),
        ({"conversations": [{"from": "human", "value": 3}]}, 'human turn\'s "value" must be text, not 3'),
        ({"id": 1.5}, '"id" must be a string or an integer, not 1.5'),
        ({"start": "1.5"}, "\"start\" must be a number of seconds, not '1.5'"),
        ({"end": float("nan")}, '"end" must be a number of seconds, not nan'),
    ],
)
def test_a_wrong_record_is_named_with_file_line_and_key(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | change) + "\n")
    with pytest.raises(RecordError) as error:
        list(read_records(path))
    assert f"{path}:2: " in str(error.value)
    assert message in str(error.value)
    good, bad = read_records(path, "skip")
    assert isinstance(good, Record)
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert message in bad.reason


def test_ids_are_unique(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([json.dumps(RECORD)] * 3))
    assert [record.id for record in read_records(path)] == ["clips/a.mp4", "clips/a.mp4#2", "clips/a.mp4#3"]
    path.write_text("\n".join([json.dumps(RECORD | {"id": "x"})] * 2))
    with pytest.raises(RecordError, match=r"train.jsonl:2: .*'x' already stands in line 1"):
        list(read_records(path))


def test_relative_videos_lie_beside_the_file_or_under_the_data_root(tmp_path: Path) -> None:
    jsonl = tmp_path / "sets" / "train.jsonl"
    assert resolve_video("clips/a.mp4", jsonl) == tmp_path / "sets" / "clips" / "a.mp4"
    assert resolve_video("clips/a.mp4", jsonl, tmp_path) == tmp_path / "clips" / "a.mp4"
    assert resolve_video("/data/a.mp4", jsonl, tmp_path) == Path("/data/a.mp4")


@pytest.mark.parametrize("tail", [b'{"id": "c', b'{"id": "c"}', b"\x00" * 200_000])
def test_a_torn_last_line_is_dropped_on_resume(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}\n' + tail)
    with JsonlWriter(path) as writer:
        assert values(path) == [{"id": "a"}, {"id": "b"}]
        writer.write({"id": "c", "text": "日本"})
    assert values(path) == [{"id": "a"}, {"id": "b"}, {"id": "c", "text": "日本"}]
    assert "日本" in path.read_text(encoding="utf-8")


def test_lines_written_before_a_sigkill_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    program = f"""
from pathlib import Path
from humanomni.records import JsonlWriter
import sys
writer = JsonlWriter(Path({str(path)!r}))
for n in range(10**9):
    writer.write({{"n": n, "text": "x" * 500}})
    if n == 20:
        sys.stdout.write("go\\n")
        sys.stdout.flush()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    JsonlWriter(path).close()
    numbers = [value["n"] for value in values(path)]
    assert len(numbers) > 20
    assert numbers == list(range(len(numbers)))


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "predictions.jsonl"
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with JsonlWriter(path) as writer:
            for n in range(8):
                writer.write({"n": n, "text": "x" * 90})
            with pytest.raises(OSError, match="File too large"):
                writer.write({"n": 8, "text": "x" * 300})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert [value["n"] for value in values(path)] == list(range(8))
