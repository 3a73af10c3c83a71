"""Keys and values of isolated passages kept from query to query, in memory and on the disk.

An isolated passage's keys depend on the model, the opening and its own tokens: all of these are in the name it is
kept under, so that nothing kept for another model, depth, dtype or template is ever found.
"""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headrank_pipeline.files import atomic_path

__all__ = ["KeyValues", "PassageCache", "entry_name", "weights_digest"]

logger = logging.getLogger(__name__)

_FORMAT = "headrank_pipeline passage keys 1"

# A folder is looked through when this share of its limit has been written since the last time, and then left with as
# much below it.
_SLACK = 1 / 16


@dataclass(frozen=True, slots=True)
class KeyValues:
    """Keys and values of n tokens, after QK-norm and RoPE.

    Attributes:
        keys: one [n, K, D] per layer.
        values: the same without the deepest layer, where they are not needed.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.keys + self.values)

    def to(self, device: torch.device) -> KeyValues:
        """Return these on a device: themselves where they lie there, else a copy."""
        if self.keys[0].device == device:
            return self
        return KeyValues(*(tuple(tensor.to(device) for tensor in part) for part in (self.keys, self.values)))

    def compact(self) -> KeyValues:
        """Return a copy that does not hold on to the batch it was computed in."""
        return KeyValues(tuple(map(torch.clone, self.keys)), tuple(map(torch.clone, self.values)))


class PassageCache:
    """Keys and values by entry name: the most recently used in memory, and more of them in a folder where one is given.

    Several processes may share a folder: files appear whole or not at all, and what another one deletes is computed
    again. A file that cannot be trusted is reported, computed again and replaced.

    Args:
        folder: made where it is missing; None: memory only.
        memory_bytes: size of the entries held in memory, on the device of the reader that first asked; 0 holds none.
        folder_bytes: size of the files in the folder; those that were not used for longest go first. Each process that
            writes may exceed it by a sixteenth for a while.

    Raises:
        ValueError: a negative size, or a folder that is a file.
    """

    def __init__(
        self, folder: str | Path | None = None, *, memory_bytes: int = 2 * 2**30, folder_bytes: int = 64 * 2**30
    ) -> None:
        for size_name, size in (("memory_bytes", memory_bytes), ("folder_bytes", folder_bytes)):
            if size < 0:
                raise ValueError(f"{size_name} {size}: expected 0 or more")
        self.folder = None if folder is None else Path(folder).expanduser()  # in NAME=~/… shells do not
        self.memory_bytes = memory_bytes
        self.held_bytes = 0
        self.folder_bytes = folder_bytes
        self._written: float = float("inf")  # since the folder was looked through; it never was
        self._held: OrderedDict[str, KeyValues] = OrderedDict()
        if self.folder is not None:
            if self.folder.exists() and not self.folder.is_dir():
                raise ValueError(f"passage cache {self.folder}: expected a folder, this is a file; name another place")
            self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: str) -> bool:
        return name in self._held or (self.folder is not None and self._path(name).is_file())

    def get(self, name: str, device: torch.device) -> KeyValues | None:
        """Return an entry on the device, or None where there is none that can be trusted."""
        if (held := self._held.get(name)) is not None:
            self._held.move_to_end(name)
            return held.to(device)  # readers on other devices may share the cache
        if self.folder is None or not self._path(name).is_file():
            return None
        try:
            loaded = _load(self._path(name), name, device)
        except FileNotFoundError:
            return None  # another process made room
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("%s cannot be trusted (%s); its passage is computed again", self._path(name), error)
            return None
        with suppress(OSError):  # the folder may be another's, or the file gone
            os.utime(self._path(name))  # used now
        self._hold(name, loaded)
        return loaded

    def put(self, name: str, entry: KeyValues) -> None:
        """Keep an entry, in the place of one of the same name.

        Raises:
            OSError: the folder cannot be written.
        """
        entry = entry.compact()
        self._hold(name, entry)
        if self.folder is not None:
            self._written += _save(self._path(name), name, entry)
            if self._written > _SLACK * self.folder_bytes:
                self._make_room(self.folder)

    def _make_room(self, folder: Path) -> None:
        """Delete the files that were not used for longest until the folder is a little below its limit."""
        files = sorted(_sizes(folder))
        total = sum(size for _, size, _ in files)
        excess = total - (1 - _SLACK) * self.folder_bytes
        for _, size, path in files:
            if excess <= 0:
                break
            path.unlink(missing_ok=True)
            total, excess = total - size, excess - size
        logger.debug("%s holds %d bytes", folder, total)
        self._written = 0.0

    def _hold(self, name: str, entry: KeyValues) -> None:
        if (before := self._held.pop(name, None)) is not None:
            self.held_bytes -= before.bytes
        if entry.bytes > self.memory_bytes:
            return
        self._held[name] = entry
        self.held_bytes += entry.bytes
        while self.held_bytes > self.memory_bytes:
            _, oldest = self._held.popitem(last=False)
            self.held_bytes -= oldest.bytes

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name[:2] / f"{name}.safetensors"


def entry_name(identity: Mapping[str, Any], opening: np.ndarray, passage: np.ndarray) -> str:
    """Return the name of a passage's entry: a SHA-256 over everything that its keys depend on.

    Args:
        identity: what identifies the model as it runs, JSON-ready.
        opening: [o] int64 token ids; they stand for chat markup, opening words and separator.
        passage: [n] int64 token ids, label, title and separator included.
    """
    record = {**identity, "opening": opening.tolist(), "passage": passage.tolist()}
    return sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """Return a SHA-256 over all weights, the same on every device.

    A folder's fingerprint only samples large files, which does not vouch for each weight.
    """
    return _checksum(model.state_dict())


def _sizes(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when each entry was last used, its bytes and its file."""
    for path in folder.glob("*/*.safetensors"):
        with suppress(FileNotFoundError):  # another process was faster
            status = path.stat()
            yield status.st_mtime, status.st_size, path


def _save(path: Path, name: str, entry: KeyValues) -> int:
    """Write an entry and return its bytes."""
    tensors = {"keys": torch.stack(entry.keys).cpu()}
    if entry.values:
        tensors["values"] = torch.stack(entry.values).cpu()
    data = save(tensors, {"format": _FORMAT, "name": name, "sha256": _checksum(tensors)})
    # Nothing is synced: a file that a crash leaves torn has another checksum, and is computed again.
    with atomic_path(path, sync=False) as draft:
        return draft.write_bytes(data)


def _load(path: Path, name: str, device: torch.device) -> KeyValues:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118  # it is no dictionary
    if (metadata.get("format"), metadata.get("name")) != (_FORMAT, name):
        raise ValueError(f"it says it is {metadata.get('format')!r} of {metadata.get('name')!r}")
    if metadata.get("sha256") != _checksum(tensors):
        raise ValueError("its checksum differs")
    # Copies, on a CPU too: what safetensors gives keeps its file mapped, and a process may have 65530 mappings.
    on_device = {part: tensor.to(device, copy=True).unbind() for part, tensor in tensors.items()}
    return KeyValues(on_device["keys"], on_device.get("values", ()))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}:".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
