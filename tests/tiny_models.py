"""Tiny seeded models and a tokenizer for tests: real transformers classes, random weights, made in a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import logging as transformers_logging

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]

# Qwen's published split pattern: it is what merges a full stop with the blank line after it.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's normaliser, split and control tokens, and 800 pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=CONTROLS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = Path(__file__).read_text(encoding="utf-8")
    words = (
        "Here are some paragraphs:\n\n[1] Birds fly.\n\nPlease find information relevant to the query above. Query: "
    )
    tokenizer.train_from_iterator([text, words * 50], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=8192
    )


def tiny_model(folder: Path, family: str = "qwen3", *, layers: int = 4, seed: int = 0, positions: int = 8192) -> Path:
    """Save a causal language model of a family with its tokenizer; 4 query heads on 2 key heads, 16 wide."""
    configuration, model_class = FAMILIES[family]
    torch.manual_seed(seed)
    config = configuration(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=positions,
        initializer_range=0.3,  # attention that differs clearly from uniform
        tie_word_embeddings=False,
    )
    model = model_class(config)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
