"""Batch inference: one prediction a record, in the input's order, whatever happens on the way.

    python inference_batch.py --model_path runs/sft --input_jsonl data/toy/test.jsonl --output_dir runs/sft/predictions
    torchrun --nproc_per_node 8 inference_batch.py --model_path ... --input_jsonl ... --output_dir ... --batch_size 32

Writes OUTPUT_DIR/<input name> (with --early, <input name>_early) of {"id", "video", "gt", "pred", "think_text",
"raw_response"} (with --temperature, also "candidates": --n of them) and, where records failed,
<input name>.errors.jsonl of {"id", "video", "line", "error", "detail"}, which --errors sums up.
A run that was killed is continued by the same command, also with another number of processes or another batch size; a
finished one is left alone. Failed records do not make the run fail: its exit status is 0 and its last line counts them.
"""

import argparse
import logging
import os
import string
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from humanomni.loading import LoadError, LoadOptions, add_load_arguments
from humanomni.prediction_shards import (
    JobError,
    PredictionJob,
    Shard,
    file_fingerprint,
    model_fingerprint,
    read_failures,
    read_inputs,
)
from humanomni.prompts import MODALITIES
from humanomni.records import BadLine, Record, RecordError, resolve_video

logger = logging.getLogger("inference_batch")

INTERRUPTED = 130  # the shell's exit status for Ctrl-C
REPORTED = 10  # failures of each kind that --errors shows


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    if arguments.n > 1 and not arguments.temperature:
        _parser().error(f"--n {arguments.n} greedy responses are all the same; give a --temperature, such as 1.0")
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.basicConfig(level=logging.WARNING if rank else logging.INFO, format="%(name)s: %(message)s")
    if arguments.bert_path:
        logger.info("--bert_path %s is not needed: a native model folder holds its BERT", arguments.bert_path)
    try:
        if arguments.errors:
            sys.stdout.write(errors_report(arguments))
        else:
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
            entry = inputs[line]
            try:
                records[line] = asked(entry, arguments.template)
            except RecordError as error:
                shard.add_failure(line, entry, RecordError.__name__, str(error))
        if records:
            predict_share(arguments, loading, records, shard)
        missing = job.merge()
    if missing:
        logger.info("this process is done; %d records are with other ranks, the last of which merges", missing)
    else:
        # The rank that merges has the last word, whichever it is.
        logger.setLevel(logging.INFO)
        logger.info(job.summary())


def asked(entry: Record | BadLine, template: str | None) -> Record:
    """The record with the question that it will be asked: its own, or the template filled with its keys.

    Raises:
        RecordError: the line is no record, or lacks a key of the template.
    """
    if isinstance(entry, BadLine):
        raise RecordError(str(entry))
    if template is None:
        return entry
    keys = {**entry.extra, "id": entry.id, "video": entry.video, "question": entry.question}
    try:
        return replace(entry, question=template.format_map(keys))
    except KeyError as error:
        raise RecordError(f"record {entry.id} has no {error} for the template; it has {', '.join(keys)}") from error


def errors_report(arguments: argparse.Namespace) -> str:
    """The records that failed so far, by kind, with the first few of each.

    Raises:
        JobError: nothing was ever written there.
    """
    failures = read_failures(output_path(arguments))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for failure in failures:
        kinds.setdefault(failure["error"], []).append(failure)
    lines = [f"{len(failures)} records failed"]
    for kind, of_kind in sorted(kinds.items(), key=lambda item: -len(item[1])):
        lines.append(f"{kind}: {len(of_kind)}")
        lines += [f"  line {one['line']}, {one['id']}: {one['detail']}" for one in of_kind[:REPORTED]]
        if len(of_kind) > REPORTED:
            lines.append(f"  and {len(of_kind) - REPORTED} more")
    return "\n".join(lines) + "\n"


def predict_share(
    arguments: argparse.Namespace, loading: LoadOptions, records: dict[int, Record], shard: Shard
) -> None:
    """Predicts this rank's records and writes each outcome to its shard at once."""
    # Here, because a finished job and a rank without work should not wait for torch and a model.
    from transformers.utils.logging import disable_progress_bar

    from humanomni.inference import Failure, Item, Predictor, pick_device
    from humanomni.sampling import Sampling

    speaks = logger.isEnabledFor(logging.INFO)
    if not speaks:
        disable_progress_bar()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    sampling = None
    if arguments.temperature:
        sampling = Sampling(arguments.n, (arguments.temperature,), seed=arguments.seed)
    predictor = Predictor(
        loading,
        modality=arguments.modal,
        early=arguments.early,
        max_new_tokens=arguments.max_new_tokens,
        sampling=sampling,
        device=arguments.device or pick_device(local_rank),
    )
    items = (
        Item(line, record, resolve_video(record.video, arguments.input_jsonl, arguments.data_root))
        for line, record in records.items()
    )
    outcomes = predictor.predict(items, arguments.batch_size, arguments.num_workers, arguments.token_budget)
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


def job_settings(arguments: argparse.Namespace, loading: LoadOptions) -> dict[str, str | int | float | None]:
    """All that decides the predictions: other settings never meet the same shards.

    Batch size, token budget, workers and the number of processes are not among them.
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
        "template": arguments.template,
        "n": arguments.n,
        "temperature": arguments.temperature,
        "seed": arguments.seed if arguments.temperature else None,
    }


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _template(text: str) -> str:
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; a brace of the text itself is doubled") from error
    if not fields or not all(name.isidentifier() for name in fields):
        raise argparse.ArgumentTypeError(f"{text!r} must hold keys of the records in braces, such as {{question}}")
    return text


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below 0 or no number")
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
    parser.add_argument("--template", type=_template, help="the question, such as 'They say: {subtitle}. {question}'")
    parser.add_argument("--n", type=_positive, default=1, help="responses of a record (%(default)s)")
    parser.add_argument("--temperature", type=_temperature, default=0.0, help="of draws; 0 is greedy (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of draws (%(default)s)")
    parser.add_argument("--batch_size", type=_positive, default=16, help="rows of a batch, a process (%(default)s)")
    parser.add_argument("--token_budget", type=_positive, help="most tokens of a batch, padding and responses included")
    parser.add_argument("--num_workers", type=_positive, default=4, help="threads that decode clips (%(default)s)")
    add_load_arguments(parser)
    parser.add_argument("--errors", action="store_true", help="list the records that failed, and do nothing else")
    parser.add_argument("--bert_path", help="accepted for the commands of the authors' release, and not used")
    return parser


if __name__ == "__main__":
    main()
