"""What a model reaches: held-out training queries to choose by, and the unseen collections for the closing table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedded_model.lists import JUDGED, TRAINING, Collection, ndcg, split
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.recipes import headrank

__all__ = ["WEIGHTS", "choose_weight", "closing_table", "dev_lists", "interpolated"]

WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
DEPTHS = {"scifact": 20, "dl19": 100, "noveleval": 20}
DEV_QUERIES = 25
DEV_DEPTH = 12

Lists = list[tuple[Collection, list[Ranking]]]


def dev_lists(data: Path, cache: Path, *, seed: int, queries: int = DEV_QUERIES, depth: int = DEV_DEPTH) -> Lists:
    """Return some held-out queries of each training collection with their first candidates."""
    lists: Lists = []
    for name, source in TRAINING.items():
        _, dev = split(Collection.read(data, name, source, cache), seed=seed)
        chosen = dev.part({ranking.query.qid for ranking in [r for r in dev.rankings if len(r) >= 5][:queries]})
        lists.append((chosen, [ranking.cut(depth) for ranking in chosen.rankings]))
    return lists


def interpolated(first: Ranking, reranked: Ranking, weight: float) -> Ranking:
    """Return the ranking by ``(1 - weight) * first + weight * reranked``, both min-max normalised within the list."""
    new = dict(zip(reranked.docids, _unit(reranked.scores), strict=True))
    old = _unit(first.scores)
    return first.rescored([(1 - weight) * s + weight * new[d] for d, s in zip(first.docids, old, strict=True)])


def choose_weight(lists: Lists, reranked: Sequence[list[Ranking]]) -> tuple[float, dict[float, float]]:
    """Return the interpolation weight with the best mean nDCG@10 over the collections, and the mean at each weight."""
    means = {}
    for weight in WEIGHTS:
        values = [
            ndcg([interpolated(*pair, weight) for pair in zip(first, second, strict=True)], collection)
            for (collection, first), second in zip(lists, reranked, strict=True)
        ]
        means[weight] = round(float(np.mean(values)), 4)
    return max(means, key=lambda weight: means[weight]), means


def closing_table(model: Path, data: Path, cache: Path, weight: float) -> None:
    """Print BM25, the model and both interpolated on the unseen collections."""
    reranker = headrank(model, model / "heads.json", device="cpu")
    print(f"{'unseen, nDCG@10':20} {'depth':>5} {'BM25':>7} {'model':>7} {'both':>7}  (weight {weight})")
    for name, source in JUDGED.items():
        collection = Collection.read(data, name, source, cache)
        first = [ranking.cut(DEPTHS[name]) for ranking in collection.rankings]
        second = [reranker.rerank(ranking) for ranking in first]
        both = [interpolated(*pair, weight) for pair in zip(first, second, strict=True)]
        values = " ".join(f"{ndcg(rankings, collection):7.4f}" for rankings in (first, second, both))
        print(f"{name:20} {DEPTHS[name]:5} {values}", flush=True)


def _unit(scores: Sequence[float]) -> np.ndarray:
    values = np.array(scores)
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
