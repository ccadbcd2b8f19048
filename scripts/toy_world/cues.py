"""What can be seen and heard in a toy clip, and the pattern that each emotion shows."""

from dataclasses import dataclass

from humanomni.labels import LABEL_SETS

EMOTIONS = LABEL_SETS["toy"]


@dataclass(frozen=True)
class VisualCues:
    """The face. The defaults are the uninformative, neutral face."""

    mouth: str = "straight"
    brows: str = "relaxed"
    eyes: str = "relaxed"
    gaze: str = "direct"
    motion: str = "still"


@dataclass(frozen=True)
class AudioCues:
    """The voice. The defaults are the uninformative, neutral voice."""

    pitch: str = "mid"
    contour: str = "flat"
    rate: str = "steady"
    loudness: str = "moderate"
    tremor: str = "none"


NEUTRAL_FACE = VisualCues()
NEUTRAL_VOICE = AudioCues()

FACES: dict[str, VisualCues] = {
    "anger": VisualCues(mouth="pressed", brows="lowered", eyes="narrowed", motion="forward"),
    "disgust": VisualCues(mouth="curled", brows="lowered", eyes="narrowed", gaze="away", motion="turning"),
    "fear": VisualCues(mouth="stretched", brows="inner_raised", eyes="wide", gaze="away", motion="trembling"),
    "happiness": VisualCues(mouth="smile", motion="bouncing"),
    "neutral": NEUTRAL_FACE,
    "sadness": VisualCues(
        mouth="turned_down", brows="inner_raised", eyes="half_closed", gaze="down", motion="drooping"
    ),
    "surprise": VisualCues(mouth="round", brows="raised", eyes="wide", motion="jerk"),
}

VOICES: dict[str, AudioCues] = {
    "anger": AudioCues(pitch="low", contour="falling", rate="fast", loudness="loud"),
    "disgust": AudioCues(pitch="low", rate="slow"),
    "fear": AudioCues(pitch="high", rate="fast", loudness="quiet", tremor="trembling"),
    "happiness": AudioCues(pitch="high", contour="rising", rate="fast"),
    "neutral": NEUTRAL_VOICE,
    "sadness": AudioCues(pitch="low", contour="falling", rate="slow", loudness="quiet"),
    "surprise": AudioCues(pitch="high", contour="rising", rate="slow", loudness="loud"),
}
