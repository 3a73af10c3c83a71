"""Whether a model's family is read right: two short lists through the tap and through the family's own attention.

The tap hooks into stock transformers models (attention/tap.py), and families differ in what they do around the softmax:
sinks, caps on the logits, norms over all heads at once, attention functions of their own. A family that the tap would
misread shows it on forty tokens. So a model that was loaded reads them both ways, four short passes in all. Where
the readings agree, nothing more happens. Otherwise the shortcut that breaks them is left out, or, where the plain way
is wrong as well, the family is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from headrank_pipeline.attention.model import is_out_of_memory
from headrank_pipeline.attention.prompt import Prompt

__all__ = ["Reading", "check_isolated", "own_attention", "shortcuts_to_leave_out"]

logger = logging.getLogger(__name__)

# Names of shortcuts that are off, lists of one prompt or two -> the attention [H, N] of each prompt.
Reading = Callable[[Collection[str], Sequence[tuple[Prompt, ...]]], Sequence[tuple[Tensor, ...]]]

# What a shortcut of `reader.SHORTCUTS` needs beside it; the first way has none of them.
_NEEDS = {"spared_deepest": ("early_exit",), "shared_prefix": (), "early_exit": ()}

# Half the sum of differences, the mean over a layer's heads: attention that another function made is tenths off.
# Rounding adds up over the layers, and in half precision a head that is torn between two tokens may turn.
_ROUNDING, _ROUNDING_OF_HALVES = 1e-4, 0.1

_FAILURES = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError)

_left_out: WeakKeyDictionary[PreTrainedModel, tuple[str, ...]] = WeakKeyDictionary()
_isolated: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def shortcuts_to_leave_out(
    model: PreTrainedModel, heads: Sequence[tuple[int, int]], read: Reading, *, name: str
) -> tuple[str, ...]:
    """Return which of `reader.SHORTCUTS` would give other readings with this model; decided once per model.

    Args:
        model: truncated, as `attention.model.load` returns it.
        heads: the (layer, head) of each of the H rows that `read` returns.
        read: reads prompts with some shortcuts off.
        name: name of the model, for messages.

    Raises:
        ValueError: a family whose attention the tap does not read right, with what was found.
    """
    if model.device.type == "meta":  # it has no values
        return ()
    if model not in _left_out:
        _left_out[model] = _broken(model, heads, read, name)
    return _left_out[model]


def _broken(model: PreTrainedModel, heads: Sequence[tuple[int, int]], read: Reading, name: str) -> tuple[str, ...]:
    lists = _canary_lists(_vocabulary(model))
    own = [own_attention(model, prompts, name=name) for prompts in zip(*lists, strict=True)]
    expected = [tuple(_of_heads(rows.mean(2), heads) for rows in prompts) for prompts in zip(*own, strict=True)]

    def wrong(off: Collection[str]) -> str:
        return _wrong(model, heads, lambda: read(off, lists), expected)

    if not (problem := wrong(())):
        return ()
    if reason := wrong(tuple(_NEEDS)):
        raise _refusal(model, name, reason)
    broken = tuple(
        shortcut for shortcut, needed in _NEEDS.items() if wrong([s for s in _NEEDS if s not in (shortcut, *needed)])
    )
    if not broken or wrong(broken):
        broken = tuple(_NEEDS)
    logger.info("%s (%s) is read without %s: %s", name, type(model).__name__, ", ".join(broken), problem)
    return broken


def check_isolated(
    model: PreTrainedModel, heads: Sequence[tuple[int, int]], read: Callable[[Prompt], Tensor], *, name: str
) -> None:
    """Refuse isolated passages where a family does not read them right; decided once per model.

    Args:
        model: the same as in `shortcuts_to_leave_out`.
        heads: likewise.
        read: reads a prompt with isolated passages.
        name: name of the model, for messages.

    Raises:
        ValueError: what was found.
    """
    if model.device.type == "meta":
        return
    if model not in _isolated:
        _isolated[model] = ""  # `read` comes here again
        prompt = _isolated_prompt(_vocabulary(model))
        training = model.training
        # The first list may be one of a training: its dropout and autocast are no fault of the family.
        model.train(False)
        try:
            with torch.autocast(model.device.type, enabled=False):
                (own,) = own_attention(model, [prompt], name=name)
                expected = [(_of_heads(own.mean(2), heads),)]
                _isolated[model] = _wrong(model, heads, lambda: [(read(prompt),)], expected)
        finally:
            model.train(training)
    if reason := _isolated[model]:
        raise ValueError(
            f"model {name}: isolated passages are not read right with a {type(model).__name__} ({reason}); leave them "
            f"causal (passages='causal')"
        )


# ------------------------------------------------------------------------------------------------------- what is read


def _canary_lists(vocabulary: int) -> list[tuple[Prompt, Prompt]]:
    """Return two lists of different lengths, each asked two questions, of token numbers below `vocabulary`."""
    lists = []
    for first, passages in ((0, 3), (100, 2)):
        spans = np.array([[4 + 8 * place, 12 + 8 * place] for place in range(passages)])
        context = _tokens(first, 4 + 8 * passages, vocabulary)
        questions = [_tokens(first + 40, 12, vocabulary), _tokens(first + 60, 7, vocabulary)]
        first_list = [
            _prompt(np.concatenate([context, question]), spans, prefix=len(context)) for question in questions
        ]
        lists.append((first_list[0], first_list[1]))
    return lists


def _isolated_prompt(vocabulary: int) -> Prompt:
    boundaries = np.array([4, 12, 18, 28])
    spans = np.stack([boundaries[:-1], boundaries[1:]], axis=1)
    return _prompt(_tokens(0, 40, vocabulary), spans, prefix=28, boundaries=boundaries)


def _prompt(ids: np.ndarray, spans: np.ndarray, *, prefix: int, boundaries: np.ndarray | None = None) -> Prompt:
    return Prompt(ids, spans, (prefix, len(ids)), prefix, {}, (), "", boundaries)


def _tokens(first: int, count: int, vocabulary: int) -> np.ndarray:
    """Return token numbers that lie far from each other."""
    return (np.arange(first, first + count, dtype=np.int64) * 7919 + 11) % vocabulary


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]  # of every decoder's


# ------------------------------------------------------------------------------------------------- how it should look


def own_attention(model: PreTrainedModel, prompts: Sequence[Prompt], *, name: str) -> list[Tensor]:
    """Return what the rows of each prompt attend to by the family's own eager attention, which holds N x N values.

    Args:
        model: any depth.
        prompts: causal ones, padded right and read in one pass, or a single one with isolated passages, whose mask and
            positions isolate them.
        name: name of the model, for messages.

    Returns:
        One [L, A, R, N] float32 tensor per prompt.

    Raises:
        ValueError: a family that does not show it.
    """
    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(prompt.token_ids) for prompt in prompts], batch_first=True)
    isolated = [prompt for prompt in prompts if prompt.boundaries is not None]
    mask, positions = _isolation(isolated[0], model.dtype) if isolated else (None, None)
    attention = _eager(model, name, ids, mask=mask, positions=positions)
    if bool((attention.triu(1) > 0).any()):  # padding would be seen, and what a pass shares would not be the same
        raise _refusal(model, name, "tokens look at later ones")
    return [
        attention[:, b, :, slice(*prompt.rows), : len(prompt)]
        for b, prompt in enumerate(prompts)
    ]  # fmt: skip


def _isolation(prompt: Prompt, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the mask [1, 1, N, N] that is added to the logits, and the positions [1, N], of isolated passages."""
    assert prompt.boundaries is not None
    opening, *ends = prompt.boundaries.tolist()
    length, question = len(prompt), prompt.boundaries[-1]
    visible, positions = np.tril(np.ones((length, length), dtype=bool)), np.arange(length)
    for start, end in zip([opening, *ends], ends, strict=False):
        visible[start:end, opening:start] = False
        positions[start:end] = opening + np.arange(end - start)
    positions[question:] = opening + np.diff(prompt.boundaries).max(initial=0) + np.arange(length - question)
    mask = torch.zeros((1, 1, length, length), dtype=dtype)
    mask.masked_fill_(~torch.from_numpy(visible), torch.finfo(dtype).min)
    return mask, torch.from_numpy(positions)[None]


def _eager(
    model: PreTrainedModel, name: str, ids: Tensor, *, mask: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    """Return [L, B, A, T, T], what the model itself attends to in one pass over tokens [B, T].

    Raises:
        ValueError: a family that does not show it.
    """
    given = {"attention_mask": mask, "position_ids": positions}
    placed = {key: value.to(model.device) for key, value in given.items() if value is not None}
    try:
        with _own_implementation(model), torch.inference_mode():
            output = model(input_ids=ids.to(model.device), output_attentions=True, use_cache=False, **placed)
        shown = [layer for layer in output.attentions or () if layer is not None]
        if len(shown) != model.config.num_hidden_layers:
            raise ValueError(f"it shows the attention of {len(shown)} of {model.config.num_hidden_layers} layers")
        return torch.stack([layer.float() for layer in shown])
    except _FAILURES as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise _refusal(model, name, f"its own attention cannot be looked at: {_first_line(error)}") from error


@contextmanager
def _own_implementation(model: PreTrainedModel) -> Iterator[None]:
    """Let the model attend by its own plain code inside the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _of_heads(attention: Tensor, heads: Sequence[tuple[int, int]]) -> Tensor:
    """Return [H, N] of [L, A, N]."""
    layers, places = zip(*heads, strict=True)
    return attention[list(layers), list(places)]


# --------------------------------------------------------------------------------------------------------- judgement


def _wrong(
    model: PreTrainedModel,
    heads: Sequence[tuple[int, int]],
    read: Callable[[], Sequence[tuple[Tensor, ...]]],
    expected: Sequence[tuple[Tensor, ...]],
) -> str:
    """Return what is wrong with a way of reading, or nothing."""
    try:
        readings = read()
    except _FAILURES as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {_first_line(error)}"
    apart = max(
        _apart(mine, own, heads)
        for some, others in zip(readings, expected, strict=True)
        for mine, own in zip(some, others, strict=True)
    )
    allowed = _ROUNDING if model.dtype == torch.float32 else _ROUNDING_OF_HALVES
    return f"{apart:.2g} of its attention is elsewhere" if apart > allowed else ""


def _apart(mine: Tensor, own: Tensor, heads: Sequence[tuple[int, int]]) -> float:
    """Return the share of attention [H, N] that lies elsewhere, mean over the heads of the layer that is worst.

    What is not finite is no matter of the family: queries that meet it fail.
    """
    apart = torch.nan_to_num((mine - own).abs(), nan=0.0, posinf=0.0).sum(1) / 2
    places: dict[int, list[int]] = {}
    for place, (layer, _) in enumerate(heads):
        places.setdefault(layer, []).append(place)
    return max(float(apart[place].mean()) for place in places.values())


def _refusal(model: PreTrainedModel, name: str, reason: str) -> ValueError:
    return ValueError(
        f"model {name}: the attention of a {type(model).__name__} is not read right here ({reason}); choose a family "
        f"of docs/models.md, such as Qwen3, Qwen2 or Llama"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".")
