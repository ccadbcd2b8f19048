"""python -m fgce score: the explanations of a file."""

import argparse
import asyncio
from pathlib import Path

from fgce.client import FgceClient
from fgce.commands import add_config_arguments, show
from fgce.config import load_config
from fgce.score_file import Columns, score_file
from fgce.service import make_scorer


def add_to(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser("score", help="score the explanations of a JSONL or CSV file")
    add_config_arguments(parser)
    parser.add_argument("input", type=Path, help=".jsonl or .csv; the outputs of HumanOmni and R1-Omni are recognised")
    parser.add_argument("--output", type=Path, required=True, help="JSONL, one result a line; a second run resumes")
    parser.add_argument("--url", help="server to ask; without it the configured judge runs in this process")
    parser.add_argument("--explanation", help="column of the explanation, where it is not recognised")
    parser.add_argument("--emotion", help="column of the predicted emotion, where it is not recognised")
    parser.add_argument("--id", default="id", help="column of the id (default: %(default)s); else the line number")
    parser.add_argument("--batch", type=int, default=64, help="explanations a request (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    columns = Columns(args.id, args.explanation, args.emotion)
    show(asyncio.run(_score(args, columns)))
    return 0


async def _score(args: argparse.Namespace, columns: Columns) -> dict:
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.url:
        client = FgceClient(args.url)
        return await score_file(args.input, args.output, columns, client.score_request, batch_size=args.batch)
    scorer = make_scorer(load_config(args.config, args.set))
    try:
        return await score_file(args.input, args.output, columns, scorer.score, batch_size=args.batch)
    finally:
        await scorer.aclose()
