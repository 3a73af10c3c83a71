"""What an order costs: HeadRank's one truncated prefill against RankGPT's windows, on the same weights, in one run.

    python benchmarks/generation_cost.py --tokenizer FOLDER         # Qwen3-0.6B's shape, 20 and 100 passages
    python benchmarks/generation_cost.py --tokenizer FOLDER --layers 4 --candidates 20   # a quick look

The weights are random numbers of the true sizes, so replies are garbage: after each has been generated in full, its
text is replaced by the given order, so that the windows slide as they would. Costs are real, rankings are not. HeadRank
reads 16 heads at 70% of the depth. `FOLDER` holds a Qwen tokenizer (tokenizer.json). The systems take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers import logging as transformers_logging

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.baselines.conversation import Conversation
from headrank_pipeline.rerank.baselines.rankgpt import RankGPT, rankgpt
from headrank_pipeline.rerank.baselines.replies import Reply
from headrank_pipeline.rerank.systems import headrank

COLUMNS = ("system", "candidates", "forward passes", "prompt tokens", "generated", "seconds", "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--candidates", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--words", type=int, default=100, help="words per passage")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print("".join(f"{name:>16}" for name in COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.tokenizer, arguments.layers)
        systems = load_systems(folder, arguments.layers, arguments.device)
        for count in arguments.candidates:
            found = measure(systems, ranking(count, arguments.words), arguments.repeat)
            for row in found:
                row["ratio"] = row["seconds"] / found[0]["seconds"]
                print("".join(f"{shown(row[name]):>16}" for name in COLUMNS), flush=True)
            rows += found
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def shown(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def save_model(folder: Path, tokenizer: Path, layers: int) -> None:
    torch.manual_seed(0)
    transformers_logging.disable_progress_bar()
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def load_systems(folder: str, layers: int, device: str) -> dict[str, Reranker]:
    deepest = int(0.7 * layers) - 1
    heads = HeadSet("random", tuple((max(0, deepest - i // 4), i) for i in range(16)))
    writer = rankgpt(folder, device=device)
    return {"headrank": headrank(folder, heads, device=device), "rankgpt": answering(writer)}


def answering(reranker: RankGPT) -> RankGPT:
    """Return the same RankGPT whose finished replies are replaced by the given order."""
    generate = reranker.writer.write

    def write(conversations: Sequence[Conversation]) -> list[Reply]:
        replies = generate(conversations)
        order = " > ".join(f"[{rank}]" for rank in range(1, 21))
        return [replace(reply, text=order) for reply in replies]

    reranker.writer.write = write  # type: ignore[method-assign]
    return reranker


def measure(systems: dict[str, Reranker], candidates: Ranking, repeat: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    notes: dict[str, Any] = {}
    for _ in range(repeat):
        for name, system in systems.items():
            started = time.perf_counter()
            notes[name] = system.rerank(candidates).notes
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return [
        {
            "system": name,
            "candidates": len(candidates),
            "forward passes": int(notes[name]["forward_passes"]),
            "prompt tokens": int(notes[name]["prompt_tokens"]),
            "generated": int(notes[name].get("generated_tokens", 0)),
            "seconds": statistics.median(times),
        }
        for name, times in seconds.items()
    ]


def ranking(passages: int, words: int) -> Ranking:
    chance = random.Random(0)
    known = ("the", "a", "of", "in", "water", "light", "cell", "trade", "river", "music", "engine", "market")
    texts = [" ".join(chance.choices(known, k=words)) for _ in range(passages)]
    candidates = tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(texts))
    return Ranking(Query("q", "how does light reach the river in winter"), candidates)


if __name__ == "__main__":
    main()
