"""python -m fgce rubric: checks a rubric file and shows what a judge that is a language model reads of it."""

import argparse
from pathlib import Path
from typing import get_args

from fgce.commands import show
from fgce.judges.protocols import ProtocolName, make_protocol
from fgce.rubric import DEFAULT_RUBRIC, load_rubric

_EXPLANATION = "Her brows are lowered. Overall, she is angry."


def add_to(commands: argparse._SubParsersAction) -> None:
    """Declares the command."""
    parser = commands.add_parser("rubric", help="check a rubric file, show its hash and its prompts")
    parser.add_argument("file", type=Path, nargs="?", default=DEFAULT_RUBRIC, help="default: the package's own")
    parser.add_argument("--prompts", choices=get_args(ProtocolName), help="show the prompts of this protocol")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    rubric = load_rubric(args.file)
    result = {
        **rubric.info.model_dump(),
        "functions": {name: label.weight for name, label in rubric.functions.items()},
        "modalities": {name: label.weight for name, label in rubric.modalities.items()},
    }
    if args.prompts:
        protocol = make_protocol(args.prompts, rubric)
        sentence = _EXPLANATION.split(". ")[0] + "."
        result["prompts"] = {"step 1": protocol.ask_label(sentence, _EXPLANATION).messages}
        for function in rubric.criteria.fine_grained:
            query = protocol.ask_rating(sentence, _EXPLANATION, function, "anger", "fine_grained", False)
            result["prompts"][f"step 2, {function}"] = query.messages
    show(result)
    return 0
