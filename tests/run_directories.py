"""Run directories for tests of what comes after a run: written by the real runner, with scores that need no model."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from headrank_pipeline.experiment.batches import supply_from_file
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, write_candidates

Grades = Mapping[str, Mapping[str, int]]


@dataclass
class Scripted(Reranker):
    """Scores a passage by its grade and seeded noise; positive scores, as attention gives."""

    grades: Grades
    noise: float = 1.0
    seed: int = 0
    name: str = "scripted"
    reverse: bool = False
    shuffle_seed: int | None = None
    notes: Mapping[str, float] = field(default_factory=lambda: {"prompt_tokens": 1000.0})
    failing: frozenset[str] = frozenset()
    by_docid: Mapping[str, float] = field(default_factory=dict)  # exact scores, for cases worked out by hand

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [self._rescored(ranking) for ranking in rankings]

    def _rescored(self, ranking: Ranking) -> Ranking:
        qid = ranking.query.qid
        if qid in self.failing:
            raise ValueError(f"qid {qid}: no reply")
        chance = random.Random(f"{self.seed} {qid}")
        noise = {docid: self.noise * chance.gauss(0, 1) for docid in sorted(ranking.docids)}
        scores = [
            self.by_docid.get(docid, 2.0 ** (self.grades.get(qid, {}).get(docid, 0) + noise[docid]))
            for docid in ranking.docids
        ]
        return replace(ranking, notes=self.notes).rescored(scores)

    def describe(self):
        shuffled = {} if self.shuffle_seed is None else {"shuffle_seed": self.shuffle_seed}
        template = {"reverse": self.reverse, **shuffled, "sha256": self.name}
        return {"system": self.name, "seed": self.seed, "template": template}


def write_qrels(path: Path, grades: Grades) -> Path:
    lines = [f"{qid} 0 {docid} {grade}\n" for qid, judged in grades.items() for docid, grade in judged.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def graded_candidates(folder: Path, queries: int, passages: int) -> tuple[Path, Path, dict[str, dict[str, int]]]:
    """Candidates, qrels and grades; every fourth passage is relevant, and longer ones are rarer."""
    chance = random.Random(7)
    rankings, grades = [], {}
    for number in range(queries):
        qid, found = f"q{number}", []
        grades[qid] = {}
        for rank in range(passages):
            docid = f"d{number}-{rank}"
            if chance.random() < 0.5:
                grades[qid][docid] = chance.choice([0, 0, 1, 2, 3])
            text = " ".join(["word"] * chance.choice([5, 10, 20, 60]))
            found.append(Candidate(docid, 20.0 - 3 * rank**0.5, text))
        rankings.append(Ranking(Query(qid, f"query {number}"), tuple(found)))
    write_candidates(folder / "candidates.jsonl", rankings)
    return folder / "candidates.jsonl", write_qrels(folder / "qrels.txt", grades), grades


def shuffled_copy(candidates: Path, path: Path, seed: int) -> Path:
    """The same candidates in another order, with first-stage scores that say so."""
    chance = random.Random(seed)

    def shuffled(ranking: Ranking) -> Ranking:
        found = list(ranking.candidates)
        chance.shuffle(found)
        return replace(ranking, candidates=tuple(replace(c, score=float(-i)) for i, c in enumerate(found)))

    write_candidates(path, (shuffled(ranking) for ranking in read_candidates(candidates)))
    return path


def make_run(
    folder: Path, candidates: Path, qrels: Path | None, reranker: Reranker, *, depth: int = 100, tag: str = "t", **plan
) -> Path:
    judgement = None if qrels is None else Judgement(qrels=qrels, measures=("nDCG@10", "R@20", "RR"))
    supply = supply_from_file(candidates)
    execute(
        RunPlan(output=folder, reranker=reranker, supply=supply, depth=depth, tag=tag, judgement=judgement, **plan),
        command=f"headrank rerank --output {folder.name}",
    )
    return folder
