"""Makes the data of the RFT stage from candidates: FG-CE-guided filter, reassemble, re-evaluate.

    python scripts/build_rft.py --config configs/caemer/rft.yaml --candidates runs/candidates/grpo_train.jsonl \
        --records data/grpo_train.jsonl --cold_start data/sft_train.jsonl --output_dir runs/rejection \
        --fgce_url http://127.0.0.1:8000

Writes to OUTPUT_DIR:

    rft.jsonl                 SFT records with provenance, and the cold-start records beside them
    outcomes.jsonl            what became of each clip
    yield.json, yield.md      the yield report
    scores*.jsonl             the judges' scores: an interrupted run goes on from them, and asks nothing twice

The same inputs, settings and judge give the same bytes. Without a judge that answers nothing is written but the scores
that it gave, and the exit status is 1. --second_judge URL has the results judged by another server too.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fgce.client import FgceClient
from fgce.config import ConfigError, load_settings
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.judged import JudgeChangedError
from humanomni.records import Record, RecordError, read_records, write_whole
from humanomni.rft.candidates import SampledClip, read_candidates
from humanomni.rft.dataset import as_line, cold_start_records, rft_records
from humanomni.rft.judging import JudgeFailedError, StrictJudge
from humanomni.rft.selection import decide
from humanomni.rft.settings import RftSettings
from humanomni.rft.yield_report import as_markdown, outcome_line, yield_report

logger = logging.getLogger("build_rft")

FGCE_DEADLINE = 300.0  # seconds a batch may take, as in evaluation


def main() -> None:
    """Command line entry point."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        build(arguments, load_settings(RftSettings, arguments.config, arguments.set))
    except (ConfigError, RecordError, JudgeFailedError, JudgeChangedError, OSError) as error:
        sys.exit(f"build_rft: {error}")


def build(arguments: argparse.Namespace, settings: RftSettings) -> None:
    """Reads candidates and records, decides on every clip, writes data and report.

    Raises:
        RecordError: candidates and records do not belong together, or a line of them cannot be used.
        JudgeFailedError: a judge left texts without a score.
    """
    output: Path = arguments.output_dir
    output.mkdir(parents=True, exist_ok=True)
    clips = read_candidates(arguments.candidates)
    records = {one.id: one for one in read_records(arguments.records) if isinstance(one, Record)}
    _check_same_clips(clips, records, arguments)
    judge = _judge(arguments.fgce_url, output / "scores.jsonl", "FG-CE")
    second = None
    if arguments.second_judge:
        second = _judge(arguments.second_judge, output / "scores.second.jsonl", "the second judge")
    silent = frozenset(one.id for one in records.values() if one.extra.get("has_audio") is False)
    decisions = decide(clips, silent, judge, second, settings)

    made = rft_records(decisions, records, judge)
    lines = [as_line(record, arguments.records, arguments.data_root, output) for record in made]
    cold = None
    if arguments.cold_start and settings.cold_start_share:
        wanted = round(len(made) * settings.cold_start_share / (1 - settings.cold_start_share))
        more, cold = cold_start_records(arguments.cold_start, wanted, judge, settings)
        lines += [as_line(record, arguments.cold_start, arguments.data_root, output) for record in more]
    judges = {"first": judge.identity, "second": second.identity if second else None}
    report = yield_report(decisions, cold, judges, settings)
    write_whole(output / "outcomes.jsonl", _json_lines(outcome_line(one) for one in decisions))
    write_whole(output / "yield.json", [json.dumps(report, indent=1, ensure_ascii=False) + "\n"])
    write_whole(output / "yield.md", [as_markdown(report)])
    write_whole(output / "rft.jsonl", lines)
    logger.info("%d of %d clips kept; see %s", report["kept"], report["clips"], output / "yield.md")
    if not made:
        raise RecordError(f"no clip came through, so {output / 'rft.jsonl'} holds none; {output / 'yield.md'} says why")


def _judge(url: str | None, scores: Path, name: str) -> StrictJudge:
    return StrictJudge(CoherenceScorer(FgceClient(url, deadline=FGCE_DEADLINE), scores, reasons=False), name)


def _check_same_clips(clips: list[SampledClip], records: Mapping[str, Record], arguments: argparse.Namespace) -> None:
    strangers = [clip.id for clip in clips if clip.id not in records]
    if strangers:
        raise RecordError(
            f"{arguments.candidates}: {len(strangers)} clips are not in {arguments.records}, the first is "
            f"{strangers[0]}; give --records the file that the candidates were sampled for"
        )


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML, such as configs/caemer/rft.yaml")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that overrides the file's")
    add("--candidates", type=Path, required=True, help="output of scripts/sample_candidates.py")
    add("--records", type=Path, required=True, help="the records that the candidates were sampled for")
    add("--cold_start", type=Path, help="SFT records of the first stage, of which some are mixed in")
    add("--output_dir", type=Path, required=True)
    add("--data_root", type=Path, help="folder of relative clip paths (each file's own)")
    add("--fgce_url", help="FG-CE server (default: FGCE_URL, else http://$POD_IP:8000, else loopback)")
    add("--second_judge", metavar="URL", help="another FG-CE server, which guards against over-fitting to the first")
    return parser


if __name__ == "__main__":
    main()
