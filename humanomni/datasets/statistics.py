"""What is in record files: classes, explanations, durations, sound; as figures and as plots."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from humanomni.completion import parse_completion
from humanomni.datasets.check import ClipCheck
from humanomni.media import time_range
from humanomni.records import BadLine, Record

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True)
class RecordFile:
    """A file's entries with what is in their clips.

    Attributes:
        name: in tables and plots.
        entries: from `read_records(path, "skip")`.
        checks: by the records' ids.
    """

    name: str
    entries: Sequence[Record | BadLine]
    checks: Mapping[str, ClipCheck]

    @property
    def records(self) -> list[Record]:
        return [entry for entry in self.entries if isinstance(entry, Record)]

    @property
    def labels(self) -> Counter[str]:
        """Records of each emotion; "compound" and "none" stand for those without a single one."""
        return Counter(record.label or ("none" if record.target is None else "compound") for record in self.records)

    @property
    def readable(self) -> list[ClipCheck]:
        return [check for check in self.checks.values() if check.error is None]

    @property
    def seconds(self) -> list[float]:
        """What each record is about: its clip, or the part between its start and end."""
        return [
            _seconds_of(record, self.checks[record.id])
            for record in self.records
            if self.checks[record.id].error is None
        ]

    @property
    def loudness(self) -> list[float]:
        return [check.loudness for check in self.readable if check.loudness is not None]


def _seconds_of(record: Record, check: ClipCheck) -> float:
    begin, stop = time_range(record.start, record.end)
    return max(0.0, min(stop, check.seconds) - begin)


def statistics(file: RecordFile) -> dict[str, Any]:
    """Plain figures of one file, for JSON. Imbalance is the largest class over the smallest."""
    labels = file.labels
    emotions = [count for label, count in labels.items() if label not in {"compound", "none"}]
    thoughts = [parse_completion(record.target or "").think for record in file.records]
    problems = Counter(problem for check in file.readable for problem in check.problems)
    return {
        "records": len(file.records),
        "bad_lines": len(file.entries) - len(file.records),
        "labels": dict(labels.most_common()),
        "imbalance": round(max(emotions) / min(emotions), 2) if emotions else None,
        "words_of_explanation": _quantiles([len(thought.split()) for thought in thoughts if thought]),
        "seconds": _quantiles(file.seconds),
        "hours": round(sum(file.seconds) / 3600, 3),
        "with_sound": sum(check.has_audio for check in file.readable),
        "loudness_dbfs": _quantiles(file.loudness),
        "sizes": dict(Counter(f"{check.width}x{check.height}" for check in file.readable).most_common(5)),
        "unreadable": len(file.checks) - len(file.readable),
        "problems": dict(problems.most_common()),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {f"{share:.0%}": round(float(np.quantile(values, share)), 2) for share in QUANTILES}


def plot(files: Sequence[RecordFile], path: Path) -> None:
    """Class balance over durations and loudness, one colour a file; PNG, PDF or SVG by the suffix.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplot_mosaic([["labels", "labels"], ["seconds", "loudness"]])
    total = sum((file.labels for file in files), Counter())
    names = [label for label, _ in total.most_common()]
    width = 0.8 / len(files)
    for index, file in enumerate(files):
        places = np.arange(len(names)) + (index - (len(files) - 1) / 2) * width
        panels["labels"].bar(places, [file.labels[label] for label in names], width, label=file.name)
    panels["labels"].set(ylabel="records", xticks=range(len(names)), xticklabels=names)
    panels["labels"].legend(frameon=False)
    for key, title in (("seconds", "duration (s)"), ("loudness", "loudness (dBFS)")):
        series = [getattr(file, key) for file in files]
        if any(series):
            panels[key].hist(series, bins=30, histtype="step" if len(files) > 1 else "bar")
        panels[key].set(xlabel=title, ylabel="clips")
    figure.savefig(path)
