"""First stages: everything that may start Java.

Importing this package starts nothing and imports neither pyserini nor jnius; they load when something is retrieved.
"""

from headrank_pipeline.first_stage.dense import dense
from headrank_pipeline.first_stage.dense_index import build_dense_index
from headrank_pipeline.first_stage.encoder import load_encoder
from headrank_pipeline.first_stage.impact import impact
from headrank_pipeline.first_stage.index import IndexSummary, build_index
from headrank_pipeline.first_stage.jvm import start_jvm
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.first_stage.saved import saved_candidates, saved_run

__all__ = [
    "IndexSummary",
    "bm25",
    "build_dense_index",
    "build_index",
    "dense",
    "impact",
    "load_encoder",
    "saved_candidates",
    "saved_run",
    "start_jvm",
]
