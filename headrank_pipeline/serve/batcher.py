"""One thread that owns the model, and the bounded queue before it."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import NotFinite, Ranking
from headrank_pipeline.serve.shapes import Refusal

__all__ = ["Batcher", "Limits"]

_log = logging.getLogger(__name__)

# Tokens of a call by default. On a CPU larger calls make requests wait for each other and are not faster.
_CPU_TOKENS, _GPU_TOKENS = 2048, 16384
# UTF-8 bytes taken for a token: the engine counts exactly, this is for what waits.
_TOKEN_BYTES = 3
_KEPT = 0.9  # of what earlier calls took, call by call, when a wait is guessed
_LONGEST_RETRY = 60  # seconds


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is taken.

    Args:
        waiting: requests that may wait at once; one more gets 429.
        call_tokens: tokens of requests that go into one call of the reranker, counted roughly; a larger request goes
            alone. None for 16384 on a GPU, 2048 elsewhere.
        timeout: seconds until a request is answered, from when its headers are read; then it gets 504.
        body_bytes: size of a request's body.

    Raises:
        ValueError: a limit that nothing passes.
    """

    waiting: int = 64
    call_tokens: int | None = None
    timeout: float = 30.0
    body_bytes: int = 2 * 2**20

    def __post_init__(self) -> None:
        for name in ("waiting", "call_tokens", "timeout", "body_bytes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} {value}: expected more than 0")


@dataclass(eq=False, slots=True)
class _Waiting:
    ranking: Ranking
    tokens: int
    answer: asyncio.Future[Ranking]


class Batcher:
    """A reranker in a thread of its own, and the requests that wait for it.

    All but the reranker belongs to the event loop: there are no locks. A call takes what waits, in the order it came,
    up to a number of tokens; nothing waits for others to come.

    Args:
        open_reranker: called in that thread; its errors are raised here.
        limits: how much is taken.

    Attributes:
        scores_are_probabilities: whether the reranker is calibrated.
        calls: how often the reranker was called so far.
    """

    def __init__(self, open_reranker: Callable[[], Reranker], limits: Limits) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reranker")
        self.limits = limits
        self.reranker = self._thread.submit(open_reranker).result()
        told = self.reranker.describe()
        on_gpu = told.get("device") == "cuda"
        self.scores_are_probabilities = told.get("calibration") is not None
        self._leaves_out = told.get("threshold") is not None
        self._call_tokens = limits.call_tokens or (_GPU_TOKENS if on_gpu else _CPU_TOKENS)
        self._queue: deque[_Waiting] = deque()
        self._filled = asyncio.Event()
        self._called: list[_Waiting] = []
        self._spent = (0.0, 0.0)  # seconds and tokens of late calls
        self.calls = 0

    @property
    def waiting(self) -> int:
        """Requests in the queue, without those that the model has."""
        return len(self._queue)

    def seconds_to_wait(self) -> float:
        """Return about how long a request that came now would wait; 0 where no call has told yet."""
        seconds, tokens = self._spent
        return seconds / max(tokens, 1.0) * sum(request.tokens for request in (*self._queue, *self._called))

    async def rerank(self, ranking: Ranking) -> Ranking:
        """Return the ranking rescored.

        Raises:
            Refusal: the queue is full or too slow (429), the reranker cannot read this list (422), or failed (500).
        """
        # A request that would be late is refused now: in a queue of late ones no work would ever be of use.
        if self.waiting >= self.limits.waiting or self.seconds_to_wait() > self.limits.timeout / 2:
            seconds = min(max(1, math.ceil(self.seconds_to_wait())), _LONGEST_RETRY)
            message = f"busy: {self.waiting} requests are waiting; try again in {seconds} s"
            raise Refusal(429, message, {"Retry-After": str(seconds)})
        request = _Waiting(ranking, _tokens(ranking), asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._filled.set()
        try:
            return await request.answer
        finally:
            with suppress(ValueError):  # whoever asked may have gone before it was taken
                self._queue.remove(request)

    async def run(self) -> None:
        """Call the reranker whenever something waits, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._filled.wait()
            if not self._take():
                self._filled.clear()
                continue
            started = time.monotonic()
            rankings = [request.ranking for request in self._called]
            call = loop.run_in_executor(self._thread, self._call, rankings)
            await asyncio.wait([call])
            self._timed(time.monotonic() - started)
            self._answer(call)

    def _call(self, rankings: list[Ranking]) -> list[Ranking | Failure]:
        """Call the reranker; runs in its thread."""
        try:
            return self.reranker.attempt_batch(rankings)
        finally:
            if "torch" in sys.modules:  # the engine itself does this between the passes of one call only
                from headrank_pipeline.attention.model import give_back_memory

                give_back_memory()

    def _take(self) -> list[_Waiting]:
        """Move what the next call reads from the queue to `_called`."""
        self._called, room = [], self._call_tokens
        while self._queue and (not self._called or self._queue[0].tokens <= room):
            self._called.append(self._queue.popleft())
            room -= self._called[-1].tokens
        return self._called

    def _timed(self, seconds: float) -> None:
        if self.calls:  # the first call is slower than any other
            tokens = sum(request.tokens for request in self._called)
            self._spent = (_KEPT * self._spent[0] + seconds, _KEPT * self._spent[1] + tokens)
        self.calls += 1

    def _answer(self, call: asyncio.Future[list[Ranking | Failure]]) -> None:
        asked, self._called = self._called, []
        for request, attempt in zip(asked, _attempts(asked, call, self._leaves_out), strict=True):
            if request.answer.done():  # whoever asked has gone
                continue
            if isinstance(attempt, Failure):
                request.answer.set_exception(_refusal(attempt))
            else:
                request.answer.set_result(attempt)

    def close(self) -> None:
        """End the thread after its present call."""
        self._thread.shutdown(wait=False)


def _tokens(ranking: Ranking) -> int:
    """Return about how many tokens a list takes."""
    texts = [ranking.query.text, *(f"{c.title or ''} {c.text}" for c in ranking.candidates)]
    return sum(1 + len(text.encode()) // _TOKEN_BYTES for text in texts)


def _attempts(
    asked: Sequence[_Waiting], call: asyncio.Future[list[Ranking | Failure]], leaves_out: bool
) -> list[Ranking | Failure]:
    """Return what became of each request: a failure also where the reranker, perhaps another's, lost a document."""
    error = call.exception()
    answers = [] if error else call.result()
    if not error and len(answers) != len(asked):
        error = RuntimeError(f"the reranker returned {len(answers)} rankings for {len(asked)}")
    if error:
        failed = error if isinstance(error, Exception) else RuntimeError(repr(error))
        return [Failure(request.ranking.query, failed) for request in asked]
    return [_complete(request.ranking, answer, leaves_out) for request, answer in zip(asked, answers, strict=True)]


def _complete(ranking: Ranking, answer: Ranking | Failure, leaves_out: bool) -> Ranking | Failure:
    """Return the answer, or a failure where it has other documents; a threshold may leave some out."""
    if isinstance(answer, Failure):
        return answer
    if isinstance(answer, Ranking):
        given, got = set(ranking.docids), set(answer.docids)
        if got == given or (leaves_out and got < given):
            return answer
    return Failure(ranking.query, RuntimeError(f"the reranker returned other documents than the {len(ranking)} given"))


def _refusal(failure: Failure) -> Refusal:
    """A reranker that refuses a list raises ValueError; all else is the server's fault."""
    error = failure.error
    refused = isinstance(error, ValueError) and not isinstance(error, NotFinite)
    if not refused:
        _log.error("%s: %s", failure.query.qid, error, exc_info=error)
    return Refusal(422 if refused else 500, str(error) or type(error).__name__)
