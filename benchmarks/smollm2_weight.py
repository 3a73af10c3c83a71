"""Choose BM25's weight beside a model on a collection that the model has never seen: train queries of SciFact.

    python benchmarks/smollm2_weight.py --data ../shared/data --output runs/weight

Distillation reads the texts and queries of the other training collections. There the model is better than it is
anywhere else, and a weight that is chosen there comes out too small. Of SciFact's 809 train queries 480 are drawn, BM25
finds 20 passages for each, and the weight with the largest mean nDCG@10 is taken. Test queries take no part. Prints a
table and writes weight.json.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from evidence.data import retrieve_apart
from evidence.experiment import KnownScores
from evidence.learned import WEIGHTS

from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.files import write_json
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import read_candidates, read_qrels

QUERIES, DEPTH = 480, 20
MEASURE = "nDCG@10"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2", help="a name or a folder that brings its heads")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--dtype", default="float32")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    command = shlex.join(["python", "benchmarks/smollm2_weight.py", *sys.argv[1:]])
    found = weight_on_unseen(chosen.model, chosen.data, chosen.output, dtype=chosen.dtype)
    write_json(chosen.output / "weight.json", {**found, "command": command})
    print(f"| BM25's weight | {MEASURE} |\n|---:|---:|")
    for weight, mean in found["ndcg_by_weight"].items():
        print(f"| {weight} | {mean} |")
    print(f"\nchosen: {found['first_stage_weight']}")


def weight_on_unseen(model: str | Path, data: Path, output: Path, *, dtype: str = "float32") -> Mapping[str, Any]:
    """Return the weight with the largest mean over SciFact's train queries, and the mean of every weight.

    The model's scores enter as logarithms; both sides are scaled within the list to the range from 0 to 1.
    """
    lists, grades = unseen_lists(data, output)
    reranked = headrank(model, dtype=dtype).rerank_batch(lists)
    scores = {ranking.query.qid: dict(zip(ranking.docids, ranking.scores, strict=True)) for ranking in reranked}
    means = {}
    for weight in WEIGHTS:
        mixed = interpolated(KnownScores(scores, {}), weight, logs=True).rerank_batch(lists)
        means[weight] = evaluate(mixed, grades, [MEASURE]).means[MEASURE]
    best = max(means, key=lambda weight: means[weight])
    shown = {str(weight): round(mean, 4) for weight, mean in means.items()}
    return {"first_stage_weight": best, "chosen_on": f"{len(lists)} train queries of SciFact", "ndcg_by_weight": shown}


def unseen_lists(data: Path, output: Path) -> tuple[list[Ranking], dict[str, dict[str, int]]]:
    """Return BM25's first 20 passages for each train query that is drawn, and the grades."""
    qrels = _drawn_judgments(data / "scifact/qrels/train.tsv", output / "scifact-train.qrels")
    candidates = output / "scifact-train.jsonl"
    retrieve_apart(data / "scifact", data / "scifact/corpus.jsonl.gz", qrels, candidates, DEPTH)
    return list(read_candidates(candidates)), read_qrels(qrels)


def _drawn_judgments(judgments: Path, drawn: Path) -> Path:
    if not drawn.exists():
        grades = read_qrels(judgments)
        qids = random.Random(0).sample(sorted(grades), QUERIES)
        lines = [f"{qid} 0 {docid} {grade}\n" for qid in sorted(qids) for docid, grade in grades[qid].items()]
        drawn.parent.mkdir(parents=True, exist_ok=True)
        drawn.write_text("".join(lines), encoding="utf-8")
    return drawn


if __name__ == "__main__":
    main()
