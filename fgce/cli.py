"""Command line of the evaluator.

Serve a judge, then score a file through it or, without a URL, in this process:
    python -m fgce serve --config configs/fgce/lexicon.yaml --port 8000
    python -m fgce score predictions.jsonl --output scores.jsonl --url http://127.0.0.1:8000
Compare two scorings, recompute a run's rewards, check a rubric of your own:
    python -m fgce agreement scores.jsonl people.csv
    python -m fgce replay runs/fgce/audit.jsonl
    python -m fgce rubric my_rubric.yaml --prompts fast
"""

import argparse
import logging
from collections.abc import Sequence

from fgce.audit import AuditError
from fgce.cache import CacheError
from fgce.commands import agreement, replay, rubric, score, serve
from fgce.config import ConfigError
from fgce.logs import setup_logging
from fgce.rubric import RubricError
from fgce.score_file import InputError

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status: 0, 2 with a message for what the user can mend, or the command's."""
    parser = argparse.ArgumentParser(prog="python -m fgce", description="Fine-Grained Coherence Evaluator")
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    parser.add_argument("--log-json", action="store_true", help="log a JSON object a line")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (serve, score, agreement, replay, rubric):
        command.add_to(commands)
    args = parser.parse_args(argv)
    setup_logging(args.log_level, json_lines=args.log_json)
    try:
        return args.run(args)
    except (ConfigError, RubricError, CacheError, AuditError, InputError) as error:
        logger.error("%s", error)
        return 2
