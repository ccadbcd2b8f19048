"""scripts/plot_stages.py: the curves of runs, the same bytes for the same figures."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest


def write_run(folder: Path, war: float, names: Sequence[str] = ("sft", "grpo1"), judged: bool = True) -> Path:
    folder.mkdir(parents=True)
    s_coh, interval = (3.0, [2.5, 3.5]) if judged else (None, None)
    stages = [
        {"name": name, "war": war, "s_coh": s_coh, "intervals": {"war": [war - 0.1, war + 0.1], "s_coh": interval}}
        for name in names
    ]
    (folder / "summary.json").write_text(json.dumps({"stages": stages}))
    return folder


LINES = ("#1f77b4", "#ff7f0e")  # colours of the first and the second run


def places(panel: str, line: str) -> list[float]:
    """Where a line has points in a panel of the drawing."""
    return sorted({float(x) for x in re.findall(rf'<use [^>]*x="([^"]+)"[^>]*fill: {line}', panel)})


def plot_stages(repo: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, repo / "scripts/plot_stages.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_curves_are_drawn_the_same_each_time(repo: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "first", 0.5), write_run(tmp_path / "second", 0.7)]
    for name in ("a.svg", "b.svg"):
        assert plot_stages(repo, *runs, "--output", tmp_path / "new" / name).returncode == 0
    drawn = (tmp_path / "new/a.svg").read_text()
    assert drawn == (tmp_path / "new/b.svg").read_text()
    assert all(f">{word}<" in drawn for word in ("first", "second", "sft", "grpo1", "WAR"))


def test_runs_are_told_apart_and_no_run_is_given_twice(repo: Path, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / seed / "evaluation", 0.5) for seed in ("seed0", "seed1")]
    assert plot_stages(repo, *runs, "--output", tmp_path / "x.svg").returncode == 0
    drawn = (tmp_path / "x.svg").read_text()
    assert ">seed0/evaluation<" in drawn
    assert ">seed1/evaluation<" in drawn
    twice = plot_stages(repo, runs[0], runs[0], "--output", tmp_path / "y.svg")
    assert (twice.returncode, "a run is given twice" in twice.stderr) == (2, True)


def test_stages_stand_under_their_names_and_what_nobody_judged_is_a_gap(repo: Path, tmp_path: Path) -> None:
    short = write_run(tmp_path / "without_rft", 0.5, ("sft", "grpo2", "grpo3"), judged=False)
    whole = write_run(tmp_path / "whole", 0.7, ("sft", "grpo2", "rft", "grpo3"))
    done = plot_stages(repo, short, whole, "--output", tmp_path / "x.svg")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "x.svg").read_text()
    ticks = re.findall(r">(sft|grpo2|rft|grpo3)<", drawn)
    assert ticks == ["sft", "grpo2", "rft", "grpo3"] * 2
    # From left to right, where each line has points: the panel of WAR, then that of S_coh with one more in its legend.
    panels = drawn.split('<g id="axes_')[1:]
    (war_short, war_whole), (s_coh_short, s_coh_whole) = ([places(panel, line) for line in LINES] for panel in panels)
    assert war_short == pytest.approx([war_whole[0], war_whole[1], war_whole[3]], abs=10)
    assert (len(war_whole), len(s_coh_short), len(s_coh_whole)) == (4, 1, 5)


def test_a_run_without_figures_is_named(repo: Path, tmp_path: Path) -> None:
    done = plot_stages(repo, tmp_path / "nothing", "--output", tmp_path / "x.svg")
    assert done.returncode == 1
    assert "nothing/summary.json" in done.stderr
