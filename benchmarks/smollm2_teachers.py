"""Which teacher orders passages best: three sentence encoders, two and three together, and all with the first stage.

    python benchmarks/smollm2_teachers.py --data ../shared/data --output runs/teachers

`smollm2_model.py` distils from the three together, which have the best mean. Lists of the training collections are
read, 80 of each at most, and 480 train queries of SciFact, whose texts the distillation does not see. Test queries take
no part. nDCG@10 is written to teachers.tsv and printed as a table.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from smollm2.encoders import SHARPNESS, vectors
from smollm2.lists import COLLECTIONS, all_lists
from smollm2.texts import shown
from smollm2_weight import unseen_lists
from torch import Tensor

from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.records import Ranking

MEASURE, LISTS = "nDCG@10", 80
Scores = Callable[[Tensor, Tensor], Tensor]  # the encoders' scores [encoders, P] and the first stage's -> the teacher's
TEACHERS: dict[str, Scores] = {
    "first stage": lambda three, first: first,
    "all-MiniLM-L6-v2": lambda three, first: three[0],
    "multilingual-e5-small": lambda three, first: three[1],
    "e5-small": lambda three, first: three[2],
    "MiniLM and multilingual": lambda three, first: three[:2].sum(0),
    "MiniLM and e5-small": lambda three, first: three[0] + three[2],
    "all three": lambda three, first: three.sum(0),
    "all, 0.2 first stage": lambda three, first: 0.8 * _scaled(three.sum(0)) + 0.2 * _scaled(first),
    "all, 0.5 first stage": lambda three, first: 0.5 * _scaled(three.sum(0)) + 0.5 * _scaled(first),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    lists = _lists(chosen.data, chosen.output)
    rankings = [ranking for name in lists for ranking in lists[name][0]]
    texts = list(dict.fromkeys(shown(candidate) for ranking in rankings for candidate in ranking.candidates))
    passages, queries = vectors(texts, [ranking.query.text for ranking in rankings])
    place, asked = {text: number for number, text in enumerate(texts)}, iter(queries)
    by_list = {
        ranking.query.qid: passages[[place[shown(candidate)] for candidate in ranking.candidates]] * next(asked)
        for ranking in rankings
    }
    table = pd.DataFrame({name: _means(by_list, *lists[name]) for name in lists})
    table["mean"] = table.mean(axis=1)
    chosen.output.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(chosen.output / "teachers.tsv", sep="\t")
    print(f"sharpness {SHARPNESS}, {MEASURE}\n{table.round(4).to_string()}")


def _lists(data: Path, output: Path) -> dict[str, tuple[list[Ranking], dict[str, dict[str, int]]]]:
    """Return, by collection, rankings and grades."""
    found = {"scifact train": unseen_lists(data, output)}
    for name in COLLECTIONS:
        graded = all_lists(data, output / "lists", name)
        qids = sorted(graded)
        random.Random(1).shuffle(qids)
        some = [graded[qid] for qid in qids[:LISTS]]
        grades = {one.ranking.query.qid: dict(zip(one.ranking.docids, one.grades, strict=True)) for one in some}
        found[name] = [one.ranking for one in some], grades
    return found


def _means(by_list: dict[str, Tensor], rankings: list[Ranking], grades: dict[str, dict[str, int]]) -> dict[str, float]:
    """Return the mean of the measure, by teacher."""
    means = {}
    for name, scores in TEACHERS.items():
        ordered = []
        for ranking in rankings:
            products = by_list[ranking.query.qid]
            of_each = products.unflatten(1, (len(SHARPNESS), -1)).sum(2).T
            found = scores(of_each, torch.tensor([candidate.score for candidate in ranking.candidates]))
            ordered.append(ranking.rescored(found.tolist()))
        means[name] = evaluate(ordered, grades, [MEASURE]).means[MEASURE]
    return means


def _scaled(scores: Tensor) -> Tensor:
    return (scores - scores.mean()) / (scores.std() + 1e-9)


if __name__ == "__main__":
    main()
