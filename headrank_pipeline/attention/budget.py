"""How many tokens fit into one forward pass: estimated from free memory beforehand, corrected when memory runs out.

The estimate counts the tensors that are alive at once where a layer holds the most of them (docs/performance.md has the
formula and what it comes to). It is meant to be a little too large; running out of memory costs a repeated batch.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

__all__ = [
    "BATCH_TOKENS",
    "TokenBudget",
    "batch_tokens_for",
    "bytes_per_token",
    "free_memory",
    "give_back_memory",
    "is_out_of_memory",
    "kept_bytes_per_token",
    "tokens_beside",
]

# Tokens of one forward pass, padding included. More fill a GPU better; a single longer prompt goes alone.
BATCH_TOKENS = 16384

# ``auto`` never asks for more: a GPU is busy long before, and a batch is what is lost when a run is interrupted.
_MOST_TOKENS = 65536
# Left to the allocator's fragmentation and to what else lives in the process.
_SHARE_USED = 0.8

TokenBudget = int | Literal["auto"]


def batch_tokens_for(
    budget: TokenBudget, config: Any, heads: int, dtype: torch.dtype, device: torch.device, *, reserved: int = 0
) -> int:
    """Return the padded tokens of one forward pass.

    Args:
        budget: a number, or ``auto`` for what the free memory of the device allows.
        config: the truncated model's.
        heads: number of heads read.
        dtype: type of the weights, which are loaded already.
        device: where they lie.
        reserved: what a passage cache may still fill of the free memory [bytes].

    Raises:
        ValueError: a budget below 1, another word than ``auto``, or ``auto`` where free memory cannot be told or is
            all reserved.
    """
    if budget == "auto":
        free = free_memory(device)
        fitting = int((_SHARE_USED * free - reserved) / bytes_per_token(config, heads, dtype))
        if reserved and fitting < 1:
            raise ValueError(
                f"batch_tokens auto: the passage cache may hold {reserved / 2**30:.1f} GiB more, {device} has "
                f"{free / 2**30:.1f} GiB free; let it hold less (passage_cache_memory)"
            )
        return max(1, min(_MOST_TOKENS, fitting))
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"batch_tokens {budget!r}: expected auto or a whole number of at least 1")
    return budget


def bytes_per_token(config: Any, heads: int, dtype: torch.dtype) -> int:
    """Return what one token of a batch takes at the pass's peak, weights left aside [bytes].

    The larger of the MLP's peak (residual, normalised input, gate, its activation, up, and their product) and that of
    the attention (residual, normalised input, queries three times while they are rotated, keys and values likewise,
    one more in float32 inside the norms), plus what is kept of it (`kept_bytes_per_token`).

    Args:
        config: hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim, num_hidden_layers.
        heads: number of heads read.
        dtype: type of weights and activations.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    mlp = 2 * config.hidden_size + 4 * config.intermediate_size
    attention = 2 * config.hidden_size + 3 * queries + 4 * keys
    exact = 4 * max(config.hidden_size, queries)
    return int(max(mlp, attention) * dtype.itemsize + exact) + kept_bytes_per_token(config, heads, dtype)


def kept_bytes_per_token(config: Any, heads: int, dtype: torch.dtype) -> int:
    """Return what is kept of a token after its pass, while more is asked about it [bytes]; arguments as above.

    The keys and values of all layers, for a content-free query or the question to isolated passages, and the readings:
    H float32 values, twice while they are put in order.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_key_value_heads * width * config.num_hidden_layers * dtype.itemsize + 2 * 4 * heads)


def tokens_beside(kept: int, room: int, config: Any, heads: int, dtype: torch.dtype) -> int:
    """Return the tokens of a pass over a part of `kept` tokens that are all to be kept.

    It takes no more memory than a pass of `room` tokens; at most `room`, and 1 where nothing is left.

    Examples:
        >>> from types import SimpleNamespace
        >>> config = SimpleNamespace(
        ...     hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        ...     num_hidden_layers=3,
        ... )
        >>> [tokens_beside(kept, 300, config, 4, torch.float32) for kept in (300, 800, 5000)]
        [300, 126, 1]
    """
    whole, keeping = bytes_per_token(config, heads, dtype), kept_bytes_per_token(config, heads, dtype)
    return max(1, min(room, (room * whole - kept * keeping) // (whole - keeping)))


def free_memory(device: torch.device) -> int:
    """Return how much memory could be allocated on a device [bytes]: a GPU's, or what Linux calls available.

    Raises:
        ValueError: it cannot be told.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "cpu" and Path("/proc/meminfo").is_file():
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        return min(1024 * int(lines["MemAvailable"].split()[0]), _left_in_control_group())
    raise ValueError(f"batch_tokens auto: free memory of device {device} cannot be told here; give a number of tokens")


def _left_in_control_group() -> int:
    """Return what a container's limit leaves, or a number beyond any memory where there is no limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        if Path(limit).is_file() and Path(used).is_file():
            allowed = Path(limit).read_text(encoding="ascii").strip()
            if allowed.isdigit():
                return max(0, int(allowed) - int(Path(used).read_text(encoding="ascii")))
    return 2**63


def give_back_memory() -> None:
    """Give freed memory of the CPU back to the system, where C's allocator can; else do nothing.

    glibc keeps it for what is allocated next. Passes differ in length, so the holes that one leaves seldom fit the
    tensors of the next, and a process grew with the number of passes (docs/long-lists.md).
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error)  # the CPU's allocator and oneDNN raise plain RuntimeErrors
    # Its code or its scratch space found no memory; what is not supported reads otherwise.
    if words in ("could not create a primitive", "could not execute a primitive"):
        return True
    return any(said in words for said in ("not enough memory", "can't allocate memory", "could not create a memory"))
