"""The flags of the baselines: rankgpt, first-token, qwen3-reranker, none of which reads heads."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from headrank_pipeline.pipeline import Reranker

__all__ = ["BASELINES", "BASELINE_FLAGS", "BASELINE_OPTIONS", "load_baseline", "refuse_flags"]

# --system NAME -> (module, function), as SYSTEMS of headrank_pipeline.cli.reranking.
BASELINES = {
    "rankgpt": ("headrank_pipeline.rerank.baselines.rankgpt", "rankgpt"),
    "first-token": ("headrank_pipeline.rerank.baselines.first_token", "first_token"),
    "qwen3-reranker": ("headrank_pipeline.rerank.baselines.pointwise", "qwen3_reranker"),
}

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


def load_baseline(system: str, model: str, given: Mapping[str, Any], *, offline: bool) -> Reranker:
    """Return a baseline; options that it does not have are refused by itself.

    Args:
        system: a key of `BASELINES`.
        model: folder, Hugging Face name, or the name that an endpoint knows.
        given: option -> value; None where a flag was not given.
        offline: whether sockets are forbidden.
    """
    options = {name: value for name, value in given.items() if value is not None}
    if options.pop("heads", None) is not None:
        raise click.UsageError(f"--heads belongs to systems that read attention heads; {system} reads none")
    for name in ("device", "dtype"):
        if options.get(name) == "auto":  # the flag's default, which an endpoint has no use for
            del options[name]
    if offline and "endpoint" in options:
        raise click.UsageError("--endpoint opens a socket, which --offline forbids; leave one of them out")
    module, name = BASELINES[system]
    reranker: Reranker = getattr(importlib.import_module(module), name)(model, **options)
    return reranker


def refuse_flags(system: str, given: Mapping[str, Any]) -> None:
    """Refuse the flags of baselines with another system, where they would change nothing."""
    if wrong := [name for name, value in given.items() if value is not None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise click.UsageError(f"{flags}: {system} has no such option; it belongs to {', '.join(BASELINES)}")
