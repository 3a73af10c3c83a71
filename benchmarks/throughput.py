"""Queries per hour and per euro of a whole collection: retrieval, tokenising, scoring, with and without passage cache.

    python benchmarks/throughput.py --collections ../shared/data/scifact ../shared/data/nfcorpus_preproc \\
        --output runs/throughput --queries 20 --read 10
    python benchmarks/throughput.py … --output runs/throughput-embedded --model embedded --queries 20

BM25's first 100 passages come from a Lucene index that is built from the collection; the model reads them isolated, on
`--threads` threads (one). Three things are told of each collection:

- The hit rate of the passage cache for **all** test queries in their order. It depends on lists and tokens alone,
  so the lists are replayed through the cache itself, with tensors that have sizes and no values; no model is needed.
  What one computer's memory holds is replayed besides what a folder holds.
- Seconds of the first queries (of their first ``--read`` passages), read in turns without the cache, with it as it
  fills, and once more when it holds all of the list's passages. They are those of the processor, Java's included.
- What follows for all queries and whole lists: a token that is found costs what it cost in the third reading, all
  others what they cost in the first. The same sum is checked against the second reading, which was measured.

What was read is kept in the output folder and not read again, so an output folder is for one choice of model, depth,
type and threads.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from headrank_pipeline.attention.passage_cache import KeyValues, PassageCache
from headrank_pipeline.attention.prompt import Prompt
from headrank_pipeline.first_stage.index import build_index
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import read_qrels, read_topics

GIB = 2**30
WAYS = ("without", "filling", "filled")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--collections", type=Path, nargs="+", required=True, help="folders in BEIR's layout")
    options.add_argument("--output", type=Path, required=True, help="indexes, the cache and what was measured")
    options.add_argument("--queries", type=int, default=12, help="that are reranked; all are retrieved and replayed")
    options.add_argument("--hits", type=int, default=100, help="passages of a list")
    options.add_argument("--read", type=int, help="passages of a list that are reranked; default: all")
    options.add_argument("--model", default="smollm2", help="smollm2, embedded, or a model trained isolated")
    options.add_argument("--memory", type=float, nargs="+", default=[2, 16], help="GiB, to replay the cache with")
    options.add_argument("--price", type=float, default=0.05, help="euros for an hour of one core")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--dtype", default="float32")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.output.mkdir(parents=True, exist_ok=True)
    reranker = headrank(chosen.model, device="cpu", dtype=chosen.dtype)
    found = [measured(reranker, folder, chosen) for folder in chosen.collections]
    print(f"\n{hit_table(found)}\n\n{time_table(found, chosen.price, chosen.threads)}")


def measured(reranker: AttentionReranker, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured on one collection."""
    name = folder.resolve().name
    lists, retrieval = retrieved(folder, chosen.output / f"{name}.index", chosen.hits)
    started = time.process_time()
    prompts = [prompt_of(reranker, ranking) for ranking in lists]
    tokenising = (time.process_time() - started) / len(lists)
    spent = token_bytes(reranker)
    hits = {"all": replay(prompts, spent, float("inf"))}
    hits |= {f"{gib:g} GiB": replay(prompts, spent, gib * GIB) for gib in chosen.memory}
    place = chosen.output / f"{name}.jsonl"
    done = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()] if place.exists() else []
    if len(done) < chosen.queries:  # a cache that was filled by half would tell another story
        done = []
        with place.open("w", encoding="utf-8") as file:
            part = [ranking.cut(chosen.read or chosen.hits) for ranking in lists[: chosen.queries]]
            for row in reread(reranker, part, chosen.output / f"{name}.keys"):
                file.write(json.dumps(row) + "\n")
                file.flush()
                done.append(row)
    return {
        "name": name,
        "queries": len(lists),
        "passages": sum(len(ranking) for ranking in lists),
        "tokens": fmean(len(prompt) for prompt in prompts),
        "hits": hits,
        "distinct": distinct(prompts),
        "retrieval": retrieval,
        "tokenising": tokenising,
        "read": done[: chosen.queries],
        "read_tokens": fmean(row["tokens"] for row in done[: chosen.queries]),
    }


def retrieved(folder: Path, index: Path, hits: int) -> tuple[list[Ranking], float]:
    """Return the lists of the test queries in the order of the file, and the processor's seconds for each."""
    if not index.exists():
        build_index(folder / "corpus.jsonl.gz", index)
    judged = read_qrels(folder / "qrels" / "test.tsv")
    queries: list[Query] = [query for query in read_topics(folder / "queries.jsonl") if query.qid in judged]
    source = bm25(index, hits=hits)
    list(source.retrieve(queries[:1]))  # starts Java
    started = time.process_time()
    lists = [ranking for ranking in source.retrieve(queries) if ranking.candidates]
    return lists, (time.process_time() - started) / len(lists)


def prompt_of(reranker: AttentionReranker, ranking: Ranking) -> Prompt:
    """Return the prompt of a list as it is read: copies once."""
    return reranker.builder.build(reranker.long_lists.in_one_prompt(ranking)[0])


def pieces(prompt: Prompt) -> list[np.ndarray]:
    """Return the token ids of each distinct passage, in the order in which the cache is asked for them."""
    assert prompt.boundaries is not None
    parts = np.split(prompt.token_ids[: prompt.boundaries[-1]], prompt.boundaries[:-1])[1:]
    return sorted({part.tobytes(): part for part in parts}.values(), key=lambda part: (-len(part), part.tobytes()))


def token_bytes(reranker: AttentionReranker) -> int:
    """Return the bytes that the cache keeps of a token: keys of all layers, values of all but the deepest."""
    config, depth = reranker.reader.model.config, reranker.reader.depth
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (2 * depth - 1) * config.num_key_value_heads * size * reranker.reader.model.dtype.itemsize


def replay(prompts: Sequence[Prompt], spent: int, memory: float) -> dict[str, float]:
    """Return shares of passages and of tokens that are found when these prompts come one after the other.

    Args:
        prompts: in the order of the queries.
        spent: bytes of a token.
        memory: bytes that the cache may hold.
    """
    cache = PassageCache(memory_bytes=int(min(memory, 2**62)))
    device, asked, found, tokens, spared = torch.device("meta"), 0, 0, 0, 0
    for prompt in prompts:
        missing = []
        for part in pieces(prompt):
            name = sha256(part.tobytes()).hexdigest()
            asked, tokens = asked + 1, tokens + len(part)
            if cache.get(name, device) is None:
                missing.append((name, len(part)))
            else:
                found, spared = found + 1, spared + len(part)
        for name, length in missing:
            cache.put(name, KeyValues((torch.empty((length, spent), dtype=torch.uint8, device=device),), ()))
    return {"passages": found / asked, "tokens": spared / tokens, "held": cache.held_bytes / GIB}


def distinct(prompts: Sequence[Prompt]) -> int:
    """Return how many passages differ in their tokens."""
    return len({part.tobytes() for prompt in prompts for part in pieces(prompt)})


def reread(reranker: AttentionReranker, lists: Sequence[Ranking], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the seconds of each list, read in turns by the three ways, and how many of its tokens were found."""
    shutil.rmtree(folder, ignore_errors=True)
    cache = PassageCache(folder, memory_bytes=GIB)
    seen: set[bytes] = set()
    reader = reranker.reader
    assert reader.key_identity  # hashes all weights once
    try:
        reranker.rerank(lists[0].cut(2))  # kernels are compiled
        for ranking in lists:
            parts = pieces(prompt_of(reranker, ranking))
            row: dict[str, Any] = {"qid": ranking.query.qid, "tokens": sum(map(len, parts)), "passages": len(parts)}
            row["found"] = sum(len(part) for part in parts if part.tobytes() in seen)
            seen |= {part.tobytes() for part in parts}
            orders = []
            for way in WAYS:
                reader.passage_cache = None if way == "without" else cache
                started, clock = time.process_time(), time.perf_counter()
                orders.append(reranker.rerank(ranking).docids)
                row[way] = time.process_time() - started
                row[f"{way} clock"] = time.perf_counter() - clock
            row["same order"] = all(order == orders[0] for order in orders)
            print(json.dumps(row), flush=True)
            yield row
    finally:
        reader.passage_cache = None
        shutil.rmtree(folder, ignore_errors=True)


def hit_table(found: Sequence[dict[str, Any]]) -> str:
    """Return the hit rates of all queries."""
    memories = list(found[0]["hits"])
    lines = [
        "| collection | queries | passages | distinct | times each | tokens of a list | "
        + " | ".join(f"found, {'no limit' if memory == 'all' else memory}" for memory in memories)
        + " | all keys |",
        "|---|" + "---:|" * (6 + len(memories)),
    ]
    for one in found:
        rates = [f"{one['hits'][memory]['passages']:.1%}" for memory in memories]
        cells = [one["name"], f"{one['queries']:,}", f"{one['passages']:,}", f"{one['distinct']:,}"]
        cells += [f"{one['passages'] / one['distinct']:.1f}", f"{one['tokens']:,.0f}", *rates]
        lines.append("| " + " | ".join([*cells, f"{one['hits']['all']['held']:.0f} GiB"]) + " |")
    return "\n".join(lines)


def time_table(found: Sequence[dict[str, Any]], price: float, threads: int) -> str:
    """Return seconds per query, their shares, and queries per hour and euro."""
    lines = [
        "| collection | what is read | tokens found | BM25 s | tokens s | scoring s | CPU s per query | speed-up "
        "| queries per hour | per euro |",
        "|---|---|" + "---:|" * 8,
    ]
    for one in found:
        for label, share, seconds in readings(one):
            whole = label.startswith("all")
            tokenising = one["tokenising"] * (1.0 if whole else one["read_tokens"] / one["tokens"])
            plain = next(cost for name, _, cost in readings(one) if name.startswith("all") == whole)
            total, hourly = one["retrieval"] + seconds, 3600 / (one["retrieval"] + seconds)
            cells = [one["name"], label, f"{share:.1%}", f"{one['retrieval']:.3f}", f"{tokenising:.3f}"]
            cells += [f"{seconds - tokenising:.2f}", f"{total:.2f}", f"{(one['retrieval'] + plain) / total:.1f}"]
            lines.append("| " + " | ".join([*cells, f"{hourly:,.0f}", f"{hourly / (price * threads):,.0f}"]) + " |")
    same = [f"{one['name']} {sum(row['same order'] for row in one['read'])} of {len(one['read'])}" for one in found]
    return "\n".join(lines) + f"\n\nsame order in all three readings: {', '.join(same)}"


def readings(one: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield what was read, the share of tokens that was found, and seconds per query: measured, then computed."""
    rows = one["read"]
    cost = {way: sum(row[way] for row in rows) for way in WAYS}
    found, tokens = (sum(row[name] for row in rows) for name in ("found", "tokens"))
    short = f"first {len(rows)}"
    yield f"{short}, no cache", 0.0, cost["without"] / len(rows)
    yield f"{short}, cache empty at first", found / tokens, cost["filling"] / len(rows)
    expected = sum(
        row["filled"] * row["found"] / row["tokens"] + row["without"] * (1 - row["found"] / row["tokens"])
        for row in rows
    )
    yield f"{short}, the same, computed", found / tokens, expected / len(rows)
    yield f"{short}, all found", 1.0, cost["filled"] / len(rows)
    kept = {"no cache": 0.0, "cache empty at first": one["hits"]["all"]["tokens"], "all found": 1.0}
    for name, share in kept.items():
        each = (cost["filled"] * share + cost["without"] * (1 - share)) / tokens
        yield f"all {one['queries']}, {name}, computed", share, one["tokens"] * each


if __name__ == "__main__":
    main()
