"""Compares this implementation with the authors' numbers on every checkpoint of a golden folder.

    python scripts/check_parity.py ../shared/golden --clips ../shared/clips     about a minute on two CPU cores

Converts each checkpoint, there and back, and prints a table of quantities. A quantity without its inputs is said to be
not checked. The exit status is 1 when a comparison fails, or nothing could be compared.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from humanomni.parity.forward import check_batch, check_clip, check_synthetic, check_units
from humanomni.parity.golden import GoldenSet, checkpoint_of, convert_golden
from humanomni.parity.table import Table
from humanomni.parity.training import check_grpo, check_sft

CHECKS = {
    "units": check_units,
    "synthetic": check_synthetic,
    "batch": check_batch,
    "SFT": check_sft,
    "GRPO": check_grpo,
}


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, metavar="GOLDEN_ROOT", help="holds checkpoints/, components-*/ and golden/")
    parser.add_argument("--clips", type=Path, help="folder of the clips; without it only stored media are compared")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    disable_progress_bar()
    for folder in (args.root, args.clips):
        if folder is not None and not folder.is_dir():
            sys.exit(f"check_parity: {folder} is no folder")
    table = Table()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as work:
        compare(args.root, args.clips, Path(work), table)
    sys.stdout.write(table.text() + "\n")
    if table.failed or all(row.status == "not checked" for row in table.rows):
        sys.exit(1)


def compare(root: Path, clips: Path | None, work: Path, table: Table) -> None:
    """Converts every checkpoint under ``root`` into ``work`` and compares every set of numbers with its own."""
    converted: dict[Path, Path] = {}
    for checkpoint in sorted((root / "checkpoints").glob("*/")):
        with table.section(checkpoint.name):
            native = work / checkpoint.name
            convert_golden(checkpoint, root, native, table)
            converted[checkpoint.resolve()] = native
    for folder in sorted((root / "golden").glob("*/")):
        with table.section(folder.name):
            checkpoint_path = checkpoint_of(folder, root)
            if checkpoint_path is None:
                table.not_checked("all", "no numbers of a model")
                continue
            golden = GoldenSet(folder, converted[checkpoint_path.resolve()], clips, table)
            for path in sorted(folder.glob("clip_*.json")):
                with table.section(path.stem):
                    check_clip(golden, path.stem)
            for name, check in CHECKS.items():
                with table.section(name):
                    check(golden)


if __name__ == "__main__":
    main()
