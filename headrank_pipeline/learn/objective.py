"""What training minimises: one of the losses of `preference`, with its regulariser, as an `Objective` says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrank_pipeline.learn import preference
from headrank_pipeline.learn.settings import Objective

__all__ = ["ListLoss", "list_loss"]


@dataclass(frozen=True, slots=True)
class ListLoss:
    """The loss of one list and what it was made of.

    Attributes:
        loss: scalar, differentiable.
        main: value of the loss without regulariser.
        regulariser: value of the regulariser, before its weight.
        pairs: preference pairs used.
        violations: number of these that the present scores order wrongly.
    """

    loss: Tensor
    main: float
    regulariser: float = 0.0
    pairs: int = 0
    violations: int = 0


def list_loss(
    objective: Objective,
    scores: Tensor,
    grades: Tensor,
    *,
    teacher: Tensor | None = None,
    seed: int = 0,
    texts: Tensor | None = None,
) -> ListLoss:
    """Return the loss of one list.

    Args:
        objective: what the scores should become.
        scores: [P] as the rule gives them, in the order of the prompt or its reverse.
        grades: [P] int64.
        teacher: [P], for distillation.
        seed: seed of the random pairs.
        texts: [P] int64, equal where passages are: these are never paired.

    Raises:
        ValueError: distillation of a list without teacher scores.
    """
    logs = preference.log_scores(scores)
    if objective.kind == "preference":
        return _preference(objective, logs, grades, seed, texts)
    if objective.kind == "group-contrastive":
        loss = preference.group_contrastive_loss(
            scores, grades, scale=objective.scale, relevance_level=objective.relevance_level
        )
    elif objective.kind == "listwise":
        loss = preference.listwise_loss(logs, grades, temperature=objective.score_temperature)
    else:
        if teacher is None:
            raise ValueError("distillation needs a 'teacher' score beside every candidate of the list")
        loss = preference.distillation_loss(
            logs,
            teacher,
            teacher_temperature=objective.teacher_temperature,
            score_temperature=objective.score_temperature,
        )
    return ListLoss(loss, float(loss.detach()))


def _preference(objective: Objective, logs: Tensor, grades: Tensor, seed: int, texts: Tensor | None) -> ListLoss:
    generator = None if objective.hard else torch.Generator().manual_seed(seed)
    pairs = preference.preference_pairs(
        grades,
        logs,
        limit=objective.pairs,
        steps=objective.steps,
        hard=objective.hard,
        generator=generator,
        texts=texts,
    )
    margins = preference.pair_margins(grades, pairs, objective.margins) if objective.margins else 0.0
    main = preference.pair_loss(logs, pairs, beta=objective.beta, margins=margins)
    extra = _regulariser(objective, logs, grades)
    loss = main if extra is None else main + objective.weight * extra
    wrong = logs.detach()[pairs[:, 0]] < logs.detach()[pairs[:, 1]]
    return ListLoss(
        loss,
        float(main.detach()),
        0.0 if extra is None else float(extra.detach()),
        len(pairs),
        int(wrong.sum()),
    )


def _regulariser(objective: Objective, logs: Tensor, grades: Tensor) -> Tensor | None:
    if objective.regulariser == "none" or not objective.weight:
        return None
    everywhere = torch.ones(len(logs), dtype=torch.bool, device=logs.device)
    zone = everywhere if objective.zone == "all" else preference.middle_zone(len(logs), logs.device)
    if objective.regulariser == "variance":
        return preference.negative_variance(logs, zone)
    return preference.grade_divergence(
        logs,
        grades,
        zone,
        grade_temperature=objective.grade_temperature,
        score_temperature=objective.score_temperature,
    )
