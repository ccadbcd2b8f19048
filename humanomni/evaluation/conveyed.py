"""Does the explanation say what the answer says? EEA, FCR and EPC.

A judge reads each explanation alone and names the emotion that it conveys. Against truth and prediction that gives

- EEA, explanation emotion accuracy: the share whose explanation conveys the true emotion;
- FCR, faithful consistency rate: the share whose explanation and prediction both equal the truth;
- EPC, explanation-prediction consistency: the share whose explanation conveys the predicted emotion.

An explanation that conveys none of the emotions, or is not there, agrees with nothing. One on which the judge failed is
missing and in no denominator, never neutral.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgce.client import FgceClient
from fgce.emotion import ConveyedEmotion, EmotionItem, EmotionRequest
from fgce.schema import Identity
from humanomni.evaluation import metrics
from humanomni.evaluation.judged import Interview, Reply
from humanomni.evaluation.predictions import Prediction


class EmotionNamer:
    """Has a judge name the emotion of every explanation, each once; see `Interview` for what is asked again.

    Args:
        client: the FG-CE server.
        classes: the emotions to choose from.
        kept: JSONL of kept answers, made or continued.
    """

    def __init__(self, client: FgceClient, classes: Sequence[str], kept: Path) -> None:
        self._client = client
        self._classes = list(classes)
        self._interview: Interview[str, ConveyedEmotion] = Interview(self._ask, "", kept, ConveyedEmotion)

    @property
    def identity(self) -> Identity | None:
        """Question and judge of the answers; None while nobody has answered."""
        return self._interview.identity

    @property
    def failure(self) -> str | None:
        """Why no server answers, in words; None while one does."""
        return self._interview.failure

    def name(self, predictions: Sequence[Prediction], stage: str) -> list[ConveyedEmotion]:
        """One answer a prediction, in order; missing where the judge failed.

        Raises:
            JudgeChangedError: the server's question or judge is not that of the first answer.
        """
        judged = {self._key(p.explanation): p.explanation for p in predictions if p.explanation}
        named = self._interview.answers(judged, f"{stage}, emotions")
        silent = ConveyedEmotion(id="", status="ok")
        return [named.get(self._key(p.explanation), silent).model_copy(update={"id": p.id}) for p in predictions]

    def _ask(self, questions: Mapping[str, str]) -> Reply[ConveyedEmotion]:
        items = [EmotionItem(id=key, explanation=explanation) for key, explanation in questions.items()]
        response = self._client.name_emotions(EmotionRequest(items=items, emotions=self._classes))
        return Reply(response.identity, response.results)

    def _key(self, explanation: str) -> str:
        return hashlib.sha256(f"{self._classes}\n{explanation}".encode()).hexdigest()[:32]


def consistency(predictions: Sequence[Prediction], conveyed: Sequence[ConveyedEmotion], seed: int) -> dict[str, Any]:
    """EEA, FCR and EPC with their 95 % bootstrap intervals.

    EEA and FCR are over the predictions whose truth is known, EPC over all; each without the missing ones. None where
    nothing is left.

    Returns:
        {"eea", "fcr", "epc", "n_conveyed_missing", "intervals": {name: (low, high)}}.
    """
    pairs = list(zip(predictions, conveyed, strict=True))
    judged = [(p, c.emotion) for p, c in pairs if c.status == "ok"]
    if len(judged) < len(pairs) and not any(p.explanation for p, _ in judged):
        judged = []  # no judge: the clips without an explanation, alone, would make every share 0
    known = [(p, emotion) for p, emotion in judged if p.truth is not None]
    shares = {
        "eea": [emotion == p.truth for p, emotion in known],
        "fcr": [emotion == p.truth == p.predicted for p, emotion in known],
        "epc": [emotion is not None and emotion == p.predicted for p, emotion in judged],
    }
    return {
        **{name: sum(hits) / len(hits) if hits else None for name, hits in shares.items()},
        "n_conveyed_missing": sum(c.status == "missing" for c in conveyed),
        "intervals": {name: metrics.bootstrap_mean(hits, seed) if hits else None for name, hits in shares.items()},
    }
