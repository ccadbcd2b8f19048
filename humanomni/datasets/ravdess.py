"""RAVDESS: 24 actors, 60 full audio-video speech clips each, all said by the file's name.

There is no official split. Published zero-shot figures are over all speech clips: the split "test" without a fold.
Folds are by actor: fold 1 tests on actors 1 to 4, fold 2 on 5 to 8, up to fold 6.
"""

import re
from collections.abc import Iterator

from humanomni.datasets.source import Dataset, DatasetError, Options, Sample, Source

_ACTORS, _CLIPS_OF_ACTOR, _ACTORS_OF_FOLD = 24, 60, 4
_FOLDS = range(1, _ACTORS // _ACTORS_OF_FOLD + 1)
_CLASSES = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")  # ids from 1
_CANONICAL = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")
# Modality (01: sound and picture), vocal channel (01: speech), emotion, intensity, statement, repetition, actor.
_NAME = re.compile(r"01-01-(?P<emotion>0[1-8])-(?P<intensity>0[12])-0[12]-0[12]-(?P<actor>\d\d)")


def _read(source: Source, options: Options) -> Iterator[Sample]:
    clips = sorted({match[0]: match for path in source.videos() if (match := _NAME.fullmatch(path.stem))}.items())
    if not clips:
        raise source.missing("RAVDESS", "Actor_01/01-01-01-01-01-01-01.mp4")
    if strangers := sorted(set(options.test_actors) - {int(match["actor"]) for _, match in clips}):
        raise DatasetError(f"--test_actors {', '.join(map(str, strangers))}: no clip of theirs is in {source.root}")
    for fold in [None] if options.test_actors else [None, *_FOLDS]:
        for name, match in clips:
            actor = int(match["actor"])
            yield Sample(
                name,
                _CLASSES[int(match["emotion"]) - 1],
                _split(fold, actor, options.test_actors),
                fold,
                extra={"actor": actor, "intensity": ("normal", "strong")[int(match["intensity"]) - 1]},
            )


def _split(fold: int | None, actor: int, test_actors: tuple[int, ...]) -> str:
    if test_actors:
        return "test" if actor in test_actors else "train"
    return "test" if fold is None or (actor - 1) // _ACTORS_OF_FOLD == fold - 1 else "train"


_TRAIN, _TEST = (_ACTORS - _ACTORS_OF_FOLD) * _CLIPS_OF_ACTOR, _ACTORS_OF_FOLD * _CLIPS_OF_ACTOR
_OFFICIAL: dict[tuple[int | None, str], int] = {
    (fold, split): size for fold in _FOLDS for split, size in (("train", _TRAIN), ("test", _TEST))
}
RAVDESS = Dataset(
    "RAVDESS",
    _read,
    classes=dict(zip(_CANONICAL, _CLASSES, strict=True)),
    official=_OFFICIAL | {(None, "test"): _ACTORS * _CLIPS_OF_ACTOR},
)
