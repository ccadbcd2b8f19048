"""Converts a published HumanOmni checkpoint into a self-contained native folder, or back.

    python scripts/convert_checkpoint.py --legacy HumanOmni-0.5B --bert bert-base-uncased --output models/0.5B --verify
    python scripts/convert_checkpoint.py --to_legacy runs/grpo --base models/0.5B --output for_the_authors_code

The paths in the checkpoint's config.json are not looked at. SigLIP, Whisper and BERT are recognised by their tensors'
shapes when they are the published ones; --vision_tower and --audio_tower are needed when the checkpoint holds no tower
weights, and --bert for the gate's tokenizer. The folder remembers how its model is asked: by default as the authors'
inference program asks (--prompt_style, --frame_fit), with which published numbers were measured. Memory: the model and
one shard (or one mapped .bin file). The output must be a folder without weights.
"""

import argparse
import logging
import sys
from pathlib import Path

from humanomni.conversion import convert, to_legacy, verify
from humanomni.processing import FRAME_FITS
from humanomni.prompts import PROMPT_STYLES
from humanomni.weight_files import ConversionError

logger = logging.getLogger("convert_checkpoint")

_ONLY_WITH_LEGACY = ("vision_tower", "audio_tower", "bert", "prompt_style", "frame_fit", "verify")


def main() -> None:
    """Command line entry point."""
    parser = _parser()
    args = parser.parse_args()
    foreign = _ONLY_WITH_LEGACY if args.to_legacy else ("base",)
    if given := [f"--{name}" for name in foreign if getattr(args, name) != parser.get_default(name)]:
        parser.error(f"{', '.join(given)} means nothing with {'--to_legacy' if args.to_legacy else '--legacy'}")
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        if args.to_legacy:
            count = to_legacy(args.to_legacy, args.output, args.base)
            logger.info("wrote %d tensors under the authors' names into %s", count, args.output)
            return
        report = convert(
            args.legacy,
            args.output,
            args.vision_tower,
            args.audio_tower,
            args.bert,
            prompt_style=args.prompt_style,
            frame_fit=args.frame_fit,
        )
        if args.verify:
            count = verify(args.output, args.legacy, report)
            logger.info("verified: %d tensors are loaded with the checkpoint's values", count)
    except (ConversionError, OSError) as error:
        sys.exit(f"convert_checkpoint: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--legacy", type=Path, help="folder of a published checkpoint")
    source.add_argument("--to_legacy", type=Path, help="native folder to write as the authors' code reads it")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--vision_tower", type=Path, help="SigLIP's folder; its weights win over the checkpoint's")
    parser.add_argument("--audio_tower", type=Path, help="Whisper's folder; its weights win over the checkpoint's")
    parser.add_argument("--bert", type=Path, help="folder of bert-base-uncased, for the gate's tokenizer")
    parser.add_argument("--prompt_style", choices=tuple(PROMPT_STYLES), default="authors_inference")
    parser.add_argument("--frame_fit", choices=FRAME_FITS, default="squash", help="how frames become square")
    parser.add_argument("--verify", action="store_true", help="load the result and compare every tensor")
    parser.add_argument("--base", type=Path, help="with --to_legacy: the converted folder that training started from")
    return parser


if __name__ == "__main__":
    main()
