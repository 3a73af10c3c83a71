"""HeadRank and its family as data: which heads, which prompt, which rule, over one engine.

`headrank` is our reconstruction: the paper's full text is not available, so its prompt, rows and normalisation are our
choices (docs/method.md marks each). `icr`, `qrhead`, `core` and `qrranker` follow the published code of their authors;
where we differ, the function's docstring says so and an option undoes it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack

from pydantic import TypeAdapter, ValidationError

from headrank_pipeline.attention.budget import BATCH_TOKENS, TokenBudget
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.isolated import cached_passages
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.prompt import (
    CHATML,
    LLAMA3,
    MISTRAL,
    PLAIN,
    Chat,
    Prompt,
    PromptBuilder,
    PromptTemplate,
    chat_of,
)
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.scoring import ScoringRule, pool_tokens, token_scores
from headrank_pipeline.pipeline import Failure, Reranker
from headrank_pipeline.records import Ranking

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AttentionReranker",
    "Recipe",
    "core",
    "embedded_first_stage_weight",
    "embedded_model",
    "headrank",
    "icr",
    "qrhead",
    "qrranker",
    "recipe_of",
]

CONTENT_FREE = "N/A"

# What a trained model folder holds beside weights and tokenizer (align/export.py writes them).
HEADS_FILE = "heads.json"
RECIPE_FILE = "recipe.json"

Settings = TypeVar("Settings", PromptTemplate, ScoringRule)

_CHATS = {chat.name: chat for chat in (CHATML, LLAMA3, MISTRAL, PLAIN)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named way to score passages with attention; heads come on top."""

    name: str
    template: PromptTemplate
    rule: ScoringRule

    def varied(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with fields of its template or rule changed.

        Raises:
            ValueError: a field that neither has (the message lists those there are), or a value of the wrong type.
        """
        # The chat markup is an argument of its own: it depends on the tokenizer.
        template = {field.name for field in fields(PromptTemplate)} - {"name", "chat"}
        rule = {field.name for field in fields(ScoringRule)}
        if unknown := sorted(set(changes) - template - rule):
            raise ValueError(f"{self.name} has no option {unknown}; options: {', '.join(sorted(template | rule))}")
        if changes.get("passages") == "isolated" and "{rank}" in self.template.label:
            changes = {"label": "", **changes}  # a place in the prompt is what isolated passages do not have
        return replace(
            self, template=_changed(self.name, self.template, changes), rule=_changed(self.name, self.rule, changes)
        )


def _changed(system: str, settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with those of the changes that are theirs, each checked against the field's type."""
    kept = {field.name: getattr(settings, field.name) for field in fields(settings)}
    kept |= {name: value for name, value in changes.items() if name in kept}
    try:
        return TypeAdapter(type(settings)).validate_python(kept)
    except ValidationError as error:
        problem = error.errors()[0]
        wanted = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:  # the settings' own check, which names the field
            raise ValueError(f"{system} option {wanted}") from error
        name = str(problem["loc"][0])
        raise ValueError(f"{system} option {name}: {wanted}, got {kept[name]!r}") from error


HEADRANK = Recipe(
    "headrank",
    PromptTemplate("headrank", rows="query..end", columns="text", passage_words=300),
    ScoringRule(support="passages", heads="mean"),
)

_ICR_FRAME = PromptTemplate(
    "icr",
    opening=" Here are some paragraphs:",
    separator=" \n\n",
    rows="instruction..end",
    columns="label+text",
    reverse=True,
    passage_words=300,
)
_ICR_RULE = ScoringRule(support="all", heads="sum", content_free=CONTENT_FREE, filter_deviations=2.0)

ICR = Recipe("icr", _ICR_FRAME, _ICR_RULE)

QRHEAD = Recipe(
    "qrhead",
    replace(_ICR_FRAME, name="qrhead", separator="\n\n", keep_empty_title=True, passage_words=400),
    _ICR_RULE,
)

CORE = Recipe(
    "core",
    PromptTemplate(
        "core",
        opening=" Here are some paragraphs:",
        label="[document {rank}] ",
        title="",
        rows="instruction..query+1",
        columns="text",
        trailing_columns=1,
        passage_words=300,
    ),
    _ICR_RULE,
)

QRRANKER = Recipe(
    "qrranker",
    PromptTemplate(
        "qrranker",
        opening="Here are some retrieved chunks:",
        instruction="Use the retrieved chunks to answer the user's query.",
        title="Title: {title}: ",
        rows="instruction..query",
        columns="label+text+separator",
    ),
    ScoringRule(support="all", heads="mean"),
)

ICR_INSTRUCTIONS = {
    "ie": "Please find information that are relevant to the following query in the paragraphs above.",
    "qa": "Please answer the following question based on the information in the paragraphs above.",
}


class Loading(TypedDict, total=False):
    """How a model is loaded; the keyword arguments that all recipes share."""

    device: str
    dtype: str
    revision: str | None
    batch_tokens: TokenBudget
    max_prompt_tokens: int | None
    chat: str
    passage_cache: PassageCache | str | Path | None


class AttentionReranker(Reranker):
    """Scores the passages of a ranking with attention heads in one prefill; made by the functions of this module.

    Args:
        reader: truncated model and heads.
        recipe: prompt and rule.
        max_prompt_tokens: budget of a prompt; None for all positions of the model.

    Raises:
        ValueError: a budget beyond the model's positions, chat markup that the tokenizer does not know, or a passage
            cache without isolated passages.
    """

    def __init__(self, reader: AttentionReader, recipe: Recipe, *, max_prompt_tokens: int | None = None) -> None:
        budget = reader.max_prompt_tokens if max_prompt_tokens is None else max_prompt_tokens
        if budget > reader.max_prompt_tokens:
            raise ValueError(
                f"max_prompt_tokens {budget}: {reader.source.name} was made for {reader.max_prompt_tokens} positions"
            )
        if reader.passage_cache is not None and recipe.template.passages != "isolated":
            raise ValueError(
                f"{recipe.name}: a passage cache needs isolated passages, causal ones depend on those before them; add "
                f"--passages isolated, or leave the cache out"
            )
        self.reader = reader
        self.builder = PromptBuilder(reader.tokenizer, recipe.template, max_prompt_tokens=budget)
        self.recipe = replace(recipe, template=self.builder.template)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        """Return the rankings rescored; empty ones come back as they are.

        Raises:
            ValueError: a candidate without text, a list that does not fit the budget, or scores that are not finite.
        """
        reranked = []
        for attempt in self._attempts(rankings):
            if isinstance(attempt, Failure):
                raise attempt.error
            reranked.append(attempt)
        return reranked

    def _attempts(self, rankings: Sequence[Ranking]) -> list[Ranking | Failure]:
        """A query whose prompt cannot be built fails alone; prompts are built as passes need them."""
        attempts: list[Ranking | Failure] = list(rankings)
        rule = self.recipe.rule
        waiting: deque[tuple[int, Prompt, dict[str, int]]] = deque()  # built, and not yet scored

        def lists() -> Iterator[tuple[Prompt, ...]]:
            for index in _longest_first(rankings):
                try:
                    prompt = self.builder.build(rankings[index])
                    blank = rule.content_free
                    prompts = (prompt,) if blank is None else (prompt, self.builder.with_query(prompt, blank))
                except ValueError as error:
                    attempts[index] = Failure(rankings[index].query, error)
                    continue
                waiting.append((index, prompt, self._cached(prompt)))
                yield prompts

        # the passages, then what is asked about them
        passes = 1 if rule.content_free is None and self.recipe.template.passages == "causal" else 2
        needed = lists() if self.reader.fast.build_ahead else list(lists())
        for readings in self.reader.stream(needed, support=rule.support):
            index, prompt, kept = waiting.popleft()
            notes = {**rankings[index].notes, **prompt.counts, "forward_passes": passes, **kept}
            attempts[index] = replace(rankings[index], notes=notes).rescored(self._scores(prompt, *readings))
        return attempts

    def _cached(self, prompt: Prompt) -> dict[str, int]:
        """Return how many of the passages lay in the passage cache before the query came, where there is one."""
        if self.reader.passage_cache is None:
            return {}
        return {"passages": len(prompt.passages), "passages_cached": cached_passages(self.reader, prompt)}

    def _scores(self, prompt: Prompt, read: Tensor, blank: Tensor | None = None) -> list[float]:
        rule = self.recipe.rule
        scores: list[float] = pool_tokens(
            token_scores(read, blank, rule, self.reader.heads.weights), prompt.passages, rule
        ).tolist()
        return scores

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a score, with digests of the template and the heads."""
        template = self.recipe.template.describe()
        return {
            "system": self.recipe.name,
            **self.reader.describe(),
            "template": {**template, "sha256": sha256(repr(sorted(template.items())).encode()).hexdigest()},
            "rule": self.recipe.rule.describe(),
            "max_prompt_tokens": self.builder.max_prompt_tokens,
        }


def _longest_first(rankings: Sequence[Ranking]) -> list[int]:
    """Return the indices of the rankings that have candidates, by what can be told of length without a tokenizer.

    Examples:
        >>> from headrank_pipeline.records import Candidate, Query
        >>> short, long = (Ranking(Query(text, "x"), (Candidate("d", 1.0, text),)) for text in ("ab", "abc"))
        >>> _longest_first([short, Ranking(Query("none", "x"), ()), long])
        [2, 0]
    """
    characters = [sum(len(candidate.text or "") for candidate in ranking.candidates) for ranking in rankings]
    filled = [index for index, ranking in enumerate(rankings) if ranking.candidates]
    return sorted(filled, key=lambda index: (-characters[index], index))


def headrank(
    model: str | Path,
    heads: HeadSet | str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **loading: Unpack[Loading],
) -> AttentionReranker:
    """Return HeadRank: documents-only softmax, mean over rows and heads, one forward pass, no calibration.

    The score of passage i is the mean over selected heads and row tokens of the attention mass on its text, the
    softmax running over passage tokens only; scores of a list sum to 1. Reconstructed, see docs/method.md.

    Args:
        model: a local folder or a Hugging Face name; see `attention.model.load` for errors.
        heads: a HeadSet, a JSON file, a published name, ``"all"`` or ``"layers:10-13"``; None for the heads that a
            trained folder brings along (heads.json).
        options: fields of `PromptTemplate` or `ScoringRule` to change, such as ``{"reverse": True}``; a trained
            folder's own (recipe.json) are the base.
        **loading: device, dtype, revision, batch_tokens, max_prompt_tokens, chat, and with isolated passages
            passage_cache: a `PassageCache`, or a folder.

    Raises:
        ValueError: no heads were named and the model folder brings none.
    """
    folder = Path(model)
    if heads is None:
        heads = folder / HEADS_FILE
        if not heads.is_file():
            raise ValueError(
                f"headrank needs heads: {model} brings no {HEADS_FILE}; name a head set (--heads: a JSON file, a "
                f"published name, 'all' or 'layers:10-13')"
            )
    return _load(recipe_of(model), model, heads, options, loading)


def icr(
    model: str | Path,
    heads: HeadSet | str | Path = "all",
    *,
    instruction: str = "ie",
    options: Mapping[str, Any] | None = None,
    **loading: Unpack[Loading],
) -> AttentionReranker:
    """Return ICR (arXiv 2410.02642): all heads summed, calibrated with "N/A", outlying tokens dropped.

    Selective-ICR (arXiv 2602.22591) is ``icr(model, "layers:10-13", options={"rows": "query"})``: a window of layers,
    and for Qwen3 only the query's own tokens as rows. Differs from the published code in one point: a passage of one
    token keeps it (there its deviation is NaN and the passage scores 0).

    Args:
        model: as in `headrank`.
        heads: as in `headrank`; all of them by default.
        instruction: ``ie`` or ``qa`` (the authors use ``qa`` for trec-covid, fiqa, webis-touche2020, dbpedia-entity,
            nq and the multi-hop sets).
        options: as in `headrank`.
        **loading: as in `headrank`.
    """
    if instruction not in ICR_INSTRUCTIONS:
        raise ValueError(f"instruction {instruction!r}: expected one of {', '.join(ICR_INSTRUCTIONS)}")
    words = {"instruction": ICR_INSTRUCTIONS[instruction], **(options or {})}
    return _load(ICR, model, heads, words, loading)


def qrhead(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    **loading: Unpack[Loading],
) -> AttentionReranker:
    """Return QRHead's retriever (arXiv 2506.09944): a fixed set of heads under ICR's scoring, 400-word passages.

    Differs from the published code in two points: spans of nested or repeated passages are their own (there a passage
    is found by its first occurrence), and a passage of one token keeps it. Arguments as in `headrank`.
    """
    return _load(QRHEAD, model, heads, options, loading, tight=True)


def core(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    **loading: Unpack[Loading],
) -> AttentionReranker:
    """Return CoRe reranking (arXiv 2510.02219): 8 contrastively selected heads, text without titles, given order.

    The authors rerank 40 candidates. They publish no Qwen prompt: there, ours puts their words into Qwen's markup. A
    passage of one token keeps it. Arguments as in `headrank`.
    """
    return _load(CORE, model, heads, options, loading)


def qrranker(
    model: str | Path,
    heads: HeadSet | str | Path = "qrranker-qwen3-4b",
    *,
    options: Mapping[str, Any] | None = None,
    **loading: Unpack[Loading],
) -> AttentionReranker:
    """Return QRRanker's scoring (arXiv 2602.12192): 16 heads, mean over heads and rows, whole chunk lines as columns.

    Prompt and head list are those of the public port of the released model; how it writes a chunk without a title is
    not known, ours leaves "Title: …: " out. Arguments as in `headrank`.
    """
    return _load(QRRANKER, model, heads, options, loading)


def embedded_model() -> Path:
    """Return the folder of the small Qwen3-architecture model that ships with the package (see its model card)."""
    return Path(str(files("headrank_pipeline") / "resources" / "model"))


def embedded_first_stage_weight() -> float:
    """Return BM25's weight beside the logarithm of the embedded model's scores, chosen on its training lists."""
    config = json.loads((embedded_model() / "config.json").read_text(encoding="utf-8"))
    weight: float = config["headrank"]["bm25_interpolation"]["weight"]  # of the model
    return 1.0 - weight


def recipe_of(model: str | Path) -> Recipe:
    """Return the prompt and rule that a trained folder's weights belong to (recipe.json); `HEADRANK` for other models.

    Raises:
        ValueError: a recipe.json that is not the template and rule of a trained model.
    """
    path = Path(model) / RECIPE_FILE
    if not path.is_file():
        return HEADRANK
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        changes = {**record["template"], **record["rule"]}
        changes.pop("name", None)
        return HEADRANK.varied(changes)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the template and rule of a trained model ({error}); export it again") from error


def _load(
    recipe: Recipe,
    model: str | Path,
    heads: HeadSet | str | Path,
    options: Mapping[str, Any] | None,
    loading: Loading,
    *,
    tight: bool = False,
) -> AttentionReranker:
    varied = recipe.varied(options or {})
    loaded = load(
        model,
        heads,
        device=loading.get("device", "auto"),
        dtype=loading.get("dtype", "auto"),
        revision=loading.get("revision"),
    )
    cache = loading.get("passage_cache")
    reader = AttentionReader(
        loaded,
        batch_tokens=loading.get("batch_tokens", BATCH_TOKENS),
        passage_cache=PassageCache(cache) if isinstance(cache, str | Path) else cache,
    )
    chat = _chat(loading.get("chat", "auto"), reader, tight=tight)
    varied = replace(varied, template=replace(varied.template, chat=chat))
    return AttentionReranker(reader, varied, max_prompt_tokens=loading.get("max_prompt_tokens"))


def _chat(name: str, reader: AttentionReader, *, tight: bool) -> Chat:
    """Return the markup by name; tight is QRHead's: no newline after the role names."""
    if name != "auto" and name not in _CHATS:
        raise ValueError(f"chat {name!r}: expected auto or one of {', '.join(_CHATS)}")
    chat = chat_of(reader.tokenizer) if name == "auto" else _CHATS[name]
    if not tight:
        return chat
    return Chat(f"{chat.name}, no newline after roles", chat.user.rstrip("\n"), chat.assistant.rstrip("\n"))
