"""Head sets: which attention heads are read, where the choice comes from, and how deep the model must go for them.

Layers and heads count from 0, as in the published lists. Published sets ship in ``resources/heads`` with their source.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from headrank_pipeline.attention.model_files import check_hub
from headrank_pipeline.attention.places import Places
from headrank_pipeline.files import atomic_writer
from headrank_pipeline.options import nearest

__all__ = ["HeadSet", "all_heads", "published_heads", "published_names", "resolve_heads"]

_KEYS = {"name", "model", "revision", "heads", "weights", "selection", "source", "places"}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_WINDOW = re.compile(r"layers:(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class HeadSet:
    """Some query heads of a model.

    Args:
        name: how tables call it.
        heads: (layer, head) pairs, each once; their order is the order of H wherever heads are an axis.
        model: the model they were selected on, or None.
        revision: its revision, or None.
        weights: one finite weight per head, together more than 0, or None for equal weights.
        selection: how they were selected (criterion, data, lambda, scores), free form.
        source: citation or file.
        places: how their attention goes by place in the prompt, or None where it was not measured; a mapping is read
            as `Places.describe` gives it.

    Raises:
        ValueError: no heads, a pair that is not two whole numbers from 0, a duplicate, or weights or places that do
            not fit.

    Examples:
        >>> HeadSet("two", ((3, 1), (0, 2))).depth
        4
    """

    name: str
    heads: tuple[tuple[int, int], ...]
    model: str | None = None
    revision: str | None = None
    weights: tuple[float, ...] | None = None
    selection: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source: str | None = None
    places: Places | None = None

    def __post_init__(self) -> None:
        self._check_kinds()
        object.__setattr__(self, "heads", tuple(_pair(self.name, head) for head in self.heads))
        if not self.heads:
            raise ValueError(f"head set {self.name!r} is empty; name at least one [layer, head]")
        duplicates = [head for head, times in Counter(self.heads).items() if times > 1]
        if duplicates:
            raise ValueError(f"head set {self.name!r}: {_spell(duplicates)} occur more than once")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(float(weight) for weight in self.weights))
            assert self.weights is not None
            if len(self.weights) != len(self.heads):
                raise ValueError(f"head set {self.name!r}: {len(self.weights)} weights for {len(self.heads)} heads")
            if not all(abs(weight) < 1e100 for weight in self.weights):  # sums of larger ones may not be finite
                raise ValueError(f"head set {self.name!r}: weights must be finite and below 1e100, got {self.weights}")
            total, size = math.fsum(self.weights), math.fsum(map(abs, self.weights))
            if total <= 1e-9 * size:  # their weighted mean would be 0/0, or turn the ranking round
                raise ValueError(
                    f"head set {self.name!r}: weights add up to {total:g}; expected more than 0 (single ones may be "
                    f"negative), as scores are their weighted mean; leave them out for equal weights"
                )

        self._check_places()

    def _check_places(self) -> None:
        if self.places is None:
            return
        if not isinstance(self.places, Places):
            object.__setattr__(self, "places", Places.of(self.places))
        if len(self.places.heads) != len(self.heads):
            raise ValueError(
                f"head set {self.name!r}: places holds {len(self.places.heads)} curves for {len(self.heads)} heads"
            )

    def _check_kinds(self) -> None:
        """Files hold anything."""
        for kind, names in ((str, ("name", "model", "revision", "source")), (Mapping, ("selection",))):
            for name in names:
                value = getattr(self, name)
                if not isinstance(value, kind) and (name in ("name", "selection") or value is not None):
                    raise ValueError(
                        f"head set: {name} {value!r:.80}: expected {'a string' if kind is str else 'an object'}"
                    )
        if not isinstance(self.heads, list | tuple):
            raise ValueError(f"head set {self.name!r}: heads {self.heads!r:.80}: expected a list of [layer, head]")

    @property
    def depth(self) -> int:
        """Number of layers that must be loaded to read these heads: the deepest one's index plus 1."""
        return 1 + max(layer for layer, _ in self.heads)

    def check(self, *, layers: int, heads: int, model: str) -> None:
        """Raise ValueError unless a model with so many layers and query heads per layer has all of these heads."""
        beyond = [(layer, head) for layer, head in self.heads if layer >= layers or head >= heads]
        if beyond:
            raise ValueError(
                f"head set {self.name!r} names {_spell(beyond)}, but {model} has layers 0-{layers - 1} with heads "
                f"0-{heads - 1}; it was selected on {self.model or 'an unnamed model'}: use a set for this model"
            )

    def save(self, path: str | Path) -> None:
        """Write the set as JSON."""
        with atomic_writer(path) as stream:
            json.dump(self.describe(), stream, indent=2, ensure_ascii=False)
            stream.write("\n")

    @classmethod
    def load(cls, path: str | Path) -> HeadSet:
        """Read a set from JSON.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is not a head set, with the file and the key.
        """
        path = Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
        if not isinstance(record, dict) or "heads" not in record:
            raise ValueError(f'{path}: expected a head set {{"name": …, "heads": [[layer, head], …]}}')
        if unknown := sorted(set(record) - _KEYS):
            raise ValueError(f"{path}: unknown keys {unknown}; known are {sorted(_KEYS)}")
        record["name"] = record.get("name") or path.stem
        try:
            return cls(**record)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return the set as JSON-ready values."""
        return {
            "name": self.name,
            "model": self.model,
            "revision": self.revision,
            "heads": [list(head) for head in self.heads],
            "weights": None if self.weights is None else list(self.weights),
            "selection": dict(self.selection),
            "source": self.source,
            **({} if self.places is None else {"places": self.places.describe()}),
        }

    def digest(self, *, places: bool = False) -> str:
        """Return a SHA-256 over the heads and weights: what decides the scores, whatever the set is called.

        Args:
            places: include the place curves, which decide where a rule divides by them.
        """
        parts: list[Any] = [self.heads, self.weights]
        if places and self.places is not None:
            parts.append(self.places.describe())
        return sha256(json.dumps(parts).encode()).hexdigest()


def all_heads(layers: int, heads: int, *, first: int = 0, last: int | None = None) -> HeadSet:
    """Return every head of the layers `first` to `last`, both inclusive (Selective-ICR's window; default: all)."""
    last = layers - 1 if last is None else last
    if not 0 <= first <= last < layers:
        raise ValueError(f"layer window {first}-{last}: the model has layers 0-{layers - 1}")
    name = "all" if (first, last) == (0, layers - 1) else f"layers:{first}-{last}"
    return HeadSet(name, tuple((layer, head) for layer in range(first, last + 1) for head in range(heads)))


def published_heads(name: str) -> HeadSet:
    """Return a head set that ships with the package.

    Raises:
        FileNotFoundError: an unknown name; the message lists the known ones.
    """
    known = published_names()
    if name not in known:
        hint = nearest(name, known, what="published sets")
        raise FileNotFoundError(f"no head set {name!r}: neither a file nor a published set; {hint}")
    return HeadSet.load(Path(str(_published() / f"{name}.json")))


def published_names() -> list[str]:
    """Return the names of the head sets that ship with the package."""
    return sorted(entry.name.removesuffix(".json") for entry in _published().iterdir() if entry.name.endswith(".json"))


def _published() -> Traversable:
    return files("headrank_pipeline") / "resources" / "heads"


def resolve_heads(heads: HeadSet | str | Path, *, layers: int, heads_per_layer: int, model: str) -> HeadSet:
    """Return the set that `heads` means for a model, checked against it.

    Args:
        heads: a HeadSet, a JSON file, the name of a published set, ``owner/name`` of one on the Hugging Face hub,
            ``"all"``, or ``"layers:10-13"`` (inclusive).
        layers: layers of the model.
        heads_per_layer: query heads per layer.
        model: its name, for messages.

    Raises:
        FileNotFoundError: a path that is not there, an unknown name, or no such repository.
        ValueError: heads that the model does not have.
    """
    if isinstance(heads, HeadSet):
        chosen = heads
    elif heads == "all":
        chosen = all_heads(layers, heads_per_layer)
    elif window := _WINDOW.fullmatch(str(heads)):
        chosen = all_heads(layers, heads_per_layer, first=int(window[1]), last=int(window[2]))
    elif Path(heads).is_file():
        chosen = HeadSet.load(heads)
    elif Path(heads).suffix == ".json" or isinstance(heads, Path):
        raise FileNotFoundError(f"head set file {heads} does not exist; select heads first or name a published set")
    elif _HUB_NAME.fullmatch(heads):
        chosen = HeadSet.load(_hub_heads(heads))
    else:
        chosen = published_heads(heads)
    chosen.check(layers=layers, heads=heads_per_layer, model=model)
    return chosen


def _pair(name: str, head: Sequence[int]) -> tuple[int, int]:
    numbers = tuple(head) if isinstance(head, list | tuple) else ()
    if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"head set {name!r}: {head!r} is not a head; expected [layer, head], whole numbers from 0")
    return numbers


def _spell(heads: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{layer}-{head}" for layer, head in heads[:5])
    return shown + (f" and {len(heads) - 5} more" if len(heads) > 5 else "")


def _hub_heads(name: str) -> Path:
    """Return the head set of a repository on the hub, a model's or one of heads alone.

    Raises:
        FileNotFoundError: no such repository, none with heads, or no network and nothing in the cache.
    """
    from huggingface_hub import hf_hub_download

    check_hub(f"heads {name!r}", name, "heads.json")
    try:
        return Path(hf_hub_download(name, "heads.json"))
    except (OSError, ValueError) as error:  # the library's own errors are of these kinds
        raise FileNotFoundError(
            f"heads {name!r}: there is no such file, and no heads.json could be had from a repository of this name on "
            f"the Hugging Face hub ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
