"""Two-step scoring of explanations: one piece of code over every judge (FG-CE, two-step scoring)."""

import asyncio
from collections.abc import Sequence

from fgce.aggregate import aggregate
from fgce.judges.base import Judge, JudgeError
from fgce.rubric import Rubric
from fgce.schema import (
    SCALES,
    ExplanationScore,
    MissingReason,
    ScoreItem,
    ScoreMode,
    ScoreRequest,
    ScoreResponse,
    SentenceScore,
)
from fgce.sentences import split_sentences


class Scorer:
    """Splits explanations, asks the judge both questions a sentence, aggregates.

    Args:
        judge: who answers.
        rubric: weights of the sample-level score.
        max_missing_share: above this share of missing sentences an explanation is missing.
        sentence_timeout: seconds that both steps of one sentence may take.
    """

    def __init__(
        self,
        judge: Judge,
        rubric: Rubric,
        *,
        max_missing_share: float = 0.5,
        sentence_timeout: float = 60.0,
    ) -> None:
        self.judge = judge
        self.rubric = rubric
        self.max_missing_share = max_missing_share
        self.sentence_timeout = sentence_timeout

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One result an item, in order."""
        results = await asyncio.gather(
            *(self._score_item(item, request.score_mode, request.gen_explanation) for item in request.items)
        )
        return ScoreResponse(rubric=self.rubric.info, judge=self.judge.info, results=results)

    async def score_sentences(
        self,
        sentences: Sequence[str],
        explanation: str,
        predicted_emotion: str,
        *,
        mode: ScoreMode,
        gen_explanation: bool,
    ) -> list[SentenceScore]:
        """Both steps for each sentence, all at once: batching is the judge's affair."""
        return await asyncio.gather(
            *(self._score_sentence(text, explanation, predicted_emotion, mode, gen_explanation) for text in sentences)
        )

    async def _score_item(self, item: ScoreItem, mode: ScoreMode, gen_explanation: bool) -> ExplanationScore:
        if item.sentences is None:
            explanation = item.explanation or ""
            texts = split_sentences(explanation)
        else:
            texts = item.sentences
            explanation = " ".join(texts)
        sentences = await self.score_sentences(
            texts, explanation, item.predicted_emotion, mode=mode, gen_explanation=gen_explanation
        )
        return aggregate(item.id, sentences, mode=mode, max_missing_share=self.max_missing_share)

    async def _score_sentence(
        self, text: str, explanation: str, emotion: str, mode: ScoreMode, gen_explanation: bool
    ) -> SentenceScore:
        result = SentenceScore(text=text, status="ok")
        if not text.strip():
            result.function = "others"
            return result
        try:
            async with asyncio.timeout(self.sentence_timeout):
                await self._two_steps(result, explanation, emotion, mode, gen_explanation)
        except JudgeError as error:
            result.status, result.reason, result.detail = "missing", error.reason, str(error)
        except TimeoutError:
            result.status, result.reason = "missing", MissingReason.TIMEOUT
            result.detail = f"no answer within {self.sentence_timeout:g} s"
        return result

    async def _two_steps(
        self, result: SentenceScore, explanation: str, emotion: str, mode: ScoreMode, gen_explanation: bool
    ) -> None:
        """Fills `result` as far as the judge gets, so that a missing sentence keeps what is known of it."""
        label = await self.judge.label(result.text, explanation)
        result.function, result.modality, result.confidence = label.function, label.modality, label.confidence
        if label.function == "others":
            return
        rating = await self.judge.rate(
            result.text, explanation, label.function, emotion, mode=mode, gen_explanation=gen_explanation
        )
        low, high = SCALES[mode]
        if not low <= rating.score <= high:
            raise JudgeError(MissingReason.OUT_OF_RANGE, f"score {rating.score} is not on the scale {low}..{high}")
        result.score, result.explanation = rating.score, rating.explanation
        result.weight = self.rubric.weight(label.function, label.modality)
