"""Teaching the model a sentence encoder's order of passages: no judgment is used.

Each step takes 64 passages in groups of eight that the encoder finds alike, and one question of each. The attention
mass of the heads of the two upper layers is pulled towards softmax(cosine / temperature) of the encoder over all 64.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3Model

from embedded_model.in_batch import Frame, shares
from embedded_model.initial import LAYERS

__all__ = ["Batches", "distil"]

UPPER, LOWER = LAYERS - 1, LAYERS - 2  # the layers that are read; the lower one counts less
LOWER_WEIGHT = 0.3
TEMPERATURE = 0.05
PASSAGES, GROUP, NEIGHBOURS = 64, 8, 25
PASSAGE_TOKENS = (40, 64, 64, 96, 128)  # of a step, drawn
SEEN = (2, 3, 4, 8, 14)  # passages that questions see below the deepest layer
QUERY_TOKENS = 24
COLLECTION_QUERIES, DEFINITIONS = 0.25, 0.075  # shares of the groups
RATES = {"embeddings": 1e-3, "rest": 7e-4}
WARM_UP = 60  # steps
LEAST_RATE = 0.03  # at the end, of the highest


@dataclass
class Batches:
    """Draws the groups of a step.

    Args:
        passages: token ids of each passage, definitions last.
        queries: token ids of each query.
        made_of: the passage that each query was made of, or None.
        passage_vectors: [passages, 384], the encoder's, of length 1.
        query_vectors: [queries, 384].
        definitions_from: index of the first definition.
        seed: of the draws.
    """

    passages: Sequence[list[int]]
    queries: Sequence[list[int]]
    made_of: Sequence[int | None]
    passage_vectors: Tensor
    query_vectors: Tensor
    definitions_from: int
    seed: int

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._asked: list[list[int]] = [[] for _ in self.passages]
        self._free = []
        for index, passage in enumerate(self.made_of):
            (self._free if passage is None else self._asked[passage]).append(index)
        self._alike = _nearest(self.passage_vectors, self.passage_vectors)
        self._answers = _nearest(self.query_vectors[self._free], self.passage_vectors[: self.definitions_from])

    def draw(self) -> tuple[list[list[int]], list[list[int]], Tensor, Tensor]:
        """Return P passages, Q queries, the encoder's cosines [Q, P], and which passages questions see lower down."""
        chance, passages, queries = self._chance, [], []
        for _ in range(PASSAGES // GROUP):
            passages += self._group(queries)
        passages = list(dict.fromkeys(passages))
        queries = [*queries, *(chance.choice(self._asked[passage]) for passage in passages)][:PASSAGES]
        chance.shuffle(passages)
        length = chance.choice(PASSAGE_TOKENS)
        cosines = self.query_vectors[queries] @ self.passage_vectors[passages].T
        seen = torch.tensor(chance.sample(range(len(passages)), chance.choice(SEEN)))
        shown = [self.passages[passage][:length] for passage in passages]
        return shown, [self.queries[query][:QUERY_TOKENS] for query in queries], cosines, seen

    def _group(self, queries: list[int]) -> list[int]:
        chance, kind = self._chance, self._chance.random()
        if kind < COLLECTION_QUERIES:
            place = chance.randrange(len(self._free))
            queries.append(self._free[place])
            best, *others = self._answers[place].tolist()
        else:
            definition = kind > 1 - DEFINITIONS
            span = (self.definitions_from, len(self.passages)) if definition else (0, self.definitions_from)
            best = chance.randrange(*span)
            others = [index for index in self._alike[best].tolist() if index != best]
        return [best, *chance.sample(others, GROUP - 1)]


def distil(
    model: Qwen3Model,
    frame: Frame,
    batches: Batches,
    check: Callable[[], float],
    *,
    minutes: float,
    every: float,
) -> list[dict[str, float]]:
    """Train every weight for some minutes; the learning rate falls with the time that has passed.

    Args:
        model: trained in place.
        frame: of the prompt.
        batches: where steps come from.
        check: prints figures on training collections; called every so often and at the end, off the clock.
        minutes: of training.
        every: minutes from one check to the next.

    Returns:
        Means of the steps between two lines of the log.
    """
    optimiser = _optimiser(model)
    log: list[dict[str, float]] = []
    recent: list[tuple[float, float]] = []
    began, checked, steps = time.monotonic(), 0.0, 0
    while (passed := time.monotonic() - began) < minutes * 60:
        rate = min(1.0, (steps + 1) / WARM_UP) * max(LEAST_RATE, (1 + math.cos(math.pi * passed / minutes / 60)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = group["highest"] * rate
        recent.append(_step(model, frame, batches, optimiser))
        steps += 1
        if steps % 50 == 0:
            loss, hits = np.mean(recent, axis=0)
            log.append({"step": steps, "seconds": round(passed), "divergence": round(loss, 4), "same_best": hits})
            print(f"step {steps}, {passed:.0f} s: divergence {loss:.4f}, encoder's best first {hits:.3f}", flush=True)
            recent = []
        if passed - checked > every * 60:
            paused = time.monotonic()
            check()
            began, checked = began + time.monotonic() - paused, passed
    check()
    return log


def _step(model: Qwen3Model, frame: Frame, batches: Batches, optimiser: torch.optim.Optimizer) -> tuple[float, float]:
    passages, queries, cosines, seen = batches.draw()
    wanted = torch.softmax(cosines / TEMPERATURE, dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = shares(model, frame, passages, queries, seen, (LOWER, UPPER))
    upper, lower = found[UPPER].mean(1), found[LOWER].mean(1)
    divergence = _divergence(wanted, upper)
    optimiser.zero_grad(set_to_none=True)
    (divergence + LOWER_WEIGHT * _divergence(wanted, lower)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return divergence.item(), (upper.argmax(-1) == wanted.argmax(-1)).float().mean().item()


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    return (wanted * (wanted.clamp_min(1e-9).log() - found.clamp_min(1e-9).log())).sum(-1).mean()


def _optimiser(model: Qwen3Model) -> torch.optim.Optimizer:
    table = model.embed_tokens.weight
    rest = [weight for weight in model.parameters() if weight is not table]
    groups = [
        {"params": [table], "lr": 0.0, "highest": RATES["embeddings"]},
        {"params": rest, "lr": 0.0, "highest": RATES["rest"]},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def _nearest(queries: Tensor, passages: Tensor) -> np.ndarray:
    """Return [queries, NEIGHBOURS]: indices of the passages with the highest cosine."""
    offered = passages.bfloat16().T
    parts = [torch.topk(part.bfloat16() @ offered, NEIGHBOURS, dim=1).indices for part in queries.split(1000)]
    return torch.cat(parts).numpy()
