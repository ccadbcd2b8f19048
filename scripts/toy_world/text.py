"""Writes a clip's explanation from its true cues, with the flaws that the plan asks for.

The vocabulary is small on purpose: a tiny tokenizer and a tiny model have to learn it.
"""

from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from toy_world.cues import FACES, NEUTRAL_FACE, NEUTRAL_VOICE, VOICES, AudioCues, VisualCues
from toy_world.world import Actor, Clip


class Phrase(NamedTuple):
    """How a cue is stated, and how a later sentence refers to it."""

    statement: str
    reference: str


_SEEN = {
    "mouth": {
        "straight": Phrase("the mouth is straight and relaxed", "the relaxed mouth"),
        "smile": Phrase("the mouth corners are raised in a smile", "the smile"),
        "turned_down": Phrase("the mouth corners are turned down", "the turned down mouth"),
        "round": Phrase("the mouth is open and round", "the open mouth"),
        "stretched": Phrase("the lips are stretched and trembling", "the trembling lips"),
        "pressed": Phrase("the lips are pressed tight", "the tight lips"),
        "curled": Phrase("the upper lip is curled", "the curled upper lip"),
    },
    "brows": {
        "relaxed": Phrase("the brows are relaxed", "the relaxed brows"),
        "lowered": Phrase("the brows are lowered and drawn together", "the lowered brows"),
        "raised": Phrase("the brows are raised high", "the raised brows"),
        "inner_raised": Phrase("the inner brows are raised", "the raised inner brows"),
    },
    "eyes": {
        "relaxed": Phrase("the eyes are relaxed", "the relaxed eyes"),
        "wide": Phrase("the eyes are wide open", "the wide eyes"),
        "narrowed": Phrase("the eyes are narrowed", "the narrowed eyes"),
        "half_closed": Phrase("the eyes are half closed", "the half closed eyes"),
    },
    "gaze": {
        "direct": Phrase("the gaze is direct", "the direct gaze"),
        "down": Phrase("the gaze is turned down", "the gaze turned down"),
        "away": Phrase("the gaze is turned away", "the gaze turned away"),
    },
    "motion": {
        "still": Phrase("the head is still", "the still head"),
        "trembling": Phrase("the head is trembling", "the trembling head"),
        "bouncing": Phrase("the head bounces up and down", "the bouncing head"),
        "drooping": Phrase("the head droops slowly", "the drooping head"),
        "jerk": Phrase("the head suddenly jerks back", "the sudden jerk of the head"),
        "forward": Phrase("the head pushes forward", "the head pushed forward"),
        "turning": Phrase("the head turns away", "the head turned away"),
    },
}
_HEARD = {
    "pitch": {
        "low": Phrase("the pitch is low", "the low pitch"),
        "mid": Phrase("the pitch is even", "the even pitch"),
        "high": Phrase("the pitch is high", "the high pitch"),
    },
    "contour": {
        "falling": Phrase("the tone is falling", "the falling tone"),
        "flat": Phrase("the tone is flat", "the flat tone"),
        "rising": Phrase("the tone is rising", "the rising tone"),
    },
    "rate": {
        "slow": Phrase("the speech is slow", "the slow speech"),
        "steady": Phrase("the speech is steady", "the steady speech"),
        "fast": Phrase("the speech is fast", "the fast speech"),
    },
    "loudness": {
        "quiet": Phrase("the voice is quiet", "the quiet voice"),
        "moderate": Phrase("the volume is moderate", "the moderate volume"),
        "loud": Phrase("the voice is loud", "the loud voice"),
    },
    "tremor": {
        "none": Phrase("the voice is even", "the even voice"),
        "trembling": Phrase("the tone is trembling", "the trembling tone"),
    },
}
_READING = {
    "anger": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happiness": "joy",
    "neutral": "a neutral state",
    "sadness": "sadness",
    "surprise": "surprise",
}
_FEELING = {
    "anger": "angry",
    "disgust": "disgusted",
    "fear": "afraid",
    "happiness": "happy",
    "neutral": "neutral",
    "sadness": "sad",
    "surprise": "surprised",
}
_CONTRADICTING = {
    "anger": "happiness",
    "disgust": "happiness",
    "fear": "happiness",
    "happiness": "sadness",
    "neutral": "anger",
    "sadness": "happiness",
    "surprise": "sadness",
}
# They begin alike: a greedy decoder takes the likeliest next word, so a flaw of somewhat more than half the
# explanations shows only if its variants do not compete at the first word.
_IRRELEVANT = (
    "In the picture, the wall in the background is {background}.",
    "In the picture, the person wears a {shirt} shirt.",
    "In the picture, the camera does not move.",
)


def explanation(clip: Clip, actor: Actor) -> str:
    """The text inside `<think>`: cues, their analysis, a conclusion; flawed where the plan says so."""
    rng = clip.rng("text")
    seen, heard = _telling_cues(clip, rng)
    sentences: list[str] = []
    if "irrelevant" in clip.flaws:
        opening = _IRRELEVANT[rng.integers(len(_IRRELEVANT))]
        sentences.append(opening.format(background=actor.background.name, shirt=actor.shirt.name))
    sentences.append(_extraction(seen) if seen else "The face stays relaxed.")
    if heard:
        sentences.append(_extraction(heard))
    else:
        sentences.append("The voice is not audible." if clip.audio is None else "The voice stays even.")
    if "contradiction" in clip.flaws:
        sentences.append(_contradiction(clip.emotion))
    else:
        sentences.append(_analysis(seen, heard, clip.emotion, rng))
    if "no_conclusion" not in clip.flaws:
        sentences.append(_conclusion(seen, heard, clip.emotion, rng))
    return " ".join(sentences)


def _telling_cues(clip: Clip, rng: np.random.Generator) -> tuple[list[Phrase], list[Phrase]]:
    """Two cues of the face and two of the voice that speak for the emotion; none where a modality lacks."""
    seen: list[Phrase] = []
    heard: list[Phrase] = []
    if "visual" in clip.informative:
        # The mouth stands first wherever it tells something: it is the easiest to see.
        names = _telling_names(clip.visual, FACES[clip.emotion], NEUTRAL_FACE)
        names = [names[0], names[1 + rng.integers(len(names) - 1)]]
        seen = [_SEEN[name][getattr(clip.visual, name)] for name in names]
    if clip.audio is not None and "audio" in clip.informative:
        names = _telling_names(clip.audio, VOICES[clip.emotion], NEUTRAL_VOICE)
        names = [names[index] for index in sorted(rng.permutation(len(names))[:2])]
        heard = [_HEARD[name][getattr(clip.audio, name)] for name in names]
    return seen, heard


def _telling_names(
    cues: VisualCues | AudioCues, pattern: VisualCues | AudioCues, neutral: VisualCues | AudioCues
) -> list[str]:
    true, expected, plain = asdict(cues), asdict(pattern), asdict(neutral)
    return [name for name in true if true[name] == expected[name] and (expected == plain or true[name] != plain[name])]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _extraction(cues: list[Phrase]) -> str:
    return _sentence(" and ".join(cue.statement for cue in cues))


def _analysis(seen: list[Phrase], heard: list[Phrase], emotion: str, rng: np.random.Generator) -> str:
    """Reads the face or the voice; some readings are firm, some cautious."""
    first, second = seen if seen and (not heard or rng.random() < 0.5) else heard
    if rng.random() < 0.5:
        return _sentence(f"{first.reference} and {second.reference} suggest {_READING[emotion]}")
    return _sentence(f"{first.reference} may suggest {_READING[emotion]}")


def _contradiction(emotion: str) -> str:
    """An analysis that sees and hears what another emotion would show."""
    other = _CONTRADICTING[emotion]
    face = _SEEN["mouth"][FACES[other].mouth].reference
    voice = _HEARD["pitch"][VOICES[other].pitch].reference
    return _sentence(f"{face} and {voice} suggest {_READING[other]}")


def _conclusion(seen: list[Phrase], heard: list[Phrase], emotion: str, rng: np.random.Generator) -> str:
    source, verb = ("the face", "shows") if seen else ("the voice", "shows")
    if seen and heard:
        source, verb = "the face and the voice", "show"
    if rng.random() < 0.5:
        return f"Overall, {source} {verb} that the person is {_FEELING[emotion]}."
    return f"Overall, the emotion in {source} is {emotion}."
