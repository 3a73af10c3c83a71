"""Files that a trained model brings beside weights and tokenizer: its heads, and the prompt and rule it is read by.

In a folder they lie beside the weights. Of a model on the Hugging Face hub they are fetched from the very commit that
its weights come from: weights that were trained for isolated passages mean nothing to a causal prompt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from headrank_pipeline.attention.gguf import gguf_file
from headrank_pipeline.attention.hub import commit_of, hub_file
from headrank_pipeline.attention.model import check_folder, load_config
from headrank_pipeline.attention.recipe import HEADRANK, Recipe

__all__ = ["HEADS_FILE", "RECIPE_FILE", "TrainedFiles", "read_recipe", "recipe_of", "trained_files"]

# learn/export.py writes them.
HEADS_FILE = "heads.json"
RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, slots=True)
class TrainedFiles:
    """Files of a trained model, each None where the model has none.

    Args:
        recipe: prompt and rule.
        heads: the head set.
        revision: the commit that both are of, and that weights must be loaded at; None of a folder.
    """

    recipe: Path | None
    heads: Path | None
    revision: str | None


def trained_files(model: str | Path, revision: str | None = None) -> TrainedFiles:
    """Return the files that a model brings: a local folder, or a Hugging Face name at a revision.

    Raises:
        FileNotFoundError: no such folder, or no such model.
        ValueError: an architecture that transformers does not have.
    """
    name, folder = str(model), Path(model)
    if gguf_file(name, revision):  # one file is all there is
        return TrainedFiles(None, None, revision)
    check_folder(name)
    if folder.is_dir():
        recipe, heads = folder / RECIPE_FILE, folder / HEADS_FILE
        return TrainedFiles(recipe if recipe.is_file() else None, heads if heads.is_file() else None, revision)
    if "/" not in name:  # the hub's own, from before it had owners: nobody trained one of them for us
        return TrainedFiles(None, None, revision)
    load_config(name, revision)  # says what there is no model behind
    commit = commit_of(name, revision)
    return TrainedFiles(hub_file(name, RECIPE_FILE, commit), hub_file(name, HEADS_FILE, commit), commit)


def recipe_of(model: str | Path, revision: str | None = None) -> Recipe:
    """Return the prompt and rule that a trained model's weights belong to; `HEADRANK` for other models.

    Args:
        model: a local folder or a Hugging Face name.
        revision: branch, tag or commit of a Hugging Face model.

    Raises:
        FileNotFoundError: no such folder or model.
        ValueError: a recipe.json that is not the template and rule of a trained model.
    """
    return read_recipe(trained_files(model, revision).recipe)


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
