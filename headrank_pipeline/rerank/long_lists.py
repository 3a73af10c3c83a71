"""Lists of more tokens than a prompt may have: read whole, in windows on one scale, or coarsely first; copies once.

A causal prompt holds as many tokens as the model has positions. A list that needs more is dealt into windows, each read
in one pass. All windows share a few passages, the anchors; what an anchor scores in each window shows how the windows'
scales differ, so that all scores can be put on one scale. No window waits for another, and nothing slides.

Passages of the same title and text are read once, if so wanted, whatever the list's length.

`LongLists` plans the windows, has them read, and joins what they say; `joined` is the arithmetic.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any, Literal, cast, get_args

import numpy as np

from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.pipeline import Failure
from headrank_pipeline.records import Candidate, Ranking

__all__ = ["Duplicates", "LongLists", "Scale", "Strategy", "dealt", "joined", "summary"]

Strategy = Literal["auto", "whole", "windows", "refine"]
Duplicates = Literal["once", "each"]
Scale = Literal["ratio", "affine"]
Read = Callable[[Sequence[Ranking], PromptBuilder], list[Ranking | Failure]]

# Passages that all windows share, and the largest part of a window that they may take.
_ANCHORS, _ANCHOR_PART = 8, 0.25

# A refined list: tokens of each passage in the first reading, and how many of the best are read again as they are.
_COARSE_TOKENS, _FINE_PASSAGES = 48, 20

# Scores below this count as this where logarithms are taken.
_LEAST = 1e-12


@dataclass(frozen=True)
class LongLists:
    """How the lists of one reranker are read.

    Args:
        builder: builder of prompts of whole passages.
        coarse: builder of prompts of short passages, where the strategy is ``refine``.
        scale: how scores of one passage differ between two prompts: ``ratio`` for shares of attention, ``affine`` for
            scores that can be negative, by the rule or by a head's weight.
        strategy: ``whole``: one prompt, the longest passages cut until it fits. ``windows``: as many prompts as hold
            all passages uncut. ``auto``: whole where that cuts nothing, else windows; always whole with isolated
            passages, which have no limit. ``refine``: the first tokens of every passage, then the 20 best uncut.
        duplicates: ``once``: of passages of the same title and text the first is read, the others get its score and
            follow it directly, in the order they came in. ``each``: all are read, as any passages.
    """

    builder: PromptBuilder
    coarse: PromptBuilder | None
    scale: Scale
    strategy: Strategy = "auto"
    duplicates: Duplicates = "once"

    @classmethod
    def of(cls, builder: PromptBuilder, tokenizer: Any, scale: Scale, *, strategy: str, duplicates: str) -> LongLists:
        """Return the strategy of that name for prompts of a builder.

        Raises:
            ValueError: another name.
        """
        for option, value, kind in (("long_lists", strategy, Strategy), ("duplicates", duplicates, Duplicates)):
            if value not in get_args(kind):
                raise ValueError(f"{option} {value!r}: expected one of {', '.join(get_args(kind))}")
        coarse = None
        if strategy == "refine":
            tokens = min(_COARSE_TOKENS, builder.template.passage_tokens or _COARSE_TOKENS)
            short = replace(builder.template, passage_tokens=tokens)
            coarse = PromptBuilder(tokenizer, short, max_prompt_tokens=builder.max_prompt_tokens)
        return cls(builder, coarse, scale, cast(Strategy, strategy), cast(Duplicates, duplicates))

    def attempts(self, rankings: Sequence[Ranking], read: Read) -> list[Ranking | Failure]:
        """Return the rankings rescored, or why that failed; empty ones come back as they are.

        Args:
            rankings: rankings of any length.
            read: reads each ranking in one prompt of a builder.
        """
        filled = [index for index, ranking in enumerate(rankings) if ranking.candidates]
        once = self.duplicates == "once"
        copies = [_Copies.of(rankings[index]) if once else _Copies(rankings[index], {}) for index in filled]
        lists = [each.ranking for each in copies]
        done = self._read(lists, self.builder, read) if self.coarse is None else self._refined(lists, self.coarse, read)
        attempts: list[Ranking | Failure] = list(rankings)
        for index, each, attempt in zip(filled, copies, done, strict=True):
            attempts[index] = attempt if isinstance(attempt, Failure) else each.put_back(attempt, self.builder)
        return attempts

    def in_one_prompt(self, ranking: Ranking) -> tuple[Ranking, Mapping[str, Sequence[str]]]:
        """Return the list as it is read in one prompt, and by docid the copies that are not read again.

        Raises:
            ValueError: it takes several prompts.
        """
        each = _Copies.of(ranking) if self.duplicates == "once" else _Copies(ranking, {})
        refined = self.coarse is not None and len(each.ranking) > _FINE_PASSAGES
        windows = len(self._plan(each.ranking, self.builder).windows)
        if refined or windows > 1:
            how = "in two rounds" if refined else f"in {windows} prompts"
            raise ValueError(
                f"qid {ranking.query.qid}: {len(ranking)} passages are read {how}, whose scores are put on one scale, "
                f"so they are no sums over words; take fewer candidates, or set the option long_lists=whole"
            )
        return each.ranking, {docid: [copy.docid for copy in copies] for docid, copies in each.copies.items()}

    def _read(self, rankings: Sequence[Ranking], builder: PromptBuilder, read: Read) -> list[Ranking | Failure]:
        """Return each ranking rescored, from one prompt or from as many windows as it takes."""
        plans: list[_Plan | Failure] = []
        for ranking in rankings:
            try:
                plans.append(self._plan(ranking, builder))
            except ValueError as error:
                plans.append(Failure(ranking.query, error))
        windows = [w for plan in plans if isinstance(plan, _Plan) for w in plan.windows]
        readings = iter(read(windows, builder))
        return [
            plan if isinstance(plan, Failure) else _joined(plan, [next(readings) for _ in plan.windows], self.scale)
            for plan in plans
        ]

    def _plan(self, ranking: Ranking, builder: PromptBuilder) -> _Plan:
        whole = _Plan(ranking, (ranking,), ())
        unlimited = builder.template.passages == "isolated" and self.strategy != "windows"
        if self.strategy == "whole" or unlimited or len(ranking) < 2:
            return whole
        frame, sizes = builder.sizes(ranking)
        if frame + sum(sizes) <= builder.max_prompt_tokens:
            return whole
        # One token more for each passage: what stands beside it decides how its borders are tokenised.
        windows, anchors = dealt([size + 1 for size in sizes], builder.max_prompt_tokens - frame)
        if len(windows) == 1:
            return whole
        parts = (tuple(ranking.candidates[index] for index in window) for window in windows)
        docids = tuple(ranking.candidates[index].docid for index in anchors)
        return _Plan(ranking, tuple(Ranking(ranking.query, part) for part in parts), docids)

    def _refined(self, rankings: Sequence[Ranking], short: PromptBuilder, read: Read) -> list[Ranking | Failure]:
        """Return each ranking rescored: all from their first tokens, then the best from all they have."""
        long = [index for index, ranking in enumerate(rankings) if len(ranking) > _FINE_PASSAGES]
        coarse = dict(zip(long, self._read([rankings[index] for index in long], short, read), strict=True))
        best = [_best(ranking, coarse.get(index)) for index, ranking in enumerate(rankings)]
        return [
            _refined(coarse.get(index), fine, self.scale)
            for index, fine in enumerate(self._read(best, self.builder, read))
        ]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The prompts that one ranking is read in, and the docids that all of them hold."""

    ranking: Ranking
    windows: tuple[Ranking, ...]
    anchors: tuple[str, ...]


def _joined(plan: _Plan, readings: Sequence[Ranking | Failure], scale: Scale) -> Ranking | Failure:
    if len(readings) == 1:
        return readings[0]
    notes = {**plan.ranking.notes, **_summed(reading.notes for reading in readings)}
    windows = []
    for reading in readings:
        if isinstance(reading, Failure):
            return replace(reading, notes=notes)
        windows.append(dict(zip(reading.docids, reading.scores, strict=True)))
    notes |= {"lists_windowed": 1, "windows": len(readings), "anchors": len(plan.anchors)}
    scores = joined(windows, plan.anchors, scale)
    return replace(plan.ranking, notes=notes).rescored([scores[docid] for docid in plan.ranking.docids])


@dataclass(frozen=True, slots=True)
class _Copies:
    """A list without its copies, and the copies of each passage: docid of the first -> those after it."""

    ranking: Ranking
    copies: Mapping[str, Sequence[Candidate]]

    @classmethod
    def of(cls, ranking: Ranking) -> _Copies:
        candidates = ranking.candidates
        firsts = ranking.first_with_text()
        copies: dict[str, list[Candidate]] = {}
        for candidate, first in zip(candidates, firsts, strict=True):
            if candidate is not candidates[first]:
                copies.setdefault(candidates[first].docid, []).append(candidate)
        if not copies:
            return cls(ranking, copies)
        kept = tuple(c for c, first in zip(candidates, firsts, strict=True) if c is candidates[first])
        return cls(replace(ranking, candidates=kept), copies)

    def put_back(self, read: Ranking, builder: PromptBuilder) -> Ranking:
        """Return what was read with each copy behind its first."""
        if not self.copies:
            return read
        whole: list[Candidate] = []
        for candidate in read.candidates:
            copies = self.copies.get(candidate.docid, ())
            whole += [candidate, *(replace(copy, score=candidate.score) for copy in copies)]
        left_out = [copy for copies in self.copies.values() for copy in copies]
        _, tokens = builder.sizes(Ranking.from_scores(read.query, left_out))
        notes = {**read.notes, "duplicates": len(left_out), "duplicate_tokens_saved": sum(tokens)}
        return replace(read, candidates=tuple(whole), notes=notes)


def dealt(sizes: Sequence[int], room: int) -> tuple[list[list[int]], list[int]]:
    """Return windows that hold every passage and share the anchors, and the anchors.

    Anchors lie evenly over the list; of each part of it the passage of middling length. A passage that is too large for
    any window gets one of its own. The others go, in the list's order, to the window with the fewest tokens: so windows
    are alike in what the first stage thought of them. Those that take more than half of a window go first, or no window
    would have the room for them.

    Args:
        sizes: tokens of each passage, in the order of the list; at least one passage.
        room: tokens that a window may have.

    Returns:
        The indices of each window, ascending, and of the anchors; no anchors where one window holds all. A window is
        larger than `room` only where one passage and the anchors are.

    Examples:
        >>> dealt([3, 3, 3, 3, 3, 3], 9)
        ([[0, 1, 4], [0, 2, 5], [0, 3]], [0])
        >>> dealt([3, 3, 3], 9)
        ([[0, 1, 2]], [])
    """
    if sum(sizes) <= room:
        return [list(range(len(sizes)))], []
    anchors = _anchors(sizes, room)
    others = [index for index in range(len(sizes)) if index not in anchors]
    free = room - sum(sizes[index] for index in anchors)
    alone = [index for index in others if sizes[index] > free]
    shared = sorted((index for index in others if sizes[index] <= free), key=lambda index: 2 * sizes[index] <= free)
    windows = _spread([sizes[index] for index in shared], free, least=1 if alone else 2)
    held = [[index] for index in alone] + [[shared[place] for place in window] for window in windows]
    return [sorted([*anchors, *window]) for window in held], anchors


def _spread(sizes: Sequence[int], room: int, *, least: int) -> list[list[int]]:
    """Return windows with about as many tokens each, as few as hold all passages; none of these exceeds the room."""
    first = max(-(-sum(sizes) // room), least) if sizes else 0
    for count in range(min(first, len(sizes)), len(sizes) + 1):
        windows: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for place, size in enumerate(sizes):
            emptiest = filled.index(min(filled))
            windows[emptiest].append(place)
            filled[emptiest] += size
        if max(filled, default=0) <= room:
            break
    return windows


def _anchors(sizes: Sequence[int], room: int) -> list[int]:
    """Return indices, ascending: as many as may be, one at least, and one passage is left.

    A passage much shorter than the others is none: what it scores hardly tells one window's scale from another's, and
    one without text scores 0 in all of them.
    """
    enough = median(sizes) / 2
    for count in range(min(_ANCHORS, len(sizes) - 1), 0, -1):
        parts = np.array_split(np.arange(len(sizes)), count)
        chosen = [int(sorted(part, key=lambda index: (sizes[index], index))[(len(part) - 1) // 2]) for part in parts]
        taken = [sizes[index] for index in chosen]
        if min(taken) >= enough and sum(taken) <= _ANCHOR_PART * room:
            return chosen
    able = [index for index, size in enumerate(sizes) if size >= enough]
    return [min(able, key=lambda index: (sizes[index], index))]


def joined(windows: Sequence[Mapping[str, float]], anchors: Sequence[str], scale: Scale) -> dict[str, float]:
    """Return one score for every passage from windows whose scales differ.

    ``ratio``: scores are multiplied so that the anchors' geometric mean is the same in every window. ``affine``: they
    are shifted and multiplied so that the anchors have the same mean and standard deviation (only shifted where a
    window gives all anchors one score). The scale is the mean of the windows' own; an anchor scores its mean. With
    ``ratio`` the scores of the list sum to what those of a window sum to in the mean.

    Args:
        windows: docid -> score; each holds all anchors, other passages stand in one.
        anchors: docids.
        scale: what differs between windows.

    Examples:
        >>> joined([{"a": 0.5, "b": 0.5}, {"a": 0.2, "c": 0.8}], ["a"], "ratio")["c"] > 0.5
        True
        >>> joined([{"a": 1.0, "b": 3.0}, {"a": 11.0, "c": 12.0}], ["a"], "affine")
        {'a': 6.0, 'b': 8.0, 'c': 7.0}
    """
    if len(windows) == 1:
        return dict(windows[0])
    seen = [[window[docid] for docid in anchors] for window in windows]
    on_one_scale = _by_ratio(windows, seen) if scale == "ratio" else _by_mean_and_deviation(windows, seen)
    found: dict[str, list[float]] = {}
    for window in on_one_scale:
        for docid, score in window.items():
            found.setdefault(docid, []).append(score)
    scores = {docid: math.fsum(readings) / len(readings) for docid, readings in found.items()}
    if scale == "affine":
        return scores
    total = math.fsum(scores.values())
    wanted = math.fsum(math.fsum(window.values()) for window in windows) / len(windows)
    return {docid: score * wanted / total for docid, score in scores.items()} if total > 0 else scores


def _by_ratio(windows: Sequence[Mapping[str, float]], seen: Sequence[Sequence[float]]) -> list[dict[str, float]]:
    levels = [fmean(math.log(max(score, _LEAST)) for score in scores) for scores in seen]
    common = fmean(levels)
    return [
        {docid: score * math.exp(common - level) for docid, score in window.items()}
        for window, level in zip(windows, levels, strict=True)
    ]


def _by_mean_and_deviation(
    windows: Sequence[Mapping[str, float]], seen: Sequence[Sequence[float]]
) -> list[dict[str, float]]:
    means = [fmean(scores) for scores in seen]
    spreads = [
        math.sqrt(fmean((score - mean) ** 2 for score in scores)) for scores, mean in zip(seen, means, strict=True)
    ]
    told_apart = [spread > 1e-9 * max(map(abs, scores)) for spread, scores in zip(spreads, seen, strict=True)]
    known = [spread for spread, apart in zip(spreads, told_apart, strict=True) if apart]
    mean, spread = fmean(means), math.exp(fmean(map(math.log, known))) if known else 1.0
    factors = [spread / own if apart else 1.0 for own, apart in zip(spreads, told_apart, strict=True)]
    return [
        {docid: (score - own) * factor + mean for docid, score in window.items()}
        for window, own, factor in zip(windows, means, factors, strict=True)
    ]


def _best(ranking: Ranking, coarse: Ranking | Failure | None) -> Ranking:
    """Return the candidates that are read again, in the order they came in; those of a short list are all read now."""
    if coarse is None:
        return ranking
    if isinstance(coarse, Failure):
        return ranking.cut(1)
    kept = frozenset(coarse.docids[:_FINE_PASSAGES])
    return replace(ranking, candidates=tuple(c for c in ranking.candidates if c.docid in kept), notes={})


def _refined(coarse: Ranking | Failure | None, fine: Ranking | Failure, scale: Scale) -> Ranking | Failure:
    """Return the fine order, and after it the coarse one of those that were not read again."""
    if isinstance(coarse, Failure):
        return coarse
    if coarse is None or isinstance(fine, Failure):
        return fine
    costs = ("prompt_tokens", "forward_passes")
    first = {name if name in costs else f"coarse_{name}": count for name, count in coarse.notes.items()}
    notes = {**_summed((first, fine.notes)), "lists_refined": 1, "passages_refined": len(fine)}
    again = frozenset(fine.docids)
    rest = [candidate for candidate in coarse.candidates if candidate.docid not in again]
    if scale == "affine":
        return replace(fine.continued_by(replace(coarse, candidates=tuple(rest))), notes=notes)
    return replace(fine, candidates=(*fine.candidates, *_below(rest, fine.scores[-1])), notes=notes)


def _below(rest: Sequence[Candidate], last: float) -> list[Candidate]:
    """Return candidates with scores of at least 0 scaled down so that none is above `last`."""
    factor = min(1.0, last / rest[0].score) if rest and rest[0].score > 0 else 1.0
    return [replace(candidate, score=min(last, candidate.score * factor)) for candidate in rest]


def _summed(counts: Any) -> dict[str, float]:
    total: Counter[str] = Counter()
    for one in counts:
        for name, count in one.items():
            total[name] += count
    return dict(total)


def summary(notes: Mapping[str, float], queries: int) -> str | None:
    """Return what is to be told of how the lists of a run were read; None where each went into one prompt as it was.

    Args:
        notes: sums over the queries.
        queries: how many.

    Examples:
        >>> summary({"lists_windowed": 3, "windows": 7, "anchors": 24}, 43)
        'lists: 40 read whole, 3 in 7 windows joined by 8 anchors each'
    """
    windowed, refined, copies = (int(notes.get(name, 0)) for name in ("lists_windowed", "lists_refined", "duplicates"))
    told = [f"{max(0, queries - windowed - refined)} read whole"] if windowed or refined else []
    if windowed:
        windows, anchors = notes["windows"], notes["anchors"] / windowed
        told.append(f"{windowed} in {windows:g} windows joined by {anchors:.0f} anchors each")
    if refined:
        again = f"{notes['passages_refined']:g} of these again uncut"
        parts = f" in {notes['coarse_windows']:g} windows" if "coarse_windows" in notes else ""
        told.append(f"{refined} by {_COARSE_TOKENS} tokens of each passage{parts}, {again}")
    if copies:
        told.append(f"{copies} duplicate passages not read again, {notes['duplicate_tokens_saved']:g} tokens saved")
    return f"lists: {', '.join(told)}" if told else None
