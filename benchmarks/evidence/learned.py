"""Systems that training made: the alignment, its ablations, and the aligned model beside its first stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence.data import Split
from evidence.experiment import MEASURE, Experiment, KnownScores, candidates_of, file_name
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.files import write_json
from headrank_pipeline.first_stage.saved import saved_run
from headrank_pipeline.learn.export import export
from headrank_pipeline.learn.lists import GradedList, describe_file
from headrank_pipeline.learn.schedule import TrainingConfig, configured
from headrank_pipeline.learn.trainer import Trainer, TrainingData
from headrank_pipeline.pipeline import RRF_K, fuse
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.rerank.interpolation import interpolated

__all__ = [
    "ABLATIONS",
    "ALIGNED",
    "FULL",
    "SELECTED",
    "align",
    "chosen_weight",
    "fused_by_rank",
    "model_folder",
    "reranked",
    "with_first_stage",
]

SELECTED = "entropy-regularised"  # the criterion whose heads are aligned
FULL = "aligned"
# What each aligned system changes: the criterion of its heads, settings of its training.
ALIGNED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    FULL: (SELECTED, {}),
    "aligned, no entropy term": ("discrimination", {}),
    "aligned, any pairs": (SELECTED, {"objective.steps": "any"}),
    "aligned, random pairs": (SELECTED, {"objective.hard": False}),
    "aligned, no regulariser": (SELECTED, {"objective.regulariser": "none"}),
}
ABLATIONS = tuple(name for name in ALIGNED if name != FULL)
WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))


def align(experiment: Experiment, system: str, heads: HeadSet, split: Split, seed: int) -> dict[str, Any]:
    """Train one of `ALIGNED` and write its folder; return its heads and steps.

    It trains to the end: what so few dev lists say of a step is noise as large as what alignment gains.
    """
    folder = model_folder(experiment, system, seed)
    record = folder / "alignment.json"
    if not record.exists():
        config = configured(TrainingConfig(), {**experiment.training, **ALIGNED[system][1], "seed": seed})
        data = TrainingData(split.alignment, origin={"lists": describe_file(split.files[1])})
        trainer = Trainer(
            load(experiment.model, heads), experiment.training_recipe(), data, config, directory=folder / "training"
        )
        report = trainer.run()
        export(trainer.loaded, trainer.scorer.reading, folder, made_by={"command": experiment.command})
        (folder / "training/state.pt").unlink()  # large, and of no more use
        write_json(record, {"heads": heads.heads, "steps": report.steps})
    return _json(record)


def model_folder(experiment: Experiment, system: str, seed: int) -> Path:
    """Return where a trained model lies."""
    return experiment.output / "models" / f"seed-{seed}" / file_name(system)


def reranked(experiment: Experiment, system: str, seed: int) -> list[FinishedRun]:
    """Rerank every collection with a trained model."""
    reranker = experiment.reranker(model_folder(experiment, system, seed))
    return [experiment.run(system, collection, lambda: reranker, seed=seed) for collection in experiment.collections]


def chosen_weight(
    experiment: Experiment, system: str, split: Split, seed: int
) -> tuple[float, dict[float, dict[str, float]]]:
    """Return the first stage's weight, and nDCG@10 on the dev lists: weight -> training collection -> mean.

    It is the weight whose smallest gain over the first stage, among the training collections, is the largest: unseen
    collections differ more from each other than lists of one do, and a mean lets one collection pay for another.
    """
    rankings = [graded.ranking for graded in split.dev]
    path = model_folder(experiment, system, seed) / "dev-scores.json"
    if not path.exists():
        found = experiment.reranker(model_folder(experiment, system, seed)).rerank_batch(rankings)
        write_json(path, {r.query.qid: dict(zip(r.docids, r.scores, strict=True)) for r in found})
    known = KnownScores(_json(path), {})
    means = {w: _by_collection(interpolated(known, w, logs=True).rerank_batch(rankings), split.dev) for w in WEIGHTS}
    return max(means, key=lambda w: min(means[w][name] - means[1.0][name] for name in means[w])), means


def with_first_stage(
    experiment: Experiment, system: str, runs: Sequence[FinishedRun], weight: float, seed: int
) -> list[FinishedRun]:
    """Interpolate finished runs with their first stage."""
    return [
        experiment.run(system, collection, lambda r=run: interpolated(_known(r), weight, logs=True), seed=seed)
        for collection, run in zip(experiment.collections, runs, strict=True)
    ]


def fused_by_rank(experiment: Experiment, system: str, runs: Sequence[FinishedRun], seed: int) -> list[FinishedRun]:
    """Fuse finished runs with their first stage by reciprocal rank."""
    found = []
    for collection, run in zip(experiment.collections, runs, strict=True):
        queries = [ranking.query for ranking in candidates_of(collection)]
        found.append(experiment.run(system, collection, lambda r=run, q=queries: _reciprocal(r, q), seed=seed))
    return found


def _known(run: FinishedRun) -> KnownScores:
    scores = {qid: dict(zip(entry.docids, entry.scores, strict=True)) for qid, entry in run.scored.items()}
    return KnownScores(scores, run.identity["reranker"])


def _reciprocal(run: FinishedRun, queries: Sequence[Query]) -> KnownScores:
    first, second = (
        saved_run(path, queries) % run.depth for path in (run.directory.first_stage_run, run.directory.run)
    )
    rankings = fuse(first, second).retrieve(queries)
    scores = {ranking.query.qid: dict(zip(ranking.docids, ranking.scores, strict=True)) for ranking in rankings}
    return KnownScores(scores, {**run.identity["reranker"], "fused_with": "first stage", "k": RRF_K})


def _by_collection(rankings: Sequence[Ranking], lists: Sequence[GradedList]) -> dict[str, float]:
    """Return training collection -> mean nDCG@10; a qid starts with its collection's name."""
    grades = {graded.qid: dict(zip(graded.ranking.docids, graded.grades, strict=True)) for graded in lists}
    values: dict[str, list[float]] = {}
    for qid, found in evaluate(rankings, grades, [MEASURE]).per_query.items():
        values.setdefault(qid.partition("/")[0], []).append(found[MEASURE])
    return {name: float(np.mean(part)) for name, part in values.items()}


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
