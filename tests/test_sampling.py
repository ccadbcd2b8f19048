"""Sampled candidates: drawn from the right distribution; the same ones in any batch, on any rank, after any kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from humanomni.inference import Failure, Item, Predictor
from humanomni.loading import LoadOptions
from humanomni.sampling import GumbelNoise, Sampling

REPO = Path(__file__).parents[1]
CPU = torch.device("cpu")


def draws(logits: torch.Tensor, sampling: Sampling, rows: int) -> torch.Tensor:
    """Shares with which each token is drawn, over many rows."""
    inputs = sampling.rows([str(row) for row in range(rows)])
    noise = GumbelNoise(sampling, inputs["seeds"], inputs["temperatures"], CPU)
    ids = noise(torch.zeros(rows, 1, dtype=torch.long), logits.expand(rows, -1)).argmax(dim=-1)
    return torch.bincount(ids, minlength=len(logits)) / rows


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    shares = draws(logits, Sampling(n=1, temperatures=(temperature,)), rows=4000)
    assert torch.allclose(shares, torch.softmax(logits / temperature, dim=0), atol=0.03)


def test_top_k_and_top_p_cut_the_tail() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    assert (draws(logits, Sampling(n=1, top_k=2), 500) > 0).tolist() == [True, True, False, False]
    assert (draws(logits, Sampling(n=1, top_p=0.5), 500) > 0).tolist() == [True, False, False, False]


def test_the_schedule_goes_round_and_every_candidate_has_a_seed_of_its_own() -> None:
    sampling = Sampling(n=3, temperatures=(0.5, 1.0))
    rows = sampling.rows(["a", "b"])
    assert rows["temperatures"].tolist() == [0.5, 1.0, 0.5] * 2
    assert len(set(rows["seeds"].tolist())) == 6
    assert torch.equal(sampling.rows(["b"])["seeds"], rows["seeds"][3:])
    assert not torch.equal(Sampling(n=3, seed=1).rows(["b"])["seeds"], rows["seeds"][3:])


@pytest.fixture(scope="module")
def items(toy_items: list[Item]) -> list[Item]:
    return toy_items[:4]


def test_a_candidate_does_not_hang_on_its_batch(tiny_model_dir: Path, items: list[Item]) -> None:
    predictor = Predictor(
        LoadOptions(tiny_model_dir), sampling=Sampling(n=3, temperatures=(0.7, 1.3)), max_new_tokens=8
    )
    together = {item.line: outcome for item, outcome in predictor.predict(items, batch_size=12)}
    alone = {item.line: outcome for item, outcome in predictor.predict(items[::-1], batch_size=1)}
    assert together == alone
    candidates = together[1]["candidates"]
    assert together[1]["raw_response"] == candidates[0]["raw_response"]
    assert [one["temperature"] for one in candidates] == [0.7, 1.3, 0.7]
    assert len({one["raw_response"] for one in candidates}) == 3


def test_a_batch_that_fails_is_halved_with_its_seeds(
    tiny_model_dir: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(LoadOptions(tiny_model_dir), sampling=Sampling(n=2), max_new_tokens=8)
    straight = list(predictor.predict(items, batch_size=8))
    generate = predictor.model.generate

    def small_batches_only(**inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs["input_ids"]) > 3:
            raise torch.OutOfMemoryError("too many rows")
        return generate(**inputs)

    monkeypatch.setattr(predictor.model, "generate", small_batches_only)
    assert list(predictor.predict(items, batch_size=8)) == straight


def test_a_clip_of_which_a_candidate_fails_is_a_failure(
    tiny_model_dir: Path, items: list[Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(LoadOptions(tiny_model_dir), sampling=Sampling(n=2), max_new_tokens=8)
    monkeypatch.setattr(predictor, "respond", lambda *_: ["fine", Failure("ValueError", "no"), "fine", "fine"])
    (_, first), (_, second) = predictor.predict(items[:2], batch_size=4)
    assert first == Failure("ValueError", "no")
    assert [one["raw_response"] for one in second["candidates"]] == ["fine", "fine"]


@pytest.mark.slow
def test_killed_and_continued_by_two_ranks_it_gives_the_same_files(
    tmp_path: Path, tiny_model_dir: Path, toy_world_dir: Path
) -> None:
    """Slow: three real runs of the command, two of them with several processes that load torch and the model."""
    script = (
        f"{REPO}/scripts/sample_candidates.py --config {REPO}/configs/caemer/candidates.yaml --set n=3 --set top_k=0"
    )
    script += f" --set max_new_tokens=8 --model_path {tiny_model_dir} --input_jsonl {toy_world_dir}/test.jsonl"

    def start(output: Path, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, *script.split(), "--output_dir", str(output), *flags]
        return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stderr=subprocess.PIPE)

    straight = start(tmp_path / "straight", "--batch_size", "42")
    log = straight.communicate(timeout=120)[1]
    assert straight.returncode == 0, log

    killed = start(tmp_path / "killed", "--batch_size", "1")
    shard = tmp_path / "killed/test.shards/rank0.jsonl"
    while killed.poll() is None and not (shard.exists() and shard.stat().st_size):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed/test.jsonl").exists()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ranks = start(tmp_path / "killed", "--batch_size", "4", launcher=torchrun)
    log = ranks.communicate(timeout=120)[1]
    assert ranks.returncode == 0, log
    for name in ("test.jsonl", "test.summary.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert json.loads((tmp_path / "killed/test.summary.json").read_text())["candidates"] == 14 * 3
