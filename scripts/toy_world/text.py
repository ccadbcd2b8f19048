"""Writes a clip's explanation from its true cues, with the flaws that the plan asks for.

The vocabulary is small on purpose: a tiny tokenizer and a tiny model have to learn it.
"""

from dataclasses import asdict

import numpy as np

from toy_world.cues import FACES, NEUTRAL_FACE, NEUTRAL_VOICE, VOICES, AudioCues, VisualCues
from toy_world.world import Actor, Clip

# What a sentence says of a cue, and how a later sentence refers back to it.
_SEEN: dict[str, dict[str, tuple[str, str]]] = {
    "mouth": {
        "straight": ("the mouth is straight and relaxed", "the relaxed mouth"),
        "smile": ("the mouth corners are raised in a smile", "the smile"),
        "turned_down": ("the mouth corners are turned down", "the turned down mouth"),
        "round": ("the mouth drops open", "the open mouth"),
        "stretched": ("the lips are stretched and trembling", "the stretched lips"),
        "pressed": ("the lips are pressed tight", "the tight lips"),
        "curled": ("the upper lip is curled", "the curled lip"),
    },
    "brows": {
        "relaxed": ("the brows are relaxed", "the relaxed brows"),
        "lowered": ("the brows are lowered and drawn together", "the lowered brows"),
        "raised": ("the brows are raised high", "the raised brows"),
        "inner_raised": ("the inner brows are raised", "the raised inner brows"),
    },
    "eyes": {
        "relaxed": ("the eyes are relaxed", "the relaxed eyes"),
        "wide": ("the eyes are wide open", "the wide eyes"),
        "narrowed": ("the eyes are narrowed", "the narrowed eyes"),
        "half_closed": ("the eyes are half closed", "the half closed eyes"),
    },
    "gaze": {
        "direct": ("the gaze is direct", "the direct gaze"),
        "down": ("the gaze is turned down", "the gaze turned down"),
        "away": ("the gaze is turned away", "the gaze turned away"),
    },
    "motion": {
        "still": ("the head is still", "the still head"),
        "trembling": ("the head is trembling", "the trembling head"),
        "bouncing": ("the head bounces up and down", "the bouncing head"),
        "drooping": ("the head droops slowly", "the drooping head"),
        "jerk": ("the head suddenly jerks back", "the sudden jerk"),
        "forward": ("the head pushes forward", "the head pushed forward"),
        "turning": ("the head turns away", "the head turned away"),
    },
}
_HEARD: dict[str, dict[str, tuple[str, str]]] = {
    "pitch": {
        "low": ("the pitch is low", "the low pitch"),
        "mid": ("the pitch is even", "the even pitch"),
        "high": ("the pitch is high", "the high pitch"),
    },
    "contour": {
        "falling": ("the tone is falling", "the falling tone"),
        "flat": ("the tone is flat", "the flat tone"),
        "rising": ("the tone is rising", "the rising tone"),
    },
    "rate": {
        "slow": ("the speech is slow", "the slow speech"),
        "steady": ("the speech is steady", "the steady speech"),
        "fast": ("the speech is fast", "the fast speech"),
    },
    "loudness": {
        "quiet": ("the voice is quiet", "the quiet voice"),
        "moderate": ("the voice is calm", "the calm voice"),
        "loud": ("the voice is loud", "the loud voice"),
    },
    "tremor": {
        "none": ("the voice does not tremble", "the firm voice"),
        "trembling": ("the voice is trembling", "the trembling voice"),
    },
}
_READINGS = {
    "anger": ("anger", "strong anger"),
    "disgust": ("disgust", "clear disgust"),
    "fear": ("fear", "clear fear"),
    "happiness": ("happiness", "joy"),
    "neutral": ("a neutral state", "a neutral state"),
    "sadness": ("sadness", "deep sadness"),
    "surprise": ("surprise", "sudden surprise"),
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
    rng = clip.rng(purpose=0)
    seen = (
        _telling(clip.visual, FACES[clip.emotion], NEUTRAL_FACE, _SEEN, rng)
        if "visual" in clip.informative
        else []
    )
    heard = (
        _telling(clip.audio, VOICES[clip.emotion], NEUTRAL_VOICE, _HEARD, rng)
        if "audio" in clip.informative
        else []
    )
    sentences: list[str] = []
    if "irrelevant" in clip.flaws:
        sentences.append(
            _pick(_IRRELEVANT, rng).format(background=actor.background.name, shirt=actor.shirt.name)
        )
    sentences.append(_extraction(seen) if seen else "The face stays relaxed.")
    if heard:
        sentences.append(_extraction(heard))
    else:
        sentences.append("The voice is not audible." if clip.audio is None else "The voice stays even.")
    if "contradiction" in clip.flaws:
        sentences.append(_contradiction(clip.emotion, rng))
    else:
        sentences.append(_analysis(seen, heard, clip.emotion, rng))
    if "no_conclusion" not in clip.flaws:
        sentences.append(_conclusion(seen, heard, clip.emotion, rng))
    return " ".join(sentences)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _telling(
    cues: VisualCues | AudioCues,
    pattern: VisualCues | AudioCues,
    neutral: VisualCues | AudioCues,
    phrases: dict[str, dict[str, tuple[str, str]]],
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """The phrases of two cues that speak for the emotion: the first kept one, and one of the others."""
    true, expected, plain = asdict(cues), asdict(pattern), asdict(neutral)
    names = [
        name
        for name in true
        if true[name] == expected[name] and (true[name] != plain[name] or pattern == neutral)
    ]
    first, others = names[0], names[1:]
    second = others[rng.integers(len(others))]
    return [phrases[name][true[name]] for name in (first, second)]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _extraction(cues: list[tuple[str, str]]) -> str:
    return _sentence(" and ".join(statement for statement, _ in cues))


def _analysis(
    seen: list[tuple[str, str]], heard: list[tuple[str, str]], emotion: str, rng: np.random.Generator
) -> str:
    references = [cues[0][1] for cues in (seen, heard) if cues]
    if len(references) == 1:
        references = [reference for _, reference in (seen or heard)]
    verb = _pick(("suggest", "are signs of"), rng)
    return _sentence(f"{references[0]} and {references[1]} {verb} {_pick(_READINGS[emotion], rng)}")


def _contradiction(emotion: str, rng: np.random.Generator) -> str:
    """An analysis that sees the face of an opposite emotion."""
    other = _CONTRADICTING[emotion]
    seen = _telling(FACES[other], FACES[other], NEUTRAL_FACE, _SEEN, rng)
    return _analysis(seen, [], other, rng)


def _conclusion(
    seen: list[tuple[str, str]], heard: list[tuple[str, str]], emotion: str, rng: np.random.Generator
) -> str:
    source = "the face and the voice" if seen and heard else "the face" if seen else "the voice"
    if rng.random() < 0.5:
        verb = "show" if seen and heard else "shows"
        return f"Overall, {source} {verb} that the person is {_FEELING[emotion]}."
    return f"Overall, the emotion in {source} is {emotion}."
