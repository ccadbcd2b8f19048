"""scripts/plot_stages.py: the curves of runs, the same bytes for the same figures."""

import json
import subprocess
import sys
from pathlib import Path


def write_run(folder: Path, war: float) -> Path:
    folder.mkdir()
    stages = [
        {"name": name, "war": war, "s_coh": 3.0, "intervals": {"war": [war - 0.1, war + 0.1], "s_coh": [2.5, 3.5]}}
        for name in ("sft", "grpo1")
    ]
    (folder / "summary.json").write_text(json.dumps({"stages": stages}))
    return folder


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


def test_a_run_without_figures_is_named(repo: Path, tmp_path: Path) -> None:
    done = plot_stages(repo, tmp_path / "nothing", "--output", tmp_path / "x.svg")
    assert done.returncode == 1
    assert "nothing/summary.json" in done.stderr
