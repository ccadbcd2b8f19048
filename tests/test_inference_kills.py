"""Inference that is killed, runs out of disk, or may not write: nothing is lost, doubled or damaged.

The processes are real, and so is every line of them but the model (tests/fake_inference.py), which would make
the same tests take an hour. LONG_TESTS=1 kills the real program with the tiny model as often.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).parent
FAKE = TESTS / "fake_inference.py"
REAL = TESTS.parent / "inference_batch.py"
RECORDS = 60
long_tests = pytest.mark.skipif("LONG_TESTS" not in os.environ, reason="takes half an hour; LONG_TESTS=1 runs it")


class Job:
    """A command that differs in its output folder only."""

    def __init__(
        self, script: Path, source: Path, model: Path, *flags: str, seconds: float = 0.0, fails: int = 0
    ) -> None:
        self.command = [sys.executable, script, "--input_jsonl", source, "--model_path", model, *flags]
        self.source = source
        self.environment = os.environ | {
            "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
            "FAKE_SECONDS": str(seconds),
            "FAKE_FAILS": str(fails),
        }

    def start(self, output: Path, rank: int = 0, world_size: int = 1) -> subprocess.Popen[str]:
        environment = self.environment | {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
        command = [*self.command, "--output_dir", output, "--device", "cpu"]
        return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)

    def run(self, output: Path, world_size: int = 1) -> str:
        """Runs all ranks to their end; the log of them all."""
        ranks = [self.start(output, rank, world_size) for rank in range(world_size)]
        log = "".join(process.communicate(timeout=600)[1] for process in ranks)
        assert all(process.returncode == 0 for process in ranks), log
        return log

    def lines(self, output: Path, rank: int) -> int:
        shard = output / f"{self.source.stem}.shards" / f"rank{rank}.jsonl"
        try:
            return shard.read_bytes().count(b"\n")
        except FileNotFoundError:
            return 0

    def result(self, output: Path) -> bytes:
        assert not (output / f"{self.source.stem}.shards").exists()
        return (output / self.source.name).read_bytes()


def write_records(path: Path, count: int) -> Path:
    turns = [{"from": "human", "value": "Which emotion?"}, {"from": "gpt", "value": "anger"}]
    lines = (json.dumps({"id": f"r{i}", "video": f"{i}.mp4", "conversations": turns}) for i in range(count))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text('{"model_type": "humanomni"}')
    return folder


@pytest.fixture
def job(tmp_path: Path, model: Path) -> Job:
    return Job(FAKE, write_records(tmp_path / "test.jsonl", RECORDS), model, seconds=0.002)


def kill_and_rerun(
    job: Job, straight: bytes, output: Path, world_size: int, records: int, chance: random.Random
) -> None:
    """Kills one rank at some moment of its work or of the merge, lets the others end, and runs the command again."""
    victim = chance.randrange(world_size)
    share = len(range(victim, records, world_size))
    moment, delay = chance.randrange(share + 1), chance.random() * 0.01
    ranks = [job.start(output, rank, world_size) for rank in range(world_size)]
    deadline = time.monotonic() + 300
    while job.lines(output, victim) < moment and ranks[victim].poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    ranks[victim].kill()
    for process in ranks:
        process.communicate(timeout=300)
    job.run(output, world_size)
    assert job.result(output) == straight


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_killed_at_any_moment_costs_nothing(world_size: int, job: Job, tmp_path: Path) -> None:
    """Slow: ten kills, each of a run of real processes and before another."""
    job.run(tmp_path / "straight")
    straight = job.result(tmp_path / "straight")
    assert straight.count(b"\n") == RECORDS
    chance = random.Random(world_size)
    for trial in range(10):
        kill_and_rerun(job, straight, tmp_path / str(trial), world_size, RECORDS, chance)


@pytest.mark.slow
def test_a_retry_killed_at_any_moment_costs_nothing(job: Job, model: Path, tmp_path: Path) -> None:
    """Slow: ten kills. Of every other record that failed at first the retry mends a half."""
    broken = Job(FAKE, job.source, model, fails=2)
    mended = Job(FAKE, job.source, model, "--retry_failed", "1", seconds=0.002, fails=4)
    mended.run(tmp_path / "straight")
    straight = mended.result(tmp_path / "straight")
    assert straight.count(b"\n") == RECORDS * 3 // 4
    chance = random.Random(0)
    for trial in range(10):
        output = tmp_path / str(trial)
        broken.run(output)
        assert broken.result(output).count(b"\n") == RECORDS // 2
        kill_and_rerun(mended, straight, output, 2, RECORDS // 2, chance)
        log = mended.start(output, rank=0).communicate(timeout=60)[1]
        assert "nothing is left to do" in log
        assert "15 records failed (15 MediaError)" in log
        assert "--retry_failed 2 predicts them again" in log


@long_tests
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_of_the_real_program_killed_at_any_moment_costs_nothing(
    world_size: int, tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path
) -> None:
    source = toy_world_dir / "sft_train.jsonl"
    job = Job(REAL, source, tiny_model_dir, "--max_new_tokens", "8", "--batch_size", "1")
    job.run(tmp_path / "straight")
    straight = job.result(tmp_path / "straight")
    chance = random.Random(world_size)
    for trial in range(10):
        kill_and_rerun(job, straight, tmp_path / str(trial), world_size, 28, chance)


def ten_thousand_in_flat_memory(job: Job, output: Path, growth: int) -> None:
    """Runs 10,000 records, killed after 6,000: memory must not grow by `growth` bytes.

    Within 5 s the next start must know what is done; loading torch and the model, as any start does, comes on top.
    """
    first = job.start(output)
    memory = {}
    for moment in (1_000, 6_000):
        while job.lines(output, 0) < moment:
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.1)
        memory[moment] = psutil.Process(first.pid).memory_info().rss
    first.kill()
    first.communicate()
    assert memory[6_000] - memory[1_000] < growth, memory
    done = job.lines(output, 0)
    begin = time.monotonic()
    second = job.start(output)
    said = next(line for line in second.stderr if "going on: " in line)
    assert time.monotonic() - begin < 5
    assert int(said.split("going on: ")[1].split()[0]) in (done, done - 1)  # the last line may be torn
    assert second.communicate(timeout=1200)[1]
    assert second.returncode == 0
    identities = [json.loads(line)["id"] for line in job.result(output).splitlines()]
    assert identities == [f"r{i}" for i in range(10_000)]


@pytest.mark.slow
def test_ten_thousand_records_in_flat_memory_and_a_restart_within_seconds(model: Path, tmp_path: Path) -> None:
    """Slow: each of ten thousand lines is on the disk before the next begins."""
    job = Job(FAKE, write_records(tmp_path / "test.jsonl", 10_000), model)
    ten_thousand_in_flat_memory(job, tmp_path / "out", growth=5_000_000)


@long_tests
@pytest.mark.timeout(3600)
def test_ten_thousand_records_of_the_real_program(tiny_model_dir: Path, toy_world_dir: Path, tmp_path: Path) -> None:
    source = write_records(tmp_path / "test.jsonl", 10_000)
    clips = sorted((toy_world_dir / "clips").glob("*.mp4"))
    lines = source.read_text().splitlines()
    moved = [json.loads(line) | {"video": str(clips[i % len(clips)])} for i, line in enumerate(lines)]
    source.write_text("\n".join(map(json.dumps, moved)))
    job = Job(REAL, source, tiny_model_dir, "--max_new_tokens", "2", "--batch_size", "16")
    ten_thousand_in_flat_memory(job, tmp_path / "out", growth=50_000_000)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 kB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk_stops_with_a_clear_error_and_nothing_damaged(job: Job, small_disk: Path, tmp_path: Path) -> None:
    job.run(tmp_path / "straight")
    process = job.start(small_disk)
    log = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "No space left on device" in log.splitlines()[-1]
    assert "make room: the same command goes on" in log.splitlines()[-1]
    assert "Traceback" not in log
    done = job.lines(small_disk, 0)
    assert 0 < done < RECORDS

    remount(small_disk, "size=10m")
    log = job.run(small_disk)
    assert f"going on: {done} of {RECORDS} records are done" in log
    assert "damaged" not in log
    assert job.result(small_disk) == job.result(tmp_path / "straight")


def test_a_read_only_folder_is_told_and_what_is_there_stays(job: Job, small_disk: Path) -> None:
    remount(small_disk, "size=10m")
    process = job.start(small_disk)
    while job.lines(small_disk, 0) < 10:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    process.kill()
    process.communicate()
    there = {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    remount(small_disk, "ro")
    refused = job.start(small_disk)
    log = refused.communicate(timeout=60)[1]
    assert refused.returncode == 1
    assert "Read-only file system" in log
    assert str(small_disk) in log
    assert "Traceback" not in log
    assert there == {path: path.read_bytes() for path in small_disk.rglob("*") if path.is_file()}
    remount(small_disk, "rw")
    job.run(small_disk)
    assert job.result(small_disk).count(b"\n") == RECORDS
