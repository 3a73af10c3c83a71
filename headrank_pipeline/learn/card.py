"""The metadata of a model card: the YAML block by which the Hugging Face hub shows and finds a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

__all__ = ["base_model_of", "hub_name", "new_metadata"]

_HUB_NAME = re.compile(r"([\w.-]+/[\w.-]+)(/.+\.gguf)?")


def hub_name(name: str | None) -> str | None:
    """Return ``owner/name`` of a model on the hub, of a GGUF file there the repository's; None for all else.

    Examples:
        >>> hub_name("Qwen/Qwen3-0.6B"), hub_name("Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf"), hub_name("smollm2")
        ('Qwen/Qwen3-0.6B', 'Qwen/Qwen3-0.6B-GGUF', None)
    """
    found = _HUB_NAME.fullmatch(name or "")
    return None if found is None or Path(str(name)).exists() else found[1]


def base_model_of(source: str, heads_of: str | None) -> str | None:
    """Return the hub's name of the model that another was made from, with its owner; None where it is not known.

    Args:
        source: what was loaded, a name or a folder; a folder's own card may name its base.
        heads_of: the model that the head set names.
    """
    card = Path(source) / "README.md"
    named = None
    if card.is_file():
        from huggingface_hub import metadata_load

        named = (metadata_load(card) or {}).get("base_model")
    known: str | None = hub_name(source) or (named if isinstance(named, str) else None) or hub_name(heads_of)
    return known


def new_metadata(**known: Any) -> Any:
    """Return `huggingface_hub.ModelCardData` of a reranker; what is None is left out.

    Args:
        **known: its other fields, such as ``base_model`` and ``license``.
    """
    from huggingface_hub import ModelCardData

    return ModelCardData(
        pipeline_tag="text-ranking",
        library_name="headrank_pipeline",
        tags=["headrank", "reranker", "attention-heads"],
        **known,
    )
