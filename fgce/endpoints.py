"""Several servers that can do the same work: the healthy and least loaded one is asked, a failing one is left alone.

Used by the client over FG-CE servers and by the openai judge over inference servers.
"""

import ssl
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from fgce.schema import MissingReason

_LONGEST_COOL_DOWN = 60.0
_MOMENT = 1.0  # seconds


class AttemptError(Exception):
    """A server gave no answer to a request.

    Attributes:
        reason: what a result is missing for when there is no other attempt.
        healthy: the server is well, it only did not do this (it was busy, or the request is at fault).
        final: another attempt would get no answer either.
        retry_after: the server's wish in seconds, where it gave one.
    """

    def __init__(
        self,
        reason: MissingReason,
        detail: str,
        *,
        healthy: bool = False,
        final: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.healthy = healthy
        self.final = final
        self.retry_after = retry_after


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server: how much it has to do, and how it has done."""

    url: str
    in_flight: int = 0
    waiting: int = 0  # requests that are to go there and have to wait for a free slot
    failures: int = 0  # in a row
    last_outcome: float = 0.0  # monotonic time, as is the next
    closed_until: float = 0.0
    alive: bool = True  # by the last health check, where there are any

    @property
    def load(self) -> int:
        """All that it is to do yet: where every endpoint's slots are taken, the waiting tell the loads apart."""
        return self.in_flight + self.waiting

    @property
    def available(self) -> bool:
        """Alive and not cooling down. After that, one request at a time finds out whether the server is back."""
        cooled = time.monotonic() >= self.closed_until and not (self.closed_until and self.in_flight)
        return self.alive and cooled

    @property
    def failing(self) -> bool:
        """It failed a moment ago. One that fails at once always has the least to do, and would draw every request."""
        return self.failures > 0 and time.monotonic() - self.last_outcome < _MOMENT


class Endpoints:
    """A circuit breaker for each of several base URLs.

    After `failures` failures in a row an endpoint is not asked for `cool_down` seconds, and for twice as long each
    time that it fails again. Failures in a row are of requests that began one after the other's end: of many at once
    some fail together at a server that is well, and a burst that fails is one failure.
    """

    def __init__(self, urls: Sequence[str], *, failures: int = 5, cool_down: float = 5.0) -> None:
        self.all = [Endpoint(url.rstrip("/")) for url in urls]
        self._failures = failures
        self._cool_down = cool_down

    def pick(self, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """The available endpoint with the least load; None where all cool down.

        One outside `avoid` comes first, then one that is not failing.
        """
        available = [endpoint for endpoint in self.all if endpoint.available]
        return min(available, key=lambda one: (one in avoid, one.failing, one.load), default=None)

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Counts a request in flight, and its success or, where the block raises AttemptError, its failure."""
        endpoint.in_flight += 1
        start = time.monotonic()
        try:
            yield
        except AttemptError as error:
            if not error.healthy and endpoint.last_outcome <= start:
                self._count_failure(endpoint)
            raise
        else:
            endpoint.failures = 0
            endpoint.closed_until = 0.0
            endpoint.last_outcome = time.monotonic()
        finally:
            endpoint.in_flight -= 1

    def note_health(self, endpoint: Endpoint, *, alive: bool) -> None:
        """Takes in a health check. One that was down and is up starts anew; one that only fails requests does not."""
        if alive and not endpoint.alive:
            endpoint.failures = 0
            endpoint.closed_until = 0.0
        endpoint.alive = alive

    def _count_failure(self, endpoint: Endpoint) -> None:
        endpoint.failures += 1
        endpoint.last_outcome = time.monotonic()
        extra = endpoint.failures - self._failures
        if extra >= 0:
            endpoint.closed_until = time.monotonic() + min(self._cool_down * 2**extra, _LONGEST_COOL_DOWN)


def http_url(host: str, port: int) -> str:
    """Base URL of a server; an IPv6 address stands in brackets there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@cache
def ssl_context() -> ssl.SSLContext:
    """Made once a process: loading the system's certificates takes tens of milliseconds."""
    return ssl.create_default_context()
