"""Random weights of Qwen3's true sizes, the real tokenizer where it lies beside the project, and lists of real text."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers import logging as transformers_logging

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.records import Candidate, Query, Ranking

HEAD_DIM = 128
KEY_HEADS = 8
VOCABULARY = 151936


@dataclass(frozen=True)
class Shape:
    """Sizes of one Qwen3 model; heads are read at `depth` of `layers`."""

    name: str
    hidden: int
    mlp: int
    layers: int
    heads: int
    depth: int

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's projections."""
        return self.hidden * HEAD_DIM * (2 * self.heads + 2 * KEY_HEADS) + 3 * self.hidden * self.mlp

    @property
    def head_set(self) -> HeadSet:
        """16 heads of the four deepest layers that are run."""
        return HeadSet("random", tuple((max(0, self.depth - 1 - i // 4), i % self.heads) for i in range(16)))

    def prefill_flops(self, tokens: int, layers: float) -> float:
        """Products of a causal pass: projections, and half of a full attention."""
        attention = 2 * self.heads * HEAD_DIM * tokens**2
        return layers * (2 * self.layer_weights * tokens + attention)


SHAPES = {
    "tiny": Shape("tiny", 128, 256, 4, 8, 3),  # no model's: to see whether all runs
    "0.6b": Shape("0.6b", 1024, 3072, 28, 16, 19),
    "1.7b": Shape("1.7b", 2048, 6144, 28, 16, 19),
    "4b": Shape("4b", 2560, 9728, 36, 32, 25),
}


def save_random_model(shape: Shape, tokenizer: Path, folder: Path) -> None:
    """Write a causal language model with normally distributed weights, in bfloat16 as checkpoints come."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=131072,  # so that long lists fit; it changes no size
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.data.fill_(1.0) if "norm" in name else weight.data.normal_(0.0, 0.02)
    model.tie_weights()
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def find_tokenizer(data: Path | None) -> Path:
    """Return Qwen3's tokenizer, or that of the embedded model."""
    real = data / "qwen3_tokenizer" if data else None
    return real if real is not None and real.is_dir() else embedded_model()


def real_passages(data: Path | None, count: int, words: int) -> list[str]:
    """Return passages of exactly so many words: SciFact's abstracts, or the demo collection joined and cut."""
    corpus = data / "scifact" / "corpus.jsonl.gz" if data else None
    if corpus is not None and corpus.is_file():
        with gzip.open(corpus, "rt", encoding="utf-8") as stream:
            text = " ".join(json.loads(line)["text"] for line in stream)
    else:
        demo = files("headrank_pipeline") / "resources" / "demo" / "corpus.jsonl"
        lines = demo.read_text(encoding="utf-8").splitlines()
        text = " ".join(json.loads(line)["text"] for line in lines)
    pieces = text.split()
    pieces *= 1 + count * words // len(pieces)
    return [" ".join(pieces[i * words : (i + 1) * words]) for i in range(count)]


def ranking(passages: list[str], query: str = "how do cells repair damage of their DNA") -> Ranking:
    """Return a ranking of the passages for a query."""
    return Ranking(Query("q", query), tuple(Candidate(f"d{i}", -float(i), text) for i, text in enumerate(passages)))
