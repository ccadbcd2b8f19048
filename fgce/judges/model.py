"""A judge that is a language model, whatever engine generates its answers."""

from collections.abc import Sequence
from typing import Protocol

from fgce.judges.base import SentenceLabel, SentenceRating
from fgce.judges.emotion_question import ask_emotion, read_emotion
from fgce.judges.protocols import AnswerProtocol, Completion, Query
from fgce.schema import Function, JudgeInfo, ScoreMode


class Engine(Protocol):
    """Generates text. Raises JudgeError, and nothing else, when it cannot."""

    async def complete(self, query: Query) -> Completion:
        """One generation under the query's constraint."""
        ...

    async def aclose(self) -> None:
        """Lets go of what it holds."""
        ...


class ModelJudge:
    """Implements `fgce.judges.base.Judge` over an engine and a protocol."""

    def __init__(self, engine: Engine, protocol: AnswerProtocol, info: JudgeInfo) -> None:
        self._engine = engine
        self._protocol = protocol
        self.info = info

    @property
    def decoding(self) -> str:
        """The protocol; decoding is greedy in both."""
        return self._protocol.name

    async def label(self, sentence: str, explanation: str) -> SentenceLabel:
        """Step 1."""
        return self._protocol.read_label(await self._engine.complete(self._protocol.ask_label(sentence, explanation)))

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
        """Step 2."""
        query = self._protocol.ask_rating(sentence, explanation, function, predicted_emotion, mode, gen_explanation)
        return self._protocol.read_rating(await self._engine.complete(query), mode)

    async def name_emotion(self, explanation: str, emotions: Sequence[str]) -> str | None:
        """One generation, whatever the protocol."""
        return read_emotion(await self._engine.complete(ask_emotion(explanation, emotions)), emotions)

    async def aclose(self) -> None:
        """Lets go of the engine."""
        await self._engine.aclose()
