"""The words of a passage as the published listwise prompts show them: title and text in one line, as many as fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headrank_pipeline.attention.recipe import neutralised
from headrank_pipeline.passages import text_of
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.rerank.baselines.windows import Window

__all__ = [
    "PassageText",
    "Shown",
    "fitted_words",
    "passage_of",
]

_BRACKETED = re.compile(r"\[(\d+|[A-Z])\]")


@dataclass(frozen=True, slots=True)
class PassageText:
    """How passages are shown.

    Args:
        passage_words: keep that many words of a passage, its title included, or None for all (RankGPT: 300).
        rewrite_brackets: write `[12]` and `[B]` in passages as `(12)` and `(B)`, so that they cannot be taken for
            identifiers (rank_llm does so, RankGPT's own code does not).
    """

    passage_words: int | None = 300
    rewrite_brackets: bool = True

    def __post_init__(self) -> None:
        if self.passage_words is not None and self.passage_words < 1:
            raise ValueError(f"passage_words {self.passage_words}: expected at least 1, or None for whole passages")

    def shown(self, ranking: Ranking, controls: re.Pattern[str] | None) -> Shown:
        """Return the query and the words of its passages, safe to stand in a prompt.

        Raises:
            ValueError: a candidate without text.
        """
        query, broken_up = neutralised(ranking.query.text, controls)
        words: dict[str, tuple[str, ...]] = {}
        for candidate in ranking.candidates:
            text, found = neutralised(passage_of(ranking.query.qid, candidate, "Title: {title} Content: "), controls)
            words[candidate.docid] = tuple((_BRACKETED.sub(r"(\1)", text) if self.rewrite_brackets else text).split())
            broken_up += found
        return Shown(query, words, self.passage_words, broken_up)

    def describe(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a model may see of a query and its passages.

    Args:
        query: its text, without control tokens.
        words: docid -> all words of title and text.
        limit: words kept of each; None for all.
        control_tokens: how many were broken up.
    """

    query: str
    words: Mapping[str, tuple[str, ...]]
    limit: int | None
    control_tokens: int

    def longest(self, docids: tuple[str, ...]) -> int:
        """Return the words shown of the longest of some passages."""
        longest = max(len(self.words[docid]) for docid in docids)
        return longest if self.limit is None else min(longest, self.limit)

    def text(self, docid: str, limit: int) -> str:
        """Return the first `limit` words of a passage."""
        return " ".join(self.words[docid][:limit])

    def dropped(self, docids: tuple[str, ...], limit: int) -> dict[str, int]:
        """Return docid -> words beyond `limit`, of the passages that have some."""
        return {docid: len(self.words[docid]) - limit for docid in docids if len(self.words[docid]) > limit}


def passage_of(qid: str, candidate: Candidate, title: str) -> str:
    """Return title, where there is one, and text of a candidate.

    Raises:
        ValueError: a candidate without text.
    """
    return (title.format(title=candidate.title) if candidate.title else "") + text_of(qid, candidate)


# ----------------------------------------------------------------------------------- how many words of each passage fit


def fitted_words(window: Window, longest: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number of words per passage, up to `longest`, with which a window fits.

    RankGPT takes words off one by one until it fits; halving the range finds the same number.

    Raises:
        ValueError: it does not fit with a single word of each passage.
    """
    if fits(longest):
        return longest
    lowest, highest = 0, longest - 1
    while lowest < highest:
        middle = (lowest + highest + 1) // 2
        lowest, highest = (middle, highest) if fits(middle) else (lowest, middle - 1)
    if lowest < 1:
        raise ValueError(
            f"qid {window.query.qid}: a window of {len(window.candidates)} passages does not fit the model with a "
            f"single word of each; lower window_size (or max_new_tokens), or raise max_prompt_tokens"
        )
    return lowest
