"""Several queries after the same passages, as branches of one pass that do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.tap import to_device

__all__ = ["Branches", "shared_prefix"]


@dataclass(frozen=True)
class Branches:
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
    ) -> Branches:
        """Lay out token ids.

        Args:
            tails: [B][G] token ids of each branch.
            prefixes: [B], tokens of each prefix that are in the cache.
            longest: length of the padded cache.
            device: where the tensors are wanted.
        """
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
        return cls(ids, to_device(positions, device), to_device(mask, device), offsets, lengths, longest)

    def keys_of(self, prompts: Sequence[Prompt], prompt: int, prefix: int) -> list[tuple[int, int]]:
        """Return the half-open spans of the passages of one prompt's branches among the keys of the pass.

        A span may end beyond the cached prefix (CoRe's, by one token); what lies there is in each branch.

        Args:
            prompts: [G], the whole prompts of the branches.
            prompt: which one of B they are.
            prefix: tokens of it that are in the cache.
        """
        spans = []
        for branch, whole in enumerate(prompts):
            shift = self.longest + self.offsets[prompt][branch] - prefix
            for start, end in whole.passages.tolist():
                spans += [
                    (min(start, prefix), min(end, prefix)),
                    (max(start, prefix) + shift, max(end, prefix) + shift),
                ]
        return spans

    def gather(self, read: Tensor, prompt: int, branch: int, prefix: int) -> Tensor:
        """Return [H, N] over the tokens of one branch's whole prompt from [H, longest + T]."""
        start = self.longest + self.offsets[prompt][branch]
        return torch.cat([read[:, :prefix], read[:, start : start + self.lengths[prompt][branch]]], dim=1)


def shared_prefix(first: Prompt, second: Prompt) -> int:
    """Return how many leading tokens both prompts have in common, before the rows of either."""
    limit = min(first.prefix, second.prefix)
    differ = np.flatnonzero(first.token_ids[:limit] != second.token_ids[:limit])
    return int(differ[0]) if len(differ) else limit
