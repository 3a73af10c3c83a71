"""How a model is best mixed with BM25, on training lists: the gain of each weight over BM25 alone.

    python benchmarks/interpolation_settings.py --model MODEL --data ../shared/data --lists runs/evidence/lists

For min-max of the model's scores and of their logarithms, prints nDCG@10 minus that of BM25 on lists of six training
collections, and what two ways to choose the weight come to: by the best mean over collections, and by the best worst
collection. Each way chooses on three collections and is judged on the other three, for all 20 ways to divide them. The
lists of BM25's first 20 passages that the alignment of seed 0 was not trained on. No test collection is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from alignment_settings import held_out_lists
from evidence.data import split_lists
from evidence.experiment import KnownScores
from evidence.learned import WEIGHTS

from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.systems import headrank

MEASURE = "nDCG@10"


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="a folder that reranks")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--lists", type=Path, required=True, help="where training lists are, or are put")
    options.add_argument("--sizes", type=int, nargs=3, default=(60, 211, 120), metavar=("SELECT", "ALIGN", "DEV"))
    options.add_argument("--count", type=int, default=200, help="lists of each collection, at most")
    options.add_argument("--words", type=int, default=60, help="of a passage")
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    sizes = dict(zip(("selection", "alignment", "dev"), chosen.sizes, strict=True))
    trained_on = {graded.qid for graded in split_lists(chosen.data, chosen.lists, seed=0, **sizes).alignment}
    held_out = held_out_lists(chosen.data, chosen.lists, trained_on, count=chosen.count)
    reranker = headrank(chosen.model, options={"passage_words": chosen.words})
    known: dict[str, KnownScores] = {}
    for name, lists in held_out.items():
        found = reranker.rerank_batch([graded.ranking for graded in lists])
        known[name] = KnownScores({r.query.qid: dict(zip(r.docids, r.scores, strict=True)) for r in found}, {})
    for logs in (False, True):
        gains = {name: _gains(known[name], lists, logs=logs) for name, lists in held_out.items()}
        print(f"\nmin-max of {'logarithms of ' if logs else ''}the model's scores; first stage's weight:")
        print(f"{'':18}" + "".join(f"{weight:8.1f}" for weight in WEIGHTS))
        for name, row in gains.items():
            print(f"{name:18}" + "".join(f"{value:+8.4f}" for value in row))
        for way in ("mean", "worst"):
            values = _judged(gains, way)
            print(
                f"chosen by {way}: on collections left out, mean gain {values.mean():+.4f}, worst {values.min():+.4f}, "
                f"below BM25 in {np.mean(values < 0):.0%}"
            )


def _gains(known: KnownScores, lists: Sequence[GradedList], *, logs: bool) -> np.ndarray:
    """Return [weights]: mean nDCG@10 at each weight of the first stage, less that of the first stage alone."""
    grades = {graded.qid: dict(zip(graded.ranking.docids, graded.grades, strict=True)) for graded in lists}
    rankings = [graded.ranking for graded in lists]
    means = [
        evaluate(interpolated(known, weight, logs=logs).rerank_batch(rankings), grades, [MEASURE]).means[MEASURE]
        for weight in WEIGHTS
    ]
    return np.array(means) - means[-1]


def _judged(gains: Mapping[str, np.ndarray], way: str) -> np.ndarray:
    """Return the gains on the collections that were left out, with the weight chosen on the others."""
    found = []
    for chosen_on in combinations(gains, len(gains) // 2):
        seen = np.stack([gains[name] for name in chosen_on])
        best = int((seen.mean(0) if way == "mean" else seen.min(0)).argmax())
        found += [gains[name][best] for name in gains if name not in chosen_on]
    return np.array(found)


if __name__ == "__main__":
    main()
