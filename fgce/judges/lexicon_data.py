"""The lexicon judge's knowledge (lexicon.yaml) in the form that reading a sentence needs."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

from fgce.schema import Modality

DECISIVE, CLEAR, WEAK, MISLEADING = 5, 4, 3, 2

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+|[^\w\s-]")
_STRENGTHS = {"decisive": DECISIVE, "clear": CLEAR, "weak": WEAK}


@dataclass(frozen=True, slots=True)
class Tag:
    """What a phrase is: its kind, such as "emotion" or "look", and which one of the kind."""

    kind: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A phrase found in a sentence, at tokens [start, end)."""

    start: int
    end: int
    tags: tuple[Tag, ...]

    def names(self, kind: str) -> list[str]:
        """Which ones of `kind` the phrase is."""
        return [tag.name for tag in self.tags if tag.kind == kind]


@dataclass(frozen=True, slots=True)
class Cue:
    """An observable sign: its modality and how strongly it speaks for which emotion (DECISIVE, CLEAR or
    WEAK).
    """

    name: str
    modality: Modality
    support: Mapping[str, int]


def fold(text: str) -> str:
    """Lower case, compatibility forms resolved, invisible characters dropped, quotes made plain."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    return text.replace("\u2019", "'").replace("\u2018", "'").replace("\u201c", '"').replace("\u201d", '"')


def tokens_of(folded: str) -> list[str]:
    """Words, numbers and punctuation of a folded text; hyphens separate words."""
    return _TOKEN.findall(folded)


@lru_cache(maxsize=16384)
def base_forms(word: str) -> frozenset[str]:
    """The word and what it may be an inflection of: plurals, -ed, -ing, -ly and possessives."""
    forms = {word}
    if word.endswith("'s"):
        word = word[:-2]
        forms.add(word)
    if word.endswith(("ies", "ied")):
        forms.add(word[:-3] + "y")
    if word.endswith("es"):
        forms.add(word[:-2])
    if word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    if word.endswith("ily"):
        forms.add(word[:-3] + "y")
    for suffix in ("ed", "ing", "ly"):
        stem = word.removesuffix(suffix)
        if stem != word and len(stem) > 2:
            forms |= {stem, stem + "e"}
            if stem[-1] == stem[-2]:
                forms.add(stem[:-1])
    return frozenset(forms)


class Phrasebook:
    """Finds phrases in a sentence, the longest first; an entry is found in its inflections too."""

    def __init__(self) -> None:
        self._by_first: dict[str, dict[tuple[str, ...], list[Tag]]] = defaultdict(dict)

    def add(self, phrases: Iterable[str], tag: Tag) -> None:
        """Gives each phrase the tag, beside those that it has."""
        for phrase in phrases:
            words = tuple(tokens_of(fold(phrase)))
            self._by_first[words[0]].setdefault(words, []).append(tag)

    def hits(self, tokens: list[str]) -> Iterator[Hit]:
        """Phrases of `tokens` from left to right, none overlapping."""
        position = 0
        while position < len(tokens):
            length, tags = self._longest_at(tokens, position)
            if tags:
                yield Hit(position, position + length, tuple(tags))
            position += length

    def _longest_at(self, tokens: list[str], position: int) -> tuple[int, list[Tag]]:
        """Length and tags of the longest phrase at a position; a word's own entry hides those of its base forms."""
        best_length = 1
        best_tags: list[Tag] = []
        word = tokens[position]
        own = self._by_first.get(word, {}).get((word,), [])
        for first in base_forms(word):
            for words, tags in self._by_first.get(first, {}).items():
                if len(words) < best_length or len(words) > len(tokens) - position:
                    continue
                if len(words) == 1 and own and first != word:
                    continue
                if all(other in base_forms(tokens[position + i]) for i, other in enumerate(words) if i):
                    if len(words) > best_length:
                        best_length, best_tags = len(words), []
                    best_tags = best_tags + [tag for tag in tags if tag not in best_tags]
        return best_length, best_tags


@dataclass(slots=True)
class Lexicon:
    """lexicon.yaml, compiled. `revision` is its version with a hash of the file."""

    revision: str
    phrases: Phrasebook
    near: dict[str, set[str]]
    affects: dict[str, set[str]]
    parts: dict[str, Modality]
    looks: dict[tuple[str, str], Cue]  # (part, look)
    signs: dict[str, Cue]
    addressed: re.Pattern[str]
    stop_words: dict[str, set[str]]

    def emotion_of(self, label: str) -> str | None:
        """The emotion that a predicted label names; None where it names none or several."""
        for kinds in (("label", "emotion"), ("related",)):
            hits = self.phrases.hits(tokens_of(fold(label).replace("_", " ")))
            found = {tag.name for hit in hits for tag in hit.tags if tag.kind in kinds}
            if found:
                return found.pop() if len(found) == 1 else None
        return None


@cache
def load_lexicon(path: Path) -> Lexicon:
    """Reads a lexicon file, once a process.

    Raises:
        ValueError: a cue names an emotion that the file does not define.
    """
    text = path.read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    phrases = Phrasebook()
    near: dict[str, set[str]] = {emotion: set() for emotion in data["emotions"]}
    for one, other in data["near"]:
        near[one].add(other)
        near[other].add(one)
    for emotion, words in data["emotions"].items():
        phrases.add(words["names"], Tag("emotion", emotion))
        phrases.add(words["related"], Tag("related", emotion))
        phrases.add(words.get("labels", ()), Tag("label", emotion))
    for affect, entry in data["affects"].items():
        phrases.add(entry["words"], Tag("affect", affect))
    looks = {}
    for part, entry in data["cues"].items():
        phrases.add(entry["words"], Tag("part", part))
        for look, support in entry["looks"].items():
            looks[part, look] = _cue(f"{part} {look}", entry["modality"], support, near)
    for look, words in data["looks"].items():
        phrases.add(words, Tag("look", look))
    signs = {}
    for entry in data["signs"]:
        name = entry["words"][0]
        phrases.add(entry["words"], Tag("sign", name))
        signs[name] = _cue(name, entry["modality"], entry, near)
    for modality, words in data["mentions"].items():
        phrases.add(words, Tag("mention", modality))
    for key, kind in _WORD_LISTS.items():
        phrases.add(data[key], Tag(kind))
    return Lexicon(
        revision=f"{data['version']}-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        phrases=phrases,
        near=near,
        affects={affect: set(entry["fits"]) for affect, entry in data["affects"].items()},
        parts={part: entry["modality"] for part, entry in data["cues"].items()},
        looks=looks,
        signs=signs,
        addressed=re.compile("|".join(f"(?:{pattern})" for pattern in data["addressed"])),
        stop_words={language: set(words) for language, words in data["stop_words"].items()},
    )


_WORD_LISTS = {
    "unspecific": "unspecific",
    "irrelevant": "irrelevant",
    "copulas": "copula",
    "links": "link",
    "conclusions": "conclusion",
    "hedges": "hedge",
    "negations": "negation",
    "not negations": "not negation",
    "persons": "person",
    "breaks": "break",
}


def _cue(name: str, modality: Modality, entry: Mapping[str, Any], emotions: Iterable[str]) -> Cue:
    support = {emotion: strength for level, strength in _STRENGTHS.items() for emotion in entry.get(level, ())}
    unknown = set(support) - set(emotions)
    if unknown:
        raise ValueError(f"lexicon: cue '{name}' names {sorted(unknown)}, which 'emotions' does not define")
    return Cue(name, modality, support)
