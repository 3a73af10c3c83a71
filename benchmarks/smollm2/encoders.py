"""The sentence encoders that SmolLM2 is distilled from, and the vectors in which they agree.

On training lists the three together order passages better than any two, and two better than one (`python
benchmarks/smollm2_teachers.py`; docs/learning.md, "A real model", has the table).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from embedded_model.vocabulary import text_vectors
from torch import Tensor

from smollm2.e5 import PASSAGE, QUERY, e5
from smollm2.e5_english import e5_english

__all__ = ["encoded", "vectors"]

# One over the temperature of each: cosines of both e5 lie in a sixth of the range of MiniLM's. The encoders' vectors
# stand beside each other in this order, all of one width.
SHARPNESS = {"minilm": 1 / 0.07, "e5": 1 / 0.021, "e5-english": 1 / 0.021}
_TOKENS_AT_ONCE = 8192


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
            parts.append(encoded(tokenizer, model, [prefix + text for text in texts], length=length + 4))  # the prefix
        found.append(torch.cat([part * sharp**0.5 for part, sharp in zip(parts, SHARPNESS.values(), strict=True)], 1))
    return found[0], found[1]


def encoded(tokenizer: Any, model: Any, texts: Sequence[str], *, length: int) -> Tensor:
    """Return [texts, width]: unit vectors, the mean over tokens; texts of about one length run together."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = torch.zeros(len(texts), model.config.hidden_size)
    start = 0
    while start < len(order):
        longest = len(texts[order[min(start + 64, len(order) - 1)]]) // 3
        places = order[start : start + max(8, min(256, _TOKENS_AT_ONCE // max(12, min(length, longest))))]
        start += len(places)
        tokens = tokenizer([texts[place] for place in places], padding=True, truncation=True, max_length=length,
                           return_tensors="pt")  # fmt: skip
        mask = tokens["attention_mask"]
        with torch.no_grad():
            hidden = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state.float()
        weight = mask[..., None].float()
        found[places] = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    return found
