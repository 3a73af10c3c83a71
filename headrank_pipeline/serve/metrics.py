"""Counters and latencies of the service in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator

from headrank_pipeline.records import Ranking

__all__ = ["CONTENT_TYPE", "Metrics"]

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
