"""What training minimises: one of the losses of `preference`, with its regulariser, as one configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headrank_pipeline.learn import preference
from headrank_pipeline.learn.preference import Steps

__all__ = ["ListLoss", "Objective"]


@dataclass(frozen=True, slots=True)
class ListLoss:
    """The loss of one list and what it was made of.

    Attributes:
        loss: scalar, differentiable.
        main: value of the loss without regulariser.
        regulariser: value of the regulariser, before its weight.
        pairs: preference pairs used.
        violations: of these, how many the present scores order wrongly.
    """

    loss: Tensor
    main: float
    regulariser: float = 0.0
    pairs: int = 0
    violations: int = 0


@dataclass(frozen=True, slots=True)
class Objective:
    """What the scores of a list should become.

    Args:
        kind: ``preference`` (pairs and regulariser, METHOD 1.4), ``group-contrastive`` (QRRanker), ``listwise``
            (softmax cross-entropy) or ``distillation`` (towards the lists' teacher scores).
        beta: steepness of the pair loss.
        margins: of pairs whose better passage has grade 1, 2, …; empty for none.
        pairs: kept per list.
        steps: ``one`` grade apart, neighbours among the grades present, or ``any`` two grades (ablation).
        hard: hardest pairs first; False draws them at random (ablation).
        regulariser: towards the grades' distribution, for variance, or none (ablation).
        weight: of the regulariser.
        zone: where it applies: the ``middle`` half of the context, or ``all`` of it.
        grade_temperature: of the target that grades shape.
        score_temperature: of the scores' softmax, in the regulariser, the listwise loss and distillation.
        teacher_temperature: of the teacher's softmax.
        scale: of the group-contrastive loss.
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

    def of(
        self,
        scores: Tensor,
        grades: Tensor,
        *,
        teacher: Tensor | None = None,
        seed: int = 0,
        texts: Tensor | None = None,
    ) -> ListLoss:
        """Return the loss of one list.

        Args:
            scores: [P] as the rule gives them, in the order of the prompt or its reverse.
            grades: [P] int64.
            teacher: [P], for distillation.
            seed: of the random pairs.
            texts: [P] int64, equal where passages are: these are never paired.

        Raises:
            ValueError: distillation of a list without teacher scores.
        """
        logs = preference.log_scores(scores)
        if self.kind == "preference":
            return self._preference(logs, grades, seed, texts)
        if self.kind == "group-contrastive":
            loss = preference.group_contrastive_loss(
                scores, grades, scale=self.scale, relevance_level=self.relevance_level
            )
        elif self.kind == "listwise":
            loss = preference.listwise_loss(logs, grades, temperature=self.score_temperature)
        else:
            if teacher is None:
                raise ValueError("distillation needs a 'teacher' score beside every candidate of the list")
            loss = preference.distillation_loss(
                logs,
                teacher,
                teacher_temperature=self.teacher_temperature,
                score_temperature=self.score_temperature,
            )
        return ListLoss(loss, float(loss.detach()))

    def _preference(self, logs: Tensor, grades: Tensor, seed: int, texts: Tensor | None) -> ListLoss:
        generator = None if self.hard else torch.Generator().manual_seed(seed)
        pairs = preference.preference_pairs(
            grades, logs, limit=self.pairs, steps=self.steps, hard=self.hard, generator=generator, texts=texts
        )
        margins = preference.pair_margins(grades, pairs, self.margins) if self.margins else 0.0
        main = preference.pair_loss(logs, pairs, beta=self.beta, margins=margins)
        extra = self._regulariser(logs, grades)
        loss = main if extra is None else main + self.weight * extra
        wrong = logs.detach()[pairs[:, 0]] < logs.detach()[pairs[:, 1]]
        return ListLoss(
            loss,
            float(main.detach()),
            0.0 if extra is None else float(extra.detach()),
            len(pairs),
            int(wrong.sum()),
        )

    def _regulariser(self, logs: Tensor, grades: Tensor) -> Tensor | None:
        if self.regulariser == "none" or not self.weight:
            return None
        everywhere = torch.ones(len(logs), dtype=torch.bool, device=logs.device)
        zone = everywhere if self.zone == "all" else preference.middle_zone(len(logs), logs.device)
        if self.regulariser == "variance":
            return preference.negative_variance(logs, zone)
        return preference.grade_divergence(
            logs,
            grades,
            zone,
            grade_temperature=self.grade_temperature,
            score_temperature=self.score_temperature,
        )
