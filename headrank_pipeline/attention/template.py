"""The layout of a listwise prompt: what is written, and which of it is read.

Published methods differ in layout, rows and columns (METHOD table in docs/method.md): each difference is a field of
`PromptTemplate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from headrank_pipeline.attention.markup import Chat

__all__ = ["Columns", "Passages", "PromptTemplate", "Rows", "prompt_order"]

Rows = Literal["query", "query..end", "instruction..query", "instruction..query+1", "instruction..end"]
Columns = Literal["text", "space+text", "label+text", "label+text+separator"]
Passages = Literal["causal", "isolated"]


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The layout of a listwise prompt, and which of its tokens are rows and columns.

    ``chat.user + opening + sep + passage 1 + sep + … + passage P + sep + instruction + sep + query_label + " " + query
    + chat.assistant``, a passage being ``label + title + text``.

    Args:
        name: how manifests call it.
        opening: the words before the first passage.
        instruction: the words after the last passage.
        label: written before each passage; ``{rank}`` is its place in the prompt, from 1.
        title: how a title is written before the text, or "" to leave titles out.
        keep_empty_title: write `title` for a title that is there but empty (QRHead's code does).
        separator: between the pieces.
        query_label: before the query.
        chat: turn markup; None takes what the tokenizer knows (`chat_of`).
        rows: the tokens that look back at the passages. ``+1`` takes one token more, as CoRe's inclusive end does.
        columns: the tokens that count for a passage; ``space+text`` takes the space that ends the label where it is a
            token of its own (before digits and white space), as CoRe's code does.
        trailing_columns: tokens more at the end of each passage (CoRe: 1).
        reverse: turn the order round: as given, this writes the best candidate last, next to the query.
        shuffle_seed: write the passages in an order drawn by this seed, the query's id and their docids, which does
            not depend on the order of the candidates; None: in that order.
        passage_words: keep that many words of a text (separated by white space), or None for all.
        passage_tokens: keep that many tokens of a text. None: four times `passage_words` (64 at least) where that is
            given, which cuts what has few words for its length, such as Chinese, Japanese and Thai; else all.
        passages: ``causal``: a passage sees those before it. ``isolated``: it sees the opening and itself only, and all
            of them start at the same position (attention/isolated.py); its place must not show, so `label` has no rank.
        families: name of a family's markup -> the fields that are written otherwise for it, as published.
    """

    name: str
    opening: str = "Here are some paragraphs:"
    instruction: str = (
        "Please find information that are relevant to the following query in the paragraphs above."  # sic, ICR
    )
    label: str = "[{rank}] "
    title: str = "{title}\n"
    keep_empty_title: bool = False
    separator: str = "\n\n"
    query_label: str = "Query:"
    chat: Chat | None = None
    rows: Rows = "query..end"
    columns: Columns = "text"
    trailing_columns: int = 0
    reverse: bool = False
    passage_words: int | None = None
    passage_tokens: int | None = None
    passages: Passages = "causal"
    shuffle_seed: int | None = None
    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("passage_words", "passage_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: expected at least 1, or None for whole passages")
        if self.passages == "isolated" and "{rank}" in self.label:
            raise ValueError(
                f"label {self.label!r}: with isolated passages nothing may depend on a passage's place; "
                f"leave {{rank}} out (label='' writes none)"
            )

    def order(self, qid: str, docids: Sequence[str]) -> tuple[int, ...]:
        """Return the index of the candidate at each place of a query's prompt."""
        return prompt_order(qid, docids, reverse=self.reverse, shuffle_seed=self.shuffle_seed)

    def written_for(self, family: Chat) -> PromptTemplate:
        """Return the template as it is written for a family of models: with its markup, and nothing left to choose."""
        return replace(self, **{"chat": family, **self.families.get(family.name, {}), "families": {}})

    def describe(self) -> dict[str, Any]:
        """Return the template as JSON-ready values."""
        fields = asdict(self)
        del fields["families"]  # one of them has been written, or none
        if self.shuffle_seed is None:  # runs made before there was this field are still the same
            del fields["shuffle_seed"]
        return fields


def prompt_order(
    qid: str, docids: Sequence[str], *, reverse: bool = False, shuffle_seed: int | None = None
) -> tuple[int, ...]:
    """Return the index of the candidate at each place of a prompt: what `PromptTemplate` says of order.

    Examples:
        >>> prompt_order("q1", ["a", "b", "c", "d"], reverse=True)
        (3, 2, 1, 0)
        >>> prompt_order("q1", ["a", "b", "c", "d"], shuffle_seed=1)
        (2, 0, 1, 3)
    """
    order = list(range(len(docids)))
    if shuffle_seed is not None:  # a digest, as generators may differ between versions of Python
        drawn = [sha256(f"{shuffle_seed} {qid} {docid}".encode()).digest() for docid in docids]
        order.sort(key=drawn.__getitem__)
    return tuple(reversed(order) if reverse else order)
