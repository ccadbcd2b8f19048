"""python -m fgce agreement: two scorings, or a scoring and people's labels."""

import argparse
from pathlib import Path

from fgce.agreement import agreement
from fgce.commands import show


def add_to(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser("agreement", help="how far two scorings agree, or a scoring and people")
    form = "JSONL of `score`, or CSV with the columns id, sentence (from 0), function, modality, score"
    parser.add_argument("first", type=Path, help=form)
    parser.add_argument("second", type=Path, help="the same of another judge, protocol or person")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    show(agreement(args.first, args.second))
    return 0
