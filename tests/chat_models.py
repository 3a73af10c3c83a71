"""Tiny chat models for tests: real classes, random weights, and a head that likes some tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, trainers
from transformers import PreTrainedTokenizerFast

from headrank_pipeline.records import Candidate, Query, Ranking

# ChatML with the switch of Qwen3's template.
CHAT = (
    "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}"
    "{%- endif -%}"
)


# Tokens of their own, so that a random model names passages, too often, too high, and not all of them.
IDENTIFIERS = tuple(f"[{rank}]" for rank in range(1, 10))


def chat_model(
    folder: Path,
    *,
    liked: Sequence[str] = (*IDENTIFIERS, "[1]", "[2]"),
    template: str | None = CHAT,
    words: str = "yes no",
    family: str = "qwen3",
) -> Path:
    """Save a model whose replies are mostly made of `liked` tokens, with tokens of their own for `words`."""
    for name, content in _files(family).items():
        (folder / name).write_bytes(content)
    tokenizer = tokenizer_with(words)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 0.1
    for token in liked:
        weights["lm_head.weight"][tokenizer.convert_tokens_to_ids(token)] *= 10
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@cache
def _files(family: str) -> dict[str, bytes]:
    """A tiny model's files; making them anew for every test would take most of its time."""
    with TemporaryDirectory() as folder:
        tiny_model(Path(folder), family, layers=2, seed=7)  # this one answers with many different numbers
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@cache
def tokenizer_with(words: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, trained on the given words as well."""
    known = tiny_tokenizer()
    backend = Tokenizer.from_str(known.backend_tokenizer.to_str())
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    alphabet = [token for token in known.get_vocab() if len(token) == 1]
    trainer = trainers.BpeTrainer(
        vocab_size=780, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    text = "Rank the passages based on their relevance to the search query: passage number birds fly fleas live "
    backend.train_from_iterator([text * 20, *(word for word in words.split() for _ in range(50))], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=8192
    )
    tokenizer.add_tokens(list(IDENTIFIERS))
    assert len(tokenizer) <= len(known)
    return tokenizer


def numbered(length: int, qid: str = "q1", query: str = "how do birds fly") -> Ranking:
    """A list whose texts are different, the one with the highest number at the bottom."""
    candidates = (Candidate(f"d{i}", -float(i), f"number {i} birds") for i in range(1, length + 1))
    return Ranking(Query(qid, query), tuple(candidates))
