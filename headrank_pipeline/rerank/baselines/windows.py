"""Sliding windows over a list, from the bottom to the top: where they lie, and the loop that applies them.

The published loop (RankGPT's `sliding_windows`) runs no window at all over a list shorter than the window, and leaves
the best few candidates out where length and stride do not meet. Here the last window always starts at rank 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from headrank_pipeline.records import Candidate, Query, Ranking

__all__ = ["Ordered", "Window", "Windowing", "slide"]


@dataclass(frozen=True, slots=True)
class Windowing:
    """How windows slide.

    Args:
        window_size: candidates in a window.
        stride: ranks between the ends of two windows; below `window_size`, so that neighbours overlap.
        num_passes: how often the whole list is gone through.
    """

    window_size: int = 20
    stride: int = 10
    num_passes: int = 1

    def __post_init__(self) -> None:
        if self.window_size < 2:
            raise ValueError(f"window_size {self.window_size}: expected at least 2, a window compares candidates")
        if self.stride < 1:
            raise ValueError(f"stride {self.stride}: expected at least 1")
        if self.stride >= self.window_size:
            raise ValueError(
                f"stride {self.stride}: expected less than the window_size {self.window_size}; windows that do not "
                f"overlap carry no candidate upwards"
            )
        if self.num_passes < 1:
            raise ValueError(f"num_passes {self.num_passes}: expected at least 1")

    def spans(self, length: int) -> list[tuple[int, int]]:
        """Return the windows of one pass over a list as half-open spans, bottom first.

        Examples:
            >>> Windowing(window_size=20, stride=10).spans(35)
            [(15, 35), (5, 25), (0, 15)]
            >>> Windowing(window_size=20, stride=10).spans(7)
            [(0, 7)]
        """
        spans: list[tuple[int, int]] = []
        end = length
        while end > 0:
            start = max(0, end - self.window_size)
            spans.append((start, end))
            if start == 0:
                break
            end -= self.stride
        return spans

    def describe(self) -> dict[str, int]:
        """Return the settings as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Window:
    """Candidates to put in order.

    Args:
        place: which of the rankings of the batch it belongs to.
        query: what was asked.
        candidates: at least 2 candidates, in their present order.
    """

    place: int
    query: Query
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Ordered:
    """What a model made of a window.

    Args:
        order: index of every candidate of the window, best first.
        notes: what was counted; sums over the windows of a query end in `Ranking.notes`.
        words_dropped: docid -> words that the model did not see.
    """

    order: tuple[int, ...]
    notes: Mapping[str, float] = field(default_factory=dict)
    words_dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Course:
    """One list on its way: its present order, and what was counted."""

    candidates: list[Candidate]
    notes: dict[str, float] = field(default_factory=dict)
    words_dropped: dict[str, int] = field(default_factory=dict)

    def apply(self, span: tuple[int, int], ordered: Ordered) -> None:
        window = self.candidates[slice(*span)]
        assert sorted(ordered.order) == list(range(len(window)))
        self.candidates[slice(*span)] = [window[index] for index in ordered.order]
        for name, count in ordered.notes.items():
            self.notes[name] = self.notes.get(name, 0) + count
        for docid, dropped in ordered.words_dropped.items():  # a passage stands in more than one window
            self.words_dropped[docid] = max(dropped, self.words_dropped.get(docid, 0))

    def ranking(self, given: Ranking) -> Ranking:
        length = len(self.candidates)
        scored = tuple(replace(c, score=float(length - index)) for index, c in enumerate(self.candidates))
        losses = {"passages_cut": len(self.words_dropped), "words_dropped": sum(self.words_dropped.values())}
        return Ranking(given.query, scored, {**given.notes, **self.notes, **losses})


def slide(
    rankings: Sequence[Ranking], windowing: Windowing, order: Callable[[Sequence[Window]], Sequence[Ordered]]
) -> list[Ranking]:
    """Return the rankings as windows leave them; scores n, n - 1, … 1 say nothing but the order.

    Args:
        rankings: any number, of any lengths; empty ones come back as they are, a single candidate needs no model.
        windowing: where the windows lie.
        order: orders windows of different queries that are at the same step.
    """
    courses = [_Course(list(ranking.candidates)) for ranking in rankings]
    for _ in range(windowing.num_passes):
        for step in _steps([len(ranking) for ranking in rankings], windowing):
            windows = [
                Window(place, rankings[place].query, tuple(courses[place].candidates[slice(*span)]))
                for place, span in step
            ]
            for (place, span), ordered in zip(step, order(windows), strict=True):
                courses[place].apply(span, ordered)
    return [
        course.ranking(ranking) if ranking.candidates else ranking
        for course, ranking in zip(courses, rankings, strict=True)
    ]


def _steps(lengths: Sequence[int], windowing: Windowing) -> Iterator[list[tuple[int, tuple[int, int]]]]:
    """Yield what runs together: (place, span) of every list that still has a window at this step."""
    spans = [windowing.spans(length) if length > 1 else [] for length in lengths]
    for step in range(max(map(len, spans), default=0)):
        yield [(place, found[step]) for place, found in enumerate(spans) if step < len(found)]
