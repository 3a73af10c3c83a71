"""Files of models on the Hugging Face hub, all of one commit; what is in its cache needs no network."""

from __future__ import annotations

import logging
import re
from pathlib import Path

__all__ = ["commit_of", "hub_file", "hub_heads"]

logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


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


def hub_heads(name: str) -> Path:
    """Return the head set of a repository on the hub, a model's or one of heads alone.

    Raises:
        FileNotFoundError: no such repository, none with heads, or no network and nothing in the cache.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "heads.json"))
    except (OSError, ValueError) as error:  # the library's own errors are of these kinds
        raise FileNotFoundError(
            f"heads {name!r}: there is no such file, and no heads.json could be had from a repository of this name on "
            f"the Hugging Face hub ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
