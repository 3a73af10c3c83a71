"""How far the engine's readings are from plain eager attention, per model family.

    python benchmarks/agreement.py

Tiny random models of 4 layers x 4 heads with initial weights large enough for peaked attention, float32, CPU. Each
figure is the largest absolute difference over all heads and tokens of three prompts; attention values lie in [0, 1].
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_models import FAMILIES, tiny_model, tiny_tokenizer

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.prompt import Prompt, PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import ICR
from headrank_pipeline.records import Candidate, Query, Ranking

COLUMNS = ("tap, eager", "truncated, whole", "batched, single", "shared prefix, full")


def main() -> None:
    print(f"{'':<8}" + "".join(f"{name:>22}" for name in COLUMNS))
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            figures = differences(tiny_model(Path(folder), family))
        print(f"{family:<8}" + "".join(f"{figure:>22.1e}" for figure in figures), flush=True)


def differences(folder: Path) -> list[float]:
    builder = PromptBuilder(tiny_tokenizer(), ICR.template, max_prompt_tokens=8192)
    prompts = [builder.build(ranking(passages)) for passages in (3, 10, 20)]
    pairs = [(prompt, builder.with_query(prompt, "N/A")) for prompt in prompts]
    whole = AttentionReader(load(folder, "all", device="cpu"), batch_tokens=1)
    read = whole.read(prompts)
    few = HeadSet("few", ((1, 2), (0, 3)))
    truncated = AttentionReader(load(folder, few, device="cpu"), batch_tokens=1).read(prompts)
    batched = AttentionReader(load(folder, "all", device="cpu"), batch_tokens=10**6).read(prompts)
    shared = [reading for pair in whole.read_calibrated(pairs) for reading in pair]
    full = [reading for pair in pairs for reading in whole.read(pair)]
    return [
        largest(read, [eager(folder, prompt) for prompt in prompts]),
        largest(truncated, [reading[[1 * 4 + 2, 0 * 4 + 3]] for reading in read]),
        largest(batched, read),
        largest(shared, full),
    ]


def largest(ones: Iterable[Tensor], others: Iterable[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(ones, others, strict=True))


def eager(folder: Path, prompt: Prompt) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        output = model(torch.tensor(prompt.token_ids)[None], output_attentions=True)
    return torch.stack([layer[0, :, slice(*prompt.rows)].mean(1) for layer in output.attentions]).flatten(0, 1)


def ranking(passages: int, words: Sequence[str] = ("birds", "fly", "over", "the", "old", "harbour")) -> Ranking:
    texts = [" ".join(words[(i * j) % len(words)] for j in range(5 + 3 * i)) for i in range(passages)]
    return Ranking(Query("q", "do birds swim"), tuple(Candidate(f"d{i}", -float(i), t) for i, t in enumerate(texts)))


if __name__ == "__main__":
    main()
