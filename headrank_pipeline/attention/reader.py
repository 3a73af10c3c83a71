"""AttentionReader: a truncated model that reads the attention of selected heads for many prompts at once.

Without calibration a prompt costs one forward pass. With a content-free query the passages are read once, and both
queries follow on their keys in one short second pass, where they do not see each other (`attention.contexts`).

On a GPU a pass is queued and Python goes on: no layer waits for the device (`to_device`), so that the prompts of the
next pass can be made meanwhile (`AttentionReader.stream`).

What makes it fast is in `SHORTCUTS`; what each is worth is in docs/performance.md.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrank_pipeline.attention.canary import check_isolated, shortcuts_to_leave_out
from headrank_pipeline.attention.contexts import read_contexts, shared_prefix, with_shared_prefix
from headrank_pipeline.attention.model import (
    BATCH_TOKENS,
    LoadedModel,
    TokenBudget,
    batch_tokens_for,
    give_back_memory,
    is_out_of_memory,
    tokens_beside,
)
from headrank_pipeline.attention.passage_cache import PassageCache, weights_digest
from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.recipe import Support
from headrank_pipeline.attention.tap import (
    DeepestLayerRead,
    Past,
    Tap,
    bfloat16_products,
    fast_products,
    has_fast_products,
    spared_deepest_layer,
    to_device,
)

__all__ = ["SHORTCUTS", "AttentionReader"]

logger = logging.getLogger(__name__)

# On a CPU short prompts, or isolated passages, share a pass up to this size only: arithmetic is as fast on few tokens
# as on many, and small passes stay in its caches (docs/performance.md).
_CPU_PASS_TOKENS = 2048


# The shortcuts of a reader. All give the same readings up to rounding; a test or a benchmark leaves them out to see it.
SHORTCUTS = (
    "early_exit",  # end the pass inside the deepest layer that is read; without: run every layer that was loaded
    "spared_deepest",  # of that layer compute the keys and the queries of the rows only; needs early_exit
    "shared_prefix",  # read the passages once for a query and its content-free query; without: two whole passes
    "fast_products",  # large products and causal attention on a CPU through oneDNN, where that is faster
    "build_ahead",  # build the prompts of the next pass while a GPU is busy; without: all before the first pass
)


class AttentionReader:
    """A model cut off after the deepest selected layer, and the heads to read.

    Args:
        loaded: what `headrank_pipeline.attention.model.load` returns.
        batch_tokens: padded tokens of one forward pass at most, or ``auto`` for what free memory allows. Where memory
            runs out all the same, the batch is read again in halves, and later ones start smaller. On a CPU prompts
            share a pass up to 2048 tokens, whatever is allowed.
        passage_cache: keeps keys of isolated passages from query to query, while the weights stay as they are.
        without: names of `SHORTCUTS` to leave out, for comparison; what a family breaks is left out besides.

    Raises:
        ValueError: a budget below 1, ``auto`` where free memory cannot be told, or a family of models that is not read
            right (attention/canary.py).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_tokens: TokenBudget = BATCH_TOKENS,
        passage_cache: PassageCache | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.model = loaded.model
        self.tokenizer = loaded.tokenizer
        self.heads = loaded.heads
        self.source = loaded.source
        self.batch_tokens = batch_tokens
        self.without = frozenset(without)
        self.passage_cache = passage_cache
        self.device: torch.device = loaded.model.device
        layers = sorted({layer for layer, _ in self.heads.heads})
        self._heads = {layer: torch.tensor([h for at, h in self.heads.heads if at == layer]) for layer in layers}
        read_order = [(layer, head) for layer in layers for head in self._heads[layer].tolist()]
        position = {head: index for index, head in enumerate(read_order)}
        self._as_listed = torch.tensor([position[head] for head in self.heads.heads])
        self._short_positions = _short_positions(loaded.model.config)
        self._sizes = (loaded.model.config, len(self.heads.heads), loaded.model.dtype)
        reserved = 0 if passage_cache is None else passage_cache.memory_bytes - passage_cache.held_bytes
        self._room = batch_tokens_for(batch_tokens, *self._sizes, self.device, reserved=reserved)
        self.without |= self._broken_shortcuts()
        if batch_tokens == "auto":
            logger.info("passes of up to %d tokens fit into the free memory of %s", self._room, self.device)

    def _broken_shortcuts(self) -> frozenset[str]:
        def read(off: Collection[str], lists: Sequence[tuple[Prompt, ...]]) -> list[tuple[Tensor, ...]]:
            asked, self.without = self.without, frozenset(off)
            try:
                with torch.inference_mode():
                    return self._read_together(lists, "all")
            finally:
                self.without = asked

        return frozenset(shortcuts_to_leave_out(self.model, self.heads.heads, read, name=self.source.name))

    def _takes(self, shortcut: str) -> bool:
        return shortcut not in self.without

    @property
    def max_prompt_tokens(self) -> int:
        """Positions the model was made for."""
        return self.source.max_positions

    def describe(self) -> dict[str, Any]:
        """Return model, revision, fingerprint, depth, dtype, device and heads as JSON-ready values."""
        return {
            "model": self.source.label,
            "revision": self.source.revision,
            "fingerprint": self.source.fingerprint,
            "layers_run": self.heads.depth,
            "layers_of_model": self.source.layers,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "heads": {"name": self.heads.name, "count": len(self.heads.heads), "sha256": self.heads.digest()},
            "batch_tokens": self.batch_tokens,
        }

    def origins(self) -> dict[str, str]:
        """Return where the model and, where there is one, the passage cache lie, and by which code it is computed.

        None of it changes scores but for rounding, so it is no part of what the reader is.
        """
        cache = self.passage_cache
        kept = {} if cache is None else {"passage_cache": str(cache.folder or "in memory")}
        fast = self._takes("fast_products") and has_fast_products(self.device)
        half = self.device.type == "cpu" and self.model.dtype == torch.bfloat16
        parts = ["oneDNN" if fast else "PyTorch"]
        parts += [f"bfloat16 {bfloat16_products()}"] if half else []
        parts += [f"without {', '.join(sorted(self.without))}"] if self.without else []
        return {"model": self.source.name, **kept, "kernels": ", ".join(parts)}

    def read(self, prompts: Sequence[Prompt], *, support: Support = "all") -> list[Tensor]:
        """Return the attention of the row tokens to every token of each prompt, in one forward pass per batch.

        Args:
            prompts: any number, of any lengths; they are batched by length, which does not change the result beyond
                float32 rounding.
            support: over what the softmax runs and how rows are averaged, as `ScoringRule` says.

        Returns:
            One [H, N] float32 tensor per prompt on the reader's device: mean over rows, H in the head set's order,
            each summing to 1.
        """
        return [read for (read,) in self._read([(prompt,) for prompt in prompts], support)]

    def read_calibrated(
        self, pairs: Sequence[tuple[Prompt, Prompt]], *, support: Support = "all"
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what `read` returns for both prompts of each pair, running what they share only once.

        Args:
            pairs: (prompt, the same passages asked a content-free query).
            support: the same as in `read`.

        Returns:
            One pair of [H, N] float32 tensors per pair of prompts.
        """
        return [(first, second) for first, second in self._read(pairs, support)]

    def stream(self, lists: Iterable[tuple[Prompt, ...]], *, support: Support = "all") -> Iterator[tuple[Tensor, ...]]:
        """Yield what `read` or `read_calibrated` return, for lists that are made as they are needed.

        Those of the next pass are drawn before the present pass's readings are yielded: on a GPU, whose passes are
        queued, making them takes no time of its own. No thread does it, and nothing is drawn further ahead.

        Args:
            lists: one prompt each, or two as in `read_calibrated`. They are read in their order, neighbours together:
                give the longest first.
            support: the same as in `read`.

        Yields:
            One [H, N] float32 tensor per prompt of a list, in the order of `lists`.

        Raises:
            MemoryError: a single prompt does not fit.
        """
        readings: list[tuple[Tensor, ...]] = []
        for batch in self._batches(lists):
            yield from readings
            if readings and self.device.type == "cpu":
                give_back_memory()  # that the pass before held; one pass alone need not wait for it
            readings = self._read_batch(batch, support)
        yield from readings

    def _read(self, lists: Sequence[tuple[Prompt, ...]], support: Support) -> list[tuple[Tensor, ...]]:
        """Return the readings of lists in any order, batched by length."""
        longest_first = sorted(range(len(lists)), key=lambda i: (-self._tokens(lists[i]), i))
        readings = self.stream((lists[index] for index in longest_first), support=support)
        found = dict(zip(longest_first, readings, strict=True))
        return [found[index] for index in range(len(lists))]

    def _batches(self, lists: Iterable[tuple[Prompt, ...]]) -> Iterator[list[tuple[Prompt, ...]]]:
        """Yield neighbours that fit into a pass when they are padded to the longest of them."""
        batch: list[tuple[Prompt, ...]] = []
        longest = 0
        for prompts in lists:
            tokens = self._tokens(prompts)
            isolated = prompts[0].boundaries is not None  # whose passages are divided among passes anyway
            room = self._room if isolated else self._shared(self._room)
            if batch and (len(batch) + 1) * max(longest, tokens) > room:
                yield batch
                batch, longest = [], 0
            batch.append(prompts)
            longest = max(longest, tokens)
        if batch:
            yield batch

    def _tokens(self, prompts: tuple[Prompt, ...]) -> int:
        """Return how many tokens of a list go through a pass."""
        if len(prompts) == 1 or not self._takes("shared_prefix") or self._is_long(prompts[0]):
            return max(map(len, prompts))
        first, second = prompts
        return len(first) + len(second) - shared_prefix(first, second)

    def _read_batch(self, batch: list[tuple[Prompt, ...]], support: Support) -> list[tuple[Tensor, ...]]:
        """Return the readings of lists that fit into one pass, or into smaller ones where memory runs out."""
        with torch.inference_mode(), fast_products(self.device, enabled=self._takes("fast_products")):
            readings = self._unless_out_of_memory(batch, support)
        if readings is None:
            self._make_room(batch)
            return [read for part in self._batches(batch) for read in self._read_batch(part, support)]
        return readings

    def _unless_out_of_memory(
        self, batch: list[tuple[Prompt, ...]], support: Support
    ) -> list[tuple[Tensor, ...]] | None:
        try:
            return self._read_together(batch, support)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.debug("%s", error)
        return None  # after the handler: what failed no longer holds its tensors

    def _read_together(self, batch: Sequence[tuple[Prompt, ...]], support: Support) -> list[tuple[Tensor, ...]]:
        if (
            len(batch[0]) == 2
            and self._takes("shared_prefix")
            and not any(self._is_long(prompt) for prompt, _ in batch)
        ):
            if any(first.boundaries is not None for first, _ in batch):
                return [tuple(reads) for reads in self._read_isolated(batch, support)]
            questions = [with_shared_prefix(first, second) for first, second in batch]
            return [tuple(reads) for reads in read_contexts(self, questions, support=support, kept=False)]
        passes = [self.forward(prompts, support=support) for prompts in zip(*batch, strict=True)]
        return list(zip(*passes, strict=True))

    def _make_room(self, batch: Sequence[tuple[Prompt, ...]]) -> None:
        """Halve the tokens of a pass, after one over these lists did not fit."""
        longest, row = max(map(self._tokens, batch)), max(_longest_row(prompt) for prompt in batch[0])
        tokens = len(batch) * longest
        smaller = min(self._room, tokens) // 2
        if len(batch) == 1 and smaller < row:
            raise MemoryError(
                f"a prompt of {longest} tokens does not fit into the memory of {self.device} beside "
                f"{self.source.label} in {self.model.dtype}; rerank fewer passages, shorten them "
                f"(passage_words), isolate them (passages='isolated') or load the model as bfloat16 (dtype)"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        logger.warning("out of memory with %d tokens in a pass; going on with %d", tokens, smaller)
        self._room = smaller

    def forward(self, prompts: Sequence[Prompt], *, support: Support = "all") -> list[Tensor]:
        """Return what `read` returns from exactly one forward pass, in the caller's gradient mode.

        Isolated passages take one pass for the opening, one per batch of passages and one for the questions.
        """
        if any(prompt.boundaries is not None for prompt in prompts):
            return [read for (read,) in self._read_isolated([(prompt,) for prompt in prompts], support)]
        if len({self._is_long(prompt) for prompt in prompts}) == 2:  # the long ones would turn the others' positions
            parts = {long: [p for p in prompts if self._is_long(p) == long] for long in (False, True)}
            readings = {long: iter(self.forward(part, support=support)) for long, part in parts.items()}
            return [next(readings[self._is_long(prompt)]) for prompt in prompts]
        # Padding goes right: a causal row never sees it, so no mask is needed and SDPA keeps its causal kernel.
        ids = self._padded([torch.from_numpy(prompt.token_ids) for prompt in prompts])
        rows, weights = self._rows([[prompt.rows] for prompt in prompts])
        spans = [prompt.passages.tolist() for prompt in prompts]
        owners = None if support == "all" else self._owners(spans, ids.shape[1])
        tap = self._tap(rows, weights, owners, max(map(len, spans)) if support == "passages-geometric" else None)
        self._forward(ids, tap)
        read = self._collect(tap)
        return [read[b, 0, :, : len(prompt)].clone() for b, prompt in enumerate(prompts)]

    def _is_long(self, prompt: Prompt) -> bool:
        """Return whether a pass over this prompt takes LongRoPE's other frequencies, for all of its prompts alike."""
        return self._short_positions is not None and _positions(prompt) > self._short_positions

    def _read_isolated(self, lists: Sequence[Sequence[Prompt]], support: Support) -> list[list[Tensor]]:
        self.check_isolated()
        for prompts in lists:
            if any(map(self._is_long, prompts)):
                raise ValueError(
                    f"{self.source.label}: a list with isolated passages takes {max(map(_positions, prompts))} "
                    f"positions; beyond {self._short_positions} its LongRoPE would turn the question by other "
                    f"frequencies than the passages: shorten them (passage_words)"
                )
        return read_contexts(self, lists, support=support)

    def check_isolated(self) -> None:
        """Raise ValueError where isolated passages are not read right with this model's family."""

        def read(prompt: Prompt) -> Tensor:
            with torch.inference_mode():
                return read_contexts(self, [(prompt,)], support="all")[0][0]

        check_isolated(self.model, self.heads.heads, read, name=self.source.label)

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

    def row_tokens(self, kept: int) -> int:
        """Return the padded tokens of one pass over a part of isolated passages of `kept` tokens in all."""
        room = tokens_beside(kept, self._room, *self._sizes) if self.batch_tokens == "auto" else self._room
        return self._shared(room)

    def _shared(self, room: int) -> int:
        """Return how many of the tokens that fit into a pass several prompts or passages may share."""
        return min(room, _CPU_PASS_TOKENS) if self.device.type == "cpu" else room

    def prefill(self, ids: Tensor, past: Past, *, mask: Tensor | None, positions: Tensor | None) -> None:
        """Run tokens [B, T] and read nothing; `past` sees their keys and values."""
        tap = replace(self._tap(), past=past, stop_at=self.depth - 1)  # no values are kept there
        self._forward(ids, tap, mask=mask, positions=positions)

    def attend(
        self,
        ids: Tensor,
        past: Past,
        spans: Sequence[Sequence[tuple[int, int]]],
        owners: Tensor | None,
        *,
        passages: int | None,
        mask: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """Run tokens [B, T] and return [B, G, H, S], the mean attention of G spans of them to S keys."""
        tap = replace(self._tap(*self._rows(spans), owners, passages), past=past, stop_at=self.depth - 1)
        self._forward(ids, tap, mask=mask, positions=positions)
        return self._collect(tap)

    def _forward(
        self,
        ids: Tensor,
        tap: Tap,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> None:
        spared = spared_deepest_layer(self.model, tap) if self._takes("spared_deepest") else nullcontext()
        try:
            with spared:
                self.model(
                    input_ids=to_device(ids, self.device),
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=False,
                    tap=tap,
                )
        except DeepestLayerRead:
            return
        if tap.stop_at is not None:
            raise RuntimeError(f"{self.source.label}: its layers do not hand their attention to the tap")

    def _tap(
        self,
        rows: Tensor | None = None,
        weights: Tensor | None = None,
        owners: Tensor | None = None,
        passages: int | None = None,
    ) -> Tap:
        stop_at = self.heads.depth - 1 if self._takes("early_exit") else None
        return Tap(self._heads, stop_at, rows, weights, owners, passages)

    def _collect(self, tap: Tap) -> Tensor:
        """Return [B, G, H, S] in the head set's order."""
        if len(tap.read) < len(self._heads):
            raise RuntimeError(f"{self.source.label}: its layers do not hand their attention to the tap")
        read = torch.cat([tap.read[layer] for layer in sorted(tap.read)], dim=2)
        return read[:, :, to_device(self._as_listed, read.device)]

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
        return to_device(rows, self.device), to_device(weights, self.device)

    def _owners(self, spans: Sequence[Sequence[Sequence[int]]], width: int) -> Tensor:
        """Return [B, width] int64: the passage that each key of this pass belongs to, -1 for none."""
        owners = torch.full((len(spans), width), -1)
        for b, found in enumerate(spans):
            for place, (start, end) in enumerate(found):
                owners[b, start:end] = place
        return to_device(owners, self.device)


def _positions(prompt: Prompt) -> int:
    """Return how many positions a prompt takes."""
    if prompt.boundaries is None:
        return len(prompt)
    opening, question = int(prompt.boundaries[0]), len(prompt) - int(prompt.boundaries[-1])
    return opening + int(np.diff(prompt.boundaries).max(initial=0)) + question


def _short_positions(config: Any) -> int | None:
    """Return the positions up to which LongRoPE turns by its short frequencies, or None for other rotations."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]  # some state it per kind of layer
    stated = getattr(config, "original_max_position_embeddings", None)
    limits = [
        kind.get("original_max_position_embeddings", stated) for kind in kinds if kind.get("rope_type") == "longrope"
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def _longest_row(prompt: Prompt) -> int:
    """Return the tokens of the longest part of a prompt that goes through one pass whole."""
    if prompt.boundaries is None:
        return len(prompt)
    return int(np.diff([0, *prompt.boundaries.tolist(), len(prompt)]).max())
