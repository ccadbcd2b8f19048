"""How a language model is asked and its answers are read: `json`, close to the authors', and `fast`.

`json` asks for two JSON objects a sentence. `fast` asks for a label code and a one-token score, whose distribution
gives the expected score beside the likeliest one. Decoding is constrained to the labels and the scale in both.
"""

import json
import math
import re
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, Protocol, get_args

from fgce.judges.base import Answer, JudgeError, SentenceLabel, SentenceRating
from fgce.judges.prompts import FUNCTION_CODES, MODALITY_CODES, Messages, label_messages, rate_messages
from fgce.rubric import Rubric
from fgce.schema import SCALES, Function, MissingReason, Modality, ScoreMode

ProtocolName = Literal["json", "fast"]

_ANSWER_TOKENS = 128  # more than either answer has bytes

# Of a reason. A character is four bytes at most, and a token one at least: so many tokens always hold the answer, and
# no constrained one ends before its closing brace.
_REASON_CHARS = 400
_REASON_TOKENS = 4 * _REASON_CHARS

_FENCE = re.compile(r"```\s*json(.*?)(?:```|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Query:
    """One generation: greedy, of at most `max_tokens`, and one of `choices` or an instance of `schema`."""

    messages: Messages
    max_tokens: int
    choices: tuple[str, ...] = ()
    schema: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A generated token's log-probability, and those of the likeliest alternatives at its place, by text."""

    logprob: float
    top: dict[str, float]


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine generated; `tokens` are there where the query has choices and the engine tells."""

    answer: Answer
    tokens: tuple[TokenChoice, ...] = ()


class AnswerProtocol(Protocol):
    """A way to put both questions to a language model and to read its answers."""

    name: ProtocolName

    def ask_label(self, sentence: str, explanation: str) -> Query: ...

    def read_label(self, completion: Completion) -> SentenceLabel: ...

    def ask_rating(
        self, sentence: str, explanation: str, function: Function, emotion: str, mode: ScoreMode, explain: bool
    ) -> Query: ...

    def read_rating(self, completion: Completion, mode: ScoreMode) -> SentenceRating: ...


class JsonProtocol:
    """Two JSON answers a sentence."""

    name: ProtocolName = "json"

    def __init__(self, rubric: Rubric) -> None:
        self._rubric = rubric

    def ask_label(self, sentence: str, explanation: str) -> Query:
        """Confidence is one of eleven numbers: a free number can run to endless digits."""
        answer = self._rubric.prompts.answers.json_.label
        messages = label_messages(self._rubric, sentence, explanation, answer, codes=False)
        schema = object_schema(
            function={"enum": list(get_args(Function))},
            modality={"enum": list(get_args(Modality))},
            confidence={"enum": [i / 10 for i in range(11)]},
        )
        return Query(messages, _ANSWER_TOKENS, schema=schema)

    def read_label(self, completion: Completion) -> SentenceLabel:
        """As lenient as the authors' server, except that an unknown modality is no answer."""
        answer = completion.answer
        found = extract_json(answer.raw.lower())
        if not isinstance(found, dict) or found.get("function") not in get_args(Function):
            raise JudgeError(MissingReason.UNPARSEABLE, "no valid function in the answer", answer)
        function: Function = found["function"]
        modality: Modality = "contextual"
        if found.get("modality") in get_args(Modality):
            modality = found["modality"]
        elif function != "others":
            raise JudgeError(MissingReason.UNPARSEABLE, "no valid modality in the answer", answer)
        return SentenceLabel(function, modality, _confidence(found.get("confidence")), answer)

    def ask_rating(
        self, sentence: str, explanation: str, function: Function, emotion: str, mode: ScoreMode, explain: bool
    ) -> Query:
        """With a reason, where one is asked for."""
        answers = self._rubric.prompts.answers.json_
        answer = answers.rate_and_explain if explain else answers.rate
        messages = rate_messages(self._rubric, sentence, explanation, function, emotion, answer, mode=mode)
        low, high = SCALES[mode]
        properties: dict[str, Any] = {"score": {"enum": list(range(low, high + 1))}}
        if explain:
            properties["explanation"] = {"type": "string", "maxLength": _REASON_CHARS}
        max_tokens = _ANSWER_TOKENS + (_REASON_TOKENS if explain else 0)
        return Query(messages, max_tokens, schema=object_schema(**properties))

    def read_rating(self, completion: Completion, mode: ScoreMode) -> SentenceRating:
        """A number between two scores counts as the lower one, as in the authors' server."""
        answer = completion.answer
        found = extract_json(answer.raw)
        if not isinstance(found, dict):
            raise JudgeError(MissingReason.UNPARSEABLE, "the answer is no JSON object", answer)
        explanation = found.get("explanation")
        try:
            score = int(found["score"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise JudgeError(MissingReason.OUT_OF_RANGE, "the answer holds no score", answer) from error
        return SentenceRating(score, explanation if isinstance(explanation, str) else None, answer=answer)


class FastProtocol:
    """A label code and a one-token score; a reason, where one is asked for, comes by the json protocol."""

    name: ProtocolName = "fast"

    def __init__(self, rubric: Rubric) -> None:
        self._rubric = rubric
        self._json = JsonProtocol(rubric)
        self._labels: dict[str, tuple[Function, Modality]] = {
            function_code + modality_code: (function, modality)
            for (function, function_code), (modality, modality_code) in product(
                FUNCTION_CODES.items(), MODALITY_CODES.items()
            )
        }

    def ask_label(self, sentence: str, explanation: str) -> Query:
        """One of 28 codes."""
        answer = self._rubric.prompts.answers.fast.label
        messages = label_messages(self._rubric, sentence, explanation, answer, codes=True)
        return Query(messages, max_tokens=4, choices=tuple(self._labels))

    def read_label(self, completion: Completion) -> SentenceLabel:
        """The confidence is the probability of the code."""
        code = completion.answer.raw.strip()
        if code not in self._labels:
            raise JudgeError(MissingReason.UNPARSEABLE, "the answer is no label code", completion.answer)
        confidence = None
        if completion.tokens:
            confidence = min(1.0, math.exp(sum(token.logprob for token in completion.tokens)))
        return SentenceLabel(*self._labels[code], confidence, completion.answer)

    def ask_rating(
        self, sentence: str, explanation: str, function: Function, emotion: str, mode: ScoreMode, explain: bool
    ) -> Query:
        """One digit of the scale."""
        if explain:
            return self._json.ask_rating(sentence, explanation, function, emotion, mode, explain)
        answer = self._rubric.prompts.answers.fast.rate
        messages = rate_messages(self._rubric, sentence, explanation, function, emotion, answer, mode=mode)
        low, high = SCALES[mode]
        return Query(messages, max_tokens=1, choices=tuple(str(score) for score in range(low, high + 1)))

    def read_rating(self, completion: Completion, mode: ScoreMode) -> SentenceRating:
        """The expected score is sum(s * P(s)), with P renormalised over the scale."""
        text = completion.answer.raw.strip()
        if text.startswith("{"):
            return self._json.read_rating(completion, mode)
        if not (text.isascii() and text.isdigit()):
            raise JudgeError(MissingReason.UNPARSEABLE, "the answer is no digit", completion.answer)
        return SentenceRating(int(text), None, expected_score(completion.tokens, mode), completion.answer)


def make_protocol(name: ProtocolName, rubric: Rubric) -> AnswerProtocol:
    """The protocol of that name."""
    return JsonProtocol(rubric) if name == "json" else FastProtocol(rubric)


def expected_score(tokens: tuple[TokenChoice, ...], mode: ScoreMode) -> float | None:
    """sum(s * P(s)) of the first token; None where the engine told no alternatives."""
    low, high = SCALES[mode]
    mass: dict[int, float] = {}
    for text, logprob in tokens[0].top.items() if tokens else ():
        digit = text.strip()
        if digit.isascii() and digit.isdigit() and low <= int(digit) <= high:
            mass[int(digit)] = mass.get(int(digit), 0.0) + math.exp(logprob)
    total = sum(mass.values())
    return sum(score * probability for score, probability in mass.items()) / total if total else None


def extract_json(text: str) -> Any:
    """The JSON value in a model's answer, bare or in a code fence; None where there is none.

    Fences are read as the authors' server reads them, for endpoints whose decoding is not constrained. Raw control
    characters in strings are let pass: constrained decoding can give them.
    """
    text = text.strip()
    if fenced := _FENCE.search(text):
        text = fenced.group(1).strip()
    elif len(text) >= 6 and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].strip()
    try:
        return json.loads(text, strict=False)
    except (json.JSONDecodeError, RecursionError):
        return None


def object_schema(**properties: Any) -> dict[str, Any]:
    """The JSON schema of an object that has just these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _confidence(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None
