"""The settings of the alignment that is judged."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["ALIGNMENT", "setting"]

# Chosen on training lists (docs/evidence.md); everything else is the product's default.
ALIGNMENT: dict[str, Any] = {
    "moves": "all",
    "learning_rate": 5e-4,
    "epochs": 3,
    "list_size": 10,
    "lists_per_pass": 8,
    "averaging": 0.97,
    "precision": "bfloat16",
    "objective.beta": 1.0,
    "objective.pairs": 16,
    "objective.weight": 1.0,
    "objective.zone": "all",
    "objective.grade_temperature": 0.5,
}


def setting(text: str) -> tuple[str, Any]:
    """Return name and value of a setting as it is written on a command line.

    Examples:
        >>> setting("objective.zone=all"), setting("patience=3")
        (('objective.zone', 'all'), ('patience', 3))
    """
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
