"""Measures recognition and coherence of one or more stages on the same clips, and writes the report.

    python scripts/evaluate.py --predictions sft=runs/sft/test.jsonl grpo1=runs/grpo1/test.jsonl \
        --ablations video=runs/grpo1/video.jsonl audio=runs/grpo1/audio.jsonl \
        --label_set toy --fgce_url http://127.0.0.1:8000 --data_root data/toy --output runs/evaluation

Writes to the output folder: summary.json (every figure), report.html (self-contained, no network), and
fgce_scores.jsonl and fgce_emotions.jsonl, from which a second evaluation takes what the judge has said before. Without
an FG-CE server the evaluation finishes, leaves coherence and consistency empty and says so; with --require_judge it
then exits with 1, once all is written. Ablations are the last stage's model, run with `inference_batch.py --modal`.
"""

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgce.client import FgceClient
from humanomni.evaluation.cards import MAX_CARDS, choose_samples, with_views
from humanomni.evaluation.clips import ClipPart, view_clips
from humanomni.evaluation.coherence import CoherenceScorer
from humanomni.evaluation.conveyed import EmotionNamer
from humanomni.evaluation.judged import JudgeChangedError
from humanomni.evaluation.predictions import Prediction, check_truths, count_failed, read_predictions
from humanomni.evaluation.report import render_report
from humanomni.evaluation.stage import Stage
from humanomni.evaluation.summary import evaluation_summary
from humanomni.evaluation.tables import comma_separated, markdown
from humanomni.labels import COMPOUND_SET, LABEL_SETS, normalise_compound, normalise_label, parse_label_set
from humanomni.prompts import MODALITIES
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
    """Reads the predictions, scores their explanations and writes what `--format` asks for.

    Raises:
        ConnectionError: under `--require_judge`, after writing, where no server answered for an explanation.
        RecordError, JudgeChangedError, OSError, ValueError: the inputs or the judge cannot be used; says why.
    """
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    stages = _read(arguments.predictions, "--predictions", arguments.label_set)
    ablated = _read(arguments.ablations, "--ablations", arguments.label_set)
    if unknown := ablated.keys() - MODALITIES.keys():
        raise ValueError(f"--ablations takes MEDIA=PATH, MEDIA one of {', '.join(MODALITIES)}, not {min(unknown)!r}")
    info = _stage_info(arguments.stage_info, list(stages))
    classes = _classes(arguments.label_set, [*stages.values(), *ablated.values()])
    for name, file in [*stages.items(), *ablated.items()]:
        check_truths(name, file.predictions, classes)
    client = FgceClient(arguments.fgce_url, deadline=FGCE_DEADLINE)
    scorer = CoherenceScorer(client, output / "fgce_scores.jsonl")
    namer = EmotionNamer(client, classes, output / "fgce_emotions.jsonl")

    def judged(name: str, file: _File, media: str = "video_audio") -> Stage:
        return Stage(
            name,
            file.predictions,
            scorer.score(file.predictions, name),
            namer.name(file.predictions, name),
            failed=count_failed(file.path),
            media=media,
            info=info.get(name, {}),
        )

    shown = [judged(name, file) for name, file in stages.items()]
    less = [judged(media, file, media) for media, file in ablated.items()]
    summary = evaluation_summary(shown, less, arguments.label_set, classes, scorer, namer, arguments.seed)
    _write(output / "summary.json", json.dumps(summary, indent=1))
    if "html" in arguments.format:
        samples = choose_samples(shown, arguments.max_cards)
        parts = _parts(stages, arguments.data_root)
        views = view_clips({sample["id"]: parts[sample["id"]] for sample in samples})
        _write(output / "report.html", render_report(summary, shown, with_views(samples, views)))
    if "md" in arguments.format:
        _write(output / "summary.md", markdown(summary))
    if "csv" in arguments.format:
        _write(output / "summary.csv", comma_separated(summary))
    if summary["fgce"]["message"]:
        log.warning(summary["fgce"]["message"])
    sys.stdout.write(markdown(summary))
    failure = scorer.failure or namer.failure
    if arguments.require_judge and failure and any(stage.lacks_answers for stage in [*shown, *less]):
        raise ConnectionError(f"--require_judge: FG-CE could not be asked ({failure}); {output} lacks its figures")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--predictions", nargs="+", required=True, metavar="STAGE=PATH", help="prediction files, oldest stage first")
    add("--ablations", nargs="+", default=[], metavar="MEDIA=PATH", help="the last stage's model shown only MEDIA")
    known = ", ".join([*LABEL_SETS, COMPOUND_SET])
    add("--label_set", required=True, help=f"{known}, or classes divided by commas")
    add("--output", type=Path, required=True, help="folder for summary.json, report.html and the kept scores")
    add("--fgce_url", help="FG-CE server (default: FGCE_URL, else http://$POD_IP:8000, else loopback)")
    add("--require_judge", action="store_true", help="exit with 1, after writing, where FG-CE could not be asked")
    add("--data_root", type=Path, help="folder of relative clip paths (default: each prediction file's own)")
    add("--stage_info", type=Path, help='JSON {"STAGE": {"seconds": 1.0, "log_history": [...]}} to show beside')
    add(
        "--format",
        nargs="+",
        choices=("html", "md", "json", "csv"),
        default=["html"],
        help="reports to write (default html); summary.json always is",
    )
    add("--max_cards", type=int, default=MAX_CARDS, help="clips with a card in the report (default %(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap intervals (default 0)")
    return parser


@dataclass(frozen=True)
class _File:
    path: Path
    predictions: list[Prediction]


def _read(named: list[str], flag: str, label_set: str) -> dict[str, _File]:
    """The files of `NAME=PATH` arguments, by name."""
    read_label = normalise_compound if label_set == COMPOUND_SET else normalise_label
    files: dict[str, _File] = {}
    for text in named:
        name, _, path = text.partition("=")
        if not (name and path):
            raise ValueError(f"{flag} takes NAME=PATH, not {text!r}")
        if name in files:
            raise ValueError(f"{flag} names {name!r} twice; give each file its own name")
        files[name] = _File(Path(path), read_predictions(Path(path), read_label))
    return files


def _classes(label_set: str, files: list[_File]) -> tuple[str, ...]:
    """The set's classes; of compound labels those that are true of a clip, single ones first."""
    if label_set != COMPOUND_SET:
        return parse_label_set(label_set)
    truths = {p.truth for file in files for p in file.predictions if p.truth is not None}
    return tuple(sorted(truths, key=lambda truth: (truth.count("_"), truth)))


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


def _parts(files: dict[str, _File], data_root: Path | None) -> dict[str, ClipPart]:
    """What the models were shown, by its id."""
    return {
        p.id: ClipPart(resolve_video(p.video, file.path, data_root), p.start, p.end)
        for file in files.values()
        for p in file.predictions
    }


def _write(path: Path, text: str) -> None:
    """Replaces the file at once, so that a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    log.info("wrote %s", path)


if __name__ == "__main__":
    main()
