"""srun_fgce.sh, run without Slurm and under a stand-in for srun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launcher_factory import FAKE_SRUN

from fgce.client import FgceClient
from fgce.schema import ScoreItem

ITEM = ScoreItem(id="a", explanation="She is angry.", predicted_emotion="anger")


# The tests' own python, but that an installation is only written down, and whether there is vLLM is told.
PYTHON = """#!/bin/sh
case "$*" in
    *"pip install"*) echo "$0 $*" >> "{folder}/installs"; exit ;;
    *find_spec*) exit {no_vllm} ;;
esac
exec "{python}" "$@"
"""


def make_environment(folder: Path, name: str = "venv", vllm: bool = False) -> Path:
    """A virtual environment in the folder, with or without vLLM; returns its path."""
    commands = folder / name / "bin"
    commands.mkdir(parents=True)
    (commands / "activate").touch()
    (commands / "python").write_text(PYTHON.format(folder=folder, no_vllm=int(not vllm), python=sys.executable))
    (commands / "python").chmod(0o755)
    return commands.parent


def launch(repo: Path, folder: Path, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "FGCE_CONFIG": "configs/fgce/lexicon.yaml",
        "FGCE_RUN": str(folder / "run"),
        "FGCE_PORT": "0",
        "FGCE_HOST": "127.0.0.1",
        "FGCE_WAIT": "60",
        "FGCE_CHECK": "0.3",
        "SLURM_SUBMIT_DIR": str(repo),
    }
    if "VENV" not in variables:
        environment["VENV"] = str(make_environment(folder))
    return subprocess.Popen(
        ["bash", "srun_fgce.sh"],
        cwd=repo,
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    assert path.exists(), process.communicate(timeout=5)[0] if process.poll() is not None else "no endpoints file"
    return path.read_text()


@pytest.mark.parametrize("nodes", [1, 2])
async def test_the_endpoints_file_is_all_that_a_trainer_needs(repo: Path, tmp_path: Path, nodes: int):
    variables = {}
    if nodes > 1:
        srun = tmp_path / "bin/srun"
        srun.parent.mkdir()
        shebang, *lines = FAKE_SRUN.splitlines()
        srun.write_text("\n".join([shebang, f'echo "$*" > "{tmp_path}/srun.arguments"', *lines, ""]))
        srun.chmod(0o755)
        path = f"{srun.parent}:{os.environ['PATH']}"
        variables = {"SLURM_JOB_ID": "1", "SLURM_NNODES": str(nodes), "SLURM_CPUS_PER_TASK": "8", "PATH": path}
    process = launch(repo, tmp_path, **variables)
    try:
        endpoints = wait_for(tmp_path / "run/endpoints", process)
        token = tmp_path / "run/token"
        assert len(set(endpoints.split())) == nodes
        if nodes > 1:
            assert "--cpus-per-task=8" in (tmp_path / "srun.arguments").read_text()
        assert token.stat().st_mode & 0o077 == 0
        client = FgceClient(endpoints, token=token.read_text().strip())
        assert (await client.score([ITEM])).results[0].score == 5
        refused = await FgceClient(endpoints, token="another").score([ITEM])
        assert refused.results[0].reason == "refused"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert not (tmp_path / "run/endpoints").exists()
    client = FgceClient(endpoints, token=token.read_text().strip(), attempts=1)
    assert (await client.score([ITEM])).results[0].reason == "unreachable"


async def test_a_server_that_dies_is_started_again_at_its_address_and_its_log_stays(repo: Path, tmp_path: Path):
    log = tmp_path / "run/server-0.log"
    log.parent.mkdir()
    log.write_text("FG-CE ready at http://127.0.0.1:9\n")  # of an earlier job
    process = launch(repo, tmp_path)
    try:
        endpoints = wait_for(tmp_path / "run/endpoints", process)
        client = FgceClient(endpoints, token=(tmp_path / "run/token").read_text().strip(), deadline=30, attempts=30)
        family = psutil.Process(process.pid).children(recursive=True)
        (server,) = [p for p in family if "fgce" in (psutil.Process.as_dict(p, ["cmdline"])["cmdline"] or ())]
        server.kill()
        assert (await client.score([ITEM])).results[0].score == 5
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert "stopped answering and is started again" in output
    urls = [line.rpartition(" ")[2] for line in log.read_text().splitlines() if "FG-CE ready at" in line]
    assert urls == ["http://127.0.0.1:9", endpoints.strip(), endpoints.strip()]


def test_a_server_that_cannot_start_ends_the_job_with_its_log(repo: Path, tmp_path: Path):
    config = tmp_path / "bad.yaml"
    config.write_text("prot: 1\n")
    process = launch(repo, tmp_path, FGCE_CONFIG=str(config))
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "did not get ready" in output
    assert "prot=1" in output


@pytest.mark.parametrize(
    ("backend", "vllm", "installed"),
    [("lexicon", False, ("venv", "")), ("vllm", False, ("venv-vllm", "[vllm]")), ("vllm", True, None)],
)
def test_a_judge_makes_the_environment_that_it_needs(
    repo: Path, tmp_path: Path, backend: str, vllm: bool, installed: tuple[str, str] | None
):
    """vLLM's versions are not those of constraints.txt, so what is installed for it leaves the trainer's alone."""
    config = tmp_path / "judge.yaml"
    config.write_text(f"judge:\n  backend: {backend} # the judge\nno_such_key: 1\n")  # so that it ends at once
    make_environment(tmp_path, "venv-vllm")
    process = launch(repo, tmp_path, FGCE_CONFIG=str(config), VENV=str(make_environment(tmp_path, "venv", vllm)))
    output, _ = process.communicate(timeout=60)
    assert "no_such_key" in output
    record = tmp_path / "installs"
    if installed is None:
        assert not record.exists()
        return
    environment, extras = installed
    (line,) = record.read_text().splitlines()
    assert line.startswith(f"{tmp_path / environment}/bin/python -m pip install ")
    assert line.endswith(f" --editable {repo}{extras}")
    assert ("--constraint" in line) == (backend == "lexicon")


def test_shellcheck_has_no_objections(repo: Path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(
        ["shellcheck", "--external-sources", "srun_fgce.sh"], cwd=repo, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
