"""A judge for tests: answers from a function, after a delay, and counts what it was asked."""

import asyncio
from collections.abc import Callable

from fgce.judges.base import JudgeError, SentenceLabel, SentenceRating
from fgce.schema import Function, JudgeInfo, MissingReason, ScoreMode


class FakeJudge:
    """Every sentence is a visual conclusion scored by `score`; one that contains `unlucky` has no answer."""

    def __init__(
        self, score: Callable[[str], int] = lambda sentence: 4, delay: float = 0.0, name: str = "fake"
    ) -> None:
        self.score = score
        self.delay = delay
        self.asked: list[str] = []
        self.cancelled = 0
        self.dead = False
        self.broken = False
        self.unlucky = "fail"
        self.info = JudgeInfo(backend="fake", model=name, revision="1")
        self.decoding = ""

    async def label(self, sentence: str, explanation: str) -> SentenceLabel:
        self.asked.append(sentence)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.broken:
            raise KeyError("a mistake in the judge")
        if self.dead or self.unlucky in sentence:
            raise JudgeError(MissingReason.JUDGE_ERROR, "engine died")
        return SentenceLabel("conclusion", "visual", 0.9)

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
        return SentenceRating(self.score(sentence), expected=self.score(sentence) - 0.25)

    async def aclose(self) -> None:
        pass
