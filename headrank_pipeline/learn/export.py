"""A trained model as a folder that reranks: truncated weights, tokenizer, heads, prompt and rule, and a model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headrank_pipeline.attention.model import LoadedModel, save_weights
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.files import atomic_writer, write_json
from headrank_pipeline.learn.card import base_model_of, new_metadata

__all__ = ["export"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(
    loaded: LoadedModel,
    reading: Recipe,
    folder: str | Path,
    *,
    dtype: str = "auto",
    name: str | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder that `headrank(folder)` can use; return the folder.

    It holds ``model.safetensors`` (layers up to the deepest head), ``config.json``, the tokenizer's files,
    ``heads.json``, ``recipe.json`` (template and rule as they were trained) and ``README.md``. Files of these names
    are replaced, others (a ``training`` folder) stay.

    Args:
        loaded: model and heads, LoRA folded in (`Trainer.run` does that at its end).
        reading: template and rule that belong to the weights.
        folder: receives the files; made if missing.
        dtype: type of the weights: ``auto`` (as loaded), ``float32``, ``bfloat16`` or ``float16``.
        name: name of the model in heads.json and in the card; None takes the folder's name.
        made_by: what made it, JSON-ready: data, configuration, figures; goes into the card.

    Raises:
        ValueError: an unknown dtype, weights that are not finite in it, or LoRA modules that are still there.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}: expected auto or one of {', '.join(_DTYPES)}")
    if any(".lora_" in key for key in loaded.model.state_dict()):
        raise ValueError("the LoRA updates are not folded in yet: let Trainer.run come to its end, or call fold_lora")
    target = Path(folder)
    name = name or target.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    draft = target / f".export.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        save_weights(loaded.model, draft, loaded.model.dtype if dtype == "auto" else _DTYPES[dtype])
        loaded.tokenizer.save_pretrained(draft)
        # Training changes how attention goes by place: curves stay only where the trained rule divides by them.
        places = loaded.heads.places if reading.rule.place_profile else None
        replace(loaded.heads, model=name, revision=None, places=places).save(draft / "heads.json")
        _write_recipe(reading, draft / "recipe.json")
        with atomic_writer(draft / "README.md") as file:
            file.write(_card(name, loaded, reading, made_by or {}))
        for path in sorted(draft.iterdir()):
            path.replace(target / path.name)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write_recipe(reading: Recipe, path: Path) -> None:
    template = reading.template.describe()
    template.pop("chat")  # follows from the tokenizer
    write_json(path, {"name": reading.name, "template": template, "rule": reading.rule.describe()})


def _card(name: str, loaded: LoadedModel, reading: Recipe, made_by: Mapping[str, Any]) -> str:
    source, heads = loaded.source, loaded.heads
    count = sum(weight.numel() for weight in loaded.model.parameters())
    details = json.dumps(made_by, indent=1, ensure_ascii=False, default=str)
    base = base_model_of(source.name, heads.model)
    return f"""---
{new_metadata(base_model=base).to_yaml().strip()}
---

# {name}

A passage reranker for headrank_pipeline: it reads attention and generates nothing.

- Made from: {base or Path(source.name).name}{f" at revision {source.revision}" if source.revision else ""}
- Layers: the first {heads.depth} of {source.layers}; {count:,} parameters; no language-model head
- Heads read: {len(heads.heads)} ({heads.name}), in heads.json; any other choice of heads needs its own training
- Prompt and scoring rule: {reading.name}, in recipe.json; scores mean nothing under another prompt

```python
from headrank_pipeline import headrank

reranker = headrank("{name}")  # this folder
```

## What made it

```json
{details}
```
"""
