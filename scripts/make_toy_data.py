"""Makes the toy world: short mp4 clips of cartoon faces with voices, and the records that training reads.

    python scripts/make_toy_data.py --output data/toy    # 640 + 56 + 112 clips, 30 s on 2 cores
    python scripts/make_toy_data.py --output data/smoke --train 70 --val 14 --test 28 --seed 1

`<output>/` then holds clips/*.mp4, sft_{train,val}.jsonl (explanations), {grpo_train,val,test}.jsonl (labels
only) and world.json, the truth about every clip. The same flags give the same files; a second run does
nothing, and an interrupted one is continued.
"""

import argparse
import logging
import sys
import time
from dataclasses import fields
from pathlib import Path

from toy_world.build import build_world
from toy_world.world import WorldError, WorldSpec

logger = logging.getLogger("make_toy_data")

_HELP = {
    "train": "training clips, used by SFT and GRPO alike",
    "val": "validation clips",
    "test": "held-out clips; no actor of theirs is in another split",
    "seed": "decides everything about the world",
    "flaw_rate": "share of explanations with an irrelevant sentence, and of those without a conclusion; "
    "half of it names a cue that contradicts the emotion",
}


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Makes the toy world of clips and records.")
    parser.add_argument("--output", type=Path, required=True, help="folder to fill")
    for field in fields(WorldSpec):
        parser.add_argument(
            f"--{field.name}",
            type=field.type,
            default=field.default,
            help=f"{_HELP[field.name]} (%(default)s)",
        )
    arguments = vars(parser.parse_args())
    output = arguments.pop("output")
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    start = time.monotonic()
    try:
        rendered = build_world(WorldSpec(**arguments), output)
    except WorldError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    logger.info("%s is complete: %d clips rendered in %.1f s", output, rendered, time.monotonic() - start)


if __name__ == "__main__":
    main()
