"""Reassemble: an explanation from the best sentences, in an order and with words that make it read as one text."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from humanomni.rft import wording
from humanomni.rft.sentences import Sentence
from humanomni.rft.settings import RftSettings

CHAIN = ("information extraction", "information analysis", "conclusion")
_READING_ORDER = ("visual", "audio", "contextual")  # as most explanations of the cold start go


@dataclass(frozen=True)
class Reassembly:
    """A new explanation.

    Attributes:
        text: it.
        sentences: where each of its sentences comes from, in order.
    """

    text: str
    sentences: tuple[Sentence, ...]


def reassemble(kept: Sequence[Sentence], evidence: set[str], settings: RftSettings) -> Reassembly | None:
    """An explanation out of a clip's filtered sentences; None where a link of the chain is not among them.

    Args:
        kept: best first.
        evidence: modalities to cover, where sentences for them are there.
    """
    extractions = _choose(kept, CHAIN[0], evidence, settings.max_extractions)
    analyses = _choose(kept, CHAIN[1], evidence, settings.max_analyses, only_new=True)
    conclusions = [one for one in kept if one.function == CHAIN[2]]
    if not (extractions and analyses and conclusions):
        return None
    told = frozenset[str]().union(*(one.modalities for one in (*extractions, *analyses)))
    # One that sums up a voice of which nothing was said does not follow; where all do, the best of them must serve.
    conclusion = next((one for one in conclusions if one.modalities <= told | {"contextual"}), conclusions[0])
    chosen = [*sorted(extractions, key=_reading_order), *sorted(analyses, key=_reading_order), conclusion]
    return Reassembly(_as_text(chosen, settings), tuple(chosen))


def _choose(
    sentences: Sequence[Sentence], function: str, evidence: set[str], most: int, only_new: bool = False
) -> list[Sentence]:
    """The best sentence, then the best for each modality that is not covered yet, then, unless `only_new`, the rest."""
    pool = [one for one in sentences if one.function == function]
    chosen = pool[:1]
    for part in (part for part in _READING_ORDER if part in evidence):
        if len(chosen) < most and not any(part in one.modalities for one in chosen):
            chosen += [one for one in pool if part in one.modalities][:1]
    if not only_new:
        chosen += [one for one in pool if one not in chosen][: most - len(chosen)]
    return chosen


def _reading_order(sentence: Sentence) -> tuple[int, int, int]:
    """By modality, a compound after what it is made of; within one as in the source."""
    places = [_READING_ORDER.index(part) for part in sentence.modalities]
    return (max(places, default=len(_READING_ORDER)), len(places), sentence.position)


def _as_text(chosen: Sequence[Sentence], settings: RftSettings) -> str:
    texts = [one.text if one.function == CHAIN[2] else wording.without_connective(one.text) for one in chosen]
    texts[0] = wording.with_antecedent(texts[0])
    for index, (before, one) in enumerate(pairwise(chosen), start=1):
        if one.function == CHAIN[0] and not one.modalities & before.modalities:
            texts[index] = wording.after(settings.between_modalities, texts[index])
        if one.function == CHAIN[2] and not wording.concludes(one.text):
            texts[index] = wording.after(settings.before_conclusion, texts[index])
    return " ".join(wording.finished(text) for text in texts)
