"""The figures as Markdown and CSV, for papers and spreadsheets."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from humanomni.evaluation.published import CAVEAT

HEADLINE = {
    "name": "stage",
    "n": "clips",
    "war": "WAR",
    "uar": "UAR",
    "macro_f1": "macro F1",
    "overlap": "overlap",
    "format_rate": "format",
    "parse_rate": "parsed",
    "s_coh": "S_coh",
    "s_coh_normalised": "S_coh normalised",
    "s_coh_unweighted": "S_coh unweighted",
    "n_missing": "unscored",
    "eea": "EEA",
    "fcr": "FCR",
    "epc": "EPC",
}
COHERENCE = {
    "name": "stage",
    "s_coh_correct": "S_coh where right",
    "s_coh_wrong": "S_coh where wrong",
    "sentences": "sentences",
    "words": "words",
    "redundancy": "repeated",
}
ABLATION = {
    "media": "shown",
    "war": "WAR",
    "uar": "UAR",
    "s_coh": "S_coh",
    "fcr": "FCR",
    "unseen": "evidence unseen",
}


def markdown(summary: Mapping[str, Any]) -> str:
    """The report's tables: headline figures with their 95 % intervals, then what they are made of, part by part."""
    stages = summary["stages"]
    compound = any(stage["overlap"] is not None for stage in stages)
    headline = {key: title for key, title in HEADLINE.items() if key != "overlap" or compound}
    parts = [_of_stages(headline, stages), _classes(summary), _of_stages(COHERENCE, stages), _functions(stages)]
    if summary["comparisons"]:
        parts.append(_comparisons(summary["comparisons"]))
    if summary["ablations"]:
        parts.append(_of_stages(ABLATION, summary["ablations"]["runs"]))
    if summary["published"]:
        rows = [[model, f"{war / 100:.3f}", f"{uar / 100:.3f}"] for model, (war, uar) in summary["published"].items()]
        parts += [CAVEAT + "\n", _table(["published", "WAR", "UAR"], rows)]
    return "\n".join(parts)


def comma_separated(summary: Mapping[str, Any]) -> str:
    """One line a stage, full precision, empty where a figure is missing; the recall of a class is "recall: CLASS"."""
    columns = HEADLINE | COHERENCE
    recalls = [f"recall: {emotion}" for emotion in summary["classes"]]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*columns, *recalls])
    for stage in summary["stages"]:
        by_class = [stage["per_class"][emotion]["recall"] for emotion in summary["classes"]]
        writer.writerow([*(stage[key] for key in columns), *by_class])
    return buffer.getvalue()


def _of_stages(columns: Mapping[str, str], stages: Iterable[Mapping[str, Any]]) -> str:
    rows = [[_cell(stage[key], stage["intervals"].get(key)) for key in columns] for stage in stages]
    return _table(list(columns.values()), rows)


def _classes(summary: Mapping[str, Any]) -> str:
    stages = summary["stages"]
    rows = [
        [emotion, str(stages[-1]["per_class"][emotion]["support"])]
        + [_cell(stage["per_class"][emotion]["recall"]) for stage in stages]
        for emotion in summary["classes"]
    ]
    return _table(["true emotion", "support", *(f"recall {stage['name']}" for stage in stages)], rows)


def _functions(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [name, *(f"{_cell(stage[kind][name]['score'])} of {stage[kind][name]['count']}" for stage in stages)]
        for kind in ("by_function", "by_modality")
        for name in stages[0][kind]
    ]
    return _table(["mean sentence score", *(stage["name"] for stage in stages)], rows)


def _comparisons(steps: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        [f"{step['from']} → {step['to']}"]
        + [_cell(step[key]["difference"], step[key]["interval"], signed=True) for key in ("war", "uar", "s_coh")]
        + [str(step["gained"]), str(step["lost"]), f"{step['mcnemar_p']:.3g}", str(step["n"])]
        for step in steps
    ]
    titles = ["step", "WAR", "UAR", "S_coh", "newly right", "newly wrong", "McNemar p", "common clips"]
    return _table(titles, rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def _cell(value: object, interval: Sequence[float] | None = None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    form = "+.3f" if signed else ".3f"
    return f"{value:{form}}" + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")
