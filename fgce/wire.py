"""The wire format of the authors' judge server, POST /function_eval, which published clients speak.

Where the authors' server answers with a number that FG-CE does not allow, or with one error for a whole batch, this
one answers with an item of its own for each sentence; docs/fgce.md lists the differences.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from fgce.schema import SCALES, MissingReason, SentenceScore, Text

OTHERS_EXPLANATION = "Not information extraction, analysis or conclusion."


class FunctionEvalRequest(BaseModel):
    """Body of POST /function_eval. The sampling and audio fields and `full_explanation_content` have no effect.

    `score_mode` is a plain string, as there: one that is no mode gives an error item a sentence. The authors'
    server also does that when it is omitted; here it is then fine_grained.
    """

    model_config = ConfigDict(extra="ignore")
    explanation_sentence_batch: list[Text] = []
    predicted_emotion: Text = ""
    score_mode: Text = "fine_grained"
    gen_explanation: bool = False
    full_explanation_content: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 1
    max_tokens: int = 32
    use_audio_in_video: bool = False
    return_audio: bool = False

    @property
    def mode_error(self) -> list[dict[str, Any]] | None:
        """The answer to a request whose score mode does not exist."""
        if self.score_mode in SCALES:
            return None
        error = {"error": f"second-stage build_input error: {self.score_mode!r}"}
        return [error] * len(self.explanation_sentence_batch)


def to_wire(sentence: SentenceScore) -> dict[str, Any]:
    """One item of the answer."""
    if sentence.status == "missing" and sentence.reason != MissingReason.OUT_OF_RANGE:
        return _error(sentence)
    if sentence.function == "others":
        return {"function": "others", "score": 0, "explanation": OTHERS_EXPLANATION}
    item = {
        "function": sentence.function,
        "modality": sentence.modality,
        "confidence": sentence.confidence,
        "score": sentence.score,
        "explanation": sentence.explanation,
    }
    if sentence.status == "missing":  # a score that is none or off the scale
        item["raw_output"] = sentence.trace.raw[-1] if sentence.trace.raw else sentence.detail
    return item


def _error(sentence: SentenceScore) -> dict[str, Any]:
    """The authors' words for a failure; a sentence without a function failed in step 1."""
    detail = sentence.detail or sentence.reason
    if sentence.reason != MissingReason.UNPARSEABLE:
        stage = "second" if sentence.function else "first"
        return {"error": f"{stage}-stage batch generation error: {detail}"}
    if sentence.function:
        return {"error": f"second-stage postprocess error: {detail}"}
    return {"error": "No valid function detected", "judge_output": "".join(sentence.trace.raw)}
