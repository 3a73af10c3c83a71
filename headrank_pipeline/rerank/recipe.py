"""A recipe: prompt and rule of a named way to score passages with attention; and those of HeadRank and its family.

The functions of `rerank.recipes` put heads and a model to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from headrank_pipeline.attention.markup import CHATML, GRANITE, LLAMA3, MISTRAL, Chat
from headrank_pipeline.attention.scoring import ScoringRule
from headrank_pipeline.attention.template import PromptTemplate
from headrank_pipeline.rerank.brought import brought_by
from headrank_pipeline.rerank.options import read_settings, refuse_unknown

__all__ = ["CORE", "HEADRANK", "ICR", "ICR_INSTRUCTIONS", "QRHEAD", "QRRANKER", "Recipe", "read_recipe", "recipe_of"]

CONTENT_FREE = "N/A"

ICR_INSTRUCTIONS = {
    "ie": "Please find information that are relevant to the following query in the paragraphs above.",
    "qa": "Please answer the following question based on the information in the paragraphs above.",
}

Settings = TypeVar("Settings", PromptTemplate, ScoringRule)


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
        # The chat markup is an argument of its own: it depends on the tokenizer, as what families write does.
        template = {field.name for field in fields(PromptTemplate)} - {"name", "chat", "families"}
        refuse_unknown(self.name, changes, ScoringRule, others=tuple(template))
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


def recipe_of(model: str | Path, revision: str | None = None) -> Recipe:
    """Return the prompt and rule that a trained model's weights belong to; `HEADRANK` for other models.

    Args:
        model: a local folder or a Hugging Face name.
        revision: of a Hugging Face model.

    Raises:
        FileNotFoundError: no such folder or model.
        ValueError: a recipe.json that is not the template and rule of a trained model.
    """
    return read_recipe(brought_by(model, revision).recipe)


def read_recipe(path: Path | None) -> Recipe:
    """Return the prompt and rule in a trained model's recipe.json; `HEADRANK` for None, a model that has no such file.

    Raises:
        ValueError: a file that is not the template and rule of a trained model.
    """
    if path is None:
        return HEADRANK
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        changes = {**record["template"], **record["rule"]}
        changes.pop("name", None)
        return HEADRANK.varied(changes)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the template and rule of a trained model ({error}); export it again") from error
