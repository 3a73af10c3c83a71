"""headrank mcp: a reranker as a tool of language models."""

from __future__ import annotations

from typing import Any

import click

from headrank_pipeline.cli.commands import CommandWithMovedFlags
from headrank_pipeline.cli.reranking import MOVED_FLAGS, SYSTEM_OPTIONS, reranker_spec, with_options

__all__ = ["mcp"]


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@with_options(*SYSTEM_OPTIONS)
def mcp(**reranker: Any) -> None:
    """Serve one tool, rerank, over the Model Context Protocol, on standard input and output.

    A client starts it itself: its settings name the command "headrank" with the arguments "mcp", "--model", ….
    """
    from headrank_pipeline.adapters.mcp import rerank_server

    rerank_server(reranker_spec(reranker).open()).run(transport="stdio", show_banner=False)
