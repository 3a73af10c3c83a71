"""How good one head is on one list: pure functions of the mass that heads put on passages, all heads at once.

Every function takes scores [H, P] (attention mass per head and passage) and grades [P], and returns [H] float64.
Sources: METHOD 1.4 (discrimination, entropy), QRHead (arXiv 2506.09944: QRScore, per-head nDCG@10), CoRe (arXiv
2510.02219: contrastive score).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["constant_heads", "contrastive_score", "discrimination", "normalised_entropy", "qr_score"]


def discrimination(scores: Tensor, grades: Tensor) -> Tensor:
    """Return the share of passage pairs with different grades that each head orders by grade; a tie counts half.

    The pairwise AUC, generalised to more than two grades: 0.5 is chance.

    Raises:
        ValueError: all grades are equal.

    Examples:
        >>> discrimination(torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), torch.tensor([2, 1, 0])).tolist()
        [1.0, 0.16666666666666666]
    """
    better, worse = (grades[:, None] > grades[None, :]).nonzero(as_tuple=True)
    if not len(better):
        raise ValueError("all grades are equal: there is no pair to order")
    difference = scores[:, better] - scores[:, worse]
    return (0.5 * (difference.sign().double() + 1.0)).mean(1)


def normalised_entropy(scores: Tensor) -> Tensor:
    """Return -(1 / log P) sum p log p of each head's distribution over passages: 0 on one passage, 1 spread evenly.

    Scores are normalised to sum to 1 first; negative ones (calibrated attention) count as 0. A head without any mass
    has entropy 1.

    Examples:
        >>> normalised_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])).tolist()
        [0.0, 1.0, 1.0]
    """
    mass = scores.double().clamp_min(0.0)
    total = mass.sum(1, keepdim=True)
    p = torch.where(total > 0, mass / total.clamp_min(torch.finfo(torch.float64).tiny), 1.0 / mass.shape[1])
    entropy: Tensor = torch.special.entr(p).sum(1) / torch.log(torch.tensor(float(max(2, mass.shape[1]))).double())
    return entropy


def qr_score(scores: Tensor, grades: Tensor, *, relevance_level: int = 1) -> Tensor:
    """Return the mass that each head puts on the relevant passages (QRScore, averaged over rows already).

    Examples:
        >>> qr_score(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([0, 1, 2])).tolist()
        [0.5]
    """
    return scores.double()[:, grades >= relevance_level].sum(1)


def contrastive_score(scores: Tensor, grades: Tensor, *, temperature: float = 0.1, relevance_level: int = 1) -> Tensor:
    """Return CoRe's score: the softmax over a relevant passage and all others of S / T, at the relevant one.

    With several relevant passages the mean over them, each against the not relevant ones alone. CoRe uses T = 0.1 for
    Llama and Phi, 0.001 for Mistral and Granite; for Qwen3 it gives none.

    Raises:
        ValueError: no relevant passage, or nothing but relevant ones.

    Examples:
        >>> contrastive_score(torch.tensor([[0.3, 0.3], [0.5, 0.4]]), torch.tensor([1, 0])).round(decimals=4).tolist()
        [0.5, 0.7311]
    """
    relevant = grades >= relevance_level
    if relevant.all() or not relevant.any():
        raise ValueError(f"the contrastive score needs passages on both sides of grade {relevance_level}")
    logits = scores.double() / temperature
    others = torch.logsumexp(logits[:, ~relevant], dim=1, keepdim=True)
    return torch.sigmoid(logits[:, relevant] - others).mean(1)


def constant_heads(scores: Tensor) -> Tensor:
    """Return [H] bool: the heads that give every passage the same score and so order nothing.

    Examples:
        >>> constant_heads(torch.tensor([[0.5, 0.5], [0.4, 0.6]])).tolist()
        [True, False]
    """
    return scores.amax(1) == scores.amin(1)
