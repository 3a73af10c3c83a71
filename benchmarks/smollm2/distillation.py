"""Teaching SmolLM2's heads the order in which sentence encoders see passages, and then what people prefer.

Each step takes 32 passages, most in groups of eight that a first stage or the encoders find alike, and 32 questions.
The geometric mean of the selected heads' shares is pulled towards the softmax of the products of the encoders' vectors
over all 32 (`encoders.py` has sharpened them), and so is the share of every single head, with less weight. What moves
are low-rank updates of the upper layers' projections. Until here no judgment is used.

Where some questions are judged (`Settings.judged` above 0), the package's own preference objective
(`headrank_pipeline.learn.preference.list_loss`) is added on their candidates: hard pairs of adjacent grades, and the
distribution of the grades. The encoders' order goes on as an anchor for everything else.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaModel

from headrank_pipeline.learn.preference import list_loss
from headrank_pipeline.learn.settings import Objective
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
    "wordnet": 0.5,
}
_NEIGHBOURS = 24
PREFERENCE = Objective(beta=1.0, pairs=24, steps="adjacent-present", weight=1.0, zone="all", grade_temperature=0.5)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the distillation besides the texts."""

    heads: tuple[tuple[int, int], ...] = ((17, 3), (17, 4), (17, 5), (17, 0), (15, 6), (15, 7))
    steps: int = 400
    rank: int = 15
    learning_rate: float = 8e-4
    trained_from: int = 5  # the layers below stay as they are, and need no backward pass
    each_head: float = 0.3  # weight of the divergence of single heads
    passages: int = 32
    group: int = 8
    # Tokens that the passages of a step are padded or cut to -> how often; about so long are those that are drawn.
    passage_tokens: Mapping[int, float] = field(
        default_factory=lambda: {64: 0.2, 96: 0.25, 128: 0.25, 192: 0.17, 256: 0.13}
    )
    question_tokens: int = 32
    seen: tuple[int, ...] = (4, 4, 8, 16)  # passages that questions see below the layers that are read
    from_collections: float = 0.45  # share of the groups that belong to a collection's query
    favoured: tuple[tuple[str, int], ...] = ()  # collections whose queries are drawn so often; others once
    judged: float = 0.0  # share of the groups that belong to a judged query
    preference: float = 1.0  # weight of the objective on judged queries
    objective: Objective = field(default_factory=lambda: PREFERENCE)
    warm_up: int = 20
    least_rate: float = 0.03
    seed: int = 0
    started_from: str | None = None  # an adapter, or the folder of a distillation, that this one goes on from


@dataclass
class Distillation:
    """Trains low-rank updates of a model so that heads share their attention as the products of encoders' vectors say.

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
        """Train for the steps of the settings; updates and log are written to the folder on the way."""
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
        began, recent = time.monotonic(), []
        for step in range(1, s.steps + 1):
            cosine = (1 + math.cos(math.pi * (step - 1) / s.steps)) / 2
            rate = min(1.0, step / s.warm_up) * max(s.least_rate, cosine)
            for group in optimiser.param_groups:
                group["lr"] = s.learning_rate * rate
            recent.append(self._step(reader, batches, optimiser, weights))
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
        batch = batches.draw()
        lengths = {"row_length": len(batches.opening) + batch.room, "question_length": s.question_tokens}
        logs = reader.log_shares(batches.opening, batch.passages, batch.prefix, batch.questions, batch.seen, **lengths,
                             end=self.frame.end)  # fmt: skip
        scores, shares = torch.softmax(logs.mean(0), -1), torch.softmax(logs, -1)
        together, each = _divergence(batch.wanted, scores), _divergence(batch.wanted, shares)
        loss = together + s.each_head * each
        if batch.judged:
            preferred = [list_loss(s.objective, scores[row, at], grades).loss for row, at, grades in batch.judged]
            loss = loss + s.preference * torch.stack(preferred).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        same = (scores.argmax(-1) == batch.wanted.argmax(-1)).float().mean()
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


def folded(model: torch.nn.Module, path: Path) -> None:
    """Add what a distillation (its folder) or an adapter (its file) changes to the weights it belongs to."""
    for name, update in changes(path).items():
        model.get_submodule(name).weight.data += update


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    return (wanted * (wanted.clamp_min(1e-9).log() - found.clamp_min(1e-9).log())).sum(-1).mean()


@dataclass(frozen=True)
class _Batch:
    """What a step reads, as token ids, and what it should find."""

    passages: list[list[int]]
    questions: list[list[int]]
    prefix: list[int]  # of all questions
    seen: Tensor  # indices of the passages that questions see below the layers that are read
    room: int  # tokens of a passage
    wanted: Tensor  # [Q, P]
    judged: list[tuple[int, list[int], Tensor]]  # row, columns and grades of each judged question


class _Batches:
    """Draws the passages and questions of a step."""

    def __init__(self, job: Distillation) -> None:
        self.job, self.settings, self.texts = job, job.settings, job.texts
        self.chance = random.Random(job.settings.seed)
        self.asked: dict[int, list[int]] = {}
        self.free: dict[int, list[int]] = {}
        self.kept: dict[int, list[int]] = {}
        self.judged: list[int] = []
        for place, question in enumerate(job.texts.questions):
            if question.grades:
                self.judged.append(place)
            elif question.passage is None:
                source = job.texts.sources[question.candidates[0]]
                room = self._room(question.candidates)
                self.free.setdefault(room, []).extend([place] * dict(self.settings.favoured).get(source, 1))
            else:
                self.asked.setdefault(question.passage, []).append(place)
        self.by_source: dict[int, dict[str, list[int]]] = {room: {} for room in self.settings.passage_tokens}
        for passage in sorted(self.asked):
            sources = self.by_source[self._room([passage])]
            sources.setdefault(job.texts.sources[passage], []).append(passage)
        self.opening = job.frame.opening
        self.alike = _nearest(job.passage_vectors)

    def draw(self) -> _Batch:
        """Return the passages and questions of the next step."""
        s, chance = self.settings, self.chance
        passages: list[int] = []
        questions: list[int] = []
        room = chance.choices(list(s.passage_tokens), list(s.passage_tokens.values()))[0]
        while len(set(passages)) < s.passages:
            passages += self._group(questions, room)
        passages = list(dict.fromkeys(passages))[: s.passages]
        chance.shuffle(passages)
        able = [passage for passage in passages if passage in self.asked]
        questions = (questions + [chance.choice(self.asked[passage]) for passage in (*able, *able)])[: s.passages]
        shown = [self._tokens(passage) for passage in passages]
        shown = [ids if len(ids) <= room else [*ids[: room - 1], ids[-1]] for ids in shown]
        pieces = [self._question(place) for place in questions]
        start = pieces[0][1]
        seen = torch.tensor(chance.sample(range(len(passages)), chance.choice(s.seen)))
        products = self.job.question_vectors[questions] @ self.job.passage_vectors[passages].T
        wanted = torch.softmax(products, -1)
        judged = [self._judged(row, place, passages) for row, place in enumerate(questions)]
        return _Batch(shown, [ids[start:] for ids, _ in pieces], pieces[0][0][:start], seen, room, wanted,
                      [one for one in judged if len(one[1]) > 1])  # fmt: skip

    def _judged(self, row: int, place: int, passages: list[int]) -> tuple[int, list[int], Tensor]:
        question, columns = self.texts.questions[place], {passage: at for at, passage in enumerate(passages)}
        grades = {columns[passage]: grade for passage, grade in zip(question.candidates, question.grades, strict=False)
                  if passage in columns}  # fmt: skip
        return row, list(grades), torch.tensor(list(grades.values()), dtype=torch.int64)

    def _group(self, questions: list[int], room: int) -> list[int]:
        """Return passages that are alike; a collection's query that they belong to joins the questions."""
        chance, group = self.chance, self.settings.group
        if self.judged and chance.random() < self.settings.judged:
            place = chance.choice(self.judged)
            questions.append(place)
            question = self.texts.questions[place]
            top = max(question.grades)
            best = [
                passage for passage, grade in zip(question.candidates, question.grades, strict=True) if grade == top
            ]
            return [chance.choice(best), *chance.sample(question.candidates, min(group - 1, len(question.candidates)))]
        free = self.free.get(room, [])
        if free and chance.random() < self.settings.from_collections:
            place = chance.choice(free)
            questions.append(place)
            candidates = list(self.texts.questions[place].candidates)
            products = self.job.passage_vectors[candidates] @ self.job.question_vectors[place]
            best = [candidates[index] for index in products.topk(3).indices.tolist()]
            return [chance.choice(best), *chance.sample(candidates, min(group - 1, len(candidates)))]
        by_source = self.by_source[room]
        names = list(by_source)
        name = chance.choices(names, [_WEIGHTS.get(name, 1.0) for name in names])[0]
        passage = chance.choice(by_source[name])
        others = [other for other in self.alike[passage].tolist() if other != passage]
        return [passage, *chance.sample(others, group - 1)]

    def _room(self, passages: Sequence[int]) -> int:
        """Return the tokens that the middle one of the passages fits into; a longer one is cut."""
        length = sorted(len(self._tokens(passage)) for passage in passages)[len(passages) // 2]
        return next(
            (room for room in self.settings.passage_tokens if length <= room), max(self.settings.passage_tokens)
        )

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
