"""Data of one's own: a table with columns named by flags, or a folder a label. And files of finished records."""

import logging
from collections.abc import Iterator
from pathlib import Path

from humanomni.completion import parse_completion
from humanomni.datasets.source import (
    SOUND_SUFFIXES,
    VIDEO_SUFFIXES,
    Dataset,
    DatasetError,
    Options,
    Sample,
    Source,
)
from humanomni.datasets.tables import TABLE_SUFFIXES, numbered_table
from humanomni.records import BadLine, Line, Record, RecordError, read_jsonl

logger = logging.getLogger(__name__)

ALL = "all"  # the split of data that has none


def _read_custom(source: Source, options: Options) -> Iterator[Sample]:
    return _read_folders(source) if options.table is None else _read_table(source, options.table, options)


def _read_table(source: Source, table: Path, options: Options) -> Iterator[Sample]:
    path = table if table.is_file() else source.root / table
    if path.suffix.lower() not in TABLE_SUFFIXES or not path.is_file():
        raise DatasetError(f"--table {table}: no such file, or none of {', '.join(TABLE_SUFFIXES)}")
    columns = (options.label_column, options.id_column, options.split_column, options.explanation_column)
    wanted = [options.video_column, *(column for column in columns if column)]
    for number, row in numbered_table(path, wanted, gb18030=False):
        video = row.get(options.video_column)
        if not video:
            raise DatasetError(f"{path}: row {number} has no {options.video_column}")
        yield Sample(
            video,
            row.get(options.label_column) or None,
            (row.get(options.split_column) if options.split_column else None) or ALL,
            None,
            row.get(options.explanation_column) if options.explanation_column else None,
            source.origin(path),
            extra={"id": row[options.id_column]} if options.id_column and row.get(options.id_column) else {},
        )


def _read_folders(source: Source) -> Iterator[Sample]:
    """LABEL/clip.mp4, or SPLIT/LABEL/clip.mp4, videos and sound; all else there is listed as no clip."""
    empty = True
    videos = {path.with_suffix("") for path in source.videos()}
    for path in source.clip_files:
        *folders, _ = path.relative_to(source.clip_root).parts
        suffix = path.suffix.lower()
        problem = None
        if suffix in SOUND_SUFFIXES and path.with_suffix("") in videos:
            problem = "sound of a video: the clip is the video of that name beside it"
        elif suffix not in VIDEO_SUFFIXES + SOUND_SUFFIXES:
            problem = "no clip by its suffix: give a --table that names it, if it is one"
        if folders:
            split = folders[-2] if len(folders) > 1 else ALL
            name = path.relative_to(source.clip_root).as_posix()
            yield Sample(name, folders[-1], split, problem=problem)
        elif problem is None:
            raise DatasetError(f"{path} is in no folder named like its label; move it into one, or give a --table")
        empty = empty and problem is not None
    if empty:
        raise source.missing("clips", "LABEL/clip.mp4", "SPLIT/LABEL/clip.mp4")
    for folder in source.frame_folders:
        if folder != source.clip_root:
            problem = "pictures: each may be a clip, or all one clip's frames; give a --table that says which"
            yield Sample(folder.relative_to(source.clip_root).as_posix(), None, ALL, problem=problem)


def _read_records(source: Source, options: Options) -> Iterator[Sample]:
    """Records that others have published, whose paths are of the machine that they were made on.

    The split is the file's name.
    """
    found = False
    for _, path in source.lists(r"[^/]+\.jsonl?(?:\.gz)?"):
        for line in _record_lines(path):
            found = True
            record = Record.from_json(line)
            completion = parse_completion(record.target or "")
            yield Sample(
                record.video,
                completion.answer or record.target,
                path.name.partition(".")[0],
                None,
                completion.think,
                source.origin(path),
                record.question,
                {key: value for key, value in line.value.items() if key not in {"video", "conversations"}},
            )
    if not found:
        raise source.missing("records", "a .json or .jsonl file of records")


def _record_lines(path: Path) -> Iterator[Line]:
    """The records of a file; none of a file that holds other JSON, such as a hub's dataset_info.json.

    Raises:
        RecordError: something in a file of records is none.
    """
    strange: Line | BadLine | None = None
    found = False
    for entry in read_jsonl(path, "skip"):
        if isinstance(entry, Line) and {"video", "conversations"} <= entry.value.keys():
            found = True
            if not strange:
                yield entry
        else:
            strange = strange or entry
        if strange and found:
            fault = strange if isinstance(strange, BadLine) else f'{strange.where}: no "video" and "conversations"'
            raise RecordError(f"{fault}; mend the line, or move the file if its records are not meant")
    if not found:
        logger.info("%s holds no records and is passed over", path)


CUSTOM = Dataset("custom data", _read_custom, folders_count=True)
RECORDS = Dataset("published records", _read_records)
