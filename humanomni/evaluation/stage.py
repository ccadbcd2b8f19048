"""One stage of training as the evaluation sees it."""

from dataclasses import dataclass, field
from typing import Any

from fgce.schema import ExplanationScore
from humanomni.evaluation.predictions import Prediction


@dataclass(frozen=True)
class Stage:
    """A stage's predictions and their coherence scores, in the same order.

    `info` holds what else is known of it (seconds, log_history); `failed` counts clips without a prediction.
    """

    name: str
    predictions: list[Prediction]
    scores: list[ExplanationScore]
    failed: int = 0
    info: dict[str, Any] = field(default_factory=dict)
