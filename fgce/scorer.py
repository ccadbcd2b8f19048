"""Two-step scoring of explanations: one piece of code over every judge (FG-CE, two-step scoring)."""

import asyncio
import time
from dataclasses import dataclass, replace

from fgce.aggregate import aggregate
from fgce.cache import InFlight, ScoreCache, cache_key
from fgce.judges.base import Answer, Judge, JudgeError
from fgce.rubric import Rubric
from fgce.schema import (
    SCALES,
    ExplanationScore,
    MethodInfo,
    MissingReason,
    ScoreItem,
    ScoreMode,
    ScoreRequest,
    ScoreResponse,
    SentenceScore,
)
from fgce.sentences import SPLITTERS, SplitterName

# Explanations of a request in work at once: enough to fill an engine's batches, and few enough that a judge which
# computes in this process lets health checks through in between.
_WIDTH = 128


class Scorer:
    """Splits explanations, asks the judge both questions a sentence, aggregates.

    Equal sentences of equal explanations are judged once: from the cache where there is one, and together where
    they are in flight.

    Args:
        judge: who answers.
        rubric: weights of the sample-level score.
        cache: where scores are kept between requests.
        splitter: of sentences.
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
        splitter: SplitterName = "sentencex",
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
        self._splitter = splitter
        self._in_flight = InFlight()

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """One result an item, in order, within `timeout` seconds."""
        deadline = self._deadline()
        width = asyncio.Semaphore(_WIDTH)

        async def score_item(item: ScoreItem) -> ExplanationScore:
            async with width:
                question = self._question(item, request.score_mode, request.gen_explanation)
                return await self._score_item(item, question, deadline)

        results = await asyncio.gather(*(score_item(item) for item in request.items))
        method = MethodInfo(decoding=self.judge.decoding, splitter=self._splitter)
        return ScoreResponse(rubric=self.rubric.info, judge=self.judge.info, method=method, results=results)

    async def score_afresh(self, item: ScoreItem) -> ExplanationScore:
        """Scores one explanation past the cache, which would answer for a judge that is dead."""
        question = replace(self._question(item, "fine_grained", gen_explanation=False), key=None)
        return await self._score_item(item, question, self._deadline())

    def is_cached(self, request: ScoreRequest) -> bool:
        """Whether the cache holds every sentence of a request, so that no judge is needed."""
        questions = (self._question(item, request.score_mode, request.gen_explanation) for item in request.items)
        return all(
            self._cache and question.key and self._cache.get(cache_key(question.key, text))
            for question in questions
            for text in question.sentences
        )

    async def aclose(self) -> None:
        """Lets go of the judge and the cache."""
        await self.judge.aclose()
        if self._cache:
            self._cache.close()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.timeout

    def _question(self, item: ScoreItem, mode: ScoreMode, gen_explanation: bool) -> "_Question":
        if item.sentences is None:
            explanation = item.explanation or ""
            texts = SPLITTERS[self._splitter](explanation)
        else:
            explanation, texts = " ".join(item.sentences), item.sentences
        emotion = item.predicted_emotion.strip()
        key = cache_key(
            self.rubric.info.sha256,
            self.judge.info.model_dump(),
            self.judge.decoding,
            explanation,
            emotion.casefold(),
            mode,
            gen_explanation,
        )
        return _Question(explanation, tuple(texts), emotion, mode, gen_explanation, key)

    async def _score_item(self, item: ScoreItem, question: "_Question", deadline: float) -> ExplanationScore:
        texts = question.sentences
        if len(texts) > self.max_sentences:
            detail = f"{len(texts)} sentences; the limit is {self.max_sentences}"
            return ExplanationScore.missing(item.id, MissingReason.TOO_LARGE, detail)
        sentences = await asyncio.gather(*(self._score_sentence(text, question, deadline) for text in texts))
        return aggregate(item.id, sentences, mode=question.mode, max_missing_share=self.max_missing_share)

    async def _score_sentence(self, text: str, question: "_Question", deadline: float) -> SentenceScore:
        if not text.strip():
            return SentenceScore(text=text, status="ok", function="others")
        if len(text) > self.max_sentence_chars:
            detail = f"{len(text)} characters; the limit is {self.max_sentence_chars}"
            return _missing(SentenceScore(text=text, status="ok"), MissingReason.TOO_LARGE, detail)
        try:
            async with asyncio.timeout_at(deadline):
                if question.key is None:
                    return await self._judge_sentence(text, question)
                return await self._judge_once(text, question, cache_key(question.key, text))
        except TimeoutError:
            detail = f"no answer within {self.timeout:g} s"
            return _missing(SentenceScore(text=text, status="ok"), MissingReason.TIMEOUT, detail)

    async def _judge_once(self, text: str, question: "_Question", key: str) -> SentenceScore:
        """From the cache, or together with whoever asks the same, or by the judge."""
        kept = self._cache.get(key) if self._cache else None
        if kept:
            return kept
        score = await self._in_flight.run(key, lambda: self._judge_sentence(text, question))
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
    """An explanation and how it is to be judged; `key` is the hash of all that, None past cache and joining."""

    explanation: str
    sentences: tuple[str, ...]
    emotion: str
    mode: ScoreMode
    gen_explanation: bool
    key: str | None


def _trace(sentence: SentenceScore, answer: Answer | None) -> None:
    if answer:
        sentence.trace.raw.append(answer.raw)
        sentence.trace.usage.append(answer.usage)
        sentence.trace.attempts += answer.attempts


def _missing(sentence: SentenceScore, reason: MissingReason, detail: str) -> SentenceScore:
    sentence.status, sentence.reason, sentence.detail = "missing", reason, detail
    return sentence
