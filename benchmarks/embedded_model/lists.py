"""Graded lists: the BM25 candidates of each collection, and what the judgments say of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.first_stage.index import build_index
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.records import Ranking
from headrank_pipeline.trec import read_candidates, read_qrels, read_topics, write_candidates

__all__ = ["JUDGED", "TRAINING", "Collection", "ndcg", "split"]

HITS = 100
DEV_SHARE = 0.25

# name -> (judgments, candidates that come with the collection or None for BM25 over its corpus)
TRAINING = {
    "nfcorpus_preproc": ("qrels/train.tsv.gz", None),
    "cranfield": ("qrels/test.tsv", None),
    "antique_graded": ("qrels/train.tsv", None),
    "musique_train": ("qrels/train.tsv", None),
    "hotpotqa_train": ("qrels/train.tsv", None),
}
JUDGED = {
    "scifact": ("qrels/test.tsv", None),
    "dl19": ("qrels.txt", "candidates.jsonl.gz"),
    "noveleval": ("qrels.txt", "candidates_bm25order.jsonl.gz"),
}


@dataclass(frozen=True)
class Collection:
    """The first-stage rankings of the judged queries of a collection, and their judgments."""

    name: str
    rankings: list[Ranking]
    qrels: dict[str, dict[str, int]]

    @classmethod
    def read(cls, data: Path, name: str, source: tuple[str, str | None], cache: Path) -> Collection:
        """Read a collection; BM25's candidates are kept in `cache` for the next time."""
        judgments, candidates = source
        qrels = read_qrels(data / name / judgments)
        if candidates is None:
            path = cache / f"{name}-{Path(judgments).name.split('.')[0]}.jsonl"
            if not path.exists():
                _retrieve(data / name, set(qrels), path, cache / f"{name}-index")
        else:
            path = data / name / candidates
        rankings = [ranking for ranking in read_candidates(path) if ranking.query.qid in qrels]
        return cls(name, rankings, {ranking.query.qid: qrels[ranking.query.qid] for ranking in rankings})

    def part(self, qids: set[str]) -> Collection:
        """Return the collection of these queries only."""
        chosen = [ranking for ranking in self.rankings if ranking.query.qid in qids]
        return Collection(self.name, chosen, {ranking.query.qid: self.qrels[ranking.query.qid] for ranking in chosen})

    def grades(self, ranking: Ranking) -> list[int]:
        """Return the grade of each candidate, 0 where it was not judged."""
        judged = self.qrels[ranking.query.qid]
        return [max(judged.get(docid, 0), 0) for docid in ranking.docids]


def split(collection: Collection, *, seed: int) -> tuple[Collection, Collection]:
    """Return the queries to learn from and those to choose by."""
    qids = [ranking.query.qid for ranking in collection.rankings]
    random.Random(f"{seed}-{collection.name}").shuffle(qids)
    dev = set(qids[: int(len(qids) * DEV_SHARE)])
    return collection.part(set(qids) - dev), collection.part(dev)


def ndcg(rankings: Sequence[Ranking], collection: Collection) -> float:
    """Return mean nDCG@10 of rankings of the collection's queries."""
    return evaluate(rankings, collection.qrels, measures=["nDCG@10"]).means["nDCG@10"]


def _retrieve(folder: Path, qids: set[str], path: Path, index: Path) -> None:
    if not index.exists():
        build_index(folder / "corpus.jsonl.gz", index)
    queries = [query for query in read_topics(folder / "queries.jsonl") if query.qid in qids]
    write_candidates(path, bm25(index, hits=HITS).retrieve(queries))
