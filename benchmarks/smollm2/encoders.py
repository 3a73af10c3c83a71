"""The sentence encoders that SmolLM2 is distilled from, and the vectors in which they agree.

On training lists the two together order passages better than either does (mean nDCG@10 over seven collections: 0.724
all-MiniLM-L6-v2, 0.731 multilingual-e5-small, 0.746 both; `python
benchmarks/smollm2_teachers.py`, when it cut passages at 128 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from embedded_model.vocabulary import text_vectors
from torch import Tensor

from smollm2.e5 import PASSAGE, QUERY, e5

__all__ = ["encoded", "vectors"]

# One over the temperature of each: cosines of e5 lie in a sixth of the range of MiniLM's.
SHARPNESS = {"minilm": 1 / 0.07, "e5": 1 / 0.021}
_TOKENS_AT_ONCE = 8192


def vectors(passages: list[str], queries: list[str]) -> tuple[Tensor, Tensor]:
    """Return [passages, width] and [queries, width], whose products are the sum of both encoders' sharpened cosines.

    Args:
        passages: texts; the first 256 tokens count.
        queries: texts; the first 48 tokens count.
    """
    tokenizer, model = e5()
    model = model.bfloat16()
    both = []
    for texts, prefix, length in ((passages, PASSAGE, 256), (queries, QUERY, 48)):
        first = text_vectors(texts, max_tokens=length)
        second = encoded(tokenizer, model, [prefix + text for text in texts], length=length + 4)  # the prefix has four
        both.append(torch.cat([first * SHARPNESS["minilm"] ** 0.5, second * SHARPNESS["e5"] ** 0.5], 1))
    return both[0], both[1]


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
