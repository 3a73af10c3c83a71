"""What a reranker does with the places of its prompt: middle-zone promotion, spread of scores, final ranks.

Each function takes finished runs and judgments and returns a frame with one row per system (or per system and place).
The *place* of a passage is where the prompt gives it, from 1: first-stage order cut at the depth, shuffled or turned
round as the run's template says. Systems that read several windows have no single prompt; first-stage order stands
for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.comparison.significance import bootstrap_ratio
from headrank_pipeline.experiment.directory import Entry
from headrank_pipeline.learn.place_curves import PlaceSums

__all__ = ["Grades", "Scale", "Zone", "middle_zone", "place_shares", "score_positions"]

Grades = Mapping[str, Mapping[str, int]]
Scale = Literal["auto", "raw", "rank"]
Array = np.ndarray[Any, np.dtype[Any]]

_SCALE_NAMES = {"log": "log-scores", "raw": "raw scores", "rank": "ranks"}


@dataclass(frozen=True, slots=True)
class Zone:
    """Which places count as the middle, and which final ranks as success; shares of the list.

    The HeadRank paper reports such rates without, as far as is known, defining the zone; quartiles are our reading.

    Args:
        low: the zone starts here.
        high: and ends here.
        top: final ranks in this share of the list are a success.

    Raises:
        ValueError: bounds outside 0 to 1 or in the wrong order.
    """

    low: float = 0.25
    high: float = 0.75
    top: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.low < self.high <= 1 and 0 < self.top <= 1):
            raise ValueError(f"zone {self.low} to {self.high}, top {self.top}: expected 0 <= low < high <= 1, top > 0")


# ----------------------------------------------------------------------------------------------------- middle zone


def middle_zone(
    runs: Sequence[FinishedRun],
    grades: Grades,
    *,
    zone: Zone | None = None,
    relevance_level: int = 1,
    judged_only: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """Return how many passages of the middle of the prompt end at the top, relevant and irrelevant ones.

    Rates are pooled over queries; their intervals come from drawing queries. Lists of fewer than 4 are left out.

    Args:
        runs: finished runs.
        grades: qid -> docid -> grade; queries without judgments are left out.
        zone: which places and final ranks.
        relevance_level: lowest relevant grade.
        judged_only: leave unjudged passages out instead of counting them as irrelevant.
        seed: seed of the bootstrap.

    Returns:
        Columns ``system, queries``, then for ``relevant`` and ``irrelevant`` each ``NAME`` (passages in the zone),
        ``NAME_rate, NAME_low, NAME_high``, ``gap`` between the two rates, and ``chance``, the rate of a random order.
    """
    chosen = zone or Zone()
    rows = []
    for run in runs:
        counts = [_zone_counts(order, entry, grades[qid], chosen, relevance_level, judged_only)
                  for qid, order, entry in _lists(run, grades, shortest=4)]  # fmt: skip
        table = np.array(counts, dtype=np.float64).reshape(-1, 5)
        row: dict[str, Any] = {"system": run.name, "queries": len(table)}
        for name, column in (("relevant", 0), ("irrelevant", 2)):
            promoted, inside = table[:, column], table[:, column + 1]
            bounds = bootstrap_ratio(promoted, inside, seed=seed)
            row[name] = int(inside.sum())
            row[f"{name}_rate"] = float(promoted.sum() / inside.sum()) if inside.any() else math.nan
            row[f"{name}_low"], row[f"{name}_high"] = bounds.low, bounds.high
        row["gap"] = row["relevant_rate"] - row["irrelevant_rate"]
        inside = table[:, 1] + table[:, 3]
        # Of a short list the top share is rounded to whole passages, so chance is seldom the share itself.
        row["chance"] = float((inside * table[:, 4]).sum() / inside.sum()) if inside.any() else math.nan
        rows.append(row)
    return pd.DataFrame(rows)


def _zone_counts(
    order: Sequence[str], entry: Entry, grades: Mapping[str, int], zone: Zone, level: int, judged_only: bool
) -> tuple[float, ...]:
    """Relevant promoted, relevant in the zone, irrelevant promoted, irrelevant there, share of the list at top."""
    size = len(order)
    promoted = {docid for rank, docid in enumerate(entry.docids) if (rank + 0.5) / size < zone.top}
    counts = [0, 0, 0, 0]
    for place, docid in enumerate(order):
        if not zone.low <= (place + 0.5) / size <= zone.high or (judged_only and docid not in grades):
            continue
        kind = 0 if grades.get(docid, 0) >= level else 2
        counts[kind] += docid in promoted
        counts[kind + 1] += 1
    return *counts, len(promoted) / size


# ------------------------------------------------------------------------------------------------- scores by place


def score_positions(
    runs: Sequence[FinishedRun], grades: Grades, *, bins: int = 10, scale: Scale = "auto", relevance_level: int = 1
) -> pd.DataFrame:
    """Return the spread of scores and the mean final rank in each part of the prompt.

    Scores are standardised within each list, so that 1 is the spread of the whole list; the spread of a part is the
    standard deviation of its passages, averaged over queries. Where scores sink together in the middle of a long
    prompt (HeadRank calls it homogenisation), the curve sinks there.

    Args:
        runs: finished runs.
        grades: qid -> docid -> grade; queries without judgments are left out.
        bins: parts of the prompt; fewer where lists are so short that a part would have less than 3 passages.
        scale: ``auto`` takes logarithms where all scores of a run are positive (attention scores differ by
            factors), and of its first stage likewise, ``raw`` never does, ``rank`` takes final
            ranks instead (for systems whose scores only say the order).
        relevance_level: lowest relevant grade.

    Returns:
        Columns ``system, scale`` (after reranking), ``queries, centre`` (share of the list),
        ``spread_before, spread_after``, and ``rank_relevant, rank_irrelevant``: mean final rank as a share of the
        list, nan where there is none.

    Raises:
        ValueError: fewer than 2 bins.
    """
    if bins < 2:
        raise ValueError(f"bins {bins}: expected at least 2 parts of the prompt")
    rows: list[dict[str, Any]] = []
    for run in runs:
        lists = list(_lists(run, grades, shortest=6))
        if not lists:
            continue
        parts = max(2, min(bins, int(np.median([len(order) for _, order, _ in lists])) // 3))
        lists = [found for found in lists if len(found[1]) >= 2 * parts]
        before = _scale_of(scale, (_before(run, qid) for qid, _, _ in lists))
        kind = _scale_of(scale, (entry.scores for _, _, entry in lists))
        tables = [_parts(run, found, grades[found[0]], parts, (before, kind), relevance_level) for found in lists]
        for part, values in enumerate(_means(np.stack(tables))):
            centre = (part + 0.5) / parts
            named = dict(
                zip(("spread_before", "spread_after", "rank_relevant", "rank_irrelevant"), values, strict=True)
            )
            rows.append(
                {"system": run.name, "scale": _SCALE_NAMES[kind], "queries": len(lists), "centre": centre, **named}
            )
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------------- shares by place


def place_shares(runs: Sequence[FinishedRun], *, places: int = 20) -> pd.DataFrame:
    """Return the mean share of a list's scores that passages get by their place in the prompt; 1 is an even share.

    Judgments are not needed: over shuffled prompts no place is better than another, and what differs is the reranker's.
    In first-stage order the better passages stand first, and the curve shows that, too.

    Args:
        runs: finished runs; those with scores below 0 (calibrated, standardised) have no shares, and nan.
        places: parts of the prompt, fewer where most lists have fewer passages; lists of fewer passages than parts are
            left out.

    Returns:
        Columns ``system, order`` (of the prompt), ``queries, centre`` (share of the list), ``share`` and its standard
        ``error`` over queries, and ``fitted``: the smooth curve through the places, as `select-heads` fits it, since
        noise alone makes the largest mean of many places larger than the smallest. A run without a list of 2 is left
        out.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        lists = [(run.prompt_order(qid), entry) for qid, entry in run.scored.items() if len(entry.docids) > 1]
        if not lists:
            continue
        parts = max(2, min(places, int(np.median([len(order) for order, _ in lists]))))
        table = np.stack([_shares(order, entry, parts) for order, entry in lists if len(order) >= parts])
        if (table < 0).any():
            table[:] = np.nan
        means, errors = table.mean(axis=0), table.std(axis=0) / math.sqrt(len(table))
        fitted = _fitted(table)
        for part in range(parts):
            rows.append(
                {
                    "system": run.name,
                    "order": run.order,
                    "queries": len(table),
                    "centre": (part + 0.5) / parts,
                    "share": means[part],
                    "error": errors[part],
                    "fitted": fitted[part],
                }
            )
    return pd.DataFrame(rows)


def _fitted(table: Array) -> Array:
    """[parts]: the smooth curve of shares [lists, parts]; nan where they are."""
    fitted: Array = np.full(table.shape[1], np.nan)
    if not np.isnan(table).any():
        sums = PlaceSums(1, points=table.shape[1])
        for shares in table:
            sums.add(shares[None], np.arange(len(shares)))
        fitted = sums.table("all").curves[0]
    return fitted


def _shares(order: Sequence[str], entry: Entry, parts: int) -> Array:
    """[parts]: mean share of a list's scores by part of the prompt, negative where any score is."""
    scores = dict(zip(entry.docids, entry.scores, strict=True))
    values, size = np.array([scores[docid] for docid in order]), len(order)
    if values.min() < 0:
        return np.full(parts, -1.0)
    shares = values / values.sum() * size if values.sum() > 0 else np.ones(size)
    part = ((np.arange(size) + 0.5) / size * parts).astype(int)
    means: Array = np.bincount(part, weights=shares, minlength=parts) / np.bincount(part, minlength=parts)
    return means


def _scale_of(scale: Scale, lists: Iterable[Sequence[float]]) -> str:
    return scale if scale != "auto" else "log" if min(min(scores) for scores in lists) > 0 else "raw"


def _before(run: FinishedRun, qid: str) -> list[float]:
    return [candidate.score for candidate in run.prompt_candidates(qid)]


def _parts(
    run: FinishedRun,
    found: tuple[str, list[str], Entry],
    grades: Mapping[str, int],
    parts: int,
    scales: tuple[str, str],
    level: int,
) -> Array:
    """[parts, 4]: spread before, spread after, mean rank of relevant passages, of the others."""
    qid, order, entry = found
    size = len(order)
    final = {docid: rank for rank, docid in enumerate(entry.docids)}
    ranks = np.array([final[docid] for docid in order])
    first = np.array(_before(run, qid))
    before = _standardised(np.arange(size), first, scales[0])
    after = _standardised(ranks, np.array(entry.scores)[ranks], scales[1])
    relevant = np.array([grades.get(docid, 0) >= level for docid in order])
    part = ((np.arange(size) + 0.5) / size * parts).astype(int)
    shares = (ranks + 0.5) / size
    table = np.full((parts, 4), np.nan)
    for number in range(parts):
        inside = part == number
        table[number, 0], table[number, 1] = before[inside].std(), after[inside].std()
        for column, chosen in ((2, inside & relevant), (3, inside & ~relevant)):
            if chosen.any():
                table[number, column] = shares[chosen].mean()
    return table


def _standardised(ranks: Array, scores: Array, scale: str) -> Array:
    values = ranks.astype(np.float64) if scale == "rank" else np.log(scores) if scale == "log" else scores
    deviation = values.std()
    return (values - values.mean()) / deviation if deviation > 0 else np.zeros_like(values)


def _means(tables: Array) -> Array:
    """Mean over the first axis of what is there; nan where nothing is."""
    known = ~np.isnan(tables)
    counts = known.sum(axis=0)
    sums = np.where(known, tables, 0.0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


# ------------------------------------------------------------------------------------------------------------ parts


def _lists(run: FinishedRun, grades: Grades, *, shortest: int) -> Iterator[tuple[str, list[str], Entry]]:
    """Yield qid, prompt order and scores of every judged query that was scored and has enough candidates."""
    for qid, entry in run.scored.items():
        if qid in grades and len(entry.docids) >= shortest:
            yield qid, run.prompt_order(qid), entry
