"""Decoding-free passage reranking with selected attention heads, for Pyserini first stages.

    from headrank_pipeline import bm25, headrank
    pipeline = bm25("indexes/scifact") % 100 >> headrank(model, heads)

Names are loaded when they are first used: importing the package imports no torch and starts no JVM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrank_pipeline.attention.heads import HeadSet
    from headrank_pipeline.comparison.experiments import run_experiment
    from headrank_pipeline.experiment.evaluate import evaluate
    from headrank_pipeline.first_stage.dense import dense
    from headrank_pipeline.first_stage.impact import impact
    from headrank_pipeline.first_stage.lexical import bm25
    from headrank_pipeline.first_stage.saved import saved_candidates, saved_run
    from headrank_pipeline.records import Candidate, Query, Ranking
    from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
    from headrank_pipeline.rerank.interpolation import interpolated
    from headrank_pipeline.rerank.named_models import embedded_model, smollm2
    from headrank_pipeline.rerank.one_call import rank
    from headrank_pipeline.rerank.searcher import RerankingSearcher
    from headrank_pipeline.rerank.systems import core, headrank, icr, qrhead, qrranker

    __version__: str

__all__ = [
    "Candidate",
    "HeadSet",
    "Query",
    "Ranking",
    "RerankingSearcher",
    "__version__",
    "bm25",
    "core",
    "dense",
    "embedded_model",
    "evaluate",
    "headrank",
    "icr",
    "impact",
    "interpolated",
    "qrhead",
    "qrranker",
    "rank",
    "rankgpt",
    "run_experiment",
    "saved_candidates",
    "saved_run",
    "smollm2",
]

_HOMES = {
    "Candidate": "records",
    "HeadSet": "attention.heads",
    "Query": "records",
    "Ranking": "records",
    "RerankingSearcher": "rerank.searcher",
    "bm25": "first_stage.lexical",
    "core": "rerank.systems",
    "dense": "first_stage.dense",
    "embedded_model": "rerank.named_models",
    "evaluate": "experiment.evaluate",
    "headrank": "rerank.systems",
    "icr": "rerank.systems",
    "impact": "first_stage.impact",
    "interpolated": "rerank.interpolation",
    "qrhead": "rerank.systems",
    "qrranker": "rerank.systems",
    "rank": "rerank.one_call",
    "rankgpt": "rerank.baselines.rankgpt",
    "run_experiment": "comparison.experiments",
    "saved_candidates": "first_stage.saved",
    "saved_run": "first_stage.saved",
    "smollm2": "rerank.named_models",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("headrank-pipeline")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
