"""The emotions: one canonical noun each, the spellings that mean it, and the classes of every dataset.

A dataset's own spelling ("happy", "happiness") is an output format, never a different class.
"""

import re
import unicodedata

EMOTIONS = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
    "calm",
    "doubt",
)

# The classes in the order of each dataset's own label ids; `toy` is the quick start's.
LABEL_SETS: dict[str, tuple[str, ...]] = {
    "dfew": ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear"),
    "mafw": EMOTIONS[:11],
    "ravdess": ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise"),
    "mer2023": ("neutral", "anger", "happiness", "sadness", "anxiety", "surprise"),
    "merr": (
        "neutral",
        "anger",
        "happiness",
        "sadness",
        "anxiety",
        "surprise",
        "fear",
        "contempt",
        "doubt",
    ),
    "toy": EMOTIONS[:7],
}

# The authors' release lacks mad, fearful, terrified and worry and strips no punctuation; here they count.
_SPELLINGS = {
    "anger": "angry rage mad",
    "disgust": "disgusted",
    "fear": "afraid scared frightened fearful terrified",
    "happiness": "happy joy joyful glad pleased",
    "neutral": "none",
    "sadness": "sad sorrow unhappy depressed",
    "surprise": "surprised startled",
    "contempt": "contemptuous",
    "anxiety": "anxious nervous worried worry",
    "helplessness": "helpless",
    "disappointment": "disappointed",
    "doubt": "doubtful",
}
_CANONICAL = {emotion: emotion for emotion in EMOTIONS} | {
    word: emotion for emotion, words in _SPELLINGS.items() for word in words.split()
}
_WORD = re.compile(r"[^\W\d_]+")
_NO_EMOTION = re.compile(r"\bno[\s_-]+emotion\b")
_NEGATIONS = frozenset({"not", "no", "never", "without", "isn", "aren", "wasn", "neither", "nor"})


def parse_label_set(text: str) -> tuple[str, ...]:
    """The classes of a known data set, or of one's own given as "anger, fear, sad".

    Raises:
        ValueError: an unknown name, or an entry that is no emotion.
    """
    if text in LABEL_SETS:
        return LABEL_SETS[text]
    classes = tuple(dict.fromkeys(normalise_label(part) for part in text.split(",")))
    if len(classes) < 2 or None in classes:
        raise ValueError(
            f"unknown label set {text!r}; known are {', '.join(LABEL_SETS)}, or name the classes, divided by commas, "
            f"out of {', '.join(EMOTIONS)}"
        )
    return tuple(name for name in classes if name is not None)


COMPOUND_SET = "mafw_compound"  # its classes are the combinations that the data holds


def normalise_compound(text: str) -> str | None:
    """Reads one or several emotions out of an answer, as MAFW's compound labels name them.

    Returns:
        The canonical nouns in the order of `EMOTIONS`, joined by "_" ("sadness_surprise"), which makes a combination
        equal in whatever order it is named. None where the text names no emotion, or denies one.
    """
    found, denied = _emotions_in(text)
    return "_".join(emotion for emotion in EMOTIONS if emotion in found) if found and not denied else None


def normalise_label(text: str) -> str | None:
    """Reads one emotion out of an answer.

    Case, punctuation and underscores are ignored. An answer of several words is read by its only label word.

    Args:
        text: an answer such as "Sad.", "no_emotion" or "The emotion is fear".

    Returns:
        The canonical noun, one of `EMOTIONS`. None where the text names no emotion, two different ones
        ("sad, angry"; a compound label such as "sadness_surprise"), or denies one ("not angry").
    """
    found, denied = _emotions_in(text)
    return found.pop() if len(found) == 1 and not denied else None


def _emotions_in(text: str) -> tuple[set[str], bool]:
    """The canonical emotions that a text names, and whether it holds a negation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(_NO_EMOTION.sub("none", folded))
    found = {_CANONICAL[word] for word in words if word in _CANONICAL}
    return found, not _NEGATIONS.isdisjoint(words)
