"""The tap: an attention function for stock transformers models that also reads chosen rows of chosen heads.

Transformers hands its attention functions q and k after QK-norm and RoPE, so nothing of a model is copied here. The
function registered as `IMPLEMENTATION` runs SDPA as usual and, where a `Tap` comes along as a keyword of the model's
forward, rebuilds the attention of a few rows from q and k in float32 and reduces it at once to one value per key.
Nothing of size N x N is ever stored.

The mask function is registered under the same name: without it transformers passes no mask at all and nothing warns.

Of the deepest layer only its keys and the queries of the rows count. `spared_deepest_layer` runs the layer's own
attention module twice with some of its projections left out: once on the row tokens for their queries, once on all
tokens for the keys. Norms, biases and rotary positions stay the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = [
    "IMPLEMENTATION",
    "LEAST_SHARE",
    "DeepestLayerRead",
    "Past",
    "Tap",
    "bfloat16_products",
    "blockwise_causal_attention",
    "fast_products",
    "has_fast_products",
    "has_flash_attention",
    "mean_attention",
    "processor_maker",
    "register",
    "spared_deepest_layer",
    "to_device",
]

IMPLEMENTATION = "headrank_tap"

# (layer, key, value) of a pass's own tokens, [B, K, T, D] each -> the same with earlier tokens put before them. At the
# deepest layer only the key counts. Not a transformers cache: layers that recompute activations drop theirs.
Past = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

# Keywords by which a family changes its softmax, and what they mean. Neither SDPA nor the tap knows of them.
_CHANGES_SOFTMAX = {"softcap": "caps its logits", "s_aux": "has attention sinks", "position_bias": "adds a bias"}

# Row logits held at once: 2**24 float32 values are 64 MiB. Long queries (ArguAna) are read in chunks of rows.
_MAX_LOGITS = 2**24


class DeepestLayerRead(Exception):
    """Ends a forward pass inside the deepest tapped layer: its output, its MLP and the final norm are not needed."""


@dataclass
class Tap:
    """What to read during one forward pass, and what was read.

    Args:
        heads: layer -> query heads to read there, [h] int64.
        stop_at: the deepest layer; the forward pass ends there by raising `DeepestLayerRead`. None: it runs to the end.
        rows: [B, R] int64, positions of the row tokens among this pass's tokens, padded with any valid position.
        weights: [B, G, R] float32, how much each row counts in each of G groups; a mean has 1/|Q| on its rows. G is 1,
            or the number of queries that share the passages. None: this pass reads nothing (it only fills a cache).
        owners: [B, S] int64, the passage that each key belongs to, -1 for none; the softmax is normalised over those of
            passages. None: over all keys.
        passages: how many of them there are, where rows are put together by the geometric mean (`mean_attention`);
            None: by the mean.
        past: sees every layer's keys and values, and extends them; None: this pass's tokens see each other only.

    Attributes:
        read: layer -> [B, G, h, S] float32, mean attention of the rows to each key.
    """

    heads: Mapping[int, Tensor]
    stop_at: int | None
    rows: Tensor | None = None
    weights: Tensor | None = None
    owners: Tensor | None = None
    passages: int | None = None
    past: Past | None = None
    read: dict[int, Tensor] = field(default_factory=dict)

    def see(self, layer: int, queries: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        """Note the attention of the rows at one layer; queries [B, A, R, D] are theirs."""
        assert self.rows is not None
        assert self.weights is not None
        with torch.autocast(key.device.type, enabled=False):  # training's autocast would undo the float32
            self.read[layer] = mean_attention(
                queries, key, self.heads[layer], self.rows, self.weights,
                mask=mask, owners=self.owners, scaling=scaling, passages=self.passages,
            )  # fmt: skip


@dataclass
class _RowQueries:
    """Stands in for a tap where only queries are wanted: [B, A, R, D] of the tokens that the layer was given."""

    found: Tensor | None = None


def register() -> None:
    """Register the tap and its mask with transformers; may be called again."""
    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tap: Tap | _RowQueries | None = None,
    row_queries: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA attention that reads on the way: query [B, A, T, D], key and value [B, K, S, D].

    Raises:
        ValueError: a family whose softmax is another.
    """
    for name, meaning in _CHANGES_SOFTMAX.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} {meaning}")
    if isinstance(tap, _RowQueries):
        tap.found = query
        raise DeepestLayerRead
    if tap is not None:
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if tap.past is not None:
            key, value = tap.past(layer, key, value)
        if layer in tap.heads and tap.rows is not None:
            queries = _at_rows(query, tap.rows) if row_queries is None else row_queries
            tap.see(layer, queries, key, attention_mask, float(kwargs["scaling"]))
        if layer == tap.stop_at:
            raise DeepestLayerRead
        if attention_mask is not None:
            dropout, scaling = float(kwargs["dropout"]), float(kwargs["scaling"])
            return _grouped_attention(query, key, value, attention_mask, dropout=dropout, scaling=scaling), None
    if attention_mask is None and _shares_keys_without_a_kernel(query, key):
        dropout, scaling = float(kwargs["dropout"]), float(kwargs["scaling"])
        return _repeated_attention(query, key, value, dropout=dropout, scaling=scaling), None
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output, None


def _shares_keys_without_a_kernel(query: Tensor, key: Tensor) -> bool:
    """Return whether query heads that share keys would be multiplied out, N x N logits for each, and nothing warns.

    Of a GPU's fused kernels for causal attention flash takes shared keys and no float32, the memory-efficient one
    float32 and (up to PyTorch 2.13) no shared keys. A CPU's takes both. Autocast makes bfloat16 of float32.
    """
    whole = query.shape[2] == key.shape[2]  # not a token after cached ones
    if query.device.type == "cpu" or not whole or query.shape[1] == key.shape[1]:
        return False
    exact = query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type)
    return exact or not has_flash_attention(query.device)


@cache
def has_flash_attention(device: torch.device) -> bool:
    """Return whether a GPU is of Ampere or later, which flash attention needs, and any fused kernel for bfloat16."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _repeated_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float) -> Tensor:
    """Return causal SDPA [B, T, A, D] of as many queries as keys, with a copy of these for each query head."""
    group = query.shape[1] // key.shape[1]
    key, value = (shared.repeat_interleave(group, dim=1) for shared in (key, value))
    output = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).contiguous()


def _grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, dropout: float, scaling: float
) -> Tensor:
    """Return masked SDPA [B, T, A, D] without a copy of all keys and values for each query head that shares them.

    With a mask transformers repeats them. Here the query heads of a key head become rows of one head: for the few rows
    of a question that look back at all passages, copying was most of the time.
    """
    batch, query_heads, tokens, width = query.shape
    group = query_heads // key.shape[1]
    rows = query.reshape(batch, key.shape[1], group * tokens, width)
    output = F.scaled_dot_product_attention(
        rows, key, value, attn_mask=mask.repeat(1, 1, group, 1), dropout_p=dropout, scale=scaling
    )
    return output.reshape(batch, query_heads, tokens, value.shape[-1]).transpose(1, 2).contiguous()


@contextmanager
def spared_deepest_layer(model: PreTrainedModel, tap: Tap) -> Iterator[None]:
    """Inside the block, compute of the layer `tap.stop_at` only its keys and the queries of the rows.

    Models whose attention has no projections `q_proj`, `k_proj` and `v_proj` of its own run the layer as it is.
    """
    layers: Any = model.get_submodule("layers")
    attention = None if tap.stop_at is None else layers[tap.stop_at].self_attn
    if attention is None or not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")):
        yield
        return

    def read_sparingly(module: Any, positional: tuple[Any, ...], given: dict[str, Any]) -> None:
        running = given.get("tap")  # not `tap`: another thread's pass over this model may be in its block, too
        if running is None:
            return
        queries = None if running.rows is None else _row_queries(module, running.rows, given)
        _without(module, "q_proj", "v_proj").forward(*positional, **given, row_queries=queries)

    # A hook, so that modules keep their names: LoRA and checkpoints know the projections by them.
    handle = attention.register_forward_pre_hook(read_sparingly, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _row_queries(attention: Any, rows: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return [B, A, R, D], the queries of rows [B, R], after norm and rotation; `given` is what the layer passes."""
    hidden, (cos, sin) = given["hidden_states"], given["position_embeddings"]
    spread = (len(rows), -1, -1)  # positions are shared by all prompts unless they are given
    caught = _RowQueries()
    with suppress(DeepestLayerRead):
        _without(attention, "k_proj", "v_proj").forward(
            hidden_states=_rows_of(hidden, rows),
            position_embeddings=(_rows_of(cos.expand(spread), rows), _rows_of(sin.expand(spread), rows)),
            attention_mask=None,
            tap=caught,
        )
    assert caught.found is not None
    return caught.found


def _without(attention: Any, *projections: str) -> Any:
    """Return the attention module with some projections replaced by one that returns a single head of zeros.

    A shallow copy, made for one call: whatever the model's modules have become since (LoRA) is in it.
    """

    def nothing(hidden: Tensor) -> Tensor:
        return hidden.new_zeros(1).expand(*hidden.shape[:-1], attention.head_dim)

    spared = copy.copy(attention)
    vars(spared).update(dict.fromkeys(projections, nothing))  # found before the registered modules are
    return spared


def _rows_of(tokens: Tensor, rows: Tensor) -> Tensor:
    """Return [B, R, W] of [B, T, W] at rows [B, R]."""
    return tokens.gather(1, rows[..., None].expand(-1, -1, tokens.shape[-1]))


def _at_rows(query: Tensor, rows: Tensor) -> Tensor:
    """Return [B, A, R, D] of [B, A, T, D] at rows [B, R]."""
    batch, heads, _, width = query.shape
    return query.gather(2, rows[:, None, :, None].expand(batch, heads, rows.shape[1], width))


def mean_attention(
    queries: Tensor,
    key: Tensor,
    heads: Tensor,
    rows: Tensor,
    weights: Tensor,
    *,
    mask: Tensor | None,
    owners: Tensor | None,
    scaling: float,
    passages: int | None = None,
) -> Tensor:
    """Return the mean over rows of softmax(q k^T) for some heads, in float32 whatever the inputs are.

    Args:
        queries: [B, A, R, D] of the rows, after QK-norm and RoPE.
        key: [B, K, S, D], not repeated; query head a uses key head a // (A / K).
        heads: [h] int64 on the CPU, query heads.
        rows: [B, R] int64, their positions among this pass's tokens.
        weights: [B, G, R] float32.
        mask: [B or 1, 1, T, S] bool, True where a row may look, or None for plain causal attention with T = S.
        owners: [B, S] int64, the passage of each key; the softmax is normalised over keys from 0 on only. None: over
            all visible keys.
        scaling: factor on q k^T, usually D ** -0.5.
        passages: number of passages in each prompt, padded: the sum over a passage's keys is the geometric mean of its
            shares in the rows, scaled to sum to 1 over passages; keys divide it as they divide the shares. Needs
            owners. None: the mean.

    Returns:
        [B, G, h, S] float32; with owners, a row that sees no passage contributes nothing. NaN at keys that are not
        finite.
    """
    batch, query_heads = queries.shape[:2]
    key_heads, keys = key.shape[1], key.shape[2]
    result = key.new_zeros((batch, weights.shape[1], len(heads), keys), dtype=torch.float32)
    collected = None if passages is None else _Passages.of(owners, passages, weights, len(heads))
    row_queries = queries.float() * scaling  # scaled first: half-precision products overflow (QRHead PR 3)
    key_head = heads // (query_heads // key_heads)  # on the host, like `heads`: asking a device would mean waiting
    for owner in sorted(set(key_head.tolist())):
        places = (key_head == owner).nonzero()[:, 0]
        mine = to_device(places, key.device)
        head_queries = row_queries.index_select(1, to_device(heads[places], key.device))
        head_keys = key[:, owner, None].float()
        broken = ~torch.isfinite(head_keys).all(-1)[:, :, None]  # [B, 1, 1, S]
        step = max(1, _MAX_LOGITS // (batch * len(places) * keys))
        for start in range(0, rows.shape[1], step):
            part = slice(start, start + step)
            visible = _visible(rows[:, part], keys, mask, owners)  # [B, r, S]
            logits = head_queries[:, :, part] @ head_keys.transpose(2, 3)  # [B, m, r, S]
            logits = logits.masked_fill(~visible[:, None], float("-inf"))
            attention = torch.softmax(logits, dim=-1)
            if owners is not None:  # a row without any visible column is 0/0
                attention = attention.masked_fill(~visible.any(-1)[:, None, :, None], 0.0)
            if collected is not None:
                attention = collected.within(attention, weights[:, :, part], mine)
            result[:, :, mine] += torch.einsum("bgr,bmrs->bgms", weights[:, :, part], attention)
        # A product of minus infinity would be no attention, as if the token were not looked at.
        broken = broken if owners is None else broken & (owners >= 0)[:, None, None]
        result[:, :, mine] += torch.zeros_like(broken, dtype=torch.float32).masked_fill(broken, float("nan"))
    return result if collected is None else result * collected.shares()


# A passage's share below this counts as this where logarithms are taken: one row, or one head, that sees nothing of a
# passage must not decide alone.
LEAST_SHARE = 1e-6


@dataclass
class _Passages:
    """Collects, chunk of rows by chunk of rows, the mean logarithm of every passage's share in a row.

    Attributes:
        places: [B, 1, 1, S] int64, the passage of each key; one past the last for none.
        logs: [B, G, h, P + 1] float32, the mean so far; minus infinity for a passage without keys.
    """

    places: Tensor
    logs: Tensor

    @classmethod
    def of(cls, owners: Tensor | None, passages: int, weights: Tensor, heads: int) -> _Passages:
        assert owners is not None
        places = torch.where(owners < 0, passages, owners)[:, None, None]
        missing = torch.ones((len(owners), 1, 1, passages + 1), dtype=torch.bool, device=owners.device)
        logs = weights.new_zeros((len(owners), weights.shape[1], heads, passages + 1))
        return cls(places, logs.masked_fill(missing.scatter(3, places, False), float("-inf")))

    def within(self, attention: Tensor, weights: Tensor, heads: Tensor) -> Tensor:
        """Note the shares of a chunk of rows [B, m, r, S]; return it divided by each key's passage's share."""
        places = self.places.expand(attention.shape)
        shares = attention.new_zeros((*attention.shape[:3], self.logs.shape[-1])).scatter_add(3, places, attention)
        logs = shares.clamp_min(LEAST_SHARE).log()
        self.logs[:, :, heads] += torch.einsum("bgr,bmrp->bgmp", weights, logs)
        return attention / shares.clamp_min(torch.finfo(shares.dtype).tiny).gather(3, places)

    def shares(self) -> Tensor:
        """Return [B, G, h, S]: the scaled geometric mean of each key's passage."""
        means = F.pad(torch.softmax(self.logs[..., :-1], -1), (0, 1))
        return means.gather(3, self.places.expand(*means.shape[:3], -1))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device without waiting for what the device is still busy with.

    A GPU copies pinned memory when it comes to it; from any other memory Python would wait until it has.
    """
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


def _visible(rows: Tensor, keys: int, mask: Tensor | None, owners: Tensor | None) -> Tensor:
    """Return [B, r, S] bool: the keys over which each row's softmax runs."""
    if mask is None:
        visible = torch.arange(keys, device=rows.device) <= rows[..., None]
    else:
        at = rows[..., None].expand(*rows.shape, keys)
        visible = mask[:, 0].expand(rows.shape[0], -1, -1).gather(1, at)
    return visible if owners is None else visible & (owners >= 0)[:, None]


# ---------------------------------------------------------------------------------------------------------- CPU kernels
#
# PyTorch multiplies float32 matrices on a CPU with MKL, which on AMD's processors with AVX-512 runs at about half the
# speed of oneDNN; its attention kernel for CPUs is built on the same products, and gains nothing from bfloat16. Both
# come with PyTorch, so the choice costs nothing but these lines (docs/performance.md has figures).
#
# Nothing of a model is replaced: `fast_products` is a block of code inside which `torch.nn.functional.linear` and
# causal `scaled_dot_product_attention` go another way. Results differ from the stock kernels by rounding only.


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
