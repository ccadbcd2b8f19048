"""scripts/ablations.py with a stand-in for the quickstart: what each run is told, and the table."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

REPO = Path(__file__).parents[1]

# Writes down its flags and leaves what a run of this name would: the steps of a full run, a model, figures.
QUICKSTART = """#!/usr/bin/env bash
echo "== sft"
"{python}" - "$@" <<'END'
import json, sys
from pathlib import Path
seed, flags = sys.argv[2], sys.argv[4:]
given = dict(zip(flags, flags[1:]))
run = Path("runs", given.get("--name", "quickstart" if seed == "0" else "quickstart-seed" + seed))
run.mkdir(parents=True, exist_ok=True)
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps([run.name, flags]) + "\\n")
if "--name" not in given:
    stages = ["sft", "grpo1", "grpo2", "candidates"]
    names = stages + ["infer-" + stage for stage in stages]
    done = dict(status="finished", command=[], inputs={{}})
    steps = {{name: {{**done, "outputs": {{f"{{run}}/{{name}}": ""}}}} for name in names}}
    (run / "manifest.json").write_text(json.dumps(dict(run=run.name, steps=steps)))
war = 0.5 + 0.1 * int(seed)
stages = [dict(name=name, war=war, uar=war, s_coh_normalised=0.25) for name in ("grpo2", "grpo3")]
(run / "summary.json").write_text(json.dumps(dict(stages=stages)))
END
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    for name in ("ablations.py", "manifest.py"):
        shutil.copy(REPO / "scripts" / name, scripts)
    (scripts / "quickstart.sh").write_text(QUICKSTART.format(python=sys.executable))
    return tmp_path


def ablate(folder: Path, *flags: str) -> list[str]:
    """Runs the script; returns the lines of its table."""
    command = [sys.executable, "scripts/ablations.py", *flags]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def calls(folder: Path) -> list[list]:
    """Run and flags of each call of the quickstart."""
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def test_every_run_gets_its_flags_and_the_stages_that_it_shares(folder: Path) -> None:
    table = ablate(folder, "--seeds", "0", "1", "--only", "no_fgce", "no_rft")
    no_fgce, no_rft = ["--set", "grpo2.rewards=format,accuracy"], ["--without_rft"]
    assert calls(folder) == [
        [run + suffix, ["--name", run + suffix, *flags] if suffix else []]
        for run in ("quickstart", "quickstart-seed1")
        for suffix, flags in (("", []), ("-no_fgce", no_fgce), ("-no_rft", no_rft))
    ]
    steps = json.loads((folder / "runs/quickstart-seed1-no_fgce/manifest.json").read_text())["steps"]
    assert list(steps) == ["sft", "infer-sft", "grpo1", "infer-grpo1"]
    assert table[0] == "| CA-EMER | WAR | UAR | S_coh | S_coh after GRPO 2 | after RFT |"
    assert table[-1] == (
        "| without RFT: GRPO 3 after GRPO 2 | 0.55 (0.50, 0.60) | 0.55 (0.50, 0.60) | 0.25 (0.25, 0.25) "
        "| 0.25 (0.25, 0.25) | – |"
    )


def test_without_its_gate_a_model_weighs_all_branches_alike(folder: Path, tiny_model_dir: Path) -> None:
    (folder / "runs/quickstart").mkdir(parents=True)
    (folder / "runs/quickstart/model").symlink_to(tiny_model_dir)
    ablate(folder, "--seeds", "0", "--only", "no_gate")
    model = folder / "runs/quickstart-no_gate/model"
    weights, before = load_file(model / "model.safetensors"), load_file(tiny_model_dir / "model.safetensors")
    changed = {name for name, tensor in weights.items() if not tensor.equal(before[name])}
    assert changed <= {"model.gate.2.weight", "model.gate.2.bias"}
    assert not weights["model.gate.2.weight"].any()
    (_, flags) = calls(folder)[-1]
    assert flags[-2:] == ["--model", "runs/quickstart-no_gate/model"]
    assert "sft.trainable_parts=projector,audio_projector,language_model" in flags
