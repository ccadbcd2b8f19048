"""The vllm judge on the real engine with a tiny random model, on a GPU or, by tests/fgce/vllm_cpu.sh, on a CPU."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import httpx
import psutil
import pytest
from server_process import server_process
from tiny_chat_model import make_tiny_chat_model

from fgce.client import FgceClient
from fgce.rubric import load_rubric
from fgce.schema import ScoreItem

pytest.importorskip(
    "vllm", reason="vLLM is not installed: tests/fgce/vllm_cpu.sh runs these in an environment of their own"
)

pytestmark = pytest.mark.slow

CUES = ("Her brows are lowered", "His voice is loud", "Her eyes are wide", "The speech is slow")
# 1000 explanations of 5 sentences
MANY = [
    ScoreItem(
        id=str(i),
        explanation=f"{CUES[i % 4]} in take {i}. Something else. His hands rest. This suggests fear. He is afraid.",
        predicted_emotion="fear",
    )
    for i in range(1000)
]
ITEMS = MANY[:100]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [item.explanation or "" for item in ITEMS] + [load_rubric().model_dump_json()]
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"), texts)


def settings(model: Path, protocol: str, timeout: float = 400.0) -> list[str]:
    limits = "max_model_len: 4096, max_num_seqs: 64, enforce_eager: true"
    judge = f"{{backend: vllm, model: {model}, protocol: {protocol}, {limits}}}"
    return ["--set", f"judge={judge}", "--set", f"timeout={timeout}"]


def metric(url: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def wait_for_readiness(url: str, status: int) -> None:
    deadline = time.monotonic() + 60
    while httpx.get(f"{url}/readyz", timeout=120).status_code != status:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.parametrize("protocol", ["json", "fast"])
def test_no_answer_of_500_sentences_fails_to_parse(model: Path, protocol: str):
    """Slow: vLLM takes half a minute to load, and 500 sentences another one or two on a CPU."""
    with server_process(*settings(model, protocol)) as (url, _):
        response = FgceClient(url, deadline=450).score_sync(ITEMS)
        sentences = [sentence for result in response.results for sentence in result.sentences]
        assert len(sentences) == 500
        assert [s.detail for s in sentences if s.status == "missing"] == []
        assert metric(url, 'fgce_tokens_total{kind="prefix_cache_hit"}') > 0.5 * metric(
            url, 'fgce_tokens_total{kind="prompt"}'
        )
        if protocol == "fast":
            scored = [s for s in sentences if s.score is not None]
            assert all(s.expected is not None and 1 <= s.expected <= 5 for s in scored)
            assert all(s.confidence is not None and 0 < s.confidence <= 1 for s in sentences)
        explained = FgceClient(url, deadline=450).score_sync(ITEMS[:20], gen_explanation=True).results
        sentences = [sentence for result in explained for sentence in result.sentences]
        assert [s.detail for s in sentences if s.status == "missing"] == []
        assert all(s.explanation is not None for s in sentences if s.score is not None)


def engine_load(server: Popen[str]) -> float:
    """Processor seconds that the engine takes in a second."""
    processes = psutil.Process(server.pid).children(recursive=True)
    before = sum(process.cpu_times().user for process in processes)
    time.sleep(3)
    return (sum(process.cpu_times().user for process in processes) - before) / 3


def test_a_deadline_ends_the_work_in_the_engine(model: Path):
    """Slow: loads vLLM. What is asked for here would keep it busy for a minute or so."""
    with server_process(*settings(model, "json", timeout=8.0)) as (url, process), ThreadPoolExecutor() as pool:
        wait_for_readiness(url, 200)
        scoring = pool.submit(FgceClient(url, deadline=60, attempts=1).score_sync, MANY)
        time.sleep(2)
        busy = engine_load(process)
        assert "timeout" in {result.reason for result in scoring.result().results}
        time.sleep(1)
        assert engine_load(process) < busy / 5


def test_a_killed_engine_turns_readiness_red_and_a_restart_recovers(model: Path):
    """Slow: loads vLLM twice."""
    with server_process(*settings(model, "fast")) as (url, process):
        wait_for_readiness(url, 200)
        children = psutil.Process(process.pid).children(recursive=True)
        cores = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
        assert cores
        for core in cores:
            core.kill()
        wait_for_readiness(url, 503)
        assert httpx.get(f"{url}/healthz").status_code == 200
        results = FgceClient(url).score_sync(ITEMS[:3]).results
        assert {(result.status, result.reason) for result in results} == {("missing", "overloaded")}
        assert "the judge is not ready" in str(results[0].detail)
    with server_process(*settings(model, "fast")) as (url, _):
        assert {result.status for result in FgceClient(url).score_sync(ITEMS[:3]).results} == {"ok"}
