"""Which emotion an explanation conveys by itself: the question behind EEA, FCR and EPC.

It is asked of the same judges as the scores, apart from the rubric: the judge sees the explanation and the names to
choose from, never the emotion that was predicted.
"""

import asyncio
from typing import Annotated

from pydantic import BaseModel, Field

from fgce.judges.base import Judge, JudgeError
from fgce.judges.emotion_question import QUESTION
from fgce.schema import Identity, JudgeInfo, MissingReason, RubricInfo, Status, Strict, Text

_WIDTH = 128  # explanations of a request in work at once, as in the scorer


class EmotionItem(Strict):
    """One explanation to read."""

    id: Text
    explanation: Text


class EmotionRequest(Strict):
    """Body of POST /v1/emotion. `emotions` are the names to choose from."""

    items: list[EmotionItem]
    emotions: Annotated[list[Text], Field(min_length=2, max_length=128)]


class ConveyedEmotion(BaseModel):
    """One of the request's emotions; None with status "ok" where the explanation conveys none of them, or several
    alike.
    """

    id: str
    status: Status
    reason: MissingReason | None = None
    detail: str | None = None
    emotion: str | None = None

    @property
    def unfinished(self) -> bool:
        """The judge owes the answer."""
        return self.reason is not None and not self.reason.lies_with_text

    @classmethod
    def missing(cls, id: str, reason: MissingReason, detail: str | None = None) -> "ConveyedEmotion":
        """A result for an explanation on which the judge failed."""
        return cls(id=id, status="missing", reason=reason, detail=detail)


class EmotionResponse(BaseModel):
    """Body of the answer to POST /v1/emotion: one result an item, in the items' order.

    `question` says in which words a model is asked. It and `judge` are None only where no server answered.
    """

    question: RubricInfo | None
    judge: JudgeInfo | None
    results: list[ConveyedEmotion]

    @property
    def identity(self) -> Identity | None:
        """Question and judge, who is asked it in one way only; None where no server answered."""
        if self.question is None or self.judge is None:
            return None
        return self.model_dump(include={"question", "judge"})


class EmotionReader:
    """Asks a judge which emotion each explanation conveys.

    Args:
        judge: who answers.
        timeout: seconds after which a request's unanswered explanations are missing.
    """

    def __init__(self, judge: Judge, timeout: float = 100.0) -> None:
        self._judge = judge
        self._timeout = timeout
        self._width = asyncio.Semaphore(_WIDTH)

    async def read(self, request: EmotionRequest) -> EmotionResponse:
        """One result an item, in order, within `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + self._timeout
        results = await asyncio.gather(*(self._read_item(item, request.emotions, deadline) for item in request.items))
        return EmotionResponse(question=QUESTION, judge=self._judge.info, results=results)

    async def _read_item(self, item: EmotionItem, emotions: list[str], deadline: float) -> ConveyedEmotion:
        if not item.explanation.strip():
            return ConveyedEmotion(id=item.id, status="ok")
        try:
            async with asyncio.timeout_at(deadline), self._width:
                emotion = await self._judge.name_emotion(item.explanation, emotions)
        except JudgeError as error:
            return ConveyedEmotion.missing(item.id, error.reason, str(error))
        except TimeoutError:
            return ConveyedEmotion.missing(item.id, MissingReason.TIMEOUT, f"no answer within {self._timeout:g} s")
        if emotion is not None and emotion not in emotions:
            detail = f"the judge named '{emotion}', which is not among {emotions}"
            return ConveyedEmotion.missing(item.id, MissingReason.OUT_OF_RANGE, detail)
        return ConveyedEmotion(id=item.id, status="ok", emotion=emotion)
