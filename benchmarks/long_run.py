"""Does a long run keep its memory? Reranks 2,000 lists with the embedded model and watches the resident memory.

    python benchmarks/long_run.py --queries 2000

The lists are judged passages of the demo collection. Prints the mean resident memory of the second tenth of the run and
of the last one, and their ratio.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.experiment.batches import supply_from_file
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import read_qrels, read_topics, write_candidates


@dataclass
class Watched(Reranker):
    """A reranker, and the resident memory of the process after each of its batches, in MiB."""

    inner: Reranker
    memory: list[float] = field(default_factory=list)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        found = self.inner.rerank_batch(rankings)
        self.memory.append(resident())
        return found

    def describe(self) -> dict[str, Any]:
        return self.inner.describe()


def resident() -> float:
    """Return the resident memory of this process in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--queries", type=int, default=2000)
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        candidates = Path(folder) / "candidates.jsonl"
        write_candidates(candidates, _lists(chosen.queries))
        reranker = Watched(headrank(embedded_model(), device="cpu"))
        execute(RunPlan(output=Path(folder) / "run", reranker=reranker, supply=supply_from_file(candidates), depth=20))
    tenth = len(reranker.memory) // 10
    early, late = (sum(part) / len(part) for part in (reranker.memory[tenth : 2 * tenth], reranker.memory[-tenth:]))
    print(
        f"{chosen.queries} queries: {early:.0f} MiB in the second tenth, {late:.0f} MiB in the last: {late / early:.3f}"
    )


def _lists(queries: int) -> Iterator[Ranking]:
    demo = Path(str(files("headrank_pipeline") / "resources" / "demo"))
    passages = {passage.docid: passage for passage in read_corpus(demo / "corpus.jsonl")}
    qrels = read_qrels(demo / "qrels.tsv")
    topics = [query for query in read_topics(demo / "queries.jsonl") if query.qid in qrels]
    for number in range(queries):
        query = topics[number % len(topics)]
        docids = list(qrels[query.qid])[: 4 + number % 5]  # lists of different lengths
        yield Ranking(
            Query(f"{query.qid}-{number}", query.text),
            tuple(
                Candidate(docid, -float(place), passages[docid].text, title=passages[docid].title)
                for place, docid in enumerate(docids)
            ),
        )


if __name__ == "__main__":
    main()
