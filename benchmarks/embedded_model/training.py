"""Gradient steps through the product's own prompt and reader."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from embedded_model.lessons import Lesson, sampled
from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.rerank.recipes import HEADRANK

__all__ = ["train"]

PASSAGES = (7, 9)  # of a list
WORDS = (30, 45)
BATCH = 12  # lists of a step
WARM_UP = 10  # steps
RATES = {"table": 2e-3, "matrices": 2e-5, "vectors": 3e-4}

Groups = Sequence[tuple[float, Sequence[Lesson]]]


def train(
    reader: AttentionReader, groups: Groups, check: Callable[[], float], *, steps: int, every: int, seed: int
) -> dict:
    """Train every weight up to the deepest head; keep those that `check` likes best, the initial ones included.

    Args:
        reader: of the heads to train.
        groups: lessons and how often to draw from them.
        check: the figure on held-out queries, higher is better.
        steps: of the optimiser.
        every: steps from one check to the next.
        seed: of the draws.
    """
    chance = random.Random(seed)
    builder = PromptBuilder(reader.tokenizer, HEADRANK.template, max_prompt_tokens=8192)
    model, optimiser = reader.model.requires_grad_(True), _optimiser(reader.model)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / WARM_UP) * max(0.05, 1.0 - step / steps)
    )
    best, kept, chosen, losses = check(), _copy(model), 0, []
    started = time.monotonic()
    for step in range(1, steps + 1):
        losses.append(_step(reader, builder, _draw(groups, chance), optimiser))
        schedule.step()
        if step % 10 == 0:
            print(f"step {step}: loss {np.mean(losses[-10:]):.4f}, {time.monotonic() - started:.0f} s", flush=True)
        if step % every == 0 or step == steps:
            value = check()
            print(f"step {step}: dev nDCG@10 {value:.4f}", flush=True)
            if value > best:
                best, kept, chosen = value, _copy(model), step
    model.load_state_dict(kept)
    model.requires_grad_(False)
    return {"steps": chosen, "lists": chosen * BATCH, "dev_ndcg_cut_10": round(best, 4)}


def passage_shares(read: Tensor, prompt: Prompt) -> Tensor:
    """Return [P]: the attention mass of each passage, mean over heads; sums to 1."""
    tokens = read.mean(0)
    return torch.stack([tokens[start:end].sum() for start, end in prompt.passages.tolist()])


def _optimiser(model: torch.nn.Module) -> torch.optim.Optimizer:
    table = model.embed_tokens.weight
    rest = [weight for weight in model.parameters() if weight is not table]
    parts = {
        "table": [table],
        "matrices": [weight for weight in rest if weight.ndim == 2],
        "vectors": [weight for weight in rest if weight.ndim == 1],
    }
    groups = [{"params": weights, "lr": RATES[name]} for name, weights in parts.items()]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)


def _draw(groups: Groups, chance: random.Random) -> list[tuple]:
    passages, words = chance.choice(PASSAGES), chance.choice(WORDS)
    weights = [weight for weight, _ in groups]
    lessons = [chance.choice(chance.choices(groups, weights)[0][1]) for _ in range(BATCH)]
    return [sampled(lesson, chance, passages=passages, words=words) for lesson in lessons]


def _step(
    reader: AttentionReader, builder: PromptBuilder, drawn: list[tuple], optimiser: torch.optim.Optimizer
) -> float:
    """Take one step on the cross entropy between wanted and given shares; return its mean."""
    prompts = [builder.build(ranking) for ranking, _ in drawn]
    optimiser.zero_grad(set_to_none=True)
    reads = reader.forward(prompts, support="passages")
    losses = [
        -(torch.from_numpy(wanted).float() * passage_shares(read, prompt).clamp_min(1e-9).log()).sum()
        for read, prompt, (_, wanted) in zip(reads, prompts, drawn, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reader.model.parameters(), 1.0)
    optimiser.step()
    return loss.item()


def _copy(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}
