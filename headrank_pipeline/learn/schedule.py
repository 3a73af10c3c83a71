"""How a training run goes: its configuration, the order of its lists, and the learning rate of each step."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from headrank_pipeline.learn.lists import Order
from headrank_pipeline.learn.settings import Moves, Objective
from headrank_pipeline.options import nearest

__all__ = ["Draw", "TrainingConfig", "configured", "learning_rate", "plan"]

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides what training does, besides model, heads, prompt and data.

    Args:
        objective: what is minimised.
        moves: ``lora`` on q and k, ``lora-all`` on every projection (both need peft), ``qk`` whole, ``heads``: q and k
            of the layers that are read, or
            ``all`` weights up to the deepest head.
        lora_rank: rank of the updates.
        lora_alpha: their scale is alpha / rank.
        lora_dropout: dropout on their input.
        learning_rate: peak, of AdamW.
        embedding_factor: the token embeddings' rate is that times this (they move only with ``all``).
        weight_decay: AdamW's weight decay.
        betas: AdamW's betas.
        warmup: share of the steps in which the rate rises linearly to the peak.
        decay: what it does afterwards; cosine and linear end at 0.
        epochs: passes over the lists.
        max_steps: end there even if the epochs are not over; None for no limit.
        lists_per_step: lists whose gradients are summed for one step.
        lists_per_pass: number of these that share a forward pass; more fill a GPU better and need more memory.
        list_size: passages drawn from each list; None for whole lists.
        draws: lists drawn from each list per epoch.
        order: order of the passages: ``random``, new in each epoch, ``given`` or ``reversed``.
        clip: largest norm of the gradient; None for no clipping.
        averaging: decay of a running mean of the weights, which starts with the weights training starts with, and is
            what dev lists are scored with and what is kept; None: the weights themselves.
        evaluate_every: steps between evaluations on the dev lists; None: once per epoch.
        patience: evaluations without a better one after which training stops; None: never.
        save_every: steps between checkpoints, besides those after each evaluation; None: only those.
        precision: ``auto`` is bfloat16 autocast on a GPU and float32 on a CPU.
        checkpoint_activations: recompute activations in the backward pass: less memory, about a third more time.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.
        seed: seed of everything that is drawn at random.
    """

    objective: Objective = field(default_factory=Objective)
    moves: Moves = "lora"
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    learning_rate: float = 1e-4
    embedding_factor: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.1
    decay: Literal["cosine", "linear", "none"] = "cosine"
    epochs: int = 3
    max_steps: int | None = None
    lists_per_step: int = 8
    lists_per_pass: int = 1
    list_size: int | None = 20
    draws: int = 1
    order: Order = "random"
    clip: float | None = 1.0
    averaging: float | None = None
    evaluate_every: int | None = None
    patience: int | None = None
    save_every: int | None = None
    precision: Precision = "auto"
    checkpoint_activations: bool = False
    max_prompt_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "lists_per_step", "lists_per_pass", "draws", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"training: {name} {getattr(self, name)!r}: expected at least 1")
        for name in ("max_steps", "evaluate_every", "patience", "save_every", "clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"training: {name} {value!r}: expected a number above 0, or None")
        if min(self.learning_rate, self.embedding_factor) <= 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"training: learning_rate {self.learning_rate!r} and warmup {self.warmup!r}: "
                             f"expected a rate above 0 and a share of at least 0 and below 1")  # fmt: skip
        if self.averaging is not None and not 0 < self.averaging < 1:
            raise ValueError(f"training: averaging {self.averaging!r}: expected a decay between 0 and 1, or None")
        if self.list_size is not None and self.list_size < 2:
            raise ValueError(f"training: list_size {self.list_size}: expected at least 2 passages, or None")

    def describe(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values."""
        return asdict(self)

    def steps(self, lists: int) -> int:
        """Return the number of steps for so many lists."""
        whole = self.epochs * math.ceil(lists * self.draws / self.lists_per_step)
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def steps_per_epoch(self, lists: int) -> int:
        """Return the number of steps in which every list is seen once, times `draws`."""
        return math.ceil(lists * self.draws / self.lists_per_step)


def configured(config: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    """Return the configuration with some settings changed; ``objective.beta`` names one of the objective.

    Args:
        config: configuration to start from.
        changes: name -> JSON value.

    Raises:
        ValueError: an unknown setting (with the nearest known one), or a value of the wrong type or range.
    """
    from pydantic import TypeAdapter, ValidationError  # takes longer to load than all else that --help needs

    settings = config.describe()
    known = {name: (settings, name) for name in settings if name != "objective"}
    known |= {f"objective.{name}": (settings["objective"], name) for name in settings["objective"]}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"no setting {name!r}; {nearest(name, known)}")
        group, key = known[name]
        group[key] = value
    try:
        return TypeAdapter(TrainingConfig).validate_json(json.dumps(settings), strict=True)
    except ValidationError as error:
        problem = error.errors()[0]
        name, wanted = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        # Settings that are wrong by their own rules, not by their type, say so themselves.
        told = f"training setting {name}: {wanted}, got {problem['input']!r}" if name else wanted
        raise ValueError(told) from error


@dataclass(frozen=True, slots=True)
class Draw:
    """One list of one step: which list, and which of its many sub-lists."""

    index: int
    epoch: int
    draw: int


def plan(config: TrainingConfig, lists: int) -> Iterator[list[Draw]]:
    """Yield the draws of every step; a pure function of the configuration, so that a run can be taken up anywhere.

    Examples:
        >>> config = TrainingConfig(epochs=1, lists_per_step=2)
        >>> [len(step) for step in plan(config, 5)], config.steps(5)
        ([2, 2, 1], 3)
    """
    done = 0
    for epoch in range(config.epochs):
        draws = [Draw(index, epoch, draw) for draw in range(config.draws) for index in range(lists)]
        random.Random(f"{config.seed}/order/{epoch}").shuffle(draws)
        for start in range(0, len(draws), config.lists_per_step):
            if done == config.steps(lists):
                return
            done += 1
            yield draws[start : start + config.lists_per_step]


def learning_rate(config: TrainingConfig, step: int, steps: int) -> float:
    """Return the rate of step `step`, counted from 0, of `steps`.

    Examples:
        >>> config = TrainingConfig(learning_rate=1.0, warmup=0.2, decay="linear")
        >>> [round(learning_rate(config, step, 10), 3) for step in (0, 1, 2, 6, 9)]
        [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rising = math.ceil(config.warmup * steps)
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    if config.decay == "none":
        return config.learning_rate
    left = 1.0 - (step - rising) / max(1, steps - rising)
    share = left if config.decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))
    return config.learning_rate * share
