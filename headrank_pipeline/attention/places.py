"""How attention goes by place in the prompt, whatever stands there: measured over random orders, kept by a head set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from headrank_pipeline.attention.recipe import Support

__all__ = ["Places", "relative_places"]


@dataclass(frozen=True, slots=True)
class Places:
    """Mean share of attention by place in a causal prompt; 1 is an even share.

    Args:
        points: [K] places relative to the list, from 0 (the first passage) rising to 1 (the last), at least 2.
        curve: [K] share of the whole head set, finite and above 0.
        heads: [H][K] share of each head, in the set's order.
        error: [K] standard error of `curve`, at most.
        support: what the softmax ran over; attention over all tokens has another curve.
        lists: how many lists it was measured on.
        passages: how many passages they had in the mean; a curve says little about lists of quite another length.

    Raises:
        ValueError: numbers that are no such curve.
    """

    points: tuple[float, ...]
    curve: tuple[float, ...]
    heads: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    support: Support
    lists: int
    passages: float

    def __post_init__(self) -> None:
        for name in ("points", "curve", "error"):
            object.__setattr__(self, name, _numbers(f"places: {name}", getattr(self, name)))
        if not isinstance(self.heads, list | tuple):
            raise ValueError(f"places: heads {self.heads!r}: expected a curve for each head")
        curves = tuple(_numbers(f"places: heads[{place}]", curve) for place, curve in enumerate(self.heads))
        object.__setattr__(self, "heads", curves)
        points = self.points
        if len(points) < 2 or (points[0], points[-1]) != (0.0, 1.0) or list(points) != sorted(set(points)):
            raise ValueError(f"places: points {list(points)}: expected relative places that rise from 0 to 1")
        for name, curve in (
            ("curve", self.curve),
            ("error", self.error),
            *((f"heads[{i}]", c) for i, c in enumerate(curves)),
        ):
            if len(curve) != len(points):
                raise ValueError(f"places: {name} has {len(curve)} values for {len(points)} points")
            if name != "error" and min(curve) <= 0:
                raise ValueError(f"places: {name}: expected shares above 0, got {min(curve)}")
        if self.support not in get_args(Support):
            raise ValueError(f"places: support {self.support!r}: expected {', '.join(get_args(Support))}")

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Places:
        """Return what `describe` gave.

        Raises:
            ValueError: other keys, or numbers that are no curve.
        """
        known = set(cls.__dataclass_fields__)
        if not isinstance(record, Mapping) or set(record) != known:
            got = sorted(record) if isinstance(record, Mapping) else record
            raise ValueError(f"places: expected the keys {sorted(known)}, got {got}")
        return cls(**record)

    def describe(self) -> dict[str, Any]:
        """Return the curves as JSON-ready values."""
        return asdict(self)

    @property
    def ratio(self) -> float:
        """Largest share of the set by its smallest."""
        return max(self.curve) / min(self.curve)

    def at(self, passages: int) -> np.ndarray:
        """Return the set's share at each place of a list of P passages: [P] float64 with mean 1."""
        return self._at(self.curve, passages)

    def heads_at(self, passages: int) -> np.ndarray:
        """Return the share of each head at each place: [H, P] float64, each row with mean 1."""
        return np.stack([self._at(curve, passages) for curve in self.heads])

    def _at(self, curve: Sequence[float], passages: int) -> np.ndarray:
        values = np.interp(relative_places(passages), self.points, curve)
        shares: np.ndarray = values / values.mean()
        return shares


def relative_places(passages: int) -> np.ndarray:
    """Return [P] float64: where each place lies between the first (0) and the last (1); 0 for a single passage.

    Examples:
        >>> relative_places(3).tolist()
        [0.0, 0.5, 1.0]
    """
    return np.arange(passages) / max(1, passages - 1)


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or any(
        isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) for value in values
    ):
        raise ValueError(f"{name}: expected finite numbers, got {values!r}")
    return tuple(map(float, values))
