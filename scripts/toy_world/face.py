"""Draws a cartoon face from named cues, big enough to be read at 56 x 56 pixels.

Coordinates of the face: the origin is its centre, 1 is half its width, x points right, y points down.
"""

from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from PIL import Image, ImageDraw

from toy_world.cues import VisualCues
from toy_world.world import Actor

_SUPERSAMPLING = 3  # PIL's polygons are not anti-aliased; drawing large and averaging down is
Rgb = tuple[int, int, int]
_LIP = (176, 52, 60)
_DARK = (44, 20, 24)
_WHITE = (248, 246, 240)
_HALF_TURN = np.linspace(0.0, np.pi, 13)
_FULL_TURN = np.linspace(0.0, 2.0 * np.pi, 33)
_ACROSS = np.linspace(-1.0, 1.0, 17)


@dataclass(frozen=True)
class Expression:
    """Where the parts of the face are. The defaults are the neutral face."""

    mouth_width: float = 0.48
    mouth_open: float = 0.02
    mouth_corners: float = 0.0  # above 0: raised
    mouth_squareness: float = 0.0  # 0: the opening is an ellipse; 1: a box
    lip_curl: float = 0.0  # lifts one half of the upper lip and wrinkles the nose
    teeth: float = 0.0
    lip_shade: float = 0.0  # 1: the lips are pressed away and only a dark line is left
    brow_height: float = 0.0
    brow_inner: float = 0.0  # above 0: the inner ends are raised
    brow_together: float = 0.0
    lid_upper: float = 0.19
    lid_lower: float = 0.15
    gaze_x: float = 0.0
    gaze_y: float = 0.0


_MOUTHS: dict[str, dict[str, float]] = {
    "straight": {},
    "smile": {"mouth_width": 0.68, "mouth_corners": 0.42, "mouth_open": 0.16, "teeth": 1.0},
    "turned_down": {"mouth_width": 0.5, "mouth_corners": -0.38, "mouth_open": 0.04},
    "round": {"mouth_width": 0.3, "mouth_open": 0.36},
    "stretched": {"mouth_width": 0.66, "mouth_open": 0.17, "mouth_squareness": 1.0, "teeth": 1.0},
    "pressed": {"mouth_width": 0.34, "mouth_open": 0.09, "mouth_squareness": 1.0, "lip_shade": 1.0},
    "curled": {"mouth_width": 0.44, "mouth_corners": -0.12, "lip_curl": 0.36, "teeth": 1.0},
}
_BROWS: dict[str, dict[str, float]] = {
    "relaxed": {},
    "lowered": {"brow_height": -0.17, "brow_inner": -0.24, "brow_together": 0.16},
    "raised": {"brow_height": 0.26},
    "inner_raised": {"brow_height": 0.04, "brow_inner": 0.3},
}
_EYES: dict[str, dict[str, float]] = {
    "relaxed": {},
    "wide": {"lid_upper": 0.32, "lid_lower": 0.27},
    "narrowed": {"lid_upper": 0.07, "lid_lower": 0.06},
    "half_closed": {"lid_upper": 0.0, "lid_lower": 0.17},
}
_GAZES: dict[str, dict[str, float]] = {"direct": {}, "down": {"gaze_y": 0.12}, "away": {"gaze_x": 0.15}}


@dataclass(frozen=True)
class HeadPose:
    """Where the head is in one frame, in units of half the face's width; tilt in radians."""

    x: float = 0.0
    y: float = 0.0
    size: float = 1.0
    tilt: float = 0.0


def expression_of(cues: VisualCues, intensity: float) -> Expression:
    """The neutral face moved towards the cues by `intensity` (1: all the way)."""
    neutral = asdict(Expression())
    target = neutral | _MOUTHS[cues.mouth] | _BROWS[cues.brows] | _EYES[cues.eyes] | _GAZES[cues.gaze]
    names = [field.name for field in fields(Expression)]
    return Expression(**{name: neutral[name] + intensity * (target[name] - neutral[name]) for name in names})


def head_pose(motion: str, progress: float, frame: int, fps: float, intensity: float) -> HeadPose:
    """The head's pose in one frame; `progress` runs from 0 to 1 over the clip."""
    seconds = frame / fps
    sway = 0.015 * np.sin(2 * np.pi * 0.4 * seconds)
    match motion:
        case "still":
            return HeadPose(x=sway)
        case "trembling":
            return HeadPose(x=0.09 * intensity * (-1) ** frame, y=0.03 * intensity * (-1) ** (frame // 2))
        case "bouncing":
            return HeadPose(x=sway, y=-0.16 * intensity * abs(np.sin(2 * np.pi * 1.1 * seconds)))
        case "drooping":
            return HeadPose(x=sway, y=0.28 * intensity * progress, tilt=0.22 * intensity * progress)
        case "jerk":
            back = 1.0 if progress > 0.3 else 0.0
            return HeadPose(x=sway, y=-0.12 * intensity * back, size=1.0 - 0.16 * intensity * back)
        case "forward":
            return HeadPose(x=sway, y=0.06 * intensity * progress, size=1.0 + 0.18 * intensity * progress)
        case "turning":
            return HeadPose(x=0.24 * intensity * progress, tilt=-0.2 * intensity * progress)
    raise ValueError(f"unknown head motion {motion!r}")


def draw_clip(
    cues: VisualCues,
    intensity: float,
    actor: Actor,
    num_frames: int,
    syllable_rate: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draws a whole clip.

    `syllable_rate` (syllables a second, 0 where nothing is heard) moves the lips.
    Returns: uint8 RGB [num_frames, H, W, 3].
    """
    expression = expression_of(cues, intensity)
    width, height = actor.frame_size
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    for index in range(num_frames):
        pose = head_pose(cues.motion, index / max(num_frames - 1, 1), index, actor.fps, intensity)
        # Pressed lips stay shut.
        talking = 0.05 * (1 - expression.lip_shade) * np.sin(np.pi * syllable_rate * index / actor.fps) ** 2
        picture = _draw_face(replace(expression, mouth_open=expression.mouth_open + talking), pose, actor)
        noise = rng.standard_normal(picture.shape, dtype=np.float32) * actor.picture_noise
        frames[index] = np.clip(picture + noise, 0, 255)
    return frames


class _Pen:
    """Draws in face coordinates on a supersampled canvas."""

    def __init__(self, actor: Actor, pose: HeadPose) -> None:
        width, height = (side * _SUPERSAMPLING for side in actor.frame_size)
        self.image = Image.new("RGB", (width, height), actor.background.rgb)
        self._draw = ImageDraw.Draw(self.image)
        self._unit = 0.385 * min(width, height) * actor.scale
        self._scale = self._unit * pose.size
        self._cos, self._sin = np.cos(pose.tilt), np.sin(pose.tilt)
        self._still = np.array([width / 2, height / 2]) + self._unit * np.array(actor.offset)
        self._centre = self._still + self._unit * np.array([pose.x, pose.y])

    def polygon(self, x: np.ndarray, y: np.ndarray, colour: Rgb) -> None:
        turned = np.stack([self._cos * x - self._sin * y, self._sin * x + self._cos * y], axis=1)
        self._draw.polygon((self._centre + self._scale * turned).ravel().tolist(), fill=colour)

    def band(self, x: np.ndarray, upper: np.ndarray, lower: np.ndarray, colour: Rgb) -> None:
        """Fills what lies between two curves over the same x."""
        self.polygon(np.append(x, x[::-1]), np.append(upper, lower[::-1]), colour)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Rgb,
        turn: np.ndarray = _FULL_TURN,
    ) -> None:
        self.polygon(x + rx * np.cos(turn), y - ry * np.sin(turn), colour)

    def body(self, colour: Rgb) -> None:
        """Shoulders: they stay where they are when the head moves."""
        x, y = self._still
        left, right, top = x - 1.25 * self._unit, x + 1.25 * self._unit, y + 0.95 * self._unit
        self._draw.ellipse((left, top, right, top + 2 * self._unit), fill=colour)

    def pixels(self) -> np.ndarray:
        return np.asarray(self.image.reduce(_SUPERSAMPLING), dtype=np.float32)


def _draw_face(expression: Expression, pose: HeadPose, actor: Actor) -> np.ndarray:
    """Returns: float32 RGB [H, W, 3] in 0..255."""
    pen = _Pen(actor, pose)
    shade = _mix(actor.skin, _DARK, 0.25)
    pen.body(actor.shirt.rgb)
    if actor.long_hair:
        pen.ellipse(0.0, 0.0, 1.12, 1.25, actor.hair)
    pen.ellipse(0.0, 0.0, 1.0, 1.18, actor.skin)
    pen.ellipse(0.0, -0.9, 0.8, 0.33, actor.hair, _HALF_TURN)
    for side in (-1.0, 1.0):
        _draw_eye(pen, side, expression)
        _draw_brow(pen, side, expression)
    pen.polygon(np.array([-0.1, 0.0, 0.1]), np.array([0.22, -0.05, 0.22]), shade)
    if expression.lip_curl > 0:
        for side in (-1.0, 1.0):
            x = side * np.array([0.1, 0.34, 0.34, 0.1])
            pen.polygon(x, np.array([-0.02, 0.16, 0.24, 0.06]), _DARK)
    _draw_mouth(pen, expression)
    return pen.pixels()


def _draw_eye(pen: _Pen, side: float, expression: Expression) -> None:
    centre_x, centre_y, half_width = side * 0.42, -0.27, 0.27
    arch = np.sqrt(1.0 - _ACROSS**2)
    # A closed lid still has to leave something to see, hence the floor.
    upper = -max(expression.lid_upper, 0.02) * arch
    lower = max(expression.lid_lower, 0.04) * arch
    x = centre_x + half_width * _ACROSS
    outline = 0.05
    pen.band(x, centre_y + upper - outline, centre_y + lower + outline, _DARK)
    pen.band(x, centre_y + upper, centre_y + lower, _WHITE)
    iris_x = expression.gaze_x + 0.13 * np.cos(_FULL_TURN)
    iris_y = expression.gaze_y + 0.13 * np.sin(_FULL_TURN)
    across = iris_x / half_width
    pen.polygon(
        centre_x + iris_x,
        centre_y + np.clip(iris_y, np.interp(across, _ACROSS, upper), np.interp(across, _ACROSS, lower)),
        _DARK,
    )


def _draw_brow(pen: _Pen, side: float, expression: Expression) -> None:
    inner_x, outer_x = 0.2 - 0.6 * expression.brow_together, 0.7
    base = -0.62 - expression.brow_height
    inner_y, outer_y = base - expression.brow_inner, base + 0.35 * expression.brow_inner
    thickness = 0.13
    x = side * np.array([inner_x, 0.5 * (inner_x + outer_x), outer_x])
    y = np.array([inner_y, 0.5 * (inner_y + outer_y) - 0.05, outer_y])
    pen.band(x, y, y + thickness, _DARK)


def _draw_mouth(pen: _Pen, expression: Expression) -> None:
    centre_y = 0.66
    ellipse = np.sqrt(1.0 - _ACROSS**2)
    bow = ellipse + expression.mouth_squareness * (np.minimum(1.0, 3.0 * ellipse) - ellipse)
    spine = centre_y + expression.mouth_corners * (0.4 - _ACROSS**2)
    curl = expression.lip_curl * np.clip(1.0 - np.abs(_ACROSS - 0.35) / 0.65, 0.0, 1.0)
    upper = spine - expression.mouth_open * bow - curl
    lower = spine + expression.mouth_open * bow
    lip = 0.09 * (1.0 - 0.6 * expression.lip_shade)
    x = expression.mouth_width * _ACROSS
    lip_colour = _mix(_LIP, _DARK, expression.lip_shade)
    pen.band(1.12 * x, upper - lip, lower + lip, lip_colour)
    gap = expression.mouth_open + np.max(curl)
    if gap <= 0.05 or expression.lip_shade > 0:
        return
    pen.band(x, upper, lower, _DARK)
    if expression.teeth > 0:
        pen.band(0.92 * x, upper, upper + expression.teeth * 0.75 * (lower - upper), _WHITE)


def _mix(one: Rgb, other: Rgb, share: float) -> Rgb:
    """`one` with a share of `other`."""
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue
