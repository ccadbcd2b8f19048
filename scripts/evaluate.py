"""Measures recognition and coherence of one or more stages on the same clips, and writes the report.

    python scripts/evaluate.py --predictions sft=runs/sft/test.jsonl grpo1=runs/grpo1/test.jsonl \
        --label_set toy --fgce_url http://127.0.0.1:8000 --data_root data/toy --output runs/evaluation

Writes to the output folder: summary.json (every figure), report.html (self-contained, no network), and
fgce_scores.jsonl, from which a second evaluation takes the scores that it already has. Without an FG-CE
server the evaluation finishes, leaves coherence empty and says so.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from fgce.client import FgceClient
from humanomni.evaluation.clips import ClipView, view_clips
from humanomni.evaluation.coherence import CoherenceScorer, JudgeChangedError
from humanomni.evaluation.predictions import check_truths, count_failed, read_predictions
from humanomni.evaluation.report import render_report
from humanomni.evaluation.stage import Stage
from humanomni.evaluation.summary import evaluation_summary
from humanomni.evaluation.tables import comma_separated, markdown
from humanomni.labels import LABEL_SETS, parse_label_set
from humanomni.records import RecordError, resolve_video

log = logging.getLogger("evaluate")

FGCE_DEADLINE = 300.0  # seconds a batch may take: a 30B judge on a shared GPU needs minutes, not hours


def main() -> None:
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        evaluate(arguments)
    except (RecordError, JudgeChangedError, OSError, ValueError) as error:
        sys.exit(f"evaluate: {error}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Reads the predictions, scores their explanations and writes what `--format` asks for."""
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    files = dict(_named_path(text) for text in arguments.predictions)
    if len(files) < len(arguments.predictions):
        raise ValueError("--predictions names a stage twice; give each stage its own name")
    classes = parse_label_set(arguments.label_set)
    info = _stage_info(arguments.stage_info, list(files))
    predictions = {name: read_predictions(path) for name, path in files.items()}
    for name in files:
        check_truths(name, predictions[name], classes)
    client = FgceClient(arguments.fgce_url, deadline=FGCE_DEADLINE)
    scorer = CoherenceScorer(client, output / "fgce_scores.jsonl")
    stages = [
        Stage(
            name,
            predictions[name],
            scorer.score(predictions[name], name),
            count_failed(path),
            info.get(name, {}),
        )
        for name, path in files.items()
    ]
    summary = evaluation_summary(stages, arguments.label_set, classes, scorer, arguments.seed)
    _write(output / "summary.json", json.dumps(summary, indent=1))
    if "html" in arguments.format:
        _write(output / "report.html", render_report(summary, stages, _views(files, stages, arguments.data_root)))
    if "md" in arguments.format:
        _write(output / "summary.md", markdown(summary))
    if "csv" in arguments.format:
        _write(output / "summary.csv", comma_separated(summary))
    if summary["fgce"]["message"]:
        log.warning(summary["fgce"]["message"])
    sys.stdout.write(markdown(summary))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--predictions", nargs="+", required=True, metavar="STAGE=PATH", help="prediction files, oldest stage first")
    add("--label_set", required=True, help=f"{', '.join(LABEL_SETS)}, or classes divided by commas")
    add("--output", type=Path, required=True, help="folder for summary.json, report.html and the kept scores")
    add("--fgce_url", help="FG-CE server (default: FGCE_URL, else http://$POD_IP:8000, else loopback)")
    add("--data_root", type=Path, help="folder of relative clip paths (default: each prediction file's own)")
    add("--stage_info", type=Path, help='JSON {"STAGE": {"seconds": 1.0, "log_history": [...]}} to show beside')
    add(
        "--format",
        nargs="+",
        choices=("html", "md", "json", "csv"),
        default=["html"],
        help="reports to write (default html); summary.json always is",
    )
    add("--seed", type=int, default=0, help="of the bootstrap intervals (default 0)")
    return parser


def _named_path(text: str) -> tuple[str, Path]:
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise ValueError(f"--predictions takes STAGE=PATH, not {text!r}")
    return name, Path(path)


def _stage_info(path: Path | None, names: list[str]) -> dict[str, dict[str, Any]]:
    if path is None:
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    unknown = sorted(info.keys() - set(names))
    if unknown:
        raise ValueError(f"{path}: unknown stages {', '.join(unknown)}; --predictions names {', '.join(names)}")
    return info


def _views(files: dict[str, Path], stages: list[Stage], data_root: Path | None) -> dict[str, ClipView]:
    paths = {
        prediction.id: resolve_video(prediction.video, files[stage.name], data_root)
        for stage in stages
        for prediction in stage.predictions
    }
    return view_clips(paths)


def _write(path: Path, text: str) -> None:
    """Replaces the file at once, so that a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    log.info("wrote %s", path)


if __name__ == "__main__":
    main()
