"""Decoding-free passage reranking with selected attention heads, for Pyserini first stages.

    from headrank_pipeline import bm25, headrank
    pipeline = bm25("indexes/scifact") % 100 >> headrank(model, heads)

Names are loaded when they are first used: importing the package imports no torch and starts no JVM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # X as X: exported, for type checkers, which cannot read __all__ below
    from headrank_pipeline.attention.heads import HeadSet as HeadSet
    from headrank_pipeline.attention.model_files import embedded_model as embedded_model
    from headrank_pipeline.attention.model_files import smollm2 as smollm2
    from headrank_pipeline.comparison.experiments import run_experiment as run_experiment
    from headrank_pipeline.experiment.evaluate import evaluate as evaluate
    from headrank_pipeline.first_stage.lexical import bm25 as bm25
    from headrank_pipeline.first_stage.saved import saved_candidates as saved_candidates
    from headrank_pipeline.first_stage.saved import saved_run as saved_run
    from headrank_pipeline.first_stage.sparse import impact as impact
    from headrank_pipeline.first_stage.vectors import dense as dense
    from headrank_pipeline.records import Candidate as Candidate
    from headrank_pipeline.records import Query as Query
    from headrank_pipeline.records import Ranking as Ranking
    from headrank_pipeline.rerank.baselines.rankgpt import rankgpt as rankgpt
    from headrank_pipeline.rerank.interpolation import interpolated as interpolated
    from headrank_pipeline.rerank.one_call import rank as rank
    from headrank_pipeline.rerank.searcher import RerankingSearcher as RerankingSearcher
    from headrank_pipeline.rerank.systems import core as core
    from headrank_pipeline.rerank.systems import headrank as headrank
    from headrank_pipeline.rerank.systems import icr as icr
    from headrank_pipeline.rerank.systems import qrhead as qrhead
    from headrank_pipeline.rerank.systems import qrranker as qrranker

    __version__: str

_HOMES = {
    "Candidate": "records",
    "HeadSet": "attention.heads",
    "Query": "records",
    "Ranking": "records",
    "RerankingSearcher": "rerank.searcher",
    "bm25": "first_stage.lexical",
    "core": "rerank.systems",
    "dense": "first_stage.vectors",
    "embedded_model": "attention.model_files",
    "evaluate": "experiment.evaluate",
    "headrank": "rerank.systems",
    "icr": "rerank.systems",
    "impact": "first_stage.sparse",
    "interpolated": "rerank.interpolation",
    "qrhead": "rerank.systems",
    "qrranker": "rerank.systems",
    "rank": "rerank.one_call",
    "rankgpt": "rerank.baselines.rankgpt",
    "run_experiment": "comparison.experiments",
    "saved_candidates": "first_stage.saved",
    "saved_run": "first_stage.saved",
    "smollm2": "attention.model_files",
}

__all__ = sorted(("__version__", *_HOMES))


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
