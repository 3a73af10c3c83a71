"""A context that is read once, then questions on its keys: isolated passages, and two queries after the same prompt.

A context is an opening and the pieces that follow it. Every piece starts at the position after the opening and sees the
opening and itself only; the questions start after the longest piece, see all of them, and do not see each other.

- Isolated passages: each passage is a piece. Its keys and values depend on neither its neighbours nor the query, scores
  do not depend on the order of candidates, and the cost is linear in their number. Inspired by BlockRank (arXiv
  2510.05396) and CompRank (arXiv 2606.11700); the layout is ours (docs/method.md).
- Calibration of causal prompts: everything before the query is one piece, and the query and the content-free query are
  the questions (`with_shared_prefix`).

Pieces run as batches of short rows, each distinct one once; per layer their keys and values are kept without padding
for the questions' pass, and from query to query where the reader has a cache. Everything follows the caller's gradient
mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headrank_pipeline.attention.passage_cache import KeyValues, PassageCache, entry_name
from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.recipe import Support
from headrank_pipeline.attention.tap import to_device

if TYPE_CHECKING:
    from headrank_pipeline.attention.reader import AttentionReader

__all__ = ["cached_passages", "read_contexts", "shared_prefix", "with_shared_prefix"]


def with_shared_prefix(first: Prompt, second: Prompt) -> list[Prompt]:
    """Return two causal prompts as questions on what both begin with, be it nothing."""
    boundaries = np.array([0, shared_prefix(first, second)])
    return [replace(prompt, boundaries=boundaries) for prompt in (first, second)]


def shared_prefix(first: Prompt, second: Prompt) -> int:
    """Return how many leading tokens both prompts have in common, before the rows of either."""
    limit = min(first.prefix, second.prefix)
    differ = np.flatnonzero(first.token_ids[:limit] != second.token_ids[:limit])
    return int(differ[0]) if len(differ) else limit


def read_contexts(
    reader: AttentionReader, lists: Sequence[Sequence[Prompt]], *, support: Support, kept: bool = True
) -> list[list[Tensor]]:
    """Return the attention of each prompt's row tokens to its tokens.

    Args:
        reader: runs the passes; `reader.row_tokens` bounds the padded passage tokens in each.
        lists: the G prompts of each list ask different queries of the same passages (query and content-free query).
        support: over what the softmax runs and how rows are averaged, as `ScoringRule` says.
        kept: pieces are looked for in the reader's cache, and kept there.

    Returns:
        For each list G tensors [H, N] float32 in prompt order, whatever order the keys are held in.

    Raises:
        ValueError: prompts that were not built with isolated passages, or do not share their opening, or prompts of
            one list that do not share their passages.
    """
    contexts = [_Context.of(prompts) for prompts in lists]
    if not contexts:
        return []
    opening = contexts[0].opening
    if any(not np.array_equal(context.opening, opening) for context in contexts):
        raise ValueError("prompts with isolated passages differ in their opening; read those of each template apart")
    nothing = np.zeros(0, dtype=np.int64)
    cache = reader.passage_cache if kept and not torch.is_grad_enabled() else None  # gradients end at kept keys
    before = _keys(reader, cache, nothing, None, [opening]).get(opening.tobytes())
    distinct = {passage.tobytes(): passage for context in contexts for passage in context.passages}
    keys = _keys(reader, cache, opening, before, sorted(distinct.values(), key=_by_length))
    rows = [[keys[passage.tobytes()] for passage in context.in_key_order()] for context in contexts]
    if before is not None:
        rows = [[before, *row] for row in rows]
    look_back = _LookBack(rows, max(map(len, contexts)), reader.depth - 1)
    return _ask(reader, lists, contexts, look_back, support)


@dataclass(frozen=True)
class _Context:
    """What comes before the question of one list.

    Attributes:
        opening: [o] int64 token ids.
        passages: token ids of each passage, in prompt order.
        order: order of `passages` in the keys: by length, then by tokens, so that sums over keys do not depend on the
            order of candidates even in the last bit.
    """

    opening: np.ndarray
    passages: list[np.ndarray]
    order: list[int]

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> _Context:
        first = prompts[0]
        for prompt in prompts:
            if prompt.boundaries is None:
                raise ValueError("a causal prompt among prompts with isolated passages; read each layout apart")
            if not np.array_equal(
                prompt.token_ids[: _question_start(prompt)], first.token_ids[: _question_start(first)]
            ):
                raise ValueError("prompts of one list differ before their questions; build the second by with_query")
        assert first.boundaries is not None
        opening, *passages = np.split(first.token_ids[: _question_start(first)], first.boundaries[:-1])
        return cls(opening, passages, sorted(range(len(passages)), key=lambda place: _by_length(passages[place])))

    def __len__(self) -> int:
        return len(self.opening) + sum(map(len, self.passages))

    @property
    def first_position(self) -> int:
        """Position of the question's first token."""
        return len(self.opening) + max(map(len, self.passages), default=0)

    def in_key_order(self) -> list[np.ndarray]:
        """Return the passages that have tokens, in the order of their keys."""
        return [self.passages[place] for place in self.order if len(self.passages[place])]

    def key_of_token(self) -> np.ndarray:
        """Return [n] int64: the key of each token before the question, in prompt order."""
        runs, start = [np.arange(0)] * len(self.passages), len(self.opening)
        for place in self.order:
            runs[place] = _run(start, len(self.passages[place]))
            start += len(self.passages[place])
        return _joined([_run(0, len(self.opening)), *runs])


def _question_start(prompt: Prompt) -> int:
    """Return the index of the question's first token."""
    assert prompt.boundaries is not None
    return int(prompt.boundaries[-1])


def _by_length(passage: np.ndarray) -> tuple[int, bytes]:
    return -len(passage), passage.tobytes()


def _run(start: int, length: int) -> np.ndarray:
    return np.arange(start, start + length)


def _joined(runs: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(runs).astype(np.int64)


# ------------------------------------------------------------------------------------------------ opening and passages


def cached_passages(reader: AttentionReader, prompt: Prompt) -> int:
    """Return how many of a prompt's passages lie in the engine's passage cache; 0 where it has none."""
    cache, context = reader.passage_cache, _Context.of([prompt])
    if cache is None:
        return 0
    return sum(entry_name(reader.key_identity, context.opening, passage) in cache for passage in context.passages)


def _keys(
    reader: AttentionReader,
    cache: PassageCache | None,
    opening: np.ndarray,
    before: KeyValues | None,
    passages: Sequence[np.ndarray],
) -> dict[bytes, KeyValues]:
    """Return the keys and values of each distinct passage, by its token ids as bytes; empty ones have none.

    Args:
        reader: runs the passages that the cache does not hold.
        cache: keeps them from query to query; None where nothing is kept.
        opening: token ids before each passage.
        before: their keys and values.
        passages: distinct ones, longest first.
    """
    missing, keys, names = [], {}, {}
    for passage in passages:
        found = None
        if cache is not None and len(passage):
            names[passage.tobytes()] = name = entry_name(reader.key_identity, opening, passage)
            found = cache.get(name, reader.device)
        if found is None:
            missing.append(passage)
        else:
            keys[passage.tobytes()] = found
    for rows in _row_batches(missing, reader.row_tokens(sum(map(len, passages)))):
        for row, filled in zip(rows, _prefill_rows(reader, rows, before), strict=True):
            keys[row.tobytes()] = filled
            if cache is not None:
                cache.put(names[row.tobytes()], filled)
    return keys


def _row_batches(passages: Sequence[np.ndarray], row_tokens: int) -> Iterator[list[np.ndarray]]:
    """Yield passages, given longest first, so that rows times the longest stay within the budget; empty ones need none.

    Examples:
        >>> [len(batch) for batch in _row_batches([np.zeros(4), np.zeros(3), np.zeros(3), np.zeros(0)], 8)]
        [2, 1]
    """
    batch: list[np.ndarray] = []
    for passage in passages:
        if batch and (len(batch) + 1) * len(batch[0]) > row_tokens:
            yield batch
            batch = []
        if len(passage):
            batch.append(passage)
    if batch:
        yield batch


def _prefill_rows(reader: AttentionReader, rows: Sequence[np.ndarray], before: KeyValues | None) -> list[KeyValues]:
    """Return the keys and values of token rows that each come right after `before`."""
    lengths = [len(tokens) for tokens in rows]
    width, earlier = max(lengths), 0 if before is None else len(before.keys[0])
    ids = torch.zeros((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.from_numpy(tokens)
    unpadded = torch.from_numpy(_joined([_run(row * width, length) for row, length in enumerate(lengths)]))
    recorder = _Recorder(to_device(unpadded, reader.device), before, reader.depth)
    if before is None:  # plain causal rows, which need no mask
        reader.prefill(ids, recorder, mask=None, positions=None)
    else:
        mask = torch.ones((width, earlier + width), dtype=torch.bool, device=reader.device).tril(earlier)
        positions = torch.arange(earlier, earlier + width, device=reader.device)[None]
        reader.prefill(ids, recorder, mask=mask[None, None], positions=positions)
    keys = zip(*(torch.split(layer, lengths) for layer in recorder.keys), strict=True)
    values = list(zip(*(torch.split(layer, lengths) for layer in recorder.values), strict=True)) or [()] * len(rows)
    return [KeyValues(*pair) for pair in zip(keys, values, strict=True)]


class _Recorder:
    """Keeps every layer's keys and values of the tokens that are no padding, and puts earlier ones before them."""

    def __init__(self, unpadded: Tensor, before: KeyValues | None, depth: int) -> None:
        self._tokens, self._before = unpadded, before
        self.keys: list[Tensor] = [unpadded.new_empty(0)] * depth
        self.values: list[Tensor] = [unpadded.new_empty(0)] * (depth - 1)

    def __call__(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer] = self._unpadded(key)
        if layer == len(self.values):
            return key, value  # the deepest: this pass reads nothing there
        self.values[layer] = self._unpadded(value)
        if self._before is None:
            return key, value
        return _after(self._before.keys[layer], key), _after(self._before.values[layer], value)

    def _unpadded(self, rows: Tensor) -> Tensor:
        """Return [n, K, D] from [B, K, T, D]."""
        return rows.transpose(1, 2).flatten(0, 1).index_select(0, self._tokens)


def _after(before: Tensor, rows: Tensor) -> Tensor:
    """Return [B, K, n + T, D] from [n, K, D], the same for each row, and [B, K, T, D]."""
    return torch.cat([before.transpose(0, 1).expand(len(rows), -1, -1, -1), rows], dim=2)


# ------------------------------------------------------------------------------------------------------------ question


def _ask(
    reader: AttentionReader,
    lists: Sequence[Sequence[Prompt]],
    contexts: Sequence[_Context],
    look_back: _LookBack,
    support: Support,
) -> list[list[Tensor]]:
    """Run the questions of all lists in one pass."""
    questions = _Questions.of(lists, contexts)
    owners = torch.full((len(lists), questions.mask.shape[-1]), -1)
    before = [context.key_of_token() for context in contexts]
    key_of_token = [
        [_joined([before[b], questions.keys(b, g)]) for g in range(len(prompts))] for b, prompts in enumerate(lists)
    ]
    for b, prompts in enumerate(lists):
        for prompt, keys in zip(prompts, key_of_token[b], strict=True):
            for place, span in enumerate(prompt.passages.tolist()):  # the last may end within the question: own keys
                owners[b, torch.from_numpy(keys[slice(*span)])] = place
    device = reader.device
    read = reader.attend(
        questions.ids,
        look_back,
        questions.rows(lists),
        None if support == "all" else to_device(owners, device),
        passages=max(len(prompts[0].passages) for prompts in lists) if support == "passages-geometric" else None,
        mask=to_device(questions.mask, device),
        positions=to_device(questions.positions, device),
    )
    return [
        [
            read[b, g].index_select(1, to_device(torch.from_numpy(keys), device))
            for g, keys in enumerate(key_of_token[b])
        ]
        for b in range(len(lists))
    ]


@dataclass(frozen=True)
class _Questions:
    """The questions of each list side by side in one row, hidden from each other.

    Attributes:
        ids: [B, T] int64, padded right.
        positions: [B, T] int64; every question starts after the longest passage of its list.
        mask: [B, 1, T, longest + T] bool: a token sees its list's opening and passages (not their padding), and its
            question so far.
        starts: [B][G], where each question starts in `ids`.
        lengths: [B][G], its number of tokens.
        longest: tokens of the longest opening with passages.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    starts: list[list[int]]
    lengths: list[list[int]]
    longest: int

    @classmethod
    def of(cls, lists: Sequence[Sequence[Prompt]], contexts: Sequence[_Context]) -> _Questions:
        tails = [[prompt.token_ids[_question_start(prompt) :] for prompt in prompts] for prompts in lists]
        lengths = [list(map(len, group)) for group in tails]
        starts = [[0, *accumulate(group[:-1])] for group in lengths]
        longest, width = max(map(len, contexts)), max(map(sum, lengths))
        ids = torch.zeros((len(tails), width), dtype=torch.long)
        positions = torch.zeros((len(tails), width), dtype=torch.long)
        mask = torch.zeros((len(tails), 1, width, longest + width), dtype=torch.bool)
        mask[..., longest:] = torch.eye(width, dtype=torch.bool)  # padding too: a row that sees nothing is NaN
        for b, (group, context) in enumerate(zip(tails, contexts, strict=True)):
            mask[b, :, :, : len(context)] = True
            for tail, start in zip(group, starts[b], strict=True):
                here = slice(start, start + len(tail))
                ids[b, here] = torch.from_numpy(tail)
                positions[b, here] = context.first_position + torch.arange(len(tail))
                causal = torch.ones((len(tail), len(tail)), dtype=torch.bool).tril()
                mask[b, 0, here, longest + here.start : longest + here.stop] = causal
        return cls(ids, positions, mask, starts, lengths, longest)

    def rows(self, lists: Sequence[Sequence[Prompt]]) -> list[list[tuple[int, int]]]:
        """Return the half-open spans [B][G] of the row tokens in `ids`."""
        shifts = [
            [start - _question_start(prompt) for prompt, start in zip(prompts, starts, strict=True)]
            for prompts, starts in zip(lists, self.starts, strict=True)
        ]
        return [
            [(prompt.rows[0] + shift, prompt.rows[1] + shift) for prompt, shift in zip(prompts, group, strict=True)]
            for prompts, group in zip(lists, shifts, strict=True)
        ]

    def keys(self, b: int, g: int) -> np.ndarray:
        """Return the keys of one question's own tokens."""
        return _run(self.longest + self.starts[b][g], self.lengths[b][g])


class _LookBack:
    """Puts the keys and values of each list's opening and passages before the question's own.

    Args:
        rows: those of each list, in the order of its keys.
        longest: tokens that the longest of them has; the others are padded.
        deepest: the layer whose values are not needed.
    """

    def __init__(self, rows: Sequence[Sequence[KeyValues]], longest: int, deepest: int) -> None:
        self._rows, self._longest, self._deepest = rows, longest, deepest

    def __call__(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        key = self._extended([[part.keys[layer] for part in row] for row in self._rows], key)
        if layer < self._deepest:
            value = self._extended([[part.values[layer] for part in row] for row in self._rows], value)
        return key, value

    def _extended(self, rows: Sequence[Sequence[Tensor]], own: Tensor) -> Tensor:
        """Return [B, K, longest + T, D] from B times [n, K, D] and [B, K, T, D].

        All at once: copying is most of what a cached passage costs.
        """
        parts: list[Tensor] = []
        for row, tokens in zip(rows, own.transpose(1, 2), strict=True):
            padding = self._longest - sum(map(len, row))
            parts += [*row, tokens.new_zeros((padding, *tokens.shape[1:])), tokens]
        joined = torch.cat(parts)
        return joined.view(len(rows), -1, *joined.shape[1:]).transpose(1, 2)
