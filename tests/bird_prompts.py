"""Prompts of several lists about birds, of different lengths, for the tiny tokenizer."""

from __future__ import annotations

from tiny_models import tiny_tokenizer

from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.records import Candidate, Query, Ranking


def builder(*, max_prompt_tokens: int = 4096, **options) -> PromptBuilder:
    """The builder of HeadRank's prompt with options of the recipe changed."""
    return PromptBuilder(tiny_tokenizer(), HEADRANK.varied(options).template, max_prompt_tokens=max_prompt_tokens)


def prompts(made_by: PromptBuilder, lists: int = 3, passages: int = 3, words: int = 1) -> list[Prompt]:
    """One prompt a list; list n has n passages more than the first, and a query n times as long."""
    made = []
    for n in range(lists):
        texts = [f"Passage {i} of birds and {i * n} fish. " * (words + (i + n) % 4) for i in range(passages + n)]
        candidates = tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(texts))
        made.append(made_by.build(Ranking(Query(f"q{n}", "do birds swim " * (n + 1)), candidates)))
    return made
