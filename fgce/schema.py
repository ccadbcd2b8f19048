"""The evaluator's data types, shared by server, client and command line (FG-CE, two-step sentence scoring).

A score that is not there is a state with a reason, never a number: `status` is "missing", every figure None.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Function = Literal["information extraction", "information analysis", "conclusion", "others"]
Modality = Literal[
    "audio",
    "visual",
    "contextual",
    "audio-contextual",
    "visual-contextual",
    "audio-visual",
    "audio-visual-contextual",
]
ScoreMode = Literal["fine_grained", "binary"]
Status = Literal["ok", "missing"]

# Who answered and how, as plain JSON values: answers of different identities do not compare.
Identity = dict[str, Any]

SCALES: dict[ScoreMode, tuple[int, int]] = {"fine_grained": (1, 5), "binary": (0, 1)}


class MissingReason(StrEnum):
    """Why a sentence or an explanation has no score."""

    # what the judge did
    JUDGE_ERROR = "judge_error"
    TIMEOUT = "timeout"
    UNPARSEABLE = "unparseable"
    OUT_OF_RANGE = "out_of_range"
    UNSUPPORTED_LANGUAGE = "unsupported_language"
    UNSUPPORTED_EMOTION = "unsupported_emotion"
    TOO_LARGE = "too_large"
    # what the record to score lacks
    NO_INPUT = "no_input"
    # what happened between client and server
    UNREACHABLE = "unreachable"
    OVERLOADED = "overloaded"
    REFUSED = "refused"
    SERVER_ERROR = "server_error"
    BAD_RESPONSE = "bad_response"

    @property
    def lies_with_text(self) -> bool:
        """Asking again would find the same; every other reason says nothing about the text."""
        return self in {
            MissingReason.UNSUPPORTED_LANGUAGE,
            MissingReason.UNSUPPORTED_EMOTION,
            MissingReason.TOO_LARGE,
            MissingReason.NO_INPUT,
        }


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


# Text from outside. Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark.
Text = Annotated[str, AfterValidator(_encodable)]


class Strict(BaseModel):
    """What comes from outside: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class ScoreItem(Strict):
    """One explanation to score: its text, or its sentences where the caller has split it already."""

    # The OpenAPI schema says what the validator below checks.
    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["explanation"], "properties": {"explanation": {"type": "string"}}},
                {"required": ["sentences"], "properties": {"sentences": {"type": "array"}}},
            ]
        }
    )
    id: Text
    explanation: Text | None = None
    sentences: list[Text] | None = None
    predicted_emotion: Text

    @model_validator(mode="after")
    def _one_form_of_text(self) -> Self:
        if (self.explanation is None) == (self.sentences is None):
            raise ValueError("give exactly one of 'explanation' and 'sentences'")
        return self


class ScoreRequest(Strict):
    """Body of POST /v1/score."""

    items: list[ScoreItem]
    score_mode: ScoreMode = "fine_grained"
    gen_explanation: bool = False


class RubricInfo(BaseModel):
    """Which rubric gave the scores; a change of `sha256` makes scores incomparable."""

    version: str
    sha256: str


class JudgeInfo(BaseModel):
    """Which judge gave the scores."""

    backend: str
    model: str
    revision: str


class MethodInfo(BaseModel):
    """How the judge was asked, as far as scores hang on it: the protocol, where it has several, and the splitter."""

    decoding: str
    splitter: str


class Usage(BaseModel):
    """Tokens that an answer cost; `cached` are those of the prompt that the engine had in its prefix cache."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0


class SentenceTrace(BaseModel):
    """How a sentence's score came about, for metrics and audit log; never part of a response.

    `raw` holds the judge's answers as it gave them, step by step; `seconds` is the time to have both.
    """

    raw: list[str] = []
    usage: list[Usage] = []
    attempts: int = 0
    seconds: float = 0.0
    cached: bool = False


class SentenceScore(BaseModel):
    """Both steps' answers for one sentence.

    `score` is on the mode's scale (1..5 or 0/1) and None for `others` and for a missing sentence; `weight` is
    w_function * w_modality and 0 for both of these. `expected` is the mean of the judge's distribution over the
    scale, where it tells one: it breaks ties between equal scores.
    """

    text: str
    status: Status
    reason: MissingReason | None = None
    detail: str | None = None
    function: Function | None = None
    modality: Modality | None = None
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    score: int | None = None
    expected: float | None = None
    weight: float = 0.0
    explanation: str | None = None
    trace: SentenceTrace = Field(default_factory=SentenceTrace, exclude=True, repr=False)


class ExplanationScore(BaseModel):
    """The sample-level result.

    `score` is S_coh on the mode's scale, `normalised` its place in [0, 1]; `unweighted` and
    `unweighted_normalised` are the same with every weight 1; `expected` and `expected_normalised` are the weighted
    mean of expected scores, where the judge gives these for every scored sentence. Flags: `no_evidence` (nothing to
    score: S_coh is undefined, normalised 0), `partial` (some sentences are missing), and the reasons of missing
    sentences.
    """

    id: str
    status: Status
    reason: MissingReason | None = None
    detail: str | None = None
    flags: list[str] = []
    score: float | None = None
    normalised: float | None = None
    unweighted: float | None = None
    unweighted_normalised: float | None = None
    expected: float | None = None
    expected_normalised: float | None = None
    sentences: list[SentenceScore] = []

    @property
    def lost(self) -> dict[MissingReason, str | None]:
        """Why the whole or a sentence is missing: a detail for each reason."""
        parts: list[SentenceScore | ExplanationScore] = [*self.sentences, self]
        return {part.reason: part.detail for part in parts if part.reason}

    @property
    def unfinished(self) -> bool:
        """The judge owes a part of it, a sentence at least: no result to keep, whatever its status."""
        return not all(reason.lies_with_text for reason in self.lost)

    @classmethod
    def missing(cls, id: str, reason: MissingReason, detail: str | None = None) -> Self:
        """A result without a score, for an explanation that no judge has seen."""
        return cls(id=id, status="missing", reason=reason, detail=detail, flags=[reason.value])


class ScoreResponse(BaseModel):
    """Body of the answer to POST /v1/score: one result an item, in the items' order.

    `rubric` and `judge` are None only in answers that the client made up because no server gave one, `method` also in
    those of servers that did not tell it yet.
    """

    rubric: RubricInfo | None
    judge: JudgeInfo | None
    method: MethodInfo | None = None
    results: list[ExplanationScore]

    @property
    def identity(self) -> Identity | None:
        """Rubric, judge and method; None where no server answered."""
        if self.rubric is None or self.judge is None:
            return None
        return self.model_dump(include={"rubric", "judge", "method"})
