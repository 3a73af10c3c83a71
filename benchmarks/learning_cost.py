"""Time and peak memory of selecting heads and of training, on random weights of Qwen3's shapes.

    python benchmarks/learning_cost.py selection                      # 0.6B shape: select-heads against a plain forward
    python benchmarks/learning_cost.py training --shape 4b            # LoRA, 20-passage lists; needs a GPU
    python benchmarks/learning_cost.py training --shape 0.6b --layers 6   # what a CPU can do
    python benchmarks/learning_cost.py activations --shape 4b --layers 3  # bytes kept for the backward pass, counted

Lists of 20 passages of the demo collection, its first queries, the product's prompt. Each measurement runs in a process
of its own: peak resident memory on a CPU, peak allocated memory on a GPU, weights included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

SHAPES = {
    "tiny": dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=16),  # no model's
    "0.6b": dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16),
    "1.7b": dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
    "4b": dict(hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32),
}
VOCABULARY = 151936
PASSAGES = 20
COLUMNS = (("tokens", 7, 0), ("seconds", 11, 2), ("peak", 11, 0), ("weights", 14, 0))  # name, width, digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["selection", "training", "activations"])
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--layers", type=int, help="layers kept; default: all to select, 70 %% to train")
    parser.add_argument("--lists", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the weights, to select and to train")
    parser.add_argument("--repeat", type=int, default=4, help="demo passages joined to one, for lists of real length")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, arguments)))
        return
    if arguments.what == "activations":
        print(json.dumps(activations(arguments)))
        return
    ways = {"selection": ("plain", "select"), "training": ("lora", "lora+recompute")}[arguments.what]
    print(f"{'way':<16} {'tokens':>7} {'s per list':>11} {'peak [MiB]':>11} {'of it weights':>14}")
    for way in ways:
        found = in_new_process(way)
        numbers = [f"{found[name]:>{width}.{digits}f}" for name, width, digits in COLUMNS]
        print(f"{way:<16}", *numbers, flush=True)


def in_new_process(way: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", way]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return prompt tokens, seconds per list, peak memory and weights in MiB."""
    import torch

    from headrank_pipeline.attention.reader import AttentionReader
    from headrank_pipeline.attention.recipe import HEADRANK
    from headrank_pipeline.learn.scorer import ListScorer

    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    loaded = random_model(arguments, selects=arguments.what == "selection", dtype=dtype)
    lists = demo_lists(arguments.lists, arguments.repeat)
    scorer = ListScorer(AttentionReader(loaded), HEADRANK)
    tokens = sum(len(prompt) for prompt in scorer.prompts(lists)) / len(lists)
    weights = sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())
    device = loaded.model.device
    if device.type == "cuda":  # the first pass loads libraries and kernels
        scorer.scores(lists[:1])
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    {"plain": plain, "select": select}.get(way, train)(way, loaded, lists, scorer)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # plain passes are only queued
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    seconds = (time.perf_counter() - began) / len(lists)
    return {"tokens": round(tokens), "seconds": seconds, "peak": peak, "weights": weights / 2**20}


def plain(way: str, loaded, lists, scorer) -> None:
    """The same prompts through all layers with stock attention; nothing is read."""
    import torch

    loaded.model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        for prompt in scorer.prompts(lists):
            loaded.model(torch.tensor(prompt.token_ids)[None].to(loaded.model.device), use_cache=False)


def select(way: str, loaded, lists, scorer) -> None:
    from headrank_pipeline.learn.selection import select_heads

    select_heads(loaded, scorer.reading, lists)


def train(way: str, loaded, lists, scorer) -> None:
    from headrank_pipeline.learn.schedule import TrainingConfig
    from headrank_pipeline.learn.trainer import Trainer, TrainingData

    config = TrainingConfig(epochs=1, lists_per_step=1, list_size=None, checkpoint_activations="recompute" in way)
    with tempfile.TemporaryDirectory() as directory:
        Trainer(loaded, scorer.reading, TrainingData(lists), config, directory=directory).run()


def activations(arguments: argparse.Namespace) -> dict[str, float]:
    """Count what autograd keeps of one list for the backward pass, with LoRA in bfloat16: in all, and per layer more.

    Storages are counted once, weights not at all. A GPU keeps the same tensors; its allocator adds a share of its own.
    """
    import torch

    from headrank_pipeline.attention.reader import AttentionReader
    from headrank_pipeline.attention.recipe import HEADRANK
    from headrank_pipeline.learn.movable import set_movable
    from headrank_pipeline.learn.scorer import ListScorer

    kept: dict[int, float] = {}
    for layers in (arguments.layers - 1, arguments.layers):
        arguments.layers = layers
        loaded = random_model(arguments, selects=False, dtype=torch.bfloat16)
        set_movable(loaded.model, "lora")
        own = {weight.untyped_storage().data_ptr() for weight in loaded.model.parameters()}
        scorer = ListScorer(AttentionReader(loaded), HEADRANK)
        prompts = scorer.prompts(demo_lists(1, arguments.repeat))
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor, own: set = own, storages: dict = storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast(loaded.model.device.type, torch.bfloat16):
            scores = scorer.forward(prompts)  # alive until counted, so that no storage is used twice
        kept[layers] = sum(storages.values()) / 2**20
        del scores
    deep, shallow = kept[arguments.layers], kept[arguments.layers - 1]
    return {
        "tokens": len(prompts[0]),
        "per_layer_mib": deep - shallow,
        "with_all_mib": deep,
        "layers": arguments.layers,
    }


def random_model(arguments: argparse.Namespace, *, selects: bool, dtype=None):
    """Return a model of the shape with random weights: all heads to select, 16 of the upper half to train."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

    from headrank_pipeline.attention.heads import HeadSet, all_heads
    from headrank_pipeline.attention.model import (
        LoadedModel,
        ModelSource,
        choose_device,
        choose_dtype,
        prefer_flash_attention,
    )
    from headrank_pipeline.attention.model_files import embedded_model
    from headrank_pipeline.attention.tap import IMPLEMENTATION, register

    shape = dict(SHAPES[arguments.shape])
    whole, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
    shape["num_hidden_layers"] = arguments.layers or (whole if selects else round(0.7 * whole))
    register()
    torch.manual_seed(0)
    device = choose_device(arguments.device)
    prefer_flash_attention(device)
    config = Qwen3Config(
        vocab_size=VOCABULARY, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, **shape,
        attn_implementation=IMPLEMENTATION, dtype=dtype or choose_dtype("auto", device),
    )  # fmt: skip
    with device:
        model = Qwen3Model._from_config(config, dtype=config.dtype).eval().requires_grad_(False)
    depth = config.num_hidden_layers
    chosen = (
        all_heads(depth, heads)
        if selects
        else HeadSet("16", tuple((depth - 1 - i % max(1, depth // 4), i % heads) for i in range(16)))
    )
    source = ModelSource(f"random-{arguments.shape}", None, "", depth, heads, 40960)
    return LoadedModel(model, AutoTokenizer.from_pretrained(embedded_model()), chosen, source)


def demo_lists(count: int, repeat: int):
    """Return lists of demo passages with grades of the demo's judgments, 1 for one passage at least."""
    from headrank_pipeline.learn.lists import GradedList
    from headrank_pipeline.passages import read_corpus
    from headrank_pipeline.records import Candidate, Query, Ranking
    from headrank_pipeline.trec import read_topics

    demo = Path(str(files("headrank_pipeline") / "resources" / "demo"))
    passages = list(read_corpus(demo / "corpus.jsonl"))
    queries = read_topics(demo / "queries.jsonl")
    lists = []
    for number in range(count):
        candidates = []
        for i in range(PASSAGES):
            joined = [passages[(number * 53 + i * 7 + j) % len(passages)].text for j in range(repeat)]
            candidates.append(Candidate(f"d{i}", -float(i), " ".join(joined)))
        ranking = Ranking(Query(f"q{number}", queries[number % len(queries)].text), tuple(candidates))
        lists.append(GradedList(ranking, tuple([2, 1, 1] + [0] * (PASSAGES - 3))))
    return lists


if __name__ == "__main__":
    main()
