"""torch.compile and CUDA graphs, tried on the layers of a prefill: seconds, differences, what compiling takes.

    python benchmarks/compiled.py --shape 4b --tokens 512 3000 15000 --output build/compiled.json      # on a GPU
    python benchmarks/compiled.py --shape tiny --tokens 40 90                                          # anywhere

The layers that heads need (random weights of Qwen3's true sizes) run over embedded tokens, as they are, and:

- *graph*: launched as one CUDA graph, which is captured for each length; on a CPU there are none;
- *mlp and norms compiled*: the MLP and the norms of each layer, one compilation for all lengths;
- *layers compiled*: each layer whole, with PyTorch's attention, one compilation for all lengths.

What a way saves is what it could save a query, whose reading of heads comes on top. A way that ends in an error is a
row that says so. Seconds are medians; those of the first call, with capture or compiling, stand apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from speed.meter import ceilings, measure
from speed.models import SHAPES, find_tokenizer, save_random_model

from headrank_pipeline.attention.model import choose_device, choose_dtype, load

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
Run = Callable[[torch.Tensor], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 3000, 15000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--output", type=Path, help="JSON of the rows")
    chosen = parser.parse_args()
    device = choose_device(chosen.device)
    shape = SHAPES[chosen.shape]
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(shape, find_tokenizer(BESIDE if BESIDE.is_dir() else None), Path(folder))
        model = load(folder, shape.head_set, device=str(device), dtype=chosen.dtype).model
    ceiling = max(ceilings(shape.hidden, shape.mlp, choose_dtype(chosen.dtype, device), device).values())
    rows = []
    for row in tried(model, chosen.tokens, chosen.repeats, device):
        if "seconds" in row:
            row["of_ceiling"] = shape.prefill_flops(row["tokens"], shape.depth) / row["seconds"] / ceiling
        rows.append({"shape": shape.name, **row})
        print(json.dumps(rows[-1]), flush=True)
        if chosen.output:
            chosen.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def tried(model: Any, lengths: list[int], repeats: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield a row for each way and length: seconds, those of the first call, largest difference to the layers alone."""
    torch.manual_seed(0)
    given = {n: model.embed_tokens(torch.randint(0, 1000, (1, n), device=device)) for n in lengths}
    expected = {}
    for name, make in (
        ("as they are", plain),
        ("graph", graph),
        ("mlp and norms compiled", parts),
        ("layers compiled", whole),
    ):
        try:
            run = make(model, device)
        except RuntimeError as error:
            yield {"way": name, "failed": str(error).splitlines()[0]}
            continue
        for length in lengths:
            row: dict[str, Any] = {"way": name, "tokens": length}
            try:
                first = measure(lambda run=run, length=length: run(given[length]), device)
                again = [measure(lambda run=run, length=length: run(given[length]), device) for _ in range(repeats)]
            except Exception as error:  # noqa: BLE001  # whatever a compiler raises is what is to be told
                yield row | {"failed": f"{type(error).__name__}: {(str(error) or '-').splitlines()[0][:200]}"}
                break
            found = again[-1].result.float()
            exact = expected.setdefault(length, found.clone())
            row |= {"seconds": statistics.median(one.seconds for one in again), "first_seconds": first.seconds}
            yield row | {"difference": float((found - exact).abs().max() / exact.abs().max())}


def plain(model: Any, device: torch.device) -> Run:
    """Return hidden states [1, N, h] -> those after the last layer that is loaded."""

    def run(hidden: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(hidden.shape[1], device=device)[None]
        turned = model.rotary_emb(hidden, positions)
        for layer in model.layers:
            hidden = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=turned)
        return hidden

    return run


def graph(model: Any, device: torch.device) -> Run:
    if device.type != "cuda":
        raise RuntimeError("a CPU has no CUDA graphs")
    run, captured = plain(model, device), {}

    def replayed(hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape not in captured:
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            fixed = hidden.clone()
            with torch.cuda.stream(side):
                for _ in range(3):  # libraries and kernels are loaded before what is captured
                    run(fixed)
            torch.cuda.current_stream(device).wait_stream(side)
            made = torch.cuda.CUDAGraph()
            with torch.cuda.graph(made):
                result = run(fixed)
            captured[hidden.shape] = (made, fixed, result)
        made, fixed, result = captured[hidden.shape]
        fixed.copy_(hidden)
        made.replay()
        return result

    return replayed


def parts(model: Any, device: torch.device) -> Run:
    """Compile what lies between products and attention; this stays, so it comes after the ways that do without."""
    for layer in model.layers:
        for piece in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            piece.compile(dynamic=True)
    return plain(model, device)


def whole(model: Any, device: torch.device) -> Run:
    torch._dynamo.config.recompile_limit = max(64, 2 * len(model.layers))  # its number is a constant in each layer
    model.set_attn_implementation("sdpa")
    for layer in model.layers:
        for piece in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            piece._compiled_call_impl = None
        layer.compile(dynamic=True)
    return plain(model, device)


if __name__ == "__main__":
    main()
