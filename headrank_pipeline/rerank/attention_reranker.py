"""The reranker behind every recipe: prompts from a template, attention from a reader, scores from a rule."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from headrank_pipeline.attention.isolated import cached_passages
from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.scoring import check_finite, pool_tokens, token_scores
from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AttentionReranker"]


class AttentionReranker(Reranker):
    """Scores the passages of a ranking with attention heads in one prefill; made by the functions of `rerank.recipes`.

    Args:
        reader: truncated model and heads.
        recipe: prompt and rule.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.

    Raises:
        ValueError: a budget beyond the model's positions, chat markup that the tokenizer does not know, or a passage
            cache without isolated passages.
    """

    def __init__(self, reader: AttentionReader, recipe: Recipe, *, max_prompt_tokens: int | None = None) -> None:
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
        self.reader = reader
        self.builder = PromptBuilder(reader.tokenizer, recipe.template, max_prompt_tokens=budget)
        self.recipe = replace(recipe, template=self.builder.template)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored; empty ones come back as they are.

        Raises:
            ValueError: a candidate without text, a list that does not fit the budget, or attention that is not finite,
                with the layer and head.
        """
        reranked = []
        for attempt in self._attempts(rankings):
            if isinstance(attempt, Failure):
                raise attempt.error
            reranked.append(attempt)
        return reranked

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """A query whose prompt cannot be built fails alone; prompts are built as passes need them."""
        attempts: list[Ranking | Failure] = list(rankings)
        rule = self.recipe.rule
        waiting: deque[tuple[int, Prompt, dict[str, int]]] = deque()  # built, and not yet scored

        def lists() -> Iterator[tuple[Prompt, ...]]:
            for index in _longest_first(rankings):
                try:
                    prompt = self.builder.build(rankings[index])
                    blank = rule.content_free
                    prompts = (prompt,) if blank is None else (prompt, self.builder.with_query(prompt, blank))
                except ValueError as error:
                    attempts[index] = Failure(rankings[index].query, error)
                    continue
                waiting.append((index, prompt, self._cached(prompt)))
                yield prompts

        # the passages, then what is asked about them
        passes = 1 if rule.content_free is None and self.recipe.template.passages == "causal" else 2
        needed = lists() if self.reader.fast.build_ahead else list(lists())
        for readings in self.reader.stream(needed, support=rule.support):
            index, prompt, kept = waiting.popleft()
            notes = {**rankings[index].notes, **prompt.counts, "forward_passes": passes, **kept}
            ranking = replace(rankings[index], notes=notes)
            try:
                for read in readings:
                    check_finite(read, self.reader.heads.heads, ranking.query.qid)
                attempts[index] = ranking.rescored(self._scores(prompt, *readings))
            except ValueError as error:
                attempts[index] = Failure(ranking.query, error, notes)
        return attempts

    def _cached(self, prompt: Prompt) -> dict[str, int]:
        """Return how many of the passages lay in the passage cache before the query came, where there is one."""
        if self.reader.passage_cache is None:
            return {}
        return {"passages": len(prompt.passages), "passages_cached": cached_passages(self.reader, prompt)}

    def _scores(self, prompt: Prompt, read: Tensor, blank: Tensor | None = None) -> list[float]:
        rule = self.recipe.rule
        scores: list[float] = pool_tokens(
            token_scores(read, blank, rule, self.reader.heads.weights), prompt.passages, rule
        ).tolist()
        return scores

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a score, with digests of the template and the heads."""
        template = self.recipe.template.describe()
        return {
            "system": self.recipe.name,
            **self.reader.describe(),
            "template": {**template, "sha256": sha256(repr(sorted(template.items())).encode()).hexdigest()},
            "rule": self.recipe.rule.describe(),
            "max_prompt_tokens": self.builder.max_prompt_tokens,
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
