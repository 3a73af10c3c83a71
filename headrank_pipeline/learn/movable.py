"""Which weights move in training: low-rank updates of some or all projections, q and k whole, or all that matter."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from headrank_pipeline.learn.settings import MOVES, Moves
from headrank_pipeline.pipeline import require_extra

__all__ = [
    "LOW_RANK",
    "checkpointed_activations",
    "fold_lora",
    "load_movable",
    "movable_weights",
    "set_movable",
]

logger = logging.getLogger(__name__)

LOW_RANK = ("lora", "lora-all")

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")
# Some families norm q and k, and Phi-3 and Phi-4 keep q, k and v in one matrix.
_QUERY_KEY = re.compile(r"self_attn\.((q|k|query|key)_(proj|norm|layernorm)|qkv_proj)\.")
_AFTER_READING = re.compile(r"self_attn\.(v_proj|v_norm|o_proj|dense)\.")
_FINAL_NORM = re.compile(r"(norm|final_layernorm|final_norm)\.")


def set_movable(
    model: PreTrainedModel,
    moves: Moves,
    *,
    read: Collection[int] | None = None,
    lora_rank: int = 16,
    lora_alpha: float = 32.0,
    lora_dropout: float = 0.0,
) -> list[str]:
    """Make the chosen weights of a frozen, truncated model trainable, in float32, and return their names.

    The deepest layer contributes its input norm, q and k only: nothing after them is ever computed there, so its v, o
    and MLP and the final norm stay frozen whatever is chosen. Where a family keeps q, k and v in one matrix (Phi-3,
    Phi-4), that matrix moves, v with it.

    Args:
        model: a model as `attention.model.load` returns it; LoRA modules are put into it, and `fold_lora` takes them
            out again.
        moves: ``lora`` on q and k, ``lora-all`` on every projection that scores depend on, ``qk`` (the projections and
            norms of q and k, whole) of every layer, ``heads``: the same of the layers in `read` only, so that nothing
            is kept of the layers below the lowest of them, or ``all`` weights that scores depend on.
        read: layers whose heads are read, from 0; None for the deepest one.
        lora_rank: rank of the low-rank updates.
        lora_alpha: their scale is alpha / rank.
        lora_dropout: dropout on their input, while training.

    Raises:
        MissingPrerequisite: LoRA without peft.
        ValueError: an unknown choice, or a family without matrices of q and k where these are to move.
    """
    depth = int(model.config.num_hidden_layers)
    if moves not in MOVES:
        raise ValueError(f"moves {moves!r}: expected one of {', '.join(MOVES)}")
    if moves != "all":
        _check_projections(model, moves)
    if moves in LOW_RANK:
        _inject_lora(model, _targets(moves, depth), lora_rank, lora_alpha, lora_dropout)
    layers = frozenset(range(depth) if moves == "qk" else (depth - 1,) if read is None else read)
    chosen = []
    for name, weight in model.named_parameters():
        weight.requires_grad_(_moves(name, moves, layers, depth))
        if weight.requires_grad:
            weight.data = weight.data.float()
            chosen.append(name)
    return chosen


def _moves(name: str, moves: Moves, layers: Collection[int], depth: int) -> bool:
    place = _LAYER.search(name)
    if moves in LOW_RANK:
        return ".lora_" in name
    if moves in ("heads", "qk"):
        return place is not None and int(place[1]) in layers and _QUERY_KEY.match(place[2]) is not None
    if place is None:
        return _FINAL_NORM.match(name) is None  # embeddings move, the final norm is never reached
    if int(place[1]) < depth - 1:
        return True
    read = place[2].startswith("self_attn.") and _AFTER_READING.match(place[2]) is None
    return read or place[2].startswith("input_layernorm.")


def _check_projections(model: PreTrainedModel, moves: Moves) -> None:
    """Refuse families whose q and k do not each come from one matrix, before nothing would move."""
    layers: Any = model.get_submodule("layers")
    attention = layers[-1].self_attn
    if hasattr(attention, "qkv_proj"):
        logger.info("%s keeps q, k and v in one matrix: v moves with them", type(model).__name__)
    elif not (hasattr(attention, "q_proj") and hasattr(attention, "k_proj")):
        found = [name for name, module in attention.named_children() if isinstance(module, torch.nn.Linear)]
        raise ValueError(
            f"moves {moves!r}: a {type(model).__name__} has no q_proj and k_proj to move, its attention is made of "
            f"{', '.join(found)}; choose moves=all, or another model"
        )


def _targets(moves: Moves, depth: int) -> str:
    """Return the pattern of the projections that get low-rank updates; of the deepest layer only q and k count."""
    query_key = r".*layers\.\d+\.self_attn\.(q_proj|k_proj|qkv_proj)"
    if moves == "lora" or depth == 1:
        return query_key
    below = "|".join(map(str, range(depth - 1)))
    return rf"{query_key}|.*layers\.({below})\.(self_attn\.(v_proj|o_proj)|mlp\.\w+_proj)"


def _inject_lora(model: PreTrainedModel, targets: str, rank: int, alpha: float, dropout: float) -> None:
    require_extra("train", "LoRA (whole weights need no extra: moves 'qk' or 'all')", "peft")
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # a scale; peft annotates it as a whole number
        lora_dropout=dropout,
        target_modules=targets,
        bias="none",
    )
    LoraModel(model, config, "default")  # replaces the projections inside `model`


def fold_lora(model: PreTrainedModel) -> None:
    """Add the low-rank updates to the weights they belong to and remove the LoRA modules; the scores stay the same."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            assert isinstance(module, torch.nn.Module)
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model.requires_grad_(False)


def movable_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the trainable weights by name, as they are in the model (not copies)."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def load_movable(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Copy saved trainable weights into the model.

    Raises:
        ValueError: other names than the model's trainable ones.
    """
    present = movable_weights(model)
    if present.keys() != weights.keys():
        differ = sorted(present.keys() ^ weights.keys())
        raise ValueError(f"saved and present trainable weights differ in {differ[:3]}; was another choice trained?")
    with torch.no_grad():
        for name, weight in present.items():
            weight.copy_(weights[name])


@contextmanager
def checkpointed_activations(model: PreTrainedModel, *, enabled: bool = True) -> Iterator[None]:
    """Recompute the activations of every layer but the deepest in the backward pass, inside the block.

    Works on layers in training mode, through the seam that transformers' own switch uses (GradientCheckpointingLayer).

    The deepest layer ends the forward pass with an exception from inside, which a checkpoint must not see.
    """
    if not enabled:
        yield
        return
    layers: Any = model.get_submodule("layers")
    # Not the reentrant kind: it runs the layer without a graph first, and so cuts the tapped rows off.
    for layer in layers[:-1]:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False
