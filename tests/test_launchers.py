"""srun_sft_humanomni.sh and srun_grpo_humanomni.sh, without Slurm and under stand-ins for it."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from launcher_factory import FAKE_SRUN, Commands

SFT, GRPO = "srun_sft_humanomni.sh", "srun_grpo_humanomni.sh"
CONFIGS = {SFT: "configs/0.5B/sft.yaml", GRPO: "configs/0.5B/grpo1.yaml"}
PROGRAMS = {SFT: "train_sft.py", GRPO: "train_grpo.py"}


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    """A machine with two GPUs and the environment of the launchers."""
    commands = Commands(tmp_path)
    commands.add_recorded("python", "if sys.argv[1] == '-c': print(2)")
    commands.add_recorded("torchrun")
    return commands


def launch(repo: Path, launcher: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", launcher, *arguments], cwd=repo, env=variables, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("launcher", [SFT, GRPO])
def test_a_workstation_runs_one_process_a_gpu(repo: Path, commands: Commands, launcher: str):
    done = launch(repo, launcher, "configs/7B/sft.yaml", "--seed", "3", **commands.variables())
    assert done.returncode == 0, done.stderr
    (call,) = commands.calls("torchrun")
    assert call.arguments == [
        "--standalone",
        "--nproc-per-node=2",
        PROGRAMS[launcher],
        *("--config", "configs/7B/sft.yaml"),
        *("--seed", "3"),
    ]
    install = next(call.arguments for call in commands.calls("python") if "pip" in call.arguments)
    assert install[-2:] == ["--editable", f"{repo}[deepspeed]"]


@pytest.mark.parametrize("launcher", [SFT, GRPO])
def test_without_arguments_the_small_model_trains(repo: Path, commands: Commands, launcher: str):
    assert launch(repo, launcher, **commands.variables()).returncode == 0
    (call,) = commands.calls("torchrun")
    assert call.arguments[-2:] == ["--config", CONFIGS[launcher]]
    assert (repo / CONFIGS[launcher]).is_file()


def test_without_gpus_one_process_runs_on_the_cpu(repo: Path, commands: Commands):
    done = launch(repo, SFT, "configs/toy/sft.yaml", "--max_steps", "1", **commands.variables(GPUS_PER_NODE="0"))
    assert "No GPU" in done.stdout
    assert commands.calls("torchrun") == []
    call = commands.calls("python")[-1]
    assert call.arguments == [
        "train_sft.py",
        *("--config", "configs/toy/sft.yaml", "--use_cpu", "--max_steps", "1"),
    ]


@pytest.mark.parametrize("launcher", [SFT, GRPO])
@pytest.mark.parametrize("nodes", [["node7"], ["node7", "node9"]])
def test_slurm_starts_one_torchrun_a_node_that_meet_at_the_first(
    repo: Path, tmp_path: Path, commands: Commands, launcher: str, nodes: list[str]
):
    commands.add_recorded("srun", f"import subprocess; subprocess.run(['bash', '-c', {FAKE_SRUN!r}, *sys.argv])")
    commands.add_recorded("scontrol", f"print({chr(10).join(nodes)!r})")
    spool = tmp_path / "spool"
    spool.mkdir()
    shutil.copy(repo / launcher, spool / "slurm_script")
    variables = commands.variables(
        SLURM_JOB_ID="123456",
        SLURM_NNODES=str(len(nodes)),
        SLURM_JOB_NODELIST="node[7,9]",
        SLURM_GPUS_ON_NODE="8",
        SLURM_CPUS_PER_TASK="64",
        SLURM_SUBMIT_DIR=str(repo),
    )
    done = launch(spool, "slurm_script", "configs/7B/sft.yaml", "--seed", "3", **variables)
    assert done.returncode == 0, done.stderr
    (srun,) = commands.calls("srun")
    assert {f"--nodes={len(nodes)}", "--ntasks-per-node=1", "--cpus-per-task=64"} <= set(srun.arguments)
    assert commands.calls("scontrol")[0].arguments == ["show", "hostnames", "node[7,9]"]
    calls = commands.calls("torchrun")
    assert sorted(call.environment["SLURM_PROCID"] for call in calls) == [str(n) for n in range(len(nodes))]
    for call in calls:
        assert call.folder == str(repo)
        assert call.arguments == [
            f"--nnodes={len(nodes)}",
            "--nproc-per-node=8",
            "--rdzv-backend=c10d",
            "--rdzv-id=123456",
            "--rdzv-endpoint=node7:23456",
            PROGRAMS[launcher],
            *("--config", "configs/7B/sft.yaml"),
            *("--seed", "3"),
        ]


def test_two_nodes_meet_through_the_real_torchrun(repo: Path, tmp_path: Path, commands: Commands):
    program = tmp_path / "sum_of_ranks.py"
    program.write_text(
        "import sys, torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "total = torch.tensor(dist.get_rank() + 1)\n"
        "dist.all_reduce(total)\n"
        f"open('{tmp_path}/rank' + str(dist.get_rank()), 'w').write(f'{{total}} {{sys.argv[1:]}}')\n"
        "dist.destroy_process_group()\n"  # gloo's threads, left running, now and then abort what ends
    )
    commands.add("torchrun", f'#!/bin/sh\nexec "{sys.executable}" -m torch.distributed.run "$@"\n')
    commands.add("srun", FAKE_SRUN)
    commands.add("scontrol", "#!/bin/sh\necho 127.0.0.1\n")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    variables = commands.variables(
        SLURM_JOB_ID="1", SLURM_NNODES="2", SLURM_JOB_NODELIST="local", GPUS_PER_NODE="1", RDZV_PORT=str(port)
    )
    source = f'source scripts/launch.sh; launch "{program}" configs/toy/sft.yaml --seed 3'
    done = subprocess.run(
        ["bash", "-c", source], cwd=repo, env=variables, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert (tmp_path / f"rank{rank}").read_text() == "3 ['--config', 'configs/toy/sft.yaml', '--seed', '3']"


def in_slurm(commands: Commands, **more: str) -> dict[str, str]:
    """The environment of a job on one node, whose scontrol and scancel write down what they are asked."""
    commands.add("srun", '#!/usr/bin/env bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n')
    commands.add_recorded("scontrol", "print('node7')")
    commands.add_recorded("scancel")
    own = {"SLURM_JOB_ID": "77", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "node7", "SLURM_GPUS_ON_NODE": "1"}
    return commands.variables(**own, **more)


def test_before_its_time_is_up_a_job_stops_with_a_checkpoint_and_is_queued_again(repo: Path, commands: Commands):
    """The training here ends as a real one does: when the file is there, with a status that is not success."""
    wait = "import time; file = os.environ['HUMANOMNI_STOP_FILE']; print('training', flush=True)\n"
    wait += "while not os.path.exists(file): time.sleep(0.05)\n"
    commands.add_recorded("torchrun", wait + "sys.exit(75)")
    job = subprocess.Popen(
        ["bash", SFT], cwd=repo, env=in_slurm(commands), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    while "training" not in job.stdout.readline():
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)  # to the batch shell alone, as #SBATCH --signal=B:USR1 does
    said, errors = job.communicate(timeout=20)
    assert "queued again" in said, errors
    assert [call.arguments for call in commands.calls("scontrol")][-1] == ["requeue", "77"]
    assert not list((repo / "logs").glob("stop-*")), "a requeued job must not stop at once"


def start_job(repo: Path, script: str, variables: dict[str, str]) -> subprocess.Popen[str]:
    """A batch shell that runs these lines, of which some program says "at work" and waits for the signal."""
    lines = f"set -euo pipefail; source scripts/launch.sh; source scripts/judge.sh; source scripts/steps.sh; {script}"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(["bash", "-c", lines], cwd=repo, env=variables, **pipes)


AT_WORK = "import time; print('at work', flush=True); time.sleep(60)"
# What a job may be at when it is no training: on all GPUs; a step of the pipeline; waiting for a judge.
OTHER_WORK = {
    "distribute inference_batch.py": "torchrun",
    "step evaluate -- python scripts/evaluate.py": "python",
    "echo at work; FGCE_WAIT=60 find_judge": "",
}


@pytest.mark.parametrize("script", OTHER_WORK)
def test_a_job_that_does_not_train_is_stopped_and_queued_again_at_once(
    repo: Path, tmp_path: Path, commands: Commands, script: str
):
    variables = in_slurm(commands, FGCE_RUN=str(tmp_path / "fgce"))
    commands.add_recorded("torchrun", AT_WORK)
    commands.add_recorded("python", f"if 'scripts/evaluate.py' in sys.argv[:2]: {AT_WORK}")
    job = start_job(repo, f'PATH="$VENV/bin:$PATH"; {script}; echo "went on"', variables)
    assert job.stdout is not None
    assert job.stdout.readline() in ("== evaluate\n", "at work\n")
    if script.startswith("step"):
        assert job.stdout.readline() == "at work\n"
    job.send_signal(signal.SIGUSR1)
    said, errors = job.communicate(timeout=20)  # which waits for the program's end too: it has the same stdout
    assert "queued again" in said, errors
    assert "went on" not in said
    assert [call.arguments for call in commands.calls("scontrol")][-1] == ["requeue", "77"]


def test_a_training_that_ends_as_the_time_is_up_is_finished_and_nothing_starts_after_it(repo: Path, commands: Commands):
    """No time is lost: the training's end is written down, and what comes next starts in a new job."""
    variables = in_slurm(commands)
    stopped = "import time; print('at work', flush=True)\n"
    stopped += "while not os.path.exists(os.environ['HUMANOMNI_STOP_FILE']): time.sleep(0.02)"
    commands.add_recorded("torchrun", stopped)
    script = "launch train_sft.py configs/0.5B/sft.yaml; echo finished; distribute inference_batch.py"
    job = start_job(repo, script, variables)
    assert job.stdout is not None
    while "at work" not in job.stdout.readline():
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    said, errors = job.communicate(timeout=20)
    assert said.splitlines()[0] == "finished", errors
    assert "queued again" in said
    assert len(commands.calls("torchrun")) == 1
    assert [call.arguments for call in commands.calls("scontrol")][-1] == ["requeue", "77"]
    assert not list((repo / "logs").glob("stop-*"))


def test_a_job_that_ends_by_itself_is_not_queued_again(repo: Path, commands: Commands):
    commands.add_recorded("torchrun", "sys.exit(7)")
    done = launch(repo, SFT, **in_slurm(commands))
    assert done.returncode == 7
    assert [call.arguments[0] for call in commands.calls("scontrol")] == ["show"]


@pytest.mark.parametrize("launcher", [SFT, GRPO])
def test_slurm_warns_the_batch_shell_in_time(repo: Path, launcher: str):
    headers = (repo / launcher).read_text().splitlines()
    assert {"#SBATCH --signal=B:USR1@600", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(headers)


def test_grpo_starts_its_judge_waits_for_it_and_ends_it(repo: Path, tmp_path: Path, commands: Commands):
    ready = "folder = os.environ['FGCE_RUN']; os.makedirs(folder, exist_ok=True)\n"
    ready += (
        "open(folder + '/token', 'w').write('secret'); open(folder + '/endpoints', 'w').write('http://10.0.0.3:8000')\n"
    )
    commands.add_recorded("sbatch", ready + "print('4711;cluster')")
    variables = in_slurm(commands, FGCE_RUN=str(tmp_path / "fgce"), FGCE_START="1", FGCE_NODES="2")
    done = launch(repo, GRPO, "configs/0.5B/grpo2.yaml", **variables)
    assert done.returncode == 0, done.stderr
    (submitted,) = commands.calls("sbatch")
    assert {"--parsable", "--nodes=2", "srun_fgce.sh"} <= set(submitted.arguments)
    assert commands.calls("torchrun")[0].environment["FGCE_URL"] == "http://10.0.0.3:8000"
    assert commands.calls("scancel")[-1].arguments == ["4711"]


def test_a_judge_that_does_not_come_ends_the_job_and_is_ended(repo: Path, tmp_path: Path, commands: Commands):
    commands.add_recorded("sbatch", "print('4711')")
    variables = in_slurm(commands, FGCE_RUN=str(tmp_path / "fgce"), FGCE_START="1", FGCE_WAIT="1")
    done = launch(repo, GRPO, **variables)
    assert done.returncode != 0
    assert "within 1 seconds" in done.stderr
    assert not commands.calls("torchrun")
    assert commands.calls("scancel")[-1].arguments == ["4711"]


# What squeue says of a job that has ended, at once and after some minutes.
ENDED = ["", "print('slurm_load_jobs error: Invalid job id specified', file=sys.stderr); sys.exit(1)"]


@pytest.mark.parametrize("squeue", ENDED)
def test_nobody_waits_for_a_judge_whose_job_has_ended(repo: Path, tmp_path: Path, commands: Commands, squeue: str):
    log = repo / "logs/fgce-4711.log"
    commands.add_recorded("sbatch", f"Path('{log}').write_text('CUDA is out of memory'); print('4711')")
    commands.add_recorded("squeue", squeue)
    variables = in_slurm(commands, FGCE_RUN=str(tmp_path / "fgce"), FGCE_START="1")
    try:
        done = launch(repo, GRPO, **variables)
    finally:
        log.unlink(missing_ok=True)
    assert done.returncode != 0
    assert "CUDA is out of memory" in done.stderr
    assert not commands.calls("torchrun")


def test_nobody_waits_for_a_judge_of_this_machine_that_has_ended(repo: Path, tmp_path: Path, commands: Commands):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("scripts", "configs", "pyproject.toml", "constraints.txt", GRPO):
        (checkout / name).symlink_to(repo / name)
    installed = 'grep deepspeed "$VENV/.installed"'
    (checkout / "srun_fgce.sh").write_text(f"{installed} && echo CUDA is out of memory; exit 1\n")
    done = launch(checkout, GRPO, **commands.variables(FGCE_RUN=str(tmp_path / "fgce"), FGCE_START="1"))
    assert done.returncode != 0
    assert "CUDA is out of memory" in done.stderr, "the environment is made before the judge starts"
    assert not commands.calls("torchrun")


@pytest.mark.parametrize("first", ["configs/no.yaml", "--seed"])
def test_a_configuration_that_is_no_file_is_refused_before_anything_starts(repo: Path, commands: Commands, first: str):
    done = launch(repo, SFT, first, **commands.variables())
    assert done.returncode == 2
    assert f"{first} is no file" in done.stderr
    assert not commands.calls("torchrun")


def test_a_training_that_fails_fails_the_job(repo: Path, commands: Commands):
    commands.add_recorded("torchrun", "sys.exit(7)")
    assert launch(repo, SFT, **commands.variables()).returncode == 7


def write_judge(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text("secret\n")
    (folder / "endpoints.new").write_text("http://10.0.0.1:8000\nhttp://10.0.0.2:8000\n")
    (folder / "endpoints.new").rename(folder / "endpoints")


def test_grpo_asks_the_judges_that_srun_fgce_wrote_down(repo: Path, tmp_path: Path, commands: Commands):
    write_judge(tmp_path / "fgce")
    done = launch(repo, GRPO, **commands.variables(FGCE_RUN=str(tmp_path / "fgce")))
    (call,) = commands.calls("torchrun")
    assert call.environment["FGCE_URL"] == "http://10.0.0.1:8000,http://10.0.0.2:8000"
    assert call.environment["FGCE_TOKEN"] == "secret"
    assert "secret" not in json.dumps(call.arguments) + done.stdout + done.stderr


def test_grpo_waits_for_judges_that_load(repo: Path, tmp_path: Path, commands: Commands):
    timer = threading.Timer(1.5, write_judge, [tmp_path / "fgce"])
    timer.start()
    done = launch(repo, GRPO, **commands.variables(FGCE_RUN=str(tmp_path / "fgce"), FGCE_WAIT="30"))
    timer.join()
    assert done.returncode == 0, done.stderr
    assert commands.calls("torchrun")[0].environment["FGCE_TOKEN"] == "secret"


def test_grpo_does_not_start_when_the_judge_it_waits_for_stays_away(repo: Path, tmp_path: Path, commands: Commands):
    done = launch(repo, GRPO, **commands.variables(FGCE_RUN=str(tmp_path), FGCE_WAIT="1"))
    assert done.returncode != 0
    assert "within 1 seconds" in done.stderr
    assert not commands.calls("torchrun")


def test_a_given_url_comes_before_the_written_ones(repo: Path, tmp_path: Path, commands: Commands):
    write_judge(tmp_path / "fgce")
    variables = commands.variables(FGCE_RUN=str(tmp_path / "fgce"), FGCE_URL="http://judge:1")
    assert launch(repo, GRPO, **variables).returncode == 0
    (call,) = commands.calls("torchrun")
    assert call.environment["FGCE_URL"] == "http://judge:1"
    assert "FGCE_TOKEN" not in call.environment


def test_grpo_without_a_judge_says_so_and_runs(repo: Path, tmp_path: Path, commands: Commands):
    done = launch(repo, GRPO, **commands.variables(FGCE_RUN=str(tmp_path)))
    assert "phase 2, rejection sampling and evaluation need one" in done.stdout
    assert "FGCE_URL" not in commands.calls("torchrun")[0].environment


@pytest.mark.parametrize("launcher", [SFT, GRPO])
def test_slurm_finds_the_folder_of_its_logs(repo: Path, launcher: str):
    """sbatch does not make the folder of --output, and a job without it ends with no word."""
    (output,) = [line for line in (repo / launcher).read_text().splitlines() if line.startswith("#SBATCH --output=")]
    folder = output.removeprefix("#SBATCH --output=").rpartition("/")[0]
    assert (repo / folder / ".gitkeep").is_file()


def test_shellcheck_has_no_objections(repo: Path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(
        ["shellcheck", "--external-sources", SFT, GRPO, *sorted(str(path) for path in repo.glob("scripts/*.sh"))],
        cwd=repo,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
