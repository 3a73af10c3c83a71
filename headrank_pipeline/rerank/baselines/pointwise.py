"""Qwen3-Reranker: each passage alone, scored by how much likelier "yes" is than "no" as the answer.

Zhang et al., "Qwen3 Embedding" (arXiv 2506.05176); prompt, tokens and score are those of the model card of
Qwen/Qwen3-Reranker-0.6B. Any causal model with ChatML control tokens can be asked the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from headrank_pipeline.attention.recipe import control_pattern, neutralised
from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.baselines.generation import CausalModel, ModelSettings
from headrank_pipeline.rerank.baselines.passage_text import passage_of
from headrank_pipeline.rerank.systems import SystemSpec

__all__ = ["Qwen3Reranker", "open_qwen3_reranker", "qwen3_reranker"]

PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
PAIR = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_MARKUP = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")
_PUBLISHED_BUDGET = 8192  # tokens of a whole prompt


@dataclass(frozen=True, slots=True)
class PairText:
    """What is asked of each passage.

    Args:
        instruction: the task, in English; the model card's web search task by default.
        passage_words: keep that many words of a passage, or None for what the budget of tokens leaves (published).
    """

    instruction: str = INSTRUCTION
    passage_words: int | None = None

    def __post_init__(self) -> None:
        if self.passage_words is not None and self.passage_words < 1:
            raise ValueError(f"passage_words {self.passage_words}: expected at least 1, or None for whole passages")


@dataclass(frozen=True, slots=True)
class _Pair:
    """One prompt and what was changed in it."""

    token_ids: list[int]
    words_dropped: int
    tokens_dropped: int
    control_tokens: int


class Qwen3Reranker(Reranker):
    """Pointwise reranking by "yes" and "no"; made by `qwen3_reranker`.

    Args:
        model: whole, with its head.
        text: what is asked.

    Raises:
        ValueError: a tokenizer without a single token for yes, no or the control tokens of the prompt, or a model that
            rescales its logits, whose scores would be others.
    """

    def __init__(self, model: CausalModel, text: PairText) -> None:
        self.model, self.text = model, text
        vocabulary = model.tokenizer.get_vocab()
        if unknown := [token for token in ("yes", "no", *_MARKUP) if token not in vocabulary]:
            raise ValueError(
                f"qwen3-reranker: the tokenizer of {model.source.name} has no single token for {', '.join(unknown)}; "
                f"choose a Qwen3 model, such as Qwen/Qwen3-Reranker-0.6B"
            )
        if rescaled := model.rescaled_by():
            raise ValueError(
                f"qwen3-reranker: {model.source.name} rescales its logits ({rescaled}); choose a Qwen3 model"
            )
        self._answers = [vocabulary["yes"], vocabulary["no"]]
        self._prefix, self._suffix = self._ids(PREFIX), self._ids(SUFFIX)
        self._controls = control_pattern(model.tokenizer)
        self._budget = min(model.prompt_budget(1), model.max_prompt_tokens or _PUBLISHED_BUDGET)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings with the probability of "yes" as scores; passages of all queries run together.

        Raises:
            ValueError: a candidate without text, a query that fills the budget, or a score that is not finite.
        """
        pairs = [self._pairs(ranking) for ranking in rankings]
        logits = self.model.next_logits([pair.token_ids for of_query in pairs for pair in of_query], self._answers)
        rows = iter(logits.tolist())
        return [self._rescored(*both, rows) for both in zip(rankings, pairs, strict=True)]

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a score, with a digest of the prompt."""
        words = (PREFIX, PAIR, SUFFIX)
        return {
            "system": "qwen3-reranker",
            **self.model.describe(),
            "max_prompt_tokens": self._budget,
            "text": asdict(self.text),
            "prompt_sha256": sha256(repr(words).encode()).hexdigest(),
        }

    def __repr__(self) -> str:
        return f"<qwen3-reranker: {self.model.source.name}>"

    def origins(self) -> dict[str, str]:
        """Return where the model lies."""
        return self.model.origins()

    def _rescored(self, ranking: Ranking, pairs: Sequence[_Pair], rows: Iterator[list[float]]) -> Ranking:
        if not pairs:
            return ranking
        scores = [_probability(*next(rows)) for _ in pairs]
        notes = {
            "prompt_tokens": sum(len(pair.token_ids) for pair in pairs),
            "forward_passes": len(pairs),
            "passages_cut": sum(bool(pair.words_dropped or pair.tokens_dropped) for pair in pairs),
            "words_dropped": sum(pair.words_dropped for pair in pairs),
            "tokens_dropped": sum(pair.tokens_dropped for pair in pairs),
            "control_tokens_neutralised": sum(pair.control_tokens for pair in pairs),
        }
        return Ranking(ranking.query, ranking.candidates, {**ranking.notes, **notes}).rescored(scores)

    def _pairs(self, ranking: Ranking) -> list[_Pair]:
        query, in_query = neutralised(ranking.query.text, self._controls)
        frame = self._ids(PAIR.format(instruction=self.text.instruction, query=query, document=""))
        room = self._budget - len(self._prefix) - len(self._suffix)
        if room <= len(frame):
            raise ValueError(
                f"qid {ranking.query.qid}: instruction and query take all of the {self._budget} tokens of a prompt; "
                f"raise max_prompt_tokens"
            )
        pairs: list[_Pair] = []
        for candidate in ranking.candidates:
            document, found = neutralised(passage_of(ranking.query.qid, candidate, "{title} "), self._controls)
            document, dropped = _cut(document, self.text.passage_words)
            pair = self._ids(PAIR.format(instruction=self.text.instruction, query=query, document=document))
            ids = [*self._prefix, *pair[:room], *self._suffix]
            pairs.append(_Pair(ids, dropped, max(0, len(pair) - room), found + (0 if pairs else in_query)))
        return pairs

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.model.tokenizer.encode(text, add_special_tokens=False)
        return ids


def _cut(document: str, limit: int | None) -> tuple[str, int]:
    """Return the first words of a document, and how many were left out.

    Examples:
        >>> _cut("a flea can live", 2)
        ('a flea', 2)
    """
    words = document.split()
    if limit is None or len(words) <= limit:
        return document, 0
    return " ".join(words[:limit]), len(words) - limit


def _probability(yes: float, no: float) -> float:
    """Return the softmax of two logits, of the first one, without overflow.

    Examples:
        >>> _probability(2.0, 2.0), _probability(-2000.0, 2000.0)
        (0.5, 0.0)
    """
    if yes >= no:
        return 1.0 / (1.0 + math.exp(no - yes))
    odds = math.exp(yes - no)
    return odds / (1.0 + odds)


def qwen3_reranker(model: str | Path, **options: Any) -> Qwen3Reranker:
    """Return pointwise reranking as Qwen3-Reranker's model card does it.

    Args:
        model: a local folder or a Hugging Face name.
        **options: fields of `PairText` (instruction, passage_words) and `ModelSettings` (max_prompt_tokens is 8192
            where it is not given).

    Raises:
        FileNotFoundError: no such model.
        MissingPrerequisite: a GPU was named and there is none.
        ValueError: an unknown option, a value that an option refuses, or a tokenizer without "yes" and "no".
    """
    return open_qwen3_reranker(SystemSpec("qwen3-reranker", model, options=options))


def open_qwen3_reranker(spec: SystemSpec) -> Qwen3Reranker:
    """Return the reranker of a spec: `qwen3_reranker` with its model and options."""
    spec.refuse_heads()
    refuse_unknown(spec.system, spec.options, PairText, ModelSettings)
    text = read_settings(PairText, spec.system, spec.options)
    return Qwen3Reranker(CausalModel(spec.model, read_settings(ModelSettings, spec.system, spec.options)), text)
