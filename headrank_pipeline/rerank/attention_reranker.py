"""The reranker behind every recipe: prompts from a template, attention from a reader, scores from a rule."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from headrank_pipeline.attention.isolated import cached_passages
from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.attention.scoring import check_finite, check_places, passage_scores
from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.long_lists import LongLists

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AttentionReranker"]


class AttentionReranker(Reranker):
    """Scores the passages of a ranking with attention heads in one prefill; made by the functions of `rerank.recipes`.

    Args:
        reader: truncated model and heads.
        recipe: prompt and rule.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.
        long_lists: how lists are read that take more: ``auto``, ``whole``, ``windows`` or ``refine``
            (`rerank.long_lists.LongLists`).

    Raises:
        ValueError: a budget beyond the model's positions, chat markup that the tokenizer does not know, a passage
            cache without isolated passages, a rule about places that the prompt or the head set does not have, or
            another strategy for long lists.
    """

    def __init__(
        self,
        reader: AttentionReader,
        recipe: Recipe,
        *,
        max_prompt_tokens: int | None = None,
        long_lists: str = "auto",
    ) -> None:
        budget = reader.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        if budget > reader.max_prompt_tokens:
            raise ValueError(
                f"max_prompt_tokens {budget}: {reader.source.name} was made for {reader.max_prompt_tokens} positions"
            )
        if reader.passage_cache is not None and recipe.template.passages != "isolated":
            raise ValueError(
                f"{recipe.name}: a passage cache needs isolated passages, causal ones depend on those before them; add "
                f"--passages isolated, or leave the cache out"
            )
        check_places(recipe.rule, recipe.template, reader.heads)
        self.reader = reader
        self.builder = PromptBuilder(reader.tokenizer, recipe.template, max_prompt_tokens=budget)
        self.recipe = replace(recipe, template=self.builder.template)
        scale = recipe.rule.scale_between_prompts
        self.long_lists = LongLists.of(self.builder, reader.tokenizer, scale, long_lists)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored; empty ones come back as they are.

        Raises:
            ValueError: a candidate without text, a query that leaves no room for passages, or attention that is not
                finite, with the layer and head.
        """
        reranked = []
        for attempt in self._attempts(rankings):
            if isinstance(attempt, Failure):
                raise attempt.error
            reranked.append(attempt)
        return reranked

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """A query whose prompt cannot be built fails alone; prompts are built as passes need them."""
        return self.long_lists.attempts(rankings, self._read)

    def _read(self, rankings: Sequence[Ranking], builder: PromptBuilder) -> list[Ranking | Failure]:
        """Return the rankings rescored from one prompt each, two where the rule reads both orders."""
        attempts: list[Ranking | Failure] = list(rankings)
        rule = self.recipe.rule
        waiting: deque[tuple[int, Prompt, dict[str, int]]] = deque()  # built, and not yet scored
        read: dict[int, list[tuple[Prompt, tuple[Tensor, ...]]]] = defaultdict(list)  # by index, one per order

        def lists() -> Iterator[tuple[Prompt, ...]]:
            for index in _longest_first(rankings):
                try:
                    orders = [self._prompts(rankings[index], builder, turned=turned) for turned in self._orders]
                except ValueError as error:
                    attempts[index] = Failure(rankings[index].query, error)
                    continue
                for prompts in orders:
                    waiting.append((index, prompts[0], self._cached(prompts[0])))
                    yield prompts

        needed = lists() if self.reader.fast.build_ahead else list(lists())
        for readings in self.reader.stream(needed, support=rule.support):
            index, prompt, kept = waiting.popleft()
            read[index].append((prompt, readings))
            if len(read[index]) == len(self._orders):
                attempts[index] = self._rescored(rankings[index], read.pop(index), kept)
        return attempts

    @property
    def _orders(self) -> tuple[bool, ...]:
        """Whether the prompt's order is turned round, for each order in which a list is read."""
        return (False, True) if self.recipe.rule.both_orders else (False,)

    def _prompts(self, ranking: Ranking, builder: PromptBuilder, *, turned: bool) -> tuple[Prompt, ...]:
        """Return the prompt of a ranking, and that of the content-free query where the rule has one."""
        prompt, blank = builder.build(ranking, turned=turned), self.recipe.rule.content_free
        return (prompt,) if blank is None else (prompt, builder.with_query(prompt, blank))

    def _rescored(
        self, ranking: Ranking, read: Sequence[tuple[Prompt, tuple[Tensor, ...]]], kept: Mapping[str, int]
    ) -> Ranking | Failure:
        """Return a ranking with the mean of its scores over the orders in which it was read."""
        # the passages, then what is asked about them
        passes = 1 if self.recipe.rule.content_free is None and self.recipe.template.passages == "causal" else 2
        tokens = sum(prompt.counts["prompt_tokens"] for prompt, _ in read)
        counts = {**read[0][0].counts, "prompt_tokens": tokens, "forward_passes": passes * len(read), **kept}
        ranking = replace(ranking, notes={**ranking.notes, **counts})
        try:
            for _, readings in read:
                for attention in readings:
                    check_finite(attention, self.reader.heads.heads, ranking.query.qid)
            scores = np.mean([self._scores(prompt, *readings) for prompt, readings in read], axis=0)
            return ranking.rescored(scores.tolist())
        except ValueError as error:
            return Failure(ranking.query, error, ranking.notes)

    def _cached(self, prompt: Prompt) -> dict[str, int]:
        """Return how many of the passages lay in the passage cache before the query came, where there is one."""
        if self.reader.passage_cache is None:
            return {}
        return {"passages": len(prompt.passages), "passages_cached": cached_passages(self.reader, prompt)}

    def _scores(self, prompt: Prompt, read: Tensor, blank: Tensor | None = None) -> np.ndarray:
        return passage_scores(read, blank, prompt.passages, prompt.places, self.recipe.rule, self.reader.heads)

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a score, with digests of the template and the heads."""
        template, read = self.recipe.template.describe(), self.reader.describe()
        if self.recipe.rule.place_profile is not None:
            read["heads"] = {**read["heads"], "places_sha256": self.reader.heads.digest(places=True)}
        return {
            "system": self.recipe.name,
            **read,
            "template": {**template, "sha256": sha256(repr(sorted(template.items())).encode()).hexdigest()},
            "rule": self.recipe.rule.describe(),
            "max_prompt_tokens": self.builder.max_prompt_tokens,
            "long_lists": self.long_lists.strategy,
        }

    def origins(self) -> dict[str, str]:
        """Return where the model and the passage cache lie."""
        return self.reader.origins()


def _longest_first(rankings: Sequence[Ranking]) -> list[int]:
    """Return the indices of the rankings that have candidates, by what can be told of length without a tokenizer.

    Examples:
        >>> from headrank_pipeline.records import Candidate, Query
        >>> short, long = (Ranking(Query(text, "x"), (Candidate("d", 1.0, text),)) for text in ("ab", "abc"))
        >>> _longest_first([short, Ranking(Query("none", "x"), ()), long])
        [2, 0]
    """
    characters = [sum(len(candidate.text or "") for candidate in ranking.candidates) for ranking in rankings]
    filled = [index for index, ranking in enumerate(rankings) if ranking.candidates]
    return sorted(filled, key=lambda index: (-characters[index], index))
