"""EMER: explanations for clips of MER2023's train split; version 1 with labels, version 2 without."""

from collections.abc import Iterator
from pathlib import Path

from humanomni.datasets.mer import open_label
from humanomni.datasets.source import Dataset, Options, Sample, Source, clip_key
from humanomni.datasets.tables import read_table


def _read_1(source: Source, options: Options) -> Iterator[Sample]:
    """Labels are English in both languages, where the English list is there."""
    path = _list_of_1(source, options.language)
    if path is None:
        raise source.missing("EMER version 1", "gt-eng.csv", "gt-chi.csv")
    labels = _labels_of_1(source)
    for row in read_table(path, ("names", "emotions", "subtitles", "reasons")):
        said = {"subtitle": row["subtitles"]} if row["subtitles"] else {}
        label = labels.get(clip_key(row["names"]), open_label(row["emotions"]))
        yield Sample(row["names"], label, "train", None, row["reasons"], source.origin(path), extra=said)


def _read_2(source: Source, options: Options) -> Iterator[Sample]:
    """Labels are those of MER2023's train-label.csv, else of version 1, wherever these lie beside lists or clips."""
    lists = source.lists(r"final-EMER-reason\.csv")
    if not lists:
        raise source.missing("EMER version 2", "final-EMER-reason.csv")
    labels = _labels_of_1(source)
    for _, path in source.lists_beside_clips(r"train-label\.csv"):
        labels |= {clip_key(row["name"]): row["discrete"] for row in read_table(path, ("name", "discrete"))}
    path = lists[0][1]
    for row in read_table(path, ("name", options.language)):
        label, reason = labels.get(clip_key(row["name"])), row[options.language]
        yield Sample(row["name"], label, "train", None, reason, source.origin(path))


def _list_of_1(source: Source, language: str) -> Path | None:
    lists = source.lists(rf"gt-{language[:3]}\.csv")
    return lists[0][1] if lists else None


def _labels_of_1(source: Source) -> dict[str, str | None]:
    path = _list_of_1(source, "english")
    rows = read_table(path, ("names", "emotions")) if path else []
    return {clip_key(row["names"]): open_label(row["emotions"]) for row in rows}


EMER = Dataset("EMER version 2", _read_2, official={(None, "train"): 332})
EMER_V1 = Dataset("EMER version 1", _read_1, official={(None, "train"): 100})
