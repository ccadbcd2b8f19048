"""scripts/run_caemer.sh with stand-ins for its programs and for Slurm: order, manifest, kills, jobs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launcher_factory import Commands

REPO = Path(__file__).parents[1]
CHECKOUT = ("scripts", "configs", "humanomni", "fgce", "pyproject.toml", "constraints.txt", "srun_fgce.sh")
STEPS = [
    *("sft", "infer-sft", "grpo1", "infer-grpo1", "grpo2", "infer-grpo2", "candidates", "rejection"),
    *("rft", "infer-rft", "grpo3", "infer-grpo3", "evaluate"),
]

# Stands for python: the manifest is the real one; each other program leaves what a real one would, made out of what it
# reads, so that a wrong input shows in the output's hash. The half-written file is what a kill may leave behind.
PROGRAMS = """
import hashlib, time
real = "{python}"
if sys.argv[1] == "scripts/manifest.py":
    os.execv(real, [real, *sys.argv[1:]])
def digest(path):
    weights = Path(path) / "model.safetensors"
    return hashlib.sha256((weights if weights.exists() else Path(path)).read_bytes()).hexdigest()
def leave(path, text):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    path.write_text(text)
arguments = sys.argv[2:]
given = dict(zip(arguments, arguments[1:]))
program = Path(sys.argv[1]).name
if program in ("train_sft.py", "train_grpo.py"):
    out = Path(given["--output_dir"])
    leave(out / "model.safetensors", digest(given["--model_path"]) + digest(given["--train_data"]))
    (out / "config.json").write_text("x")
    (out / "trainer_state.json").write_text(json.dumps(dict(global_step=1, log_history=[dict(loss=0.5)])))
elif program == "inference_batch.py":
    leave(given["--output_dir"] + "/test.jsonl", digest(given["--model_path"]))
elif program == "sample_candidates.py":
    leave(given["--output_dir"] + "/grpo_train.jsonl", digest(given["--model_path"]))
    leave(given["--output_dir"] + "/grpo_train.summary.json", json.dumps(dict(distinct_1=0.5)))
elif program == "build_rft.py":
    leave(given["--output_dir"] + "/rft.jsonl", digest(given["--candidates"]))
    leave(given["--output_dir"] + "/yield.json", json.dumps({{"kept": 3, "yield": 0.5}}))
elif program == "make_toy_data.py":
    for name in ("world.json", "sft_train.jsonl", "grpo_train.jsonl", "test.jsonl"):
        leave(given["--output"] + "/" + name, name)
elif program in ("make_tiny_model.py", "pretrain_tiny_towers.py"):
    leave(given["--output"] + "/model.safetensors", program)
elif program == "evaluate.py":
    leave(given["--output"] + "/report.html", "report")
    leave(given["--output"] + "/summary.json", json.dumps(dict(stages=[dict(name="sft", war=0.9)])))
    sys.exit("--require_judge" in arguments and "FGCE_URL" not in os.environ)
"""


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    commands = Commands(tmp_path)
    commands.add_recorded("python", PROGRAMS.format(python=sys.executable))
    return commands


@pytest.fixture
def checkout(repo: Path, tmp_path: Path) -> Path:
    """A folder that looks like the repository, with data and a base model of its own."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in CHECKOUT:
        (folder / name).symlink_to(repo / name)
    for name in ("data/sft_train.jsonl", "data/grpo_train.jsonl", "data/test.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    base = folder / "models/HumanOmni-0.5B"
    base.mkdir(parents=True)
    (base / "config.json").write_text("x")
    (base / "model.safetensors").write_text("base")
    return folder


class Pipeline:
    """The script in a checkout."""

    def __init__(self, checkout: Path, commands: Commands) -> None:
        self.checkout, self.commands = checkout, commands

    def start(self, *flags: str, **variables: str) -> subprocess.Popen[str]:
        given = {"GPUS_PER_NODE": "0", "FGCE_URL": "http://judge:1", "PYTHONPATH": str(self.checkout)} | variables
        command = ["bash", "scripts/run_caemer.sh", "--size", "0.5B", "--label_set", "mafw", *flags]
        return subprocess.Popen(
            command,
            cwd=self.checkout,
            env={key: value for key, value in self.commands.variables(**given).items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *flags: str, **variables: str) -> str:
        process = self.start(*flags, **variables)
        log = process.communicate(timeout=60)[0]
        assert process.returncode == 0, log
        return log

    def serve(self, work: str) -> None:
        """Has `python -m fgce serve` do this work, a line of Python."""
        script = PROGRAMS.format(python=sys.executable) + f"\nif sys.argv[1:3] == ['-m', 'fgce']: {work}\n"
        self.commands.add_recorded("python", script)

    def borrow(self, *steps: str) -> subprocess.CompletedProcess[str]:
        """Has the run "ablation" take steps of the run "0.5B"."""
        command = [sys.executable, "scripts/manifest.py", "borrow", "runs/ablation", *steps, "--source", "runs/0.5B"]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        return subprocess.run(command, cwd=self.checkout, env=environment, capture_output=True, text=True)

    def programs(self) -> list[str]:
        """What ran, in order, without the manifest's own calls and the environment's."""
        calls = [call.arguments for call in self.commands.calls("python")]
        return [Path(call[0]).name for call in calls if call[0].endswith(".py") and "manifest" not in call[0]]

    def steps(self, name: str = "0.5B") -> dict[str, dict[str, Any]]:
        return json.loads((self.checkout / f"runs/{name}/manifest.json").read_text())["steps"]

    def hashes(self, name: str = "0.5B") -> dict[str, list[str]]:
        return {step: list(entry["outputs"].values()) for step, entry in self.steps(name).items()}


@pytest.fixture
def pipeline(checkout: Path, commands: Commands) -> Pipeline:
    return Pipeline(checkout, commands)


def test_the_stages_run_in_order_and_the_manifest_tells_of_each(pipeline: Pipeline) -> None:
    pipeline.run(
        "--seed", "7", "--set", "grpo2.rewards=format,accuracy", "--set", "candidates.n=3", "--set", "infer.top_k=9"
    )
    infer = "inference_batch.py"
    grpo, sft = ["train_grpo.py", infer], ["train_sft.py", infer]
    assert pipeline.programs() == [
        *(*sft, *grpo, *grpo, "sample_candidates.py", "build_rft.py", *sft, *grpo, "evaluate.py"),
    ]
    steps = pipeline.steps()
    assert list(steps) == STEPS
    assert {entry["status"] for entry in steps.values()} == {"finished"}
    assert steps["candidates"]["metrics"] == {"distinct_1": 0.5}
    assert steps["rejection"]["metrics"] == {"kept": 3, "yield": 0.5}
    assert steps["sft"]["metrics"] == {"loss": 0.5}
    assert steps["evaluate"]["metrics"] == {"sft": {"war": 0.9}}
    assert "runs/0.5B/rejection/rft.jsonl" in steps["rft"]["inputs"]
    assert steps["grpo3"]["inputs"]["runs/0.5B/rft"] == steps["rft"]["outputs"]["runs/0.5B/rft"]
    assert " ".join(steps["grpo2"]["command"]).endswith("--seed 7 --rewards format accuracy")
    assert " ".join(steps["candidates"]["command"]).endswith("--set seed=7 --set n=3")
    assert " ".join(steps["infer-sft"]["command"]).endswith("--top_k 9")


def test_a_finished_run_does_nothing_and_a_lost_output_is_made_again(pipeline: Pipeline) -> None:
    pipeline.run()
    before = len(pipeline.programs())
    log = pipeline.run()
    assert log.count("done before") == len(STEPS)
    (pipeline.checkout / "runs/0.5B/grpo3/predictions/test.jsonl").unlink()
    pipeline.run()
    assert pipeline.programs()[before:] == ["inference_batch.py"]


def test_other_inputs_or_arguments_are_refused_with_what_to_do(pipeline: Pipeline) -> None:
    pipeline.run("--stage", "sft")
    (pipeline.checkout / "data/sft_train.jsonl").write_text("other")
    for flags, what in (((), "data/sft_train.jsonl"), (("--set", "sft.max_steps=1"), "the command")):
        process = pipeline.start("--stage", "sft", *flags)
        log = process.communicate(timeout=60)[0]
        assert process.returncode == 1
        assert what in log
        assert "manifest.py forget runs/0.5B sft" in log


@pytest.mark.slow
def test_kill_at_any_point_and_the_same_hashes_come_out(pipeline: Pipeline) -> None:
    """Slow: two runs of thirteen steps, a few processes each, and the pieces that six kills leave."""
    pipeline.run("--name", "straight")
    straight = pipeline.hashes("straight")
    draw = random.Random(0)
    kills = 0
    for _ in range(6):
        process = pipeline.start("--name", "killed", STEP_SECONDS="0.1")
        time.sleep(draw.uniform(0.5, 1.2))
        if kills % 2:
            process.send_signal(signal.SIGKILL)  # what the script has started lives on
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
    pipeline.run("--name", "killed")
    assert kills > 2
    assert pipeline.hashes("killed") == straight


# Stands for the environment's python: the one that runs the tests, so that nothing is installed.
INSTALLED = """#!/usr/bin/env bash
[[ "$1 $2" == "-m pip" ]] || exec {python} "$@"
"""
KILLED_IN = ("data", "towers", "sft", "infer-sft", "grpo1", "grpo2", "candidates", "rft", "grpo3", "evaluate")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="takes five minutes; LONG_TESTS=1 runs it")
def test_real_programs_killed_at_any_point_leave_the_same_hashes(commands: Commands, tmp_path: Path) -> None:
    """Slow: `quickstart.sh --smoke` twice, once through ten kills, every program with a model and a judge."""
    commands.add("python", INSTALLED.format(python=sys.executable))

    def log_of(checkout: Path) -> str:
        return (tmp_path / f"{checkout.name}.log").read_text(errors="replace")

    def start(checkout: Path) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{checkout.name}.log").open("wb") as log:
            return subprocess.Popen(
                ["bash", "scripts/quickstart.sh", "--smoke"],
                cwd=checkout,
                env=commands.variables(PYTHONPATH=str(REPO), OMP_NUM_THREADS="1"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def result(checkout: Path) -> dict[str, dict[str, str]]:
        assert start(checkout).wait(timeout=1800) == 0, log_of(checkout)[-3000:]
        steps = json.loads((checkout / "runs/quickstart-smoke/manifest.json").read_text())["steps"]
        # The evaluation's report tells how long each stage took.
        return {step: entry["outputs"] for step, entry in steps.items() if step != "evaluate"}

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for checkout in (straight, killed):
        checkout.mkdir()
        for path in REPO.iterdir():
            if path.name in CHECKOUT or path.suffix == ".py":
                (checkout / path.name).symlink_to(path)
    draw = random.Random(0)
    for number, step in enumerate(KILLED_IN):
        process = start(killed)
        while f"== {step}" not in log_of(killed):
            assert process.poll() is None, log_of(killed)[-3000:]
            time.sleep(0.1)
        time.sleep(draw.uniform(0.0, 8.0))  # starting to import, at work, or in the next step
        if number % 2:
            process.send_signal(signal.SIGKILL)  # what the script has started lives on
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert result(killed) == result(straight)


def test_a_second_run_waits_for_what_a_killed_one_left_at_work(pipeline: Pipeline) -> None:
    process = pipeline.start("--stage", "sft", STEP_SECONDS="2")
    model = pipeline.checkout / "runs/0.5B/sft/model.safetensors"
    while not model.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    log = pipeline.run("--stage", "sft")
    assert "waiting" in log
    assert pipeline.steps()["sft"]["status"] == "finished"
    assert model.read_text() != "half"


def test_another_run_goes_on_from_the_stages_that_it_has_in_common(pipeline: Pipeline) -> None:
    pipeline.run()
    before = len(pipeline.programs())
    for _ in range(2):  # a second time changes nothing
        assert pipeline.borrow("sft", "infer-sft", "grpo1", "infer-grpo1").returncode == 0
    log = pipeline.run("--name", "ablation", "--without_rft")
    assert log.count("done before") == 4
    grpo = ["train_grpo.py", "inference_batch.py"]
    assert pipeline.programs()[before:] == [*grpo, *grpo, "evaluate.py"]
    full, less = pipeline.steps(), pipeline.steps("ablation")
    assert less["grpo2"]["inputs"]["runs/ablation/grpo1"] == full["grpo2"]["inputs"]["runs/0.5B/grpo1"]
    assert less["grpo2"]["outputs"]["runs/ablation/grpo2"] == full["grpo2"]["outputs"]["runs/0.5B/grpo2"]
    assert less["grpo3"]["inputs"]["runs/ablation/grpo2"] == less["grpo2"]["outputs"]["runs/ablation/grpo2"]
    assert "rft" not in " ".join(less["evaluate"]["command"])


@pytest.mark.parametrize("flags", [(), ("--without_rft",)])
def test_the_quickstart_sets_only_what_its_run_has(pipeline: Pipeline, flags: tuple[str, ...]) -> None:
    environment = pipeline.commands.variables(GPUS_PER_NODE="0", FGCE_URL="http://judge:1", PYTHONPATH=str(REPO))
    command = ["bash", "scripts/quickstart.sh", "--smoke", "--", *flags]
    done = subprocess.run(command, cwd=pipeline.checkout, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    steps = pipeline.steps("quickstart-smoke")
    assert " ".join(steps["sft"]["command"]).endswith("--save_steps 0.5 --save_strategy steps")
    assert ("rft" in steps) == (not flags)
    if not flags:
        assert " ".join(steps["candidates"]["command"]).endswith("--set n=4 --set max_new_tokens=96 --set n=16")


def test_what_another_run_has_not_finished_cannot_be_borrowed(pipeline: Pipeline) -> None:
    pipeline.run("--stage", "sft")
    answer = pipeline.borrow("sft", "infer-sft", "grpo1")
    assert answer.returncode == 1
    assert "runs/0.5B has not finished grpo1" in answer.stderr


def test_a_step_that_fails_stops_the_run(pipeline: Pipeline) -> None:
    (pipeline.checkout / "data/grpo_train.jsonl").unlink()
    process = pipeline.start()
    log = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert "data/grpo_train.jsonl is no file" in log
    assert list(pipeline.steps()) == ["sft", "infer-sft"]


def test_an_evaluation_without_a_judge_is_done_again(pipeline: Pipeline) -> None:
    process = pipeline.start(FGCE_URL="")
    assert "== done" not in process.communicate(timeout=60)[0]
    assert process.returncode == 1
    before = len(pipeline.programs())
    assert "== done: open runs/0.5B/report.html" in pipeline.run()
    assert pipeline.programs()[before:] == ["evaluate.py"]


# Gives job ids in order, as sbatch --parsable does.
SBATCH = """
count = Path("{folder}/jobs")
number = int(count.read_text()) + 1 if count.exists() else 101
count.write_text(str(number))
print(number)
"""


def test_slurm_gets_a_job_a_stage_each_after_the_one_before(
    pipeline: Pipeline, commands: Commands, tmp_path: Path
) -> None:
    commands.add_recorded("sbatch", SBATCH.format(folder=tmp_path))
    pipeline.run("--seed", "3", "--slurm", FGCE_URL="")
    jobs = {}
    for number, call in enumerate(commands.calls("sbatch"), start=101):
        words = call.arguments
        name = words[words.index("--stage") + 1] if "--stage" in words else words[-1]
        dependency = next((word for word in words if word.startswith("--dependency=")), "")
        jobs[name] = (number, dependency.removeprefix("--dependency="))
        if "--stage" in words:
            assert "--kill-on-invalid-dep=yes" in words
            script = words.index("scripts/run_caemer.sh")
            assert words[script + 3 :] == ["--size", "0.5B", "--label_set", "mafw", "--seed", "3"]
            assert ("--gpus-per-node=0" in words) == (name in ("rejection", "evaluate"))
            assert call.environment["FGCE_WAIT"] == "1800"
    assert jobs == {
        "sft": (101, ""),
        "grpo1": (102, "afterok:101"),
        "srun_fgce.sh": (103, "afterok:102"),
        "grpo2": (104, "afterok:102,after:103"),
        "candidates": (105, "afterok:104"),
        "rejection": (106, "afterok:105,after:103"),
        "rft": (107, "afterok:106"),
        "grpo3": (108, "afterok:107"),
        "evaluate": (109, "afterok:108,after:103"),
        "--wrap=scancel 103": (110, "afterany:109"),
    }
    assert pipeline.programs() == []


def test_slurm_gets_no_job_for_what_is_done_and_none_for_a_judge_that_is_given(
    pipeline: Pipeline, commands: Commands, tmp_path: Path
) -> None:
    commands.add_recorded("sbatch", SBATCH.format(folder=tmp_path))
    for stage in ("sft", "grpo1", "grpo2"):
        pipeline.run("--stage", stage)
    log = pipeline.run("--slurm")
    assert "grpo2: done before" in log
    calls = [" ".join(call.arguments) for call in commands.calls("sbatch")]
    assert len(calls) == 5
    assert "--stage candidates" in calls[0]
    assert "--dependency" not in calls[0]


def test_a_judge_that_the_script_serves_ends_with_it_even_by_kill(pipeline: Pipeline, commands: Commands) -> None:
    pipeline.serve("print('FG-CE ready at http://127.0.0.1:5', flush=True); time.sleep(60)")
    for stage in ("sft", "grpo1"):
        pipeline.run("--stage", stage)
    process = pipeline.start("--stage", "grpo2", "--judge", "x.yaml", FGCE_URL="", STEP_SECONDS="1")
    while not (pipeline.checkout / "runs/0.5B/grpo2/model.safetensors").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    train = next(call for call in commands.calls("python") if "runs/0.5B/grpo2" in call.arguments)
    assert train.environment["FGCE_URL"] == "http://127.0.0.1:5"
    deadline = time.monotonic() + 20
    while judges(pipeline.checkout) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not judges(pipeline.checkout)


def test_a_judge_of_a_killed_run_is_not_taken_for_the_new_one(pipeline: Pipeline, commands: Commands) -> None:
    """Neither by what stands in its log, nor by what it still writes there."""
    pipeline.serve("time.sleep(1); print('FG-CE ready at http://127.0.0.1:5', flush=True); time.sleep(60)")
    for stage in ("sft", "grpo1"):
        pipeline.run("--stage", stage)
    with (pipeline.checkout / "runs/0.5B/fgce.log").open("a") as log:
        print("FG-CE ready at http://127.0.0.1:4", file=log, flush=True)
        process = pipeline.start("--stage", "grpo2", "--judge", "x.yaml", FGCE_URL="")
        while not any("serve" in call.arguments for call in commands.calls("python")):
            time.sleep(0.02)
        print("FG-CE ready at http://127.0.0.1:4", file=log, flush=True)
        output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "== FG-CE judge at http://127.0.0.1:5," in output
    train = next(call for call in commands.calls("python") if "runs/0.5B/grpo2" in call.arguments)
    assert train.environment["FGCE_URL"] == "http://127.0.0.1:5"


def judges(folder: Path) -> list[str]:
    """Processes of the stand-in judge that work in the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if "serve" in words and (process / "cwd").resolve() == folder.resolve():
                found.append(process.name)
        except (OSError, PermissionError):
            continue
    return found


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sizes", "7B"), "does not know --sizes"),
        (("--size", "8B"), "there is no folder configs/8B"),
        (("--name",), "--name needs a value"),
        (("--stage", "dpo"), "--stage dpo is none of sft"),
        (("--stage", "rft", "--without_rft"), "--stage rft is none of sft grpo1 grpo2 grpo3 evaluate"),
        (("--set", "grop2.rewards=format"), "grop2.rewards=format is no STEP.KEY=VALUE with a step of this run: sft"),
        (("--set", "grpo2.rewards"), "--set grpo2.rewards is no STEP.KEY=VALUE"),
        (("--set", "grpo2=format"), "--set grpo2=format is no STEP.KEY=VALUE"),
        (("--set", "rft.seed=1", "--without_rft"), "with a step of this run: sft grpo1 grpo2 grpo3 evaluate infer"),
    ],
)
def test_a_wrong_flag_is_told(pipeline: Pipeline, flags: tuple[str, ...], words: str) -> None:
    process = pipeline.start(*flags)
    assert words in process.communicate(timeout=60)[0]
    assert process.returncode == 2
