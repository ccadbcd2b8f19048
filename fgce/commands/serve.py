"""python -m fgce serve: a judge over HTTP."""

import argparse

from fgce.commands import add_config_arguments
from fgce.config import load_config
from fgce.server import serve


def add_to(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser("serve", help="serve a judge over HTTP")
    add_config_arguments(parser)
    parser.add_argument("--host", help="address to bind (default: the configuration's, which is loopback)")
    parser.add_argument("--port", type=int, help="port to bind; 0 takes a free one and logs it")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    given = [f"{key}={getattr(args, key)}" for key in ("host", "port") if getattr(args, key) is not None]
    serve(load_config(args.config, [*args.set, *given]))
    return 0
