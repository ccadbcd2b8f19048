"""Scoring a file of explanations, whoever wrote it: JSON lines, a JSON array or CSV, resumable, with a summary."""

import csv
import gzip
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any

from pydantic import ValidationError
from tqdm import tqdm

from fgce.cache import cache_key
from fgce.monitors import monitor
from fgce.schema import ExplanationScore, MissingReason, ScoreItem, ScoreRequest, ScoreResponse

logger = logging.getLogger(__name__)

# Scores a batch: `Scorer.score` in this process or a client's.
ScoreBatch = Callable[[ScoreRequest], Awaitable[ScoreResponse]]

# Takes explanation and emotion, or None, from a record.
Taker = Callable[[dict[str, Any]], tuple[Any, Any]]

# Explanation and emotion columns that programs of this field write, looked for in this order; without them a column
# of raw answers, <think>...</think><answer>...</answer>, is looked for.
KNOWN_COLUMNS = (
    ("think_text", "pred"),  # HumanOmni's inference and ours
    ("explanation", "predicted_emotion"),  # FG-CE's own items
    ("explanation", "emotion"),
    ("reasoning", "prediction"),
    ("rationale", "emotion"),
)
_TAGGED = re.compile(r"<think>(.*?)</think>.*?<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)


class InputError(ValueError):
    """An input file is unusable; the message names the file, the line and the mend."""


@dataclass(frozen=True)
class Columns:
    """Names of the input's columns; those that are None are found by what the first record has."""

    id: str = "id"
    explanation: str | None = None
    emotion: str | None = None


@dataclass(frozen=True)
class Entry:
    """A record to score; without an item it lacks explanation or emotion, as after a failed inference."""

    id: str
    item: ScoreItem | None


class ScoredLine(ExplanationScore):
    """A line of the output. `question` is a short hash of explanation and emotion: a line that has been overtaken by
    another prediction of the same id, often a mere line number, is told by it. Empty where there was nothing to score.
    """

    question: str = ""


async def score_file(
    source: Path, target: Path, columns: Columns, score: ScoreBatch, *, batch_size: int = 64
) -> dict[str, Any]:
    """Scores every record of `source` into `target`, one ScoredLine a line in the input's order.

    A second run keeps the lines that an interrupted one has written, and asks again where explanation or emotion is
    another by now, and for what is missing, whole or in a sentence, because of the judge. `<target>.meta.json` holds
    rubric, judge and method, so that scores of two do not mix, and `<target>.summary.json` what is returned: the
    figures of `summarise` under these.

    Raises:
        InputError: a record is malformed, lacks a column or repeats an id, or `target` is of another rubric, judge or
            method.
    """
    entries = list(read_entries(source, columns))
    questions = {entry.item.id: _question(entry.item) for entry in entries if entry.item}
    done = {line.id: line for line in _read_finished(target) if line.question == questions.get(line.id)}
    todo = [entry.item for entry in entries if entry.item and entry.id not in done]
    if len(todo) < len(entries):
        logger.info("%s: %d of %d explanations have their result", target, len(entries) - len(todo), len(entries))
    meta = _beside(target, "meta")
    with target.open("a", encoding="utf-8") as lines, tqdm(total=len(todo), unit="expl", disable=None) as bar:
        for start in range(0, len(todo), batch_size):
            response = await score(ScoreRequest(items=todo[start : start + batch_size]))
            _check_identity(target, meta, response)
            for result in response.results:
                line = ScoredLine(**dict(result), question=questions[result.id])
                done[line.id] = line
                lines.write(line.model_dump_json() + "\n")
            lines.flush()
            bar.update(len(response.results))
    results = [done.get(entry.id) or _no_input(entry.id) for entry in entries]
    finished = target.with_name(target.name + ".tmp")
    finished.write_text("".join(result.model_dump_json() + "\n" for result in results), encoding="utf-8")
    finished.replace(target)
    identity = json.loads(meta.read_text(encoding="utf-8")) if meta.exists() else {}
    summary = identity | summarise(results)
    _beside(target, "summary").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def read_entries(source: Path, columns: Columns) -> Iterator[Entry]:
    """The file's records; the id is the line number where there is no id column.

    Raises:
        InputError: the file cannot be read, or a record is malformed, lacks a column or repeats an id.
    """
    records = list(_records(source))
    take = _taker(source, records, columns)
    lines_of: dict[str, int] = {}
    for number, record in records:
        explanation, emotion = take(record)
        id = str(record.get(columns.id, number))
        if id in lines_of:
            raise InputError(
                f"{source}:{number}: id '{id}' is also on line {lines_of[id]}: name a column of unique ids with --id"
            )
        lines_of[id] = number
        item = None
        if isinstance(explanation, str) and isinstance(emotion, str) and emotion.strip():
            item = ScoreItem(id=id, explanation=explanation, predicted_emotion=emotion)
        yield Entry(id, item)


def summarise(results: Sequence[ExplanationScore]) -> dict[str, Any]:
    """S_coh over the explanations that have one, its parts by function and modality, what is missing, monitors."""
    sentences = [s for result in results for s in result.sentences if s.status == "ok"]
    return {
        "explanations": len(results),
        "missing": dict(Counter(result.reason for result in results if result.reason)),
        "flags": dict(Counter(flag for result in results for flag in result.flags)),
        "s_coh": _mean([result.score for result in results]),
        "normalised": _mean([result.normalised for result in results]),
        "unweighted": _mean([result.unweighted for result in results]),
        "functions": _by_group([(s.function, s.score) for s in sentences]),
        "modalities": _by_group([(s.modality, s.score) for s in sentences if s.score is not None]),
        "monitors": asdict(monitor(results)),
    }


def _by_group(pairs: Sequence[tuple[str | None, int | None]]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[int | None]] = {}
    for name, score in sorted(pairs, key=lambda pair: str(pair[0])):
        groups.setdefault(str(name), []).append(score)
    return {name: {"sentences": len(scores), "score": _mean(scores)} for name, scores in groups.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _question(item: ScoreItem) -> str:
    return cache_key(item.explanation, item.predicted_emotion)[:16]


def _no_input(id: str) -> ScoredLine:
    return ScoredLine.missing(id, MissingReason.NO_INPUT, "the record has no explanation or no emotion")


def _taker(source: Path, records: Sequence[tuple[int, dict[str, Any]]], columns: Columns) -> Taker:
    """How to take explanation and emotion from the file's records: by the first record that shows it."""
    pairs = [(columns.explanation or text, columns.emotion or label) for text, label in KNOWN_COLUMNS]
    for number, record in records:
        for explanation, emotion in pairs:
            if explanation in record and emotion in record:
                return lambda one: (one.get(explanation), one.get(emotion))
        if columns.emotion:
            continue
        # a raw answer, such as R1-Omni's
        looked_at = [columns.explanation] if columns.explanation else list(record)
        tagged = [key for key in looked_at if all(_split_tagged(record.get(key)))]
        if len(tagged) > 1:
            detail = f"the columns {tagged} all hold tagged answers: name the one to score with --explanation"
            raise InputError(f"{source}:{number}: {detail}")
        if tagged:
            return lambda one: _split_tagged(one.get(tagged[0]))
    if not records:
        raise InputError(f"{source}: no records")
    number, record = records[0]
    raise InputError(
        f"{source}:{number}: no explanation and emotion among the columns {sorted(map(str, record))}: "
        "name them with --explanation and --emotion"
    )


def _split_tagged(text: Any) -> tuple[str | None, str | None]:
    found = _TAGGED.search(text) if isinstance(text, str) else None
    return (found.group(1).strip(), found.group(2).strip()) if found else (None, None)


def _read_finished(target: Path) -> Iterator[ScoredLine]:
    """What an earlier run has written, but for results that the judge owes a part of. A torn line is dropped."""
    if not target.exists():
        return
    text = target.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        target.write_text(whole, encoding="utf-8")
    for number, line in enumerate(whole.split("\n")[:-1], start=1):
        try:
            result = ScoredLine.model_validate_json(line)
        except ValidationError as error:
            detail = f"{target}:{number}: no result of FG-CE; give another --output"
            raise InputError(detail) from error
        if not result.unfinished:
            yield result


def _beside(target: Path, what: str) -> Path:
    return target.with_name(f"{target.name}.{what}.json")


def _check_identity(target: Path, path: Path, response: ScoreResponse) -> None:
    """Notes rubric, judge and method of the first answer, and refuses answers of others."""
    if response.identity is None:
        return  # nobody answered
    if not path.exists():
        path.write_text(json.dumps(response.identity, indent=2) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != response.identity:
        raise InputError(
            f"{target} holds scores of another rubric or judge, or of one asked by another protocol or splitter (see "
            f"{path}, and here {response.identity}); give another --output"
        )


def _records(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered records of a CSV, of JSON lines or of a JSON array, gzipped or not; the number is the line, or the place
    in the array."""
    try:
        with _open(source) as lines:
            if ".csv" in map(str.lower, source.suffixes):
                reader = csv.DictReader(lines)
                yield from ((reader.line_num, record) for record in reader)
                return
            numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
            for number, line in numbered:
                if line.lstrip().startswith("["):
                    array = _json(source, number, line + lines.read())
                    yield from ((place, _as_object(source, place, one)) for place, one in enumerate(array, start=1))
                    return
                yield number, _as_object(source, number, _json(source, number, line))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: cannot be read: {error}") from error


def _open(source: Path) -> IO[str]:
    with source.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    opened: IO[str] = (gzip.open if zipped else open)(source, "rt", encoding="utf-8-sig", newline="")
    return opened


def _json(source: Path, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}:{number}: not JSON: {error}") from error


def _as_object(source: Path, number: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{source}:{number}: expected a JSON object, found {type(record).__name__}")
    return record
