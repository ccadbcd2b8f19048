"""Splitting an explanation into sentences."""

import re

import sentencex

_LANGUAGE = "en"
_SPACE = re.compile(r"\s+")


def split_sentences(text: str) -> list[str]:
    """Sentences of `text` in order, white space folded, none blank.

    The authors' release uses an untrained Punkt splitter, which breaks at every abbreviation; here
    sentencex, so sentence counts, and with them weighted means, can differ from published ones.
    """
    sentences = []
    for line in text.splitlines():
        sentences += [_SPACE.sub(" ", part).strip() for part in sentencex.segment(_LANGUAGE, line)]
    return [sentence for sentence in sentences if sentence]
