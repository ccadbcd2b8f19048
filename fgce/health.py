"""Active health checks: a dead endpoint is left before a request fails at it, and a healed one is asked again."""

import asyncio
import logging
from collections.abc import Callable

import httpx

from fgce.endpoints import Endpoint, Endpoints

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0  # seconds; a server under load answers late, a hanging one never


class HealthWatch:
    """Asks each endpoint for `path` every `every` seconds, in the background, from `start` to `aclose`.

    An answer of any status below 500 is a sign of life: not every server has the path, or shows it without a key.

    Args:
        endpoints: what is watched, and told the outcome.
        path: resolved against an endpoint's URL: `models` is below it, `/health` at the server's root.
        every: seconds from one round to the next.
        make_http: a client with the headers that the endpoints want.
    """

    def __init__(
        self, endpoints: Endpoints, path: str, every: float, make_http: Callable[[], httpx.AsyncClient]
    ) -> None:
        self._endpoints = endpoints
        self._path = path
        self._every = every
        self._make_http = make_http
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins in the running event loop; does nothing when begun."""
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    async def aclose(self) -> None:
        """Ends the checks."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        async with self._make_http() as http:
            while True:
                await asyncio.gather(*(self._probe(http, endpoint) for endpoint in self._endpoints.all))
                await asyncio.sleep(self._every)

    async def _probe(self, http: httpx.AsyncClient, endpoint: Endpoint) -> None:
        try:
            url = httpx.URL(f"{endpoint.url}/").join(self._path)
            response = await http.get(url, timeout=_LONGEST_WAIT)
            problem = f"HTTP {response.status_code}" if response.is_server_error else ""
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = repr(error)
        if problem and endpoint.alive:
            logger.warning("%s is down and not asked: health check: %s", endpoint.url, problem)
        elif not problem and not endpoint.alive:
            logger.info("%s is up again", endpoint.url)
        self._endpoints.note_health(endpoint, alive=not problem)
