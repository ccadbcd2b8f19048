"""One stage of training as the evaluation sees it."""

from dataclasses import dataclass, field
from typing import Any

from fgce.emotion import ConveyedEmotion
from fgce.schema import ExplanationScore
from humanomni.evaluation.predictions import Prediction


@dataclass(frozen=True)
class Stage:
    """A stage's predictions, their coherence scores and the emotions that their explanations convey, in one order.

    `info` holds what else is known of it (seconds, log_history); `failed` counts clips without a prediction; `media`
    is what the model was shown, a key of `humanomni.prompts.MODALITIES`.
    """

    name: str
    predictions: list[Prediction]
    scores: list[ExplanationScore]
    conveyed: list[ConveyedEmotion] = field(default_factory=list)
    failed: int = 0
    media: str = "video_audio"
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def lacks_answers(self) -> bool:
        """A score or a conveyed emotion is missing."""
        return "missing" in {*(score.status for score in self.scores), *(one.status for one in self.conveyed)}
