"""What selection and training have in common: graded lists in, attention mass per head or score per passage out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.attention.scoring import (
    calibrated,
    check_finite,
    check_places,
    combined,
    passage_mass,
    place_shares,
)
from headrank_pipeline.learn.lists import GradedList

__all__ = ["ListScorer", "mean_ndcg", "ndcg"]

# Lists whose token scores [H, N] are held at once before they are pooled.
_READ_AT_ONCE = 32
_CUTOFF = 10  # last rank that nDCG counts


class ListScorer:
    """Scores graded lists with one reader, one prompt template and one rule.

    Args:
        reader: truncated model and heads.
        reading: template and rule.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.
    """

    def __init__(self, reader: AttentionReader, reading: Recipe, *, max_prompt_tokens: int | None = None) -> None:
        self.reader = reader
        self.reading = reading
        self.rule = reading.rule
        budget = reader.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        self.builder = PromptBuilder(reader.tokenizer, reading.template, max_prompt_tokens=budget)

    def prompts(self, lists: Sequence[GradedList]) -> list[Prompt]:
        """Return the prompt of each list."""
        return [self.builder.build(graded.ranking) for graded in lists]

    def forward(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Return the scores [P] of each prompt's passages from exactly one forward pass, in the present gradient mode.

        A rule that reads both orders is trained in the one that the prompt has: each is an order like any other.

        Raises:
            ValueError: a rule with calibration, which would need a second pass that gradients must follow too; one
                whose scores can be negative, of which losses take no logarithms; or places that there are not.
        """
        check_places(self.rule, self.builder.template, self.reader.heads)
        if self.rule.normalise == "zscore":
            raise ValueError(
                f"{self.reading.name} standardises heads, whose scores can be negative; losses take logarithms: train "
                f"with normalise 'mass' or 'log'"
            )
        if self.rule.content_free is not None:
            raise ValueError(
                f"{self.reading.name} subtracts a content-free query; train with a rule that does not "
                f"(content_free None), and calibrate afterwards if you must"
            )
        read = self.reader.forward(prompts, support=self.rule.support)
        return [
            self._combined(passage_mass(one, prompt.passages, self.rule), prompt)
            for one, prompt in zip(read, prompts, strict=True)
        ]

    def masses(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Return the mass [H, P] of every head on every passage, without gradients; calibrated where the rule says."""
        support = self.rule.support
        if self.rule.content_free is None:
            reads = self.reader.read(prompts, support=support)
        else:
            pairs = [(prompt, self.builder.with_query(prompt, self.rule.content_free)) for prompt in prompts]
            reads = [calibrated(*pair) for pair in self.reader.read_calibrated(pairs, support=support)]
        return [passage_mass(read, prompt.passages, self.rule) for read, prompt in zip(reads, prompts, strict=True)]

    def scores(self, lists: Sequence[GradedList]) -> list[Tensor]:
        """Return the scores [P] of each list, batched by length, without gradients.

        Raises:
            ValueError: attention that is not finite, naming the list and the head, or places that there are not.
        """
        check_places(self.rule, self.builder.template, self.reader.heads)
        found = []
        for start in range(0, len(lists), _READ_AT_ONCE):
            part = lists[start : start + _READ_AT_ONCE]
            orders = [
                self._scored(part, turned=turned) for turned in ((False, True) if self.rule.both_orders else (False,))
            ]
            found += [torch.stack(scores).mean(0) for scores in zip(*orders, strict=True)]
        return found

    def _scored(self, lists: Sequence[GradedList], *, turned: bool) -> list[Tensor]:
        prompts = [self.builder.build(graded.ranking, turned=turned) for graded in lists]
        found = []
        for graded, prompt, mass in zip(lists, prompts, self.masses(prompts), strict=True):
            check_finite(mass, self.reader.heads.heads, graded.qid)
            found.append(self._combined(mass, prompt))
        return found

    def _combined(self, mass: Tensor, prompt: Prompt) -> Tensor:
        """Return the scores [P], in float32 whatever autocast makes of products."""
        heads = self.reader.heads
        shares = place_shares(self.rule, heads, prompt.places)
        with torch.autocast(mass.device.type, enabled=False):
            divisor = None if shares is None else torch.from_numpy(shares).to(mass.device)
            return combined(mass, self.rule, heads.weights, divisor)


def ndcg(scores: Tensor, grades: Tensor) -> Tensor:
    """Return nDCG@10 of every head, with trec_eval's linear gains g / log2(rank + 1).

    The ideal order is that of the list itself, not of all that was judged. Equal scores are ordered against the head,
    the lower grade first, so that a head that cannot tell passages apart gains nothing from the order they came in.

    Args:
        scores: [H, P].
        grades: [P] int64, at least one above 0.

    Returns:
        [H] float64, between 0 and 1; 0 where no grade is above 0.

    Examples:
        >>> ndcg(torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]]), torch.tensor([0, 2, 1])).round(decimals=3).tolist()
        [1.0, 0.62]
    """
    worst_first = torch.sort(grades, stable=True).indices
    order = torch.sort(scores[:, worst_first], dim=1, descending=True, stable=True).indices
    gains = grades[worst_first].double()[order][:, :_CUTOFF]
    discounts = torch.log2(torch.arange(gains.shape[1], device=scores.device, dtype=torch.float64) + 2.0)
    ideal = (torch.sort(grades, descending=True).values[:_CUTOFF].double() / discounts).sum()
    return (gains / discounts).sum(1) / ideal.clamp_min(torch.finfo(torch.float64).tiny)


def mean_ndcg(scorer: ListScorer, lists: Sequence[GradedList]) -> float:
    """Return the mean nDCG@10 over graded lists."""
    values = [
        float(ndcg(scores[None], torch.tensor(graded.grades, device=scores.device))[0])
        for graded, scores in zip(lists, scorer.scores(lists), strict=True)
    ]
    return sum(values) / len(values)
