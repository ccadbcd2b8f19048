"""Command line of the evaluator: python -m fgce serve | score | agreement | replay | rubric."""

import sys

from fgce.cli import main

if __name__ == "__main__":
    sys.exit(main())
