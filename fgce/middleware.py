"""What stands before every endpoint: body size, bearer token, request counts. Plain ASGI, as it runs each time."""

import hmac
import time
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fgce.metrics import Metrics

OPEN_PATHS = {"/healthz", "/readyz"}  # for probes, which carry no token


class BodyLimit:
    """Answers 413 to a body of more than `limit` bytes, before it is read or as soon as it turns out so."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = _header(scope, b"content-length")
        if declared.isdigit() and int(declared) > self.limit:
            await self._refuse(scope, receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.limit:
                await self._refuse(scope, receive, send)
                return
        read = False

        async def replay() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body is larger than {self.limit} bytes; send fewer explanations a request"
        await _answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)(scope, receive, send)


class BearerToken:
    """Answers 401 to a request without the token, probes excepted."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            given = _header(scope, b"authorization")
            if not hmac.compare_digest(given, self._expected):
                await _answer(HTTPStatus.UNAUTHORIZED, "send the server's token as 'Authorization: Bearer TOKEN'")(
                    scope, receive, send
                )
                return
        await self.app(scope, receive, send)


class Measured:
    """Counts requests by route and status, and times those that score."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0
        start = time.monotonic()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = scope.get("route")
            path = route.path if route else "other"
            self.metrics.requests.labels(path, status or "gone").inc()
            if scope["method"] == "POST" and route:
                self.metrics.latency.labels(path).observe(time.monotonic() - start)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _answer(status: HTTPStatus, detail: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse({"detail": detail}, status, headers)
