"""A reranker or a pipeline on a benchmark in one call of Python: what `evaluate` does when it is given one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headrank_pipeline.experiment.benchmark import DATASETS, Benchmark, benchmark_of_dataset, find_named
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.evaluate import Evaluation, evaluated
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.experiment.sources import LocalFiles, Sources
from headrank_pipeline.options import nearest
from headrank_pipeline.pipeline import Reranker, Source

__all__ = ["evaluate_on"]

_log = logging.getLogger(__name__)


def evaluate_on(
    system: Reranker | Source,
    called: Any,
    *,
    measures: str | Sequence[str] | None,
    relevance_level: int | None,
    candidates: str | os.PathLike[str] | Source | None,
    depth: int | None,
    output: str | os.PathLike[str] | None,
) -> Evaluation:
    """Return how a system does on a benchmark; the arguments are those of `evaluate`.

    Raises:
        TypeError: no name, or candidates for a pipeline, which has its own.
        FileNotFoundError: no such benchmark, or an input of it that is not to be had.
        ValueError: malformed input, or no query that is judged.
    """
    benchmark = _changed(_named(called, depth), measures, relevance_level)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory())) if output is None else Path(output)
        if isinstance(system, Source):
            if candidates is not None or depth is not None or output is not None:
                raise TypeError(
                    "candidates, depth and output are for a reranker; a pipeline has a first stage of its own"
                )
            return _asked(Sources(benchmark, source=system), folder)
        return _reranked(system, _sources(benchmark, candidates), folder, benchmark.depth if depth is None else depth)


def _named(called: Any, depth: int | None) -> Benchmark:
    """The one benchmark of a name; an id of ir_datasets needs no prefix where nothing else is called so."""
    if not isinstance(called, str | os.PathLike):
        raise TypeError(
            f"a reranker or a pipeline is evaluated on a benchmark; expected its name, or an id of ir_datasets, got "
            f"{type(called).__name__}; evaluate rankings against judgments of your own"
        )
    name = str(called)
    if "/" in name and not name.startswith(DATASETS) and not Path(name).exists():
        return benchmark_of_dataset(_dataset(name), depth=depth)
    found = find_named(name, depth=depth)
    if len(found) > 1:
        raise ValueError(f"{name}: a folder of {len(found)} benchmarks; name one of them")
    return found[0][1]


def _dataset(name: str) -> str:
    import ir_datasets

    if name not in ir_datasets.registry:
        near = nearest(name, list(ir_datasets.registry), otherwise="headrank benchmarks lists what ships", most=3)
        raise FileNotFoundError(f"{name}: neither a file or folder of definitions nor an id of ir_datasets; {near}")
    return name


def _changed(benchmark: Benchmark, measures: str | Sequence[str] | None, relevance_level: int | None) -> Benchmark:
    changes: dict[str, Any] = {} if relevance_level is None else {"relevance_level": relevance_level, "references": ()}
    if measures is not None:
        wanted = (measures,) if isinstance(measures, str) else tuple(measures)
        references = changes.get("references", benchmark.references)
        changes |= {"measures": wanted, "references": tuple(r for r in references if r.measure in wanted)}
    return benchmark.model_copy(update=changes)


def _sources(benchmark: Benchmark, candidates: str | os.PathLike[str] | Source | None) -> Sources:
    if isinstance(candidates, Source):
        return Sources(benchmark, source=candidates)
    return Sources(benchmark, LocalFiles(candidates=None if candidates is None else Path(candidates)))


def _asked(sources: Sources, folder: Path) -> Evaluation:
    """A pipeline's answers; it keeps no journal, so nothing is written but what was downloaded."""
    inputs = sources.open(RunDirectory(folder))
    judgement = inputs.judgement
    found, strangers = evaluated(
        list(inputs.supply.rankings()),
        judgement.grades,
        judgement.measures,
        relevance_level=judgement.relevance_level,
    )
    if strangers:
        _log.warning("%s", strangers)
    return found


def _reranked(reranker: Reranker, sources: Sources, folder: Path, depth: int) -> Evaluation:
    inputs, benchmark = sources.open(RunDirectory(folder)), sources.benchmark
    plan = RunPlan(
        output=folder,
        reranker=reranker,
        supply=inputs.supply,
        depth=depth,
        benchmark={"name": benchmark.name, "version": benchmark.version},
        judgement=inputs.judgement,
    )
    judged = execute(plan).judged
    assert judged is not None  # a benchmark has measures
    for check in judged.checks:
        say = _log.warning if check.verdict == "FAIL" else _log.info
        say("first stage %s: %.4f, published %.4f: %s", check.measure, check.measured, check.published, check.verdict)
    return replace(judged.reranked, first_stage=judged.first_stage)
