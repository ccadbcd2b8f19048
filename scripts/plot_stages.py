"""Plots WAR and S_coh over the stages of one or more runs, with the 95 % bootstrap intervals of their summary.json.

python scripts/plot_stages.py runs/quickstart runs/quickstart-seed1 runs/quickstart-seed2 --output docs/quickstart.svg
"""

import argparse
import json
import sys
from collections.abc import Sequence
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
    try:
        summaries = {run.name: json.loads((run / "summary.json").read_bytes()) for run in arguments.runs}
        runs = {name: summary["stages"] for name, summary in summaries.items()}
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"plot_stages: {error}; each run needs the summary.json of scripts/evaluate.py")
    # Without the date and with seeded ids, the same runs give the same bytes.
    with rc_context({"svg.hashsalt": "stages", "svg.fonttype": "none"}):
        plot(runs, arguments.output)


def plot(runs: dict[str, Sequence[dict[str, Any]]], path: Path) -> None:
    """A panel a figure, a line a run, a point a stage.

    Args:
        runs: the stages of each run, as summary.json lists them.

    Raises:
        OSError: the file cannot be written.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (title, (key, scaled)) in zip(figure.subplots(1, 2), FIGURES.items(), strict=True):
        for number, (name, stages) in enumerate(runs.items()):
            values = np.array([scaled(stage[key]) for stage in stages])
            intervals = np.array([[scaled(bound) for bound in stage["intervals"][key]] for stage in stages])
            places = np.arange(len(stages)) + 0.08 * (number - (len(runs) - 1) / 2)
            reach = np.abs(intervals - values[:, None]).T
            axes.errorbar(places, values, reach, marker=MARKERS[number % len(MARKERS)], capsize=2, label=name)
        names = [stage["name"] for stage in next(iter(runs.values()))]
        axes.set(title=title, xticks=range(len(names)), xticklabels=names, ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
