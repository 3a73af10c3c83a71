"""The sentence encoders that SmolLM2 is distilled from, and the vectors in which they agree.

On training lists the three together order passages better than any two, and two better than one (`python
benchmarks/smollm2_teachers.py`; docs/evidence.md has the table).
"""

from __future__ import annotations

import torch
from embedded_model.vocabulary import encoded, text_vectors
from torch import Tensor

from smollm2.e5 import PASSAGE, QUERY, e5
from smollm2.e5_english import e5_english

__all__ = ["SHARPNESS", "vectors"]

# One over the temperature of each: cosines of both e5 lie in a sixth of the range of MiniLM's. The encoders' vectors
# stand beside each other in this order, all of one width.
SHARPNESS = {"minilm": 1 / 0.07, "e5": 1 / 0.021, "e5-english": 1 / 0.021}


def vectors(passages: list[str], queries: list[str]) -> tuple[Tensor, Tensor]:
    """Return [passages, width] and [queries, width], whose products are the sum of all encoders' sharpened cosines.

    Args:
        passages: texts; the first 256 tokens count.
        queries: texts; the first 48 tokens count.
    """
    prefixed = [(tokenizer, model.bfloat16()) for tokenizer, model in (e5(), e5_english())]
    found = []
    for texts, prefix, length in ((passages, PASSAGE, 256), (queries, QUERY, 48)):
        parts = [text_vectors(texts, max_tokens=length)]
        for tokenizer, model in prefixed:
            longer = [prefix + text for text in texts]
            parts.append(encoded(tokenizer, model, longer, max_tokens=length + 4))  # the prefix has about four
        found.append(torch.cat([part * sharp**0.5 for part, sharp in zip(parts, SHARPNESS.values(), strict=True)], 1))
    return found[0], found[1]
