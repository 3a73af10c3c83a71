"""Whether bfloat16 gives the orders of float32: scores, Kendall's tau and nDCG@10 on training lists, with smollm2.

    python benchmarks/bfloat16.py --data ../shared/data --output runs/bfloat16 --queries 20

Every list is read three times with the same weights. *float32*: all in float32. *bfloat16*: as ``dtype=bfloat16``
reads, weights and activations in bfloat16, logits and softmax of the heads that are read in float32. *products*: only
linear layers take and give bfloat16; norms, residual stream and attention stay float32.

A processor with AMX tiles or AVX-512's bfloat16 adds up such products in float32 and rounds the sum once. Here that is
done by float32 products of rounded numbers, so that the scores are those of such a processor, but for the order of
summation, on any machine. Seconds would say nothing and are not told. Test collections are no place to choose a
default: these lists are of training data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from evidence.data import retrieve_apart
from long_lists import agreement, judged_ndcg
from scipy.stats import ttest_rel
from torch.overrides import TorchFunctionMode

from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import Qrels, read_candidates, read_qrels

LISTS = ("dl23", "antique_graded", "cranfield")
WAYS = ("bfloat16", "products")


class RoundedProducts(TorchFunctionMode):
    """Linear layers whose inputs, weights and outputs are bfloat16 and whose sums are float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        inputs, weight, *bias = args
        narrow = [x.bfloat16().float() for x in (inputs, weight, *(b for b in bias if b is not None))]
        return func(*narrow).bfloat16().to(inputs.dtype)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True, help="what BM25 finds is kept here")
    options.add_argument("--lists", nargs="+", default=LISTS, help="folders of the collections")
    options.add_argument("--queries", type=int, default=15, help="first lists of each collection")
    options.add_argument("--passages", type=int, default=20)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    full = headrank("smollm2", device="cpu", dtype="float32")
    half = headrank("smollm2", device="cpu", dtype="bfloat16")
    for reranker in (full, half):  # whose large products would not pass through ours
        reranker.reader.without |= {"fast_products"}
    print(
        "| lists | way | queries | tau, mean | tau, least | same first | same ten in order | largest error "
        "| nDCG@10 float32 | nDCG@10 | difference | p |\n|---|---|" + "---:|" * 10
    )
    for name in chosen.lists:
        lists, qrels = first_lists(chosen.data / name, chosen.output, chosen.queries, chosen.passages)
        rows = [read(full, half, ranking, qrels) for ranking in lists]
        for way in WAYS:
            print(line(name, way, [row[way] for row in rows]), flush=True)


def first_lists(folder: Path, output: Path, queries: int, passages: int) -> tuple[list[Ranking], Qrels]:
    """Return BM25's first passages of a collection's first queries, and its judgments."""
    qrels, candidates = folder / "qrels.txt", folder / "candidates.jsonl.gz"
    if not candidates.exists():
        qrels, candidates = folder / "qrels" / "test.tsv", output / f"{folder.name}.jsonl"
        output.mkdir(parents=True, exist_ok=True)
        retrieve_apart(folder, folder / "corpus.jsonl.gz", qrels, candidates, passages)
    lists = islice(read_candidates(candidates), queries)
    return [ranking.cut(passages) for ranking in lists], read_qrels(qrels)


def read(
    full: AttentionReranker, half: AttentionReranker, ranking: Ranking, qrels: Qrels
) -> dict[str, dict[str, float]]:
    """Return how each way's reading of one list agrees with float32's."""
    exact, judged = full.rerank(ranking), qrels[ranking.query.qid]
    with RoundedProducts():
        found = {"bfloat16": half.rerank(ranking), "products": full.rerank(ranking)}
    return {way: compared(exact, other, judged) for way, other in found.items()}


def compared(exact: Ranking, other: Ranking, judged: Mapping[str, int]) -> dict[str, float]:
    scores = dict(zip(exact.docids, exact.scores, strict=True))
    off = max(abs(score - scores[docid]) for docid, score in zip(other.docids, other.scores, strict=True))
    return {
        "tau": agreement(exact, other),
        "first": float(exact.docids[0] == other.docids[0]),
        "ten": float(exact.docids[:10] == other.docids[:10]),
        "error": off / max(map(abs, exact.scores)),
        "exact": judged_ndcg(exact, judged),
        "ndcg": judged_ndcg(other, judged),
    }


def line(name: str, way: str, rows: Sequence[Mapping[str, float]]) -> str:
    column = {key: [row[key] for row in rows] for key in rows[0]}
    mean = {key: fmean(values) for key, values in column.items()}
    differ = column["ndcg"] != column["exact"]
    p = f"{ttest_rel(column['ndcg'], column['exact']).pvalue:.2f}" if differ else "1"
    cells = [name, way, f"{len(rows)}", f"{mean['tau']:.4f}", f"{min(column['tau']):.3f}", f"{mean['first']:.0%}"]
    cells += [f"{mean['ten']:.0%}", f"{max(column['error']):.1%}", f"{mean['exact']:.4f}", f"{mean['ndcg']:.4f}"]
    return "| " + " | ".join([*cells, f"{mean['ndcg'] - mean['exact']:+.4f}", p]) + " |"


if __name__ == "__main__":
    main()
