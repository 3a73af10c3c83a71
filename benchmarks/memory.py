"""Peak memory of reading every head against the prompt length: ours, and eager `output_attentions`.

    python benchmarks/memory.py                 # N = 2048, 4096, 8192
    python benchmarks/memory.py --eager-up-to 4096

Each measurement runs in a process of its own (peak resident memory is a high-water mark). A model of 8 layers x 8 heads
with random weights, float32, CPU; the figure is the peak above the memory held before the pass. What grows with N x N
quadruples from row to row; what grows with N doubles.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys

import numpy as np

LENGTHS = (2048, 4096, 8192)
ROWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eager-up-to", type=int, default=4096, help="longest prompt given to the eager way [tokens]")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(measure(arguments.one[0], int(arguments.one[1])))
        return
    print(f"{'tokens':>8} {'tap, all heads [MiB]':>22} {'eager [MiB]':>14}")
    for length in LENGTHS:
        ours = in_new_process("tap", length)
        eager = f"{in_new_process('eager', length):.0f}" if length <= arguments.eager_up_to else "-"
        print(f"{length:>8} {ours:>22.0f} {eager:>14}", flush=True)


def in_new_process(way: str, length: int) -> float:
    command = [sys.executable, __file__, "--one", way, str(length)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(way: str, length: int) -> float:
    """Return peak resident memory of one pass above what was held before it, in MiB."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    from headrank_pipeline.attention.heads import all_heads
    from headrank_pipeline.attention.model import LoadedModel, ModelSource
    from headrank_pipeline.attention.prompt import Prompt
    from headrank_pipeline.attention.reader import AttentionReader
    from headrank_pipeline.attention.tap import IMPLEMENTATION, register

    torch.manual_seed(0)
    register()
    config = Qwen3Config(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=16384,
        attn_implementation=IMPLEMENTATION if way == "tap" else "eager",
    )
    model = Qwen3Model(config).eval()
    ids = np.arange(length, dtype=np.int64) % 1000
    spans = np.array([[start, start + 100] for start in range(10, length - 200, 100)])
    prompt = Prompt(ids, spans, (length - ROWS, length), length - ROWS, {}, (), "")
    source = ModelSource("random", None, "", 8, 8, 16384)
    short = Prompt(ids[:64], spans[:0], (32, 64), 32, {}, (), "")
    run = (
        AttentionReader(LoadedModel(model, None, all_heads(8, 8), source), batch_tokens=length).read
        if way == "tap"
        else lambda prompts: model(torch.tensor(prompts[0].token_ids)[None], output_attentions=True).attentions
    )
    with torch.inference_mode():
        run([short])  # buffers that any pass needs
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run([prompt])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
