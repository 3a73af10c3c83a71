"""HeadRank as a LangChain document compressor; the extra ``langchain`` installs langchain-core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.pipeline import Reranker, require_extra
from headrank_pipeline.rerank.one_call import kept_reranker, rank

require_extra("langchain", "the adapter for LangChain", "langchain_core")
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document

__all__ = ["HeadRankCompressor"]


class HeadRankCompressor(BaseDocumentCompressor):
    """Returns the documents best first, each with its score as ``relevance_score`` in its metadata.

    The page content is read, and the documents that come in stay as they are.

    Args:
        model: what `headrank_pipeline.rank` takes: a name, a path, or any `Reranker`.
        heads: what `headrank_pipeline.headrank` takes.
        system: the reranker's name: ``headrank``, ``icr``, ``rankgpt``, …
        top_n: how many documents are returned; None for all.
        options: what the system takes, such as ``{"device": "cuda"}``.

    Raises:
        ValueError: an unknown argument, or what the system refuses.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True)

    model: str | Path | InstanceOf[Reranker]
    heads: str | Path | InstanceOf[HeadSet] | None = None
    system: str = "headrank"
    top_n: int | None = Field(default=None, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    _reranker: Reranker = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Open the reranker, so that a wrong name is told here and not at the first query."""
        self._reranker = kept_reranker(self.model, self.heads, system=self.system, **self.options)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Return copies of the documents, best first."""
        ranked = rank(query, [document.page_content for document in documents], model=self._reranker)
        return [
            documents[one.index].model_copy(
                update={"metadata": {**documents[one.index].metadata, "relevance_score": one.score}}
            )
            for one in ranked[: self.top_n]
        ]
