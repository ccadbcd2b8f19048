"""The plan of the toy world: which actors there are, which clips they play, and what each clip shows."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from typing import Literal, TypeVar

import numpy as np

from toy_world.cues import EMOTIONS, FACES, NEUTRAL_FACE, NEUTRAL_VOICE, VOICES, AudioCues, VisualCues

SPLITS = ("train", "val", "test")
FLAWS = ("irrelevant", "contradiction", "no_conclusion")
Cues = TypeVar("Cues", VisualCues, AudioCues)

_CLIPS_AN_ACTOR = 14  # two of each emotion
_FACE_ONLY, _VOICE_ONLY, _NO_TRACK = 0.06, 0.06, 0.06  # shares of clips that lack a modality
_CUE_DROPOUT, _CUE_NOISE = 0.08, 0.02
_COLOURS = {
    "red": (190, 70, 70),
    "blue": (80, 110, 190),
    "green": (90, 160, 100),
    "yellow": (215, 195, 100),
    "grey": (150, 150, 150),
    "brown": (130, 95, 70),
}
_SKINS = ((250, 220, 190), (240, 200, 165), (225, 180, 140), (205, 155, 115), (180, 130, 95))
_HAIRS = ((50, 35, 25), (110, 70, 40), (200, 160, 80), (120, 120, 120), (150, 70, 40))


class WorldError(ValueError):
    """A world cannot be made as asked; the message names what to change."""


@dataclass(frozen=True)
class WorldSpec:
    """What a user can set. The same spec and code give the same world."""

    train: int = 640
    val: int = 56
    test: int = 112
    seed: int = 0
    flaw_rate: float = 0.57  # of irrelevant openings and of missing conclusions; half of it for contradictions

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise WorldError(f"--seed {self.seed}: a seed is 0 or more")
        for split in SPLITS:
            if getattr(self, split) < len(EMOTIONS):
                raise WorldError(f"--{split} {getattr(self, split)}: a split needs a clip an emotion, {len(EMOTIONS)}")
        if not 0.0 <= self.flaw_rate <= 1.0:
            raise WorldError(f"--flaw_rate {self.flaw_rate}: a share is between 0 and 1")


@dataclass(frozen=True)
class Colour:
    """A colour with the name that explanations use."""

    name: str
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Actor:
    """Everything about a clip that says nothing about the emotion."""

    id: str
    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    long_hair: bool
    background: Colour
    shirt: Colour
    offset: tuple[float, float]  # of the head, in units of half the face's width
    scale: float
    frame_size: tuple[int, int]  # width, height
    fps: int
    picture_noise: float  # standard deviation in grey levels
    base_pitch: float  # Hz
    formant_scale: float
    spectral_tilt: float
    sound_noise: float  # standard deviation, full scale is 1
    sample_rate: int


@dataclass(frozen=True)
class Clip:
    """One clip: the truth about it, and what is wrong with its explanation."""

    id: str
    split: str
    emotion: str
    actor: str
    informative: tuple[str, ...]  # of "visual", "audio"
    visual: VisualCues
    audio: AudioCues | None  # None: the file has no audio track
    visual_intensity: float
    audio_intensity: float
    num_frames: int
    duration: float  # seconds; of the audio where there is a single frame
    flaws: tuple[str, ...]
    seed: tuple[int, ...]

    @property
    def file(self) -> str:
        """Relative to the world's folder."""
        return f"clips/{self.id}.mp4"

    def rng(self, part: Literal["text", "face", "voice"]) -> np.random.Generator:
        """An own stream of random numbers for each part, so that none depends on how another draws."""
        return np.random.default_rng([*self.seed, ("text", "face", "voice").index(part)])


@dataclass(frozen=True)
class World:
    """Actors by id, and the clips of all splits in order."""

    spec: WorldSpec
    actors: dict[str, Actor]
    clips: tuple[Clip, ...]

    def of_split(self, split: str) -> list[Clip]:
        return [clip for clip in self.clips if clip.split == split]


def plan_world(spec: WorldSpec) -> World:
    """Plans all splits. No actor is in two of them; the emotions are balanced in each."""
    actors: dict[str, Actor] = {}
    clips: list[Clip] = []
    for split_index, split in enumerate(SPLITS):
        size = getattr(spec, split)
        cast = [
            _draw_actor(f"{split}_{number:02d}", np.random.default_rng([spec.seed, split_index, 0, number]))
            for number in range(-(-size // _CLIPS_AN_ACTOR))
        ]
        actors |= {actor.id: actor for actor in cast}
        clips += _plan_split(spec, split_index, split, size, cast)
    return World(spec, actors, tuple(clips))


def _plan_split(spec: WorldSpec, split_index: int, split: str, size: int, cast: list[Actor]) -> Iterator[Clip]:
    rng = np.random.default_rng([spec.seed, split_index, 1])
    emotions = list(islice(cycle(EMOTIONS), size))
    lacking = _lacking_modalities(emotions, rng)
    rates = {
        "irrelevant": spec.flaw_rate,
        "contradiction": spec.flaw_rate / 2,
        "no_conclusion": spec.flaw_rate,
    }
    flawed = {flaw: set(rng.permutation(size)[: round(rates[flaw] * size)].tolist()) for flaw in FLAWS}
    # A neutral face holds the head still: the single picture lacks nothing that it should show.
    single_frame = emotions.index("neutral") if split == "train" else None
    for number, emotion in enumerate(emotions):
        actor = cast[number // _CLIPS_AN_ACTOR]
        lack = lacking.get(number, "")
        duration = 2.0 + 2.0 * rng.beta(1.0, 5.0)
        num_frames = 1 if number == single_frame else round(duration * actor.fps)
        face = NEUTRAL_FACE if lack == "face" else _vary(FACES[emotion], FACES, rng)
        voice = NEUTRAL_VOICE if lack == "voice" else _vary(VOICES[emotion], VOICES, rng)
        yield Clip(
            id=f"{split}_{number:04d}",
            split=split,
            emotion=emotion,
            actor=actor.id,
            informative=("audio",) if lack == "face" else ("visual",) if lack else ("visual", "audio"),
            visual=replace(face, motion=NEUTRAL_FACE.motion) if num_frames == 1 else face,
            audio=None if lack == "track" else voice,
            visual_intensity=round(rng.uniform(0.7, 1.0), 3),
            audio_intensity=round(rng.uniform(0.7, 1.0), 3),
            num_frames=num_frames,
            duration=round(duration if num_frames == 1 else num_frames / actor.fps, 4),
            flaws=tuple(flaw for flaw in FLAWS if number in flawed[flaw]),
            seed=(spec.seed, split_index, 2, number),
        )


def _lacking_modalities(emotions: list[str], rng: np.random.Generator) -> dict[int, str]:
    """Draws the clips that lack an informative face or voice, or an audio track: {clip number: what lacks}.

    Neutral clips are left out: a neutral face is informative there.
    """
    numbers = rng.permutation([number for number, emotion in enumerate(emotions) if emotion != "neutral"]).tolist()
    lacking: dict[int, str] = {}
    for what, share in (("voice", _FACE_ONLY), ("face", _VOICE_ONLY), ("track", _NO_TRACK)):
        for _ in range(max(1, round(share * len(emotions)))):
            lacking[numbers.pop()] = what
    return lacking


def _vary(pattern: Cues, patterns: dict[str, Cues], rng: np.random.Generator) -> Cues:
    """Drops or disturbs single cues; at least two telling ones stay as they are."""
    neutral = type(pattern)()
    names = [field.name for field in fields(pattern)]
    changes: dict[str, str] = {}
    for name in names:
        chance = rng.random()
        if chance < _CUE_DROPOUT:
            changes[name] = getattr(neutral, name)
        elif chance < _CUE_DROPOUT + _CUE_NOISE:
            changes[name] = getattr(patterns[EMOTIONS[rng.integers(len(EMOTIONS))]], name)
    telling = [name for name in names if getattr(pattern, name) != getattr(neutral, name)] or names
    kept = [name for name in telling if name not in changes]
    for name in telling:
        if len(kept) < 2 and name in changes:
            del changes[name]
            kept.append(name)
    return replace(pattern, **changes)


def _draw_actor(actor_id: str, rng: np.random.Generator) -> Actor:
    background, shirt = rng.choice(list(_COLOURS), size=2, replace=False).tolist()
    return Actor(
        id=actor_id,
        skin=_jitter(_SKINS[rng.integers(len(_SKINS))], rng),
        hair=_jitter(_HAIRS[rng.integers(len(_HAIRS))], rng),
        long_hair=bool(rng.random() < 0.5),
        background=Colour(background, _jitter(_COLOURS[background], rng)),
        shirt=Colour(shirt, _jitter(_COLOURS[shirt], rng)),
        offset=(round(rng.uniform(-0.12, 0.12), 3), round(rng.uniform(-0.08, 0.08), 3)),
        scale=round(rng.uniform(0.9, 1.05), 3),
        frame_size=((96, 96), (96, 96), (112, 96), (96, 112))[rng.integers(4)],
        fps=int(rng.integers(12, 16)),
        picture_noise=round(rng.uniform(1.0, 6.0), 2),
        base_pitch=round(rng.uniform(125.0, 160.0), 1),
        formant_scale=round(rng.uniform(0.92, 1.12), 3),
        spectral_tilt=round(rng.uniform(-0.2, 0.1), 3),
        sound_noise=round(10 ** rng.uniform(-3.2, -2.6), 5),
        sample_rate=(16_000, 16_000, 44_100)[rng.integers(3)],
    )


def _jitter(rgb: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(rgb) + rng.integers(-14, 15, size=3), 0, 255).tolist()
    return red, green, blue
