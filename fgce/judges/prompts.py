"""What a judge that is a language model is asked, from the rubric's prompts.

The instructions are the system message and the same for all sentences (of a function); explanation, emotion and, last,
the sentence are the user message. Judged text is escaped and stands between tags that it therefore cannot close.
"""

import unicodedata
from string import Template
from typing import get_args

from fgce.rubric import Rubric
from fgce.schema import Function, Modality, ScoreMode

Messages = list[dict[str, str]]

# The fast protocol's codes; the digits follow the order of the modalities.
FUNCTION_CODES: dict[Function, str] = {
    "information extraction": "E",
    "information analysis": "A",
    "conclusion": "C",
    "others": "O",
}
MODALITY_CODES: dict[Modality, str] = {name: str(i) for i, name in enumerate(get_args(Modality), start=1)}

_LONGEST_EMOTION = 100  # characters; a label is shorter, and what is longer is no label
_KEPT_CONTROLS = "\n\t"


def escape(text: str) -> str:
    """Judged text as data: angle brackets and ampersands as entities, control and invisible characters dropped.

    Tags cannot be closed with it, and a chat template's special tokens such as <|im_end|> are plain text.
    """
    kept = (char for char in text if char in _KEPT_CONTROLS or unicodedata.category(char)[0] != "C")
    return "".join(kept).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def label_messages(rubric: Rubric, sentence: str, explanation: str, answer: str, *, codes: bool) -> Messages:
    """Step 1. `answer` is how to answer; with `codes` the labels carry the fast protocol's letters and digits."""
    functions = [
        (f"{FUNCTION_CODES[name]} = {name}" if codes else name, label.definition)
        for name, label in rubric.functions.items()
    ]
    modalities = [
        (f"{MODALITY_CODES[name]} = {name}" if codes else name, label.definition)
        for name, label in rubric.modalities.items()
    ]
    instructions = Template(rubric.prompts.label).substitute(
        functions=_listed(functions),
        modalities=_listed(modalities),
        modality_rules="\n".join(rubric.modality_rules),
        guard=rubric.prompts.guard,
        answer=answer,
    )
    return tagged_messages(instructions, explanation=explanation, sentence=sentence)


def rate_messages(
    rubric: Rubric,
    sentence: str,
    explanation: str,
    function: Function,
    predicted_emotion: str,
    answer: str,
    *,
    mode: ScoreMode,
) -> Messages:
    """Step 2. The conclusion's rubric sees only its sentence, the others' see the whole explanation."""
    criteria = [(str(score), text) for score, text in rubric.levels(mode, function).items()]
    instructions = Template(rubric.prompts.rate).substitute(
        function=function,
        definition=rubric.functions[function].definition,
        criteria=_listed(criteria),
        scoring_rules="\n".join(rubric.scoring_rules),
        guard=rubric.prompts.guard,
        answer=answer,
    )
    judged = {"predicted_emotion": predicted_emotion[:_LONGEST_EMOTION], "sentence": sentence}
    if function != "conclusion":
        judged = {"explanation": explanation} | judged
    return tagged_messages(instructions, **judged)


def _listed(entries: list[tuple[str, str]]) -> str:
    return "\n".join(f"- {name}: {text}" for name, text in entries)


def tagged_messages(instructions: str, **judged: str) -> Messages:
    """The instructions, and each judged text between tags of its name."""
    tagged = (f"<{tag}>\n{escape(text)}\n</{tag}>" for tag, text in judged.items())
    return [{"role": "system", "content": instructions.strip()}, {"role": "user", "content": "\n".join(tagged)}]
