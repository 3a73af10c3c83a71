"""The ways to score a list that are timed against each other, all on the same weights.

a  ours
b  ours with one shortcut switched off, for each of them; what only several lists gain by is timed on four at once
c  the reference way of ICR and QRHead: whole depth, every head's rows, the content-free query on the same keys
d  eager attention with output_attentions=True, whole depth
e  a plain truncated prefill with nothing read: the floor; once more with our products
f  RankGPT: windows, replies generated to their end
g  isolated passages
h  isolated passages whose keys lie in the passage cache
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from generation_cost import answering

from headrank_pipeline.attention.heads import all_heads
from headrank_pipeline.attention.model import BATCH_TOKENS, LoadedModel, choose_device, free_memory, load
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK, ICR
from headrank_pipeline.attention.tap import IMPLEMENTATION, fast_products
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from speed.meter import Reading, measure
from speed.models import HEAD_DIM, KEY_HEADS, Shape
from speed.report import FLOOR, GENERATION, REFERENCE

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
        lists: scored in one run; figures are those of one.
        prepare: before every timed run, untimed.
        why_not: of a number of tokens, why it cannot run, or None.
    """

    letter: str
    name: str
    run: Callable[[Ranking], dict[str, float] | None]
    same_scores: bool = False
    layers: float | None = None
    repeats: int = 1000
    lists: int = 1
    prepare: Callable[[Ranking], object] = lambda ranking: None
    why_not: Callable[[int], str | None] = lambda tokens: None


@dataclass
class Loaded:
    """The models that the ways share, and what loading each of them took."""

    folder: Path
    shape: Shape
    dtype: str
    truncated: LoadedModel
    whole: LoadedModel | None
    loading: dict[str, dict[str, Any]]

    def needs_whole(self) -> LoadedModel:
        assert self.whole is not None, "ways that run every layer were not announced to load_models"
        return self.whole


def load_models(folder: Path, shape: Shape, device: str, dtype: str, *, whole: bool) -> Loaded:
    """Load the truncated model, and the whole one where a way needs it."""
    heads = {"truncated": shape.head_set, "whole": all_heads(shape.layers, shape.heads)}

    def read(name: str) -> LoadedModel:
        loaded = load(folder, heads[name], device=device, dtype=dtype)
        for weight in loaded.model.parameters():  # mapped files: touch every page, or the first pass is charged for it
            weight.view(-1)[::1024].sum()
        return loaded

    loaded = {
        name: measure(lambda name=name: read(name), choose_device(device))
        for name in ["truncated", "whole"][: 1 + whole]
    }
    return Loaded(
        folder,
        shape,
        dtype,
        loaded["truncated"].result,
        loaded["whole"].result if whole else None,
        {
            name: {"seconds": one.seconds, "cpu_seconds": one.cpu_seconds, "mebibytes": mebibytes(one)}
            for name, one in loaded.items()
        },
    )


def mebibytes(reading: Reading) -> float | None:
    """Return the peak above what was held before."""
    return None if reading.peak is None or reading.held is None else (reading.peak - reading.held) / 2**20


def ways(models: Loaded, letters: str, *, slow_repeats: int) -> Iterator[Way]:
    """Yield the ways whose letters are asked for; slow ones are to be repeated less often."""
    makers = {"a": ours, "b": less, "c": reference, "d": eager, "e": floor, "f": generation, "g": isolated, "h": cached}
    for letter in letters:
        for way in makers[letter](models):
            yield replace(way, repeats=min(way.repeats, slow_repeats)) if letter in "cd" else way


def ours(models: Loaded) -> Iterator[Way]:
    yield Way("a", "ours", reranker(models.truncated), same_scores=True, layers=layers_of_ours(models.shape))


def layers_of_ours(shape: Shape) -> float:
    """Return how many whole layers are run; of the deepest one the keys alone are worth counting."""
    return shape.depth - 1 + shape.hidden * KEY_HEADS * HEAD_DIM / shape.layer_weights


def less(models: Loaded) -> Iterator[Way]:
    shape, whole = models.shape, models.needs_whole()
    layers = layers_of_ours(shape)
    # The deepest layer's queries and values are not counted.
    for switch in ("fast_products", "spared_deepest"):
        run = reranker(models.truncated, [switch])
        yield Way("b", f"without {switch}", run, same_scores=True, layers=layers)
    run = reranker(replace(whole, heads=shape.head_set), ["early_exit"])
    yield Way("b", "without early_exit", run, same_scores=True, layers=shape.layers)
    calibrated = HEADRANK.varied({"content_free": "N/A"})
    yield Way("b", "ours, with N/A", reranker(models.truncated, recipe=calibrated), layers=layers)
    run = reranker(models.truncated, ["shared_prefix"], calibrated)
    yield Way("b", "with N/A, without shared_prefix", run, layers=2 * layers)
    yield from several(models)


def several(models: Loaded) -> Iterator[Way]:
    """Four lists at once: in common passes, in passes of their own, with all prompts built before the first pass."""

    def why_not(tokens: int) -> str | None:
        alone = models.truncated.model.device.type == "cpu" and 2 * tokens > BATCH_TOKENS
        return "no two lists share a pass, and a CPU builds nothing beside one" if alone else None

    for name, tokens, without in (
        ("of 4 lists", BATCH_TOKENS, []),
        ("of 4 lists, without packing", 1, []),
        ("of 4 lists, without build_ahead", BATCH_TOKENS, ["build_ahead"]),
    ):
        made = AttentionReranker(AttentionReader(models.truncated, batch_tokens=tokens, without=without), HEADRANK)

        def run(ranking: Ranking, made: AttentionReranker = made) -> dict[str, float]:
            lists = [replace(ranking, query=replace(ranking.query, qid=f"q{n}")) for n in range(4)]
            return scores(made.rerank_batch(lists)[0])

        layers = layers_of_ours(models.shape)
        yield Way("b", name, run, same_scores=True, layers=layers, lists=4, why_not=why_not)


def reference(models: Loaded) -> Iterator[Way]:
    recipe = replace(ICR, template=HEADRANK.template)
    for name, enabled in ((REFERENCE, False), ("reference, our products", True)):
        without = ["early_exit", "spared_deepest", *([] if enabled else ["fast_products"])]
        yield Way("c", name, reranker(models.needs_whole(), without, recipe), layers=models.shape.layers)


def floor(models: Loaded) -> Iterator[Way]:
    for name, fast in ((FLOOR, False), ("prefill, our products", True)):
        yield Way("e", name, prefill(models.truncated, fast=fast), layers=models.shape.depth)


def generation(models: Loaded) -> Iterator[Way]:
    device = models.truncated.model.device
    writer = answering(rankgpt(str(models.folder), device=str(device), dtype=models.dtype))

    def with_our_products(ranking: Ranking) -> dict[str, float]:
        with fast_products(device):
            return scores(writer.rerank(ranking))

    yield Way("f", GENERATION, lambda ranking: scores(writer.rerank(ranking)), repeats=1)
    yield Way("f", "RankGPT, our products", with_our_products, repeats=1)


def isolated(models: Loaded) -> Iterator[Way]:
    yield Way("g", "isolated passages", reranker(models.truncated, recipe=HEADRANK.varied({"passages": "isolated"})))


def cached(models: Loaded) -> Iterator[Way]:
    reader = AttentionReader(models.truncated, passage_cache=PassageCache(memory_bytes=CACHE_BYTES))
    made = AttentionReranker(reader, HEADRANK.varied({"passages": "isolated"}))

    def warm(ranking: Ranking) -> None:
        made.rerank(replace(ranking, query=replace(ranking.query, text="another question that came before")))

    yield Way("h", "isolated, keys cached", lambda ranking: scores(made.rerank(ranking)), prepare=warm)


def reranker(
    loaded: LoadedModel, without: Collection[str] = (), recipe: Any = HEADRANK
) -> Callable[[Ranking], dict[str, float]]:
    """Return ranking -> score per docid, from text to scores: tokenising and pooling are part of it."""
    made = AttentionReranker(AttentionReader(loaded, without=without), recipe)
    return lambda ranking: scores(made.rerank(ranking))


def scores(ranking: Ranking) -> dict[str, float]:
    return {candidate.docid: candidate.score for candidate in ranking.candidates}


def prefill(loaded: LoadedModel, *, fast: bool) -> Callable[[Ranking], None]:
    builder = AttentionReranker(AttentionReader(loaded), HEADRANK).builder

    def run(ranking: Ranking) -> None:
        ids = torch.from_numpy(builder.build(ranking).token_ids)[None].to(loaded.model.device)
        with torch.inference_mode(), fast_products(loaded.model.device, enabled=fast):
            loaded.model(input_ids=ids, use_cache=False)

    return run


def eager(models: Loaded) -> Iterator[Way]:
    loaded, shape = models.needs_whole(), models.shape
    builder = AttentionReranker(AttentionReader(loaded), HEADRANK).builder

    def run(ranking: Ranking) -> None:
        ids = torch.from_numpy(builder.build(ranking).token_ids)[None].to(loaded.model.device)
        with torch.inference_mode(), implementation(loaded.model, "eager"):
            loaded.model(input_ids=ids, use_cache=False, output_attentions=True)

    def why_not(tokens: int) -> str | None:
        needed = (shape.layers + 4) * shape.heads * tokens**2 * loaded.model.dtype.itemsize
        free = free_memory(loaded.model.device)
        return f"{needed / 2**30:.0f} GiB of attention, {free / 2**30:.0f} free" if needed > free / 2 else None

    yield Way("d", "eager, output_attentions", run, layers=shape.layers, why_not=why_not)


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(IMPLEMENTATION)


def built(loaded: LoadedModel, ranking: Ranking) -> Reading:
    """Return the list's prompt, and how long it took to build."""
    builder = AttentionReranker(AttentionReader(loaded), HEADRANK).builder
    return measure(lambda: builder.build(ranking), torch.device("cpu"))
