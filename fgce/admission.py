"""The bounded queue: how many explanations a server takes on at once, and when a refused client may come back."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

_SMOOTHING = 0.2  # weight of the newest request's time in the running mean
_LONGEST_WAIT = 30


class RefusedError(Exception):
    """The server takes no request now; `retry_after` says when to come back, in whole seconds."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(f"{detail}; come back in {retry_after} s")
        self.retry_after = retry_after


class OverloadedError(RefusedError):
    """The queue is full."""


class UnavailableError(RefusedError):
    """The judge is not ready, or the server is about to stop."""


class Admission:
    """Counts the explanations that are being scored and refuses those beyond `capacity`.

    A request larger than the capacity is let in when nothing else is waiting, since it could never be otherwise.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting = 0
        self._seconds = 1.0

    @contextmanager
    def admit(self, explanations: int) -> Iterator[None]:
        """Holds places in the queue.

        Raises:
            OverloadedError: there are not as many left.
        """
        if self.waiting and self.waiting + explanations > self.capacity:
            retry_after = min(_LONGEST_WAIT, math.ceil(self._seconds))
            raise OverloadedError(f"{self.waiting} explanations are waiting already", retry_after)
        self.waiting += explanations
        start = time.monotonic()
        try:
            yield
        finally:
            self.waiting -= explanations
            self._seconds += _SMOOTHING * (time.monotonic() - start - self._seconds)
