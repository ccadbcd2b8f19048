"""What the lexicon judge finds in one sentence: cues, named emotions and how they are put together."""

from collections import Counter
from dataclasses import dataclass, field

from fgce.judges.lexicon_data import MISLEADING, WEAK, Cue, Hit, Lexicon, fold, tokens_of
from fgce.schema import Modality

_NEGATION_REACH = 4  # tokens before a word in which "not" and the like still speak of it
_CLAUSE_END = set(",;:.!?")
_PLAIN = {"neutral", "calm"}  # what the absence of a cue speaks for

_COMPOUNDS: dict[frozenset[str], Modality] = {
    frozenset({"audio"}): "audio",
    frozenset({"visual"}): "visual",
    frozenset({"contextual"}): "contextual",
    frozenset({"audio", "contextual"}): "audio-contextual",
    frozenset({"visual", "contextual"}): "visual-contextual",
    frozenset({"audio", "visual"}): "audio-visual",
    frozenset({"audio", "visual", "contextual"}): "audio-visual-contextual",
}


@dataclass(slots=True)
class Observation:
    """A cue met in a sentence; `denied` where the sentence says that it is absent."""

    cue: Cue
    denied: bool

    @property
    def name(self) -> str:
        """For reasons given to people."""
        return f"no {self.cue.name}" if self.denied else self.cue.name

    def strength(self, emotion: str) -> int:
        """DECISIVE, CLEAR, WEAK or MISLEADING as evidence for `emotion`."""
        if not self.denied:
            return self.cue.support.get(emotion, MISLEADING)
        if emotion in self.cue.support:
            return MISLEADING
        return WEAK + 1 if emotion in _PLAIN else WEAK


@dataclass(slots=True)
class Reading:
    """One sentence as the lexicon reads it."""

    observations: list[Observation] = field(default_factory=list)
    asserted: Counter[str] = field(default_factory=Counter)  # emotions by their names
    related: Counter[str] = field(default_factory=Counter)  # emotions by words close to them
    denied: set[str] = field(default_factory=set)
    affects: set[str] = field(default_factory=set)
    mentioned: Counter[str] = field(default_factory=Counter)  # modalities cited without a cue
    kinds: set[str] = field(default_factory=set)  # link, conclusion, hedge, person, copula, irrelevant, unspecific
    parts: bool = False
    addressed: bool = False
    hits: int = 0

    @property
    def emotions(self) -> set[str]:
        """Every emotion that the sentence asserts, by whatever word."""
        return set(self.asserted) | set(self.related)

    @property
    def modality(self) -> Modality:
        """The modality with the most cues; the compound of those that share the most; contextual without
        any.
        """
        cues = {seen.cue.name: seen.cue.modality for seen in self.observations}
        counts: Counter[str] = Counter(cues.values())
        counts = counts or self.mentioned
        most = max(counts.values(), default=0)
        cited = frozenset(name for name, count in counts.items() if count == most)
        return _COMPOUNDS[cited] if cited else "contextual"


def read(sentence: str, lexicon: Lexicon) -> Reading:
    """Finds everything that the lexicon knows in a sentence."""
    folded = fold(sentence)
    tokens = tokens_of(folded)
    hits = list(lexicon.phrases.hits(tokens))
    reading = Reading(hits=len(hits), addressed=bool(lexicon.addressed.search(folded)))
    bound = _bind_looks(hits, tokens, lexicon, reading)
    if '"' in tokens:
        reading.mentioned["contextual"] += 1
    for hit in hits:
        denied = _denied(hit, hits, tokens)
        if hit not in bound:  # a calm voice names no emotion, and a trembling one is one cue, not two
            _note_emotions(hit, denied, reading)
            for name in hit.names("sign"):
                reading.observations.append(Observation(lexicon.signs[name], denied))
        _note_parts(hit, hit in bound, lexicon, reading)
        for modality in hit.names("mention"):
            reading.mentioned[modality] += 1
        for tag in hit.tags:
            if tag.kind in _SENTENCE_KINDS and (tag.kind != "conclusion" or _concludes(hit, tokens)):
                reading.kinds.add(tag.kind)
    return reading


_SENTENCE_KINDS = {"link", "conclusion", "hedge", "person", "copula", "irrelevant", "unspecific"}


def _note_emotions(hit: Hit, denied: bool, reading: Reading) -> None:
    names, related, affects = hit.names("emotion"), hit.names("related"), hit.names("affect")
    if denied:
        reading.denied.update(names + related)
        return
    reading.asserted.update(names)
    reading.related.update(related)
    reading.affects.update(affects)


def _note_parts(hit: Hit, bound: bool, lexicon: Lexicon, reading: Reading) -> None:
    """A part counts as cited; `look` and `sound` only with what they do, since "she looks sad" cites
    nothing.
    """
    parts = hit.names("part")
    if parts and (bound or not hit.names("copula")):
        reading.parts = True
        reading.mentioned[lexicon.parts[parts[0]]] += 1


def _concludes(hit: Hit, tokens: list[str]) -> bool:
    """ "So" concludes only where a sentence begins with it."""
    return tokens[hit.start] != "so" or hit.start == 0 or hit.end - hit.start > 1


def _bind_looks(hits: list[Hit], tokens: list[str], lexicon: Lexicon, reading: Reading) -> list[Hit]:
    """Joins each look with the nearest part that can have it; returns the hits so used.

    The cues go into `reading.observations`.
    """
    parts = [(hit, part) for hit in hits for part in hit.names("part")]
    used: list[Hit] = []
    for hit in hits:
        for look in hit.names("look"):
            able = [
                (_distance(hit, other), part, other)
                for other, part in parts
                if (part, look) in lexicon.looks and other is not hit
            ]
            if not able:
                continue
            _, part, other = min(able, key=lambda candidate: candidate[0])
            observation = Observation(lexicon.looks[part, look], _denied(hit, hits, tokens))
            reading.observations.append(observation)
            used += [hit, other]
            break
    return used


def _distance(look: Hit, part: Hit) -> int:
    return look.start - part.end if part.start < look.start else part.start - look.end


def _denied(hit: Hit, hits: list[Hit], tokens: list[str]) -> bool:
    """Whether a negation just before, in the same clause, speaks of the hit."""
    near = [other for other in hits if 0 <= hit.start - other.end < _NEGATION_REACH]
    for other in reversed(near):
        kinds = {tag.kind for tag in other.tags}
        if _CLAUSE_END & set(tokens[other.end : hit.start]) or kinds & {"break", "not negation"}:
            return False
        if "negation" in kinds:
            return True
    return False
