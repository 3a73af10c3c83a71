"""What a head set costs: the layers it keeps, and its share of the whole model's arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["TruncationCost", "truncation_cost"]


@dataclass(frozen=True, slots=True)
class TruncationCost:
    """Cost of one prompt on a model cut off after its deepest head.

    Attributes:
        depth: layers kept.
        layers: layers of the whole model.
        tokens: length of the prompt.
        flops: floating-point operations of the truncated pass.
        whole: operations of a pass through all layers, without a language-model head.
    """

    depth: int
    layers: int
    tokens: int
    flops: float
    whole: float

    @property
    def share(self) -> float:
        """Share of the whole model's operations, between 0 and 1."""
        return self.flops / self.whole

    def __str__(self) -> str:
        return f"{self.depth} of {self.layers} layers, {self.share:.0%} of the FLOPs at {self.tokens} tokens"


def truncation_cost(config: Any, *, layers: int, depth: int, tokens: int) -> TruncationCost:
    """Return the cost of reading heads down to `depth` layers.

    A layer costs 2 * parameters * N for its projections and MLP and 2 * N^2 * (heads * head_dim) for causal attention;
    of the deepest layer only q, k and v are computed. The few rows that are read add nothing that counts.

    Args:
        config: configuration of the model (Qwen3, Qwen2, Llama: hidden_size, num_attention_heads, …).
        layers: number of layers of the whole model.
        depth: layers kept.
        tokens: length of the prompt, N.

    Examples:
        >>> from types import SimpleNamespace
        >>> sizes = dict(hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8)
        >>> str(truncation_cost(SimpleNamespace(head_dim=128, **sizes), layers=28, depth=14, tokens=2000))
        '14 of 28 layers, 47% of the FLOPs at 2000 tokens'
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = hidden * heads * width, hidden * config.num_key_value_heads * width
    projections = queries + 2 * keys
    rest = queries + 3 * hidden * config.intermediate_size  # output projection and MLP
    layer = 2.0 * (projections + rest) * tokens + 2.0 * tokens**2 * heads * width
    flops = (depth - 1) * layer + 2.0 * projections * tokens
    return TruncationCost(depth, layers, tokens, flops, layers * layer)
