"""Synthetic graded lists for tests: a passage is as relevant as it has words of the query."""

from __future__ import annotations

import random

from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.records import Candidate, Query, Ranking

# One piece each in the tests' tokenizer, so that overlap is visible to a model from its first steps.
_TEXT = (
    "here are some paragraphs birds fly please find information relevant to the query above tiny seeded models and "
    "tokenizer for tests real classes random weights made in second layers heads"
)
WORDS = _TEXT.split()


def overlap_lists(count: int, *, passages: int = 6, seed: int = 0, prefix: str = "q") -> list[GradedList]:
    """Lists whose passages hold 0, 1 or 2 words of a two-word query, among words that are not in it."""
    chance = random.Random(seed)
    lists = []
    for number in range(count):
        asked = chance.sample(WORDS, 2)
        others = [word for word in WORDS if word not in asked]
        grades = [2, 1, *(chance.choice((0, 0, 1)) for _ in range(passages - 3)), 0]
        chance.shuffle(grades)
        texts = []
        for grade in grades:
            words = chance.sample(asked, grade) + chance.sample(others, 5 - grade)
            chance.shuffle(words)
            texts.append(" ".join(words))
        candidates = tuple(Candidate(f"{prefix}{number}d{i}", -float(i), text) for i, text in enumerate(texts))
        lists.append(GradedList(Ranking(Query(f"{prefix}{number}", " ".join(asked)), candidates), tuple(grades)))
    return lists
