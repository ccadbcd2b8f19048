"""Scoring a file of explanations: JSONL or CSV with an explanation and an emotion column."""

import csv
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from fgce.schema import ExplanationScore, ScoreItem, ScoreRequest, ScoreResponse


class InputError(ValueError):
    """An input file is unusable; the message names the file, the line and the mend."""


@dataclass(frozen=True)
class Columns:
    """Names of the input's columns."""

    id: str
    explanation: str
    emotion: str


# Scores a batch: `Scorer.score` in this process or a client's.
ScoreBatch = Callable[[ScoreRequest], Awaitable[ScoreResponse]]


async def score_file(
    source: Path, target: Path, columns: Columns, score: ScoreBatch, *, batch_size: int = 64
) -> dict[str, Any]:
    """Scores every record of `source`, writes one ExplanationScore a line to `target`, returns a summary.

    Raises:
        InputError: a record is malformed or lacks a column.
    """
    items = list(read_items(source, columns))
    results: list[ExplanationScore] = []
    with (
        target.open("w", encoding="utf-8") as lines,
        tqdm(total=len(items), unit="expl", disable=None) as bar,
    ):
        for start in range(0, len(items), batch_size):
            response = await score(ScoreRequest(items=items[start : start + batch_size]))
            for result in response.results:
                lines.write(result.model_dump_json() + "\n")
            results += response.results
            bar.update(len(response.results))
    return summarise(results)


def read_items(source: Path, columns: Columns) -> Iterator[ScoreItem]:
    """The file's records as items to score; the id is the line number where there is no id column.

    Raises:
        InputError: the file cannot be read, or a record is malformed or lacks a column.
    """
    for number, record in _records(source):
        for name in (columns.explanation, columns.emotion):
            if not isinstance(record.get(name), str):
                raise InputError(
                    f"{source}:{number}: no text in '{name}'; columns here are {sorted(map(str, record))}: "
                    "name the right ones with --explanation and --emotion"
                )
        yield ScoreItem(
            id=str(record.get(columns.id, number)),
            explanation=record[columns.explanation],
            predicted_emotion=record[columns.emotion],
        )


def summarise(results: Sequence[ExplanationScore]) -> dict[str, Any]:
    """S_coh over the explanations that have one, its parts by function and modality, and what is missing."""
    sentences = [s for result in results for s in result.sentences if s.status == "ok"]
    return {
        "explanations": len(results),
        "missing": dict(Counter(result.reason for result in results if result.reason)),
        "flags": dict(Counter(flag for result in results for flag in result.flags)),
        "s_coh": _mean([result.score for result in results]),
        "normalised": _mean([result.normalised for result in results]),
        "unweighted": _mean([result.unweighted for result in results]),
        "functions": {
            function: {"sentences": len(scores), "score": _mean(scores)}
            for function, scores in _grouped([(s.function, s.score) for s in sentences]).items()
        },
        "modalities": {
            modality: {"sentences": len(scores), "score": _mean(scores)}
            for modality, scores in _grouped([(s.modality, s.score) for s in sentences]).items()
        },
    }


def _grouped(pairs: Sequence[tuple[str | None, int | None]]) -> dict[str, list[int | None]]:
    groups: dict[str, list[int | None]] = {}
    for name, score in sorted(pairs, key=lambda pair: str(pair[0])):
        groups.setdefault(str(name), []).append(score)
    return groups


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _records(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered records; the number is the line in the file."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as lines:
            if source.suffix.lower() == ".csv":
                reader = csv.DictReader(lines)
                for record in reader:
                    yield reader.line_num, record
                return
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _json_object(source, number, line)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error


def _json_object(source: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}:{number}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{source}:{number}: expected a JSON object, found {type(record).__name__}")
    return record
