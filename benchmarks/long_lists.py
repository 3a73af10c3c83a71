"""What lists of 20 to 1,000 passages cost and reach with each strategy for long lists, on the real model.

    python benchmarks/long_lists.py --data ../shared/data --output runs/long_lists --queries 6 4 2 1

Reranks the first queries of TREC DL 2019. A list of more passages than BM25's 100 is filled with passages of the other
queries' lists that nobody judged relevant for this one, drawn with seed 0 and placed after BM25's own. ``smollm2``
reads isolated passages; ``plain`` is the untrained model with causal passages and smollm2's heads, whose positions 100
passages do not fit. Seconds are those of the processor. Memory is the peak above what was held before the list. What is
done is kept in measured.jsonl and not done again. Prints the table of docs/long-lists.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from scipy.stats import kendalltau

from headrank_pipeline.attention.model import give_back_memory
from headrank_pipeline.attention.model_files import SMOLLM2
from headrank_pipeline.learn.scorer import ndcg
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import Qrels, read_candidates, read_qrels

STRATEGIES = ("whole", "windows", "refine")
SIZES = (20, 100, 300, 1000)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--queries", type=int, nargs=len(SIZES), default=[6, 4, 2, 1], help=f"for lists of {SIZES}")
    options.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    options.add_argument("--causal", type=int, default=2, help="queries of 100 passages for the plain model")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--threads", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.output.mkdir(parents=True, exist_ok=True)
    place = chosen.output / "measured.jsonl"
    qrels = read_qrels(chosen.data / "dl19" / "qrels.txt")
    lists = list(read_candidates(chosen.data / "dl19" / "candidates.jsonl.gz"))
    work = [("smollm2", size, count) for size, count in zip(SIZES, chosen.queries, strict=True)]
    for system, size, count in [*work, ("plain", 100, chosen.causal)]:
        done = {(r["system"], r["size"], r["qid"], r["strategy"]) for r in read_rows(place)}
        wanted = [
            one.query.qid
            for one in lists[:count]
            if not {(system, size, one.query.qid, strategy) for strategy in chosen.strategies} <= done
        ]
        if not wanted:
            continue
        reranker = load(system, chosen.dtype)
        for ranking in filled(lists, qrels, size, wanted):
            for row in measured(reranker, ranking, qrels[ranking.query.qid], chosen.strategies):
                with place.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"system": system, "size": size, **row}) + "\n")
    print(table(read_rows(place)))


def load(system: str, dtype: str) -> AttentionReranker:
    if system == "smollm2":
        return headrank("smollm2", device="cpu", dtype=dtype)
    return headrank("smollm2", SMOLLM2.trained() / "heads.json", device="cpu", dtype=dtype)


def filled(lists: Sequence[Ranking], qrels: Qrels, size: int, qids: Sequence[str]) -> Iterator[Ranking]:
    """Yield the lists of these queries, cut or filled to a size."""
    known = {candidate.docid: candidate for ranking in lists for candidate in ranking.candidates}
    for ranking in lists:
        qid, own = ranking.query.qid, frozenset(ranking.docids)
        if qid not in qids:
            continue
        others = sorted(d for d in known if d not in own and qrels[qid].get(d, 0) < 1)
        random.Random(f"0/{qid}").shuffle(others)
        last = ranking.scores[-1]
        extra = (replace(known[docid], score=last - 1 - place) for place, docid in enumerate(others))
        yield replace(ranking, candidates=(*ranking.candidates, *extra)).cut(size)


def measured(
    reranker: AttentionReranker, ranking: Ranking, judged: Mapping[str, int], strategies: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield what one list costs and reaches with each strategy."""
    orders: dict[str, Ranking] = {}
    for strategy in strategies:
        found, seconds, peak = reranked(reranker, ranking, strategy)
        orders[strategy] = found
        notes = found.notes
        yield {
            "qid": ranking.query.qid,
            "strategy": strategy,
            "ndcg": judged_ndcg(found, judged),
            "first_stage": judged_ndcg(ranking, judged),
            "tokens": notes["prompt_tokens"],
            "passes": notes.get("windows", 1) + notes.get("lists_refined", 0),
            "cut": notes["passages_cut"],
            "seconds": seconds,
            "memory": peak,
            "tau": agreement(orders["whole"], found) if "whole" in orders else math.nan,
        }


def reranked(reranker: AttentionReranker, ranking: Ranking, strategy: str) -> tuple[Ranking, float, float]:
    """Return the ranking, the processor's seconds, and the peak above what was held [MiB]."""
    way = AttentionReranker(reranker.reader, reranker.recipe, long_lists=strategy)
    give_back_memory()  # what earlier lists left behind
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is the present from here on
    before, started = peak_kib(), time.process_time()
    found = way.rerank(ranking)
    return found, time.process_time() - started, (peak_kib() - before) / 1024


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0])


def judged_ndcg(ranking: Ranking, judged: Mapping[str, int]) -> float:
    """Return nDCG@10 with trec_eval's gains; the ideal order is of all that was judged."""
    docids = [*ranking.docids, *(docid for docid in judged if docid not in set(ranking.docids))]
    grades = torch.tensor([max(0, judged.get(docid, 0)) for docid in docids])
    order = -torch.arange(len(docids), dtype=torch.float64)  # those that are missing come last
    return float(ndcg(order[None], grades)[0])


def agreement(one: Ranking, other: Ranking) -> float:
    """Return Kendall's tau of two orders of the same passages, by their ranks."""
    places = {docid: place for place, docid in enumerate(other.docids)}
    return float(kendalltau(range(len(one)), [places[docid] for docid in one.docids]).statistic)


def read_rows(place: Path) -> list[dict[str, Any]]:
    """Return what was measured; of a list that was begun again the last row of each strategy."""
    rows = map(json.loads, place.read_text(encoding="utf-8").splitlines() if place.exists() else [])
    return list({(row["system"], row["size"], row["qid"], row["strategy"]): row for row in rows}.values())


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return means over the queries of each system, size and strategy."""
    lines = [
        "| system | passages | queries | strategy | BM25 | nDCG@10 | tau to whole | tokens | passes | cut | CPU s "
        "| MiB |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups: dict[tuple[str, int, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["system"], row["size"], row["strategy"]), []).append(row)
    for (system, size, strategy), found in groups.items():
        mean = {name: fmean(row[name] for row in found) for name in found[0] if isinstance(found[0][name], int | float)}
        lines.append(
            f"| {system} | {size:,} | {len(found)} | {strategy} | {mean['first_stage']:.3f} | {mean['ndcg']:.3f} | "
            f"{mean['tau']:.3f} | {mean['tokens']:,.0f} | {mean['passes']:.1f} | {mean['cut']:.0f} | "
            f"{mean['seconds']:.1f} | {mean['memory']:,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
