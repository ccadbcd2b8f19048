"""Hacking monitors: figures that move when a policy learns to please FG-CE instead of to explain.

S_coh can be raised without better explanations: by naming three modalities in every sentence (weight 3), by many
conclusions (weight 2), by repeating the emotion, by speaking to the judge. Log these figures beside the reward and
look at any that drifts while S_coh rises.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fgce.judges.lexicon import LEXICON
from fgce.judges.lexicon_data import Lexicon, fold, load_lexicon, tokens_of
from fgce.schema import ExplanationScore, SentenceScore


@dataclass(frozen=True)
class Monitors:
    """Means over explanations that have sentences, but for `explanations` and `missing_share`.

    Attributes:
        explanations: how many were looked at.
        missing_share: explanations without a score.
        sentences: sentences an explanation.
        words: words an explanation.
        others_share: sentences that are neither cue, reading nor conclusion.
        conclusions: conclusions an explanation.
        trimodal_share: sentences that claim audio, visual and contextual evidence at once.
        repeated_share: sentences that stand in the same explanation before.
        emotion_repeats: how often the most frequent emotion is named in an explanation (English words).
        addressed_share: sentences that speak to a judge (English patterns of the lexicon judge).
    """

    explanations: int
    missing_share: float
    sentences: float = 0.0
    words: float = 0.0
    others_share: float = 0.0
    conclusions: float = 0.0
    trimodal_share: float = 0.0
    repeated_share: float = 0.0
    emotion_repeats: float = 0.0
    addressed_share: float = 0.0


def monitor(results: Sequence[ExplanationScore]) -> Monitors:
    """The figures of a batch of results, by whatever judge."""
    missing = sum(result.status == "missing" for result in results)
    missing_share = missing / len(results) if results else 0.0
    explained = [result.sentences for result in results if result.sentences]
    if not explained:
        return Monitors(len(results), missing_share)
    lexicon = load_lexicon(LEXICON)
    folded = [[fold(sentence.text) for sentence in sentences] for sentences in explained]
    return Monitors(
        explanations=len(results),
        missing_share=missing_share,
        sentences=fmean(len(sentences) for sentences in explained),
        words=fmean(sum(len(text.split()) for text in texts) for texts in folded),
        others_share=fmean(_share(sentences, "others") for sentences in explained),
        conclusions=fmean(sum(s.function == "conclusion" for s in sentences) for sentences in explained),
        trimodal_share=fmean(
            sum(s.modality == "audio-visual-contextual" for s in sentences) / len(sentences) for sentences in explained
        ),
        repeated_share=fmean(1 - len(set(texts)) / len(texts) for texts in folded),
        emotion_repeats=fmean(_emotion_repeats(texts, lexicon) for texts in folded),
        addressed_share=fmean(
            sum(bool(lexicon.addressed.search(text)) for text in texts) / len(texts) for texts in folded
        ),
    )


def _share(sentences: Sequence[SentenceScore], function: str) -> float:
    return sum(sentence.function == function for sentence in sentences) / len(sentences)


def _emotion_repeats(texts: Sequence[str], lexicon: Lexicon) -> int:
    named = Counter(
        tag.name
        for text in texts
        for hit in lexicon.phrases.hits(tokens_of(text))
        for tag in hit.tags
        if tag.kind in {"emotion", "related"}
    )
    return max(named.values(), default=0)
