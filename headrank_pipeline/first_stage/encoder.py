"""Sentence encoders through Pyserini's own classes: from texts to vectors, with every setting stated.

Torch and transformers are loaded inside pyserini, when the first text is encoded.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np

from headrank_pipeline.files import file_sha256
from headrank_pipeline.first_stage.jvm import start_jvm
from headrank_pipeline.passages import Passage

__all__ = ["Encoder", "load_encoder"]

Pooling = Literal["cls", "mean"]

_BATCH = 32
_MAX_LENGTH = 256
_NOT_A_SETTING = ("device", "_loaded")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder and how its vectors are made.

    Args:
        name: folder of a model, or its Hugging Face name.
        pooling: vector of the first token, or mean over the tokens.
        l2_norm: vectors of length 1, so that the inner product is the cosine.
        query_prefix: set before every query, with a space.
        passage_prefix: set before every passage, likewise.
        max_length: tokens kept of a text.
        device: cpu, cuda, cuda:1, …

    Raises:
        ValueError: a length below 1.
    """

    name: str
    pooling: Pooling
    l2_norm: bool
    query_prefix: str | None = None
    passage_prefix: str | None = None
    max_length: int = _MAX_LENGTH
    device: str = "cpu"
    _loaded: list[Any] = field(default_factory=list, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"encoder {self.name}: max_length {self.max_length}: expected at least 1")

    def describe(self) -> dict[str, Any]:
        """Return everything that can change a vector, as JSON-ready values; a local model by its weights' checksum."""
        settings = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in _NOT_A_SETTING}
        weights = sorted(Path(self.name).glob("*.safetensors")) + sorted(Path(self.name).glob("pytorch_model*.bin"))
        return settings | {"weights_sha256": [file_sha256(file) for file in weights] or None}

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return ``[queries, dimension]`` float32."""
        return self._vectors([_prefixed(self.query_prefix, text) for text in texts])

    def passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Return ``[passages, dimension]`` float32; title and text are joined by a space."""
        return self._vectors([_prefixed(self.passage_prefix, _joined(passage)) for passage in passages])

    def _vectors(self, texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little padding in a batch
        vectors: np.ndarray | None = None
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = self._model().encode([texts[place] for place in places], max_length=self.max_length)
            if vectors is None:
                vectors = np.empty((len(texts), batch.shape[1]), dtype=np.float32)
            vectors[places] = batch
        assert vectors is not None  # callers pass at least one text
        return vectors

    def _model(self) -> Any:
        if not self._loaded:
            start_jvm()  # pyserini's encoders sit in a package that looks for Java
            from pyserini.encode import AutoDocumentEncoder

            with _asking_nobody(self.name):
                model = AutoDocumentEncoder(
                    self.name, device=self.device, pooling=self.pooling, l2_norm=self.l2_norm, prefix=None
                )
            model.model.eval().requires_grad_(False)  # pyserini keeps a graph of every batch otherwise
            self._loaded.append(model)
            _log.info("loaded the encoder %s on %s", self.name, self.device)
        return self._loaded[0]


def load_encoder(
    name: str | os.PathLike[str],
    *,
    pooling: Pooling | None = None,
    l2_norm: bool | None = None,
    query_prefix: str | None = None,
    passage_prefix: str | None = None,
    max_length: int | None = None,
    device: str = "cpu",
) -> Encoder:
    """Return an encoder; what is not given comes from the files that sentence-transformers puts beside a model.

    Args:
        name: folder of a model, or its Hugging Face name; for the latter pooling and l2_norm must be given.
        pooling: see `Encoder`.
        l2_norm: see `Encoder`.
        query_prefix: see `Encoder`.
        passage_prefix: see `Encoder`.
        max_length: see `Encoder`; 256 where nothing states it.
        device: see `Encoder`.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a pooling that neither the caller nor the folder states, or a length below 1.
    """
    folder = Path(name)
    known = _stated(folder) if folder.is_dir() else {}
    if not known and (isinstance(name, Path) or os.fspath(name).startswith((".", os.sep, "~"))):
        raise FileNotFoundError(f"{name}: no such folder of an encoder (looked from {Path.cwd()})")
    chosen, normed = pooling or known.get("pooling"), known.get("l2_norm") if l2_norm is None else l2_norm
    if chosen not in ("cls", "mean") or normed is None:
        raise ValueError(
            f"encoder {name}: pooling {chosen!r}, l2_norm {normed!r}; nothing beside the model states both: pass "
            f"pooling 'cls' or 'mean' and l2_norm, as its authors use it"
        )
    return Encoder(
        os.fspath(name),
        chosen,
        bool(normed),
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        max_length=int(known.get("max_length", _MAX_LENGTH)) if max_length is None else max_length,
        device=device,
    )


@contextmanager
def _asking_nobody(name: str) -> Iterator[None]:
    """Refuse code that a model brings: Pyserini lets transformers ask standard input whether to run it.

    Raises:
        ValueError: a model whose architecture is code in its own folder, or whose weights are more than tensors.
    """
    before, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    except (UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(
            f"encoder {name}: its weights (*.bin) are a pickle that holds other things than tensors, or a damaged one; "
            f"such a file can run code and is never unpacked: name an encoder whose weights are safetensors"
        ) from error
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise ValueError(
            f"encoder {name}: its architecture is Python code in its own folder (auto_map in config.json), and code of "
            f"a model is never run here; expected an architecture that transformers has, as BERT"
        ) from error
    finally:
        sys.stdin = before


def _stated(folder: Path) -> dict[str, Any]:
    """What modules.json, 1_Pooling/config.json and sentence_bert_config.json say about a model."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: holds no config.json; expected the folder of a transformers model")
    found: dict[str, Any] = {"pooling": None}
    pooling = _json(folder / "1_Pooling" / "config.json")
    if pooling.get("pooling_mode_mean_tokens"):
        found["pooling"] = "mean"
    elif pooling.get("pooling_mode_cls_token"):
        found["pooling"] = "cls"
    if modules := _json(folder / "modules.json"):
        found["l2_norm"] = any(module["type"].endswith(".Normalize") for module in modules)
    if length := _json(folder / "sentence_bert_config.json").get("max_seq_length"):
        found["max_length"] = length
    return found


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _prefixed(prefix: str | None, text: str) -> str:
    return text if prefix is None else f"{prefix} {text}"


def _joined(passage: Passage) -> str:
    return f"{passage.title} {passage.text}" if passage.title else passage.text
