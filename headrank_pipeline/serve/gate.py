"""What every request passes before the application sees it: the key, the body's size, the time; and what counts it."""

from __future__ import annotations

import asyncio
import hmac
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, MutableMapping
from typing import Any, TypeAlias

from fastapi.responses import JSONResponse

from headrank_pipeline.records import Ranking
from headrank_pipeline.serve.batcher import Limits
from headrank_pipeline.serve.shapes import Refusal, error_body

__all__ = [
    "CONTENT_TYPE",
    "Gate",
    "Metrics",
    "refused",
]

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


# ----------------------------------------------------------------------------------------- counters in Prometheus' text


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What was counted since the start; belongs to the event loop.

    Args:
        timed: paths that get a histogram of latencies.
    """

    def __init__(self, timed: Collection[str]) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._times = {path: [0] * (len(_SECONDS) + 1) for path in timed}
        self._seconds = dict.fromkeys(timed, 0.0)
        self._reranked = Counter(headrank_tokens_total=0, headrank_documents_total=0, headrank_documents_cut_total=0)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered; `path` is a known one, so that strangers make no new series."""
        self._requests[path, status] += 1
        if path in self._times:
            self._times[path][bisect_left(_SECONDS, seconds)] += 1
            self._seconds[path] += seconds

    def reranked(self, documents: int, ranking: Ranking) -> None:
        """Count what the model read: the documents of a request, and the tokens that its ranking notes."""
        self._reranked["headrank_documents_total"] += documents
        self._reranked["headrank_documents_cut_total"] += int(ranking.notes.get("passages_cut", 0))
        self._reranked["headrank_tokens_total"] += int(ranking.notes.get("prompt_tokens", 0))

    def text(self, waiting: int, calls: int) -> str:
        """Return all of it, with the queue's length and the reranker's calls."""
        lines = [*self._counted(), *_metric("headrank_queue_length", "gauge", "Requests that wait.", {"": waiting})]
        lines += _metric("headrank_calls_total", "counter", "Calls of the reranker.", {"": calls})
        return "\n".join([*lines, *self._latencies(), ""])

    def _counted(self) -> Iterator[str]:
        requests = {f'{{path="{path}",status="{status}"}}': n for (path, status), n in self._requests.items()}
        yield from _metric("headrank_requests_total", "counter", "Requests answered.", requests)
        errors = {labels: n for labels, n in requests.items() if 'status="2' not in labels}
        yield from _metric("headrank_errors_total", "counter", "Those answered by an error.", errors)
        for name, value in self._reranked.items():
            yield from _metric(name, "counter", "What the reranker read.", {"": value})

    def _latencies(self) -> Iterator[str]:
        name = "headrank_request_seconds"
        yield from _metric(name, "histogram", "From a request's headers to its reply.", {})
        for path, counts in self._times.items():
            total = 0
            for limit, count in zip((*map(str, _SECONDS), "+Inf"), counts, strict=True):
                total += count
                yield f'{name}_bucket{{path="{path}",le="{limit}"}} {total}'
            yield f'{name}_sum{{path="{path}"}} {self._seconds[path]:.6f}'
            yield f'{name}_count{{path="{path}"}} {total}'


def _metric(name: str, kind: str, text: str, values: dict[str, int]) -> list[str]:
    head = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{labels} {value}" for labels, value in values.items()]
