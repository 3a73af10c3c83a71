"""Where a training run keeps its state: atomic checkpoints, the best weights, the log, and what the run is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headrank_pipeline.files import atomic_path, atomic_writer, file_sha256, locked_folder, plain, write_json

__all__ = ["TrainingDirectory"]

_ANEW = "the file was changed: start anew with overwrite=True"


@dataclass(frozen=True, slots=True)
class TrainingDirectory:
    """The files of one run.

    ``setup.json`` says what the run is, ``log.jsonl`` what happened, ``state.pt`` is where it can be taken up, and
    ``best.safetensors`` holds the trainable weights that did best on the dev lists.
    """

    path: Path

    @property
    def setup(self) -> Path:
        """What decides the run; two runs with equal setups may share the directory."""
        return self.path / "setup.json"

    @property
    def log(self) -> Path:
        """One JSON object a line: steps, evaluations, the end."""
        return self.path / "log.jsonl"

    @property
    def state(self) -> Path:
        """Weights, optimiser and counters after the last checkpointed step."""
        return self.path / "state.pt"

    @property
    def best(self) -> Path:
        """The trainable weights of the best evaluation."""
        return self.path / "best.safetensors"

    def locked(self) -> AbstractContextManager[None]:
        """Make the directory and hold it for this process while the context is open.

        Raises:
            RuntimeError: another process holds it.
        """
        return locked_folder(self.path, "training run")

    def clear(self) -> None:
        """Remove what an earlier run left, but no file that is not ours; the setup, which protects the rest, last."""
        for file in (self.state, self.best):
            _digests(file).unlink(missing_ok=True)
        for file in (self.state, self.best, self.log, self.setup):
            file.unlink(missing_ok=True)

    def claim(self, setup: Mapping[str, Any], *, overwrite: bool = False) -> bool:
        """Take the directory, which is `locked`, for a run and return whether there is a state to go on from.

        Raises:
            ValueError: it holds another run; the message names what differs.
        """
        wanted = plain(setup)
        if overwrite:
            self.clear()
        if self.setup.is_file():
            present = _json(self.setup)
            if not isinstance(present, dict):
                raise ValueError(f"{self.setup}: expected an object, got {present!r:.80}; {_ANEW}")
            if present != wanted:
                keys = sorted(k for k in {*present, *wanted} if present.get(k) != wanted.get(k))
                raise ValueError(
                    f"{self.path}: holds a run that differs in {', '.join(keys)} (see {self.setup.name}); choose "
                    f"another output, or start anew with overwrite=True"
                )
        else:
            write_json(self.setup, wanted)
        return self.state.is_file()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint, whole or not at all."""
        with _digested(self.state) as draft:
            torch.save(dict(state), draft)

    def load_state(self) -> dict[str, Any]:
        """Return the checkpoint.

        Raises:
            ValueError: a file that is not as it was saved.
        """
        _check(self.state)
        state: dict[str, Any] = torch.load(self.state, map_location="cpu", weights_only=True, mmap=True)
        return state

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the best weights, whole or not at all."""
        with _digested(self.best) as draft:
            save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, draft)

    def load_best(self) -> dict[str, Tensor]:
        """Return the best weights.

        Raises:
            ValueError: a file that is not as it was saved.
        """
        _check(self.best)
        weights: dict[str, Tensor] = load_file(self.best)
        return weights

    def append(self, event: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what the log says of steps after `step`: they are about to be taken again.

        Raises:
            ValueError: a damaged line before the last one.
        """
        if not self.log.is_file():
            return
        kept = []
        lines = self.log.read_bytes().splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                event = json.loads(line)
                if event["step"] > step or event["event"] == "end":
                    break
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if number == len(lines):
                    break  # the crash that made us resume may have cut the last line
                raise ValueError(f"{self.log}:{number}: not a line of a training's log ({error}); {_ANEW}") from error
            kept.append(line.decode() + "\n")
        with atomic_writer(self.log) as file:
            file.writelines(kept)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {_ANEW}") from error


def _digests(path: Path) -> Path:
    """Return the path of the digests that a file may have, beside it."""
    return path.with_name(f"{path.name}.sha256.json")


@contextmanager
def _digested(path: Path) -> Iterator[Path]:
    """As `atomic_path`; what the file is about to be is known before it is, so that a kill leaves one of two."""
    with atomic_path(path) as draft:
        yield draft
        known = [file_sha256(draft)]
        if path.is_file():
            known.append(file_sha256(path))
        write_json(_digests(path), known)


def _check(path: Path) -> None:
    """Raise ValueError where a file is not as it was saved; of one saved before there were digests nothing is known."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, though this training should have written it; {_ANEW}")
    if _digests(path).is_file() and file_sha256(path) not in (_json(_digests(path)) or ()):
        raise ValueError(f"{path}: not as it was saved, its SHA-256 is another; {_ANEW}")
