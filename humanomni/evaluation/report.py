"""The report: one HTML file that needs no network, made from the summary's figures and the samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from humanomni.evaluation.anatomy import FUNCTIONS, MODALITIES
from humanomni.evaluation.cards import Sample
from humanomni.evaluation.charts import Chart, stage_chart, training_charts
from humanomni.evaluation.published import CAVEAT
from humanomni.evaluation.stage import Stage

# The figures that get a curve over the stages: title, scale.
CURVES = {
    "war": ("WAR", (0.0, 1.0)),
    "uar": ("UAR", (0.0, 1.0)),
    "s_coh": ("Coherence (S_coh)", (1.0, 5.0)),
    "fcr": ("Faithful consistency (FCR)", (0.0, 1.0)),
}


def render_report(summary: Mapping[str, Any], stages: Sequence[Stage], samples: Sequence[Sample]) -> str:
    """The report's HTML.

    Args:
        summary: what summary.json holds.
        stages: the same stages with their predictions and scores.
        samples: the cards, from `choose_samples` and `with_views`.
    """
    clips = {p.id for stage in stages for p in stage.predictions}
    return (
        environment()
        .get_template("report.html")
        .render(
            summary=summary,
            stages=summary["stages"],
            stage_charts=_stage_charts(summary["stages"]),
            training_charts=training_charts({stage.name: stage.info.get("log_history", []) for stage in stages}),
            functions=FUNCTIONS,
            modalities=MODALITIES,
            caveat=CAVEAT,
            n_clips=len(clips),
            cards={
                "stages": [stage.name for stage in stages],
                "functions": FUNCTIONS,
                "modalities": MODALITIES,
                "samples": samples,
            },
        )
    )


def environment() -> jinja2.Environment:
    """The templates of this folder, with the filters that they use."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    templates.filters["figure"] = _figure
    templates.filters["percent"] = _percent
    templates.filters["signed"] = _signed
    return templates


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


def _figure(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
