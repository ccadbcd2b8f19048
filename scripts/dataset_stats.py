"""Says what is in record files: class balance, explanations, durations, sound; as a table, JSON and plots.

    python scripts/dataset_stats.py data/mafw/fold1/grpo_train.jsonl data/mafw/fold1/grpo_test.jsonl --output data/mafw

Decodes every clip once. What prepare_data --check left in the same output folder is not decoded again. stats_clips.csv
says what is in each clip, and which are unreadable.
"""

import argparse
import json
import logging
import os
import sys
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from humanomni.datasets.check import check_clips, worker_count, write_table
from humanomni.datasets.statistics import RecordFile, plot, statistics
from humanomni.records import Record, RecordError, read_records, resolve_video, write_whole

logger = logging.getLogger("dataset_stats")

INTERRUPTED = 130  # the shell's exit status for Ctrl-C


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        with logging_redirect_tqdm():
            describe(arguments)
    except (RecordError, OSError) as error:
        sys.exit(f"dataset_stats: {error}")
    except KeyboardInterrupt:
        logger.warning("interrupted; the clips that were decoded are kept, and the same command goes on from here")
        sys.exit(INTERRUPTED)


def describe(arguments: argparse.Namespace) -> None:
    """Writes stats.json, stats.png and stats_clips.csv, and the table to standard output.

    Raises:
        RecordError: a file is no JSONL.
        OSError: a file is missing, or the output cannot be written.
    """
    output: Path = arguments.output
    entries = {path: list(read_records(path, "skip")) for path in arguments.records}
    clips = {
        (path, entry.id): resolve_video(entry.video, path, arguments.data_root)
        for path, of_file in entries.items()
        for entry in of_file
        if isinstance(entry, Record)
    }
    checks = check_clips(sorted(set(clips.values())), output, arguments.workers)
    write_table(output / "stats_clips.csv", checks)
    files = [
        RecordFile(name, entries[path], {key: checks[clip] for (owner, key), clip in clips.items() if owner == path})
        for path, name in zip(entries, _names(list(entries)), strict=True)
    ]
    figures = {file.name: statistics(file) for file in files}
    write_whole(output / "stats.json", [json.dumps(figures, indent=1, ensure_ascii=False) + "\n"])
    plot(files, output / "stats.png")
    sys.stdout.write(_table(files, figures))
    logger.info("wrote %s, stats.png and stats_clips.csv", output / "stats.json")


def _names(paths: list[Path]) -> list[str]:
    """File names, with their folders where these alone tell files apart."""
    names = [path.name.partition(".")[0] for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _table(files: list[RecordFile], figures: dict[str, dict]) -> str:
    labels = sorted({label for file in files for label in file.labels}, key=lambda label: -files[0].labels[label])
    rows = [["", *figures], ["records", *(str(of_file["records"]) for of_file in figures.values())]]
    rows += [[label, *(str(file.labels[label]) for file in files)] for label in labels]
    rows.append(["median seconds", *(str((of_file["seconds"] or {}).get("50%", "")) for of_file in figures.values())])
    for key in ("hours", "with_sound", "unreadable", "bad_lines", "imbalance"):
        rows.append([key.replace("_", " "), *(str(of_file[key]) for of_file in figures.values())])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        + "\n"
        for row in rows
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="record files; may be gzipped")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--data_root", type=Path, help="folder of relative clip paths (each file's own)")
    workers = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=worker_count, default=workers, help="clips decoded at once (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
