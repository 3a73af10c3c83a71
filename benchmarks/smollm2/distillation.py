"""Teaching SmolLM2's heads the order in which sentence encoders see passages: no judgment is used.

Each step takes 32 passages, most in groups of eight that a first stage or the encoders find alike, and 32 questions.
The mean share of the selected heads is pulled towards softmax(product / temperature) of the encoders' vectors over all
32, and so is the share of every single head, with less weight. What moves are low-rank updates of the upper layers'
projections.
"""

from __future__ import annotations

import json
import math
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaModel

from smollm2.in_batch import Frame, InBatch, LowRank, with_low_rank
from smollm2.texts import Texts

__all__ = ["Distillation", "Settings", "changes", "folded"]

_WEIGHTS = {  # of groups, by where the passage is from; others count 1
    "dl23": 3.0,
    "antique_graded": 2.0,
    "rankzephyr_sample": 1.5,
    "wikipedia": 1.5,
    "packages": 1.5,
    "foldoc": 1.5,
    "gcide": 0.7,
    "nfcorpus_preproc": 0.7,
    "wordnet": 0.5,
}
_NEIGHBOURS = 24


@dataclass(frozen=True)
class Settings:
    """Everything that decides the distillation besides the texts."""

    heads: tuple[tuple[int, int], ...] = ((17, 3), (17, 4), (17, 5), (17, 0), (15, 6), (15, 7))
    minutes: float = 28.0
    rank: int = 15
    learning_rate: float = 8e-4
    trained_from: int = 5  # the layers below stay as they are, and need no backward pass
    temperature: float = 1.0  # of the products; `encoders.py` has sharpened them
    each_head: float = 0.3  # weight of the divergence of single heads
    passages: int = 32
    group: int = 8
    passage_tokens: tuple[int, ...] = (40, 64, 64, 80, 112)  # of a step, drawn
    question_tokens: int = 32
    seen: tuple[int, ...] = (4, 4, 8, 16)  # passages that questions see below the layers that are read
    from_collections: float = 0.45  # share of the groups that belong to a collection's query
    favoured: tuple[tuple[str, int], ...] = ()  # collections whose queries are drawn so often; others once
    warm_up: int = 20
    least_rate: float = 0.03
    seed: int = 0
    started_from: str | None = None  # an adapter, or the folder of a distillation, that this one goes on from


@dataclass
class Distillation:
    """Trains low-rank updates of a model so that heads share their attention as an encoder's products do.

    Args:
        model: LlamaModel in bfloat16, cut off after the deepest head; trained in place.
        frame: pieces of the product's prompt.
        texts: passages and questions.
        passage_vectors: the encoders', [passages, width].
        question_vectors: [questions, width].
        settings: the rest.
    """

    model: LlamaModel
    frame: Frame
    texts: Texts
    passage_vectors: Tensor
    question_vectors: Tensor
    settings: Settings
    log: list[dict[str, float]] = field(default_factory=list)

    def run(self, folder: Path) -> dict[str, LowRank]:
        """Train for the minutes of the settings; updates and log are written to the folder on the way."""
        s = self.settings
        torch.manual_seed(s.seed)
        updates = with_low_rank(
            self.model.requires_grad_(False), s.rank, first=s.trained_from, deepest=max(at for at, _ in s.heads)
        )
        if s.started_from:
            earlier = changes(Path(s.started_from))
            for name, update in updates.items():
                update.set(earlier[name])
        weights = [weight for update in updates.values() for weight in (update.down, update.up)]
        optimiser = torch.optim.AdamW(weights, lr=s.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
        reader, batches = InBatch(self.model, s.heads, s.trained_from), _Batches(self)
        began, recent, step = time.monotonic(), [], 0
        while (done := (time.monotonic() - began) / 60 / s.minutes) < 1:
            rate = min(1.0, (step + 1) / s.warm_up) * max(s.least_rate, (1 + math.cos(math.pi * done)) / 2)
            for group in optimiser.param_groups:
                group["lr"] = s.learning_rate * rate
            recent.append(self._step(reader, batches, optimiser, weights))
            step += 1
            if step % 10 == 0:
                together, each, best = (round(float(value), 4) for value in np.mean(recent, axis=0))
                self.log.append({"step": step, "divergence": together, "of_each_head": each, "same_best": best})
                print(f"step {step}, {time.monotonic() - began:.0f} s: {self.log[-1]}", flush=True)
                recent = []
            if step % 50 == 0:
                self._save(updates, folder)
        self._save(updates, folder)
        return updates

    def _step(self, reader: InBatch, batches: _Batches, optimiser: Any, weights: list[Tensor]) -> tuple[float, ...]:
        s = self.settings
        passages, questions, prefix, seen, room, wanted = batches.draw()
        lengths = {"row_length": len(batches.opening) + room, "question_length": s.question_tokens}
        shares = reader.shares(batches.opening, passages, prefix, questions, seen, **lengths)
        together, each = _divergence(wanted, shares.mean(0)), _divergence(wanted, shares)
        (together + s.each_head * each).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        same = (shares.mean(0).argmax(-1) == wanted.argmax(-1)).float().mean()
        return together.item(), each.item(), same.item()

    def _save(self, updates: dict[str, LowRank], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: update.update() for name, update in updates.items()}, folder / "updates.pt")
        record = {"settings": asdict(self.settings), "log": self.log}
        (folder / "distillation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def changes(path: Path) -> dict[str, Tensor]:
    """Return what a distillation (its folder) or an adapter (its file) adds to each projection, [out, in]."""
    if path.is_dir():
        return torch.load(path / "updates.pt")
    factors = load_file(path)
    names = [name.removesuffix(".lora_A.weight") for name in factors if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix("model."): factors[f"{name}.lora_B.weight"].float() @ factors[f"{name}.lora_A.weight"].float()
        for name in names
    }


def folded(model: torch.nn.Module, folder: Path) -> None:
    """Add what a distillation saved to the weights it belongs to."""
    for name, update in changes(folder).items():
        model.get_submodule(name).weight.data += update


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    return (wanted * (wanted.clamp_min(1e-9).log() - found.clamp_min(1e-9).log())).sum(-1).mean()


class _Batches:
    """Draws the passages and questions of a step."""

    def __init__(self, job: Distillation) -> None:
        self.job, self.settings, self.texts = job, job.settings, job.texts
        self.chance = random.Random(job.settings.seed)
        self.asked: dict[int, list[int]] = {}
        self.free = []
        for place, question in enumerate(job.texts.questions):
            if question.passage is None:
                source = job.texts.sources[question.candidates[0]]
                self.free += [place] * dict(self.settings.favoured).get(source, 1)
            else:
                self.asked.setdefault(question.passage, []).append(place)
        self.by_source: dict[str, list[int]] = {}
        for passage in sorted(self.asked):
            self.by_source.setdefault(job.texts.sources[passage], []).append(passage)
        self.opening = job.frame.opening
        self.alike = _nearest(job.passage_vectors)
        self.kept: dict[int, list[int]] = {}

    def draw(self) -> tuple[list[list[int]], list[list[int]], list[int], Tensor, int, Tensor]:
        """Return passages, questions, their common prefix, which passages they see, tokens per passage, and targets."""
        s, chance = self.settings, self.chance
        passages: list[int] = []
        questions: list[int] = []
        while len(set(passages)) < s.passages:
            passages += self._group(questions)
        passages = list(dict.fromkeys(passages))[: s.passages]
        chance.shuffle(passages)
        able = [passage for passage in passages if passage in self.asked]
        questions = (questions + [chance.choice(self.asked[passage]) for passage in (*able, *able)])[: s.passages]
        room = chance.choice(s.passage_tokens)
        shown = [self._tokens(passage) for passage in passages]
        shown = [ids if len(ids) <= room else [*ids[: room - 1], ids[-1]] for ids in shown]
        pieces = [self._question(place) for place in questions]
        start = pieces[0][1]
        seen = torch.tensor(chance.sample(range(len(passages)), chance.choice(s.seen)))
        products = self.job.question_vectors[questions] @ self.job.passage_vectors[passages].T
        wanted = torch.softmax(products / s.temperature, -1)
        return shown, [ids[start:] for ids, _ in pieces], pieces[0][0][:start], seen, room, wanted

    def _group(self, questions: list[int]) -> list[int]:
        """Return passages that are alike; a collection's query that they belong to joins the questions."""
        chance, group = self.chance, self.settings.group
        if chance.random() < self.settings.from_collections:
            place = chance.choice(self.free)
            questions.append(place)
            candidates = list(self.texts.questions[place].candidates)
            products = self.job.passage_vectors[candidates] @ self.job.question_vectors[place]
            best = [candidates[index] for index in products.topk(3).indices.tolist()]
            return [chance.choice(best), *chance.sample(candidates, min(group - 1, len(candidates)))]
        names = list(self.by_source)
        name = chance.choices(names, [_WEIGHTS.get(name, 1.0) for name in names])[0]
        passage = chance.choice(self.by_source[name])
        others = [other for other in self.alike[passage].tolist() if other != passage]
        return [passage, *chance.sample(others, group - 1)]

    def _tokens(self, passage: int) -> list[int]:
        if passage not in self.kept:
            self.kept[passage] = self.job.frame.passage(self.texts.passages[passage])
        return self.kept[passage]

    def _question(self, place: int) -> tuple[list[int], int]:
        """Return a question of at most so many rows; a longer query loses its last tokens, not the end of the turn."""
        ids, start = self.job.frame.question(self.texts.questions[place].text)
        over = max(0, len(ids) - start - self.settings.question_tokens)
        end = len(ids) - self.job.frame.end
        return [*ids[: end - over], *ids[end:]], start


def _nearest(vectors: Tensor) -> Tensor:
    """Return [passages, neighbours]: indices of the passages with the highest cosine."""
    offered = vectors.bfloat16().T
    parts = [torch.topk(part.bfloat16() @ offered, _NEIGHBOURS, dim=1).indices for part in vectors.split(1000)]
    return torch.cat(parts)
