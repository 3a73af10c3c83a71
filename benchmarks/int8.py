"""Whether int8 products below the heads are worth it on a CPU: CPU seconds, scores and orders beside float32.

    python benchmarks/int8.py --data ../shared/data --output runs/int8 --queries 20

PyTorch's dynamic quantisation turns the linear layers of whole decoder layers below the shallowest head that is read
into int8: weights once, per output channel; inputs at every call, per tensor. Layers with heads stay float32. Each list
is read in turns by the float32 model, as it is used (`fast_products`), and by the quantised one. smollm2 reads TREC DL
2023, training lists: BM25's first 20 passages. The second model has random weights of Qwen3-0.6B's sizes, fewer layers
and one list; its seconds mean something, its orders do not, so that only its error is told.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from bfloat16 import compared, first_lists
from speed.models import SHAPES, find_tokenizer, ranking, real_passages, save_random_model
from torch import nn
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from headrank_pipeline.attention.model import LoadedModel, load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.systems import headrank


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True, help="what BM25 finds is kept here")
    options.add_argument("--queries", type=int, default=20)
    options.add_argument("--passages", type=int, default=20)
    options.add_argument("--layers", type=int, default=7, help="of the random model, whose last two have its heads")
    options.add_argument("--repeats", type=int, default=3, help="of the random model's list")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"int8 products: {torch.backends.quantized.engine}, AVX-512 VNNI {torch.cpu._is_vnni_supported()}")
    full = headrank("smollm2", device="cpu", dtype="float32")
    lists, qrels = first_lists(chosen.data / "dl23", chosen.output, chosen.queries, chosen.passages)
    narrow, layers = quantised(full, lists[0])
    rows, ratios = [], []
    for number, one in enumerate(lists):
        exact, other, ratio = in_turns(full, narrow, one, number)
        rows.append(compared(exact, other, qrels[one.query.qid]))
        ratios.append(ratio)
    told = {key: fmean(row[key] for row in rows) for key in rows[0]}
    print(f"smollm2, {layers}, {len(rows)} lists: {times(ratios)}; tau {told['tau']:.4f}, least "
          f"{min(row['tau'] for row in rows):.3f}; same first {told['first']:.0%}, same ten {told['ten']:.0%}; largest "
          f"error {max(row['error'] for row in rows):.1%}; nDCG@10 {told['exact']:.4f} and {told['ndcg']:.4f}"
    )  # fmt: skip
    shape = replace(SHAPES["0.6b"], layers=chosen.layers, depth=chosen.layers)
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(shape, find_tokenizer(chosen.data), Path(folder))
        heads = replace(shape.head_set, heads=tuple((shape.depth - 1 - i // 8, i % 8) for i in range(16)))
        full = AttentionReranker(AttentionReader(load(folder, heads, device="cpu", dtype="float32")), HEADRANK)
    one = ranking(real_passages(chosen.data, chosen.passages, 100))
    narrow, layers = quantised(full, one)
    read = [in_turns(full, narrow, one, number) for number in range(chosen.repeats)]
    exact, other, _ = read[0]
    error = compared(exact, other, {})["error"]
    print(f"random 0.6B, {layers}, {len(read)} times: {times([ratio for *_, ratio in read])}; error {error:.1%}")


def quantised(reranker: AttentionReranker, first: Ranking) -> tuple[AttentionReranker, str]:
    """Return a reranker with int8 products in the layers below its heads, and which these are.

    A short list is read before that: whether a family is read right is checked to four digits, which int8 has not.
    """
    reader = reranker.reader
    loaded = LoadedModel(copy.deepcopy(reader.model), reader.tokenizer, reader.heads, reader.source)
    narrow = AttentionReranker(AttentionReader(loaded), reranker.recipe)
    narrow.rerank(first.cut(2))
    layers: Any = narrow.reader.model.layers
    shallowest = min(layer for layer, _ in reader.heads.heads)
    for place in range(shallowest):
        layers[place] = quantize_dynamic(layers[place], {nn.Linear: per_channel_dynamic_qconfig})
    return narrow, f"int8 in layers 0 to {shallowest - 1} of {len(layers)}"


def in_turns(
    full: AttentionReranker, narrow: AttentionReranker, one: Ranking, number: int
) -> tuple[Ranking, Ranking, float]:
    """Return what both say of a list, and float32's CPU seconds over int8's; who begins changes with the number."""
    found: dict[int, tuple[Ranking, float]] = {}
    for which in (0, 1) if number % 2 == 0 else (1, 0):
        started = time.process_time()
        found[which] = (full, narrow)[which].rerank(one), time.process_time() - started
    return found[0][0], found[1][0], found[0][1] / found[1][1]


def times(ratios: Sequence[float]) -> str:
    return f"float32 / int8 {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
