"""DFEW: 7 classes, five folds; lists by unpadded ids, clips as videos or as folders of frames."""

from collections.abc import Iterator

from humanomni.datasets.source import Dataset, DatasetError, Options, Sample, Source
from humanomni.datasets.tables import numbered_table

_CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")  # ids from 1
_CANONICAL = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
_SIZES = ((9356, 2341), (9356, 2341), (9357, 2340), (9358, 2339), (9361, 2336))
_LISTS = (
    r"(?P<split>train|test)\(single-labeled\)/set_(?P<fold>\d)\.csv",
    r"single_(?P<split>train|test)set_(?P<fold>\d)\.csv",  # a renamed copy that is about
)


def _read(source: Source, options: Options) -> Iterator[Sample]:
    lists = source.lists(_LISTS[0]) or source.lists(_LISTS[1])
    if not lists:
        raise source.missing("DFEW", "train(single-labeled)/set_1.csv", "single_trainset_1.csv")
    for match, path in lists:
        for number, row in numbered_table(path, ("video_name", "label")):
            label = row["label"].removesuffix(".0")
            if not (label.isdecimal() and 1 <= int(label) <= len(_CLASSES)):
                raise DatasetError(f"{path}: row {number}: label must be 1 to {len(_CLASSES)}, not {label!r}")
            yield Sample(
                row["video_name"].removesuffix(".0"),
                _CLASSES[int(label) - 1],
                match["split"],
                int(match["fold"]),
                origin=source.origin(path),
            )


DFEW = Dataset(
    "DFEW",
    _read,
    classes=dict(zip(_CANONICAL, _CLASSES, strict=True)),
    official={
        (fold, split): size
        for fold, sizes in enumerate(_SIZES, start=1)
        for split, size in zip(("train", "test"), sizes, strict=True)
    },
    official_classes={(1, "test"): dict(zip(_CLASSES, (489, 379, 534, 435, 294, 29, 181), strict=True))},
)
