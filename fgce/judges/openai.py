"""The engine behind the `openai` judge: any OpenAI-compatible chat endpoint, or several.

vllm serve, SGLang, llama.cpp's server and hosted models all speak this. Requests go to the healthy endpoint with the
least to do; what one cannot answer is tried on another. Health checks in the background find the dead ones first.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field

from fgce.endpoints import AttemptError, Endpoint, Endpoints, ssl_context
from fgce.health import HealthWatch
from fgce.judges.base import Answer, JudgeError
from fgce.judges.protocols import Completion, ProtocolName, Query, TokenChoice
from fgce.schema import MissingReason, Usage

_RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_PER_LANE = 16  # requests a connection pool: httpx slows down with the square of what waits in one
_PAUSE = 0.1  # seconds, doubled with each attempt at an endpoint that has just failed
_ALTERNATIVES = 20  # log-probabilities asked for; the scale's digits are among the likeliest


class OpenAIConfig(BaseModel):
    """Settings of the `openai` judge.

    `base_urls` end in /v1. `revision` is the model's, as far as you know it: it goes into the cache's key and every
    response. `constraints` says how decoding is constrained: `vllm` (structured_outputs), `json_schema`
    (response_format; json protocol only) or `none`, where an answer may fail to parse and is then missing.
    `concurrency` bounds the requests in flight at an endpoint, `timeout` (seconds) each attempt. Every `health_every`
    seconds each endpoint is asked for `health_path`: `models` is below its base URL, `/health` at its server's root.
    """

    model_config = ConfigDict(extra="forbid")
    backend: Literal["openai"]
    model: str
    revision: str = "unknown"
    base_urls: Annotated[list[str], Field(min_length=1)]
    protocol: ProtocolName = "json"
    constraints: Literal["vllm", "json_schema", "none"] = "json_schema"
    api_key_variable: str = "OPENAI_API_KEY"
    concurrency: Annotated[int, Field(gt=0)] = 256
    attempts: Annotated[int, Field(gt=0)] = 3
    timeout: Annotated[float, Field(gt=0)] = 30.0
    health_path: str = "models"
    health_every: Annotated[float, Field(gt=0)] = 5.0


@dataclass(slots=True)
class _Lane:
    http: httpx.AsyncClient
    in_flight: int = 0


class OpenAIEngine:
    """Implements `fgce.judges.model.Engine` over HTTP."""

    def __init__(self, config: OpenAIConfig) -> None:
        self._config = config
        self._endpoints = Endpoints(config.base_urls)
        self._slots = {endpoint: asyncio.Semaphore(config.concurrency) for endpoint in self._endpoints.all}
        self._lanes: list[_Lane] = []
        self._health = HealthWatch(self._endpoints, config.health_path, config.health_every, self._client)

    @contextmanager
    def _lane(self) -> Iterator[httpx.AsyncClient]:
        """The connection pool with the least to do, a new one where all have enough."""
        lane = min(self._lanes, key=lambda lane: lane.in_flight, default=None)
        if lane is None or lane.in_flight >= _PER_LANE:
            lane = _Lane(self._client())
            self._lanes.append(lane)
        lane.in_flight += 1
        try:
            yield lane.http
        finally:
            lane.in_flight -= 1

    def _client(self) -> httpx.AsyncClient:
        key = os.environ.get(self._config.api_key_variable)
        return httpx.AsyncClient(
            timeout=self._config.timeout,
            verify=ssl_context(),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_PER_LANE),
        )

    async def complete(self, query: Query) -> Completion:
        """Raises JudgeError when no attempt got an answer."""
        self._health.start()
        body = self._body(query)
        tried: list[Endpoint] = []
        for attempt in range(1, self._config.attempts + 1):
            endpoint = await self._pick(tried)
            again = endpoint in tried
            tried.append(endpoint)
            try:
                if again:
                    await asyncio.sleep(_PAUSE * 2**attempt)
                return await self._attempt(endpoint, body, attempt)
            except AttemptError as error:
                if error.final or attempt == self._config.attempts:
                    raise JudgeError(error.reason, str(error)) from error
        raise AssertionError("the last attempt returns or raises")

    async def _pick(self, tried: list[Endpoint]) -> Endpoint:
        """The endpoint to ask. Where all are cooling down, waits as long as an attempt may take."""
        patience = time.monotonic() + self._config.timeout
        while (endpoint := self._endpoints.pick(avoid=tried)) is None:
            if time.monotonic() > patience:
                urls = ", ".join(one.url for one in self._endpoints.all)
                raise JudgeError(MissingReason.JUDGE_ERROR, f"every endpoint keeps failing: {urls}")
            await asyncio.sleep(_PAUSE)
        return endpoint

    async def aclose(self) -> None:
        """Ends the health checks and closes the connections."""
        await self._health.aclose()
        for lane in self._lanes:
            await lane.http.aclose()

    def _body(self, query: Query) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": query.messages,
            "max_tokens": query.max_tokens,
            "temperature": 0.0,
        }
        if query.choices and self._config.constraints != "json_schema":
            body |= {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        if self._config.constraints == "vllm":
            constraint = {"choice": list(query.choices)} if query.choices else {"json": query.schema}
            body["structured_outputs"] = constraint
        elif self._config.constraints == "json_schema":
            named = {"name": "answer", "strict": True, "schema": query.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    async def _attempt(self, endpoint: Endpoint, body: dict[str, Any], attempt: int) -> Completion:
        slots = self._slots[endpoint]
        endpoint.waiting += 1
        try:
            await slots.acquire()
        finally:
            endpoint.waiting -= 1
        try:
            with self._endpoints.using(endpoint):
                return await self._ask(f"{endpoint.url}/chat/completions", body, attempt)
        finally:
            slots.release()

    async def _ask(self, url: str, body: dict[str, Any], attempt: int) -> Completion:
        try:
            with self._lane() as http:
                response = await http.post(url, json=body)
        except httpx.TimeoutException as error:
            raise AttemptError(MissingReason.TIMEOUT, f"{url}: {error!r}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AttemptError(MissingReason.JUDGE_ERROR, f"{url}: {error!r}") from error
        if response.status_code != httpx.codes.OK:
            detail = f"{url}: HTTP {response.status_code} {response.text[:200]}"
            final = response.status_code not in _RETRIED_STATUS
            healthy = final or response.status_code == httpx.codes.TOO_MANY_REQUESTS
            raise AttemptError(MissingReason.JUDGE_ERROR, detail, healthy=healthy, final=final)
        try:
            return _read(response.json(), attempt)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            detail = f"{url}: no chat completion: {response.text[:200]}"
            raise AttemptError(MissingReason.JUDGE_ERROR, detail) from error


def _read(body: Any, attempt: int) -> Completion:
    """A chat completion's text, usage and log-probabilities; raises one of several errors for anything else."""
    choice = body["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError("the message has no text")
    usage = body.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    answer = Answer(
        text,
        Usage(
            prompt=usage.get("prompt_tokens") or 0,
            completion=usage.get("completion_tokens") or 0,
            cached=details.get("cached_tokens") or 0,
        ),
        attempt,
    )
    entries = (choice.get("logprobs") or {}).get("content") or []
    tokens = tuple(
        TokenChoice(entry["logprob"], {top["token"]: top["logprob"] for top in entry.get("top_logprobs") or []})
        for entry in entries
    )
    return Completion(answer, tokens)
