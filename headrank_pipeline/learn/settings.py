"""Choices of head selection and training as data, without torch: a command line lists them and shows their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from headrank_pipeline.learn.lists import Order

__all__ = ["CRITERIA", "MOVES", "Criterion", "Moves", "Objective", "SelectionConfig", "Steps"]

Criterion = Literal["entropy-regularised", "discrimination", "qrscore", "ndcg", "core", "layer-window"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

# Which weights training moves (learn/movable.py).
Moves = Literal["lora", "lora-all", "heads", "qk", "all"]
MOVES: tuple[Moves, ...] = get_args(Moves)


# Which pairs of grades make a preference (learn/preference.py).
Steps = Literal["one", "adjacent-present", "any"]


@dataclass(frozen=True, slots=True)
class Objective:
    """What the scores of a list should become.

    Args:
        kind: ``preference`` (pairs and regulariser, METHOD 1.4), ``group-contrastive`` (QRRanker), ``listwise``
            (softmax cross-entropy) or ``distillation`` (towards the lists' teacher scores).
        beta: steepness of the pair loss.
        margins: margins of pairs whose better passage has grade 1, 2, …; empty for none.
        pairs: kept per list.
        steps: ``one`` grade apart, neighbours among the grades present, or ``any`` two grades (ablation).
        hard: hardest pairs first; False draws them at random (ablation).
        regulariser: towards the grades' distribution, for variance, or none (ablation).
        weight: weight of the regulariser.
        zone: where it applies: the ``middle`` half of the context, or ``all`` of it.
        grade_temperature: temperature of the target that grades shape.
        score_temperature: temperature of the scores' softmax, in the regulariser, the listwise loss and distillation.
        teacher_temperature: temperature of the teacher's softmax.
        scale: scale of the group-contrastive loss.
        relevance_level: lowest grade of a positive there.
    """

    kind: Literal["preference", "group-contrastive", "listwise", "distillation"] = "preference"
    beta: float = 2.0
    margins: tuple[float, ...] = ()
    pairs: int = 64
    steps: Steps = "one"
    hard: bool = True
    regulariser: Literal["grades", "variance", "none"] = "grades"
    weight: float = 0.1
    zone: Literal["middle", "all"] = "middle"
    grade_temperature: float = 1.0
    score_temperature: float = 1.0
    teacher_temperature: float = 0.07
    scale: float = 8.0
    relevance_level: int = 1

    def __post_init__(self) -> None:
        for name in ("beta", "pairs", "grade_temperature", "score_temperature", "teacher_temperature", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"objective: {name} {getattr(self, name)!r}: expected a number above 0")


@dataclass(frozen=True, slots=True)
class SelectionConfig:
    """What decides a choice of heads, besides model, prompt and data.

    Args:
        criterion: one of `CRITERIA`; ``discrimination`` is the entropy-regularised one with lambda 0.
        num_heads: how many to keep (a layer window keeps all heads of its layers instead).
        entropy_weight: lambda, of the entropy term.
        flatness_weight: weight of a term that prefers heads whose attention ignores the place; 0 leaves it out. It is
            z(log flatness), subtracted from the criterion's score, which is made a z-score for that.
        depth_cap: largest share of the model's layers that may be kept, or None.
        window: layers of the layer window (Selective-ICR: 4).
        temperature: temperature of CoRe's contrastive score.
        relevance_level: lowest grade that counts as relevant for QRScore and CoRe.
        order: how passages are arranged; ``random``, or a head that looks at the first ones is taken for a good one.
        list_size: passages drawn from each list, or None for whole lists.
        max_lists: use that many lists, the first ones; None for all.
        max_prompt_tokens: budget of a prompt, or None for all positions of the model.
        seed: starts the passage order.
    """

    criterion: Criterion = "entropy-regularised"
    num_heads: int = 16
    entropy_weight: float = 0.25
    flatness_weight: float = 0.0
    depth_cap: float | None = None
    window: int = 4
    temperature: float = 0.1
    relevance_level: int = 1
    order: Order = "random"
    list_size: int | None = None
    max_lists: int | None = None
    max_prompt_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion {self.criterion!r}: expected one of {', '.join(CRITERIA)}")
        if self.num_heads < 1 or self.window < 1:
            raise ValueError(f"num_heads {self.num_heads} and window {self.window}: expected at least 1")
        if self.depth_cap is not None and not 0 < self.depth_cap <= 1:
            raise ValueError(f"depth_cap {self.depth_cap!r}: expected a share above 0 and at most 1, for example 0.7")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature!r}: expected a number above 0")
        if not 0 <= self.flatness_weight < float("inf"):
            raise ValueError(f"flatness_weight {self.flatness_weight!r}: expected a number from 0")
        if self.flatness_weight and self.criterion == "layer-window":
            raise ValueError("flatness_weight: a layer window takes all heads of its layers; leave it out")
        if self.flatness_weight and self.order != "random":
            raise ValueError(
                f"flatness_weight: with order {self.order!r} a place holds what is relevant; measure with order random"
            )
