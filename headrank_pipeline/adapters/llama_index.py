"""HeadRank as a LlamaIndex node post-processor; the extra ``llama-index`` installs llama-index-core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.pipeline import Reranker, require_extra
from headrank_pipeline.rerank.one_call import kept_reranker, rank

require_extra("llama-index", "the adapter for LlamaIndex", "llama_index")
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

__all__ = ["HeadRankPostprocessor"]


class HeadRankPostprocessor(BaseNodePostprocessor):
    """Returns the nodes best first with new scores.

    What LlamaIndex would embed of a node is read: its text, and the metadata that are not excluded from embeddings.

    Args:
        model: what `headrank_pipeline.rank` takes: a name, a path, or any `Reranker`.
        heads: what `headrank_pipeline.headrank` takes.
        system: the reranker's name: ``headrank``, ``icr``, ``rankgpt``, …
        top_n: how many nodes are returned; None for all.
        options: what the system takes, such as ``{"device": "cuda"}``.

    Raises:
        ValueError: an unknown argument, or what the system refuses; while processing: no query.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | Path | InstanceOf[Reranker] = Field(frozen=True)
    heads: str | Path | InstanceOf[HeadSet] | None = Field(default=None, frozen=True)
    system: str = Field(default="headrank", frozen=True)
    top_n: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict, frozen=True)
    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the reranker, so that a wrong name is told here and not at the first query."""
        super().model_post_init(context)
        self._reranker = kept_reranker(self.model, self.heads, system=self.system, **self.options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex saves it."""
        return "HeadRankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise ValueError("HeadRankPostprocessor needs the query: give query_str or query_bundle")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranked = rank(query_bundle.query_str, texts, model=self._reranker)
        return [NodeWithScore(node=nodes[one.index].node, score=one.score) for one in ranked[: self.top_n]]
