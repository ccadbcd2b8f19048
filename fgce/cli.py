"""Command line of the evaluator.

Serve a judge, then score a file through it or, without a URL, in this process:
    python -m fgce serve --config configs/fgce/lexicon.yaml --port 8000
    python -m fgce score predictions.jsonl --output scores.jsonl --url http://127.0.0.1:8000
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fgce.audit import AuditError
from fgce.cache import CacheError
from fgce.client import FgceClient
from fgce.config import ConfigError, FgceConfig, load_config
from fgce.rubric import RubricError
from fgce.score_file import Columns, InputError, score_file
from fgce.server import serve
from fgce.service import make_scorer

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, or 2 with a message for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m fgce", description="Fine-Grained Coherence Evaluator")
    commands = parser.add_subparsers(dest="command", required=True)
    _serve_parser(commands)
    _score_parser(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("httpx", "uvicorn.error"):  # they log every request and the stages of starting
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        args.run(args, load_config(args.config, args.set))
    except (ConfigError, RubricError, CacheError, AuditError, InputError) as error:
        logger.error("%s", error)
        return 2
    return 0


def _add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="YAML file of settings, such as configs/fgce/lexicon.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that overrides the file's"
    )


def _serve_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("serve", help="serve a judge over HTTP")
    _add_config_arguments(parser)
    parser.add_argument("--host", help="address to bind (default: the configuration's, which is loopback)")
    parser.add_argument("--port", type=int, help="port to bind; 0 takes a free one and logs it")
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace, config: FgceConfig) -> None:
    given = {key: value for key in ("host", "port") if (value := getattr(args, key)) is not None}
    serve(config.model_copy(update=given))


def _score_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("score", help="score the explanations of a JSONL or CSV file")
    _add_config_arguments(parser)
    parser.add_argument("input", type=Path, help=".jsonl or .csv")
    parser.add_argument("--output", type=Path, required=True, help="JSONL, one result a line")
    parser.add_argument("--url", help="server to ask; without it the configured judge runs in this process")
    parser.add_argument("--explanation", default="think_text", help="column of the explanation (default: %(default)s)")
    parser.add_argument("--emotion", default="pred", help="column of the predicted emotion (default: %(default)s)")
    parser.add_argument("--id", default="id", help="column of the id (default: %(default)s); else the line number")
    parser.add_argument("--batch", type=int, default=64, help="explanations a request (default: %(default)s)")
    parser.set_defaults(run=_score)


def _score(args: argparse.Namespace, config: FgceConfig) -> None:
    score = FgceClient(args.url).score_request if args.url else make_scorer(config).score
    columns = Columns(args.id, args.explanation, args.emotion)
    summary = asyncio.run(score_file(args.input, args.output, columns, score, batch_size=args.batch))
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")
