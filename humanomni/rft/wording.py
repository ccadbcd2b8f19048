"""English at the joints of a reassembled text: connectives, and words that point at a sentence which is not there.

By patterns on a sentence's first words, so it sees what it knows and no more; the result is judged again in any case.
"""

import re

from fgce.schema import Function

_PERSON = "person|man|woman|boy|girl|speaker|character|actor|actress|individual|subject|protagonist"

# Joins a sentence to one that no longer stands before it.
_CONNECTIVE = re.compile(
    r"(?:however|moreover|furthermore|additionally|in addition|besides|also|meanwhile|at the same time|then|next|"
    r"finally|lastly|first(?:ly)?|second(?:ly)?|third(?:ly)?|similarly|likewise|on the other hand|in contrast|"
    r"nevertheless|and|but|so|yet),\s+|(?:and|but|so|then)\s+",
    re.IGNORECASE,
)
# Begins a conclusion, which stands last, as its writer meant it.
_CONCLUDES = re.compile(
    r"(?:overall|therefore|thus|hence|consequently|ultimately|altogether|all in all|taken together|in (?:conclusion|"
    r"summary|sum|short|total)|to sum up|as a result|for these reasons|together|combined|so|finally)\b",
    re.IGNORECASE,
)
# Points back, unless at the person of the clip.
_POINTS_BACK = re.compile(
    rf"(?:(?:this|that|these|those|such) (?!(?:{_PERSON})\b)|(?:it|its|both|they|their|which|the (?:former|latter))\b)",
    re.IGNORECASE,
)
# "These cues" find something in any text that has extractions before them; "this" alone does not.
_TO_EVIDENCE = re.compile(
    r"(?:these|those|such|all these|both) (?:\w+ )?(?:cues|signs|signals|features|observations|expressions|details|"
    r"elements|indicators|behaviou?rs|reactions)\b",
    re.IGNORECASE,
)
_EXPLETIVE = re.compile(r"it (?:is|seems|appears) (?:\w+ )?(?:that|as if|as though)\b", re.IGNORECASE)
_PRONOUN_SUBJECT = re.compile(r"(?:(?P<possessive>his|her)|he|she)\b", re.IGNORECASE)
# A first word that is no name loses its capital behind a connective.
_COMMON_START = re.compile(r"(?:The|An?|This|That|These|Those|His|Her|He|She|They|Their|Its?|Both|There)\b")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_MARKUP = re.compile(r"[<>{}\\|]")
_END = re.compile(r"""[.!?]["')\]]*$""")


def points_nowhere(text: str, function: Function | None) -> bool:
    """Whether a sentence's first words point to a sentence before it, which may not stand there any more."""
    text = without_connective(text)
    if not _POINTS_BACK.match(text) or _EXPLETIVE.match(text):
        return False
    return function == "information extraction" or not _TO_EVIDENCE.match(text)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return _WORD.findall(text.lower())


def is_broken(text: str) -> bool:
    """Whether sampling has gone astray in a sentence: it holds pieces of tags, or the same three words twice.

    "The face and the face and the voice show that she is sad" names its emotion, and so pleases a judge.
    """
    words = words_of(text)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(triples)) < len(triples) or _MARKUP.search(text) is not None


def without_connective(text: str) -> str:
    """The sentence without the words that join it to its old neighbour."""
    return text[joint.end() :] if (joint := _CONNECTIVE.match(text)) else text


def concludes(text: str) -> bool:
    """Whether a sentence begins as conclusions do."""
    return _CONCLUDES.match(text) is not None


def after(connective: str, text: str) -> str:
    """The sentence behind a connective; "" leaves it as it is."""
    if not connective:
        return text
    return f"{connective}, {text[0].lower() + text[1:] if _COMMON_START.match(text) else text}"


def with_antecedent(text: str) -> str:
    """A first sentence that says who is meant: "Her voice" becomes "The person's voice"."""
    subject = _PRONOUN_SUBJECT.match(text)
    if subject is None:
        return text
    return ("The person's" if subject["possessive"] else "The person") + text[subject.end() :]


def finished(text: str) -> str:
    """The sentence with a capital at its beginning and a stop at its end."""
    text = text[0].upper() + text[1:]
    return text if _END.search(text) else f"{text}."
