"""First stages: everything that may start Java.

Importing this package starts nothing; names are loaded when they are first used, pyserini and jnius when something is
retrieved.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # X as X: exported, for type checkers
    from headrank_pipeline.first_stage.dense_index import build_dense_index as build_dense_index
    from headrank_pipeline.first_stage.encoder import load_encoder as load_encoder
    from headrank_pipeline.first_stage.index import IndexSummary as IndexSummary
    from headrank_pipeline.first_stage.index import build_index as build_index
    from headrank_pipeline.first_stage.jvm import start_jvm as start_jvm
    from headrank_pipeline.first_stage.lexical import bm25 as bm25
    from headrank_pipeline.first_stage.saved import saved_candidates as saved_candidates
    from headrank_pipeline.first_stage.saved import saved_run as saved_run
    from headrank_pipeline.first_stage.sparse import impact as impact
    from headrank_pipeline.first_stage.vectors import dense as dense

_HOMES = {
    "IndexSummary": "index",
    "bm25": "lexical",
    "build_dense_index": "dense_index",
    "build_index": "index",
    "dense": "vectors",
    "impact": "sparse",
    "load_encoder": "encoder",
    "saved_candidates": "saved",
    "saved_run": "saved",
    "start_jvm": "jvm",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
