"""What reranking costs: a model of seconds per query fitted to measurements, and the price of the 14 benchmarks.

    python benchmarks/scaling.py measure                       # CPU, random weights of Qwen3-0.6B's shape, one thread
    python benchmarks/scaling.py price                         # computed: FLOPs, and seconds of a GPU that is assumed
    python benchmarks/scaling.py price --flops 990e12 --utilisation 0.3 --data ../shared/data

`measure` times whole queries (prompt, forward pass, pooling) and fits ``seconds = a + FLOPs / throughput``, FLOPs being
those of `learn.selection.truncation_cost`; `price` applies these to each benchmark's number of queries and length of
passages. Seconds are CPU time of the process, in which a busy machine shows less than in those on the wall.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import LoadedModel, ModelSource
from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.attention.tap import IMPLEMENTATION, register
from headrank_pipeline.experiment.benchmark import find_benchmarks
from headrank_pipeline.experiment.facts import known_of
from headrank_pipeline.files import open_text
from headrank_pipeline.learn.selection import truncation_cost
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.attention_reranker import AttentionReranker
from headrank_pipeline.trec import read_candidates

SHAPES = {
    "0.6B": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16),
    "1.7B": dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
    "4B": dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32),
}
HEADS = dict(num_key_value_heads=8, head_dim=128)
POSITIONS = 40960
# The deepest of the published heads of QRRanker lies in layer 24 of Qwen3-4B's 36; the same share for the other sizes.
DEPTH = 25 / 36

# (passages, words of each, layers)
POINTS = ((5, 40, 4), (10, 40, 4), (20, 40, 4), (40, 40, 4), (10, 160, 4), (20, 80, 8), (10, 40, 12))

# Mean words of a query and of a passage: Thakur et al., BEIR (NeurIPS 2021), Table 1, rounded; over the whole corpus,
# of which a first stage rather finds the longer ones. Both TREC DL tracks search MS MARCO's passages.
WORDS = {
    "beir-arguana": (193, 167),
    "beir-climate-fever": (20, 85),
    "beir-dbpedia-entity": (5, 50),
    "beir-fever": (8, 85),
    "beir-fiqa": (11, 132),
    "beir-hotpotqa": (18, 46),
    "beir-nfcorpus": (3, 232),
    "beir-nq": (9, 79),
    "beir-scidocs": (9, 176),
    "beir-scifact": (12, 214),
    "beir-trec-covid": (11, 161),
    "beir-webis-touche2020": (7, 292),
    "trec-dl-2019": (6, 56),
    "trec-dl-2020": (6, 56),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "price"])
    parser.add_argument("--repeat", type=int, default=2, help="measurements of each point; the fastest counts")
    parser.add_argument("--flops", type=float, default=300e12, help="of the GPU that is assumed, per second")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of them that is reached, assumed")
    parser.add_argument(
        "--data", type=Path, help="folder with dl19, scifact and qwen3_tokenizer, where they are at hand"
    )
    parser.add_argument("--pipelines", type=Path, default=Path("pipelines"))
    arguments = parser.parse_args()
    if arguments.what == "measure":
        measure(arguments.repeat)
    else:
        price(arguments)


# ------------------------------------------------------------------------------------------------------------- measured


def measure(repeat: int) -> None:
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    found = []
    for passages, words, depth in POINTS:
        reranker = random_reranker(tokenizer, depth)
        ranking = prose(passages, words, 10)
        tokens = len(reranker.builder.build(ranking).token_ids)
        seconds = min(timed(reranker, ranking) for _ in range(repeat))
        found.append((passages, words, depth, tokens, flops("0.6B", depth, tokens), seconds))
    work, seconds = np.array([row[4] for row in found]), np.array([row[5] for row in found])
    # Relative errors are made small: every point counts alike, however long it takes.
    design = np.stack([1 / seconds, work / seconds], axis=1)
    (fixed, per_flop), *_ = np.linalg.lstsq(design, np.ones(len(found)), rcond=None)
    print("passages  words  layers  tokens  GFLOP  seconds  fitted  error")
    for (*numbers, one, spent), fitted in zip(found, fixed + per_flop * work, strict=True):
        print(
            "{:>8}  {:>5}  {:>6}  {:>6}".format(*numbers), f"{one / 1e9:>6.0f}  {spent:>7.2f}  {fitted:>6.2f}", end=""
        )
        print(f"  {fitted / spent - 1:>+5.0%}", flush=True)
    errors = np.abs((fixed + per_flop * work) / seconds - 1)
    print(f"seconds = {fixed:.3f} + FLOPs / {1 / per_flop / 1e9:.1f}e9; mean error {errors.mean():.0%}, ", end="")
    print(f"largest {errors.max():.0%}; torch {torch.__version__}, one thread")


def timed(reranker: AttentionReranker, ranking: Ranking) -> float:
    began = time.process_time()
    reranker.rerank(ranking)
    return time.process_time() - began


def random_reranker(tokenizer: PreTrainedTokenizerFast, depth: int) -> AttentionReranker:
    """HeadRank on random weights of Qwen3-0.6B's shape, cut off after `depth` layers; eight heads of the last one."""
    torch.manual_seed(0)
    register()
    shape = {**SHAPES["0.6B"], **HEADS, "num_hidden_layers": depth, "vocab_size": len(tokenizer)}
    config = Qwen3Config(**shape, max_position_embeddings=POSITIONS, attn_implementation=IMPLEMENTATION)
    model = Qwen3Model(config).eval().requires_grad_(False)
    heads = HeadSet("eight", tuple((depth - 1, head) for head in range(8)))
    source = ModelSource("random 0.6B", None, "", 28, config.num_attention_heads, POSITIONS)
    return AttentionReranker(AttentionReader(LoadedModel(model, tokenizer, heads, source)), HEADRANK)


# ------------------------------------------------------------------------------------------------------------- computed


def price(arguments: argparse.Namespace) -> None:
    folder = arguments.data / "qwen3_tokenizer" if arguments.data else embedded_model()
    builder = PromptBuilder(AutoTokenizer.from_pretrained(folder), HEADRANK.template, max_prompt_tokens=POSITIONS)
    rate = arguments.flops * arguments.utilisation
    measured = dict(at_hand(arguments.data, builder)) if arguments.data else {}
    print(f"computed, not measured: a GPU of {arguments.flops:.3g} FLOP/s, {arguments.utilisation:.0%} of them reached")
    print("depth " + ", ".join(f"{layers_of(size)} of {SHAPES[size]['num_hidden_layers']} ({size})" for size in SHAPES))
    print(f"tokenizer {folder.name}; 100 passages each\n")
    print("| benchmark | queries | tokens | TFLOP per query, 0.6B / 1.7B / 4B | GPU-seconds, 0.6B / 1.7B / 4B |")
    print("|---|---|---|---|---|")
    totals = dict.fromkeys(SHAPES, 0.0)
    for _, benchmark in find_benchmarks(arguments.pipelines):
        queries = known_of("datasets", benchmark.collection.ir_datasets).get("queries")
        assert queries is not None, benchmark.name
        tokens = measured.get(benchmark.name) or [tokens_of(builder, prose(100, *reversed(WORDS[benchmark.name])))]
        mark = " (real lists)" if benchmark.name in measured else ""
        cost = {size: mean_flops(size, tokens) for size in SHAPES}
        for size in SHAPES:
            totals[size] += queries * cost[size]
        print(row(benchmark.name, queries, f"{np.mean(tokens):,.0f}{mark}", cost, queries, rate))
    print(row("all 14", None, "", None, 1, rate, totals))
    passages = measured.get("trec-dl-2019") or [tokens_of(builder, prose(100, 56, 6))]
    million = {size: mean_flops(size, passages) for size in SHAPES}
    print(row("a million queries on MS MARCO", 10**6, f"{np.mean(passages):,.0f}", million, 10**6, rate))


def row(name: str, queries: int | None, tokens: str, cost, times: int, rate: float, totals=None) -> str:
    per_query = " / ".join(f"{cost[size] / 1e12:.1f}" for size in SHAPES) if cost else ""
    spent = " / ".join(f"{(totals or cost)[size] * times / rate:,.0f}" for size in SHAPES)
    return f"| {name} | {'' if queries is None else f'{queries:,}'} | {tokens} | {per_query} | {spent} |"


def layers_of(size: str) -> int:
    return round(DEPTH * SHAPES[size]["num_hidden_layers"])


def flops(size: str, depth: int, tokens: int) -> float:
    shape = SHAPES[size]
    config = SimpleNamespace(**shape, **HEADS)
    return truncation_cost(config, layers=shape["num_hidden_layers"], depth=depth, tokens=tokens).flops


def mean_flops(size: str, tokens: list[int]) -> float:
    """Over prompts of these lengths: their squares count, not only their mean."""
    return float(np.mean([flops(size, layers_of(size), length) for length in tokens]))


def tokens_of(builder: PromptBuilder, ranking: Ranking) -> int:
    return len(builder.build(ranking).token_ids)


def at_hand(data: Path, builder: PromptBuilder) -> Iterator[tuple[str, list[int]]]:
    """Lengths of prompts of real lists: DL19's candidates; SciFact's abstracts by the hundred, as they come."""
    candidates = data / "dl19" / "candidates.jsonl.gz"
    passages = [tokens_of(builder, ranking) for ranking in read_candidates(candidates)]
    yield "trec-dl-2019", passages
    yield "trec-dl-2020", passages  # other queries on the same collection
    with open_text(data / "scifact" / "corpus.jsonl.gz") as file:
        documents = [json.loads(line) for line in islice(file, 1000)]
    lists = [documents[start : start + 100] for start in range(0, 1000, 100)]
    query = Query("q", " ".join(islice(demo_words(), 12)))
    yield (
        "beir-scifact",
        [
            tokens_of(builder, Ranking(query, tuple(Candidate(d["_id"], 0.0, d["text"], d["title"]) for d in some)))
            for some in lists
        ],
    )


# ---------------------------------------------------------------------------------------------------------------- prose


def prose(passages: int, length: int, query_length: int) -> Ranking:
    """A list of so many passages of so many words, from the demo collection, one after the other."""
    text = demo_words()
    query = Query("q", " ".join(islice(text, query_length)))
    found = (Candidate(f"d{n}", float(-n), " ".join(islice(text, length))) for n in range(passages))
    return Ranking(query, tuple(found))


def demo_words() -> Iterator[str]:
    corpus = Path(str(files("headrank_pipeline"))) / "resources" / "demo" / "corpus.jsonl"
    documents = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    return cycle(" ".join(document["text"] for document in documents).split())


if __name__ == "__main__":
    main()
