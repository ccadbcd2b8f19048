"""Batch inference: one prediction a record, in the input's order, whatever happens on the way.

    python inference_batch.py --model_path runs/sft --input_jsonl data/toy/test.jsonl --output_dir runs/sft/predictions
    torchrun --nproc_per_node 8 inference_batch.py --model_path ... --input_jsonl ... --output_dir ... --batch_size 32

Writes OUTPUT_DIR/<input name> (with --early, <input name>_early) of {"id", "video", "gt", "pred", "think_text",
"raw_response"} and, where records failed, <input name>.errors.jsonl of {"id", "video", "line", "error", "detail"}.
A run that was killed is continued by the same command, also with another number of processes or another batch size; a
finished one is left alone. Failed records do not make the run fail: its exit status is 0 and its last line counts them.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from humanomni.loading import LoadError, LoadOptions, add_load_arguments
from humanomni.prediction_shards import (
    JobError,
    PredictionJob,
    Shard,
    file_fingerprint,
    model_fingerprint,
    read_inputs,
)
from humanomni.prompts import MODALITIES
from humanomni.records import BadLine, Record, RecordError, resolve_video

logger = logging.getLogger("inference_batch")

INTERRUPTED = 130  # the shell's exit status for Ctrl-C


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(name)s: %(message)s")
    if arguments.bert_path:
        logger.info("--bert_path %s is not needed: a native model folder holds its BERT", arguments.bert_path)
    try:
        run(arguments, rank, world_size)
    except (JobError, LoadError, RecordError) as error:
        sys.exit(f"inference_batch: {error}")
    except OSError as error:
        if error.filename:
            sys.exit(f"inference_batch: {error}")
        # A full disk names no file.
        sys.exit(f"inference_batch: {error}, writing to {arguments.output_dir}; make room: the same command goes on")
    except KeyboardInterrupt:
        logger.warning("interrupted; what is done is kept, and the same command goes on from here")
        sys.exit(INTERRUPTED)


def run(arguments: argparse.Namespace, rank: int, world_size: int) -> None:
    """Does this rank's share of the job and, when it is the last to finish, merges all shares.

    Raises:
        JobError: the job cannot start.
        LoadError: the model cannot be loaded as asked.
        RecordError: the input is no JSONL at all.
        OSError: a file is missing, or the output cannot be written.
    """
    inputs = read_inputs(arguments.input_jsonl)
    loading = LoadOptions.of(arguments, arguments.model_path).resolved()
    job = PredictionJob(output_path(arguments), inputs, job_settings(arguments, loading))
    shard = job.open_shard(rank)
    if shard is None:
        logger.info("nothing is left to do: %s", job.summary())
        return
    with shard:
        share = [line for line in list(inputs)[rank::world_size] if line not in shard.done]
        if done := len(shard.done):
            logger.info("going on: %d of %d records are done", done, len(inputs))
        records = {}
        for line in share:
            match inputs[line]:
                case Record() as record:
                    records[line] = record
                case BadLine() as bad:
                    shard.add_failure(line, bad, RecordError.__name__, str(bad))
        if records:
            predict_share(arguments, loading, records, shard)
        missing = job.merge()
    if missing:
        logger.info("this process is done; %d records are with other ranks, the last of which merges", missing)
    else:
        # The rank that merges has the last word, whichever it is.
        logger.setLevel(logging.INFO)
        logger.info(job.summary())


def predict_share(
    arguments: argparse.Namespace, loading: LoadOptions, records: dict[int, Record], shard: Shard
) -> None:
    """Predicts this rank's records and writes each outcome to its shard at once."""
    # Here, because a finished job and a rank without work should not wait for torch and a model.
    from transformers.utils.logging import disable_progress_bar

    from humanomni.inference import Failure, Item, Predictor, pick_device

    speaks = logger.isEnabledFor(logging.INFO)
    if not speaks:
        disable_progress_bar()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    predictor = Predictor(
        loading,
        modality=arguments.modal,
        early=arguments.early,
        max_new_tokens=arguments.max_new_tokens,
        device=arguments.device or pick_device(local_rank),
    )
    items = (
        Item(line, record, resolve_video(record.video, arguments.input_jsonl, arguments.data_root))
        for line, record in records.items()
    )
    outcomes = predictor.predict(items, arguments.batch_size, arguments.num_workers)
    progress = tqdm(outcomes, total=len(records), unit="sample", disable=not speaks)
    with logging_redirect_tqdm(), progress:
        for item, outcome in progress:
            if isinstance(outcome, Failure):
                logger.warning("record %s failed: %s", item.record.id, outcome.detail)
                shard.add_failure(item.line, item.record, outcome.error, outcome.detail)
            else:
                shard.add_prediction(item.line, outcome)


def output_path(arguments: argparse.Namespace) -> Path:
    """The result's file: named like the input, always ``.jsonl``.

    Raises:
        JobError: it would be the input itself.
    """
    source: Path = arguments.input_jsonl
    stem = Path(source.name.removesuffix(".gz")).stem + ("_early" if arguments.early else "")
    output: Path = arguments.output_dir / f"{stem}.jsonl"
    if output.resolve() == source.resolve():
        raise JobError(f"the predictions would overwrite the input {source}; choose another --output_dir")
    return output


def job_settings(arguments: argparse.Namespace, loading: LoadOptions) -> dict[str, str | int | bool | None]:
    """All that decides the predictions: other settings never meet the same shards.

    Batch size, workers and the number of processes are not among them.
    """
    return {
        "model": model_fingerprint(loading.model),
        "adapter": model_fingerprint(loading.adapter) if loading.adapter else None,
        "input": file_fingerprint(arguments.input_jsonl),
        "data_root": str(arguments.data_root) if arguments.data_root else None,
        "modal": arguments.modal,
        "early": arguments.early,
        "max_new_tokens": arguments.max_new_tokens,
        "dtype": loading.dtype,
        "attention": loading.attention,
        "quantize": loading.quantize,
    }


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model_path", type=Path, required=True, help="native HumanOmni folder, or a LoRA adapter's")
    parser.add_argument("--input_jsonl", type=Path, required=True, help="records; may be gzipped")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data_root", type=Path, help="folder of relative clip paths (the input's)")
    parser.add_argument("--modal", choices=tuple(MODALITIES), default="video_audio", help="media in the prompt")
    parser.add_argument("--early", action="store_true", help="answer at once: the explanation is forced to be empty")
    parser.add_argument("--max_new_tokens", type=_positive, default=256, help="length of a response (%(default)s)")
    parser.add_argument("--batch_size", type=_positive, default=16, help="rows of a batch, a process (%(default)s)")
    parser.add_argument("--num_workers", type=_positive, default=4, help="threads that decode clips (%(default)s)")
    add_load_arguments(parser)
    parser.add_argument("--bert_path", help="accepted for the commands of the authors' release, and not used")
    return parser


if __name__ == "__main__":
    main()
