"""The MER challenges of 2023, 2024 and 2025; the last brings OV-MERD and MER-Caption+, with labels in free words."""

from collections.abc import Iterator
from pathlib import Path

from humanomni.datasets.source import Dataset, DatasetError, Options, Sample, Source
from humanomni.datasets.tables import read_table

UNLABELLED = "unlabelled"  # a split for inference alone

SIX = {
    "neutral": "neutral",
    "anger": "angry",
    "happiness": "happy",
    "sadness": "sad",
    "anxiety": "worried",
    "surprise": "surprise",
}


def _read_2023(source: Source, options: Options) -> Iterator[Sample]:
    lists = source.lists(r"(?P<split>train|test[123])-label\.csv")
    if not lists:
        raise source.missing("MER2023", "train-label.csv")
    for match, path in lists:
        for row in read_table(path, ("name", "discrete")):
            yield Sample(row["name"], row["discrete"], match["split"], origin=source.origin(path))


def _read_2024(source: Source, options: Options) -> Iterator[Sample]:
    lists = source.lists(r"label-disdim\.csv")
    if not lists:
        raise source.missing("MER2024", "label-disdim.csv")
    path = lists[0][1]
    for row in read_table(path, ("name", "discrete")):
        yield Sample(row["name"], row["discrete"], "train", origin=source.origin(path))
    for clip in source.videos():
        if clip.parent.name.startswith("video-unlabeled"):
            yield Sample(clip.relative_to(source.clip_root).as_posix(), None, UNLABELLED)


def _read_2025(source: Source, options: Options) -> Iterator[Sample]:
    """Track 2 gives words for the emotion, track 3 the reasons; a split is the set they were given for."""
    tracks = {(match["split"], match["track"]): path for match, path in source.lists(
        r"track(?P<track>[23])_train_(?P<split>mercaptionplus|ovmerd)\.csv"
    )}  # fmt: skip
    if not tracks:
        raise source.missing("MER2025", "track2_train_ovmerd.csv", "track3_train_mercaptionplus.csv")
    subtitles: dict[str, str] = {}
    for _, path in source.lists(r"subtitle_chieng\.csv"):
        subtitles = {row["name"]: row.get(options.language, "") for row in read_table(path, ("name",))}
    for split in sorted({split for split, _ in tracks}):
        labels = _column(tracks.get((split, "2")), ("openset", "label", "discrete"))
        reasons = _column(tracks.get((split, "3")), ("reason", options.language, "description"))
        origin = source.origin(tracks.get((split, "2")) or tracks[split, "3"])
        for name in labels | reasons:
            said = {"subtitle": subtitles[name]} if subtitles.get(name) else {}
            yield Sample(name, open_label(labels.get(name)), split, None, reasons.get(name), origin, extra=said)


def _column(path: Path | None, columns: tuple[str, ...]) -> dict[str, str]:
    """The first of the columns that a table has, by name."""
    if path is None:
        return {}
    rows = read_table(path, ("name",))
    column = next((column for column in columns if rows and column in rows[0]), None)
    if column is None:
        raise DatasetError(
            f"{path}: no column {' or '.join(columns)}; its columns are {', '.join(rows[0] if rows else ['none'])}"
        )
    return {row["name"]: row[column] for row in rows if row.get(column)}


def open_label(text: str | None) -> str | None:
    """The words of an open-vocabulary label, "['happy', 'excited']" or "happy,excited", as "happy, excited"."""
    words = [word.strip(" []'\"") for word in (text or "").replace(";", ",").split(",")]
    return ", ".join(word for word in words if word) or None


MER2023 = Dataset("MER2023", _read_2023, classes=SIX)
MER2024 = Dataset("MER2024", _read_2024, classes=SIX)
MER2025 = Dataset("MER2025", _read_2025)
