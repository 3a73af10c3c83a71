"""The deletion test: does a passage's score fall more without the words that an explanation names than without others?

From each passage in turn the words with the largest contributions are deleted and the list is read again; then the same
is done with words drawn at random among the others, until at least as many tokens are gone.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.explanation import ExplainedPassage, ExplainedWord

__all__ = ["Deletion", "deletion_test"]


@dataclass(frozen=True, slots=True)
class Deletion:
    """How far one passage's score fell; in units of the list's mean absolute score.

    Args:
        docid: the passage.
        top: result without the words with the largest contributions.
        random: result without other words, drawn at random.
    """

    docid: str
    top: float
    random: float


def deletion_test(reranker: AttentionReranker, ranking: Ranking, words: int, *, seed: int = 0) -> list[Deletion]:
    """Return what the test found for every passage that has enough other words to delete.

    Args:
        reranker: reads the list once for the explanation and twice per passage.
        ranking: the same as for `AttentionReranker.explain`.
        words: how many to delete.
        seed: seed of the draws, together with qid and docid.

    Raises:
        ValueError: what `AttentionReranker.explain` refuses, or scores that are all 0.
    """
    ranking, _ = reranker.long_lists.in_one_prompt(ranking)  # a copy would stay as it was
    explanation = reranker.explain(ranking)
    scale = fmean(abs(passage.score) for passage in explanation.passages)
    if scale == 0:
        raise ValueError(f"qid {ranking.query.qid}: every score is 0, so none can fall; the heads see no passage")
    changed: list[Ranking] = []
    tested: list[ExplainedPassage] = []
    for passage in explanation.passages:
        drawn = random.Random(f"{seed} {ranking.query.qid} {passage.docid}")
        chosen = _words_to_delete(passage, words, drawn)
        if chosen is not None:
            tested.append(passage)
            changed += [_without(ranking, passage, deleted) for deleted in chosen]
    reread = iter(reranker.rerank_batch(changed))
    found = []
    for passage in tested:
        top, other = ((passage.score - _score(next(reread), passage.docid)) / scale for _ in range(2))
        found.append(Deletion(passage.docid, top, other))
    return found


def _score(ranking: Ranking, docid: str) -> float:
    return ranking.scores[ranking.docids.index(docid)]


def _words_to_delete(
    passage: ExplainedPassage, count: int, drawn: random.Random
) -> tuple[Sequence[ExplainedWord], Sequence[ExplainedWord]] | None:
    """Return the top words and random others; None where the passage has too few."""
    text = [word for word in passage.words if 0 <= word.start <= len(passage.text) - len(word.text)]
    by_contribution = sorted(text, key=lambda word: -word.contribution)
    top, others = by_contribution[:count], by_contribution[count:]
    tokens = sum(word.tokens for word in top)
    if len(top) < count or sum(word.tokens for word in others) <= tokens:
        return None
    random_others: list[ExplainedWord] = []
    for word in drawn.sample(others, len(others)):
        if sum(one.tokens for one in random_others) >= tokens:
            break
        random_others.append(word)
    return top, random_others


def _without(ranking: Ranking, passage: ExplainedPassage, deleted: Collection[ExplainedWord]) -> Ranking:
    """Return the list with words deleted from the text of one passage."""
    text = passage.text
    for word in sorted(deleted, key=lambda word: -word.start):
        text = text[: word.start] + text[word.start + len(word.text) + len(word.after) :]
    return replace(
        ranking,
        candidates=tuple(
            replace(candidate, text=text) if candidate.docid == passage.docid else candidate
            for candidate in ranking.candidates
        ),
    )
