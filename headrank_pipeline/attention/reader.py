"""AttentionReader: a truncated model that reads the attention of selected heads for many prompts at once.

Without calibration a prompt costs one forward pass. With a content-free query the passages are read once: their keys
stay in a cache, and both queries follow in one short second pass as two branches that do not see each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from headrank_pipeline.attention.isolated import read_isolated
from headrank_pipeline.attention.model import LoadedModel
from headrank_pipeline.attention.passage_cache import PassageCache, weights_digest
from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.tap import DeepestLayerRead, Past, Support, Tap

__all__ = ["BATCH_TOKENS", "AttentionReader"]

# Tokens of one forward pass, padding included. More fill a GPU better; a single longer prompt goes alone.
BATCH_TOKENS = 16384


class AttentionReader:
    """A model cut off after the deepest selected layer, and the heads to read.

    Args:
        loaded: what `headrank_pipeline.attention.model.load` returns.
        batch_tokens: padded tokens of one forward pass.
        passage_cache: keeps keys of isolated passages from query to query, while the weights stay as they are.
    """

    def __init__(
        self, loaded: LoadedModel, *, batch_tokens: int = BATCH_TOKENS, passage_cache: PassageCache | None = None
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens {batch_tokens}: expected at least 1")
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.heads = loaded.heads
        self.source = loaded.source
        self.batch_tokens = batch_tokens
        self.passage_cache = passage_cache
        self.device: torch.device = loaded.model.device
        layers = sorted({layer for layer, _ in self.heads.heads})
        self._heads = {layer: torch.tensor([h for at, h in self.heads.heads if at == layer]) for layer in layers}
        read_order = [(layer, head) for layer in layers for head in self._heads[layer].tolist()]
        position = {head: index for index, head in enumerate(read_order)}
        self._as_listed = torch.tensor([position[head] for head in self.heads.heads])

    @property
    def max_prompt_tokens(self) -> int:
        """Positions the model was made for."""
        return self.source.max_positions

    def describe(self) -> dict[str, Any]:
        """Return model, revision, fingerprint, depth, dtype, device and heads as JSON-ready values."""
        return {
            "model": self.source.name,
            "revision": self.source.revision,
            "fingerprint": self.source.fingerprint,
            "layers_run": self.heads.depth,
            "layers_of_model": self.source.layers,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "heads": {"name": self.heads.name, "count": len(self.heads.heads), "sha256": self.heads.digest()},
            "batch_tokens": self.batch_tokens,
        }

    def read(self, prompts: Sequence[Prompt], *, support: Support = "all") -> list[Tensor]:
        """Return the attention of the row tokens to every token of each prompt, in one forward pass per batch.

        Args:
            prompts: any number, of any lengths; they are batched by length, which does not change the result beyond
                float32 rounding.
            support: the softmax runs over ``all`` visible tokens or over the ``passages`` tokens only.

        Returns:
            One [H, N] float32 tensor per prompt on the reader's device: mean over rows, H in the head set's order,
            each row of it summing to 1.
        """
        found: dict[int, Tensor] = {}
        with torch.inference_mode():
            for batch in self._batches([len(prompt) for prompt in prompts]):
                found.update(zip(batch, self.forward([prompts[i] for i in batch], support=support), strict=True))
        return [found[index] for index in range(len(prompts))]

    def read_calibrated(
        self, pairs: Sequence[tuple[Prompt, Prompt]], *, support: Support = "all"
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what `read` returns for both prompts of each pair, running what they share only once.

        Args:
            pairs: (prompt, the same passages asked a content-free query).
            support: as in `read`.

        Returns:
            One pair of [H, N] float32 tensors per pair of prompts.
        """
        found: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.inference_mode():
            for batch in self._batches([len(first) + len(second) for first, second in pairs]):
                found.update(zip(batch, self._read_branches([pairs[i] for i in batch], support), strict=True))
        return [found[index] for index in range(len(pairs))]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield indices, longest first, so that a batch times its longest prompt stays within `batch_tokens`."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def forward(self, prompts: Sequence[Prompt], *, support: Support = "all") -> list[Tensor]:
        """Return what `read` returns from exactly one forward pass, in the caller's gradient mode.

        Isolated passages take one pass for the opening, one per batch of passages and one for the questions.
        """
        if any(prompt.boundaries is not None for prompt in prompts):
            return [read for (read,) in read_isolated(self, [(prompt,) for prompt in prompts], support=support)]
        # Padding goes right: a causal row never sees it, so no mask is needed and SDPA keeps its causal kernel.
        ids = self._padded([torch.from_numpy(prompt.token_ids) for prompt in prompts])
        rows, weights = self._rows([[prompt.rows] for prompt in prompts])
        columns = self._columns(prompts, ids.shape[1]) if support == "passages" else None
        tap = self._tap(rows, weights, columns)
        self._forward(ids, tap)
        read = self._collect(tap)
        return [read[b, 0, :, : len(prompt)].clone() for b, prompt in enumerate(prompts)]

    def _read_branches(self, pairs: Sequence[tuple[Prompt, Prompt]], support: Support) -> list[tuple[Tensor, Tensor]]:
        if any(first.boundaries is not None for first, _ in pairs):
            return [(first, second) for first, second in read_isolated(self, pairs, support=support)]
        shared = [_shared_prefix(first, second) for first, second in pairs]
        longest = max(shared)
        cache = DynamicCache()
        ids = [torch.from_numpy(first.token_ids[:length]) for (first, _), length in zip(pairs, shared, strict=True)]
        self._forward(self._padded(ids), self._tap(None, None, None), cache)

        tails = [[prompt.token_ids[length:] for prompt in pair] for pair, length in zip(pairs, shared, strict=True)]
        branches = _Branches.of(tails, shared, longest, self.device)
        spans = [
            [
                (p.rows[0] - length + offset, p.rows[1] - length + offset)
                for p, offset in zip(pair, offsets, strict=True)
            ]
            for pair, length, offsets in zip(pairs, shared, branches.offsets, strict=True)
        ]
        rows, weights = self._rows(spans)
        columns = (
            self._columns([first for first, _ in pairs], branches.mask.shape[-1]) if support == "passages" else None
        )
        tap = self._tap(rows, weights, columns)
        self._forward(branches.ids, tap, cache, mask=branches.mask, positions=branches.positions)
        read = self._collect(tap)
        return [
            (
                branches.gather(read[b, 0], b, 0, shared[b]),
                branches.gather(read[b, 1], b, 1, shared[b]),
            )
            for b in range(len(pairs))
        ]

    # What reading isolated passages is made of.

    @cached_property
    def key_identity(self) -> dict[str, Any]:
        """What a passage's keys depend on besides tokens; reads all weights once."""
        return {
            "fingerprint": self.source.fingerprint,
            "revision": self.source.revision,
            "weights": weights_digest(self.model),
            "depth": self.depth,
            "dtype": str(self.model.dtype),
        }

    @property
    def depth(self) -> int:
        """Number of layers run."""
        return self.heads.depth

    @property
    def row_tokens(self) -> int:
        """Padded tokens of one pass over isolated passages."""
        return self.batch_tokens

    def prefill(self, ids: Tensor, past: Past, *, mask: Tensor | None, positions: Tensor | None) -> None:
        """Run tokens [B, T] and read nothing; `past` sees their keys and values."""
        tap = replace(self._tap(None, None, None), past=past, stop_at=self.depth - 1)  # no values are kept there
        self._forward(ids, tap, mask=mask, positions=positions)

    def attend(
        self,
        ids: Tensor,
        past: Past,
        spans: Sequence[Sequence[tuple[int, int]]],
        columns: Tensor | None,
        *,
        mask: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Run tokens [B, T] and return [B, G, H, S], the mean attention of G spans of them to S keys."""
        tap = replace(self._tap(*self._rows(spans), columns), past=past, stop_at=self.depth - 1)
        self._forward(ids, tap, mask=mask, positions=positions)
        return self._collect(tap)

    def _forward(
        self,
        ids: Tensor,
        tap: Tap,
        cache: DynamicCache | None = None,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        try:
            self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
                tap=tap,
            )
        except DeepestLayerRead:
            return
        raise RuntimeError(f"{self.source.name}: the forward pass never reached layer {tap.stop_at} through the tap")

    def _tap(self, rows: Tensor | None, weights: Tensor | None, columns: Tensor | None) -> Tap:
        return Tap(self._heads, self.heads.depth - 1, rows, weights, columns)

    def _collect(self, tap: Tap) -> Tensor:
        """Return [B, G, H, S] in the head set's order."""
        read = torch.cat([tap.read[layer] for layer in sorted(tap.read)], dim=2)
        return read[:, :, self._as_listed.to(read.device)]

    def _padded(self, ids: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)

    def _rows(self, spans: Sequence[Sequence[tuple[int, int]]]) -> tuple[Tensor, Tensor]:
        """Return rows [B, R] and weights [B, G, R] of G spans per prompt; a group's weights are the mean's."""
        width = max(sum(end - start for start, end in groups) for groups in spans)
        rows = torch.zeros((len(spans), width), dtype=torch.long)
        weights = torch.zeros((len(spans), len(spans[0]), width))
        for b, groups in enumerate(spans):
            filled = 0
            for g, (start, end) in enumerate(groups):
                part = slice(filled, filled + end - start)
                rows[b, part] = torch.arange(start, end)
                weights[b, g, part] = 1.0 / (end - start)
                filled = part.stop
        return rows.to(self.device), weights.to(self.device)

    def _columns(self, prompts: Sequence[Prompt], width: int) -> Tensor:
        columns = torch.zeros((len(prompts), width), dtype=torch.bool)
        for b, prompt in enumerate(prompts):
            for start, end in prompt.passages.tolist():
                columns[b, start:end] = True
        return columns.to(self.device)


@dataclass(frozen=True)
class _Branches:
    """Several continuations of each cached prefix, side by side in one pass and hidden from each other.

    Attributes:
        ids: [B, T] int64, the branches of a prompt one after another, padded right.
        positions: [B, T] int64; every branch starts where its prefix ends.
        mask: [B, 1, T, longest + T] bool; a token sees its own prefix (not the cache's padding) and its branch so far.
        offsets: [B][G], where each branch starts in `ids`.
        lengths: [B][G], its number of tokens.
        longest: length of the padded cache.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    offsets: list[list[int]]
    lengths: list[list[int]]
    longest: int

    @classmethod
    def of(
        cls, tails: Sequence[Sequence[np.ndarray]], prefixes: Sequence[int], longest: int, device: torch.device
    ) -> _Branches:
        lengths = [[len(tail) for tail in group] for group in tails]
        offsets = [np.concatenate([[0], np.cumsum(group)[:-1]]).astype(int).tolist() for group in lengths]
        width = max(map(sum, lengths))
        ids = torch.zeros((len(tails), width), dtype=torch.long)
        positions = torch.zeros((len(tails), width), dtype=torch.long)
        mask = torch.zeros((len(tails), 1, width, longest + width), dtype=torch.bool)
        for b, group in enumerate(tails):
            mask[b, 0, :, : max(1, prefixes[b])] = True  # padding rows too: a row that sees nothing is NaN
            for tail, start in zip(group, offsets[b], strict=True):
                here = slice(start, start + len(tail))
                ids[b, here] = torch.from_numpy(tail)
                positions[b, here] = prefixes[b] + torch.arange(len(tail))
                causal = torch.ones((len(tail), len(tail)), dtype=torch.bool).tril()
                mask[b, 0, here, longest + here.start : longest + here.stop] = causal
        return cls(ids, positions.to(device), mask.to(device), offsets, lengths, longest)

    def gather(self, read: Tensor, prompt: int, branch: int, prefix: int) -> Tensor:
        """Return [H, N] over the tokens of one branch's whole prompt from [H, longest + T]."""
        start = self.longest + self.offsets[prompt][branch]
        return torch.cat([read[:, :prefix], read[:, start : start + self.lengths[prompt][branch]]], dim=1)


def _shared_prefix(first: Prompt, second: Prompt) -> int:
    """Return how many leading tokens both prompts have in common, before the rows of either."""
    limit = min(first.prefix, second.prefix)
    differ = np.flatnonzero(first.token_ids[:limit] != second.token_ids[:limit])
    return int(differ[0]) if len(differ) else limit
