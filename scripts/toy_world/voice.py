"""Synthesises a voice-like sound from named cues: harmonics weighted by formants and cut into syllables.

The levels are absolute (no peak normalisation): with a constant noise floor, loudness survives a log-mel
whose dynamic range is cut relative to its maximum.
"""

import numpy as np

from toy_world.cues import AudioCues
from toy_world.world import Actor

_PITCH = {"low": 0.62, "mid": 1.0, "high": 1.8}  # times the actor's base pitch
_CONTOUR = {"falling": -1.0, "flat": 0.0, "rising": 1.0}  # octaves over the clip
_RATE = {"slow": 1.7, "steady": 3.2, "fast": 5.2}  # syllables a second
_LOUDNESS = {"quiet": 0.05, "moderate": 0.2, "loud": 0.8}  # peak amplitude
_TREMOR_HZ = 7.5
_VOWELS = ((730, 1090, 2440), (530, 1840, 2480), (400, 2000, 2550), (570, 840, 2410), (440, 1020, 2240))  # Hz
_BANDWIDTHS = (90.0, 120.0, 180.0)  # Hz, of the three formants
_TOP_HZ = 3800.0
_CONTROL_HZ = 100.0  # formants and envelope move slowly: they are computed at this rate and interpolated


def syllable_rate(cues: AudioCues, intensity: float) -> float:
    """Syllables a second."""
    return _blend(_RATE, cues.rate, "steady", intensity)


def synthesise(
    cues: AudioCues, intensity: float, actor: Actor, duration: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns: float32 mono [round(duration * actor.sample_rate)] in -1..1."""
    num_samples = round(duration * actor.sample_rate)
    time = np.arange(num_samples) / actor.sample_rate
    control = np.arange(0.0, duration + 2 / _CONTROL_HZ, 1 / _CONTROL_HZ)
    tremor = intensity if cues.tremor == "trembling" else 0.0
    wobble = np.sin(2 * np.pi * _TREMOR_HZ * control + rng.uniform(0, 2 * np.pi))

    level = actor.base_pitch * _blend(_PITCH, cues.pitch, "mid", intensity)
    octaves = _CONTOUR[cues.contour] * intensity * (control / duration - 0.5)
    pitch = level * 2**octaves * (1 + 0.08 * tremor * wobble)

    envelope, formants = _syllables(control, syllable_rate(cues, intensity), rng)
    envelope = envelope * (1 - 0.4 * tremor * (1 + wobble))
    effort = np.log2(_blend(_LOUDNESS, cues.loudness, "moderate", intensity) / _LOUDNESS["moderate"])
    # A raised voice sits higher in the throat and is brighter; a quiet one loses its overtones.
    formants = formants * actor.formant_scale * _blend({"low": 0.93, "mid": 1.0, "high": 1.1}, cues.pitch, "mid", 1.0)
    tilt = actor.spectral_tilt + 0.15 * effort

    phase = 2 * np.pi * np.cumsum(np.interp(time, control, pitch)) / actor.sample_rate
    voice = _harmonics(phase, time, control, pitch, formants, tilt)
    voice *= np.interp(time, control, envelope)
    voice *= _LOUDNESS["moderate"] * 2**effort / max(np.abs(voice).max(), 1e-9)
    noise = actor.sound_noise * rng.standard_normal(num_samples, dtype=np.float32)
    return np.clip(voice + noise, -1.0, 1.0).astype(np.float32)


def _blend(table: dict[str, float], name: str, neutral: str, intensity: float) -> float:
    """Geometric interpolation from the neutral value: pitch, rate and loudness are heard as ratios."""
    return table[neutral] * (table[name] / table[neutral]) ** intensity


def _syllables(control: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns: the envelope [n] in 0..1 and the formants [n, 3] in Hz, both at the control rate."""
    lengths = rng.uniform(0.88, 1.12, size=int(np.ceil(1.2 * rate * control[-1])) + 2) / rate
    starts = np.cumsum(lengths) - lengths
    index = np.searchsorted(starts, control, side="right") - 1
    position = (control - starts[index]) / lengths[index]
    envelope = np.sin(np.pi * np.clip(position / 0.85, 0.0, 1.0)) ** 1.2
    vowels = np.array(_VOWELS, dtype=np.float64)[rng.integers(len(_VOWELS), size=len(starts))]
    return envelope, vowels[index]


def _harmonics(
    phase: np.ndarray,
    time: np.ndarray,
    control: np.ndarray,
    pitch: np.ndarray,
    formants: np.ndarray,
    tilt: float,
) -> np.ndarray:
    """Sums the harmonics below 3.8 kHz, each with the formants' gain at its frequency. Returns: [samples]."""
    rotation = np.exp(1j * phase)
    harmonic = np.ones_like(rotation)
    total = np.zeros_like(time)
    for number in range(1, int(_TOP_HZ / pitch.min()) + 1):
        harmonic = harmonic * rotation
        frequency = number * pitch
        distance = (frequency[:, None] - formants) / np.array(_BANDWIDTHS)
        gain = (1.0 / (1.0 + distance**2)).sum(axis=1) + 0.03
        gain *= (frequency < _TOP_HZ) * (frequency / 100.0) ** (tilt - 1.0)
        total += np.interp(time, control, gain) * harmonic.imag
    return total
