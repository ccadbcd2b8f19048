"""What a model wrote: `<think>explanation</think><answer>emotion</answer>`, taken apart in one place.

Rewards, inference and evaluation all read completions through `parse_completion`, so they cannot disagree.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from humanomni.labels import normalise_label

_PATTERN = re.compile(r"<think>.*?</think>\s*<answer>(?P<answer>.*?)</answer>", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL | re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Completion:
    """A completion's parts.

    Attributes:
        think: the first think block, stripped; None without a closed one.
        answer: the answer right after a think block, else the first answer block, stripped; None without one.
        holds_pattern: somewhere in the text an answer block follows a think block, only white space between.
        well_formed: the whole text matches that pattern, outer white space included (the `format` reward).
    """

    think: str | None
    answer: str | None
    holds_pattern: bool
    well_formed: bool


def parse_completion(text: str) -> Completion:
    """Takes a completion apart. Tags in another case are read but do not count as the format."""
    ordered = _PATTERN.search(text)
    think, first_answer = _THINK.search(text), _ANSWER.search(text)
    answer = ordered["answer"] if ordered else first_answer and first_answer[1]
    return Completion(
        think=None if think is None else think[1].strip(),
        answer=None if answer is None else answer.strip(),
        holds_pattern=ordered is not None,
        well_formed=_PATTERN.fullmatch(text) is not None,
    )


def label_of(text: str, read_label: Callable[[str], str | None] = normalise_label) -> str | None:
    """The canonical emotion of a truth: a bare label, "<answer> LABEL </answer>" or a whole SFT target."""
    answer = parse_completion(text).answer
    return read_label(_TAG.sub(" ", text) if answer is None else answer)


def is_correct(completion: str, truth: str) -> bool:
    """The `accuracy` reward's condition: the pattern occurs and its answer means the same emotion as `truth`.

    The authors' release also accepts equal answers that name no emotion ("3" for 3); here those are wrong.
    """
    parsed = parse_completion(completion)
    if not parsed.holds_pattern or parsed.answer is None:
        return False
    answer = normalise_label(parsed.answer)
    return answer is not None and answer == label_of(truth)
