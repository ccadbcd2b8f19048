"""Modality ablations: what becomes of answers and explanations when the model is shown less of the clip."""

from collections.abc import Sequence
from typing import Any

from fgce.schema import ExplanationScore
from humanomni.evaluation.significance import compare
from humanomni.evaluation.stage import Stage
from humanomni.evaluation.stage_summary import stage_summary
from humanomni.prompts import MODALITIES

# Which media let a model observe what a sentence of the modality reports. Contextual evidence is left out: a speaker's
# words may come from the sound, from a subtitle in the picture, or from the prompt.
_SEEN_IN = {"audio": {"audio"}, "visual": {"video", "image"}}


def ablation_summary(full: Stage, ablated: Sequence[Stage], classes: Sequence[str], seed: int) -> dict[str, Any] | None:
    """The last stage beside the same model shown less, what summary.json holds as "ablations"; None without any.

    Returns:
        "full", the stage's name, and "runs": for the stage itself and each ablation its `stage_summary` with "media"
        and "unseen", and for the ablations "against_full", as `compare` gives it.
    """
    if not ablated:
        return None
    runs = [_run(full, classes, seed)]
    runs += [_run(stage, classes, seed) | {"against_full": compare(full, stage, classes, seed)} for stage in ablated]
    return {"full": full.name, "runs": runs}


def _run(stage: Stage, classes: Sequence[str], seed: int) -> dict[str, Any]:
    return stage_summary(stage, classes, seed) | {"media": stage.media, "unseen": unseen(stage.scores, stage.media)}


def unseen(scores: Sequence[ExplanationScore], media: str) -> float | None:
    """Share of sentences that report what no medium could show, such as a tone of voice without the sound.

    Such evidence is invented. Sentences of function `others` report none and do not count; None without sentences.
    """
    shown = set(MODALITIES[media])
    reporting = [s for score in scores for s in score.sentences if s.modality and s.function != "others"]
    invented = [
        s
        for s in reporting
        if any(not _SEEN_IN[part] & shown for part in str(s.modality).split("-") if part in _SEEN_IN)
    ]
    return len(invented) / len(reporting) if reporting else None
