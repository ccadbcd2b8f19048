"""The report's sample cards: which clips get one, and what it holds."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from fgce.emotion import ConveyedEmotion
from fgce.schema import ExplanationScore
from humanomni.evaluation.anatomy import FUNCTIONS, MODALITIES, s_coh
from humanomni.evaluation.clips import ClipView
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.stage import Stage

MAX_CARDS = 2000
TEXT_BYTES = 9_000_000  # of all cards' texts; with the strips' share this keeps a report under 30 MB

Sample = dict[str, Any]


def choose_samples(stages: Sequence[Stage], limit: int) -> list[Sample]:
    """The clips that get a card, in the files' order, each with every stage's answer (None where a stage has none).

    Where there are more than `limit`, or than TEXT_BYTES hold, the true emotions take turns, and within each the clips
    that the last stage got right and wrong: a rare class or a rare error is not lost among the frequent.
    """
    samples = _samples(stages)
    groups: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        last = sample["answers"][-1]
        groups[str(sample["truth"]), bool(last and last["correct"])].append(index)
    turns = [index for turn in zip_longest(*groups.values()) for index in turn if index is not None]
    chosen, size = [], 0
    for index in turns[:limit]:
        size += len(json.dumps(samples[index], separators=(",", ":")))
        if size > TEXT_BYTES:
            break
        chosen.append(index)
    return [samples[index] for index in sorted(chosen)]


def with_views(samples: Sequence[Sample], views: Mapping[str, ClipView]) -> list[Sample]:
    """The samples with strip, waveform, length and note of their clip."""
    return [sample | vars(views.get(sample["id"], ClipView())) for sample in samples]


def _samples(stages: Sequence[Stage]) -> list[Sample]:
    by_id = [
        {
            p.id: answer_entry(p, score, conveyed)
            for p, score, conveyed in zip(stage.predictions, stage.scores, stage.conveyed, strict=True)
        }
        for stage in stages
    ]
    truths = {p.id: p.truth for stage in stages for p in stage.predictions}
    return [
        {"id": identity, "truth": truth, "answers": [answered.get(identity) for answered in by_id]}
        for identity, truth in truths.items()
    ]


def answer_entry(prediction: Prediction, score: ExplanationScore, conveyed: ConveyedEmotion) -> dict[str, Any]:
    """A stage's part of a card; sentences are short rows because there may be tens of thousands of them."""
    return {
        "predicted": prediction.predicted,
        "words": prediction.answer,
        "correct": None if prediction.truth is None else prediction.correct,
        "score": s_coh(score),
        "missing": score.reason if score.status == "missing" else None,
        "conveyed": conveyed.emotion,
        "flags": score.flags,
        "text": "" if score.sentences else prediction.explanation,
        "malformed": prediction.response if prediction.well_formed is False else None,
        "sentences": [
            [
                sentence.text,
                FUNCTIONS.index(sentence.function) if sentence.function else None,
                MODALITIES.index(sentence.modality) if sentence.modality else None,
                sentence.score,
                sentence.weight,
                sentence.explanation or sentence.detail or "",
            ]
            for sentence in score.sentences
        ],
    }
