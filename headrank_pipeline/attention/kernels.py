"""CPU kernels: large products through oneDNN, and causal attention in blocks of rows.

PyTorch multiplies float32 matrices on a CPU with MKL, which on AMD's processors with AVX-512 runs at about half the
speed of oneDNN; its attention kernel for CPUs is built on the same products, and gains nothing from bfloat16. Both come
with PyTorch, so the choice costs nothing but this module. Figures are in docs/performance.md.

Nothing of a model is replaced: `fast_products` is a block of code inside which `torch.nn.functional.linear` and causal
`scaled_dot_product_attention` go another way. Results differ from the stock kernels by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = [
    "bfloat16_products",
    "blockwise_causal_attention",
    "fast_products",
    "has_fast_products",
    "processor_maker",
]

# What torch.compile emits for a linear layer on a CPU.
_PRODUCT = "_linear_pointwise"

# oneDNN compiles a kernel for every new shape, about 1.5 ms. Smaller products (in multiply-adds) do not earn that back.
_WORTH_PRODUCT = 2**27
_WORTH_ATTENTION = 2**31

# Query rows of one head multiplied at once: more do not run faster, fewer waste less above the diagonal.
_BLOCK_ROWS = 128

# Row logits held at once: 32 MiB. Blocks become smaller beyond 32,768 tokens where two heads share a key.
_BLOCK_LOGITS = 2**23


def has_fast_products(device: torch.device) -> bool:
    """Return whether `fast_products` changes anything: on AMD's processors with AVX-512, if PyTorch has oneDNN.

    MKL is the faster one on Intel's, and on AMD's without AVX-512 (docs/performance.md); other makers' have not been
    measured.
    """
    available = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, _PRODUCT)
    return device.type == "cpu" and available and processor_maker() == "AuthenticAMD" and _has_avx512()


def _has_avx512() -> bool:
    return bool(torch.cpu._is_avx512_supported())


@cache
def processor_maker() -> str:
    """Return the vendor_id of the processor as Linux tells it (``AuthenticAMD``, ``GenuineIntel``), or ``unknown``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "unknown")


def bfloat16_products() -> str:
    """Return how this processor multiplies bfloat16: ``AMX``, ``AVX-512``, or ``converted`` where it cannot.

    The sums are float32 each time, in another order, so last digits of scores differ.
    """
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512" if torch.cpu._is_avx512_bf16_supported() else "converted"


def fast_products(device: torch.device, *, enabled: bool = True) -> AbstractContextManager[object]:
    """Return a block inside which large products of gradient-free forward passes on this device run faster.

    On other devices than the CPU, inside code that records gradients (oneDNN's product has none), and for products too
    small to be worth it, everything stays as it is.
    """
    return _FastProducts() if enabled and has_fast_products(device) else nullcontext()


class _FastProducts(TorchFunctionMode):
    """Sends linear layers and causal attention to the kernels of this module where they are worth it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            if func is F.linear and not kwargs and _is_worth_product(args[0], args[1]):
                return _product(*args)
            if func is F.scaled_dot_product_attention and _is_worth_attention(args, kwargs):
                return blockwise_causal_attention(*args, scaling=kwargs.get("scale"))
        return func(*args, **kwargs)


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs @ weight.T + bias from oneDNN."""
    result: Tensor = getattr(torch.ops.mkldnn, _PRODUCT)(inputs, weight, bias, "none", [], "")
    return result


def _is_worth_product(inputs: Tensor, weight: Tensor) -> bool:
    # bfloat16 goes to oneDNN anyway.
    return (
        inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == "cpu"
        and inputs.numel() * weight.shape[0] >= _WORTH_PRODUCT
    )


def _is_worth_attention(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    if len(args) != 3 or not kwargs.get("is_causal") or kwargs.get("attn_mask") is not None or kwargs.get("dropout_p"):
        return False
    query, key, value = args
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.float32, torch.bfloat16)
        and query.shape[2] == key.shape[2]
        and query.shape[3] == value.shape[3]
        and query.numel() * key.shape[2] >= _WORTH_ATTENTION
    )


def blockwise_causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None = None) -> Tensor:
    """Return causal attention computed block of rows by block of rows, keys beyond the block left out.

    Logits and softmax are float32 whatever the inputs are; the product with the values has the inputs' dtype, as in
    fused kernels, or float32 where oneDNN has no such product for this processor.

    Args:
        query: [B, A, T, D].
        key: [B, K, T, D]; query head a uses key head a // (A / K).
        value: [B, K, T, D].
        scaling: factor on q k^T; None for D ** -0.5.

    Returns:
        [B, A, T, D] in the dtype of `query`.

    Examples:
        >>> ones = torch.ones(1, 1, 2, 4)
        >>> blockwise_causal_attention(ones, ones, torch.arange(8.0).view(1, 1, 2, 4))[0, 0].tolist()
        [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0]]
    """
    batch, heads, length, width = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    scaling = width**-0.5 if scaling is None else scaling
    result = query.new_empty((batch, length, heads, width))  # the layout that the output projection wants
    above_diagonal = torch.ones(_BLOCK_ROWS, _BLOCK_ROWS, dtype=torch.bool).triu_(1)
    for b in range(batch):
        for h in range(key_heads):
            owned = slice(h * group, (h + 1) * group)
            queries = query[b, owned].float() * scaling
            keys, values = key[b, h].float().contiguous(), value[b, h].to(_factors(value.dtype)).contiguous()
            start = 0
            while start < length:
                rows = max(1, min(_BLOCK_ROWS, _BLOCK_LOGITS // (group * (start + _BLOCK_ROWS))))
                stop = min(length, start + rows)
                attention = _causal_rows(queries[:, start:stop], keys[:stop], above_diagonal).to(values.dtype)
                # A transposed view, never a slice of a transposed copy: oneDNN has no fast kernel for that one.
                block = _product(attention.flatten(0, 1), values[:stop].T)
                result[b, start:stop, owned] = block.view(group, stop - start, width).transpose(0, 1)
                start = stop
    return result.transpose(1, 2)


def _factors(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which numbers of a dtype are multiplied: oneDNN takes bfloat16 from AVX-512 on only."""
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.float32
    return dtype


def _causal_rows(queries: Tensor, keys: Tensor, above_diagonal: Tensor) -> Tensor:
    """Return [g, r, S]: the attention of the last r positions [g, r, D] of g heads to the S keys [S, D]."""
    group, rows, _ = queries.shape
    logits = _product(queries.flatten(0, 1), keys).view(group, rows, -1)
    logits[:, :, -rows:].masked_fill_(above_diagonal[:rows, :rows], float("-inf"))
    return torch.softmax(logits, dim=-1)
