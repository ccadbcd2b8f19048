"""Damaged record files never hang or end a reader: a line is a record or a bad line, a file its lines or one error."""

import gzip
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

from humanomni.prediction_shards import read_inputs
from humanomni.records import BadLine, Record, RecordError

CASES = 2000  # a second
HANG_SECONDS = 10
TURNS = [{"from": "human", "value": "<video>\n<audio>\nWhich émotion? 日本"}, {"from": "gpt", "value": "anger"}]
RECORDS = [
    {"id": f"r{n}", "video": f"clips/{n}.mp4", "conversations": TURNS, "start": n / 2, "fold": n} for n in range(12)
]
LINES = "".join(json.dumps(record, ensure_ascii=bool(n % 2)) + "\n" for n, record in enumerate(RECORDS)).encode()
FORMS = [LINES, b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n"), json.dumps(RECORDS).encode()]
FORMS += [gzip.compress(FORMS[0]), gzip.compress(FORMS[2])]
VALUES: list[Any] = [None, True, -1, 1e400, 10**400, "", "x\0y", "\ud83d", [], [[]], {}, {"from": "human"}]
SNIPPETS = [b"[" * 100_000, b'{"a":' * 100_000, b"\0" * 64, b"\xff\xfe", b"9" * 5000, b"\n\n", b"NaN", b'"', b"\\ud800"]


def other_values(chance: random.Random) -> bytes:
    """The records with a few values, at any depth, exchanged for others."""
    records = json.loads(json.dumps(RECORDS))
    for _ in range(chance.randint(1, 6)):
        place = chance.choice(records)
        while True:
            key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not (isinstance(place[key], dict | list) and place[key] and chance.random() < 0.6):
                break
            place = place[key]
        place[key] = chance.choice(VALUES)
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def damaged(chance: random.Random) -> bytes:
    """A file of records, cut, overwritten, with something put into it, or of other values."""
    data = bytearray(chance.choice(FORMS))
    at = chance.randrange(len(data))
    match chance.randrange(5):
        case 0:
            for _ in range(chance.randint(1, 30)):
                data[chance.randrange(len(data))] = chance.randrange(256)
        case 1:
            del data[at:]
        case 2:
            del data[at : at + chance.randint(1, 500)]
        case 3:
            data[at:at] = chance.choice(SNIPPETS)
        case 4:
            return other_values(chance)
    return bytes(data)


def test_damaged_files_give_records_bad_lines_or_a_typed_error(tmp_path: Path) -> None:
    met: Counter[str] = Counter()
    for case in range(CASES):
        path = tmp_path / f"case_{case}.jsonl"
        path.write_bytes(damaged(random.Random(case)))
        began = time.monotonic()
        try:
            entries = list(read_inputs(path).values())
        except RecordError as error:
            met["error" if str(path) in str(error) else "error without the file"] += 1
        else:
            assert all(isinstance(entry, Record | BadLine) for entry in entries)
            met["records"] += any(isinstance(entry, Record) for entry in entries)
            met["bad lines"] += any(isinstance(entry, BadLine) for entry in entries)
        assert time.monotonic() - began < HANG_SECONDS, f"{path} hangs"
        path.unlink()
    assert set(met) == {"error", "records", "bad lines"}
