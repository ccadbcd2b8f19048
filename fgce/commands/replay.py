"""python -m fgce replay: rewards recomputed from the audit log."""

import argparse
from dataclasses import asdict
from pathlib import Path

from fgce.commands import show
from fgce.replay import replay
from fgce.rubric import DEFAULT_RUBRIC, load_rubric


def add_to(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser("replay", help="recompute rewards from an audit log; exit status 1 if any differs")
    parser.add_argument("log", type=Path, help="the file that the server's `audit` setting names")
    parser.add_argument("--rubric", type=Path, default=DEFAULT_RUBRIC, help="rubric whose weights to take")
    parser.add_argument("--max-missing-share", type=float, default=0.5, help="as the server had it")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    rubric = load_rubric(args.rubric)
    records = list(replay(args.log, rubric, max_missing_share=args.max_missing_share))
    differences = [asdict(difference) for _, found in records for difference in found]
    others = sum(record.rubric.sha256 != rubric.info.sha256 for record, _ in records)
    show({"explanations": len(records), "scored_by_another_rubric": others, "differences": differences})
    return 1 if differences else 0
