"""Splitting an explanation into sentences."""

import re
from collections.abc import Callable
from typing import Literal

import sentencex

SplitterName = Literal["sentencex", "punkt"]

_LANGUAGE = "en"
_SPACE = re.compile(r"\s+")
# A stop with its closing quotes, then white space. No stop are an ellipsis and the point of an initial ("A. Smith").
_PUNKT_STOP = re.compile(r"""(?<!\.)(?:(?<!\b[^\W\d_])\.|[?!]+|\.(?=["')\]}]*\s+[^A-Z]))["')\]}]*\s+""")


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` in order, white space folded, none blank."""
    sentences = []
    for line in text.splitlines():
        sentences += [_SPACE.sub(" ", part).strip() for part in sentencex.segment(_LANGUAGE, line)]
    return [sentence for sentence in sentences if sentence]


def split_punkt(text: str) -> list[str]:
    """Sentences as an untrained Punkt splitter gives them, which the authors' release uses.

    It breaks at abbreviations and at numbered points. Sentence counts, and with them weighted means, then agree with
    published ones; `split_sentences` is nearer to what people call a sentence.
    """
    text = text.strip()
    starts = [0, *(match.end() for match in _PUNKT_STOP.finditer(text)), len(text)]
    sentences = [text[start:end].strip() for start, end in zip(starts, starts[1:], strict=False)]
    return [sentence for sentence in sentences if sentence]


SPLITTERS: dict[SplitterName, Callable[[str], list[str]]] = {"sentencex": split_sentences, "punkt": split_punkt}
