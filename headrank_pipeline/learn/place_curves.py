"""How the attention of every head goes by place in the prompt: running sums over lists, then one smooth curve a head.

Passages stand in random orders, so what a place gets is not what is relevant. What is left is noise, and much of it: a
head that picks one of P passages puts P times an even share there and nothing elsewhere, whose standard deviation is
about sqrt(P); 75 lists of 12 passages leave a standard error of up to 0.4 at each place. A curve is therefore fitted:
linear between the points, with a penalty on how much its slope changes, whose weight each head's data choose by
generalised cross-validation (the P-splines of Eilers and Marx, 1996). A steep end stays steep where the lists say so,
which a moving average would not allow, and what is noise becomes a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from headrank_pipeline.attention.places import Places, relative_places
from headrank_pipeline.attention.recipe import Support

__all__ = ["POINTS", "PlaceSums", "PlaceTable"]

POINTS = 20

# Weights of the penalty to choose from, times the passages per point.
_PENALTIES = tuple(10.0 ** (step / 2) for step in range(-6, 13))

# Shares at or below this would blow up what is divided by them.
_LEAST = 0.01


@dataclass(frozen=True, slots=True)
class PlaceTable:
    """The curve of every head.

    Attributes:
        points: [K] relative places from 0 to 1.
        curves: [H, K] float64, mean share of the head's attention, 1 being an even one; at least 0.01.
        errors: [H, K], their standard errors, that of a fit whose penalty is given.
        mass: [H], mean attention of a head on all passages of a list, which is its weight in a sum of heads.
        support: what the softmax ran over.
        lists: how many lists were read.
        passages: how many passages they had in the mean.
    """

    points: np.ndarray
    curves: np.ndarray
    errors: np.ndarray
    mass: np.ndarray
    support: Support
    lists: int
    passages: float

    @property
    def flatness(self) -> np.ndarray:
        """[H]: largest share of each head by its smallest; 1 is flat."""
        ratio: np.ndarray = self.curves.max(1) / self.curves.min(1)
        return ratio

    def of(self, heads: Sequence[int], weights: Sequence[float] | None = None) -> Places:
        """Return the curves of some heads and of the sum of their attention.

        Args:
            heads: indices.
            weights: one per head, or None for equal weights.

        Returns:
            Places whose error is the heads' weighted mean: what it is at most, were all their noise the same.
        """
        share = np.asarray(weights or [1.0] * len(heads)) * self.mass[list(heads)]
        share = share / share.sum() if share.sum() > 0 else np.full(len(heads), 1.0 / len(heads))
        curves, errors = self.curves[list(heads)], self.errors[list(heads)]
        return Places(
            points=_rounded(self.points),
            curve=_rounded(np.maximum(share @ curves, _LEAST)),
            heads=tuple(map(_rounded, curves)),
            error=_rounded(np.abs(share) @ errors),
            support=self.support,
            lists=self.lists,
            passages=round(self.passages, 2),
        )


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


@dataclass
class PlaceSums:
    """Running sums over lists: the normal equations of every head's curve, and nothing else of a list.

    Args:
        heads: how many there are.
        points: points of the curves.
    """

    heads: int
    points: int = POINTS
    lists: int = 0
    passages: int = 0
    _normal: np.ndarray = field(init=False, repr=False)  # [K, K]
    _products: np.ndarray = field(init=False, repr=False)  # [H, K]
    _squares: np.ndarray = field(init=False, repr=False)  # [H]
    _mass: np.ndarray = field(init=False, repr=False)  # [H]

    def __post_init__(self) -> None:
        self._normal = np.zeros((self.points, self.points))
        self._products = np.zeros((self.heads, self.points))
        self._squares, self._mass = np.zeros(self.heads), np.zeros(self.heads)

    def add(self, mass: np.ndarray, places: np.ndarray) -> None:
        """Add one list.

        Args:
            mass: [H, P] attention on its passages, none of it negative.
            places: [P] int64, of each passage in the prompt, from 0.
        """
        count = mass.shape[1]
        mass = mass.astype(np.float64)
        total = mass.sum(1)
        seen = total[:, None] > 0
        shares = np.where(seen, mass / np.where(seen, total[:, None], 1.0) * count, 1.0)
        basis = _hats(relative_places(count)[places], self.points)
        self.lists += 1
        self.passages += count
        self._normal += basis.T @ basis
        self._products += shares @ basis
        self._squares += (shares**2).sum(1)
        self._mass += total

    def table(self, support: Support) -> PlaceTable:
        """Return the curves of all lists so far, at least one."""
        bends = np.diff(np.eye(self.points), n=2, axis=0)
        bends = bends.T @ bends * (self.passages / self.points)
        best = np.full(self.heads, np.inf)
        curves, errors = np.ones((2, self.heads, self.points))
        for penalty in _PENALTIES:
            inverse = np.linalg.inv(self._normal + penalty * bends)
            fitted = self._products @ inverse
            freedom = max(1e-9, self.passages - float(np.trace(inverse @ self._normal)))
            rest = self._squares - 2 * (fitted * self._products).sum(1) + ((fitted @ self._normal) * fitted).sum(1)
            score = np.maximum(rest, 0.0) / freedom**2
            better = score < best
            best = np.where(better, score, best)
            curves[better] = fitted[better]
            spread = np.sqrt(np.maximum(np.diag(inverse @ self._normal @ inverse), 0.0))
            errors[better] = np.sqrt(np.maximum(rest, 0.0) / freedom)[better, None] * spread
        return PlaceTable(
            points=np.linspace(0.0, 1.0, self.points),
            curves=np.maximum(curves, _LEAST),
            errors=errors,
            mass=self._mass / self.lists,
            support=support,
            lists=self.lists,
            passages=self.passages / self.lists,
        )


def _hats(places: np.ndarray, points: int) -> np.ndarray:
    """Return [P, K], each place shared out between the two points around it: a product with a curve is its value.

    Examples:
        >>> _hats(np.array([0.0, 0.25, 1.0]), 3).tolist()
        [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    distance = np.abs(places[:, None] * (points - 1) - np.arange(points))
    hats: np.ndarray = np.maximum(0.0, 1.0 - distance)
    return hats
