"""The ways to score a list that are timed against each other, all on the same weights.

a  ours
b  ours with one shortcut switched off, for each of them
c  the reference way of ICR and QRHead: whole depth, every head's rows, the content-free query on the same keys
d  eager attention with output_attentions=True, whole depth
e  a plain truncated prefill with nothing read: the floor; once more with our products
f  RankGPT: windows, replies generated to their end
g  isolated passages
h  isolated passages whose keys lie in the passage cache
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from generation_cost import answering

from headrank_pipeline.attention.budget import free_memory
from headrank_pipeline.attention.heads import all_heads
from headrank_pipeline.attention.kernels import fast_products
from headrank_pipeline.attention.model import LoadedModel, load
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.reader import AttentionReader, FastPath
from headrank_pipeline.attention.tap import IMPLEMENTATION
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from headrank_pipeline.rerank.recipes import HEADRANK, ICR, AttentionReranker
from speed.models import HEAD_DIM, KEY_HEADS, Shape

STOCK = FastPath(early_exit=False, spared_deepest=False, fast_products=False)
CACHE_BYTES = 16 * 2**30


@dataclass(frozen=True)
class Way:
    """One way to score a list.

    Args:
        letter: as in the module's docstring.
        name: what it is.
        run: scores a list.
        same_scores: whether its scores are ours up to rounding.
        layers: how many whole layers all tokens go through, for FLOPs; None where that says little.
        repeats: at most so many times.
        prepare: before every timed run, untimed.
        why_not: of a number of tokens, why it cannot run, or None.
    """

    letter: str
    name: str
    run: Callable[[Ranking], dict[str, float] | None]
    same_scores: bool = False
    layers: float | None = None
    repeats: int = 1000
    prepare: Callable[[Ranking], object] = lambda ranking: None
    why_not: Callable[[int], str | None] = lambda tokens: None


@dataclass
class Loaded:
    """The models that the ways share, and what loading them took [seconds]."""

    shape: Shape
    truncated: LoadedModel
    whole: LoadedModel | None
    seconds: dict[str, float]


def load_models(folder: Path, shape: Shape, device: str, dtype: str, *, whole: bool) -> Loaded:
    """Load the truncated model, and the whole one where a way needs it."""
    seconds: dict[str, float] = {}
    loaded: dict[str, LoadedModel] = {}
    heads = {"truncated": shape.head_set, "whole": all_heads(shape.layers, shape.heads)}
    for name in ["truncated", "whole"][: 1 + whole]:
        started = time.perf_counter()
        loaded[name] = load(folder, heads[name], device=device, dtype=dtype)
        seconds[name] = time.perf_counter() - started
    return Loaded(shape, loaded["truncated"], loaded.get("whole"), seconds)


def ways(models: Loaded, folder: Path, letters: str, *, slow_repeats: int, device: str, dtype: str) -> Iterator[Way]:
    """Yield the ways whose letters are asked for."""
    shape = models.shape
    keys = shape.hidden * KEY_HEADS * HEAD_DIM / shape.layer_weights
    ours = shape.depth - 1 + keys  # of the deepest layer the keys alone are worth counting
    if "a" in letters:
        yield Way("a", "ours", reranker(models.truncated), same_scores=True, layers=ours)
    if "b" in letters:
        queries_keys_values = keys * (2 + shape.heads / KEY_HEADS)
        off = {"fast_products": ours, "spared_deepest": shape.depth - 1 + queries_keys_values}
        for switch, layers in off.items():
            run = reranker(models.truncated, FastPath(**{switch: False}))
            yield Way("b", f"without {switch}", run, same_scores=True, layers=layers)
        assert models.whole is not None
        run = reranker(replace(models.whole, heads=shape.head_set), FastPath(early_exit=False))
        yield Way("b", "without early_exit", run, same_scores=True, layers=shape.layers)
        calibrated = HEADRANK.varied({"content_free": "N/A"})
        yield Way("b", "ours, with N/A", reranker(models.truncated, recipe=calibrated), layers=ours)
        run = reranker(models.truncated, FastPath(shared_prefix=False), calibrated)
        yield Way("b", "with N/A, without shared_prefix", run, layers=2 * ours, repeats=slow_repeats)
    if "c" in letters:
        assert models.whole is not None
        run = reranker(models.whole, STOCK, replace(ICR, template=HEADRANK.template))
        yield Way("c", "reference: ICR, QRHead", run, layers=shape.layers, repeats=slow_repeats)
    if "d" in letters:
        assert models.whole is not None
        yield eager(models.whole, shape, slow_repeats)
    if "e" in letters:
        run = prefill(models.truncated, fast=False)
        yield Way("e", "plain truncated prefill", run, layers=shape.depth)
        yield Way("e", "the same, our products", prefill(models.truncated, fast=True), layers=shape.depth)
    if "f" in letters:
        writer = answering(rankgpt(str(folder), device=device, dtype=dtype))
        yield Way("f", "RankGPT", lambda ranking: scores(writer.rerank(ranking)), repeats=1)
    if "g" in letters:
        isolated = HEADRANK.varied({"passages": "isolated"})
        yield Way("g", "isolated passages", reranker(models.truncated, recipe=isolated))
    if "h" in letters:
        yield cached(models.truncated)


def reranker(
    loaded: LoadedModel, fast: FastPath | None = None, recipe: Any = HEADRANK
) -> Callable[[Ranking], dict[str, float]]:
    """Return ranking -> score per docid, from text to scores: tokenising and pooling are part of it."""
    made = AttentionReranker(AttentionReader(loaded, fast=fast), recipe)
    return lambda ranking: scores(made.rerank(ranking))


def scores(ranking: Ranking) -> dict[str, float]:
    return {candidate.docid: candidate.score for candidate in ranking.candidates}


def cached(loaded: LoadedModel) -> Way:
    reader = AttentionReader(loaded, passage_cache=PassageCache(memory_bytes=CACHE_BYTES))
    made = AttentionReranker(reader, HEADRANK.varied({"passages": "isolated"}))

    def warm(ranking: Ranking) -> None:
        made.rerank(replace(ranking, query=replace(ranking.query, text="another question that came before")))

    return Way("h", "isolated, keys cached", lambda ranking: scores(made.rerank(ranking)), prepare=warm)


def prefill(loaded: LoadedModel, *, fast: bool) -> Callable[[Ranking], None]:
    builder = AttentionReranker(AttentionReader(loaded), HEADRANK).builder

    def run(ranking: Ranking) -> None:
        ids = torch.from_numpy(builder.build(ranking).token_ids)[None].to(loaded.model.device)
        with torch.inference_mode(), fast_products(loaded.model.device, enabled=fast):
            loaded.model(input_ids=ids, use_cache=False)

    return run


def eager(loaded: LoadedModel, shape: Shape, repeats: int) -> Way:
    builder = AttentionReranker(AttentionReader(loaded), HEADRANK).builder

    def run(ranking: Ranking) -> None:
        ids = torch.from_numpy(builder.build(ranking).token_ids)[None].to(loaded.model.device)
        with torch.inference_mode(), implementation(loaded.model, "eager"):
            loaded.model(input_ids=ids, use_cache=False, output_attentions=True)

    def why_not(tokens: int) -> str | None:
        needed = (shape.layers + 4) * shape.heads * tokens**2 * loaded.model.dtype.itemsize
        free = free_memory(loaded.model.device)
        return f"{needed / 2**30:.0f} GiB of attention, {free / 2**30:.0f} free" if needed > free / 2 else None

    return Way("d", "eager, output_attentions", run, layers=shape.layers, repeats=repeats, why_not=why_not)


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def tokens_of(loaded: LoadedModel, ranking: Ranking) -> tuple[int, float]:
    """Return the length of the list's prompt and the seconds that building it takes."""
    builder = AttentionReranker(AttentionReader(loaded), HEADRANK).builder
    started = time.perf_counter()
    length = len(builder.build(ranking))
    return length, time.perf_counter() - started
