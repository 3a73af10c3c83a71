"""Explanations: which words of each passage the selected heads looked at.

Scores of attention are sums over heads and tokens, so what a word adds to a score is read off, not estimated: the words
of a passage add up to its score. Where rows or heads are put together by a geometric mean, a passage's score is divided
among its words as the attention of each row and head is. Scores that can be negative without calibration are refused.

The deletion test asks whether a passage's score falls more without the words that an explanation names than without
others. From each passage in turn the words with the largest contributions are deleted and the list is read again; then
the same is done with words drawn at random among the others, until at least as many tokens are gone.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.scoring import calibrated, check_finite, token_factors
from headrank_pipeline.records import Ranking

if TYPE_CHECKING:
    from torch import Tensor

    from headrank_pipeline.rerank.attention_reranker import AttentionReranker

__all__ = [
    "Deletion",
    "ExplainedPassage",
    "ExplainedWord",
    "Explanation",
    "deletion_test",
    "explained",
]

BEFORE_QUERY, AFTER_QUERY = "words before the query", "end of the prompt"

# Scripts that put no white space between words: there each token counts as one.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


@dataclass(frozen=True, slots=True)
class ExplainedWord:
    """A word of a passage, and what it adds to the passage's score.

    Args:
        text: the word as it stands in the prompt.
        after: the white space that follows it in the passage.
        contribution: its part of the score; below 0 where calibration subtracts more than the query looked.
        by_query_word: [Q], `contribution` divided among `Explanation.query_words`; empty where that was not asked for.
        start: characters from the start of the passage's text; below 0 in its label and title.
        tokens: how many tokens it is made of.
    """

    text: str
    after: str
    contribution: float
    by_query_word: tuple[float, ...]
    start: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ExplainedPassage:
    """A passage, its score, and where the score comes from. Copies of one passage share all but docid and rank.

    Args:
        docid: which one.
        rank: rank after reranking, from 1.
        place: place in the prompt, from 1.
        text: text as it stands in the prompt, cut where it had to be.
        score: the reranker's score, which is the sum of its words' and of its heads'.
        words: words in the order of the text, label and title included where the system reads them.
        heads: [H], what each of `Explanation.heads` adds.
    """

    docid: str
    rank: int
    place: int
    text: str
    score: float
    words: tuple[ExplainedWord, ...]
    heads: tuple[float, ...]

    def top(self, count: int) -> list[ExplainedWord]:
        """Return the words with the largest contributions, the largest first."""
        return sorted(self.words, key=lambda word: -word.contribution)[:count]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the heads looked at in the passages of one query.

    Args:
        qid: id of the query.
        query: its text.
        system: the reranker's.
        model: name of the model, as in manifests.
        heads: [H], (layer, head).
        passages: best first.
        query_words: what looked: words of the query, the rest of the rows, and the content-free query, whose attention
            is subtracted. Empty where that was not asked for.
        curve: [P], by place: the mean share of attention there whatever the passage, with mean 1, where the head set
            carries it; else None.
        isolated: whether passages have no place, since they do not see each other.
    """

    qid: str
    query: str
    system: str
    model: str
    heads: tuple[tuple[int, int], ...]
    passages: tuple[ExplainedPassage, ...]
    query_words: tuple[str, ...] = ()
    curve: tuple[float, ...] | None = None
    isolated: bool = False

    def of(self, docid: str) -> ExplainedPassage:
        """Return one passage.

        Raises:
            KeyError: no such passage in the list.
        """
        for passage in self.passages:
            if passage.docid == docid:
                return passage
        raise KeyError(f"qid {self.qid}: no docid {docid!r} among the {len(self.passages)} passages that were read")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        return {
            "qid": self.qid,
            "query": self.query,
            "system": self.system,
            "model": self.model,
            "heads": [f"{layer}-{head}" for layer, head in self.heads],
            "query_words": list(self.query_words),
            "place_curve": None if self.curve is None else list(self.curve),
            "isolated": self.isolated,
            "passages": [_passage_record(passage) for passage in self.passages],
        }


def _passage_record(passage: ExplainedPassage) -> dict[str, Any]:
    words = [
        {"text": word.text, "start": word.start, "contribution": word.contribution}
        | ({"by_query_word": list(word.by_query_word)} if word.by_query_word else {})
        for word in passage.words
    ]
    return {
        "docid": passage.docid,
        "rank": passage.rank,
        "place": passage.place,
        "text": passage.text,
        "score": passage.score,
        "words": words,
        "heads": list(passage.heads),
    }


def explained(reranker: AttentionReranker, ranking: Ranking, *, by_query_word: bool = False) -> Explanation:
    """Return the explanation of a list; `AttentionReranker.explain` says what is taken and refused."""
    if not ranking.candidates:
        raise ValueError(f"qid {ranking.query.qid}: no candidates, so there is nothing to explain")
    ranking, copies = reranker.long_lists.in_one_prompt(ranking)
    orders = (False, True) if reranker.recipe.rule.both_orders else (False,)
    read = [_Reading.of(reranker, ranking, turned=turned, by_query_word=by_query_word) for turned in orders]
    joined = [_joined([reading.passages[index] for reading in read]) for index in range(len(ranking))]
    best_first = ranking.rescored([float(heads.sum()) for _, heads in joined]).docids
    prompt, indices = read[0].prompt, {docid: index for index, docid in enumerate(ranking.docids)}
    passages: list[ExplainedPassage] = []
    for docid in best_first:
        words, heads = joined[indices[docid]]
        passage = ExplainedPassage(
            docid=docid,
            rank=len(passages) + 1,
            place=int(prompt.places[indices[docid]]) + 1,
            text=prompt.shown[indices[docid]].text or "",
            score=float(heads.sum()),
            words=tuple(words),
            heads=tuple(map(float, heads)),
        )
        passages.append(passage)
        for copy in copies.get(docid, ()):
            passages.append(replace(passage, docid=copy, rank=len(passages) + 1))
    head_set = reranker.reader.heads
    curve = None if head_set.places is None else tuple(map(float, head_set.places.at(len(ranking))))
    return Explanation(
        qid=ranking.query.qid,
        query=ranking.query.text,
        system=reranker.recipe.name,
        model=str(reranker.reader.source.label),
        heads=tuple((int(layer), int(head)) for layer, head in head_set.heads),
        passages=tuple(passages),
        query_words=read[0].asking,
        curve=curve,
        isolated=reranker.recipe.template.passages == "isolated",
    )


# ----------------------------------------------------------------------------------------------- reading one prompt


@dataclass(frozen=True, slots=True)
class _Reading:
    """One prompt as it was read.

    Attributes:
        prompt: prompt of the list.
        passages: words and [H] heads of each passage, in candidate order.
        asking: names of the parts of the rows; empty where they were not read apart.
    """

    prompt: Prompt
    passages: list[tuple[list[ExplainedWord], np.ndarray]]
    asking: tuple[str, ...]

    @classmethod
    def of(cls, reranker: AttentionReranker, ranking: Ranking, *, turned: bool, by_query_word: bool) -> _Reading:
        rule, reader = reranker.recipe.rule, reranker.reader
        prompt, blank = reranker.builder.build(ranking, turned=turned), None
        attention, content_free = None, None
        if rule.content_free is None:
            (attention,) = reader.read([prompt], support=rule.support)
        else:
            blank = reranker.builder.with_query(prompt, rule.content_free)
            ((attention, content_free),) = reader.read_calibrated([(prompt, blank)], support=rule.support)
        for read in (attention, content_free):
            if read is not None:
                check_finite(read, reader.heads.heads, ranking.query.qid)
        factors = token_factors(attention, content_free, prompt.passages, prompt.places, rule, reader.heads)
        counted = attention if content_free is None else calibrated(attention, content_free)
        asking: tuple[str, ...] = ()
        parts: list[np.ndarray] = []
        if by_query_word:
            groups = _row_groups(prompt)
            asking = tuple(name for name, _ in groups)
            narrowed = [replace(prompt, rows=rows) for _, rows in groups]
            total = prompt.rows[1] - prompt.rows[0]
            shares = [(rows[1] - rows[0]) / total for _, rows in groups]
            apart = [_numbers(part) for part in reader.read(narrowed, support=rule.support)]
            if rule.support == "passages-geometric":
                apart = [_of_equal_sums(part, _numbers(counted), prompt) for part in apart]
            parts = [share * part for share, part in zip(shares, apart, strict=True)]
            if content_free is not None:
                asking, parts = (*asking, f"less that of {rule.content_free!r}"), [*parts, -_numbers(content_free)]
        values = _numbers(counted)
        passages = [_passage(prompt, index, factors[index], values, parts) for index in range(len(prompt.passages))]
        return cls(prompt, passages, asking)


def _numbers(attention: Tensor) -> np.ndarray:
    values: np.ndarray = attention.double().cpu().numpy()
    return values


def _of_equal_sums(part: np.ndarray, whole: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Return [H, N] attention of some rows, scaled so that each passage has as much of it as of the whole.

    A geometric mean is no sum over rows: what is left to tell is which words of a passage each row looked at.
    """
    scaled = part.copy()
    for start, end in prompt.passages.tolist():
        wanted, found = (one[:, start:end].sum(1, keepdims=True) for one in (whole, part))
        scaled[:, start:end] *= wanted / np.maximum(found, np.finfo(float).tiny)
    return scaled


def _passage(
    prompt: Prompt, index: int, factors: np.ndarray, attention: np.ndarray, parts: Sequence[np.ndarray]
) -> tuple[list[ExplainedWord], np.ndarray]:
    """Return the words of a passage and what each head adds.

    Args:
        prompt: prompt of the list.
        index: index of the passage.
        factors: [H, n], by which attention counts.
        attention: [H, N].
        parts: [Q] times [H, N], which sum to `attention`.
    """
    start, end = (int(border) for border in prompt.passages[index])
    added = factors * attention[:, start:end]
    by_part = np.array([(factors * part[:, start:end]).sum(axis=0) for part in parts]).reshape(len(parts), end - start)
    origin = int(prompt.texts[index, 0])
    spans = list(_words(prompt, start, end))
    words = []
    for place, (first, last, tokens) in enumerate(spans):
        until = spans[place + 1][0] if place + 1 < len(spans) else last
        here = slice(tokens[0] - start, tokens[1] - start)
        words.append(
            ExplainedWord(
                text=prompt.text[first:last],
                after=prompt.text[last:until],
                contribution=float(added[:, here].sum()),
                by_query_word=tuple(map(float, by_part[:, here].sum(axis=1))),
                start=first - origin,
                tokens=tokens[1] - tokens[0],
            )
        )
    return words, added.sum(axis=1)


def _words(prompt: Prompt, start: int, end: int) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield the words of a token span: their characters and their tokens, every token in exactly one word.

    A word ends at white space, which counts to the word before it. Where a script has none, each token is a word; a
    token of which others have a part stays with them.
    """
    text, first, last, begun = prompt.text, -1, -1, start
    for token in range(start, end):
        low, high = (int(border) for border in prompt.offsets[token])
        seen = low + len(text[low:high]) - len(text[low:high].lstrip())
        inside = low + len(text[low:high].rstrip())
        if seen >= high or not text[low:high]:
            continue  # white space alone
        if first < 0:
            first, last = seen, inside
        elif seen >= last and (any(map(str.isspace, text[last:seen])) or _is_unspaced(text[seen])):
            yield first, last, (begun, token)
            first, last, begun = seen, inside, token
        else:
            last = max(last, inside)
    if start < end:
        yield (first, last, (begun, end)) if first >= 0 else _blank(prompt, start, end)


def _blank(prompt: Prompt, start: int, end: int) -> tuple[int, int, tuple[int, int]]:
    return int(prompt.offsets[start, 0]), int(prompt.offsets[end - 1, 1]), (start, end)


def _is_unspaced(character: str) -> bool:
    return ord(character) > 0xE00 and unicodedata.name(character, "").startswith(_UNSPACED)


def _row_groups(prompt: Prompt) -> list[tuple[str, tuple[int, int]]]:
    """Return the rows in parts: what comes before the query, each of its words, and what comes after it."""
    first, last = prompt.rows
    start, end = max(first, prompt.query[0]), min(last, prompt.query[1])
    groups = [(BEFORE_QUERY, (first, start))]
    groups += [(prompt.text[low:high], tokens) for low, high, tokens in _words(prompt, start, end)]
    groups.append((AFTER_QUERY, (end, last)))
    return [(name, rows) for name, rows in groups if rows[0] < rows[1]]


def _joined(
    orders: Sequence[tuple[list[ExplainedWord], np.ndarray]],
) -> tuple[list[ExplainedWord], np.ndarray]:
    """Return the mean of a passage's words and heads over the orders in which the list was read.

    Words are matched by where they stand: in the text by character, in the label by count, since its rank may differ.
    What stands in one order alone, such as a token beyond the passage's end, keeps its part of the mean.
    """
    if len(orders) == 1:
        return orders[0]
    found: dict[tuple[int, int], list[ExplainedWord]] = {}
    for words, _ in orders:
        for count, word in enumerate(words):
            key = (0, count) if word.start < 0 else (1, word.start)
            found.setdefault(key, []).append(word)
    mean = [
        replace(
            same[0],
            contribution=sum(word.contribution for word in same) / len(orders),
            by_query_word=tuple(
                sum(parts) / len(orders) for parts in zip(*(w.by_query_word for w in same), strict=True)
            ),
        )
        for _, same in sorted(found.items())
    ]
    return mean, np.mean([heads for _, heads in orders], axis=0)


# ---------------------------------------------------------------------------------------------------- the deletion test


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
