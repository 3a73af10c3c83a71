"""The same candidates in five orders: as given, reversed, and shuffled three times."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from evidence.data import Judged
from evidence.experiment import Experiment, candidates_of
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.trec import write_candidates

__all__ = ["ORDERS", "reranked_in_orders"]

ORDERS = ("given", "reversed", "shuffle-1", "shuffle-2", "shuffle-3")


def reranked_in_orders(
    experiment: Experiment, system: str, reranker: Reranker, collection: Judged
) -> list[FinishedRun]:
    """Return one run of a collection per order of its candidates."""
    runs = []
    for order in ORDERS:
        path = experiment.output / "orders" / f"{collection.name}-{order}.jsonl"
        if not path.exists():
            write_candidates(path, _turned(candidates_of(collection), order))
        place = replace(collection, name=f"orders/{collection.name}/{order}", candidates=Path(path))
        runs.append(experiment.run(system, place, lambda: reranker))
    return runs


def _turned(rankings: Iterable[Ranking], order: str) -> Iterable[Ranking]:
    for ranking in rankings:
        candidates = list(ranking.candidates)
        if order == "reversed":
            candidates.reverse()
        elif order != "given":
            random.Random(f"{order}/{ranking.query.qid}").shuffle(candidates)
        counted = (replace(candidate, score=-float(place)) for place, candidate in enumerate(candidates))
        yield replace(ranking, candidates=tuple(counted))
