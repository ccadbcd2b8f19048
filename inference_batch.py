"""Batch inference: one prediction a record, in the input's order, whatever happens on the way.

    python inference_batch.py --model_path runs/sft --input_jsonl data/toy/test.jsonl --output_dir runs/sft/predictions
    torchrun --nproc_per_node 8 inference_batch.py --model_path ... --input_jsonl ... --output_dir ... --batch_size 32

Writes OUTPUT_DIR/<input name> (with --early, <input name>_early) of {"id", "video", "gt", "pred", "think_text",
"raw_response", "has_audio"} (with --temperature, also "candidates": --n of them; of a part of a clip, "start" and
"end"). Where records failed, <input name>.errors.jsonl of {"id", "video", "line", "error", "detail"}, which --errors
sums up.
A run that was killed is continued by the same command, also with another number of processes or another batch size; a
finished one is left alone. Failed records do not make the run fail: its exit status is 0 and its last line counts them
and names the flag that predicts them again once the cause is mended: --retry_failed 1, the next time --retry_failed 2.
The predictions that are there are carried over, and that command too is continued by itself.
Predictions of another input of that name, another model or other settings are kept under the suffix .old, .old2, ...
"""

import argparse
import logging
import string
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from humanomni.loading import LoadOptions, add_load_arguments
from humanomni.media_nvdec import why_not
from humanomni.prediction_run import add_retry_argument, explained_exit, run_rank
from humanomni.prediction_shards import (
    JobError,
    PredictionJob,
    file_fingerprint,
    model_identity,
    read_failures,
    read_inputs,
)
from humanomni.prompts import MODALITIES
from humanomni.records import Record, RecordError, resolve_video

if TYPE_CHECKING:
    from humanomni.inference import Predictor

logger = logging.getLogger("inference_batch")

REPORTED = 10  # failures of each kind that --errors shows


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    if arguments.n > 1 and not arguments.temperature:
        _parser().error(f"--n {arguments.n} greedy responses are all the same; give a --temperature, such as 1.0")
    with explained_exit("inference_batch", arguments.output_dir):
        if arguments.errors:
            sys.stdout.write(errors_report(arguments))
        else:
            predict(arguments)


def predict(arguments: argparse.Namespace) -> None:
    """This rank's share of the predictions."""
    if arguments.bert_path:
        logger.info("--bert_path %s is not needed: a native model folder holds its BERT", arguments.bert_path)
    loading = LoadOptions.of(arguments, arguments.model_path).resolved()
    job = PredictionJob(
        output_path(arguments),
        read_inputs(arguments.input_jsonl),
        job_settings(arguments, loading),
        {"input": arguments.input_jsonl, "model": loading.model, "adapter": loading.adapter},
        arguments.retry_failed,
    )

    def start(device: str) -> "Predictor":
        device = arguments.device or device
        if arguments.gpu_decoding and (reason := why_not(device)):
            raise JobError(f"--gpu_decoding: {reason}")
        # Here, because a finished job and a rank without work should not wait for torch.
        from humanomni.inference import Predictor
        from humanomni.sampling import Sampling

        sampling = None
        if arguments.temperature:
            sampling = Sampling(arguments.n, (arguments.temperature,), seed=arguments.seed)
        return Predictor(
            loading,
            modality=arguments.modal,
            early=arguments.early,
            max_new_tokens=arguments.max_new_tokens,
            sampling=sampling,
            device=device,
            clip_cache=arguments.clip_cache,
            gpu_decoding=arguments.gpu_decoding,
        )

    def clip_of(record: Record) -> Path:
        return resolve_video(record.video, arguments.input_jsonl, arguments.data_root)

    def ask(record: Record) -> Record:
        return record if arguments.template is None else fill(arguments.template, record)

    run_rank(
        job,
        start,
        clip_of,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
        token_budget=arguments.token_budget,
        ask=ask,
    )


def fill(template: str, record: Record) -> Record:
    """The record with the template, filled with its keys, as its question.

    Raises:
        RecordError: the record lacks a key of the template.
    """
    keys = {**record.extra, "id": record.id, "video": record.video, "question": record.question}
    try:
        return replace(record, question=template.format_map(keys))
    except KeyError as error:
        raise RecordError(f"record {record.id} has no {error} for the template; it has {', '.join(keys)}") from error


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

    Batch size, token budget, workers, the clip cache, who decodes and the number of processes are not among them.
    """
    return {
        **model_identity(loading),
        "input": file_fingerprint(arguments.input_jsonl),
        "data_root": str(arguments.data_root) if arguments.data_root else None,
        "modal": arguments.modal,
        "early": arguments.early,
        "max_new_tokens": arguments.max_new_tokens,
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
    parser.add_argument("--num_workers", type=_positive, help="processes that decode clips (one a core)")
    parser.add_argument("--clip_cache", type=Path, help="folder for decoded clips, shared with training")
    parser.add_argument("--gpu_decoding", action="store_true", help="let the GPU decode clips (docs/performance.md)")
    add_load_arguments(parser)
    add_retry_argument(parser)
    parser.add_argument("--errors", action="store_true", help="list the records that failed, and do nothing else")
    parser.add_argument("--bert_path", help="accepted for the commands of the authors' release, and not used")
    return parser


if __name__ == "__main__":
    main()
