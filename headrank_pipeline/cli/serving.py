"""headrank serve, headrank mcp: a reranker as a REST service, and as a tool of language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from headrank_pipeline.cli.commands import CommandWithMovedFlags
from headrank_pipeline.cli.reranking import MOVED_FLAGS, SYSTEM_OPTIONS, reranker_spec, with_options
from headrank_pipeline.pipeline import require_extra

__all__ = ["mcp", "serve"]


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@with_options(*SYSTEM_OPTIONS)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="Port to listen at; 0 takes a free one and logs it.")  # fmt: skip
@click.option("--insecure", is_flag=True, help="Lets other machines in without a key (HEADRANK_API_KEY sets one).")
@click.option("--queue", type=click.IntRange(min=1), default=64, show_default=True,
              help="Requests that may wait; one more gets 429.")  # fmt: skip
@click.option("--call-tokens", type=click.IntRange(min=1),
              help="Tokens of the requests that are read together.  [default: 16384 on a GPU, else 2048]")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=30.0, show_default=True,
              help="Seconds to answer a request in; a later one gets 504.")  # fmt: skip
@click.option("--max-body", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True, metavar="MIB",
              help="Size of a request at most; a larger one gets 413.")  # fmt: skip
def serve(
    host: str,
    port: int,
    insecure: bool,
    queue: int,
    call_tokens: int | None,
    timeout: float,
    max_body: float,
    **reranker: Any,
) -> None:
    """Answer rerank requests of Cohere's, Jina's and Text Embeddings Inference's clients over HTTP.

    Paths: /v1/rerank, /v2/rerank, /rerank, /health, /metrics, /docs. On SIGTERM the requests that
    were taken are finished first. docs/serving.md says more.
    """
    require_extra("server", "serving over HTTP", "fastapi", "uvicorn")
    from headrank_pipeline.serve import server
    from headrank_pipeline.serve.batcher import Limits

    limits = Limits(waiting=queue, call_tokens=call_tokens, timeout=timeout, body_bytes=int(max_body * 2**20))
    key = server.read_key()
    spec = reranker_spec(reranker)
    with server.bound_socket(host, port, key=key, insecure=insecure) as bound:
        folder = Path(spec.model)  # its path is nobody's business
        name = folder.resolve().name if folder.exists() else str(spec.model)
        server.serve(spec.open, bound, model=name, system=spec.system, key=key, limits=limits)


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@with_options(*SYSTEM_OPTIONS)
def mcp(**reranker: Any) -> None:
    """Serve one tool, rerank, over the Model Context Protocol, on standard input and output.

    A client starts it itself: its settings name the command "headrank" with the arguments "mcp", "--model", ….
    """
    from headrank_pipeline.adapters.mcp import rerank_server

    rerank_server(reranker_spec(reranker).open()).run(transport="stdio", show_banner=False)
