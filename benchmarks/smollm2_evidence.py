"""What SmolLM2's heads are worth before and after: BM25, rules of others, selected heads, aligned, trained, mixed.

    python benchmarks/smollm2_evidence.py --model PLAIN --made runs/smollm2 --data ../shared/data --output runs/evidence

Reads what `benchmarks/smollm2_model.py` made (`--made`) and reranks BM25's first candidates of SciFact test, DL19,
NovelEval and the demo collection, which nothing was chosen or trained on. `--systems` names a part of the systems, so
that the rest can follow later; finished runs are not done again. Each criterion selects heads of the plain model on the
lists of each seed; one reading of all heads then serves every choice. The heads of the entropy-regularised criterion
are then aligned from the plain weights, on 211 other lists of the seed, with all parts and without each of them.
This is the method without the distillation that `smollm2` comes from. Writes evidence.json and evidence.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from evidence.data import UNSEEN, Judged, judged_collections
from evidence.experiment import MEASURE, Experiment
from evidence.frozen import read_all_heads, scored_by_heads, selected_heads
from evidence.learned import ABLATIONS, ALIGNED, FULL, align, fused_by_rank, model_folder, with_first_stage
from evidence.report import Comparison, Results, middle_zones, planned_tests, tables, zones_table
from evidence.settings import ALIGNMENT
from smollm2.in_batch import RULE
from smollm2.lists import Lists, drawn

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.comparison.significance import paired_tests
from headrank_pipeline.comparison.tables import Column, Table
from headrank_pipeline.experiment.directory import environment
from headrank_pipeline.files import write_json
from headrank_pipeline.learn.settings import CRITERIA, SelectionConfig
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.rerank.systems import headrank, icr

FIRST_STAGE, SHIPPED, MIXED, FUSED = "BM25", "smollm2", "smollm2, interpolated", "smollm2, rank fusion"
CRITERIA_SYSTEMS = tuple(f"plain, {criterion}" for criterion in CRITERIA)
ALL_HEADS, SAME_HEADS, SELECTED = "plain, all heads", "plain, the same heads", "plain, entropy-regularised"
SAME_BY_MEAN, CAUSAL = f"{SAME_HEADS}, mean", "plain, headrank in causal prompts"
OF_MADE = {SHIPPED, SAME_HEADS, SAME_BY_MEAN, CAUSAL}  # what needs the models or heads of --made
PLANNED = (
    Comparison("smollm2 against BM25", SHIPPED, FIRST_STAGE),
    Comparison("interpolated against BM25", MIXED, FIRST_STAGE),
    Comparison("rank fusion against BM25", FUSED, FIRST_STAGE),
    Comparison("smollm2 against the same heads of the plain model", SHIPPED, SAME_HEADS),
    Comparison("smollm2 against heads selected on the plain model", SHIPPED, SELECTED),
    Comparison("selected heads against all heads", SELECTED, ALL_HEADS),
)
# The alignment of plain weights and its parts, on collections with short passages: 15 models are cheap to read there.
SHORT = ("dl19", "noveleval", "demo")
WHOLE = f"plain, {FULL}"
PLANNED_OF_ALIGNMENT = (
    Comparison("selected heads against all heads", SELECTED, ALL_HEADS),
    Comparison("aligned against selected", WHOLE, SELECTED),
    *(Comparison(f"full against {name.removeprefix(f'{FULL}, ')}", WHOLE, f"plain, {name}") for name in ABLATIONS),
    Comparison("smollm2 against aligned", SHIPPED, WHOLE),
)
# The embedded model's objective; the rate was chosen on seed 0's dev lists (docs/evidence.md).
PLAIN_ALIGNMENT: dict[str, Any] = {
    **ALIGNMENT, "learning_rate": 1e-4, "epochs": 1, "list_size": 8, "lists_per_step": 4, "lists_per_pass": 4,
    "averaging": None,
}  # fmt: skip


@dataclass(frozen=True)
class System:
    """A system of the table: one of `make` and `heads` says what scores a seed's passages.

    Args:
        make: gives the reranker of a seed.
        heads: gives heads of the plain model (None: all of them), scored from one reading of every head.
        seeds: those that change it; none: it is the same for all.
        collections: where it is run; long causal prompts are too dear for all.
    """

    make: Callable[[int], Reranker] | None = None
    heads: Callable[[int], HeadSet | None] | None = None
    seeds: tuple[int, ...] = ()
    collections: tuple[str, ...] = (*UNSEEN, "demo")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of the plain model, converted")
    options.add_argument("--made", type=Path, required=True, help="output of smollm2_model.py, of one seed or all")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--systems", nargs="+", help="only these; default: all")
    options.add_argument("--collections", nargs="+", default=[*UNSEEN, "demo"])
    options.add_argument("--depth", type=int, default=20)
    options.add_argument("--words", type=int, default=220, help="words of a passage that are read")
    options.add_argument("--aligned-words", type=int, default=100, help="the same in the alignment")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--cache", type=float, default=6.0, help="GiB for keys of isolated passages")
    options.add_argument("--threads", type=int, default=2)
    chosen = options.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.set_num_threads(chosen.threads)
    command = shlex.join(["python", "benchmarks/smollm2_evidence.py", *sys.argv[1:]])
    collections = judged_collections(chosen.data, chosen.output / "candidates")
    experiment = Experiment(
        model=chosen.model, output=chosen.output, dtype=chosen.dtype,
        reading={"passages": "isolated", "passage_words": chosen.words, **RULE},
        collections=[replace(one, depth=min(one.depth, chosen.depth))
                     for one in collections if one.name in chosen.collections],
        cache_bytes=int(chosen.cache * 2**30), training_words=chosen.words,
        selection=SelectionConfig(num_heads=6, list_size=20), training=PLAIN_ALIGNMENT, command=command,
    )  # fmt: skip
    runs = _runs(experiment, chosen)
    _report(experiment, runs, command)


def _systems(experiment: Experiment, chosen: argparse.Namespace) -> dict[str, System]:
    made, small = chosen.made, ("dl19", "noveleval")
    trained = tuple(seed for seed in chosen.seeds if (made / "rerankers" / f"seed-{seed}").exists())
    asked = OF_MADE & {*(chosen.systems or OF_MADE)}
    if asked and len(trained) not in (1, len(chosen.seeds)):  # of one seed, or of all: others have no spread to compare
        raise SystemExit(f"{made / 'rerankers'} has models of seeds {list(trained)}, not of all {chosen.seeds}: name "
                         f"the seeds that it has, or make the others (benchmarks/smollm2_model.py)")  # fmt: skip

    def reader(model: Path, heads: Any, options: Mapping[str, Any]) -> Reranker:
        keys = PassageCache(memory_bytes=experiment.cache_bytes)
        return headrank(model, heads, options=options, dtype=experiment.dtype, passage_cache=keys)

    def heads(seed: int) -> Path:
        return made / "heads" / f"seed-{seed}.json"

    def lists(seed: int) -> Lists:
        return drawn(chosen.data, chosen.output / "lists", seed)

    def selected(criterion: str, seed: int) -> HeadSet:
        selection, file = lists(seed).selection, lists(seed).files[0]
        return selected_heads(experiment, selection, file, seed, dtype=experiment.dtype)[criterion]

    def aligned(name: str, seed: int) -> Reranker:
        short = replace(experiment, training_words=chosen.aligned_words)
        align(short, name, selected(ALIGNED[name][0], seed), lists(seed), seed)
        return reader(model_folder(experiment, name, seed), None, experiment.reading)

    words = {"passage_words": chosen.words}
    mean = {"passages": "isolated", **words}  # HeadRank's own rule; a trained folder brings another
    return {
        SHIPPED: System(
            lambda seed: reader(made / "rerankers" / f"seed-{seed}", None, experiment.reading), seeds=trained
        ),
        ALL_HEADS: System(heads=lambda _: None),
        **{n: System(heads=lambda seed, c=c: selected(c, seed), seeds=(*chosen.seeds,))
           for n, c in zip(CRITERIA_SYSTEMS, CRITERIA, strict=True)},
        **{
            f"plain, {n}": System(lambda seed, n=n: aligned(n, seed), seeds=(*chosen.seeds,), collections=SHORT)
            for n in ALIGNED
        },
        SAME_HEADS: System(heads=lambda seed: HeadSet.load(heads(seed)), seeds=trained),
        SAME_BY_MEAN: System(
            lambda seed: reader(experiment.model, heads(seed), mean), seeds=trained, collections=small
        ),
        "plain, icr": System(lambda _: icr(experiment.model, options=words, dtype=experiment.dtype), collections=small),
        CAUSAL: System(
            lambda seed: headrank(experiment.model, heads(seed), options=words, dtype=experiment.dtype),
            seeds=trained, collections=small,
        ),
    }  # fmt: skip


def _runs(experiment: Experiment, chosen: argparse.Namespace) -> dict[str, dict[str, list[FinishedRun]]]:
    """Return system -> collection -> one run per seed."""
    runs: dict[str, dict[str, list[FinishedRun]]] = {}
    for name, system in _systems(experiment, chosen).items():
        if chosen.systems and name not in chosen.systems:
            continue
        part = replace(experiment, collections=[c for c in experiment.collections if c.name in system.collections])
        for seed in system.seeds or chosen.seeds[:1]:
            began = time.monotonic()
            for found in _runs_of_seed(part, name, system, seed):
                place = found[0].name
                runs.setdefault(name, {}).setdefault(place, []).append(found[1])
                seconds, before = time.monotonic() - began, _mean(found[1], "first_stage")
                print(f"{name}, seed {seed}, {place}: {_mean(found[1]):.4f}", end="")
                print(f" (first stage {before:.4f}), {seconds:.0f} s", flush=True)
                began = time.monotonic()
        if name == SHIPPED:
            _mixtures(experiment, chosen.made, system.seeds, runs)
    first = {place: row[:1] for places in runs.values() for place, row in places.items()}
    return {FIRST_STAGE: first, **runs}


def _runs_of_seed(part: Experiment, name: str, system: System, seed: int) -> Iterator[tuple[Judged, FinishedRun]]:
    """Yield a system's run on each collection of its part."""
    shown = seed if system.seeds else None
    if system.heads is not None:
        read_all_heads(part)
        yield from zip(part.collections, scored_by_heads(part, name, system.heads(seed), seed=shown), strict=True)
        return
    assert system.make is not None  # one of the two is given
    make = cache(partial(system.make, seed))  # loaded once, and only if a run is missing
    for collection in part.collections:
        yield collection, part.run(name, collection, make, seed=shown)


def _mixtures(
    experiment: Experiment, made: Path, seeds: Sequence[int], runs: dict[str, dict[str, list[FinishedRun]]]
) -> None:
    for place, row in runs[SHIPPED].items():
        part = replace(experiment, collections=[one for one in experiment.collections if one.name == place])
        for seed, run in zip(seeds, row, strict=True):
            path = made / "first-stage-weight.json"
            weight = json.loads(path.read_text(encoding="utf-8"))["first_stage_weight"]
            mixed, fused = (with_first_stage(part, MIXED, [run], weight, seed), fused_by_rank(part, FUSED, [run], seed))
            for name, found in ((MIXED, mixed), (FUSED, fused)):
                runs.setdefault(name, {}).setdefault(place, []).append(found[0])


def _mean(run: FinishedRun, stage: str = "reranked") -> float:
    assert run.recorded_evaluation is not None  # every run of the experiment has judgments
    return float(run.recorded_evaluation[stage]["means"][MEASURE])


def _report(experiment: Experiment, runs: Mapping[str, Mapping[str, list[FinishedRun]]], command: str) -> None:
    def per_query(system: str, run: FinishedRun) -> dict[str, float]:
        assert run.recorded_evaluation is not None
        stage = run.recorded_evaluation["first_stage" if system == FIRST_STAGE else "reranked"]
        return {qid: values[MEASURE] for qid, values in stage["per_query"].items()}

    values = {s: {p: [per_query(s, run) for run in row] for p, row in places.items()} for s, places in runs.items()}
    shown, records = [], []
    for planned, averaged in ((PLANNED, UNSEEN), (PLANNED_OF_ALIGNMENT, SHORT)):
        of_planned, found = _planned(values, planned, averaged)
        shown, records = [*shown, *of_planned], [*records, *found]
    shown.append(_against_first_stage(Results(values)))
    before_and_after = [system for system in (SELECTED, WHOLE, SHIPPED) if {*SHORT} <= runs.get(system, {}).keys()]
    zones = middle_zones(runs, [one for one in experiment.collections if one.name in SHORT], before_and_after)
    shown += [zones_table(zones)] if zones else []
    page = "\n\n".join([*(table.to_markdown() for table in shown), f"Made by: {command}"])
    write_json(experiment.output / "evidence.json", {"command": command, "environment": environment(),
               "planned": records, "middle_zone": zones, "per_query": values})  # fmt: skip
    (experiment.output / "evidence.md").write_text(page + "\n", encoding="utf-8")
    print(page)


def _planned(
    values: Mapping[str, Mapping[str, list[dict[str, float]]]], planned: Sequence[Comparison], averaged: Sequence[str]
) -> tuple[list[Table], list[dict[str, Any]]]:
    """Return tables and records of the systems that were run on every collection averaged; none without a pair."""
    named = {FIRST_STAGE, *CRITERIA_SYSTEMS, *(name for pair in planned for name in (pair.system, pair.baseline))}
    whole = [system for system in values if system in named and {*averaged, "demo"} <= values[system].keys()]
    pairs = [pair for pair in planned if {pair.system, pair.baseline} <= {*whole}]
    if not pairs:
        return [], []
    results = Results({system: values[system] for system in whole}, averaged)
    records = planned_tests(results, pairs)
    return tables(results, records), records


def _against_first_stage(results: Results) -> Table:
    """Return every system on every collection it was run on, its mean over seeds tested against the first stage."""
    rows = []
    for system, places in results.values.items():
        for place in places if system != FIRST_STAGE else ():
            mean, before = results.per_query(system, place), results.per_query(FIRST_STAGE, place)
            (test,) = paired_tests(mean[:, None], before)
            rows.append([system, place, len(mean), float(mean.mean()), float(before.mean()), test.wins, test.losses,
                         test.t_test])  # fmt: skip
    forms = {"system": "text", "collection": "text", "queries": "d", MEASURE: ".4f", FIRST_STAGE: ".4f", "better": "d",
             "worse": "d", "p (t-test)": "p"}  # fmt: skip
    columns = [Column(name, form) for name, form in forms.items()]
    return Table("Against the first stage, by collection; p without correction", columns, rows)


if __name__ == "__main__":
    main()
