"""Tiny models and tokenizers of the families that published head sets are for: each spells prompts in its own way."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from tiny_models import tiny_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers import logging as transformers_logging

# The families by the names of their markup; scales differ from 1 / sqrt(width) in Granite.
MODELS = {
    "chatml": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16}),
    "llama3": (LlamaConfig, LlamaForCausalLM, {"head_dim": 16}),
    "mistral": (MistralConfig, MistralForCausalLM, {"head_dim": 16, "sliding_window": None}),
    "phi": (Phi3Config, Phi3ForCausalLM, {"sliding_window": None}),
    "granite": (GraniteConfig, GraniteForCausalLM, {"attention_multiplier": 0.125}),
}
_CONTROLS = {
    "llama3": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    "phi": ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|im_sep|>"],
    "granite": ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"],
}
# Llama 3's and cl100k's (Phi-4's) split pattern.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_WORDS = "Here are some paragraphs: [1] Birds fly. Please find information relevant to the query. Query: document "


@cache
def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that splits, begins texts and knows control tokens as its family's does."""
    if family == "chatml":
        return tiny_tokenizer()
    return _sentencepiece_like() if family == "mistral" else _byte_level(family)


def _byte_level(family: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    controls = _CONTROLS[family]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([_WORDS * 20, ".\n\n" * 20], trainer)
    if family == "llama3":  # the others put nothing before a text
        begin = controls[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=controls[0], eos_token=controls[1], model_max_length=8192
    )


def _sentencepiece_like() -> PreTrainedTokenizerFast:
    """Mistral 7B's kind: a space begins every text, line breaks are bytes, [INST] is spelled in ordinary tokens."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    letters = [chr(code) for code in range(33, 127)]
    learner.train_from_iterator(
        [_WORDS * 20], trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters, show_progress=False)
    )
    learned = learner.get_vocab(with_added_tokens=False)
    controls = ["<unk>", "<s>", "</s>"]
    pieces = [*controls, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned, key=learned.__getitem__)]
    merges = [tuple(pair) for pair in _merges(learner)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(control, normalized=False, special=True) for control in controls])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
        model_max_length=8192,
    )


def _merges(tokenizer: Tokenizer) -> list[list[str]]:
    merges: list[list[str]] = json.loads(tokenizer.to_str())["model"]["merges"]
    return merges


def family_model(folder: Path, family: str) -> Path:
    """Save a seeded model of a family with its tokenizer: 4 layers of 4 query heads on 2 key heads, 16 wide."""
    configuration, model_class, special = MODELS[family]
    tokenizer = family_tokenizer(family)
    torch.manual_seed(7)
    config = configuration(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=0,
        **special,
    )
    transformers_logging.disable_progress_bar()
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
