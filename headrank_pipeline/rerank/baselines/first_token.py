"""First-token listwise reranking: the order of a window is the order of its identifiers' logits where the reply begins.

Reddy et al., "FIRST: Faster Improved Listwise Reranking with Single Token Decoding" (arXiv 2406.15657), code
gangiswag/llm-reranker. One forward pass per window, nothing is generated, nothing has to be parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from headrank_pipeline.attention.recipe import control_pattern
from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.baselines.conversation import ChatFormat, Message
from headrank_pipeline.rerank.baselines.generation import CausalModel, ModelSettings
from headrank_pipeline.rerank.baselines.passage_text import PassageText, Shown, fitted_words
from headrank_pipeline.rerank.baselines.windows import Ordered, Window, Windowing, slide
from headrank_pipeline.rerank.systems import SystemSpec

__all__ = ["FirstToken", "first_token", "open_first_token"]

# The words of the published code for text; "[B] > [A]" is its example for lists of varying length.
SYSTEM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
OPENING = (
    "I will provide you with {num} passages, each indicated by a {kind} identifier []. Rank the passages based on "
    "their relevance to the search query: {query}.\n\n"
)
PASSAGE = "[{identifier}] {passage}\n"
CLOSING = (
    "Search Query: {query}.\nRank the {num} passages above based on their relevance to the search query. All the "
    "passages should be included and listed using identifiers, in descending order of relevance. The output format "
    "should be [] > [], e.g., [{second}] > [{first}], Only respond with the ranking results, do not say any word or "
    "explain."
)
ANSWER = "["  # the reply is begun with it, so that an identifier is the next token
_WORDS = (SYSTEM, OPENING, PASSAGE, CLOSING, ANSWER)


@dataclass(frozen=True, slots=True)
class Identifiers:
    """How passages of a window are called.

    Args:
        identifiers: ``letters`` A, B, … for up to 26 passages (FIRST's choice), ``digits`` 1 … 9 for up to 9.
    """

    identifiers: Literal["letters", "digits"] = "letters"

    def names(self) -> str:
        """Return the names, in order."""
        return ascii_uppercase if self.identifiers == "letters" else "123456789"

    def kind(self) -> str:
        """Return the word of the prompt."""
        return "alphabetical" if self.identifiers == "letters" else "numerical"


class FirstToken(Reranker):
    """Listwise reranking by the logits of identifiers; made by `first_token`.

    Args:
        model: whole, with its head.
        windowing: where the windows lie.
        passages: how passages are shown.
        identifiers: how they are called.

    Raises:
        ValueError: a window with more passages than identifiers, a tokenizer that has no token for one of them, or a
            chat template that begins every reply with thinking.
    """

    def __init__(
        self, model: CausalModel, windowing: Windowing, passages: PassageText, identifiers: Identifiers
    ) -> None:
        self.model, self.windowing, self.passages, self.identifiers = model, windowing, passages, identifiers
        names = identifiers.names()
        if windowing.window_size > len(names):
            raise ValueError(
                f"window_size {windowing.window_size}: there are {len(names)} {identifiers.identifiers} to call "
                f"passages by; choose a window_size of at most {len(names)}"
            )
        self._token_ids = _single_tokens(model, names[: windowing.window_size])
        self._chat = ChatFormat(model.tokenizer, model.source.name, thinking=False)
        self._budget = model.prompt_budget(1)
        self._controls = control_pattern(model.tokenizer)
        if self._chat.opens_thinking(self._chat.text(_turns("query", "passages"))):
            raise ValueError(
                f"first-token: the chat template of {model.source.name} begins every reply with thinking, so its first "
                f"token is no identifier; choose a model that answers at once"
            )

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings in the order of the identifiers' logits; windows at the same step run together.

        Raises:
            ValueError: a candidate without text, or a window that does not fit the model.
        """
        shown = [self.passages.shown(ranking, self._controls) for ranking in rankings]
        reranked = slide(rankings, self.windowing, lambda windows: self._order(windows, shown))
        return [
            Ranking(
                ranking.query, ranking.candidates, {**ranking.notes, "control_tokens_neutralised": s.control_tokens}
            )
            for ranking, s in zip(reranked, shown, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """Return everything that can change an order, with a digest of the prompt."""
        return {
            "system": "first-token",
            **self.model.describe(),
            "chat": self._chat.describe(),
            "windows": self.windowing.describe(),
            "passages": self.passages.describe(),
            "identifiers": self.identifiers.identifiers,
            "prompt_sha256": sha256(repr(_WORDS).encode()).hexdigest(),
        }

    def __repr__(self) -> str:
        return f"<first-token: {self.model.source.name}>"

    def origins(self) -> dict[str, str]:
        """Return where the model lies."""
        return self.model.origins()

    def _order(self, windows: Sequence[Window], shown: Sequence[Shown]) -> list[Ordered]:
        prepared = [self._prepared(window, shown[window.place]) for window in windows]
        logits = self.model.next_logits([ids for ids, _ in prepared], self._token_ids).tolist()
        ordered = []
        for window, (ids, dropped), row in zip(windows, prepared, logits, strict=True):
            _check_finite(window, row)
            # Equal logits keep the present order.
            order = tuple(sorted(range(len(window.candidates)), key=lambda index, row=row: -row[index]))  # type: ignore[misc]
            ordered.append(Ordered(order, {"prompt_tokens": len(ids), "forward_passes": 1}, dropped))
        return ordered

    def _prepared(self, window: Window, shown: Shown) -> tuple[list[int], dict[str, int]]:
        """The prompt of a window with as many words of each passage as fit, and the words left out."""
        docids = tuple(candidate.docid for candidate in window.candidates)

        def prompt(limit: int) -> list[int]:
            messages = self._messages(shown.query, [shown.text(docid, limit) for docid in docids])
            return self._chat.ids(self._chat.text(messages) + ANSWER)

        limit = fitted_words(window, shown.longest(docids), lambda words: len(prompt(words)) <= self._budget)
        return prompt(limit), shown.dropped(docids, limit)

    def _messages(self, query: str, passages: Sequence[str]) -> list[Message]:
        names, num = self.identifiers.names(), len(passages)
        body = "".join(PASSAGE.format(identifier=names[i], passage=passage) for i, passage in enumerate(passages))
        opening = OPENING.format(num=num, kind=self.identifiers.kind(), query=query)
        closing = CLOSING.format(num=num, query=query, first=names[0], second=names[1])
        return _turns(SYSTEM, opening + body + closing)


def _turns(system: str, user: str) -> list[Message]:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _check_finite(window: Window, logits: Sequence[float]) -> None:
    if not all(abs(logit) < float("inf") for logit in logits):  # false for NaN as well
        raise ValueError(
            f"qid {window.query.qid}: an identifier's logit is not finite; a half-precision overflow is the usual "
            f"cause, try dtype float32"
        )


def _single_tokens(model: CausalModel, names: str) -> list[int]:
    """Return the token of each name as it follows an opening bracket."""
    vocabulary = model.tokenizer.get_vocab()
    if unknown := [name for name in names if name not in vocabulary]:
        raise ValueError(
            f"first-token: the tokenizer of {model.source.name} has no single token for {', '.join(unknown)}; choose "
            f"the other kind of identifiers (identifiers=digits or letters), or another model"
        )
    return [vocabulary[name] for name in names]


def first_token(model: str | Path, **options: Any) -> FirstToken:
    """Return first-token reranking with any causal chat model; FIRST's own checkpoints were trained for it.

    Args:
        model: a local folder or a Hugging Face name.
        **options: fields of `Identifiers` (letters), `Windowing` (window_size 20, stride 10), `PassageText`
            (passage_words 300) and `ModelSettings`.

    Raises:
        FileNotFoundError: no such model.
        MissingPrerequisite: a GPU was named and there is none.
        ValueError: an unknown option, a value that an option refuses, or a tokenizer without single-token identifiers.
    """
    return open_first_token(SystemSpec("first-token", model, options=options))


def open_first_token(spec: SystemSpec) -> FirstToken:
    """Return the reranker of a spec: `first_token` with its model and options."""
    spec.refuse_heads()
    system, given = spec.system, spec.options
    refuse_unknown(system, given, Identifiers, Windowing, PassageText, ModelSettings)
    identifiers = read_settings(Identifiers, system, given)
    windowing = read_settings(Windowing, system, given)
    passages = read_settings(PassageText, system, given)
    loaded = CausalModel(spec.model, read_settings(ModelSettings, system, given))
    return FirstToken(loaded, windowing, passages, identifiers)
