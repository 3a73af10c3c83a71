"""What every request passes before the application sees it: the key, the body's size, the time; and what counts it."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias

from fastapi.responses import JSONResponse

from headrank_pipeline.serve.batcher import Limits
from headrank_pipeline.serve.metrics import Metrics
from headrank_pipeline.serve.shapes import Refusal, error_body

__all__ = ["Gate", "refused"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_CLIENT_GONE = 499  # what nginx logs where nobody is left to be answered


class Gate:
    """The ASGI application around the service.

    Args:
        app: the service.
        limits: bounds on a request's size and time.
        metrics: count each request.
        open_paths: need no key.
        known_paths: paths that requests are counted by; all others are ``other``.
        key: what requests must bear; None asks for none.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        *,
        limits: Limits,
        metrics: Metrics,
        open_paths: Collection[str],
        known_paths: Collection[str],
        key: str | None,
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._open, self._known = frozenset(open_paths), frozenset(known_paths)
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass the server's start and end on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), _CLIENT_GONE

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._admit(scope, receive, noted_send)
        except Refusal as refusal:
            if status == _CLIENT_GONE:
                await refused(scope["path"], refusal)(scope, receive, noted_send)
        finally:
            path = scope["path"] if scope["path"] in self._known else "other"
            self._metrics.request(path, status, time.monotonic() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._key is not None and scope["path"] not in self._open:
            _check_key(dict(scope["headers"]).get(b"authorization", b""), self._key)
        stage = Refusal(408, f"the request did not arrive within {self._limits.timeout:g} s")
        try:
            async with asyncio.timeout(self._limits.timeout):
                body = await self._read(receive)
                stage = Refusal(504, f"no answer within {self._limits.timeout:g} s; send less, or try again later")
                await self._unless_gone(scope, body, receive, send)
        except TimeoutError:
            raise stage from None

    async def _read(self, receive: Receive) -> bytes:
        """Return the body. One that is too large is read to its end, since its sender listens only then, and dropped.

        Raises:
            Refusal: it is too large.
        """
        chunks, size, more, limit = [], 0, True, self._limits.body_bytes
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(_CLIENT_GONE, "the client has gone")
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            more = message.get("more_body", False)
            if size > limit:
                chunks.clear()
        if size > limit:
            raise Refusal(413, f"the body has {size} bytes; at most {limit} are taken, send fewer or shorter documents")
        return b"".join(chunks)

    async def _unless_gone(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        """Run the application until it has answered or the client has gone, so that nobody waits for nothing."""
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(parts, {"type": "http.disconnect"})

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        answer = asyncio.ensure_future(self._app(scope, replay, send))
        gone = asyncio.ensure_future(until_gone())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                answer.result()
        finally:
            answer.cancel()
            gone.cancel()


def refused(path: str, refusal: Refusal) -> JSONResponse:
    """Return the reply to a refused request, in the shape that clients of this path know."""
    body = error_body(path, refusal.status, refusal.message)
    return JSONResponse(body, refusal.status, headers=refusal.headers)


def _check_key(header: bytes, key: bytes) -> None:
    scheme, _, given = header.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key):
        raise Refusal(
            401, "this server asks for its key: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"}
        )
