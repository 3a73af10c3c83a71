"""What a scoring method is, as data: turn markup, the layout of a prompt, the rule of its scores, the five methods.

Published methods differ in layout, rows, columns and rule (the table in docs/method.md): each difference is a field of
`PromptTemplate` or `ScoringRule`. A `Recipe` names one of each. Nothing here imports torch, so that a command line can
show and check recipes without a model; heads and a model are put to them by `rerank.systems`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from headrank_pipeline.options import read_settings, refuse_unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

__all__ = [
    "CHATML",
    "CHATS",
    "CORE",
    "GRANITE",
    "HEADRANK",
    "ICR",
    "ICR_INSTRUCTIONS",
    "LLAMA3",
    "MISTRAL",
    "PHI",
    "PLAIN",
    "QRHEAD",
    "QRRANKER",
    "RECIPES",
    "RECIPE_OPTIONS",
    "Chat",
    "Columns",
    "Passages",
    "PromptTemplate",
    "Recipe",
    "Rows",
    "ScoringRule",
    "Support",
    "begun",
    "chat_of",
    "check_vocabulary",
    "control_pattern",
    "control_tokens",
    "neutralised",
    "prompt_order",
]


logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------- turn markup
#
# What a model family writes around a user turn, and keeping passages from writing it. The baselines that put their
# prompts through a chat template take the second part alone.


@dataclass(frozen=True, slots=True)
class Chat:
    """What a model family writes before a user turn and between it and the assistant's."""

    name: str
    user: str
    assistant: str


CHATML = Chat("chatml", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
LLAMA3 = Chat(
    "llama3",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
MISTRAL = Chat("mistral", "<s>[INST]", " [/INST]")
PHI = Chat("phi", "<|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>")
GRANITE = Chat(
    "granite",
    "<|start_of_role|>user<|end_of_role|>",
    "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
)
PLAIN = Chat("plain", "", "\n")

CHATS = {chat.name: chat for chat in (CHATML, GRANITE, LLAMA3, MISTRAL, PHI, PLAIN)}

# The control token that tells a family; Phi-4 knows ChatML's as well, so its own comes first.
_TELLING = {
    "<|im_sep|>": PHI,
    "<|im_start|>": CHATML,
    "<|start_header_id|>": LLAMA3,
    "<|start_of_role|>": GRANITE,
    "[INST]": MISTRAL,
}
# Some families do not mark theirs as special: Qwen3 <think>, others <unused0> or [TOOL].
_LIKE_MARKUP = re.compile(r"<\S+>|\[\S+\]")
_ORDINARY = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def chat_of(tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Return the markup of the tokenizer's family; `PLAIN`, with a warning, where it has one that is not known here.

    A tokenizer without a chat template and without control tokens beside begin, end and padding has no turn markup:
    `PLAIN` is right, and nothing is said.
    """
    added = tokenizer.get_added_vocab()
    for token, chat in _TELLING.items():
        if token in added:
            return chat
    template = str(tokenizer.chat_template or "")
    if "<s>" in added and "[INST]" in template:  # Mistral-7B-Instruct up to v0.2 spells [INST] in ordinary tokens
        return MISTRAL
    ordinary = {getattr(tokenizer, name) for name in _ORDINARY}
    controls = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    strange = [token for token in controls if token not in ordinary]
    if strange or template:
        logger.warning(
            "prompts are written without turn markup (chat 'plain'): the tokenizer's (%s) is of no known family, so "
            "scores may be worse than the model's best; set the option chat: %s (which says that this is right)",
            ", ".join(strange[:4]) or "its chat template",
            ", ".join(CHATS).replace(", plain", ", or plain"),
        )
    return PLAIN


def begun(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> Chat:
    """Return plain markup with the token that begins a text, where the tokenizer puts one there itself.

    Base models of Llama 2, Mistral and Gemma have never seen a text without it. Turn markup names its own.
    """
    begin = tokenizer.bos_token_id
    if chat.name != PLAIN.name or begin is None or tokenizer("a")["input_ids"][0] != begin:
        return chat
    return replace(chat, user=f"{tokenizer.bos_token}{chat.user}")


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """Return the tokens that steer a model: special ones, and added ones that look like markup.

    Other added tokens (``COVID-19``) are words. Tokens of a single character are none: they occur in any text.
    """
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    added = tokenizer.get_added_vocab()
    return {
        token
        for token in added
        if len(token.strip()) > 1 and (token in special or _LIKE_MARKUP.fullmatch(token.strip()))
    }


def control_pattern(tokenizer: PreTrainedTokenizerFast, *spelled: str) -> re.Pattern[str] | None:
    """Return a pattern of the tokenizer's control tokens, or None where it has none.

    Args:
        tokenizer: any.
        spelled: control words that it spells in ordinary tokens.
    """
    found = control_tokens(tokenizer) | set(spelled)
    controls = sorted(found, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, controls))) if controls else None


def neutralised(text: str, controls: re.Pattern[str] | None) -> tuple[str, int]:
    """Break up control tokens that a text contains literally, so that a passage cannot end the user's turn.

    Returns:
        The text, and how many there were.

    Examples:
        >>> neutralised("the end <|im_end|>", re.compile("<.im_end.>"))
        ('the end < |im_end|>', 1)
    """
    total, found = 0, 1
    while found and controls is not None:
        text, found = controls.subn(_broken_up, text)
        total += found
    return text, total


def _broken_up(match: re.Match[str]) -> str:
    """Return a control token with a space inside it: before one at its beginning, it would still be that token."""
    inside = len(match[0]) - len(match[0].lstrip()) + 1
    return f"{match[0][:inside]} {match[0][inside:]}"


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer of another model, before one of its tokens is looked up beyond the embeddings.

    Control tokens beyond them that no prompt contains are common (a padding token that somebody added) and harmless.

    Args:
        name: name of the model, for the message.
        model: loaded.
        tokenizer: the tokenizer that lies beside it.

    Raises:
        ValueError: tokens that prompts may contain have no embedding.
    """
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]  # of every decoder's
    beyond = {token: place for token, place in tokenizer.get_vocab().items() if place >= rows}
    markup = "".join(chat.user + chat.assistant for chat in CHATS.values()) + str(tokenizer.bos_token)
    silent = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if written := sorted(token for token in beyond if token not in silent or token in markup):
        raise ValueError(
            f"model {name}: its tokenizer has tokens up to number {max(beyond.values())}, but the model has embeddings "
            f"for {rows}, none for {', '.join(map(repr, written[:3]))}; copy the tokenizer that belongs to these "
            f"weights (tokenizer.json, tokenizer_config.json)"
        )


# ---------------------------------------------------------------------------------------------------- prompts and rules


Rows = Literal["query", "query..end", "instruction..query", "instruction..query+1", "instruction..end"]
Columns = Literal["text", "space+text", "label+text", "label+text+separator"]
Passages = Literal["causal", "isolated"]
Support = Literal["all", "passages", "passages-geometric"]


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
        separator: stands between the pieces.
        query_label: stands before the query.
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
            of them start at the same position (attention/contexts.py); its place must not show, so `label` has no rank.
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
        try:
            first, second = (self.label.format(rank=rank) for rank in (1, 2))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"label {self.label!r}: {{rank}}, a passage's place, is all that can be filled in ({error}); write it "
                f"so, and double braces that are to be read"
            ) from error
        if self.passages == "isolated" and first != second:
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


@dataclass(frozen=True, slots=True)
class ScoringRule:
    """How passages are scored; the fields are the columns of the table in docs/method.md.

    Args:
        support: what the softmax of each row is normalised over: ``all`` visible tokens, or the tokens of ``passages``
            only. Rows are averaged; with ``passages-geometric`` they are put together by the geometric mean of each
            passage's shares: what one word of the query finds cannot outweigh what the others find.
        heads: sum or mean over heads (equal order; the scale of scores differs).
        content_free: the query whose attention is subtracted (``"N/A"`` in ICR), or None for no calibration.
        filter_deviations: drop a passage's tokens at or below mean - k * standard deviation (ICR: k = 2), or None.
        length_exponent: divide a passage's sum by its number of tokens to this power; 0 is the sum, 1 the mean.
        both_orders: read every list in the prompt's order and in its reverse; scores are the mean of both.
        place_profile: divide by the mean share that attention has at a passage's place, whatever stands there, as the
            head set carries it: ``set`` the score by the set's curve, ``heads`` the mass of each head by its own.
            Curves are scaled to a mean of 1 over the list's places.
        normalise: what is done to each head over the passages of a list, before heads are added: ``mass`` leaves it,
            ``zscore`` standardises it (scores can be negative), ``log`` takes logarithms of shares, so that scores are
            the heads' geometric mean, scaled to sum to 1, whatever `heads` says.
        temperature: divides the logarithms of each head's masses in a softmax, before `normalise`; below 1 sharpens.

    Raises:
        ValueError: a temperature that is not above 0, or fields that do not go together.
    """

    support: Support = "passages"
    heads: Literal["sum", "mean"] = "mean"
    content_free: str | None = None
    filter_deviations: float | None = None
    length_exponent: float = 0.0
    both_orders: bool = False
    place_profile: Literal["set", "heads"] | None = None
    normalise: Literal["mass", "zscore", "log"] = "mass"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature {self.temperature!r}: expected a number above 0; 1 leaves masses as they are"
            )
        if self.content_free is not None:
            for name, used in (
                ("place_profile", self.place_profile is not None),
                ("normalise 'log'", self.normalise == "log"),
                ("temperature", self.temperature != 1.0),
            ):
                if used:
                    raise ValueError(
                        f"{name}: not with a content-free query, whose subtraction leaves negative attention; give "
                        f"content_free=null, or leave it out"
                    )
        if self.place_profile == "set" and (self.normalise, self.temperature) != ("mass", 1.0):
            raise ValueError(
                "place_profile 'set': the set's curve is that of its plain score; with normalise or temperature divide "
                "each head by its own (place_profile=heads)"
            )

    def describe(self) -> dict[str, Any]:
        """Return the rule as JSON-ready values, without fields that are as they were before they existed."""
        since = {"both_orders": False, "place_profile": None, "normalise": "mass", "temperature": 1.0}
        return {name: value for name, value in asdict(self).items() if name not in since or value != since[name]}

    @property
    def scale_between_prompts(self) -> Literal["ratio", "affine"]:
        """How the scores of a passage differ between prompts: shares by a factor, others by a shift, too."""
        return "ratio" if self.content_free is None and self.normalise != "zscore" else "affine"

    @property
    def pools_first(self) -> bool:
        """Whether passages are pooled for each head, before heads are put together."""
        return self.place_profile == "heads" or self.normalise != "mass" or self.temperature != 1.0


CONTENT_FREE = "N/A"

ICR_INSTRUCTIONS = {
    "ie": "Please find information that are relevant to the following query in the paragraphs above.",
    "qa": "Please answer the following question based on the information in the paragraphs above.",
}

Settings = TypeVar("Settings", PromptTemplate, ScoringRule)


# What `Recipe.varied` changes: not the chat markup, which depends on the tokenizer, as what families write does.
RECIPE_OPTIONS = tuple(
    field.name
    for settings in (PromptTemplate, ScoringRule)
    for field in fields(settings)
    if field.name not in ("name", "chat", "families")
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A named way to score passages with attention; heads come on top."""

    name: str
    template: PromptTemplate
    rule: ScoringRule

    def varied(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with fields of its template or rule changed.

        Raises:
            ValueError: a field that neither has, or a value of the wrong type.
        """
        refuse_unknown(self.name, changes, others=RECIPE_OPTIONS)
        changes = {**changes, **_instruction(self.name, changes)}
        if changes.get("passages") == "isolated" and "{rank}" in self.template.label:
            changes = {"label": "", **changes}  # a place in the prompt is what isolated passages do not have
        families = {
            family: {name: value for name, value in own.items() if name not in changes}
            for family, own in self.template.families.items()
        }
        return replace(
            self,
            template=replace(_changed(self.name, self.template, changes), families=families),
            rule=_changed(self.name, self.rule, changes),
        )


def _instruction(system: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Return the words of an instruction that is named; words of one's own are left as they are."""
    asked = changes.get("instruction")
    if not isinstance(asked, str):
        return {}  # none, or for the type check to refuse
    if asked not in ICR_INSTRUCTIONS and asked.isalpha():  # a bare word is meant for a name
        raise ValueError(
            f"{system} option instruction {asked!r}: expected one of {', '.join(ICR_INSTRUCTIONS)} (ICR's wordings) or "
            f"words of your own"
        )
    return {"instruction": ICR_INSTRUCTIONS.get(asked, asked)}


def _changed(system: str, settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return the settings with those of the changes that are theirs, each checked against the field's type."""
    kept = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return read_settings(type(settings), system, {**kept, **changes})


HEADRANK = Recipe(
    "headrank",
    PromptTemplate("headrank", rows="query..end", columns="text", passage_words=300),
    ScoringRule(support="passages", heads="mean"),
)

_LLAMA3 = Chat("llama3, no newline after roles", LLAMA3.user.rstrip("\n"), LLAMA3.assistant.rstrip("\n"))
_CHATML = Chat("chatml, no newline after roles", CHATML.user.rstrip("\n"), CHATML.assistant.rstrip("\n"))
_MISTRAL = Chat("mistral, no space before [/INST]", MISTRAL.user, MISTRAL.assistant.lstrip(" "))
_GRANITE = Chat("granite, no newline between turns", GRANITE.user, GRANITE.assistant.replace("\n", ""))

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

# What `families` say is what the authors' code writes for them: in_context_reranker.py of ICR (Qwen3's markup is
# Selective-ICR's), attn_retriever.py of QRHead, reranker_calib.py of CoRe. A family that is not named gets its own
# markup around the words that the authors write for the others.
ICR = Recipe(
    "icr",
    replace(_ICR_FRAME, families={"llama3": {"chat": _LLAMA3}, "mistral": {"chat": _MISTRAL, "separator": "\n\n"}}),
    _ICR_RULE,
)

QRHEAD = Recipe(
    "qrhead",
    replace(
        _ICR_FRAME,
        name="qrhead",
        separator="\n\n",
        keep_empty_title=True,
        passage_words=400,
        families={"chatml": {"chat": _CHATML}, "llama3": {"chat": _LLAMA3, "separator": " \n\n"}},
    ),
    _ICR_RULE,
)

# A passage of CoRe's starts where its label ends, at the space. Its `off_set` for Mistral takes off the token that its
# inclusive ends add for the others. Phi-4's own markup is what it writes.
CORE = Recipe(
    "core",
    PromptTemplate(
        "core",
        opening=" Here are some paragraphs:",
        label="[document {rank}] ",
        title="",
        rows="instruction..query+1",
        columns="space+text",
        trailing_columns=1,
        passage_words=300,
        families={
            "granite": {"chat": _GRANITE},
            "llama3": {"chat": _LLAMA3},
            "mistral": {"chat": _MISTRAL, "rows": "instruction..query", "trailing_columns": 0},
        },
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

RECIPES = {recipe.name: recipe for recipe in (HEADRANK, ICR, QRHEAD, CORE, QRRANKER)}
