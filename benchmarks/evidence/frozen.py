"""Systems that read the frozen model: every head of it once per list, whatever heads are then chosen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from evidence.data import Judged
from evidence.experiment import Experiment, KnownScores, candidates_of
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.scoring import combined
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.files import atomic_path
from headrank_pipeline.learn.lists import GradedList, describe_file
from headrank_pipeline.learn.scorer import ListScorer
from headrank_pipeline.learn.selection import select_heads
from headrank_pipeline.learn.settings import CRITERIA
from headrank_pipeline.rerank.systems import icr

__all__ = ["all_heads_by_icr", "read_all_heads", "scored_by_heads", "selected_heads"]


def all_heads_by_icr(experiment: Experiment, system: str) -> list[FinishedRun]:
    """Rerank with all heads under ICR's own prompt and rule, in the experiment's layout."""
    options = {**experiment.reading, "passages": experiment.recipe().template.passages}
    reranker = icr(experiment.model, "all", options=options, dtype=experiment.dtype,
                   passage_cache=experiment.passage_cache())  # fmt: skip
    return [experiment.run(system, collection, lambda: reranker) for collection in experiment.collections]


def read_all_heads(experiment: Experiment) -> None:
    """Keep the mass of every head on every passage of the collections; what is there is not read again."""
    missing = [c for c in experiment.collections if not _masses_file(experiment, c).exists()]
    if not missing:
        return
    loaded = load(experiment.model, "all", dtype=experiment.dtype)
    reader = AttentionReader(loaded, passage_cache=experiment.passage_cache())
    scorer = ListScorer(reader, experiment.recipe())
    for collection in missing:
        found = {}
        for ranking in candidates_of(collection):
            (mass,) = scorer.masses([scorer.builder.build(ranking)])
            found[ranking.query.qid] = mass.double().cpu().numpy()
        with atomic_path(_masses_file(experiment, collection)) as draft:
            save_file(found, draft)


def scored_by_heads(
    experiment: Experiment, system: str, heads: HeadSet | None, *, seed: int | None = None
) -> list[FinishedRun]:
    """Score every collection by some heads (None: all of them), from what `read_all_heads` kept."""
    return [
        experiment.run(system, collection, lambda c=collection: _scores(experiment, c, heads), seed=seed)
        for collection in experiment.collections
    ]


def selected_heads(
    experiment: Experiment, lists: Sequence[GradedList], file: Path, seed: int, *, dtype: str = "float32"
) -> dict[str, HeadSet]:
    """Return the heads that each criterion chooses on the lists of a file, from one pass over them."""
    folder = experiment.output / "heads" / f"seed-{seed}"
    if not all((folder / f"{criterion}.json").exists() for criterion in CRITERIA):
        found = select_heads(load(experiment.model, "all", dtype=dtype), experiment.training_recipe(), lists,
                             experiment.selection, origin=describe_file(file))  # fmt: skip
        found.table.save(folder / "heads.tsv", scores=found.scores, chosen=found.heads)
        for criterion in CRITERIA:
            found.candidates[criterion][0].save(folder / f"{criterion}.json")
    return {criterion: HeadSet.load(folder / f"{criterion}.json") for criterion in CRITERIA}


def _scores(experiment: Experiment, collection: Judged, heads: HeadSet | None) -> KnownScores:
    order, rule = _head_order(experiment.model), experiment.recipe().rule
    columns = [order.index(head) for head in heads.heads] if heads else list(range(len(order)))
    masses = _masses(_masses_file(experiment, collection))
    scores = {}
    for ranking in candidates_of(collection):
        found = combined(torch.from_numpy(masses[ranking.query.qid][columns]), rule)
        scores[ranking.query.qid] = dict(zip(ranking.docids, found.tolist(), strict=True))
    about = {
        "system": "headrank",
        "model": experiment.model.name,
        "heads": [list(order[column]) for column in columns],
        "reading": dict(experiment.reading),
        "dtype": experiment.dtype,
        "from": "one reading of all heads",
    }
    return KnownScores(scores, about)


def _masses_file(experiment: Experiment, collection: Judged) -> Path:
    return experiment.output / "masses" / f"{collection.name}.safetensors"


@lru_cache(maxsize=8)
def _masses(path: Path) -> dict[str, np.ndarray]:
    """Return qid -> [H, P] float64."""
    found: dict[str, np.ndarray] = load_file(path)
    return found


@lru_cache(maxsize=1)
def _head_order(model: Path) -> tuple[tuple[int, int], ...]:
    return load(model, "all").heads.heads
