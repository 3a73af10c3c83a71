"""HeadRank and its family: which heads, which prompt, which rule, over one engine.

`headrank` is our reconstruction: the paper's full text is not available, so its prompt, rows and normalisation are our
choices (docs/method.md marks each). `icr`, `qrhead`, `core` and `qrranker` follow the published code of their authors,
prompts of each family of models included; docs/method.md lists where we differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from headrank_pipeline.attention.budget import BATCH_TOKENS, TokenBudget
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.markup import CHATS
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import (
    CORE,
    ICR,
    QRHEAD,
    QRRANKER,
    Columns,
    Passages,
    PromptTemplate,
    Recipe,
    Rows,
    ScoringRule,
    Support,
)
from headrank_pipeline.options import refuse_unknown
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.brought import HEADS_FILE, Brought, brought_by, read_recipe
from headrank_pipeline.rerank.named_models import embedded_first_stage_weight, embedded_model, named_model

__all__ = ["core", "embedded_first_stage_weight", "embedded_model", "headrank", "icr", "qrhead", "qrranker"]


class EngineSettings(TypedDict, total=False):
    """How a model is loaded and fed."""

    device: str
    dtype: str
    revision: str | None
    batch_tokens: TokenBudget
    max_prompt_tokens: int | None
    chat: str
    passage_cache: PassageCache | str | Path | None
    long_lists: str


class Keywords(EngineSettings, total=False):
    """The keyword arguments that all recipes share: how a model is loaded, and fields of template and rule."""

    opening: str
    instruction: str
    label: str
    title: str
    keep_empty_title: bool
    separator: str
    query_label: str
    rows: Rows
    columns: Columns
    trailing_columns: int
    reverse: bool
    shuffle_seed: int | None
    passage_words: int | None
    passage_tokens: int | None
    passages: Passages
    support: Support
    content_free: str | None
    filter_deviations: float | None
    length_exponent: float
    both_orders: bool
    place_profile: Literal["set", "heads"] | None
    normalise: Literal["mass", "zscore", "log"]
    temperature: float


def headrank(
    model: str | Path,
    heads: HeadSet | str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Unpack[Keywords],
) -> AttentionReranker:
    """Return HeadRank: documents-only softmax, mean over rows and heads, one forward pass, no calibration.

    The score of passage i is the mean over selected heads and row tokens of the attention mass on its text, the
    softmax running over passage tokens only; scores of a list sum to 1. Reconstructed, see docs/method.md.

    Args:
        model: a local folder, a Hugging Face name, a GGUF file, ``embedded`` or ``smollm2`` (with `heads` the plain
            model, without the trained reranker); see `attention.model.load` for errors.
        heads: a HeadSet, a JSON file, a published name, ``"all"`` or ``"layers:10-13"``; None for the heads that a
            trained model brings along (heads.json, in its folder or at its revision on the hub).
        options: fields of `PromptTemplate` or `ScoringRule` to change, such as ``{"reverse": True}``; a trained
            model's own (recipe.json) are the base.
        **given: device, dtype, revision, batch_tokens, max_prompt_tokens, chat, long_lists (how lists are
            read that take more tokens than that: `rerank.long_lists.LongLists`), and with isolated passages
            passage_cache: a `PassageCache`, or a folder. Any other name is an option: ``passage_words=100`` is
            ``options={"passage_words": 100}`` (the rule's ``heads`` can only be an option).

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no heads were named and the model brings none, or a name that is neither a keyword nor an
            option.
    """
    return _load(None, named_model(model, trained=heads is None), heads, options, given)


def icr(
    model: str | Path,
    heads: HeadSet | str | Path = "all",
    *,
    options: Mapping[str, Any] | None = None,
    **given: Unpack[Keywords],
) -> AttentionReranker:
    """Return ICR (arXiv 2410.02642): all heads summed, calibrated with "N/A", outlying tokens dropped.

    Selective-ICR (arXiv 2602.22591) is ``icr(model, "layers:10-13", options={"rows": "query"})``: a window of layers,
    and for Qwen3 only the query's own tokens as rows. Differs from the published code in one point: a passage of one
    token keeps it (there its deviation is NaN and the passage scores 0).

    Args:
        model: as in `headrank`.
        heads: as in `headrank`; all of them by default.
        options: as in `headrank`.
        **given: as in `headrank`; ``instruction`` is ``ie`` (the default) or ``qa`` (the authors use it for trec-covid,
            fiqa, webis-touche2020, dbpedia-entity, nq and the multi-hop sets), or words of your own.
    """
    return _load(ICR, model, heads, options, given)


def qrhead(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Unpack[Keywords],
) -> AttentionReranker:
    """Return QRHead's retriever (arXiv 2506.09944): a fixed set of heads under ICR's scoring, 400-word passages.

    Differs from the published code in two points: spans of nested or repeated passages are their own (there a passage
    is found by its first occurrence), and a passage of one token keeps it. Arguments as in `headrank`.
    """
    return _load(QRHEAD, model, heads, options, given)


def core(
    model: str | Path,
    heads: HeadSet | str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    **given: Unpack[Keywords],
) -> AttentionReranker:
    """Return CoRe reranking (arXiv 2510.02219): 8 contrastively selected heads, text without titles, given order.

    The authors rerank 40 candidates. They publish prompts for Llama, Mistral, Phi and Granite: on Qwen, ours puts their
    words into Qwen's markup. A passage of one token keeps it. Arguments as in `headrank`.
    """
    return _load(CORE, model, heads, options, given)


def qrranker(
    model: str | Path,
    heads: HeadSet | str | Path = "qrranker-qwen3-4b",
    *,
    options: Mapping[str, Any] | None = None,
    **given: Unpack[Keywords],
) -> AttentionReranker:
    """Return QRRanker's scoring (arXiv 2602.12192): 16 heads, mean over heads and rows, whole chunk lines as columns.

    Prompt and head list are those of the public port of the released model; how it writes a chunk without a title is
    not known, ours leaves "Title: …: " out. Arguments as in `headrank`.
    """
    return _load(QRRANKER, model, heads, options, given)


def _load(
    recipe: Recipe | None,
    model: str | Path,
    heads: HeadSet | str | Path | None,
    options: Mapping[str, Any] | None,
    given: Keywords,
) -> AttentionReranker:
    """Return a recipe's reranker; None for the recipe and the heads that the model brings along."""
    loading, options = _shared_out("headrank" if recipe is None else recipe.name, given, options or {})
    model = named_model(model)
    brought = brought_by(model, loading.get("revision"))
    trained = read_recipe(brought.recipe)
    # Weights trained for isolated passages are not read with causal ones, whatever prompt and rule they are read by.
    varied = (recipe or trained).varied({"passages": trained.template.passages, **options})
    family = loading.get("chat", "auto")
    if family != "auto" and family not in CHATS:
        raise ValueError(f"chat {family!r}: expected auto or one of {', '.join(CHATS)}")
    loaded = load(
        model,
        _own_heads(model, brought) if heads is None else heads,
        device=loading.get("device", "auto"),
        dtype=loading.get("dtype", "auto"),
        revision=brought.revision,
    )
    cache = loading.get("passage_cache")
    reader = AttentionReader(
        loaded,
        batch_tokens=loading.get("batch_tokens", BATCH_TOKENS),
        passage_cache=PassageCache(cache) if isinstance(cache, str | Path) else cache,
    )
    varied = replace(varied, template=replace(varied.template, chat=CHATS.get(family)))
    return AttentionReranker(
        reader,
        varied,
        max_prompt_tokens=loading.get("max_prompt_tokens"),
        long_lists=loading.get("long_lists", "auto"),
    )


def _own_heads(model: str | Path, brought: Brought) -> HeadSet | Path:
    if brought.heads is not None:
        return brought.heads if Path(model).is_dir() else replace(HeadSet.load(brought.heads), model=str(model))
    found = f"there is no folder {model}" if brought.revision is None else f"{model} brings no {HEADS_FILE}"
    found = f"{model} brings no {HEADS_FILE}" if Path(model).exists() else found
    raise ValueError(
        f"headrank needs heads: {found}; name a head set (--heads: a JSON file, a published name, 'all' or "
        f"'layers:10-13')"
    )


def _shared_out(system: str, given: Keywords, options: Mapping[str, Any]) -> tuple[EngineSettings, dict[str, Any]]:
    """Return the keywords that load a model, and all others together with the options.

    Raises:
        ValueError: a name that nothing here has, with the nearest; or one that is given twice.
    """
    refuse_unknown(system, given, PromptTemplate, ScoringRule, others=tuple(EngineSettings.__annotations__))
    own = {name: value for name, value in given.items() if name not in EngineSettings.__annotations__}
    if twice := sorted(given.keys() & options.keys()):
        raise ValueError(f"{system}: {', '.join(twice)} given as a keyword and in options; name it once")
    loading: Any = {name: value for name, value in given.items() if name not in own}
    changes = {**options, **own}
    if "long_lists" in changes:  # as --option gives it
        loading["long_lists"] = changes.pop("long_lists")
    return loading, changes
