"""How long a step of GRPO waits for FG-CE: the authors' pattern, our server with their client, one call a rank.

    python benchmarks/fgce_load.py            # half a minute on 2 cores; prints one JSON object

8 ranks score 8 completions of 6 sentences each. The engine is a stand-in that takes 50 ms a call and 1 ms a sequence,
so that the figures compare servers and clients, not models. The authors' server is re-enacted from its description: the
endpoint blocks its event loop, so that requests queue, and hands the engine the sentences of one completion at a time;
their client posts a completion after the other. Last, requests a second through our server with a judge that answers at
once, of one sentence each over 64 connections.
"""

import asyncio
import json
import logging
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from fgce.client import FgceClient
from fgce.config import FgceConfig
from fgce.judges.base import SentenceLabel, SentenceRating
from fgce.rubric import load_rubric
from fgce.schema import JudgeInfo, ScoreItem
from fgce.scorer import Scorer
from fgce.server import create_app
from fgce.service import ScoringService
from fgce.wire import FunctionEvalRequest

RANKS, COMPLETIONS, SENTENCES = 8, 8, 6
CALL_SECONDS, SEQUENCE_SECONDS = 0.050, 0.001
CONNECTIONS, REQUESTS = 64, 6400


class FakeEngineJudge:
    """Answers in batches: whatever waits when the engine is free goes into its next call."""

    decoding = ""
    info = JudgeInfo(backend="fake", model="fake", revision="1")

    def __init__(self, call: float, sequence: float) -> None:
        self._call, self._sequence = call, sequence
        self._waiting: list[asyncio.Future[None]] = []
        self._loop: asyncio.Task[None] | None = None

    async def label(self, sentence: str, explanation: str) -> SentenceLabel:
        await self._turn()
        return SentenceLabel("information analysis", "visual", 0.9)

    async def rate(self, *args: object, **kwargs: object) -> SentenceRating:
        await self._turn()
        return SentenceRating(4)

    async def name_emotion(self, *args: object) -> str | None:
        await self._turn()
        return None

    async def aclose(self) -> None:
        if self._loop:
            self._loop.cancel()

    async def _turn(self) -> None:
        if self._call:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            if self._loop is None or self._loop.done():
                self._loop = asyncio.create_task(self._run())
            await turn

    async def _run(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # the rest of the request that woke the engine
            batch, self._waiting = self._waiting, []
            await asyncio.sleep(self._call + self._sequence * len(batch))
            for turn in batch:
                if not turn.done():
                    turn.set_result(None)
            await asyncio.sleep(0)


def our_server(port: int, call: float, sequence: float) -> None:
    """Our server over the stand-in."""
    scorer = Scorer(FakeEngineJudge(call, sequence), load_rubric())
    app = create_app(FgceConfig(), ScoringService(scorer, queue=4096))
    uvicorn.run(app, port=port, log_level="warning", access_log=False)


def authors_server(port: int, call: float, sequence: float) -> None:
    """Two engine calls a request, in an endpoint that blocks the event loop."""
    app = FastAPI()

    @app.post("/function_eval")
    async def function_eval(request: FunctionEvalRequest) -> list[dict[str, object]]:
        sentences = request.explanation_sentence_batch
        for _ in ("function", "score"):
            time.sleep(call + sequence * len(sentences))
        return [{"function": "information analysis", "modality": "visual", "confidence": 0.9, "score": 4}] * len(
            sentences
        )

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


@contextmanager
def running(server: Callable[[int, float, float], None], call: float, sequence: float) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=server, args=(port, call, sequence))
    process.start()
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.join()


def sentences_of(rank: int, completion: int) -> list[str]:
    """Different in every completion, so that nothing is joined."""
    return [f"Her brows are lowered, {rank} {completion} {i}." for i in range(SENTENCES)]


def by_completion(url: str) -> float:
    """Seconds until every rank has its scores with the authors' client: a request a completion, one after the other."""

    def rank(number: int) -> None:
        with httpx.Client(base_url=url, timeout=30) as http:
            for completion in range(COMPLETIONS):
                body = {
                    "explanation_sentence_batch": sentences_of(number, completion),
                    "predicted_emotion": "angry",
                    "score_mode": "fine_grained",
                    "gen_explanation": False,
                    "temperature": 0.0,
                    "max_tokens": 128,
                    "top_p": 1.0,
                }
                answer = http.post("/function_eval", json=body)
                assert len(answer.json()) == SENTENCES

    start = time.monotonic()
    with ThreadPoolExecutor(RANKS) as ranks:
        list(ranks.map(rank, range(RANKS)))
    return time.monotonic() - start


def by_rank(url: str) -> float:
    """Seconds until every rank has its scores with our client: one request a rank."""

    async def score() -> None:
        answers = await asyncio.gather(
            *(
                FgceClient(url).score(
                    [
                        ScoreItem(id=str(c), sentences=sentences_of(rank, c), predicted_emotion="angry")
                        for c in range(COMPLETIONS)
                    ]
                )
                for rank in range(RANKS)
            )
        )
        assert all(result.status == "ok" for answer in answers for result in answer.results)

    start = time.monotonic()
    asyncio.run(score())
    return time.monotonic() - start


def throughput(url: str) -> tuple[float, float]:
    """Requests a second over keep-alive connections, and the 99th percentile of their times in seconds."""
    sentence = {
        "explanation_sentence_batch": ["Her voice is low."],
        "predicted_emotion": "sad",
        "score_mode": "fine_grained",
    }
    body = json.dumps(sentence).encode()
    head = "POST /function_eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    host, port = url.removeprefix("http://").split(":")
    seconds: list[float] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in range(REQUESTS // CONNECTIONS):
            start = time.perf_counter()
            writer.write(request)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert answer.startswith(b"http/1.1 200")
            await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
            seconds.append(time.perf_counter() - start)
        writer.close()

    async def load() -> None:
        await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))

    start = time.perf_counter()
    asyncio.run(load())
    total = time.perf_counter() - start
    return len(seconds) / total, sorted(seconds)[int(0.99 * len(seconds))]


def main() -> None:
    """Command line entry point."""
    logging.basicConfig(level=logging.WARNING)
    engine = (CALL_SECONDS, SEQUENCE_SECONDS)
    with running(authors_server, *engine) as url:
        authors = by_completion(url)
    with running(our_server, *engine) as url:
        their_client = by_completion(url)
        one_call = by_rank(url)
    with running(our_server, 0.0, 0.0) as url:
        throughput(url)  # warms up
        rate, slowest = throughput(url)
    result = {
        "authors_seconds": round(authors, 2),
        "their_client_seconds": round(their_client, 2),
        "their_client_speedup": round(authors / their_client, 1),
        "one_call_a_rank_seconds": round(one_call, 2),
        "one_call_a_rank_speedup": round(authors / one_call, 1),
        "instant_judge_requests_per_second": round(rate),
        "instant_judge_p99_ms": round(1000 * slowest, 1),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
