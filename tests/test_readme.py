"""The README's commands work as they stand: the miniature runs, the others name files and flags that exist."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line.split("   #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
MINIATURE = next(block for block in BLOCKS if "make_toy_data.py" in block)


@cache
def help_of(program: tuple[str, ...]) -> str:
    answer = subprocess.run([sys.executable, *program, "--help"], cwd=REPO, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_files_and_flags_of_a_command_exist(command: str) -> None:
    words = command.split()
    for word in words:
        if re.search(r"\.(py|sh|yaml)$", word):
            assert (REPO / word).is_file(), word
    scripts = [word for word in words if word.endswith(".py")]
    if "fgce" in words:
        program = ("-m", "fgce", words[words.index("fgce") + 1])
    elif scripts:
        program = (scripts[0],)
    else:
        return
    after = words[words.index(program[-1]) + 1 :]
    for flag in (word for word in after if word.startswith("--") and word != "--config"):
        assert re.search(rf"{flag}\b", help_of(program)), f"{program} has no {flag}"


@pytest.mark.slow
def test_the_miniature_runs_as_it_stands(tmp_path: Path) -> None:
    """Slow: nine programs, each of which imports torch, from clips to report."""
    for name in ("scripts", "configs", "humanomni", "fgce", "train_sft.py", "train_grpo.py", "inference_batch.py"):
        (tmp_path / name).symlink_to(REPO / name)
    commands = "\n".join(line for line in MINIATURE.splitlines() if not line.startswith("source "))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "2",
        "FGCE_URL": "http://127.0.0.1:9",  # nothing listens there: the evaluation says so and goes on
    }
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert len((tmp_path / "runs/grpo1/predictions/test.jsonl").read_text().splitlines()) == 14
    assert (tmp_path / "runs/report/report.html").is_file()
    assert (tmp_path / "runs/report/summary.json").is_file()
