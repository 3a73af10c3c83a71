"""HeadRank as a Haystack ranker component; the extra ``haystack`` installs haystack-ai."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.pipeline import Reranker, require_extra
from headrank_pipeline.rerank.one_call import kept_reranker, rank

require_extra("haystack", "the adapter for Haystack", "haystack")
from haystack import Document, component, default_from_dict, default_to_dict

__all__ = ["HeadRankRanker"]


@component
class HeadRankRanker:
    """Returns the documents best first with new scores; their content is read.

    Args:
        model: what `headrank_pipeline.rank` takes: a name, a path, or any `Reranker`.
        heads: what `headrank_pipeline.headrank` takes.
        system: the reranker's name: ``headrank``, ``icr``, ``rankgpt``, …
        top_k: how many documents are returned; None for all.
        options: what the system takes, such as ``{"device": "cuda"}``.

    Raises:
        ValueError: a top_k below 1; while running: a document without content, or what the system refuses.
    """

    def __init__(
        self,
        model: str | Path | Reranker,
        heads: HeadSet | str | Path | None = None,
        system: str = "headrank",
        top_k: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.heads, self.system, self.top_k = model, heads, system, _checked(top_k)
        self.options = dict(options or {})
        self._reranker: Reranker | None = None

    def warm_up(self) -> None:
        """Load the model; a pipeline calls this before its first run."""
        if self._reranker is None:
            self._reranker = kept_reranker(self.model, self.heads, system=self.system, **self.options)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Return ``{"documents": […]}``, best first; `top_k` goes before that of the component."""
        self.warm_up()
        limit = self.top_k if top_k is None else _checked(top_k)
        for document in documents:
            if document.content is None:
                raise ValueError(f"document {document.id}: no content to read; leave it out, or give it text")
        ranked = rank(query, [document.content or "" for document in documents], model=self._reranker)
        return {"documents": [replace(documents[one.index], score=one.score) for one in ranked[:limit]]}

    def to_dict(self) -> dict[str, Any]:
        """Return the component as values that YAML can hold.

        Raises:
            ValueError: it was given a `Reranker` or a `HeadSet`, which have no name to write down.
        """
        for name, value in (("model", self.model), ("heads", self.heads)):
            if isinstance(value, Reranker | HeadSet):
                raise ValueError(f"{name} {value!r:.60}: only names and paths can be saved; name a folder or a file")
        values: dict[str, Any] = default_to_dict(
            self,
            model=str(self.model),
            heads=None if self.heads is None else str(self.heads),
            system=self.system,
            top_k=self.top_k,
            options=self.options,
        )
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HeadRankRanker:
        """Return the component that `to_dict` described."""
        made: HeadRankRanker = default_from_dict(cls, data)
        return made


def _checked(top_k: int | None) -> int | None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k}: expected at least 1")
    return top_k
