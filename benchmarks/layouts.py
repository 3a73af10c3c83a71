"""Causal beside isolated passages with the embedded model, after training in each layout.

    python benchmarks/layouts.py --model models/embedded-base --data ../shared/data --output runs/layouts

The model (benchmarks/embedded_model.py) was distilled with isolated passages. Here it learns to read causally what it
reads when passages are isolated: distillation towards its own isolated scores, on the training lists of six
collections, without judgments. Then either layout is aligned with the same 211 judged lists. Heads are the same
throughout, chosen with isolated passages. Prints nDCG@10 on collections that are only evaluated, BM25's first
candidates each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from evidence.data import LEARNED, Judged, judged_collections, learned_lists, shortened, split_lists
from evidence.experiment import MEASURE, candidates_of
from evidence.settings import ALIGNMENT

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.model_files import recipe_of
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.experiment.directory import environment
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.files import write_json
from headrank_pipeline.learn.export import export
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.learn.preference import log_scores
from headrank_pipeline.learn.schedule import TrainingConfig, configured
from headrank_pipeline.learn.scorer import ListScorer
from headrank_pipeline.learn.selection import select_heads
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.learn.trainer import Trainer, TrainingData
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import read_qrels

TAUGHT_PASSAGES = 15  # of a list, for distillation
DISTILLATION = {
    "objective.kind": "distillation",
    "objective.teacher_temperature": 1.0,  # the target is the isolated reading itself
    "learning_rate": 1e-3,
    "epochs": 2,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of the model before any judgment")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--lists", type=Path, help="where training lists are, or are put; default: OUTPUT/lists")
    options.add_argument("--sizes", type=int, nargs=3, default=(60, 211, 120), metavar=("SELECT", "ALIGN", "DEV"))
    options.add_argument("--queries", type=int, default=100, help="of a test collection, at most")
    options.add_argument("--depth", type=int, default=20, help="candidates")
    options.add_argument("--words", type=int, default=120, help="of a passage, where test collections are read")
    options.add_argument("--training-words", type=int, default=60)
    options.add_argument("--num-heads", type=int, default=6)
    options.add_argument("--taught", type=int, help="lists for distillation; default: all")
    options.add_argument("--max-steps", type=int, help="of each training: does everything run?")
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    kept = chosen.lists or chosen.output / "lists"
    split = split_lists(
        chosen.data, kept, seed=0, **dict(zip(("selection", "alignment", "dev"), chosen.sizes, strict=True))
    )
    isolated, causal = (
        recipe_of(chosen.model).varied({"passages": layout, "passage_words": chosen.training_words})
        for layout in ("isolated", "causal")
    )
    selection = SelectionConfig(num_heads=chosen.num_heads, window=1)
    heads = select_heads(load(chosen.model, "all"), isolated, split.selection, selection).heads
    collections = [
        replace(shortened(one, chosen.output / "candidates", chosen.queries), depth=chosen.depth)
        for one in judged_collections(chosen.data, chosen.output / "candidates")
    ]
    found: dict[str, Mapping[str, float]] = {}

    def judge(name: str, model: Path, layout: str) -> None:
        reading = {"passages": layout, "passage_words": chosen.words}
        reranker = headrank(model, heads if model == chosen.model else None, options=reading)
        found[name] = {one.name.partition("-first")[0]: _ndcg(reranker, one) for one in collections}
        print(f"{name:32}" + "".join(f"{place} {value:.4f}  " for place, value in found[name].items()), flush=True)
        write_json(chosen.output / "layouts.json", {
            "environment": environment(), "settings": json.loads(json.dumps(vars(chosen), default=str)),
            "alignment": ALIGNMENT, "distillation": DISTILLATION, MEASURE: found,
        })  # fmt: skip

    limit = {} if chosen.max_steps is None else {"max_steps": chosen.max_steps}
    folders = {name: chosen.output / "models" / name for name in ("isolated-aligned", "causal", "causal-aligned")}
    judge("isolated", chosen.model, "isolated")
    _train(chosen.model, heads, isolated, split.alignment, {**ALIGNMENT, **limit}, folders["isolated-aligned"])
    judge("isolated, aligned", folders["isolated-aligned"], "isolated")
    judge("causal, not trained for it", chosen.model, "causal")
    lists = [one for name in LEARNED for one in learned_lists(chosen.data, kept, name).values()][: chosen.taught]
    taught = _taught(chosen.model, heads, isolated, lists)
    _train(chosen.model, heads, causal, taught, {**ALIGNMENT, **DISTILLATION, **limit}, folders["causal"])
    judge("causal, distilled", folders["causal"], "causal")
    _train(folders["causal"], heads, causal, split.alignment, {**ALIGNMENT, **limit}, folders["causal-aligned"])
    judge("causal, distilled and aligned", folders["causal-aligned"], "causal")


def _taught(model: Path, heads: HeadSet, reading: Recipe, lists: Sequence[GradedList]) -> list[GradedList]:
    """Return the lists' first passages with the model's own log-scores as those of a teacher."""
    cut = [
        replace(one, ranking=one.ranking.cut(TAUGHT_PASSAGES), grades=one.grades[:TAUGHT_PASSAGES], teacher=None)
        for one in lists
    ]
    scores = ListScorer(AttentionReader(load(model, heads)), reading).scores(cut)
    return [replace(one, teacher=tuple(log_scores(row).tolist())) for one, row in zip(cut, scores, strict=True)]


def _train(
    model: Path, heads: HeadSet, reading: Recipe, lists: Sequence[GradedList], settings: Mapping[str, object], to: Path
) -> None:
    if (to / "recipe.json").exists():
        return
    started, loaded = time.monotonic(), load(model, heads)
    config = configured(TrainingConfig(), settings)
    trainer = Trainer(loaded, reading, TrainingData(lists), config, directory=to / "training")
    report = trainer.run()
    export(trainer.loaded, trainer.scorer.reading, to, made_by={"benchmark": "benchmarks/layouts.py"})
    print(f"{to.name}: {report.steps} steps in {time.monotonic() - started:.0f} s", flush=True)


def _ndcg(reranker: Reranker, collection: Judged) -> float:
    """Return the mean nDCG@10 of a collection's queries."""
    rankings = list(candidates_of(collection))
    run = reranker.rerank_batch(rankings)
    return evaluate(run, read_qrels(collection.qrels), [MEASURE]).means[MEASURE]


if __name__ == "__main__":
    main()
