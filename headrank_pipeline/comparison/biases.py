"""What a reranker lets in that is not relevance: the order of its candidates and the length of the passages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from headrank_pipeline.comparison.analysis import Grades
from headrank_pipeline.comparison.compare import FIRST_STAGE
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.comparison.significance import (
    bootstrap_means,
    kendall_tau,
    overlap,
    rank_biased_overlap,
    spearman,
)
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.files import PathLike

__all__ = ["length_bias", "order_sensitivity"]


# ------------------------------------------------------------------------------------------------------------ order


def order_sensitivity(
    runs: Sequence[FinishedRun], qrels: PathLike, *, measure: str = "nDCG@10", relevance_level: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how rankings of one system differ when it is given the same candidates in other orders.

    Runs belong together when their rerankers are equal but for ``reverse`` and ``shuffle_seed``; their candidates must
    be equal as sets.

    Args:
        runs: finished runs, two or more of each system of interest; systems with one run are left out.
        qrels: judgments file.
        measure: whose spread is wanted.
        relevance_level: lowest relevant grade.

    Returns:
        One row per system (``system, orders, queries, kendall_tau, rbo, overlap_10, given_tau``, ``MEASURE`` mean,
        lowest and highest over orders, ``spread`` per query), and one row per system and query.

    Raises:
        ValueError: no system with two runs, other candidates in one of them, or the same order in all.
    """
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_without_order(run.identity["reranker"]), sort_keys=True), []).append(run)
    several = [group for group in groups.values() if len(group) > 1]
    if not several:
        raise ValueError(
            "order sensitivity needs two or more runs of one system on the same candidates in different orders "
            "(option shuffle_seed=1 or reverse=true, or shuffled candidate files); there is only one run of each "
            "system here"
        )
    summary, per_query = [], []
    for group in several:
        name = _common_name(group)
        means = [evaluate(run.directory.run, qrels, [measure], relevance_level=relevance_level) for run in group]
        values = {qid: [result.per_query[qid][measure] for result in means] for qid in means[0].per_query}
        rows = [{"system": name, "qid": qid, **_agreement(group, qid),
                 "spread": max(values[qid]) - min(values[qid])}
                for qid in values if all(qid in run.scored for run in group)]  # fmt: skip
        frame = pd.DataFrame(rows)
        if frame.empty or (frame["given_tau"] == 1.0).all():
            raise ValueError(f"{name}: {', '.join(run.name for run in group)} give the candidates in the same order")
        averages = frame[["kendall_tau", "rbo", "overlap_10", "given_tau", "spread"]].mean().to_dict()
        overall = [result.means[measure] for result in means]
        row = {"system": name, "orders": len(group), "queries": len(frame), **averages}
        summary.append({**row, measure: float(np.mean(overall)), "lowest": min(overall), "highest": max(overall)})
        per_query.append(frame)
    return pd.DataFrame(summary), pd.concat(per_query, ignore_index=True)


def _without_order(description: Any) -> Any:
    """A reranker's description less what only says in which order the prompt gives the candidates."""
    if not isinstance(description, Mapping):
        return description
    hidden = {"reverse", "shuffle_seed", "sha256"} if "reverse" in description else set()
    return {key: _without_order(value) for key, value in description.items() if key not in hidden}


def _common_name(group: Sequence[FinishedRun]) -> str:
    names = [run.name for run in group]
    alike = (len(set(letters)) == 1 for letters in zip(*names, strict=False))
    common = "".join(letter for letter, _ in zip(names[0], takewhile(bool, alike), strict=False)).rstrip("-_. /(")
    return common or str(group[0].identity["reranker"].get("system", group[0].name))


def _agreement(group: Sequence[FinishedRun], qid: str) -> dict[str, float]:
    """Means over all pairs of runs."""
    pairs = list(combinations(group, 2))
    for one, other in pairs:
        if set(one.scored[qid].docids) != set(other.scored[qid].docids):
            raise ValueError(
                f"qid {qid}: {one.name} and {other.name} reranked different candidates; order sensitivity compares "
                f"orders of the same ones"
            )
    ranked = [(one.scored[qid].docids, other.scored[qid].docids) for one, other in pairs]
    given = [kendall_tau(one.prompt_order(qid), other.prompt_order(qid)) for one, other in pairs]
    return {
        "kendall_tau": float(np.mean([kendall_tau(a, b) for a, b in ranked])),
        "rbo": float(np.mean([rank_biased_overlap(a, b) for a, b in ranked])),
        "overlap_10": float(np.mean([overlap(a, b, 10) for a, b in ranked])),
        "given_tau": float(np.mean(given)),
    }


# ----------------------------------------------------------------------------------------------------------- length


def length_bias(
    runs: Sequence[FinishedRun],
    qrels: PathLike,
    grades: Grades,
    *,
    candidates: Path | None = None,
    ratio: float = 0.5,
    words: int = 500,
    measure: str = "nDCG@10",
    relevance_level: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Return CoRe's length-bias test (arXiv 2510.02219, ``experiments/length_bias_test.py``) for each system.

    Kept are queries whose longest relevant candidate has at most `ratio` times the words of the longest irrelevant
    one. On them a system that likes long passages ranks that irrelevant one above every relevant one. Beside it stands
    the mean rank correlation (Spearman) of length and final rank over all queries: above 0, long passages come first.

    Args:
        runs: finished runs.
        qrels: judgments file.
        grades: the same, read.
        candidates: file with the texts, where the runs do not find theirs.
        ratio: see above.
        words: lengths are counted up to here, as CoRe cuts passages (titles do not count).
        measure: quality on the kept queries.
        relevance_level: lowest relevant grade.
        seed: seed of the bootstrap.

    Returns:
        Columns ``system, queries`` (kept), ``judged``, MEASURE, ``gold_above_longest``, ``length_correlation,
        length_low, length_high``; the first stage comes first.

    Raises:
        FileNotFoundError: the texts are not where the run read them.
        ValueError: candidates without text.
    """
    rows = []
    known: dict[str, dict[str, dict[str, int]]] = {}  # first stage -> qid -> docid -> words
    for run in runs:
        stage = json.dumps([run.identity["candidates"], run.depth], sort_keys=True)
        systems = [(run.name, run.directory.run, {qid: list(entry.docids) for qid, entry in run.scored.items()})]
        if stage not in known:
            lengths = _lengths(run, candidates, words)
            name = f"{FIRST_STAGE} of {run.name}" if known else FIRST_STAGE
            order = {qid: [c.docid for c in found[: run.depth]] for qid, found in run.first_stage.items()}
            systems.insert(0, (name, run.directory.first_stage_run, order))
            known[stage] = lengths
        for name, path, order in systems:
            values = evaluate(path, qrels, [measure], relevance_level=relevance_level).per_query
            quality = {qid: found[measure] for qid, found in values.items()}
            row = _length_row(order, known[stage], grades, quality, ratio, relevance_level, seed)
            rows.append({"system": name, **{measure if key == "quality" else key: v for key, v in row.items()}})
    return pd.DataFrame(rows)


def _lengths(run: FinishedRun, candidates: Path | None, words: int) -> dict[str, dict[str, int]]:
    lengths: dict[str, dict[str, int]] = {}
    for ranking in run.rankings(candidates):
        qid = ranking.query.qid
        # The run's own candidates: what it left out (the query's own document, exclusions) is still in a saved file.
        read = {candidate.docid for candidate in run.first_stage.get(qid, ())[: run.depth]}
        found = lengths.setdefault(qid, {})
        for candidate in ranking.candidates:
            if candidate.docid not in read:
                continue
            if candidate.text is None:
                raise ValueError(
                    f"qid {qid} docid {candidate.docid}: no text, so no length; "
                    f"name candidates with texts with candidates=FILE"
                )
            found[candidate.docid] = min(words, len(candidate.text.split()))
    return lengths


def _length_row(
    orders: Mapping[str, Sequence[str]],
    lengths: Mapping[str, Mapping[str, int]],
    grades: Grades,
    quality: Mapping[str, float],
    ratio: float,
    level: int,
    seed: int,
) -> dict[str, Any]:
    above: list[bool] = []
    kept: list[float] = []
    correlations: list[float] = []
    for qid, order in orders.items():
        if qid not in grades:
            continue
        words = lengths[qid]
        correlation = spearman([words[docid] for docid in order], range(len(order), 0, -1))
        if not math.isnan(correlation):
            correlations.append(correlation)
        relevant = {docid for docid in order if grades[qid].get(docid, 0) >= level}
        longest = _longest_irrelevant(words, relevant, ratio)
        if longest is not None:
            above.append(min(order.index(docid) for docid in relevant) < order.index(longest))
            kept.append(quality[qid])
    bounds = bootstrap_means(np.array(correlations)[:, None], seed=seed)[0] if correlations else None
    return {
        "queries": len(kept),
        "judged": sum(qid in grades for qid in orders),
        "quality": float(np.mean(kept)) if kept else math.nan,
        "gold_above_longest": float(np.mean(above)) if above else math.nan,
        "length_correlation": float(np.mean(correlations)) if correlations else math.nan,
        "length_low": bounds.low if bounds else math.nan,
        "length_high": bounds.high if bounds else math.nan,
    }


def _longest_irrelevant(words: Mapping[str, int], relevant: set[str], ratio: float) -> str | None:
    """Return the first longest irrelevant passage where the query is one of those to test, else None."""
    irrelevant = {docid: count for docid, count in words.items() if docid not in relevant}
    longest = max((words[docid] for docid in relevant), default=0)
    if not longest or not any(irrelevant.values()):
        return None
    rival = max(irrelevant, key=lambda docid: irrelevant[docid])
    return rival if longest / irrelevant[rival] <= ratio else None
