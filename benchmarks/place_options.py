"""What to do about the place in the prompt: every option of HeadRank's rule on graded training lists with a real model.

    python benchmarks/place_options.py --model MODEL --lists selection.jsonl --dev dev.jsonl --num-heads 6

Heads are selected twice on `--lists`, in causal prompts (random orders, which also gives their place curves) and with
isolated passages. Each option then reads `--dev` in random orders, the same for all. Prints a Markdown table of nDCG@10
per collection; qids begin with their collection's name, as `smollm2_model.py` writes them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from smollm2.in_batch import RULE

from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.learn.lists import GradedList, arranged, read_lists
from headrank_pipeline.learn.scorer import ndcg
from headrank_pipeline.learn.selection import select_heads
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.rerank.attention_reranker import AttentionReranker

CAUSAL: Mapping[str, Mapping[str, Any]] = {
    "as it is": {},
    "both orders": {"both_orders": True},
    "place profile of the set": {"place_profile": "set"},
    "place profile of each head": {"place_profile": "heads"},
    "content-free query": {"content_free": "N/A"},
    "z-scores of heads": {"normalise": "zscore"},
    "geometric mean of heads": {"normalise": "log"},
    "geometric means of rows and heads": {**RULE, "rows": HEADRANK.template.rows},
    "the same, the query's tokens": RULE,
    "the same, both orders": {**RULE, "both_orders": True},
    "the query's tokens": {"rows": "query"},
    "length exponent 0.5": {"length_exponent": 0.5},
}
ISOLATED: Mapping[str, Mapping[str, Any]] = {
    "isolated": {},
    "isolated, content-free query": {"content_free": "N/A"},
    "isolated, geometric mean": {"normalise": "log"},
    "isolated, geometric means of rows and heads": {**RULE, "rows": HEADRANK.template.rows},
    "the same, the query's tokens, isolated": RULE,
    "isolated, the query's tokens": {"rows": "query"},
    "isolated, length exponent 0.5": {"length_exponent": 0.5},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", required=True)
    options.add_argument("--lists", type=Path, required=True, help="to select heads by")
    options.add_argument("--dev", type=Path, required=True, help="to judge the options by")
    options.add_argument("--num-heads", type=int, default=6)
    options.add_argument("--size", type=int, default=12, help="passages of a list")
    options.add_argument("--words", type=int, default=60, help="of a passage")
    options.add_argument("--layers", default="all", help="where heads are looked for: all, or layers:0-19")
    options.add_argument("--every", type=int, default=1, help="take each so-manieth list only")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    lists = read_lists(chosen.lists)[:: chosen.every]
    dev = [arranged(one, chosen.size, "random", seed=1) for one in read_lists(chosen.dev)[:: chosen.every]]
    dev = [one for one in dev if len(set(one.grades)) > 1]
    rows: dict[str, dict[str, float]] = {}
    for passages, table in (("causal", CAUSAL), ("isolated", ISOLATED)):
        base = HEADRANK.varied({"passages": passages, "passage_words": chosen.words})
        config = SelectionConfig(num_heads=chosen.num_heads, list_size=chosen.size)
        heads = select_heads(load(chosen.model, chosen.layers, dtype=chosen.dtype), base, lists, config).heads
        print(f"{passages}: heads {[f'{layer}-{head}' for layer, head in heads.heads]}", file=sys.stderr, flush=True)
        reader = AttentionReader(load(chosen.model, heads, dtype=chosen.dtype))
        for name, changes in table.items():
            rows[name] = _judged(AttentionReranker(reader, base.varied(changes)), dev)
            print(name, rows[name], file=sys.stderr, flush=True)
    names = list(next(iter(rows.values())))
    print(f"{len(dev)} lists of at most {chosen.size} passages, {chosen.words} words of each\n")
    print(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[column]:.3f}' for column in names)} |")
    print(f"\nMade by: {shlex.join(['python', 'benchmarks/place_options.py', *sys.argv[1:]])}")


def _judged(reranker: AttentionReranker, dev: Sequence[GradedList]) -> dict[str, float]:
    """Return the mean over collections, and collection -> mean nDCG@10."""
    values: dict[str, list[float]] = {}
    for one, found in zip(dev, reranker.rerank_batch([one.ranking for one in dev]), strict=True):
        scores = dict(zip(found.docids, found.scores, strict=True))
        listed = torch.tensor([[scores[docid] for docid in one.ranking.docids]])
        values.setdefault(one.qid.partition("/")[0], []).append(float(ndcg(listed, torch.tensor(one.grades))[0]))
    means = {name: sum(part) / len(part) for name, part in values.items()}
    return {"mean": sum(means.values()) / len(means), **means}


if __name__ == "__main__":
    main()
