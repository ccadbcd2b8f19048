"""Draws candidates from an RL checkpoint, for rejection sampling (scripts/build_rft.py).

    python scripts/sample_candidates.py --config configs/caemer/candidates.yaml --model_path runs/grpo2 \
        --input_jsonl data/grpo_train.jsonl --output_dir runs/candidates --set n=4
    torchrun --nproc_per_node 8 scripts/sample_candidates.py --config ... --model_path ... --batch_size 128

Writes OUTPUT_DIR/<input name>.jsonl of {"id", "video", "gt", "candidates": [{"temperature", "pred", "think_text",
"raw_response"}]}, failed records to <input name>.errors.jsonl, and to <input name>.summary.json how many candidates are
right and how varied they are (distinct-n). A run that was killed is continued by the same command, also with another
number of processes or another batch size: a candidate hangs on the seed, the record and its number alone. The last line
counts failed records and names the flag that does them again: --retry_failed 1, the next time --retry_failed 2.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fgce.config import ConfigError, load_settings
from humanomni.loading import LoadOptions, add_load_arguments
from humanomni.prediction_run import add_retry_argument, explained_exit, run_rank
from humanomni.prediction_shards import PredictionJob, file_fingerprint, model_identity, read_inputs
from humanomni.records import Record, resolve_video, write_whole
from humanomni.rft.candidates import read_candidates, summary_path, summary_text
from humanomni.rft.settings import CandidateSettings

if TYPE_CHECKING:
    from humanomni.inference import Predictor

logger = logging.getLogger("sample_candidates")


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    try:
        settings = load_settings(CandidateSettings, arguments.config, arguments.set)
    except ConfigError as error:
        sys.exit(f"sample_candidates: {error}")
    with explained_exit("sample_candidates", arguments.output_dir):
        sample(arguments, settings)


def sample(arguments: argparse.Namespace, settings: CandidateSettings) -> None:
    """This rank's share of the candidates; whoever merges writes the summary."""
    source: Path = arguments.input_jsonl
    output: Path = arguments.output_dir / f"{Path(source.name.removesuffix('.gz')).stem}.jsonl"
    if output.resolve() == source.resolve():
        sys.exit(f"sample_candidates: the candidates would overwrite {source}; choose another --output_dir")
    data_root = str(arguments.data_root) if arguments.data_root else None
    loading = LoadOptions.of(arguments, arguments.model_path).resolved()
    identity = {
        **model_identity(loading),
        "input": file_fingerprint(source),
        "data_root": data_root,
        **settings.model_dump(mode="json"),
    }
    paths = {"input": source, "model": loading.model, "adapter": loading.adapter}
    job = PredictionJob(output, read_inputs(source), identity, paths, arguments.retry_failed)

    def start(device: str) -> "Predictor":
        from humanomni.inference import Predictor
        from humanomni.sampling import Sampling

        sampling = Sampling(settings.n, settings.temperatures, settings.top_p, settings.top_k, settings.seed)
        return Predictor(
            loading,
            modality=settings.modal,
            sampling=sampling,
            max_new_tokens=settings.max_new_tokens,
            device=arguments.device or device,
            clip_cache=arguments.clip_cache,
        )

    def clip_of(record: Record) -> Path:
        return resolve_video(record.video, source, arguments.data_root)

    if run_rank(job, start, clip_of, batch_size=arguments.batch_size, num_workers=arguments.num_workers):
        summary = summary_text(read_candidates(output))
        write_whole(summary_path(output), [summary])
        sys.stdout.write(summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML, such as configs/caemer/candidates.yaml")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that overrides the file's")
    add("--model_path", type=Path, required=True, help="native HumanOmni folder, or a LoRA adapter's")
    add("--input_jsonl", type=Path, required=True, help="records whose gpt turn is the label; may be gzipped")
    add("--output_dir", type=Path, required=True)
    add("--data_root", type=Path, help="folder of relative clip paths (the input's)")
    add("--batch_size", type=int, default=64, help="candidates of a batch, a process (%(default)s)")
    add("--num_workers", type=int, help="processes that decode clips (one a core)")
    add("--clip_cache", type=Path, help="folder for decoded clips, shared with training")
    add_load_arguments(parser)
    add_retry_argument(parser)
    return parser


if __name__ == "__main__":
    main()
