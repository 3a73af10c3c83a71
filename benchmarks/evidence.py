"""The evidence for learning in attention space: what selection, alignment and each of their parts are worth.

    python benchmarks/evidence.py --model MODEL --data ../shared/data --output runs/evidence

Heads are selected, models aligned, and the weight beside BM25 chosen on training lists of six collections (ANTIQUE,
Cranfield, NFCorpus, HotpotQA, MuSiQue, RankZephyr's sample), drawn anew for each seed; SciFact test, DL19, NovelEval
and the demo collection are only evaluated. Writes evidence.json (every figure), evidence.md and evidence.png.
Everything on the way is kept in the output folder, so that the same command goes on where it was stopped; other
settings need another folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from evidence.data import UNSEEN, Judged, judged_collections, shortened, split_lists
from evidence.experiment import MEASURE, Experiment
from evidence.frozen import all_heads_by_icr, read_all_heads, scored_by_heads, selected_heads
from evidence.learned import (
    ABLATIONS,
    ALIGNED,
    FULL,
    SELECTED,
    align,
    chosen_weight,
    fused_by_rank,
    model_folder,
    reranked,
    with_first_stage,
)
from evidence.orders import reranked_in_orders
from evidence.report import Comparison, Results, middle_zones, picture, planned_tests, tables, zones_table
from evidence.settings import ALIGNMENT, setting

from headrank_pipeline.comparison.biases import order_sensitivity
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.comparison.tables import Column, Table
from headrank_pipeline.experiment.directory import environment
from headrank_pipeline.files import write_json
from headrank_pipeline.learn.settings import CRITERIA, SelectionConfig

FIRST_STAGE = "BM25"
ALL_HEADS = "all heads"
ICR = "all heads, ICR's rule"
MIXED, FUSED = f"{FULL}, interpolated", f"{FULL}, rank fusion"

PLANNED = (
    Comparison("selected heads against all heads", SELECTED, ALL_HEADS),
    Comparison("aligned against selected", FULL, SELECTED),
    *(Comparison(f"full against {name.removeprefix(f'{FULL}, ')}", FULL, name) for name in ABLATIONS),
    Comparison("rank fusion against BM25", FUSED, FIRST_STAGE),
    Comparison("interpolated against BM25", MIXED, FIRST_STAGE),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of the frozen model")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--passages", help="layout of the prompt: causal or isolated; default: what the model names")
    options.add_argument("--words", type=int, default=120, help="of a passage, where test collections are read")
    options.add_argument("--training-words", type=int, default=60, help="of a passage, in selection and training")
    options.add_argument("--num-heads", type=int, default=6)
    options.add_argument("--window", type=int, default=1, help="layers of the layer window")
    options.add_argument("--lists", type=int, nargs=3, default=(60, 211, 120), metavar=("SELECT", "ALIGN", "DEV"))
    options.add_argument("--order-queries", type=int, default=20, help="of each collection, for order sensitivity")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a training setting")
    options.add_argument("--quick", action="store_true", help="few queries, lists and steps: does everything run?")
    options.add_argument("--depth", type=int, default=50, help="candidates reranked at most; the others follow")
    options.add_argument("--dtype", default="bfloat16", help="of the weights, where test collections are read")
    options.add_argument("--cache", type=float, default=4.0, help="GiB for keys of isolated passages, per job")
    options.add_argument("--jobs", type=int, default=1, help="seeds at a time, each in a process of its own")
    options.add_argument("--threads", type=int, help="of torch")
    chosen = options.parse_args(arguments)
    _start(chosen.threads)
    if chosen.quick:
        chosen.lists, chosen.seeds, chosen.order_queries = (6, 9, 6), min(chosen.seeds, 2), 3
    run(
        chosen,
        command=shlex.join(["python", "benchmarks/evidence.py", *(sys.argv[1:] if arguments is None else arguments)]),
    )


def run(chosen: argparse.Namespace, *, command: str) -> None:
    collections = judged_collections(chosen.data, chosen.output / "candidates")
    if chosen.quick:
        collections = [shortened(one, chosen.output / "candidates", 4) for one in collections]
    collections = [replace(one, depth=min(one.depth, chosen.depth)) for one in collections]
    experiment = Experiment(
        model=chosen.model,
        output=chosen.output,
        collections=collections,
        reading={"passage_words": chosen.words, **({"passages": chosen.passages} if chosen.passages else {})},
        dtype=chosen.dtype,
        cache_bytes=int(chosen.cache * 2**30),
        training_words=chosen.training_words,
        selection=SelectionConfig(num_heads=chosen.num_heads, window=chosen.window),
        training={**ALIGNMENT, **dict(setting(text) for text in chosen.set)},
        command=command,
    )
    settings = {
        "model": chosen.model.name,
        "seeds": chosen.seeds,
        "lists": list(chosen.lists),
        "quick": chosen.quick,
        "reading": dict(experiment.reading),
        "depth": chosen.depth,
        "dtype": chosen.dtype,
        "training_words": chosen.training_words,
        "selection": asdict(experiment.selection),
        "training": dict(experiment.training),
    }
    _claim(chosen.output / "settings.json", settings)
    read_all_heads(experiment)
    frozen = _frozen(experiment)
    split_lists(chosen.data, chosen.output / "lists", seed=0, **_sizes(chosen))  # BM25 runs here, once
    if chosen.jobs > 1:
        _learn_apart(experiment, chosen)
    seeds = [_learned(experiment, chosen, seed) for seed in range(chosen.seeds)]
    learned = [about for _, about in seeds]
    # System -> collection -> runs, one per seed.
    runs = {FIRST_STAGE: [[run] for run in frozen[ALL_HEADS]], **{name: [[r] for r in frozen[name]] for name in frozen}}
    runs |= {
        name: [list(row) for row in zip(*(found[name] for found, _ in seeds), strict=True)] for name in seeds[0][0]
    }
    results = Results(
        {system: {c.name: [_per_query(system, run) for run in row] for c, row in zip(collections, rows, strict=True)}
         for system, rows in runs.items()}
    )  # fmt: skip
    records = planned_tests(results, PLANNED)
    by_name = {system: dict(zip((c.name for c in collections), rows, strict=True)) for system, rows in runs.items()}
    zones = middle_zones(by_name, collections, [SELECTED, FULL])
    orders = _orders(experiment, collections, chosen.order_queries)
    shown = tables(results, records)
    origin = f"Made by: {command}"
    write_json(chosen.output / "evidence.json", {
        "command": command, "settings": settings, "environment": environment(), "learned": learned,
        MEASURE: {system: {place: results.over_seeds(system, place) for place in ("unseen", *UNSEEN, "demo")}
                  for system in runs},
        "planned": records, "middle_zone": zones, "order_sensitivity": orders,
        "per_query": results.values,
    })  # fmt: skip
    page = "\n\n".join(
        [*(table.to_markdown() for table in [*shown, zones_table(zones), _orders_table(orders)]), origin]
    )
    (chosen.output / "evidence.md").write_text(page + "\n", encoding="utf-8")
    (chosen.output / "evidence.png").write_bytes(picture(results, FIRST_STAGE, origin).captioned_png)
    print(page)


def _frozen(experiment: Experiment) -> dict[str, list[FinishedRun]]:
    """Return the runs of systems that no seed changes: system -> one run per collection."""
    return {
        ICR: all_heads_by_icr(experiment, ICR),
        ALL_HEADS: scored_by_heads(experiment, ALL_HEADS, None),
    }


def _learned(
    experiment: Experiment, chosen: argparse.Namespace, seed: int
) -> tuple[dict[str, list[FinishedRun]], dict[str, Any]]:
    """Return the runs of one seed, and what was learned with it."""
    split = split_lists(chosen.data, chosen.output / "lists", seed=seed, **_sizes(chosen))
    heads = selected_heads(experiment, split.selection, split.files[0], seed)
    runs = {name: scored_by_heads(experiment, name, heads[name], seed=seed) for name in CRITERIA}
    reports = {}
    for system, (criterion, _) in ALIGNED.items():
        reports[system] = align(experiment, system, heads[criterion], split, seed)
        runs[system] = reranked(experiment, system, seed)
    weight, means = chosen_weight(experiment, FULL, split, seed)
    runs[FUSED] = fused_by_rank(experiment, FUSED, runs[FULL], seed)
    runs[MIXED] = with_first_stage(experiment, MIXED, runs[FULL], weight, seed)
    return runs, {"seed": seed, "heads": {name: chosen_heads.heads for name, chosen_heads in heads.items()},
                  "aligned": reports, "first_stage_weight": weight, "dev_by_weight": means}  # fmt: skip


def _learn_apart(experiment: Experiment, chosen: argparse.Namespace) -> None:
    """Do the work of every seed, several at a time; what it comes to lies in the output folder."""
    with ProcessPoolExecutor(chosen.jobs, multiprocessing.get_context("spawn"), _start, (chosen.threads,)) as pool:
        for done in [pool.submit(_learned, experiment, chosen, seed) for seed in range(chosen.seeds)]:
            done.result()


def _sizes(chosen: argparse.Namespace) -> dict[str, int]:
    return dict(zip(("selection", "alignment", "dev"), chosen.lists, strict=True))


def _start(threads: int | None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if threads:
        torch.set_num_threads(threads)


def _per_query(system: str, run: FinishedRun) -> dict[str, float]:
    """Return qid -> value; the first stage's where the system is the first stage."""
    assert run.recorded_evaluation is not None  # every run of the experiment has judgments
    found = run.recorded_evaluation["first_stage" if system == FIRST_STAGE else "reranked"]["per_query"]
    return {qid: values[MEASURE] for qid, values in found.items()}


def _orders(experiment: Experiment, collections: list[Judged], queries: int) -> list[dict[str, Any]]:
    """Return how rankings change with the order of the candidates, before and after alignment, with seed 0."""
    heads = experiment.output / "heads/seed-0" / f"{SELECTED}.json"
    rerankers = {
        SELECTED: experiment.reranker(experiment.model, heads),
        FULL: experiment.reranker(model_folder(experiment, FULL, 0)),
    }
    records = []
    for collection in collections:
        few = shortened(collection, experiment.output / "orders", queries)
        for system, reranker in rerankers.items():
            runs = reranked_in_orders(experiment, system, reranker, few)
            summary, _ = order_sensitivity(runs, few.qrels, measure=MEASURE)
            records.append({**summary.to_dict("records")[0], "system": system, "collection": few.name})
    return records


def _orders_table(orders: list[dict[str, Any]]) -> Table:
    return Table(
        "Five orders of the same candidates (given, reversed, three shuffles), seed 0",
        [Column("system"), Column("collection"), Column("queries", "d"), Column("Kendall's tau", ".3f"),
         Column("lowest", ".4f"), Column("highest", ".4f")],
        [[r["system"], r["collection"], r["queries"], r["kendall_tau"], r["lowest"], r["highest"]] for r in orders],
    )  # fmt: skip


def _claim(path: Path, settings: dict[str, Any]) -> None:
    """Keep the settings of a folder, and refuse others there."""
    wanted = json.loads(json.dumps(settings))
    if path.exists() and (there := json.loads(path.read_text(encoding="utf-8"))) != wanted:
        changed = sorted(key for key in {*there, *wanted} if there.get(key) != wanted.get(key))
        raise SystemExit(
            f"{path.parent}: was begun with other settings ({', '.join(changed)}); choose another --output"
        )
    write_json(path, wanted)


if __name__ == "__main__":
    main()
