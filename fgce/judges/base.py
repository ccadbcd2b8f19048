"""What a judge is: the answers to FG-CE's two steps for one sentence, and to what an explanation conveys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fgce.schema import Function, JudgeInfo, MissingReason, Modality, ScoreMode, Usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a judge that is a model: the text, what it cost and how many attempts it took."""

    raw: str
    usage: Usage
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class SentenceLabel:
    """Step 1. `confidence` is in [0, 1], or None where the judge gave none."""

    function: Function
    modality: Modality
    confidence: float | None
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class SentenceRating:
    """Step 2. `score` as the judge gave it: the scorer checks it against the scale.

    `expected` is the mean of the judge's distribution over the scale, where it tells one.
    """

    score: int
    explanation: str | None = None
    expected: float | None = None
    answer: Answer | None = None


class JudgeError(Exception):
    """A judge has no answer for a sentence; the sentence becomes missing for `reason`.

    `answer` is what the judge said, where that was no answer to the question.
    """

    def __init__(self, reason: MissingReason, detail: str, answer: Answer | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.answer = answer


class Judge(Protocol):
    """A judge of sentences. Its methods raise JudgeError, and nothing else, when they have no answer."""

    @property
    def decoding(self) -> str:
        """How it answers, where one judge has several ways (a protocol, its settings); part of the cache's key and of
        every response."""
        ...

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

    async def name_emotion(self, explanation: str, emotions: Sequence[str]) -> str | None:
        """Which of `emotions` the explanation conveys by itself; None for none, or for several alike."""
        ...

    async def aclose(self) -> None:
        """Lets go of connections and engines."""
        ...
