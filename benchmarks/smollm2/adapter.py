"""The difference between two sets of weights as low-rank factors small enough to ship."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["factored", "save_adapter"]


def factored(before: Mapping[str, Tensor], after: Mapping[str, Tensor], rank: int) -> tuple[dict[str, Tensor], float]:
    """Return the best factors of that rank of every weight that changed, and the share of the change that is lost.

    Args:
        before: name -> weight; the names are those of a model's state, ending in ``.weight``.
        after: the same names.
        rank: of each factor pair.

    Returns:
        ``NAME.lora_A.weight`` [rank, in] and ``NAME.lora_B.weight`` [out, rank] in float16, and the norm of what the
        factors leave out over the norm of the change.

    Raises:
        ValueError: a weight that is no matrix changed, or an embedding did.
    """
    factors: dict[str, Tensor] = {}
    lost = whole = 0.0
    for name, old in before.items():
        change = after[name].float() - old.float()
        if not change.any():
            continue
        if change.dim() != 2 or not name.endswith("_proj.weight"):
            raise ValueError(f"{name} changed; only projections can be shipped as low-rank factors")
        left, strength, right = torch.linalg.svd(change, full_matrices=False)
        root = strength[:rank].sqrt()
        module = name.removesuffix(".weight")
        a, b = (root[:, None] * right[:rank]).half().contiguous(), (left[:, :rank] * root).half().contiguous()
        factors[f"{module}.lora_A.weight"], factors[f"{module}.lora_B.weight"] = a, b
        lost += float((change - b.float() @ a.float()).square().sum())
        whole += float(change.square().sum())
    return factors, (lost / whole) ** 0.5 if whole else 0.0


def save_adapter(path: Path, factors: Mapping[str, Tensor]) -> None:
    """Write factors as safetensors; their scale is 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(factors), path, metadata={"format": "pt", "scale": "1.0"})
