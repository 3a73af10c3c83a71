"""How fast a list is scored, and in how much memory: ours, without each shortcut, and the other ways, in one run.

    python benchmarks/speed.py --shape 0.6b --passages 20 --quick        # about 10 minutes on two cores
    python benchmarks/speed.py --shape 0.6b --layers 6 --passages 20 100 --quick
    python benchmarks/speed.py --shape 0.6b --layers 6 --ways agh --passages 20 50 100 200 400   # a line over passages
    python benchmarks/speed.py --shape 4b --passages 20 40 100 --device cuda

The weights are random numbers of Qwen3's true sizes; passages are 100 words of real text. Ways take turns. Each way's
time goes from text to scores (the floor's from text to the end of the pass). Figures are medians; `CPU s` is the time
of all threads, which a busy machine changes less. `/ floor` divides by the plain truncated prefill; `ref /` and `gpt /`
say how many times slower the reference way and RankGPT are. `of ceil.` is the share of what one large linear layer
reaches, `pass MiB` the peak above what was held before (weights, cached keys), `mem /` that over the plain truncated
prefill's. `differ.` and `rho` compare scores with ours: largest difference as a share of the largest score, rank
correlation.

Every reading is kept in speed.json at once: the same command goes on where it was stopped, `--fresh` starts anew.
RankGPT's replies are generated to their end, then replaced by the given order: random weights write garbage.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from speed.meter import ceilings, measure
from speed.models import SHAPES, Shape, find_tokenizer, ranking, real_passages, save_random_model
from speed.report import draw, fits, heading, line, summarised
from speed.ways import Loaded, Way, built, load_models, ways

from headrank_pipeline.attention.model import choose_device, choose_dtype

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
WHOLE = set("bcd")  # ways that run layers above the deepest head


def main() -> None:
    chosen = arguments()
    shape = cut(SHAPES[chosen.shape], chosen.layers, chosen.depth)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = choose_device(chosen.device)
    dtype = choose_dtype(chosen.dtype, device)
    chosen.output.mkdir(parents=True, exist_ok=True)
    book = Book(chosen.output / "speed.json", settings(chosen, shape, device, dtype), fresh=chosen.fresh)
    book.ceilings = book.ceilings or ceilings(shape.hidden, shape.mlp, dtype, device)
    print(
        f"linear layer: {gigaflops(book.ceilings['stock'])} stock, {gigaflops(book.ceilings['ours'])} ours", flush=True
    )
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(shape, find_tokenizer(chosen.data), Path(folder))
        whole = bool(WHOLE & set(chosen.ways))
        models = load_models(Path(folder), shape, str(device), chosen.dtype, whole=whole)
        book.loading = models.loading
        for name, took in models.loading.items():
            peak = "" if took["mebibytes"] is None else f", {took['mebibytes']:,.0f} MiB at the peak"
            print(
                f"loading the {name} model: {took['seconds']:.1f} s, {took['cpu_seconds']:.1f} s of CPU time{peak}",
                flush=True,
            )
        timed = list(ways(models, chosen.ways, slow_repeats=1 if chosen.quick else chosen.repeats))
        run(timed, models, shape, book, chosen)
    finish(
        book,
        chosen.output,
        f"Qwen3-{shape.name.upper()}, {shape.depth} of {shape.layers} layers, {dtype}".replace("torch.", ""),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.6b")
    parser.add_argument("--layers", type=int, help="layers of the whole model; the depth shrinks with it")
    parser.add_argument("--depth", type=int, help="layers that the heads need; default: about 70 %% of them")
    parser.add_argument("--passages", type=int, nargs="+", default=[20, 40, 100])
    parser.add_argument("--words", type=int, default=100, help="words per passage")
    parser.add_argument("--ways", default="abcdefgh", help="letters of speed/ways.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two repeats, slow ways once")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", type=Path, default=BESIDE if BESIDE.is_dir() else None)
    parser.add_argument("--output", type=Path, default=Path("build/speed"))
    parser.add_argument("--fresh", action="store_true", help="forget what speed.json holds")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.repeats = 2
    if unknown := set(chosen.ways) - set("abcdefgh"):
        parser.error(f"--ways {chosen.ways}: {''.join(sorted(unknown))} not among abcdefgh")
    return chosen


def cut(shape: Shape, layers: int | None, depth: int | None) -> Shape:
    layers = layers or shape.layers
    depth = depth or max(2, round(shape.depth * layers / shape.layers))
    if not 2 <= depth <= layers:
        raise SystemExit(f"--depth {depth}: expected 2 to {layers}, the model's layers")
    return replace(shape, layers=layers, depth=depth)


def settings(chosen: argparse.Namespace, shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What must be equal for readings to stand in one table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "shape": asdict(shape),
        "words": chosen.words,
        "dtype": str(dtype),
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "real_text": chosen.data is not None,
    }


class Book:
    """Readings of all ways, on the disk after each."""

    def __init__(self, path: Path, settings: dict[str, Any], *, fresh: bool) -> None:
        self.path, self.settings = path, settings
        self.measured: dict[str, Any] = {}
        self.ceilings: dict[str, float] = {}
        self.loading: dict[str, Any] = {}
        if path.is_file() and not fresh:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] != settings:
                raise SystemExit(
                    f"{path}: measured with {kept['settings']}, not {settings}; name another --output, or --fresh"
                )
            self.measured, self.ceilings = kept["measured"], kept["ceilings"]

    def entry(self, way: Way, passages: int, tokens: int, flops: float | None) -> dict[str, Any]:
        fields = {"letter": way.letter, "name": way.name, "passages": passages, "tokens": tokens}
        fields |= {"flops": flops, "same_scores": way.same_scores, "scores": None, "readings": []}
        return self.measured.setdefault(f"{way.name}, {passages}", fields)

    def save(self) -> None:
        rows = summarised(self.measured, self.ceilings)
        record = {"settings": self.settings, "ceilings": self.ceilings, "loading": self.loading}
        record |= {"rows": [{k: v for k, v in row.items() if k != "scores"} for row in rows], "measured": self.measured}
        self.path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def run(timed: list[Way], models: Loaded, shape: Shape, book: Book, chosen: argparse.Namespace) -> None:
    device = models.truncated.model.device
    lists = {count: ranking(real_passages(chosen.data, count, chosen.words)) for count in chosen.passages}
    lengths = {}
    for count in chosen.passages:
        prompt = built(models.truncated, lists[count])
        lengths[count] = len(prompt.result)
        print(f"{count} passages: {lengths[count]} tokens, built in {1000 * prompt.seconds:.0f} ms", flush=True)
    print(f"estimate: {estimate(timed, lengths, shape, book, chosen.repeats) / 60:.0f} minutes", flush=True)
    small = ranking(real_passages(chosen.data, 2, chosen.words))
    for way in timed:
        if way.letter not in "f":
            way.run(small)  # kernels are compiled, buffers allocated
    print(heading())
    for repeat in range(chosen.repeats):
        for count in chosen.passages:
            tokens = lengths[count]
            for way in timed:
                flops = None if way.layers is None else shape.prefill_flops(tokens, way.layers)
                entry = book.entry(way, count, tokens, flops)
                if len(entry["readings"]) > repeat or repeat >= way.repeats:
                    continue
                if reason := way.why_not(tokens):
                    print(f"{way.letter}  {way.name}, {count} passages: left out, {reason}", flush=True)
                    continue
                way.prepare(lists[count])
                reading = measure(lambda way=way, count=count: way.run(lists[count]), device).shared(way.lists)
                entry["readings"].append(reading.record())
                entry["scores"] = reading.result
                book.save()
                if repeat == 0:
                    found = summarised(book.measured, book.ceilings)
                    print(
                        line(next(row for row in found if (row["name"], row["passages"]) == (way.name, count))),
                        flush=True,
                    )


def estimate(timed: list[Way], lengths: dict[int, int], shape: Shape, book: Book, repeats: int) -> float:
    """Return seconds: products at 70 % of the ceiling; a generated token takes as long as reading all weights."""
    total = 0.0
    for way in timed:
        for count, tokens in lengths.items():
            done = len(book.measured.get(f"{way.name}, {count}", {}).get("readings", []))
            left = max(0, min(repeats, way.repeats) - done)
            flops = shape.prefill_flops(tokens, way.layers or shape.layers / 2)
            written = 136 * max(1, count // 10 - 1) * shape.layers * shape.layer_weights * 4 / 20e9
            seconds = flops / (0.7 * book.ceilings["stock"]) + (written if way.letter == "f" else 0.0)
            total += left * way.lists * seconds
    return total


def finish(book: Book, output: Path, title: str) -> None:
    book.save()
    rows = summarised(book.measured, book.ceilings)
    print(f"\n{title}: medians\n{heading()}")
    for row in rows:
        print(line(row))
    for fitted in fits(rows):
        print(fitted)
    draw(rows, title, output / "speed.png")
    print(f"{output / 'speed.json'}, {output / 'speed.png'}")


def gigaflops(value: float) -> str:
    return f"{value / 1e9:,.0f} GFLOP/s"


if __name__ == "__main__":
    main()
