"""RankGPT: a chat model writes the order of each window, from the bottom of the list to the top.

Sun et al., "Is ChatGPT Good at Search?" (arXiv 2304.09542), code sunnweiwei/RankGPT. What differs from it, and how
replies are repaired, is in docs/baselines.md; the names of all counts are in `baselines.replies.NOTES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import Failure, Reranker, all_reranked, require_extra
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.baselines.conversation import Conversation, Message, Writer
from headrank_pipeline.rerank.baselines.decoding import Decoding, Reasoning
from headrank_pipeline.rerank.baselines.passage_text import PassageText, Shown, fitted_words
from headrank_pipeline.rerank.baselines.replies import NoReply, Reply, parse_reply
from headrank_pipeline.rerank.baselines.windows import Ordered, Window, Windowing, slide
from headrank_pipeline.rerank.systems import SystemSpec

__all__ = ["RankGPT", "open_rankgpt", "rankgpt"]

# The words of the paper (its appendix, and the repository's first version; the latter now shows "[20] > [19]").
SYSTEM = "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query."
OPENING = (
    "I will provide you with {num} passages, each indicated by number identifier []. \n"
    "Rank the passages based on their relevance to query: {query}."
)
OPENING_REPLY = "Okay, please provide the passages."
PASSAGE = "[{rank}] {passage}"
PASSAGE_REPLY = "Received passage [{rank}]."
CLOSING = (
    "Search Query: {query}. \nRank the {num} passages above based on their relevance to the search query. The passages "
    "should be listed in descending order using identifiers. The most relevant passages should be listed first. The "
    "output format should be [] > [], e.g., [1] > [2]. Only response the ranking results, do not say any word or "
    "explain."
)
_WORDS = (SYSTEM, OPENING, OPENING_REPLY, PASSAGE, PASSAGE_REPLY, CLOSING)


class RankGPT(Reranker):
    """Listwise reranking by replies; made by `rankgpt`.

    Args:
        writer: who writes the replies.
        windowing: where the windows lie.
        passages: how passages are shown.
    """

    def __init__(self, writer: Writer, windowing: Windowing, passages: PassageText) -> None:
        self.writer, self.windowing, self.passages = writer, windowing, passages

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings in the order of the replies; windows at the same step run together.

        Raises:
            MissingPrerequisite: an endpoint refuses the key.
            RuntimeError: an endpoint gave no reply; names the query.
            ValueError: a candidate without text, a window that does not fit the model, or a query none of whose
                replies named a passage: its order would be the first stage's, which is nobody's judgement.
        """
        return all_reranked(self._attempts(rankings))

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """A query that failed is not asked about again, the others go on."""
        batch = _Batch(self.writer, self.passages, rankings)
        reranked = slide(rankings, self.windowing, batch.order)
        return [batch.attempt(place, ranking) for place, ranking in enumerate(reranked)]

    def describe(self) -> dict[str, Any]:
        """Return everything that can change an order, with a digest of the prompt."""
        return {
            "system": "rankgpt",
            **self.writer.describe(),
            "windows": self.windowing.describe(),
            "passages": self.passages.describe(),
            "prompt_sha256": sha256(repr(_WORDS).encode()).hexdigest(),
        }

    def __repr__(self) -> str:
        return f"<rankgpt: {self.describe()['model']}>"

    def origins(self) -> dict[str, str]:
        """Return where the model lies."""
        return self.writer.origins()


class _Batch:
    """The windows of some queries: their prompts and replies, and which of the queries failed."""

    def __init__(self, writer: Writer, passages: PassageText, rankings: Sequence[Ranking]) -> None:
        self.writer = writer
        self.shown: dict[int, Shown] = {}
        self.last: dict[int, Reply] = {}
        self.failed: dict[int, Exception] = {}
        for place, ranking in enumerate(rankings):
            try:
                self.shown[place] = passages.shown(ranking, writer.controls)
            except ValueError as error:
                self.failed[place] = error

    def order(self, windows: Sequence[Window]) -> list[Ordered]:
        """Return the order of each window; that of a failed query stays, and nobody is asked about it."""
        asked: list[tuple[Window, Conversation, dict[str, int]]] = []
        for window in windows:
            if window.place not in self.failed:
                try:
                    asked.append((window, *self._prepared(window)))
                except ValueError as error:
                    self.failed[window.place] = error
        replies = self.writer.write([conversation for _, conversation, _ in asked]) if asked else []
        ordered: dict[int, Ordered] = {}
        for (window, _, dropped), reply in zip(asked, replies, strict=True):
            ordered[window.place] = self._ordered(window, reply, dropped)
        return [ordered.get(window.place) or _unchanged(window, {}) for window in windows]

    def attempt(self, place: int, ranking: Ranking) -> Ranking | Failure:
        """Return the ranking, or a failure where no reply could be had or said anything about it."""
        if place not in self.failed:
            notes = {**ranking.notes, "control_tokens_neutralised": self.shown[place].control_tokens}
            ranking = Ranking(ranking.query, ranking.candidates, notes)
        error = self.failed.get(place) or self._says_nothing(place, ranking)
        return Failure(ranking.query, error, ranking.notes) if error else ranking

    def _ordered(self, window: Window, reply: Reply | NoReply, dropped: dict[str, int]) -> Ordered:
        if isinstance(reply, NoReply):
            self.failed[window.place] = reply.error
            return _unchanged(window, reply.notes())
        self.last[window.place] = reply
        parsed = parse_reply(reply.text, len(window.candidates))
        return Ordered(parsed.order, {**reply.notes(), **parsed.notes()}, dropped)

    def _says_nothing(self, place: int, ranking: Ranking) -> ValueError | None:
        replies = int(ranking.notes.get("replies", 0))
        if not replies or ranking.notes["replies_without_identifier"] < replies:
            return None
        cut = int(ranking.notes["replies_cut"])
        at_limit = f" ({cut} of them ended at the limit of tokens)" if cut else ""
        return ValueError(
            f"qid {ranking.query.qid}: none of the {replies} replies named a passage{at_limit}; expected [2] > [1] …, "
            f"the last one was {self.last[place].text[:80]!r}; use a model that follows instructions, raise "
            f"max_new_tokens, or switch thinking off (thinking=false)"
        )

    def _prepared(self, window: Window) -> tuple[Conversation, dict[str, int]]:
        """The prompt of a window with as many words of each passage as fit, and the words left out."""
        shown, docids = self.shown[window.place], tuple(candidate.docid for candidate in window.candidates)
        qid = window.query.qid

        def conversation(limit: int) -> Conversation:
            passages = [shown.text(docid, limit) for docid in docids]
            return self.writer.conversation(qid, conversation_of(shown.query, passages))

        limit = fitted_words(window, shown.longest(docids), lambda words: self.writer.fits(conversation(words)))
        return conversation(limit), shown.dropped(docids, limit)


def _unchanged(window: Window, notes: Mapping[str, float]) -> Ordered:
    return Ordered(tuple(range(len(window.candidates))), notes)


def conversation_of(query: str, passages: Sequence[str]) -> list[Message]:
    """Return RankGPT's conversation: one turn per passage, each acknowledged.

    Examples:
        >>> [turn["role"] for turn in conversation_of("fleas", ["a flea"])]
        ['system', 'user', 'assistant', 'user', 'assistant', 'user']
        >>> conversation_of("fleas", ["a flea"])[3]["content"]
        '[1] a flea'
    """
    asked = {"num": len(passages), "query": query}
    turns = [("system", SYSTEM), ("user", OPENING.format(**asked)), ("assistant", OPENING_REPLY)]
    for rank, passage in enumerate(passages, start=1):
        turns.append(("user", PASSAGE.format(rank=rank, passage=passage)))
        turns.append(("assistant", PASSAGE_REPLY.format(rank=rank)))
    turns.append(("user", CLOSING.format(**asked)))
    return [{"role": role, "content": content} for role, content in turns]


def rankgpt(model: str | Path, *, endpoint: str | None = None, **options: Any) -> RankGPT:
    """Return RankGPT with a chat model in this process, or behind an OpenAI-compatible endpoint.

    Args:
        model: a local folder or a Hugging Face name; with an endpoint, the name by which the server knows it.
        endpoint: URL of a server up to ``/v1``; None for a model in this process.
        **options: fields of `Windowing` (window_size 20, stride 10, num_passes 1), `PassageText` (passage_words 300),
            `Reasoning` and `Decoding` (thinking, max_new_tokens, temperature), and of `generation.ModelSettings` (a
            model in this process) or `endpoint.Connection` (a server).

    Raises:
        FileNotFoundError: no such model.
        MissingPrerequisite: a GPU was named and there is none, or the key's variable is not set.
        ValueError: an unknown option, or a value that an option refuses.
    """
    return open_rankgpt(SystemSpec("rankgpt", model, options={**options, "endpoint": endpoint}))


def open_rankgpt(spec: SystemSpec) -> RankGPT:
    """Return the reranker of a spec: `rankgpt` with its model and options."""
    spec.refuse_heads()
    options, model = dict(spec.options), str(spec.model)
    endpoint = options.pop("endpoint", None)
    where = "rankgpt" if endpoint is None else "rankgpt with an endpoint"
    writer = _local_writer(model, where, options) if endpoint is None else _server(str(endpoint), model, where, options)
    return RankGPT(writer, read_settings(Windowing, where, options), read_settings(PassageText, where, options))


_SHARED = (Windowing, PassageText, Reasoning, Decoding)


def _local_writer(model: str, where: str, given: Mapping[str, Any]) -> Writer:
    from headrank_pipeline.rerank.baselines.generation import CausalModel, ModelSettings
    from headrank_pipeline.rerank.baselines.local_writer import LocalWriter

    refuse_unknown(where, given, *_SHARED, ModelSettings)
    reasoning, limit, decoding = _reply_settings(where, given)
    loaded = CausalModel(model, read_settings(ModelSettings, where, given))
    return LocalWriter(loaded, thinking=bool(reasoning.thinking), decoding=decoding, max_new_tokens=limit)


def _server(url: str, model: str, where: str, given: Mapping[str, Any]) -> Writer:
    """No torch, no transformers: the model is elsewhere."""
    require_extra("endpoint", "asking a server", "openai")
    from headrank_pipeline.rerank.baselines.endpoint import Connection, EndpointWriter

    refuse_unknown(where, given, *_SHARED, Connection)
    reasoning, limit, decoding = _reply_settings(where, given)
    fields: dict[str, Any] = {"max_tokens": limit, "temperature": decoding.temperature}
    if decoding.temperature > 0:
        fields |= {"top_p": decoding.top_p, "seed": decoding.seed}
        fields |= {"top_k": decoding.top_k} if decoding.top_k else {}
    if reasoning.thinking is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": reasoning.thinking}
    return EndpointWriter(url, model, read_settings(Connection, where, given), fields)


def _reply_settings(where: str, given: Mapping[str, Any]) -> tuple[Reasoning, int, Decoding]:
    reasoning = read_settings(Reasoning, where, given)
    limit = reasoning.limit(read_settings(Windowing, where, given).window_size)
    return reasoning, limit, read_settings(Decoding, where, given)
