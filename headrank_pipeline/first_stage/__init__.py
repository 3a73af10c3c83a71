"""First stages: everything that may start Java.

Importing this package starts nothing and imports neither pyserini nor jnius; they load when something is retrieved.
"""

from headrank_pipeline.first_stage.index import IndexSummary, build_index
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.first_stage.saved import saved_candidates, saved_run

__all__ = ["IndexSummary", "bm25", "build_index", "saved_candidates", "saved_run"]
