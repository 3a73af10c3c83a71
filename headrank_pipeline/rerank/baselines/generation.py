"""Whole causal language models: batched generation, and the logits of some tokens at the next position."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from headrank_pipeline.attention.model import (
    choose_device,
    choose_dtype,
    load_causal,
    load_tokenizer,
    prefer_flash_attention,
    quiet_transformers,
    source_of,
)
from headrank_pipeline.attention.model_files import load_config, named_model
from headrank_pipeline.attention.recipe import check_vocabulary
from headrank_pipeline.rerank.baselines.decoding import Decoding

__all__ = ["CausalModel", "Generated", "ModelSettings"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a model is loaded and fed.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, …
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.
        revision: branch, tag or commit of a Hugging Face model.
        max_prompt_tokens: budget of a prompt; None for what the model's positions leave.
        batch_tokens: padded tokens of one batch, room for the answers included; one longer prompt goes alone.
    """

    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    max_prompt_tokens: int | None = None
    batch_tokens: int = 16384

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: expected at least 1")


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids that a model wrote, without the end-of-turn token.

    Args:
        token_ids: may be empty.
        count: tokens written, the end-of-turn token included.
        cut: ended at the limit.
    """

    token_ids: tuple[int, ...]
    count: int
    cut: bool


class CausalModel:
    """A causal language model with its head, its tokenizer, and what identifies it.

    Args:
        model: what `headrank` takes.
        loading: how to load and feed it.

    Raises:
        FileNotFoundError: no such folder, file or model, or one without weights or tokenizer.
        MissingPrerequisite: a GPU was named and there is none, or a GGUF file without what reads it.
        ValueError: a checkpoint that is damaged or lacks weights, or a budget beyond the model's positions.
    """

    def __init__(self, model: str | Path, loading: ModelSettings) -> None:
        name, device = str(named_model(model)), choose_device(loading.device)
        config = load_config(name, loading.revision)
        self.source = source_of(name, config, loading.revision)
        self.batch_tokens = loading.batch_tokens
        budget = loading.max_prompt_tokens
        if budget is not None and budget > self.source.max_positions:
            raise ValueError(f"max_prompt_tokens {budget}: {name} was made for {self.source.max_positions} positions")
        self.max_prompt_tokens = budget
        self.tokenizer: Any = load_tokenizer(name, loading.revision)
        self._model = load_causal(name, config, loading.revision, choose_dtype(loading.dtype, device))
        check_vocabulary(name, self._model, self.tokenizer)
        prefer_flash_attention(device)
        self._model.to(device=device)
        self._ends = _ends(self._model.generation_config.eos_token_id, self.tokenizer.eos_token_id)
        # Its own sampling and penalties would fill every gap of ours.
        self._model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        logger.info("loaded %s (%d layers) on %s", name, self.source.layers, device)

    def describe(self) -> dict[str, Any]:
        """Return model, revision, fingerprint, dtype, device and budgets as JSON-ready values."""
        return {
            "model": self.source.label,
            "revision": self.source.revision,
            "fingerprint": self.source.fingerprint,
            "layers_run": self.source.layers,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._model.device.type,
            "max_prompt_tokens": self.max_prompt_tokens,
            "batch_tokens": self.batch_tokens,
        }

    def origins(self) -> dict[str, str]:
        """Return where the model lies."""
        return {"model": self.source.name}

    def prompt_budget(self, answer_tokens: int) -> int:
        """Return how many tokens a prompt may have if that many are to be written after it.

        Raises:
            ValueError: nothing is left.
        """
        left = self.source.max_positions - answer_tokens
        if left < 1:
            raise ValueError(
                f"max_new_tokens {answer_tokens}: {self.source.name} was made for {self.source.max_positions} "
                f"positions, which leaves none for a prompt; give fewer"
            )
        return left if self.max_prompt_tokens is None else min(left, self.max_prompt_tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, decoding: Decoding) -> list[Generated]:
        """Return what the model writes after each prompt, batched by length; padding stands on the left."""
        found: dict[int, Generated] = {}
        for batch in self._batches([len(prompt) for prompt in prompts], max_new_tokens):
            rows = [prompts[index] for index in batch]
            found.update(zip(batch, self._generate(rows, max_new_tokens, decoding), strict=True))
        return [found[index] for index in range(len(prompts))]

    def next_logits(self, prompts: Sequence[Sequence[int]], token_ids: Sequence[int]) -> Tensor:
        """Return the logits of some tokens after each prompt, in one forward pass per batch.

        Padding stands on the right, where a causal row never sees it: no mask is needed, and the vocabulary is only
        multiplied out for `token_ids`. A model that rescales its logits gives another scale, never another order.

        Returns:
            [B, K] float32 on the CPU, B prompts in the given order, K tokens.
        """
        logits = torch.empty(len(prompts), len(token_ids))
        with torch.inference_mode():
            for batch in self._batches([len(prompt) for prompt in prompts], 0):
                logits[batch] = self._next_logits([prompts[index] for index in batch], token_ids)
        return logits

    def rescaled_by(self) -> str | None:
        """Return the setting by which the model rescales its logits, or None."""
        config = self._model.config.get_text_config()
        settings = ("final_logit_softcapping", "logits_scaling", "logit_scale")
        return next((name for name in settings if getattr(config, name, None) not in (None, 1, 1.0)), None)

    def _batches(self, lengths: Sequence[int], answer_tokens: int) -> Iterator[list[int]]:
        """Yield indices, longest first, so that a batch with its padding and answers stays within `batch_tokens`."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            if batch and (len(batch) + 1) * (lengths[batch[0]] + answer_tokens) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _generate(self, prompts: list[Sequence[int]], max_new_tokens: int, decoding: Decoding) -> list[Generated]:
        ids, mask = self._padded(prompts, left=True)
        with torch.inference_mode(), torch.random.fork_rng(devices=self._cuda()), quiet_transformers():
            torch.manual_seed(_seed(decoding.seed, prompts))
            written = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=_generation_config(max_new_tokens, decoding, sorted(self._ends), self._pad()),
            )
        return [self._generated(row, max_new_tokens) for row in written[:, ids.shape[1] :].tolist()]

    def _generated(self, row: list[int], max_new_tokens: int) -> Generated:
        end = next((place for place, token in enumerate(row) if token in self._ends), None)
        if end is None:
            return Generated(tuple(row), len(row), cut=len(row) >= max_new_tokens)
        return Generated(tuple(row[:end]), end + 1, cut=False)

    def _next_logits(self, prompts: list[Sequence[int]], token_ids: Sequence[int]) -> Tensor:
        ids, mask = self._padded(prompts, left=False)
        hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        rows = hidden[torch.arange(len(prompts), device=hidden.device), mask.sum(1) - 1]
        head = self._model.get_output_embeddings()
        wanted = torch.tensor(list(token_ids), device=hidden.device)
        bias = 0.0 if head.bias is None else head.bias[wanted].float()
        logits: Tensor = rows.float() @ head.weight[wanted].float().T + bias
        return logits.cpu()

    def _padded(self, prompts: list[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self._pad(), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            span = slice(longest - len(prompt), longest) if left else slice(0, len(prompt))
            ids[row, span] = torch.tensor(prompt, dtype=torch.int64)
            mask[row, span] = 1
        return ids.to(self._model.device), mask.to(self._model.device)

    def _pad(self) -> int:
        """Any token will do: padding is masked, or stands where nothing sees it."""
        pad: int | None = self.tokenizer.pad_token_id
        return pad if pad is not None else min(self._ends, default=0)

    def _cuda(self) -> list[torch.device]:
        return [self._model.device] if self._model.device.type == "cuda" else []


def _ends(*given: int | list[int] | None) -> frozenset[int]:
    """Every token that ends a turn, as model and tokenizer name them: for chat models they often differ."""
    ends: set[int] = set()
    for tokens in given:
        ends.update(tokens if isinstance(tokens, list) else [] if tokens is None else [tokens])
    return frozenset(ends)


def _generation_config(max_new_tokens: int, decoding: Decoding, ends: list[int], pad: int) -> GenerationConfig:
    sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=decoding.temperature > 0,
        num_beams=1,
        eos_token_id=ends or None,
        pad_token_id=pad,
        **(sampling if decoding.temperature > 0 else {}),
    )


def _seed(seed: int, prompts: Sequence[Sequence[int]]) -> int:
    """A continued run must draw for a batch what an uninterrupted one draws."""
    drawn_for = repr((seed, [tuple(prompt) for prompt in prompts]))
    return int.from_bytes(sha256(drawn_for.encode()).digest()[:8])
