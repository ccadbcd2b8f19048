"""MAFW: 10,045 clips in 11 classes, of which 9,172 carry one label; five folds; captions in two languages."""

import re
from collections.abc import Iterator
from pathlib import Path

from humanomni.datasets.source import Dataset, DatasetError, Options, Sample, Source
from humanomni.datasets.tables import read_rows, read_text
from humanomni.labels import LABEL_SETS

_CLASSES = LABEL_SETS["mafw"]  # its own spelling is ours; ids from 1
_LABEL_COLUMN = 12  # of Labels/*-set.xlsx
_SIZES = ((7333, 1839), (7335, 1837), (7339, 1833), (7340, 1832), (7341, 1831))


def _read_single(source: Source, options: Options) -> Iterator[Sample]:
    return _read(source, options, "single", "single-set")


def _read_compound(source: Source, options: Options) -> Iterator[Sample]:
    return _read(source, options, "compound", "multi-set")


def _read(source: Source, options: Options, kind: str, sheet: str) -> Iterator[Sample]:
    """The folds' lists where they are; else the sheet, which has no split."""
    lists = source.lists(rf"{kind}/(?:(?P<variant>[^/]+)/)?set_(?P<fold>\d)/(?P<split>train|test)\.txt")
    plain = [found for found in lists if found[0]["variant"] in (None, "no_caption")]
    captions = dict(_captions([path for match, path in lists if (match, path) not in plain], options.language))
    for match, path in plain or lists:
        for name, label, _ in _lines(path):
            yield Sample(name, label, match["split"], int(match["fold"]), captions.get(name), source.origin(path))
    if lists:
        return
    sheets = source.lists(rf"{sheet}\.(?:xlsx|csv)")
    if not sheets:
        raise source.missing("MAFW", f"{kind}/no_caption/set_1/train.txt", f"Labels/{sheet}.xlsx")
    path = sheets[0][1]
    for number, row in read_rows(path)[1:]:
        yield Sample(row[0], _label_of_ids(path, number, row), "all", origin=source.origin(path))


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, label and the rest of each line: nothing, or the captions."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        name, *rest = line.split(maxsplit=2)
        if not rest:
            raise DatasetError(f"{path}:{number}: {line.strip()!r} has no label; a line is '03747.mp4 anger'")
        yield name, rest[0], rest[1] if len(rest) > 1 else ""


def _captions(paths: list[Path], language: str) -> Iterator[tuple[str, str]]:
    """The Chinese caption stands before the English one, two spaces or a tab between them."""
    for path in paths:
        for name, _, rest in _lines(path):
            captions = re.split(r"\t+| {2,}", rest.strip(), maxsplit=1)
            if caption := captions[0 if language == "chinese" else -1]:
                yield name, caption


def _label_of_ids(path: Path, number: int, row: list[str]) -> str:
    """The label of "6", and "sadness_surprise" of "6,7"."""
    cell = row[_LABEL_COLUMN] if len(row) > _LABEL_COLUMN else ""
    ids = re.findall(r"\d+", cell.removesuffix(".0"))
    if not ids or not all(1 <= int(identity) <= len(_CLASSES) for identity in ids):
        raise DatasetError(
            f"{path}: row {number}: column {_LABEL_COLUMN + 1} must hold label ids 1 to {len(_CLASSES)}, not {cell!r}"
        )
    return "_".join(_CLASSES[int(identity) - 1] for identity in ids)


_OFFICIAL = {
    (fold, split): size
    for fold, sizes in enumerate(_SIZES, start=1)
    for split, size in zip(("train", "test"), sizes, strict=True)
}

MAFW = Dataset(
    "MAFW", _read_single, classes={name: name for name in _CLASSES}, official=_OFFICIAL | {(None, "all"): 9172}
)
# A compound label is no class of its own here: it is kept as it stands, and no reward knows it.
MAFW_COMPOUND = Dataset("MAFW with compound labels", _read_compound)
