"""Preferences over attention scores: pairs of passages, the losses on them, and regularisers. Pure tensor functions.

Written for log-scores [P] of one list: with the documents-only softmax a list's scores sum to 1, and differences of
their logarithms do not change when all attention is multiplied by a constant. The paper's formulas are not available
to us; these are METHOD 1.4's, and `group_contrastive_loss` is QRRanker's (arXiv 2602.12192).
`list_loss` puts together one of the losses and its regulariser, as an `Objective` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from headrank_pipeline.learn.settings import Objective, Steps

__all__ = [
    "ListLoss",
    "distillation_loss",
    "grade_divergence",
    "group_contrastive_loss",
    "list_loss",
    "listwise_loss",
    "log_scores",
    "middle_zone",
    "negative_variance",
    "pair_loss",
    "pair_margins",
    "preference_pairs",
]

# Scores at or below this count as this: the logarithm of a passage without tokens, or without any mass, is finite.
_FLOOR = 1e-12


def log_scores(scores: Tensor) -> Tensor:
    """Return the logarithm of non-negative scores [P], floored at 1e-12.

    Examples:
        >>> log_scores(torch.tensor([1.0, 0.0])).round(decimals=2).tolist()
        [0.0, -27.6299991607666]
    """
    return scores.clamp_min(_FLOOR).log()


# ----------------------------------------------------------------------------------------------------------- pairs


def preference_pairs(
    grades: Tensor,
    scores: Tensor,
    *,
    limit: int | None = 64,
    steps: Steps = "one",
    hard: bool = True,
    generator: torch.Generator | None = None,
    texts: Tensor | None = None,
) -> Tensor:
    """Return pairs of passages, the more relevant one first.

    Args:
        grades: [P] int64.
        scores: [P] log-scores of the present model; only their order matters, no gradient flows.
        limit: pairs to keep, or None for all.
        steps: ``one`` pairs grades exactly one apart, ``adjacent-present`` neighbours among the grades that the list
            has (3 with 1 where it has no 2), ``any`` all that differ.
        hard: keep the pairs with the smallest score difference: violations, the worst first, then the narrowest.
            Otherwise a random choice.
        generator: generator of the random choice; None uses seed 0.
        texts: [P] int64, equal where passages are; these are never paired, whatever their grades. None: all differ.

    Returns:
        [B, 2] int64 on the device of `grades`; equal differences stay in index order.

    Examples:
        >>> preference_pairs(torch.tensor([2, 1, 0]), torch.tensor([0.1, 0.3, 0.2])).tolist()
        [[0, 1], [1, 2]]
    """
    measured = torch.unique(grades, return_inverse=True)[1] if steps == "adjacent-present" else grades
    apart = measured[:, None] - measured[None, :]
    wanted = apart > 0 if steps == "any" else apart == 1
    if texts is not None:
        wanted = wanted & (texts[:, None] != texts[None, :])
    pairs = wanted.nonzero()
    if limit is None or (len(pairs) <= limit and not hard):
        return pairs
    if hard:
        values = scores.detach()
        order = torch.sort(values[pairs[:, 0]] - values[pairs[:, 1]], stable=True).indices
    else:
        generator = generator or torch.Generator().manual_seed(0)
        order = torch.randperm(len(pairs), generator=generator).to(pairs.device)
    return pairs[order[:limit]]


def pair_margins(grades: Tensor, pairs: Tensor, margins: Sequence[float]) -> Tensor:
    """Return the margin [B] of each pair: `margins[g - 1]` for a pair whose better passage has grade g.

    Grades beyond the list of margins take its last one; no margins are margins of 0.

    Examples:
        >>> pair_margins(torch.tensor([3, 2, 1, 0]), torch.tensor([[0, 1], [2, 3]]), (0.1, 0.2)).tolist()
        [0.20000000298023224, 0.10000000149011612]
    """
    table = torch.tensor(tuple(margins) or (0.0,), device=grades.device)
    better = grades[pairs[:, 0]].clamp(1, len(table)) - 1
    return table[better]


def pair_loss(logs: Tensor, pairs: Tensor, *, beta: float = 2.0, margins: Tensor | float = 0.0) -> Tensor:
    """Return the mean of softplus(-beta * (log s_i - log s_j) + margin) over pairs (METHOD 1.4, L_pair).

    Args:
        logs: [P] log-scores.
        pairs: [B, 2] int64, the more relevant passage first.
        beta: steepness; scale-free because it multiplies differences of logarithms.
        margins: [B] or one number.

    Returns:
        A scalar; 0 without pairs.

    Examples:
        >>> round(float(pair_loss(torch.tensor([0.0, 0.0]), torch.tensor([[0, 1]]))), 4)
        0.6931
    """
    if not len(pairs):
        return logs.sum() * 0.0
    difference = logs[pairs[:, 0]] - logs[pairs[:, 1]]
    return functional.softplus(-beta * difference + margins).mean()


# ---------------------------------------------------------------------------------------------------- regularisers


def middle_zone(passages: int, device: torch.device | str = "cpu") -> Tensor:
    """Return [P] bool: the places of a prompt, from 0, that lie in the second and third quarter of the context.

    Examples:
        >>> middle_zone(8).nonzero()[:, 0].tolist()
        [2, 3, 4, 5]
    """
    place = torch.arange(passages, device=device)
    return (place >= passages // 4) & (place < passages - passages // 4)


def grade_divergence(
    logs: Tensor, grades: Tensor, zone: Tensor, *, grade_temperature: float = 1.0, score_temperature: float = 1.0
) -> Tensor:
    """Return KL(softmax(g / tau) || softmax(log s / tau')) inside the zone (METHOD 1.4, L_dist).

    Args:
        logs: [P] log-scores.
        grades: [P] int64.
        zone: [P] bool, the passages it applies to.
        grade_temperature: tau, of the target that the grades shape.
        score_temperature: tau', of the scores.

    Returns:
        A scalar, at least 0; exactly 0 for a zone of one grade, whose flat target would ask for the very sameness
        that this term is there to break.

    Examples:
        >>> logs, grades = torch.tensor([0.5, 0.5]).log(), torch.tensor([1, 0])
        >>> round(float(grade_divergence(logs, grades, torch.tensor([True, True]))), 4)
        0.1109
    """
    inside, levels = logs[zone], grades[zone]
    if len(torch.unique(levels)) < 2:
        return logs.sum() * 0.0
    target = torch.log_softmax(levels.to(logs.dtype) / grade_temperature, dim=0)
    found = torch.log_softmax(inside / score_temperature, dim=0)
    return (target.exp() * (target - found)).sum()


def negative_variance(logs: Tensor, zone: Tensor) -> Tensor:
    """Return minus the population variance of the log-scores inside the zone; grades play no part.

    Unbounded below: spread is rewarded without end, so its weight must stay small.

    Examples:
        >>> float(negative_variance(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])))
        -1.0
    """
    inside = logs[zone]
    return -inside.var(unbiased=False) if len(inside) > 1 else logs.sum() * 0.0


# ----------------------------------------------------------------------------------------------- losses to compare


def group_contrastive_loss(scores: Tensor, grades: Tensor, *, scale: float = 8.0, relevance_level: int = 1) -> Tensor:
    """Return QRRanker's loss: -mean over positives p of log(e^{x_p} / (e^{x_p} + sum over negatives e^{x_n})).

    x is the score, max-min normalised within the list to [0, scale]; other positives are not in the denominator.

    Args:
        scores: [P], not logarithms.
        grades: [P] int64.
        scale: largest normalised score.
        relevance_level: lowest grade of a positive.

    Returns:
        A scalar; 0 without a positive or without a negative.

    Examples:
        >>> round(float(group_contrastive_loss(torch.tensor([0.6, 0.4]), torch.tensor([1, 0]))), 6)
        0.000335
    """
    positive = grades >= relevance_level
    if positive.all() or not positive.any():
        return scores.sum() * 0.0
    lowest, highest = scores.min(), scores.max()
    x = scale * (scores - lowest) / (highest - lowest).clamp_min(_FLOOR)
    negatives = torch.logsumexp(x[~positive], dim=0)
    return functional.softplus(negatives - x[positive]).mean()


def listwise_loss(logs: Tensor, grades: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return the softmax cross-entropy of a list: -sum g_i / sum(g) * log softmax(log s / temperature)_i.

    Examples:
        >>> round(float(listwise_loss(torch.tensor([0.5, 0.5]).log(), torch.tensor([1, 0]))), 4)
        0.6931
    """
    total = grades.sum()
    if not total:
        return logs.sum() * 0.0
    found = torch.log_softmax(logs / temperature, dim=0)
    return -(grades.to(logs.dtype) / total * found).sum()


def distillation_loss(
    logs: Tensor, teacher: Tensor, *, teacher_temperature: float = 0.07, score_temperature: float = 1.0
) -> Tensor:
    """Return KL(softmax(teacher / temperature) || softmax(log s / temperature')) over a list.

    Args:
        logs: [P] log-scores.
        teacher: [P] scores of another model (cosines, say).
        teacher_temperature: temperature of the target.
        score_temperature: temperature of the scores.

    Examples:
        >>> round(float(distillation_loss(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.07, 0.0]))), 4)
        0.1109
    """
    target = torch.log_softmax(teacher.to(logs.dtype) / teacher_temperature, dim=0)
    found = torch.log_softmax(logs / score_temperature, dim=0)
    return (target.exp() * (target - found)).sum()


# --------------------------------------------------------------------------------------------------------- an objective


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
    places: Tensor | None = None,
) -> ListLoss:
    """Return the loss of one list.

    Args:
        objective: what the scores should become.
        scores: [P] as the rule gives them.
        grades: [P] int64.
        teacher: [P], for distillation.
        seed: seed of the random pairs.
        texts: [P] int64, equal where passages are: these are never paired.
        places: [P] int64, of each passage in the prompt, from 0: what the zone goes by. None: as they are given.

    Raises:
        ValueError: distillation of a list without teacher scores.
    """
    logs = log_scores(scores)
    if objective.kind == "preference":
        places = torch.arange(len(logs), device=logs.device) if places is None else places
        return _preference(objective, logs, grades, seed, texts, places)
    if objective.kind == "group-contrastive":
        loss = group_contrastive_loss(scores, grades, scale=objective.scale, relevance_level=objective.relevance_level)
    elif objective.kind == "listwise":
        loss = listwise_loss(logs, grades, temperature=objective.score_temperature)
    else:
        if teacher is None:
            raise ValueError("distillation needs a 'teacher' score beside every candidate of the list")
        loss = distillation_loss(
            logs,
            teacher,
            teacher_temperature=objective.teacher_temperature,
            score_temperature=objective.score_temperature,
        )
    return ListLoss(loss, float(loss.detach()))


def _preference(
    objective: Objective, logs: Tensor, grades: Tensor, seed: int, texts: Tensor | None, places: Tensor
) -> ListLoss:
    generator = None if objective.hard else torch.Generator().manual_seed(seed)
    pairs = preference_pairs(
        grades,
        logs,
        limit=objective.pairs,
        steps=objective.steps,
        hard=objective.hard,
        generator=generator,
        texts=texts,
    )
    margins = pair_margins(grades, pairs, objective.margins) if objective.margins else 0.0
    main = pair_loss(logs, pairs, beta=objective.beta, margins=margins)
    extra = _regulariser(objective, logs, grades, places)
    loss = main if extra is None else main + objective.weight * extra
    wrong = logs.detach()[pairs[:, 0]] < logs.detach()[pairs[:, 1]]
    return ListLoss(
        loss,
        float(main.detach()),
        0.0 if extra is None else float(extra.detach()),
        len(pairs),
        int(wrong.sum()),
    )


def _regulariser(objective: Objective, logs: Tensor, grades: Tensor, places: Tensor) -> Tensor | None:
    if objective.regulariser == "none" or not objective.weight:
        return None
    everywhere = torch.ones(len(logs), dtype=torch.bool, device=logs.device)
    zone = everywhere if objective.zone == "all" else middle_zone(len(logs), logs.device)[places]
    if objective.regulariser == "variance":
        return negative_variance(logs, zone)
    return grade_divergence(
        logs,
        grades,
        zone,
        grade_temperature=objective.grade_temperature,
        score_temperature=objective.score_temperature,
    )
