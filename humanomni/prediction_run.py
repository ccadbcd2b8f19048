"""One rank's part in a prediction job: from the records that are left to lines in its shard, and the merge."""

import argparse
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from humanomni.loading import LoadError
from humanomni.prediction_shards import JobError, PredictionJob, Shard
from humanomni.records import BadLine, Record, RecordError

if TYPE_CHECKING:
    from humanomni.inference import Predictor

logger = logging.getLogger(__name__)

INTERRUPTED = 130  # the shell's exit status for Ctrl-C
_MOST_UNWRITTEN = 64  # outcomes that may wait for the disk


@contextmanager
def explained_exit(program: str, output_dir: Path) -> Iterator[None]:
    """Sets up logging (rank 0 speaks) and turns what may go wrong in a job into one line and an exit status.

    Raises:
        SystemExit: the job cannot start or go on.
    """
    level = logging.WARNING if int(os.environ.get("RANK", "0")) else logging.INFO
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    try:
        yield
    except (JobError, LoadError, RecordError) as error:
        sys.exit(f"{program}: {error}")
    except OSError as error:
        if error.filename:
            sys.exit(f"{program}: {error}")
        # A full disk names no file.
        sys.exit(f"{program}: {error}, writing to {output_dir}; make room: the same command goes on")
    except KeyboardInterrupt:
        logger.warning("interrupted; what is done is kept, and the same command goes on from here")
        sys.exit(INTERRUPTED)


def add_retry_argument(parser: argparse.ArgumentParser) -> None:
    """Declares ``--retry_failed``, the argument of :class:`humanomni.prediction_shards.PredictionJob`."""
    parser.add_argument(
        "--retry_failed",
        type=int,
        default=0,
        metavar="N",
        help="predict failed records again, for the N-th time: the last line of a run names N",
    )


def run_rank(
    job: PredictionJob,
    start: Callable[[str], "Predictor"],
    clip_of: Callable[[Record], Path],
    *,
    batch_size: int,
    num_workers: int | None,
    token_budget: int | None = None,
    ask: Callable[[Record], Record] = lambda record: record,
) -> bool:
    """Does this rank's share of the job and, when it is the last to finish, merges all shares.

    Args:
        job: whose inputs are shared out by RANK and WORLD_SIZE, as torchrun sets them.
        start: loads the model onto a device; not called where nothing is left to do.
        clip_of: the file of a record's clip.
        batch_size, num_workers, token_budget: of :meth:`humanomni.inference.Predictor.predict`.
        ask: gives a record the question that is asked; a record for which it raises RecordError fails.

    Returns:
        Whether the result is there and this rank has the last word on it: it has merged, or there was nothing to do
        and it is rank 0.

    Raises:
        JobError: the job cannot start.
        OSError: the output cannot be written.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    shard = job.open_shard(rank)
    if shard is None:
        logger.info("nothing is left to do: %s", job.summary())
        return rank == 0
    with shard:
        if done := len(shard.done):
            logger.info("going on: %d of %d records are done", done, len(job.inputs))
        records = {}
        for line in [line for line in list(job.inputs)[rank::world_size] if line not in shard.done]:
            entry = job.inputs[line]
            try:
                if isinstance(entry, BadLine):
                    raise RecordError(str(entry))
                records[line] = ask(entry)
            except RecordError as error:
                shard.add_failure(line, entry, RecordError.__name__, str(error))
        if records:
            predict_share(records, shard, start, clip_of, batch_size, num_workers, token_budget)
        missing = job.merge()
    if missing:
        logger.info("this process is done; %d records are with other ranks, the last of which merges", missing)
        return False
    logger.setLevel(logging.INFO)  # the rank that merges speaks, whichever it is
    logger.info(job.summary())
    return True


def predict_share(
    records: dict[int, Record],
    shard: Shard,
    start: Callable[[str], "Predictor"],
    clip_of: Callable[[Record], Path],
    batch_size: int,
    num_workers: int | None,
    token_budget: int | None,
) -> None:
    """Predicts records and writes each outcome to the shard.

    A thread writes: a cluster's file system takes milliseconds to sync a line, for which the model does not wait. What
    waits for the disk when the process is killed is predicted again by the next run.
    """
    # Here, because a finished job and a rank without work should not wait for torch and a model.
    from transformers.utils.logging import disable_progress_bar

    from humanomni.inference import Failure, Item, pick_device

    speaks = logger.isEnabledFor(logging.INFO)
    if not speaks:
        disable_progress_bar()
    predictor = start(pick_device(int(os.environ.get("LOCAL_RANK", "0"))))
    items = (Item(line, record, clip_of(record)) for line, record in records.items())
    outcomes = predictor.predict(items, batch_size, num_workers, token_budget)
    written: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(1, "writer") as writer,  # on its exit all is written that waits, also after Ctrl-C
        logging_redirect_tqdm(),
        tqdm(outcomes, total=len(records), unit="sample", disable=not speaks) as progress,
    ):
        for item, outcome in progress:
            if isinstance(outcome, Failure):
                logger.warning("record %s failed: %s", item.record.id, outcome.detail)
                written.append(writer.submit(shard.add_failure, item.line, item.record, outcome.error, outcome.detail))
            else:
                written.append(writer.submit(shard.add_prediction, item.line, outcome))
            while written and (written[0].done() or len(written) > _MOST_UNWRITTEN):
                written.popleft().result()
    for outcome_written in written:
        outcome_written.result()
