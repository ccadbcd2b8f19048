"""What a judge is: the answers to FG-CE's two steps for one sentence."""

from dataclasses import dataclass
from typing import Protocol

from fgce.schema import Function, JudgeInfo, MissingReason, Modality, ScoreMode


@dataclass(frozen=True, slots=True)
class SentenceLabel:
    """Step 1. `confidence` is in [0, 1], or None where the judge gave none."""

    function: Function
    modality: Modality
    confidence: float | None


@dataclass(frozen=True, slots=True)
class SentenceRating:
    """Step 2. `score` as the judge gave it: the scorer checks it against the scale."""

    score: int
    explanation: str | None = None


class JudgeError(Exception):
    """A judge has no answer for a sentence; the sentence becomes missing for `reason`."""

    def __init__(self, reason: MissingReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Judge(Protocol):
    """A judge of sentences. Both methods raise JudgeError, and nothing else, when they have no answer."""

    @property
    def info(self) -> JudgeInfo:
        """Which judge this is; part of every response."""
        ...

    async def label(self, sentence: str, explanation: str) -> SentenceLabel:
        """Step 1: function and modality of `sentence`, given the whole explanation."""
        ...

    async def rate(
        self,
        sentence: str,
        explanation: str,
        function: Function,
        predicted_emotion: str,
        *,
        mode: ScoreMode,
        gen_explanation: bool,
    ) -> SentenceRating:
        """Step 2: score of a sentence of `function` against the predicted emotion."""
        ...
