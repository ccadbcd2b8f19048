"""The headline figures as Markdown and CSV, for papers and spreadsheets."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from humanomni.evaluation.published import CAVEAT

HEADLINE = {
    "name": "stage",
    "n": "clips",
    "war": "WAR",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "format_rate": "format",
    "parse_rate": "parsed",
    "s_coh": "S_coh",
    "s_coh_normalised": "S_coh normalised",
    "s_coh_unweighted": "S_coh unweighted",
    "n_missing": "unscored",
}


def markdown(summary: Mapping[str, Any]) -> str:
    """One table row a stage, WAR, UAR and S_coh with their 95 % intervals; below it the published figures."""
    lines = [f"| {' | '.join(HEADLINE.values())} |", "|" + " --- |" * len(HEADLINE)]
    lines += [
        f"| {' | '.join(_cell(stage[key], stage['intervals'].get(key)) for key in HEADLINE)} |"
        for stage in summary["stages"]
    ]
    if summary["published"]:
        lines += ["", CAVEAT, "", "| published | WAR | UAR |", "| --- | --- | --- |"]
        lines += [
            f"| {model} | {war / 100:.3f} | {uar / 100:.3f} |" for model, (war, uar) in summary["published"].items()
        ]
    return "\n".join(lines) + "\n"


def comma_separated(summary: Mapping[str, Any]) -> str:
    """One line a stage, full precision, empty where a figure is missing."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, HEADLINE, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary["stages"])
    return buffer.getvalue()


def _cell(value: object, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")
