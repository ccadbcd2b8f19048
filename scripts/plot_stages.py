"""Plots WAR and S_coh over the stages of one or more runs, with the 95 % bootstrap intervals of their summary.json.

python scripts/plot_stages.py runs/quickstart runs/quickstart-seed1 runs/quickstart-seed2 --output docs/quickstart.svg

A stage that a run lacks is passed over; one that was not judged leaves a gap.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

MARKERS = "osD^vP*"
# By panel: the figure's key in summary.json and how it becomes a number from 0 to 1.
FIGURES = {"WAR": ("war", lambda value: value), "S_coh, normalised": ("s_coh", lambda value: (value - 1) / 4)}


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders that scripts/evaluate.py wrote to")
    parser.add_argument("--output", type=Path, required=True, help=".svg, .png or .pdf")
    arguments = parser.parse_args()
    if len({run.resolve() for run in arguments.runs}) < len(arguments.runs):
        parser.error("a run is given twice")
    try:
        summaries = [json.loads((run / "summary.json").read_bytes()) for run in arguments.runs]
        runs = dict(zip(distinct_names(arguments.runs), (summary["stages"] for summary in summaries), strict=True))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"plot_stages: {error}; each run needs the summary.json of scripts/evaluate.py")
    # Without the date and with seeded ids, the same runs give the same bytes.
    with rc_context({"svg.hashsalt": "stages", "svg.fonttype": "none"}):
        plot(runs, arguments.output)


def distinct_names(runs: Sequence[Path]) -> list[str]:
    """The ends of the runs' paths, which differ, as long as it takes to tell them apart."""
    parts = [run.resolve().parts for run in runs]
    ends = ([str(Path(*path[-length:])) for path in parts] for length in itertools.count(1))
    return next(names for names in ends if len(set(names)) == len(names))


def stages_in_order(runs: Iterable[Sequence[dict[str, Any]]]) -> list[str]:
    """The names of all stages; one that only a later run has comes after the stage that it follows there."""
    names: list[str] = []
    for stages in runs:
        place = 0
        for stage in stages:
            if stage["name"] not in names:
                names.insert(place, stage["name"])
            place = names.index(stage["name"]) + 1
    return names


def plot(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """A panel a figure, a line a run, a point a stage.

    Args:
        runs: the stages of each run, as summary.json lists them.

    Raises:
        OSError: the file cannot be written.
    """
    names = stages_in_order(runs.values())
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (title, (key, scaled)) in zip(figure.subplots(1, 2), FIGURES.items(), strict=True):
        for number, (name, stages) in enumerate(runs.items()):
            # Value, low and high; those of a stage that nobody judged are None, then NaN, which is drawn as a gap.
            figures = [[stage[key], *(stage["intervals"][key] or (None, None))] for stage in stages]
            values, *bounds = scaled(np.array(figures, dtype=float)).T
            places = np.array([names.index(stage["name"]) for stage in stages]) + 0.08 * (number - (len(runs) - 1) / 2)
            reach = np.abs(np.array(bounds) - values)
            axes.errorbar(places, values, reach, marker=MARKERS[number % len(MARKERS)], capsize=2, label=name)
        axes.set(title=title, xticks=range(len(names)), xticklabels=names, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
