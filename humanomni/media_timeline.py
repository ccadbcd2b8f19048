"""Which frames of a clip are taken: the part between two seconds, and a few frames spread over it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timeline:
    """When each frame of a clip is shown.

    Attributes:
        seconds: presentation time of each frame after the first, ascending, float64 [N].
        fps: average frames a second.
    """

    seconds: np.ndarray
    fps: float

    @classmethod
    def even(cls, count: int, fps: float) -> "Timeline":
        """`count` frames at a constant rate."""
        return cls(np.arange(count) / fps, fps)

    @property
    def regular(self) -> bool:
        """Whether every frame is shown within half a frame of where a constant rate would have it."""
        return bool(np.abs(self.seconds * self.fps - np.arange(len(self.seconds))).max() < 0.5)

    def between(self, start: float, end: float) -> range:
        """Frames from second `start` to `end`; empty when the clip ends before `start`.

        By the authors' formula, which begins one frame early, for a constant frame rate. With a variable one, where
        that formula would miss, the frames that are on screen in that time.
        """
        count = len(self.seconds)
        if self.regular:
            return range(max(int(start * self.fps) - 1, 0), int(min(end * self.fps, count)))
        if start >= self.seconds[-1] + 1 / self.fps:
            return range(0)
        first = max(int(np.searchsorted(self.seconds, start, side="right")) - 1, 0)
        return range(first, max(int(np.searchsorted(self.seconds, end)), first + 1))

    def duration(self, frames: range) -> float:
        """Seconds that `frames` are on screen, the last one as long as the average."""
        return float(self.seconds[frames[-1]] - self.seconds[frames[0]]) + 1 / self.fps


def sample_frame_indices(length: int, num_frames: int) -> list[int]:
    """Spread `num_frames` indices over a range of `length` frames, at the middle of equal segments.

    The authors' formula, rounding half to even; indices repeat when the range is shorter than asked.

    Raises:
        ValueError: `length` or `num_frames` is below 1.
    """
    if length < 1 or num_frames < 1:
        raise ValueError(f"cannot take {num_frames} of {length} frames: both must be at least 1")
    edges = (length - 1) / num_frames * np.arange(num_frames + 1, dtype=np.float64)
    return np.round((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(int).tolist()
