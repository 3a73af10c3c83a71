"""The same short lists through one model in several ways: what `headrank doctor --model` prints.

A model that is read right gives the same scores with every shortcut and without, alone and beside others, cut off after
its deepest head and whole, and by its own attention. Scores of models that are known are stored with the package, so
that drift between versions of the software below is seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headrank_pipeline.attention.canary import own_attention
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import named_model, trained_files
from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.attention.reader import SHORTCUTS, AttentionReader
from headrank_pipeline.attention.recipe import Support
from headrank_pipeline.attention.scoring import passage_scores
from headrank_pipeline.attention.tap import LEAST_SHARE
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.calibrated import reading_of
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import read_qrels, read_topics

__all__ = ["Difference", "check_model", "scores_of", "shipped_lists", "stored_scores", "stored_under"]

_LISTS, _PASSAGES, _WORDS = 3, 5, 40

# The largest difference of a score from another way's, as a share of the list's largest score. Rounding reaches 1e-5 in
# float32; half precision rounds every activation to three digits.
_ROUNDING, _ROUNDING_OF_HALVES = 1e-3, 0.1


@dataclass(frozen=True, slots=True)
class Difference:
    """Two ways that should give the same scores.

    Args:
        name: what is compared.
        largest: the largest difference of two scores, as a share of the largest score of their list.
        turned: lists whose order differs.
        lists: how many there are.
        allowed: up to which `largest` is rounding.
        note: what else there is to say.
    """

    name: str
    largest: float
    turned: int
    lists: int
    allowed: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether it is no more than rounding."""
        return self.largest <= self.allowed


def check_model(
    model: str | Path, heads: HeadSet | str | Path | None = None, *, device: str = "auto", dtype: str = "auto"
) -> Iterator[Difference]:
    """Yield the differences between the ways of reading one model; it is loaded twice, one after the other.

    Args:
        model: what `rerank.systems.headrank` takes.
        heads: what `rerank.systems.headrank` takes; None for those that a trained model brings, else all.
        device: what the model runs on.
        dtype: type of weights and activations.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a model that cannot be read, with the reason.
    """
    lists = shipped_lists()
    model = named_model(model, trained=heads is None)
    brings = heads is None and trained_files(model).heads is not None
    heads = "all" if heads is None and not brings else heads
    reranker = headrank(model, heads, device=device, dtype=dtype)
    reader = reranker.reader
    allowed = _ROUNDING if reader.model.dtype == torch.float32 else _ROUNDING_OF_HALVES
    scores = scores_of(reranker, lists)

    def differing(name: str, others: Sequence[Sequence[float]], note: str = "") -> Difference:
        return _difference(name, scores, others, allowed, note)

    yield differing("batched against alone", [scores_of(reranker, [one])[0] for one in lists])
    left_out = ", ".join(sorted(reader.without))
    broken, reader.without = reader.without, frozenset(SHORTCUTS)
    yield differing("fast path against none of it", scores_of(reranker, lists), left_out and f"left out: {left_out}")
    reader.without = broken
    stored = stored_scores(reranker) if brings else None
    own, depth, layers = reader.heads, reader.heads.depth, reader.source.layers
    revision, recipe = reader.source.revision, reranker.recipe
    del reranker, reader  # two of them may not fit

    whole = headrank(model, _to_the_end(own, layers), device=device, dtype=dtype, revision=revision)
    whole = AttentionReranker(whole.reader, recipe)
    yield differing(f"truncated ({depth} layers) against whole ({layers})", scores_of(whole, lists))
    yield differing("fast path against the model's own attention", [_own_scores(whole, one) for one in lists])
    if stored is not None:
        yield differing(
            f"these versions against {stored['made_with']}", stored["scores"], f"stored for {stored['name']}"
        )


def shipped_lists() -> list[Ranking]:
    """Return short lists of the demo collection, whose passages are cut to a few words."""
    demo = Path(str(files("headrank_pipeline") / "resources" / "demo"))
    passages = {passage.docid: passage for passage in read_corpus(demo / "corpus.jsonl")}
    judged = read_qrels(demo / "qrels.tsv")
    lists = []
    for query in islice(read_topics(demo / "queries.jsonl"), _LISTS):
        chosen = [passages[docid] for docid in sorted(judged[query.qid])[:_PASSAGES]]
        candidates = tuple(
            Candidate(passage.docid, -float(place), " ".join((passage.text or "").split()[:_WORDS]), passage.title)
            for place, passage in enumerate(chosen)
        )
        lists.append(Ranking(Query(query.qid, query.text), candidates))
    return lists


def stored_scores(reranker: AttentionReranker) -> dict[str, Any] | None:
    """Return the scores of a model on the shipped lists and the versions they were made with, or None.

    ``resources/self_check.json`` maps what `stored_under` returns to ``name``, ``made_with`` and ``scores``, one list
    of numbers per shipped list, in float32 on a CPU.
    """
    path = files("headrank_pipeline") / "resources" / "self_check.json"
    known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return known.get(stored_under(reranker))


def stored_under(reranker: AttentionReranker) -> str:
    """Return the SHA-256 under which scores are stored: of the weights, heads, prompt and rule, not of the name."""
    reading = {name: value for name, value in reading_of(reranker).items() if name != "model"}
    return sha256(json.dumps(reading, sort_keys=True).encode()).hexdigest()


def scores_of(reranker: AttentionReranker, lists: Sequence[Ranking]) -> list[list[float]]:
    """Return the scores of each list in the order of its candidates."""
    reranked = reranker.rerank_batch(lists)
    found = [dict(zip(ranking.docids, ranking.scores, strict=True)) for ranking in reranked]
    return [[scores[docid] for docid in given.docids] for given, scores in zip(lists, found, strict=True)]


def _to_the_end(heads: HeadSet, layers: int) -> HeadSet:
    """Return the heads with one of the last layer that counts nothing, so that the whole model is loaded."""
    if heads.depth == layers:
        return heads
    weights, places = heads.weights or (1.0,) * len(heads.heads), heads.places
    if places is not None:  # a curve for each head; which one makes no difference where the head counts nothing
        places = replace(places, heads=(*places.heads, places.heads[0]))
    added = (layers - 1, 0)
    return replace(heads, heads=(*heads.heads, added), weights=(*weights, 0.0), places=places, model=None)


def _own_scores(reranker: AttentionReranker, ranking: Ranking) -> list[float]:
    """Return the scores of a list by the model's own attention."""
    rule, reader = reranker.recipe.rule, reranker.reader
    prompt = reranker.builder.build(ranking)
    read = _own_reading(reader, prompt, rule.support)
    blank = None
    if rule.content_free is not None:
        blank = _own_reading(reader, reranker.builder.with_query(prompt, rule.content_free), rule.support)
    scores: list[float] = passage_scores(read, blank, prompt.passages, prompt.places, rule, reader.heads).tolist()
    return scores


def _own_reading(reader: AttentionReader, prompt: Prompt, support: Support) -> Tensor:
    """Return [H, N], the heads' own attention, its rows put together as `support` says."""
    (attention,) = own_attention(reader.model, [prompt], name=reader.source.name)
    layers, places = zip(*reader.heads.heads, strict=True)
    rows = attention[list(layers), list(places)]  # [H, R, N]
    if support == "all":
        return rows.mean(1)
    only = torch.zeros_like(rows)
    for start, end in prompt.passages.tolist():
        only[..., start:end] = rows[..., start:end]
    only = only / only.sum(-1, keepdim=True)
    if support == "passages":
        return only.mean(1)
    shares = torch.stack([only[..., start:end].sum(-1) for start, end in prompt.passages.tolist()], -1)  # [H, R, P]
    together = torch.softmax(shares.clamp_min(LEAST_SHARE).log().mean(1), -1)
    for place, (start, end) in enumerate(prompt.passages.tolist()):
        only[..., start:end] *= (together[:, None, place] / shares[..., place])[..., None]
    return only.mean(1)


def _difference(
    name: str, some: Sequence[Sequence[float]], others: Sequence[Sequence[float]], allowed: float, note: str
) -> Difference:
    largest, turned = 0.0, 0
    for mine, other in zip(some, others, strict=True):
        size = max(map(abs, other)) or 1.0
        apart = [abs(one - two) for one, two in zip(mine, other, strict=True)]
        largest = max(largest, *(value / size for value in apart)) if all(map(_is_number, apart)) else float("inf")
        turned += _order(mine) != _order(other)
    return Difference(name, largest, turned, len(some), allowed, note)


def _is_number(value: float) -> bool:
    return value == value


def _order(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))
