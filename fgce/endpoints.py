"""Several servers that can do the same work: the healthy and least loaded one is asked, a failing one is left alone.

Used by the client over FG-CE servers and by the openai judge over inference servers.
"""

import ssl
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

_LONGEST_COOL_DOWN = 60.0


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server: how much it has to do, and how it has done."""

    url: str
    in_flight: int = 0
    failures: int = 0  # in a row
    closed_until: float = 0.0  # monotonic time

    @property
    def available(self) -> bool:
        """Not cooling down. After that, one request at a time finds out whether the server is back."""
        return time.monotonic() >= self.closed_until and not (self.closed_until and self.in_flight)


class Endpoints:
    """A circuit breaker for each of several base URLs.

    After `failures` failures in a row an endpoint is not asked for `cool_down` seconds, and for twice as long each
    time that it fails again.
    """

    def __init__(self, urls: Sequence[str], *, failures: int = 5, cool_down: float = 5.0) -> None:
        self.all = [Endpoint(url.rstrip("/")) for url in urls]
        self._failures = failures
        self._cool_down = cool_down

    def pick(self, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """The available endpoint with the least in flight, one outside `avoid` first; None where all cool down."""
        available = [endpoint for endpoint in self.all if endpoint.available]
        return min(available, key=lambda endpoint: (endpoint in avoid, endpoint.in_flight), default=None)

    @contextmanager
    def using(self, endpoint: Endpoint) -> Iterator[None]:
        """Counts a request in flight."""
        endpoint.in_flight += 1
        try:
            yield
        finally:
            endpoint.in_flight -= 1

    def succeeded(self, endpoint: Endpoint) -> None:
        """It answered: its record is clean."""
        endpoint.failures = 0
        endpoint.closed_until = 0.0

    def failed(self, endpoint: Endpoint) -> None:
        """It did not answer, or answered with nonsense."""
        endpoint.failures += 1
        extra = endpoint.failures - self._failures
        if extra >= 0:
            endpoint.closed_until = time.monotonic() + min(self._cool_down * 2**extra, _LONGEST_COOL_DOWN)


@cache
def ssl_context() -> ssl.SSLContext:
    """Made once a process: loading the system's certificates takes tens of milliseconds."""
    return ssl.create_default_context()
