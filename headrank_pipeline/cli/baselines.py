"""The flags of the baselines: rankgpt, first-token, qwen3-reranker, none of which reads heads."""

from __future__ import annotations

import click

__all__ = ["BASELINE_FLAGS", "BASELINE_OPTIONS"]

# None means that the flag was not given: defaults belong to the systems.
BASELINE_OPTIONS = (
    click.option("--window-size", type=int, help="Candidates in a window (rankgpt, first-token).  [default: 20]"),
    click.option("--stride", type=int, help="Ranks from window to window.  [default: 10]"),
    click.option("--num-passes", type=int, help="Times the windows go through the list.  [default: 1]"),
    click.option(
        "--thinking/--no-thinking", default=None, help="Think first (rankgpt).  [default: no; an endpoint's own]"
    ),
    click.option("--max-new-tokens", type=int, help="Limit of a reply.  [default: what the identifiers need]"),
    click.option("--endpoint", metavar="URL", help="OpenAI-compatible server, up to /v1; --model is its name there."),
    click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the endpoint's key."),
    click.option("--timeout", type=float, help="Seconds per request to the endpoint.  [default: 120]"),
)
BASELINE_FLAGS = (
    "window_size", "stride", "num_passes", "thinking", "max_new_tokens", "endpoint", "api_key_env", "timeout",
)  # fmt: skip
