"""GGUF files as models: which are taken, and what transformers must be told to read one as it was meant.

Transformers unpacks the weights and rebuilds configuration and tokenizer. What it would leave out without a word
(scaled positions, tensors that it has no place for) is looked for here first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

__all__ = ["read_config", "read_tokenizer", "weights_of"]

_LAYER = {
    f"{part}.weight"
    for part in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
}
# Every tensor that a layer of the family has in llama.cpp's files, and that transformers' model has a place for.
_FAMILIES = {
    "llama": _LAYER,
    "qwen2": _LAYER | {"attn_q.bias", "attn_k.bias", "attn_v.bias"},
    "qwen3": _LAYER | {"attn_q_norm.weight", "attn_k_norm.weight"},
}
_OUTSIDE = {"token_embd.weight", "output_norm.weight", "output.weight"}
_ROPE_FACTORS = "rope_freqs.weight"


def read_config(file: Path, name: str) -> Any:
    """Return the configuration of a GGUF file.

    Args:
        file: the file to read.
        name: name of the model, for messages.

    Raises:
        ValueError: a damaged file, a family that is not read here, or contents that transformers would leave out.
    """
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        facts, tensors = read_gguf_metadata(str(file))
    except (ValueError, IndexError, struct.error) as error:
        raise _damaged(name, error) from error
    family = facts["general.architecture"]
    _check_contents(name, family, facts, tensors)
    try:
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise _damaged(name, error) from error
    if width := facts.get(f"{family}.attention.key_length"):
        config.head_dim = width  # transformers keeps its own default for Qwen
    if _ROPE_FACTORS in tensors:
        _take_llama3_positions(file, name, config)
    return config


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"model {name}: no GGUF file that can be read ({error}); copy or download it again")


def _check_contents(name: str, family: str, facts: dict[str, Any], tensors: tuple[str, ...]) -> None:
    if family not in _FAMILIES:
        raise ValueError(
            f"model {name}: a GGUF file of architecture {family!r}; expected one of {', '.join(_FAMILIES)}: name the "
            f"model's folder or Hugging Face name instead"
        )
    advice = "name the model's folder or Hugging Face name instead"
    if (parts := facts.get("split.count", 1)) > 1:
        raise ValueError(f"model {name}: one of {parts} files of a model; join them (llama-gguf-split --merge)")
    if (scaling := facts.get(f"{family}.rope.scaling.type", "none")) != "none":
        raise ValueError(
            f"model {name}: its positions are scaled ({scaling}), which transformers does not take from a GGUF file; "
            f"{advice}"
        )
    widths = {
        facts[key]
        for part in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        if (key := f"{family}.{part}") in facts
    }
    if len(widths) > 1:
        raise ValueError(
            f"model {name}: keys, values and rotary positions are of different widths ({sorted(widths)}); expected "
            f"one for all; {advice}"
        )
    known = _OUTSIDE | {_ROPE_FACTORS} if family == "llama" else _OUTSIDE
    strange = [
        tensor
        for tensor in tensors
        if tensor not in known and not (tensor.startswith("blk.") and tensor.split(".", 2)[-1] in _FAMILIES[family])
    ]
    if strange:
        raise ValueError(
            f"model {name}: {len(strange)} tensors that a {family} model has no place for ({', '.join(strange[:3])}, "
            f"…), so that it would be read wrongly; {advice}"
        )


def _take_llama3_positions(file: Path, name: str, config: Any) -> None:
    """Llama 3.1 and later keep what their positions are divided by as a tensor, which transformers does not read.

    Raises:
        ValueError: other values than Llama's own rule gives.
    """
    from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict

    factors = load_gguf_state_dict(GgufHeader.from_file(str(file)))[_ROPE_FACTORS][...].float()
    theta = config.rope_parameters["rope_theta"]
    config.rope_parameters = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    ours, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / theta ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    if ours.shape != factors.shape or not torch.allclose(ours, plain / factors, rtol=1e-4, atol=0.0):
        raise ValueError(
            f"model {name}: its {_ROPE_FACTORS} is not what Llama 3.1's rule for positions gives; name the model's "
            f"folder or Hugging Face name instead"
        )


def read_tokenizer(file: Path) -> Any:
    """Return the tokenizer of a GGUF file, whatever else lies in its folder.

    Raises:
        OSError: it has none.
        ValueError: one of a kind that transformers does not rebuild.
    """
    # Transformers would take a tokenizer.json or a chat template from the folder, where files of several models lie.
    with TemporaryDirectory() as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        try:
            tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(alone, gguf_file=file.name)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file.name} states none that can be rebuilt: {error!r}") from error
    tokenizer.name_or_path = str(file)
    return tokenizer


def weights_of(file: Path) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that make a plain model of a GGUF file, as of unpacked weights."""
    from transformers import GgufConfig

    # Unpacked, so that nothing of the model is of a kind of its own; transformers then leaves no trace of the file.
    return {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
