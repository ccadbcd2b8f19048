"""Makes the JSON lines that training and inference read from a data set as it lies on disk.

    python scripts/prepare_data.py mafw --root /data/MAFW --output data/mafw --fold 1
    python scripts/prepare_data.py emer --root /data/EMER --clips /data/MER2023/train --output data/emer --task sft
    python scripts/prepare_data.py custom --root /data/mine --table labels.csv --video_column file --output data/mine

Writes {task}_{split}.jsonl to OUTPUT, or to OUTPUT/fold{K} for data with folds; beside it {task}_left_out.csv (samples
without a record, and why) and {task}_counts.json (counts, and how they differ from the official ones). With --check
every clip is decoded: clips.csv is the table, unreadable clips are left out, and an interrupted check goes on.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from humanomni.datasets import DATASETS
from humanomni.datasets.check import worker_count
from humanomni.datasets.prepare import Request, prepare
from humanomni.datasets.source import DatasetError, Options, Source
from humanomni.records import RecordError

logger = logging.getLogger("prepare_data")

INTERRUPTED = 130  # the shell's exit status for Ctrl-C


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    request = Request(
        name=arguments.dataset,
        dataset=DATASETS[arguments.dataset],
        source=_source(arguments),
        output=arguments.output,
        task=arguments.task,
        fold=arguments.fold,
        spelling=arguments.spelling,
        check_workers=arguments.workers if arguments.check else 0,
        options=Options(
            language=arguments.language,
            test_actors=tuple(arguments.test_actors),
            table=arguments.table,
            video_column=arguments.video_column,
            label_column=arguments.label_column,
            id_column=arguments.id_column,
            split_column=arguments.split_column,
            explanation_column=arguments.explanation_column,
        ),
    )
    try:
        with logging_redirect_tqdm():
            remarks = prepare(request)
    except (DatasetError, RecordError, OSError) as error:
        sys.exit(f"prepare_data: {error}")
    except KeyboardInterrupt:
        logger.warning("interrupted; the clips that were checked are kept, and the same command goes on from here")
        sys.exit(INTERRUPTED)
    for remark in remarks:
        logger.warning("%s", remark)
    logger.info("%s is in %s", request.dataset.title, request.output)


def _source(arguments: argparse.Namespace) -> Source:
    try:
        return Source(arguments.root, arguments.clips, ignored=arguments.output)
    except DatasetError as error:
        sys.exit(f"prepare_data: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset", choices=tuple(DATASETS), metavar="DATASET", help=", ".join(DATASETS))
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of the data set, as it was unpacked")
    add("--output", type=Path, required=True, help="folder to write to")
    add("--clips", type=Path, help="folder of the clips, where they lie elsewhere (--root)")
    add("--fold", type=int, help="one fold (all)")
    add("--task", choices=("sft", "grpo", "infer"), default="grpo", help="what the records are for (%(default)s)")
    add("--spelling", choices=("own", "canonical"), default="own", help="label words: the data set's own, or one noun "
        "for each emotion in all data sets (%(default)s)")  # fmt: skip
    add("--language", choices=("english", "chinese"), default="english", help="of explanations (%(default)s)")
    add("--check", action="store_true", help="decode every clip")
    add(
        "--workers", type=worker_count, default=len(os.sched_getaffinity(0)), help="clips decoded at once (%(default)s)"
    )
    ravdess = parser.add_argument_group("ravdess")
    ravdess.add_argument("--test_actors", type=int, nargs="+", default=[], help="test on these, train on the others")
    custom = parser.add_argument_group("custom", "without --table, a folder is a label: [SPLIT/]LABEL/clip.mp4")
    custom.add_argument("--table", type=Path, help="CSV, TSV, xlsx, JSON or JSON lines; from --root")
    custom.add_argument("--video_column", default="video", help="path or name of the clip (%(default)s)")
    custom.add_argument("--label_column", default="label", help="its emotion (%(default)s); '' for none")
    custom.add_argument("--id_column", help="a name of one's own for it")
    custom.add_argument("--split_column", help="its split")
    custom.add_argument("--explanation_column", help="why it has that emotion, for SFT")
    return parser


if __name__ == "__main__":
    main()
