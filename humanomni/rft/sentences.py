"""Filter: the sentences of a clip's right candidates that are worth keeping, and why the others are not."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgce.schema import ExplanationScore, Modality, SentenceScore
from humanomni.rft import wording
from humanomni.rft.candidates import Candidate
from humanomni.rft.settings import RftSettings
from humanomni.rft.wording import words_of

# Words that tell nothing by themselves: two sentences may share them and say different things.
_FUNCTION_WORDS = frozenset(
    {"a", "an", "the", "and", "or", "but", "of", "in", "on", "at", "to", "from", "with", "by", "for", "as", "also"}
    | {"is", "are", "was", "were", "be", "been", "being", "there", "which", "while", "very", "this", "that", "these"}
    | {"those", "it", "its", "he", "she", "they", "his", "her", "their", "him", "them", "person", "person's", "man"}
    | {"woman", "speaker", "character"}
)
_HE, _SHE = frozenset({"he", "him", "his", "himself"}), frozenset({"she", "her", "hers", "herself"})


@dataclass(frozen=True)
class Sentence:
    """A sentence of a right candidate, with its score.

    Attributes:
        source: the candidate's index.
        position: its number in the candidate's explanation, from 0.
        agreement: share of the clip's right candidates that hold the same sentence, in (0, 1].
        score: the judge's answers; a score is there.
    """

    source: int
    position: int
    agreement: float
    score: SentenceScore

    @property
    def text(self) -> str:
        return self.score.text

    @property
    def function(self) -> str:
        return str(self.score.function)

    @property
    def modalities(self) -> frozenset[str]:
        return parts_of(self.score.modality)

    @property
    def rank(self) -> tuple[float, float, float, float, int, int]:
        """Sorts the best first: score, the judge's finer score, agreement, weight; then as sampled."""
        score, expected = float(self.score.score or 0), self.score.expected
        return (
            -score,
            -(score if expected is None else expected),
            -self.agreement,
            -self.score.weight,
            self.source,
            self.position,
        )


def parts_of(modality: Modality | None) -> frozenset[str]:
    """A compound modality's parts: {"audio", "visual"} of "audio-visual"."""
    return frozenset(modality.split("-")) if modality else frozenset()


def filter_sentences(
    scored: Sequence[tuple[Candidate, ExplanationScore]], has_audio: bool, settings: RftSettings
) -> tuple[list[Sentence], Counter[str]]:
    """The sentences that pass, best first, and how many fell for which reason.

    Args:
        scored: a clip's right candidates with their scores.
        has_audio: whether the clip has sound; without it no sentence can be right to cite what is heard.
    """
    dropped: Counter[str] = Counter()
    holders = Counter(key for _, score in scored for key in {_key(s.text) for s in score.sentences})
    minority = _minority_pronouns(s.text for _, score in scored for s in score.sentences)
    passed = []
    for candidate, score in scored:
        for position, sentence in enumerate(score.sentences):
            if reason := _fault(sentence, has_audio, minority, settings):
                dropped[reason] += 1
            else:
                agreement = holders[_key(sentence.text)] / len(scored)
                passed.append(Sentence(candidate.index, position, agreement, sentence))
    kept: list[Sentence] = []
    for one in sorted(passed, key=lambda sentence: sentence.rank):
        if any(_rivals(one, other) and overlap(one.text, other.text) >= settings.near_duplicate for other in kept):
            dropped["near_duplicate"] += 1
        else:
            kept.append(one)
    return kept, dropped


def _rivals(one: Sentence, other: Sentence) -> bool:
    """Whether they compete for a place. One conclusion is taken, so those of other modalities are a choice to make."""
    if one.function != other.function:
        return False
    return one.function != "conclusion" or one.modalities == other.modalities


def _fault(sentence: SentenceScore, has_audio: bool, minority: frozenset[str], settings: RftSettings) -> str | None:
    """Why a sentence cannot be used, by name; None where it can."""
    if sentence.status == "missing":
        return "not_scored"
    if sentence.function == "others" or sentence.score is None:
        return "others"
    if sentence.score < settings.min_sentence_score:
        return "low_score"
    if "audio" in parts_of(sentence.modality) and not has_audio:
        return "cites_sound_of_a_silent_clip"
    if wording.points_nowhere(sentence.text, sentence.function):
        return "points_nowhere"
    if minority & set(words_of(sentence.text)):
        return "speaks_of_another_person"
    if wording.is_broken(sentence.text):
        return "broken"
    return None


def evidence(scored: Sequence[tuple[Candidate, ExplanationScore]], kept: Sequence[Sentence], share: float) -> set[str]:
    """The modalities that the clip has evidence for.

    A modality counts where a sentence of extraction or analysis that passed the filter cites it, and at least `share`
    of the right candidates cite it.
    """
    citing = Counter(
        part for _, score in scored for part in {part for s in score.sentences for part in parts_of(s.modality)}
    )
    passed = {part for one in kept if one.function != "conclusion" for part in one.modalities}
    return {part for part in passed if citing[part] >= share * len(scored)}


def overlap(one: str, other: str) -> float:
    """Shared content words over those of the shorter text, in [0, 1]; 1 for equal texts."""
    a, b = (set(words_of(text)) - _FUNCTION_WORDS for text in (one, other))
    if not a or not b:
        return float(_key(one) == _key(other))
    return len(a & b) / min(len(a), len(b))


def _key(text: str) -> tuple[str, ...]:
    return tuple(words_of(text))


def _minority_pronouns(texts: Iterable[str]) -> frozenset[str]:
    """The pronouns of the person that fewer sentences speak of: candidates disagree on who is seen."""
    words = [set(words_of(text)) for text in texts]
    he, she = (sum(bool(pronouns & one) for one in words) for pronouns in (_HE, _SHE))
    if not he or not she:
        return frozenset()
    return _HE if he < she else _SHE
