"""One model under one layout of the prompt, and the folder that everything about it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.data import Judged
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.comparison.finished import FinishedRun, read_finished
from headrank_pipeline.experiment.batches import supply_from_file
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import read_candidates, read_qrels

__all__ = ["MEASURE", "Experiment", "KnownScores", "candidates_of", "file_name"]

MEASURE = "nDCG@10"


@dataclass(frozen=True)
class KnownScores(Reranker):
    """A reranker that looks its scores up.

    Args:
        scores: qid -> docid -> score.
        about: what made them, for the manifest.
    """

    scores: Mapping[str, Mapping[str, float]]
    about: Mapping[str, Any]

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [r.rescored([self.scores[r.query.qid][docid] for docid in r.docids]) for r in rankings]

    def describe(self) -> dict[str, Any]:
        return dict(self.about)


@dataclass(frozen=True)
class Experiment:
    """What all parts of an experiment share.

    Args:
        model: folder of the frozen model; its recipe.json says how it is read.
        output: folder of runs, models and head sets.
        collections: judged ones.
        reading: changes to the recipe wherever test passages are read.
        dtype: of the weights there.
        cache_bytes: for the keys of isolated passages, which several queries share.
        training_words: words of a passage where heads are selected and trained.
        selection: how heads are chosen; each criterion is set in turn.
        training: settings of the full alignment.
        command: for manifests.
    """

    model: Path
    output: Path
    collections: Sequence[Judged]
    reading: Mapping[str, Any]
    dtype: str
    cache_bytes: int
    training_words: int
    selection: SelectionConfig
    training: Mapping[str, Any]
    command: str

    def recipe(self) -> Recipe:
        """Return the prompt and rule that the model folder names, as test passages are read."""
        return headrank(self.model, "all", options=self.reading).recipe

    def training_recipe(self) -> Recipe:
        """Return the same for training lists, whose passages may be shorter."""
        changes = {**self.reading, "passage_words": self.training_words}
        return headrank(self.model, "all", options=changes).recipe

    def passage_cache(self) -> PassageCache | None:
        """Return an empty cache, or None for the causal layout."""
        isolated = self.recipe().template.passages == "isolated"
        return PassageCache(memory_bytes=self.cache_bytes) if isolated else None

    def reranker(self, model: Path, heads: HeadSet | Path | None = None) -> Reranker:
        """Return a model of this experiment's layout as a reranker; None for the heads of its own folder."""
        return headrank(model, heads, options=self.reading, dtype=self.dtype, passage_cache=self.passage_cache())

    def run(
        self, system: str, collection: Judged, make: Callable[[], Reranker], *, seed: int | None = None
    ) -> FinishedRun:
        """Return the run of a system on a collection; a finished one is not done again.

        Args:
            system: its name.
            collection: what is reranked and judged.
            make: gives the reranker, where it is needed.
            seed: of what was learned; None for systems that learned nothing.
        """
        name = file_name(system) + ("" if seed is None else f"-seed-{seed}")
        folder = self.output / "runs" / collection.name / name
        if not (folder / "run.trec").exists():
            plan = RunPlan(
                output=folder,
                reranker=make(),
                supply=supply_from_file(collection.candidates, only=read_qrels(collection.qrels)),
                depth=collection.depth,
                judgement=Judgement(qrels=collection.qrels, measures=[MEASURE]),
            )
            execute(plan, command=self.command)
        return read_finished(folder, system)


def candidates_of(collection: Judged) -> Iterator[Ranking]:
    """Yield the candidates of the judged queries, cut at the collection's depth."""
    judged = read_qrels(collection.qrels)
    for ranking in read_candidates(collection.candidates):
        if ranking.query.qid in judged and ranking.candidates:
            yield ranking.cut(collection.depth)


def file_name(system: str) -> str:
    """Return a system's name as files carry it.

    Examples:
        >>> file_name("all heads, ICR's rule")
        'all-heads-ICRs-rule'
    """
    return system.replace("'", "").replace(",", "").replace(" ", "-")
