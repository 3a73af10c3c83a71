"""What a model reaches on the training collections while it is being made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded_model.lists import TRAINING, Collection, ndcg
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.systems import headrank

__all__ = ["dev_lists", "reached"]

QUERIES, DEPTH, WORDS = 20, 20, 90

Lists = list[tuple[Collection, list[Ranking]]]


@dataclass(frozen=True)
class _Known(Reranker):
    """What was reranked already."""

    reranked: list[Ranking]

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return self.reranked

    def describe(self) -> dict[str, Any]:
        return {}


def dev_lists(data: Path, work: Path, *, seed: int) -> Lists:
    """Return some queries of each training collection with their first candidates, one of them relevant at least."""
    lists: Lists = []
    for name, source in TRAINING.items():
        collection = Collection.read(data, name, source, work)
        cut = [ranking.cut(DEPTH) for ranking in collection.rankings if len(ranking) >= 5]
        judged = [ranking for ranking in cut if any(collection.grades(ranking))]
        chosen = random.Random(f"{seed}-{name}").sample(judged, min(QUERIES, len(judged)))
        lists.append((collection.part({ranking.query.qid for ranking in chosen}), chosen))
    return lists


def reached(folder: Path, lists: Lists) -> dict[str, list[float]]:
    """Return nDCG@10 of BM25, the model, and both half and half, by collection and in the mean."""
    model = headrank(folder, device="cpu", options={"passage_words": WORDS})
    found = {}
    for collection, rankings in lists:
        reranked = model.rerank_batch(rankings)
        both = interpolated(_Known(reranked), 0.5).rerank_batch(rankings)
        found[collection.name] = [ndcg(system, collection) for system in (rankings, reranked, both)]
    found["mean"] = [sum(values) / len(values) for values in zip(*found.values(), strict=True)]
    return {name: [round(value, 4) for value in values] for name, values in found.items()}
