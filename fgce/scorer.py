"""Two-step scoring of explanations: one piece of code over every judge (FG-CE, two-step scoring)."""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from fgce.aggregate import aggregate
from fgce.cache import InFlight, ScoreCache, cache_key
from fgce.judges.base import Answer, Judge, JudgeError
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

    Equal sentences of equal explanations are judged once: from the cache where there is one, and together where
    they are in flight.

    Args:
        judge: who answers.
        rubric: weights of the sample-level score.
        cache: where scores are kept between requests.
        split: the sentence splitter.
        max_missing_share: above this share of missing sentences an explanation is missing.
        max_sentences: an explanation of more sentences is missing, unjudged.
        max_sentence_chars: a longer sentence is missing, unjudged.
        timeout: seconds after which a request's unanswered sentences are missing.
    """

    def __init__(
        self,
        judge: Judge,
        rubric: Rubric,
        *,
        cache: ScoreCache | None = None,
        split: Callable[[str], list[str]] = split_sentences,
        max_missing_share: float = 0.5,
        max_sentences: int = 256,
        max_sentence_chars: int = 4000,
        timeout: float = 100.0,
    ) -> None:
        self.judge = judge
        self.rubric = rubric
        self.max_missing_share = max_missing_share
        self.max_sentences = max_sentences
        self.max_sentence_chars = max_sentence_chars
        self.timeout = timeout
        self._cache = cache
        self._split = split
        self._in_flight = InFlight()

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One result an item, in order, within `timeout` seconds."""
        results = await asyncio.gather(
            *(self._score_item(item, request.score_mode, request.gen_explanation) for item in request.items)
        )
        return ScoreResponse(rubric=self.rubric.info, judge=self.judge.info, results=results)

    async def score_afresh(self, item: ScoreItem) -> ExplanationScore:
        """Scores one explanation past the cache, which would answer for a judge that is dead."""
        return await self._score_item(item, "fine_grained", gen_explanation=False, afresh=True)

    async def aclose(self) -> None:
        """Lets go of the judge and the cache."""
        await self.judge.aclose()
        if self._cache:
            self._cache.close()

    async def _score_item(
        self, item: ScoreItem, mode: ScoreMode, gen_explanation: bool, *, afresh: bool = False
    ) -> ExplanationScore:
        if item.sentences is None:
            explanation = item.explanation or ""
            texts = self._split(explanation)
        else:
            texts = item.sentences
            explanation = " ".join(texts)
        if len(texts) > self.max_sentences:
            detail = f"{len(texts)} sentences; the limit is {self.max_sentences}"
            return ExplanationScore.missing(item.id, MissingReason.TOO_LARGE, detail)
        question = _Question(explanation, item.predicted_emotion.strip(), mode, gen_explanation)
        key = cache_key(
            self.rubric.info.sha256,
            self.judge.info.model_dump(),
            self.judge.decoding,
            explanation,
            question.emotion.casefold(),
            mode,
            gen_explanation,
            uuid.uuid4().hex if afresh else "",
        )
        sentences = await asyncio.gather(*(self._score_sentence(text, question, key) for text in texts))
        return aggregate(item.id, sentences, mode=mode, max_missing_share=self.max_missing_share)

    async def _score_sentence(self, text: str, question: "_Question", item_key: str) -> SentenceScore:
        if not text.strip():
            return SentenceScore(text=text, status="ok", function="others")
        if len(text) > self.max_sentence_chars:
            detail = f"{len(text)} characters; the limit is {self.max_sentence_chars}"
            return _missing(SentenceScore(text=text, status="ok"), MissingReason.TOO_LARGE, detail)
        key = cache_key(item_key, text)
        kept = self._cache.get(key) if self._cache else None
        if kept:
            return kept
        try:
            async with asyncio.timeout(self.timeout):
                score = await self._in_flight.run(key, lambda: self._judge_sentence(text, question))
        except TimeoutError:
            detail = f"no answer within {self.timeout:g} s"
            return _missing(SentenceScore(text=text, status="ok"), MissingReason.TIMEOUT, detail)
        if self._cache:
            self._cache.put(key, score)
        return score

    async def _judge_sentence(self, text: str, question: "_Question") -> SentenceScore:
        """A missing sentence keeps what is known of it, such as the function that it was given in step 1."""
        result = SentenceScore(text=text, status="ok")
        start = time.monotonic()
        try:
            await self._two_steps(result, question)
        except JudgeError as error:
            _missing(result, error.reason, str(error))
            _trace(result, error.answer)
        result.trace.seconds = time.monotonic() - start
        return result

    async def _two_steps(self, result: SentenceScore, question: "_Question") -> None:
        label = await self.judge.label(result.text, question.explanation)
        result.function, result.modality, result.confidence = label.function, label.modality, label.confidence
        _trace(result, label.answer)
        if label.function == "others":
            return
        rating = await self.judge.rate(
            result.text,
            question.explanation,
            label.function,
            question.emotion,
            mode=question.mode,
            gen_explanation=question.gen_explanation,
        )
        low, high = SCALES[question.mode]
        if not low <= rating.score <= high:
            detail = f"score {rating.score} is not on the scale {low}..{high}"
            raise JudgeError(MissingReason.OUT_OF_RANGE, detail, rating.answer)
        result.score, result.expected, result.explanation = rating.score, rating.expected, rating.explanation
        result.weight = self.rubric.weight(label.function, label.modality)
        _trace(result, rating.answer)


@dataclass(frozen=True, slots=True)
class _Question:
    """What all sentences of an explanation are judged by."""

    explanation: str
    emotion: str
    mode: ScoreMode
    gen_explanation: bool


def _trace(sentence: SentenceScore, answer: Answer | None) -> None:
    if answer:
        sentence.trace.raw.append(answer.raw)
        sentence.trace.usage.append(answer.usage)
        sentence.trace.attempts += answer.attempts


def _missing(sentence: SentenceScore, reason: MissingReason, detail: str) -> SentenceScore:
    sentence.status, sentence.reason, sentence.detail = "missing", reason, detail
    return sentence
