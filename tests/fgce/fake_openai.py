"""An OpenAI-compatible chat server on a real socket, whose model is the lexicon judge, and which can misbehave."""

import asyncio
import html
import json
import math
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast, get_args

from fgce.judges.lexicon import LexiconJudge
from fgce.judges.prompts import FUNCTION_CODES, MODALITY_CODES
from fgce.schema import Function, ScoreMode

# What the server does with a request: a text to answer with, or one of the names in `FakeOpenAI._misbehave`.
Script = Callable[[dict[str, Any]], str | None]


def tagged(body: dict[str, Any], tag: str) -> str:
    """A judged text out of a request's user message."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", body["messages"][1]["content"], re.DOTALL)
    return html.unescape(found.group(1)) if found else ""


def is_label_step(body: dict[str, Any]) -> bool:
    """Whether a request is step 1."""
    return "Modality of the evidence" in body["messages"][0]["content"]


class FakeOpenAI:
    """Counts requests; `script` may take over an answer, `delay` holds each one back."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.health_checks = 0
        self.script: Script = lambda body: None
        self.misbehaviour: Callable[[dict[str, Any]], str | None] = lambda body: None
        self.delay = 0.0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self._judge = LexiconJudge()

    async def start(self) -> None:
        """Listens; after a kill at the same port as before."""
        port = int(self.url.split(":")[2].split("/")[0]) if self.url else 0
        self._server = await asyncio.start_server(self._handle, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    def kill(self) -> None:
        """Drops every connection and refuses new ones."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET /v1/models "):
                    self.health_checks += 1
                    self._send(writer, 200, b'{"data": []}')
                    continue
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = json.loads(await reader.readexactly(int(length.group(1)) if length else 0))
                self.bodies.append(body)
                self.headers.append(head)
                await asyncio.sleep(self.delay)
                bad = self.misbehaviour(body)
                if bad and not await self._misbehave(bad, writer):
                    return
                if not bad:
                    self._send(writer, 200, json.dumps(await self._completion(body)).encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _misbehave(self, how: str, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection is still of use."""
        if how == "reset":
            writer.transport.abort()
            return False
        if how == "hang":
            await asyncio.sleep(3600)
        if how == "cut short":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{}")
            await writer.drain()
            return False
        status, text = {
            "500": (500, "boom"),
            "400": (400, "no such parameter"),
            "truncated": (200, '{"choices": [{"message": {"cont'),
            "empty": (200, '{"choices": []}'),
            "not json": (200, "<html>"),
        }[how]
        self._send(writer, status, text.encode())
        return True

    def _send(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.script(body)
        if text is None:
            text = await self._answer(body)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_logprobs(char) for char in text]}
        prompt = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": prompt, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 7}}
        return {"choices": [choice], "usage": usage}

    async def _answer(self, body: dict[str, Any]) -> str:
        sentence, explanation = tagged(body, "sentence"), tagged(body, "explanation")
        structured = body.get("structured_outputs") or {}
        fast = "choice" in structured or "such as E1" in body["messages"][0]["content"]
        if is_label_step(body):
            label = await self._judge.label(sentence, explanation)
            if fast:
                return FUNCTION_CODES[label.function] + MODALITY_CODES[label.modality]
            return json.dumps({"function": label.function, "modality": label.modality, "confidence": 0.9})
        function = next(f for f in get_args(Function) if f"of this kind: {f}" in body["messages"][0]["content"])
        mode = "binary" if "- 0: " in body["messages"][0]["content"] else "fine_grained"
        rating = await self._judge.rate(
            sentence,
            explanation,
            cast(Function, function),
            tagged(body, "predicted_emotion"),
            mode=cast(ScoreMode, mode),
            gen_explanation=True,
        )
        if fast:
            return str(rating.score)
        wants_reason = "explanation" in json.dumps(body.get("response_format", structured))
        return json.dumps({"score": rating.score} | ({"explanation": rating.explanation} if wants_reason else {}))


def _logprobs(char: str) -> dict[str, Any]:
    """90 % for what was said; for a digit the rest goes to the digit below, and a little to no digit at all."""
    top = {char: 0.9}
    if char.isdigit() and char > "1":
        top[str(int(char) - 1)] = 0.06
    top["the"] = 0.01
    return {
        "token": char,
        "logprob": math.log(0.9),
        "top_logprobs": [{"token": token, "logprob": math.log(p)} for token, p in top.items()],
    }


@asynccontextmanager
async def fake_openai() -> AsyncIterator[FakeOpenAI]:
    """A running server; its `url` ends in /v1."""
    fake = FakeOpenAI()
    await fake.start()
    try:
        yield fake
    finally:
        fake.kill()
