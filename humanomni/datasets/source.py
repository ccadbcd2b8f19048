"""A data set's folder as the user has it: looked through once, its lists and clips found whatever they lie in."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from humanomni.media_images import IMAGE_SUFFIXES

# The best first: of two copies of a clip in one folder, the earlier kind is taken.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".flv", ".m4v", ".mpg", ".mpeg", ".wmv")
SOUND_SUFFIXES = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".wma")


class DatasetError(ValueError):
    """A folder or list that cannot be used; the message says what was looked for and what to do."""


@dataclass(frozen=True)
class Sample:
    """A row of a data set's lists.

    Attributes:
        name: the clip as the list writes it; `Source.clip` finds it.
        label: in the data set's own spelling; None where it has none.
        split: "train", "test" or what the data set calls it.
        fold: from 1; None in a data set without folds.
        explanation: why the label holds; None where the data set does not say.
        origin: the list, relative to the root.
        question: what the model is asked; None is the question of the published checkpoints.
        extra: further keys of the record.
        problem: why it can be no record, where its reader knows.
    """

    name: str
    label: str | None
    split: str
    fold: int | None = None
    explanation: str | None = None
    origin: str = ""
    question: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def stem(self) -> str:
        """The name without its folders and without a video's suffix; "sample.2" keeps its dot."""
        name = self.name.replace("\\", "/").rstrip("/").rpartition("/")[2]
        stem, dot, suffix = name.rpartition(".")
        return stem if f"{dot}{suffix}".lower() in VIDEO_SUFFIXES else name


@dataclass(frozen=True)
class Dataset:
    """How a data set is read, and what its authors say it holds.

    Attributes:
        title: its name in messages.
        read: its samples, from its folder and the flags of its own.
        classes: canonical label and own spelling; empty where any label is taken as it stands.
        official: samples by fold and split.
        official_classes: samples of each own spelling by fold and split.
        folders_count: whether the folders of a clip's path tell clips apart; then none is found by its bare name.
    """

    title: str
    read: Callable[["Source", "Options"], Iterator[Sample]]
    classes: Mapping[str, str] = field(default_factory=dict)
    official: Mapping[tuple[int | None, str], int] = field(default_factory=dict)
    official_classes: Mapping[tuple[int | None, str], Mapping[str, int]] = field(default_factory=dict)
    folders_count: bool = False


@dataclass(frozen=True)
class Options:
    """The flags that only some data sets have.

    Attributes:
        language: of explanations that exist in two: "english" or "chinese".
        test_actors: RAVDESS: the actors of the test split, in place of the folds.
        table: custom: the list; None for a folder a label.
        video_column, label_column, id_column, split_column, explanation_column: custom: its columns.
    """

    language: str = "english"
    test_actors: tuple[int, ...] = ()
    table: Path | None = None
    video_column: str = "video"
    label_column: str = "label"
    id_column: str | None = None
    split_column: str | None = None
    explanation_column: str | None = None


class Source:
    """The files under a data set's folder.

    Args:
        root: the folder with the lists.
        clips: the folder with the clips, where it is another.
        ignored: a folder that is not looked into: what is written there is no part of the data set.

    Raises:
        DatasetError: a folder does not exist, or is the ignored one.
    """

    def __init__(self, root: Path, clips: Path | None = None, ignored: Path | None = None) -> None:
        self.root, self.clip_root = root.absolute(), (clips or root).absolute()
        self._ignored = ignored and ignored.absolute()
        for flag, folder in (("--root", self.root), ("--clips", self.clip_root)):
            if not folder.is_dir():
                raise DatasetError(f"{flag} {folder}: no such folder")
            if folder == self._ignored:
                raise DatasetError(f"{flag} {folder} is also --output; write to a folder in it, or elsewhere")

    def lists(self, pattern: str) -> list[tuple[re.Match[str], Path]]:
        """Files whose path from the root, with forward slashes, ends in the regular expression, sorted by path."""
        return self._matching(self._root_files, self.root, pattern)

    def lists_beside_clips(self, pattern: str) -> list[tuple[re.Match[str], Path]]:
        """As `lists`, also from the clips' folder: EMER's labels are in the data set that its clips are from."""
        found = self.lists(pattern)
        return found or self._matching(self.clip_files, self.clip_root, pattern)

    @staticmethod
    def _matching(files: list[Path], base: Path, pattern: str) -> list[tuple[re.Match[str], Path]]:
        ending = re.compile(rf"(?:^|/){pattern}$")
        matches = ((ending.search(path.relative_to(base).as_posix()), path) for path in files)
        return [(match, path) for match, path in matches if match]

    def origin(self, path: Path) -> str:
        """A list's path from the root."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()

    def missing(self, title: str, *expected: str) -> DatasetError:
        """The error for a folder that does not hold what the data set should."""
        there = sorted(path.name + ("/" if path.is_dir() else "") for path in self.root.iterdir())
        return DatasetError(
            f"{self.root} holds no {title}: looked in it and all its folders for {' or '.join(expected)}; "
            f"it holds {', '.join(there[:12]) or 'nothing'}{' ...' if len(there) > 12 else ''}"
        )

    def clip(self, name: str, folders_count: bool = False) -> Path | None:
        """The file, or folder of frames, of a clip; None where there is none.

        A path is followed as far as it leads (any of its leading folders may be missing here); a bare name is found in
        the clips' folder itself, else in whatever folder it lies, with another suffix and with or without leading
        zeros; sound with its suffix, an image only by its path. A video goes before frames, and the name as written
        before one that is like it.

        Args:
            name: as a list writes it.
            folders_count: the last folder of a path may not be missing, and no other folder stands for it.

        Raises:
            DatasetError: it may be any of several clips.
        """
        *folders, last = Path(name.replace("\\", "/")).parts or ("",)
        if not folders and (path := self.clip_root / last).is_file():
            return path
        for start in range(len(folders) + 1 if folders else 0):
            path = self.clip_root.joinpath(*folders[start:], last)
            if (start == 0 or not folders_count or path.parent.name == folders[-1]) and path.exists():
                return path
        stem = Sample(last, None, "").stem
        found = self._clips.get(clip_key(stem), [])
        if folders_count and folders:
            found = [path for path in found if [*path.parent.parts[-len(folders) :]] == folders]
        found = [path for path in found if path.suffix.lower() in VIDEO_SUFFIXES] or found
        if len({path.parent for path in found}) == 1:  # a like name elsewhere may as well be of another data set
            found = [path for path in found if _stem(path) == stem] or found
        if len({(path.parent, _stem(path)) for path in found}) > 1:
            listed = " and ".join(str(path) for path in sorted(found)[:2])
            raise DatasetError(f"clip {name} could be {listed}; name the folder of the right clips with --clips")
        return min(found, key=lambda path: (path.name != last, _rank(path)), default=None)

    def videos(self) -> Iterator[Path]:
        """All videos under the clips' folder, sorted."""
        return (path for path in self.clip_files if path.suffix.lower() in VIDEO_SUFFIXES)

    @cached_property
    def _clips(self) -> dict[str, list[Path]]:
        clips: dict[str, list[Path]] = {}
        for path in [*self.clip_files, *self.frame_folders]:
            clips.setdefault(clip_key(_stem(path)), []).append(path)
        return clips

    @cached_property
    def _root_files(self) -> list[Path]:
        return _walk(self.root, self._ignored)[0]

    @cached_property
    def _clip_walk(self) -> tuple[list[Path], list[Path]]:
        return _walk(self.clip_root, self._ignored)

    @property
    def clip_files(self) -> list[Path]:
        """All files under the clips' folder but images, sorted."""
        return self._clip_walk[0]

    @property
    def frame_folders(self) -> list[Path]:
        """All folders there that hold images, sorted."""
        return self._clip_walk[1]


def _stem(path: Path) -> str:
    return Sample(path.name, None, "").stem


def _rank(path: Path) -> int:
    suffix = path.suffix.lower()
    return VIDEO_SUFFIXES.index(suffix) if suffix in VIDEO_SUFFIXES else len(VIDEO_SUFFIXES)


def clip_key(stem: str) -> str:
    """What tells a clip apart: DFEW's lists say 7 where a copy of its clips has 00007."""
    return stem.lstrip("0") or "0" if stem.isdecimal() else stem.casefold()


def _walk(root: Path, ignored: Path | None) -> tuple[list[Path], list[Path]]:
    """All files but images, and all folders that hold images, each sorted; links are followed, once each.

    Hidden files and macOS's archive leftovers ("._00001.mp4", "__MACOSX") are no part of any data set.
    """
    files: list[Path] = []
    image_folders: list[Path] = []
    seen: set[tuple[int, int]] = set()
    pending = [root]
    while pending:
        folder = pending.pop()
        status = folder.stat()
        if folder == ignored or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        images = False
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 # 260,000 frames
                    images = True
                else:
                    files.append(Path(entry.path))
        if images:
            image_folders.append(folder)
    return sorted(files), sorted(image_folders)
