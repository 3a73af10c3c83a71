"""Listwise prompts as token ids with exact spans.

A prompt is joined from pieces while their character offsets are noted, and tokenised once (with isolated passages:
piece by piece); token spans follow from the tokenizer's own offsets. Nothing is ever searched for in the text, so
duplicate, nested and quoted passages get their own spans. What is written and read is the template's to say
(attention/recipe.py).
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from headrank_pipeline.attention.recipe import (
    PromptTemplate,
    begun,
    chat_of,
    control_pattern,
    control_tokens,
    neutralised,
)
from headrank_pipeline.passages import text_of
from headrank_pipeline.records import Candidate, Ranking

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["Prompt", "PromptBuilder"]

# A passage cut below this many tokens says nothing; a list that leaves less is refused instead.
MIN_PASSAGE_TOKENS = 8

# Tokens per word of the word limit beyond which a passage is cut all the same, and the least such limit. English takes
# 1.3, and its tables and formulas below 4; text without white space between words is a few words of any length.
_TOKENS_PER_WORD, _FEWEST_TOKENS = 4, 64

# The share of unknown tokens that is worth a warning.
_MANY_UNKNOWN = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt; P passages in candidate order, whatever their order in the prompt.

    Attributes:
        token_ids: [N] int64.
        passages: [P, 2] int64, half-open token spans; an empty passage has an empty span.
        rows: half-open span of the row tokens.
        prefix: number of leading tokens that do not depend on the query.
        counts: ``prompt_tokens``, and what was changed to fit: ``passages_cut``, ``words_dropped``,
            ``tokens_dropped`` (the budget's and the token limit's part), ``control_tokens_neutralised``, and
            ``unknown_tokens``, where the tokenizer could not spell something.
        shown: title and text of each passage as they stand in the prompt.
        text: the whole prompt.
        boundaries: [P + 1] int64, only with isolated passages: where the tokens of each passage (label, title, text,
            separator) start in prompt order, and where the question starts. The opening lies before the first. None:
            the prompt is one causal sequence.
        order: index of the candidate at each place; empty: in their own order.
        offsets: [N, 2] int64, half-open span of each token's characters in `text`.
        texts: [P, 2] int64, half-open character span of each passage's text alone, without label and title.
        query: half-open token span of the query's own words.
    """

    token_ids: np.ndarray
    passages: np.ndarray
    rows: tuple[int, int]
    prefix: int
    counts: Mapping[str, int]
    shown: tuple[Candidate, ...] = field(repr=False)
    text: str = field(repr=False)
    boundaries: np.ndarray | None = None
    order: tuple[int, ...] = ()
    offsets: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64), repr=False)
    texts: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int64), repr=False)
    query: tuple[int, int] = (0, 0)

    @property
    def places(self) -> np.ndarray:
        """[P] int64: the place of each passage in the prompt, from 0."""
        places = np.arange(len(self.passages))
        places[list(self.order)] = np.arange(len(self.order))
        return places

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Character offsets of one rendered prompt; passages in prompt order."""

    text: str
    starts: list[int]  # of each passage's label, then of the instruction
    passages: list[tuple[int, int]]  # columns of each passage
    texts: list[tuple[int, int]]  # its text alone: the part that may be cut
    query: tuple[int, int]

    @property
    def instruction(self) -> int:
        return self.starts[-1]


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Token ids of a layout, their character offsets, and at which token each of its `starts` lies."""

    ids: np.ndarray
    starts: list[int]
    ends: list[int]
    boundaries: np.ndarray

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return the half-open span of the tokens that share a character with ``[start, end)``."""
        first = bisect_right(self.ends, start)
        return (first, max(first, bisect_left(self.starts, end))) if end > start else (first, first)


@dataclass
class _Changes:
    """What was changed in the texts of one prompt so that it fits and stays inside its turn."""

    words_dropped: int = 0
    tokens_dropped: int = 0
    control_tokens: int = 0
    cut: set[str] = field(default_factory=set)

    def counts(self) -> dict[str, int]:
        return {
            "passages_cut": len(self.cut),
            "words_dropped": self.words_dropped,
            "tokens_dropped": self.tokens_dropped,
            "control_tokens_neutralised": self.control_tokens,
        }


class PromptBuilder:
    """Builds prompts of one template with one tokenizer, within a budget of tokens.

    Args:
        tokenizer: a fast tokenizer (spans come from its offsets).
        template: the layout.
        max_prompt_tokens: budget of a whole prompt; the longest texts are cut first until it fits. With isolated
            passages it bounds what one passage sees and is seen by, opening + passage + question: the positions.

    Raises:
        ValueError: a tokenizer without offsets, or without the control tokens that the template's chat markup needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: PromptTemplate, *, max_prompt_tokens: int) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"tokenizer {type(tokenizer).__name__} gives no character offsets; "
                f"save the model folder with a fast tokenizer (tokenizer.json)"
            )
        self.template = template.written_for(begun(template.chat or chat_of(tokenizer), tokenizer))
        self.max_prompt_tokens = max_prompt_tokens
        self._encode = tokenizer.backend_tokenizer
        self._encode.no_truncation()
        self._encode.no_padding()
        added = tokenizer.get_added_vocab()
        self._unknown_token, self._warned = tokenizer.unk_token, False
        self._unknown_id = tokenizer.unk_token_id  # what a tokenizer writes for characters that it cannot spell
        controls = {added[token] for token in control_tokens(tokenizer)} - {self._unknown_id}
        self._control_ids = np.array(sorted(controls), dtype=np.int64)
        assert self.template.chat is not None
        markup = self.template.chat.user + self.template.chat.assistant
        self._controls = control_pattern(tokenizer, *re.findall(r"\[/?INST\]", markup))
        self._check_chat(re.findall(r"<\|[a-z_]+\|>|<s>", markup), added)
        # Written as a token of its own: what comes after it is the beginning of a text to some tokenizers (Mistral's).
        self._begin, self._begin_id = tokenizer.bos_token or "", tokenizer.bos_token_id

    def _check_chat(self, markup: list[str], added: Mapping[str, int]) -> None:
        assert self.template.chat is not None
        if unknown := sorted({token for token in markup if token not in added}):
            raise ValueError(
                f"template {self.template.name}: chat markup {self.template.chat.name!r} needs the control tokens "
                f"{unknown}, which the tokenizer does not know; choose chat='plain' or the markup of its family"
            )

    def build(self, ranking: Ranking, *, turned: bool = False) -> Prompt:
        """Return the prompt of one query and its candidates.

        Args:
            ranking: the query and its candidates, with texts.
            turned: turn the template's order of the passages round.

        Raises:
            ValueError: a candidate without text, or more passages than the budget can hold.
        """
        changes = _Changes()
        query = self._neutralise(ranking.query.text, changes)
        shown = [self._prepare(ranking.query.qid, candidate, changes) for candidate in ranking.candidates]
        order = self.template.order(ranking.query.qid, ranking.docids)[:: -1 if turned else 1]
        shown, layout, tokens = self._fit(ranking.query.qid, query, shown, order, changes)
        return self._prompt(shown, order, layout, tokens, changes.counts())

    def sizes(self, ranking: Ranking) -> tuple[int, list[int]]:
        """Return the tokens of a prompt's frame and of each passage in it, uncut but for the template's own limits.

        A passage's are those of its label, title, text and separator. Together they are what the prompt takes without
        a budget; a few less where the template's limit cuts passages.

        Raises:
            ValueError: a candidate without text.
        """
        changes = _Changes()
        query = self._neutralise(ranking.query.text, changes)
        shown = [self._prepare(ranking.query.qid, candidate, changes) for candidate in ranking.candidates]
        order = self.template.order(ranking.query.qid, ranking.docids)
        layout = self._layout(query, shown, order)
        tokens, limit = self._tokens(layout), self._token_limit
        borders = [bisect_left(tokens.starts, start) for start in layout.starts]
        sizes = [0] * len(shown)
        for place, index in enumerate(order):
            first, last = tokens.span(*layout.texts[place])
            over = 0 if limit is None else max(0, last - first - limit)
            sizes[index] = borders[place + 1] - borders[place] - over
        return len(tokens.ids) - (borders[-1] - borders[0]), sizes

    def with_query(self, prompt: Prompt, query: str) -> Prompt:
        """Return the same passages, cut as they are in `prompt`, asked another query (the content-free one)."""
        layout = self._layout(query, prompt.shown, prompt.order)
        return self._prompt(prompt.shown, prompt.order, layout, self._tokens(layout), {})

    def _neutralise(self, text: str, changes: _Changes) -> str:
        text, found = neutralised(text, self._controls)
        changes.control_tokens += found
        return text

    def _prepare(self, qid: str, candidate: Candidate, changes: _Changes) -> Candidate:
        title = None if candidate.title is None else self._neutralise(candidate.title, changes)
        text, limit = self._neutralise(text_of(qid, candidate), changes), self.template.passage_words
        if limit is not None:
            words = [match.end() for match in re.finditer(r"\S+", text)]
            if len(words) > limit:
                changes.words_dropped += len(words) - limit
                changes.cut.add(candidate.docid)
                text = text[: words[limit - 1]]
        return replace(candidate, text=text, title=title)

    def _fit(
        self, qid: str, query: str, shown: list[Candidate], order: Sequence[int], changes: _Changes
    ) -> tuple[list[Candidate], _Layout, _Tokens]:
        """Cut texts, the longest first, until the prompt is within the budget and each text within its limit.

        Returns:
            The candidates as they are then, and their prompt, tokenised.
        """
        shown = list(shown)
        for slack in (0, 0, 1, 2, 4, 8, 16, 32):
            layout = self._layout(query, shown, order)
            tokens = self._tokens(layout)
            spans = [tokens.span(*text) for text in layout.texts]
            lengths = [end - start for start, end in spans]
            caps = self._caps(qid, lengths, tokens)
            too_long = [place for place, length in enumerate(lengths) if length > caps[place]]
            if not too_long:
                return shown, layout, tokens
            # Cut text may split into more tokens than were kept (a word's beginning is not its first pieces), so each
            # round that does not settle cuts a little more than it must.
            for place in too_long:
                keep = max(1, caps[place] - slack)
                candidate, (text_start, _) = shown[order[place]], layout.texts[place]
                kept = tokens.ends[spans[place][0] + keep - 1] - text_start
                changes.tokens_dropped += lengths[place] - keep
                changes.cut.add(candidate.docid)
                shown[order[place]] = replace(candidate, text=(candidate.text or "")[:kept])
        raise ValueError(
            f"qid {qid}: the prompt does not settle within {self.max_prompt_tokens} tokens; raise the budget"
        )

    def _caps(self, qid: str, lengths: Sequence[int], tokens: _Tokens) -> list[int]:
        """Return how many tokens each text may have, given the tokens that the rest of the prompt takes."""
        if self.template.passages == "causal":
            rest, advice = len(tokens.ids) - sum(lengths), "rerank fewer or raise max_prompt_tokens"
            caps = [_cap(lengths, self.max_prompt_tokens - rest)] * len(lengths)
        else:
            around = np.diff(tokens.boundaries) - lengths  # label, title and separator of each passage
            frame = len(tokens.ids) - int(around.sum()) - sum(lengths)
            rest, advice = frame + int(around.max(initial=0)), "raise max_prompt_tokens"
            caps = [self.max_prompt_tokens - frame - int(size) for size in around]
        if any(cap < min(MIN_PASSAGE_TOKENS, length) for cap, length in zip(caps, lengths, strict=True)):
            raise ValueError(
                f"qid {qid}: {len(lengths)} passages do not fit: the query and the frame of the prompt take {rest} of "
                f"{self.max_prompt_tokens} tokens, which leaves fewer than {MIN_PASSAGE_TOKENS} per passage; {advice}"
            )
        limit = self._token_limit
        return caps if limit is None else [min(cap, limit) for cap in caps]

    @property
    def _token_limit(self) -> int | None:
        """The tokens that a text may have whatever the budget is."""
        limit, words = self.template.passage_tokens, self.template.passage_words
        if limit is None and words is not None:
            limit = max(_FEWEST_TOKENS, _TOKENS_PER_WORD * words)
        return limit

    def _layout(self, query: str, shown: Sequence[Candidate], order: Sequence[int]) -> _Layout:
        template, chat = self.template, self.template.chat
        assert chat is not None
        pieces: list[str] = []
        length = 0

        def write(piece: str) -> tuple[int, int]:
            nonlocal length
            pieces.append(piece)
            length += len(piece)
            return length - len(piece), length

        write(chat.user + template.opening + template.separator)
        starts, passages, texts = [], [], []
        for rank, index in enumerate(order, start=1):
            candidate = shown[index]
            start, body = write(template.label.format(rank=rank))
            starts.append(start)
            if template.title and (candidate.title or (candidate.title is not None and template.keep_empty_title)):
                write(template.title.replace("{title}", candidate.title))
            texts.append(write(candidate.text or ""))
            end = texts[-1][1]
            _, after = write(template.separator)
            spaced = start + len(template.label.format(rank=rank).rstrip())
            passages.append(
                {
                    "text": (body, end),
                    "space+text": (spaced, end),
                    "label+text": (start, end),
                    "label+text+separator": (start, after),
                }[template.columns]
            )
        instruction, _ = write(template.instruction)
        starts.append(instruction)
        write(template.separator + template.query_label)
        asked = write(" " + query)
        write(chat.assistant)
        return _Layout("".join(pieces), starts, passages, texts, asked)

    def _tokens(self, layout: _Layout) -> _Tokens:
        """Tokenise a layout at once, or with isolated passages piece by piece: no token may cross their borders."""
        cuts = [0, *layout.starts, len(layout.text)] if self.template.passages == "isolated" else [0, len(layout.text)]
        ids: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        boundaries = []
        if self._begin and layout.text.startswith(self._begin):
            cuts[0] = len(self._begin)
            ids, starts, ends = [self._begin_id], [0], [cuts[0]]
        for first, last in pairwise(cuts):
            encoding = self._encode.encode(layout.text[first:last], add_special_tokens=False)
            ids += encoding.ids
            starts += [first + start for start, _ in encoding.offsets]
            ends += [first + end for _, end in encoding.offsets]
            boundaries.append(len(ids))
        return _Tokens(np.array(ids, dtype=np.int64), starts, ends, np.array(boundaries[:-1], dtype=np.int64))

    def _prompt(
        self,
        shown: Sequence[Candidate],
        order: tuple[int, ...],
        layout: _Layout,
        tokens: _Tokens,
        counts: Mapping[str, int],
    ) -> Prompt:
        """Return the prompt of a tokenised layout, its columns and rows found."""
        length, isolated = len(tokens.ids), self.template.passages == "isolated"
        in_prompt_order = np.zeros((len(shown), 2), dtype=np.int64)
        taken = 0
        for place, columns in enumerate(layout.passages):
            start, end = tokens.span(*columns)
            start = max(start, taken)  # a token across a boundary belongs to the earlier passage
            limit = int(tokens.boundaries[place + 1]) if isolated else length
            taken = min(max(end, start) + self.template.trailing_columns, limit)
            in_prompt_order[place] = start, taken
        passages, texts = np.empty_like(in_prompt_order), np.empty_like(in_prompt_order)
        passages[list(order)] = in_prompt_order
        texts[list(order)] = np.array(layout.texts, dtype=np.int64).reshape(-1, 2)
        query_start, query_end = tokens.span(*layout.query)
        instruction, _ = tokens.span(layout.instruction, layout.query[1])
        rows = self._rows(instruction, query_start, query_end, length)
        content = self._content(length, passages, (query_start, query_end))
        self._check_controls(tokens.ids[content])
        counts = {"prompt_tokens": length, **counts, **self._unknown(tokens.ids[content])}
        prefix, boundaries = min(rows[0], query_start), tokens.boundaries if isolated else None
        offsets = np.array([tokens.starts, tokens.ends], dtype=np.int64).T
        return Prompt(
            tokens.ids, passages, rows, prefix, counts, tuple(shown), layout.text, boundaries, order,
            offsets, texts, (query_start, query_end),
        )  # fmt: skip

    def _rows(self, instruction: int, query_start: int, query_end: int, length: int) -> tuple[int, int]:
        first, _, last = self.template.rows.partition("..")
        start = instruction if first == "instruction" else query_start
        end = {"end": length, "query+1": min(query_end + 1, length)}.get(last, query_end)
        return start, end

    def _content(self, length: int, passages: np.ndarray, query: tuple[int, int]) -> np.ndarray:
        """Return [N] bool: the tokens of passages and query."""
        content = np.zeros(length, dtype=bool)
        for start, end in [*passages.tolist(), query]:
            content[start : max(start, end - self.template.trailing_columns)] = True
        return content

    def _check_controls(self, content: np.ndarray) -> None:
        if np.isin(content, self._control_ids).any():
            raise ValueError("a control token survived in a passage or query; report the text and the tokenizer")

    def _unknown(self, content: np.ndarray) -> dict[str, int]:
        """Return how many tokens of passages and query are no more than "unknown", where any are."""
        if self._unknown_id is None or not (found := int((content == self._unknown_id).sum())):
            return {}
        if found > _MANY_UNKNOWN * len(content) and not self._warned:
            self._warned = True
            logger.warning(
                "%d of %d tokens of a query and its passages are unknown to the tokenizer (%s): the model cannot read "
                "these texts; choose one that was made for their language",
                found,
                len(content),
                self._unknown_token,
            )
        return {"unknown_tokens": found}


def _cap(lengths: Sequence[int], room: int) -> int:
    """Return the largest cap with ``sum(min(length, cap)) <= room``: the longest are cut first.

    Examples:
        >>> _cap([10, 2, 30], 20)
        9
        >>> _cap([5, 6], 11)
        6
    """
    left = room
    for done, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - done)
        if length > share:
            return share
        left -= length
    return max(lengths, default=0)
