"""A reranker as an MCP server with one tool; `headrank mcp` runs it. FastMCP comes with Pyserini."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from headrank_pipeline.pipeline import Reranker, require_extra
from headrank_pipeline.rerank.one_call import rank

require_extra("mcp", "serving a tool", "fastmcp")
from fastmcp import FastMCP
from fastmcp.exceptions import ToolError

__all__ = ["rerank_server"]


def rerank_server(reranker: Reranker, *, name: str = "headrank") -> FastMCP[Any]:
    """Return a server whose one tool, ``rerank``, orders documents for a query.

    Args:
        reranker: any, its model loaded.
        name: what clients call the server.
    """
    server: FastMCP[Any] = FastMCP(name)

    @server.tool(annotations={"readOnlyHint": True, "openWorldHint": False})
    def rerank(
        query: Annotated[str, Field(description="What is looked for, in words.")],
        documents: Annotated[list[str], Field(description="Texts of the documents, in any order.")],
        top_n: Annotated[int | None, Field(description="How many are returned; all by default.", ge=1)] = None,
    ) -> list[dict[str, Any]]:
        """Order documents by relevance to a query, best first.

        Each result has index (place in documents, from 0), score (higher is better) and text.
        """
        try:
            ranked = rank(query, documents, model=reranker)
        except ValueError as error:  # the caller's text; told without a traceback in the log
            raise ToolError(str(error)) from error
        return [{"index": one.index, "score": one.score, "text": one.text} for one in ranked[:top_n]]

    return server
