"""The report: one HTML file that needs no network, made from the summary's figures and the samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from fgce.schema import ExplanationScore
from humanomni.evaluation.anatomy import FUNCTIONS, MODALITIES, s_coh
from humanomni.evaluation.charts import Chart, stage_chart, training_charts
from humanomni.evaluation.clips import ClipView
from humanomni.evaluation.predictions import Prediction
from humanomni.evaluation.published import CAVEAT
from humanomni.evaluation.stage import Stage

# The figures that get a curve over the stages: title, scale.
CURVES = {
    "war": ("WAR", (0.0, 1.0)),
    "uar": ("UAR", (0.0, 1.0)),
    "format_rate": ("Format rate", (0.0, 1.0)),
    "s_coh": ("Coherence (S_coh)", (1.0, 5.0)),
}


def render_report(summary: Mapping[str, Any], stages: Sequence[Stage], views: Mapping[str, ClipView]) -> str:
    """The report's HTML.

    Args:
        summary: what summary.json holds.
        stages: the same stages with their predictions and scores.
        views: frames and waveform by the predictions' id; a clip without a view has a card without pictures.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["figure"] = _figure
    environment.filters["percent"] = _percent
    environment.filters["signed"] = _signed
    return environment.get_template("report.html").render(
        summary=summary,
        stages=summary["stages"],
        stage_charts=_stage_charts(summary["stages"]),
        training_charts=training_charts({stage.name: stage.info.get("log_history", []) for stage in stages}),
        functions=FUNCTIONS,
        modalities=MODALITIES,
        caveat=CAVEAT,
        cards={
            "stages": [stage.name for stage in stages],
            "functions": FUNCTIONS,
            "modalities": MODALITIES,
            "samples": _samples(stages, views),
        },
    )


def _stage_charts(stages: Sequence[Mapping[str, Any]]) -> list[Chart]:
    names = [stage["name"] for stage in stages]
    return [
        stage_chart(
            title,
            names,
            [stage[key] for stage in stages],
            [stage["intervals"].get(key) for stage in stages],
            bounds,
        )
        for key, (title, bounds) in CURVES.items()
    ]


def _samples(stages: Sequence[Stage], views: Mapping[str, ClipView]) -> list[dict[str, Any]]:
    """One entry a clip, with every stage's answer to it (None where a stage has none)."""
    by_id = [{p.id: (p, score) for p, score in zip(stage.predictions, stage.scores, strict=True)} for stage in stages]
    truths = {p.id: p.truth for stage in stages for p in stage.predictions}
    samples = []
    for identity, truth in truths.items():
        view = views.get(identity, ClipView())
        answers = [_answer(*answered[identity]) if identity in answered else None for answered in by_id]
        samples.append(
            {
                "id": identity,
                "truth": truth,
                "strip": view.strip,
                "peaks": view.peaks,
                "seconds": view.seconds,
                "note": view.note,
                "answers": answers,
            }
        )
    return samples


def _answer(prediction: Prediction, score: ExplanationScore) -> dict[str, Any]:
    """A stage's part of a card; sentences are short rows because there may be tens of thousands of them."""
    return {
        "predicted": prediction.predicted,
        "words": prediction.answer,
        "correct": prediction.correct,
        "score": s_coh(score),
        "missing": score.reason if score.status == "missing" else None,
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


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
