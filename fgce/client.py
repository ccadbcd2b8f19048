"""Client of an FG-CE server, for trainers and evaluations.

A judge that is dead, slow, overloaded or garbled never raises here: every item that got no answer comes back
with status "missing" and the reason. One call sends all explanations of a rank in one request.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import httpx
import tenacity
from pydantic import ValidationError

from fgce.emotion import ConveyedEmotion, EmotionRequest, EmotionResponse
from fgce.endpoints import AttemptError, Endpoint, Endpoints, http_url, ssl_context
from fgce.schema import ExplanationScore, MissingReason, ScoreItem, ScoreMode, ScoreRequest, ScoreResponse

logger = logging.getLogger(__name__)

_ATTEMPT_SHARE = 0.9  # of the deadline: the longest that a server may keep an attempt waiting
_RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}


def connect_args(url: str | None = None, token: str | None = None) -> tuple[list[str], str | None]:
    """Base URLs and bearer token: the arguments, else FGCE_URL and FGCE_TOKEN, else http://$POD_IP:8000.

    Several URLs are separated by commas or white space, as in the endpoints file that srun_fgce.sh writes. POD_IP is
    the variable that the authors' launcher sets; without any of these the server is on loopback.
    """
    urls = url or os.environ.get("FGCE_URL") or http_url(os.environ.get("POD_IP") or "127.0.0.1", 8000)
    return [one.rstrip("/") for one in urls.replace(",", " ").split()], token or os.environ.get("FGCE_TOKEN")


_Response = TypeVar("_Response", ScoreResponse, EmotionResponse)


@dataclass(frozen=True)
class _Call(Generic[_Response]):
    """A request on its way: path, JSON body, the ids that the answer must have, and its type."""

    path: str
    body: str
    ids: list[str]
    response: type[_Response]


class FgceClient:
    """Scores explanations over HTTP. Safe to use from several event loops and from plain synchronous code.

    Args:
        url: base URL, or several separated by commas; see `connect_args` for the default. Each request goes to the
            least loaded server that answers, and on to another one where it fails.
        token: bearer token; see `connect_args`.
        deadline: seconds that one `score` call may take in all, retries included. Keep it below the trainer's
            collective time-out.
        attempts: tries at most, within the deadline.
        transport: httpx transport to use instead of the network.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        deadline: float = 120.0,
        attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        urls, self._token = connect_args(url, token)
        self._endpoints = Endpoints(urls)
        self.deadline = deadline
        self.attempts = attempts
        self._transport = transport

    async def score(
        self,
        items: Sequence[ScoreItem],
        *,
        score_mode: ScoreMode = "fine_grained",
        gen_explanation: bool = False,
    ) -> ScoreResponse:
        """One result an item, in order; never raises for anything that the server does or fails to do."""
        request = ScoreRequest(items=list(items), score_mode=score_mode, gen_explanation=gen_explanation)
        return await self.score_request(request)

    async def score_request(self, request: ScoreRequest) -> ScoreResponse:
        """`score` for a request that is made already."""
        items = request.items
        if not items:
            return ScoreResponse(rubric=None, judge=None, results=[])
        body = request.model_dump_json(exclude_none=True)
        answer = await self._answer(_Call("/v1/score", body, [item.id for item in items], ScoreResponse))
        if not isinstance(answer, AttemptError):
            return answer
        results = [ExplanationScore.missing(item.id, answer.reason, str(answer)) for item in items]
        return ScoreResponse(rubric=None, judge=None, results=results)

    def name_emotions(self, request: EmotionRequest) -> EmotionResponse:
        """Which emotion each explanation conveys; never raises for anything that the server does or fails to do.

        Raises:
            RuntimeError: called while an event loop runs in this thread.
        """
        call = _Call("/v1/emotion", request.model_dump_json(), [item.id for item in request.items], EmotionResponse)
        answer = asyncio.run(self._answer(call))
        if not isinstance(answer, AttemptError):
            return answer
        results = [ConveyedEmotion.missing(id, answer.reason, str(answer)) for id in call.ids]
        return EmotionResponse(question=None, judge=None, results=results)

    def score_sync(
        self,
        items: Sequence[ScoreItem],
        *,
        score_mode: ScoreMode = "fine_grained",
        gen_explanation: bool = False,
    ) -> ScoreResponse:
        """`score` for code without an event loop.

        Raises:
            RuntimeError: called while an event loop runs in this thread; await `score` there.
        """
        return asyncio.run(self.score(items, score_mode=score_mode, gen_explanation=gen_explanation))

    async def _answer(self, call: "_Call[_Response]") -> "_Response | AttemptError":
        try:
            async with asyncio.timeout(self.deadline):
                return await self._with_retries(call)
        except TimeoutError:
            failure = AttemptError(MissingReason.TIMEOUT, f"no answer within {self.deadline:g} s")
        except AttemptError as error:
            failure = error
        logger.warning("FG-CE: %d explanations are missing: %s", len(call.ids), failure)
        return failure

    async def _with_retries(self, call: "_Call[_Response]") -> "_Response":
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(_worth_retrying),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=_wait,
            reraise=True,
        )
        # A connection pool belongs to one event loop, so each call has its own: a rank makes one call a step.
        async with httpx.AsyncClient(
            transport=self._transport, timeout=_ATTEMPT_SHARE * self.deadline, verify=ssl_context(), headers=headers
        ) as http:
            return await retrying(self._attempt, http, call, [])

    async def _attempt(self, http: httpx.AsyncClient, call: "_Call[_Response]", tried: list[Endpoint]) -> "_Response":
        endpoint = self._endpoints.pick(avoid=tried)
        if endpoint is None:
            detail = "every server failed again and again; none is asked until it has cooled down"
            raise AttemptError(MissingReason.UNREACHABLE, detail, final=True)
        tried.append(endpoint)
        try:
            with self._endpoints.using(endpoint):
                return await self._ask(http, endpoint.url, call)
        except AttemptError as error:
            if any(other.available for other in self._endpoints.all if other not in tried):
                error.retry_after = None  # that server's wish; another one may have time
            raise

    async def _ask(self, http: httpx.AsyncClient, url: str, call: "_Call[_Response]") -> "_Response":
        try:
            answer = await http.post(f"{url}{call.path}", content=call.body)
        except httpx.TimeoutException as error:
            raise AttemptError(MissingReason.TIMEOUT, f"{url}: {error!r}") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AttemptError(MissingReason.UNREACHABLE, f"{url}: {error!r}") from error
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer)
        try:
            scored = call.response.model_validate_json(answer.content)
        except ValidationError as error:
            detail = f"{url}: not the expected answer: {error.errors()[0]['msg']}"
            raise AttemptError(MissingReason.BAD_RESPONSE, detail) from error
        if [result.id for result in scored.results] != call.ids:
            raise AttemptError(MissingReason.BAD_RESPONSE, f"{url}: the answer's ids are not the request's")
        return scored


def score(
    items: Sequence[ScoreItem], url: str | None = None, *, score_mode: ScoreMode = "fine_grained"
) -> ScoreResponse:
    """Scores explanations on the server at `url` (default: `connect_args`) from synchronous code."""
    return FgceClient(url).score_sync(items, score_mode=score_mode)


def _refusal(answer: httpx.Response) -> AttemptError:
    detail = f"{answer.url}: HTTP {answer.status_code} {answer.text[:200]}"
    if answer.status_code in {429, 503}:
        return AttemptError(
            MissingReason.OVERLOADED, detail, healthy=True, retry_after=_seconds(answer.headers.get("Retry-After"))
        )
    if answer.status_code in _RETRIED_STATUS:
        return AttemptError(MissingReason.SERVER_ERROR, detail)
    return AttemptError(MissingReason.REFUSED, detail, healthy=True, final=True)


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, AttemptError) and not error.final


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.strip().isdigit() else None


_backoff = tenacity.wait_random_exponential(multiplier=0.5, max=15)


def _wait(state: tenacity.RetryCallState) -> float:
    """Exponential with jitter, on top of what the server asked for, so that ranks do not return as one."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, AttemptError) and error.retry_after is not None:
        return error.retry_after + _backoff(state)
    return _backoff(state)
