"""The commands of python -m fgce, a module each: `add_to` declares its arguments and what runs it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of commands that take settings."""
    parser.add_argument("--config", type=Path, help="YAML file of settings, such as configs/fgce/lexicon.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting that overrides the file's"
    )


def show(result: Any) -> None:
    """Prints a command's result."""
    sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
