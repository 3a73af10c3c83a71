"""How replies are written: whether to think first, how long, greedy or sampled. No torch: servers are told the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Decoding", "Reasoning"]

_THINKING_TOKENS = 8192
_TOKENS_PER_IDENTIFIER = 6  # " > [20]" is 5 tokens of Qwen3's


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a reply is written; greedy unless a temperature is given.

    Args:
        temperature: 0 takes the likeliest token each time; the model's own generation settings never count.
        top_p: sample from the likeliest tokens that have this probability together.
        top_k: sample from this many tokens; 0 for all.
        seed: starts the sampling; the same batch of prompts gives the same replies.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature {self.temperature}: expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: expected more than 0 and at most 1")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: expected 0 (all tokens) or more")

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Whether to think, and how much may be written.

    Args:
        thinking: think before answering; None is off for a model in this process, and a server's own default.
        max_new_tokens: limit of a reply; None for what the identifiers of a window need, or 8192 with thinking.
    """

    thinking: bool | None = None
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {self.max_new_tokens}: expected at least 1")

    def limit(self, window_size: int) -> int:
        """Return the limit of a reply about a window."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return _TOKENS_PER_IDENTIFIER * window_size + 16 + (_THINKING_TOKENS if self.thinking else 0)
