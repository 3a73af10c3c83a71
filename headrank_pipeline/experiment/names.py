"""What benchmarks and suites of them go by: names, files, folders, collections of ir_datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from headrank_pipeline.experiment.benchmark import Benchmark, Collection, benchmark_of_files, load_benchmark
from headrank_pipeline.options import nearest

__all__ = [
    "DATASETS",
    "NamedSuite",
    "benchmark_of_dataset",
    "find_benchmark",
    "find_benchmarks",
    "find_named",
    "find_suite",
    "named_suites",
]

DATASETS = "ir_datasets:"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedSuite:
    """A name for several benchmarks.

    Args:
        title: what they have in common.
        source: who put them together.
        benchmarks: names of definitions that ship with the package, in the order in which they are run.
    """

    name: str
    title: str
    source: str
    benchmarks: Sequence[str]


def find_named(called: str, *, depth: int | None = None) -> list[tuple[str, Benchmark]]:
    """Return the benchmarks that a word of a command line means, and what to call each.

    Args:
        called: the name of a definition that ships, the file of a definition, a folder of them, or ``ir_datasets:ID``.
            A folder has a / in its name, so that a folder of data does not hide the benchmark of that name.
        depth: candidates to rerank, for a collection of ir_datasets; None for what `benchmark_of_dataset` says.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: a definition that is not valid.
    """
    if called.startswith(DATASETS):
        return [(called, benchmark_of_dataset(called.removeprefix(DATASETS), depth=depth))]
    if "/" in called and Path(called).is_dir():
        return find_benchmarks(Path(called))
    return [(called, find_benchmark(called))]


def benchmark_of_dataset(dataset: str, *, depth: int | None = None) -> Benchmark:
    """Return a benchmark for any collection of ir_datasets, which is asked for documents, topics and qrels.

    Where a definition of the package has this collection, its first stage, measures, relevance level and published
    scores hold. Others get BM25 as Pyserini has it, nDCG@10 and R@100, and grade 1 counts as relevant.

    Args:
        dataset: its id.
        depth: candidates that are reranked, of as many retrieved at least; None for the definition's, or 100.

    Examples:
        >>> benchmark_of_dataset("beir/scifact/test").name
        'beir-scifact-test'
        >>> benchmark_of_dataset("msmarco-passage/trec-dl-2019/judged").relevance_level
        2
    """
    plain = benchmark_of_files(dataset)
    known = next((b for _, b in find_benchmarks(extra=True) if b.collection.ir_datasets == dataset), plain)
    wanted = known.depth if depth is None else depth
    stage: dict[str, Any] = {"hits": max(wanted, known.first_stage.hits)}
    if known is plain:  # as in Pyserini's reproductions
        stage["remove_query"] = dataset.startswith(("beir/", "bright/", "nano-beir/"))
    changes = {
        "name": plain.name,
        "title": f"ir_datasets {dataset}",
        "group": None,
        "collection": Collection(ir_datasets=dataset),
        "depth": wanted,
        "first_stage": known.first_stage.model_copy(update=stage),
    }
    return known.model_copy(update=changes)


def find_benchmarks(folder: Path | None = None, *, extra: bool = False) -> list[tuple[str, Benchmark]]:
    """Return definitions by name, and what to call each on the command line; less those whose collection ships.

    Args:
        folder: holds ``*.yaml``; by default the definitions that ship with the package.
        extra: add those of its folder ``extra``.

    Raises:
        FileNotFoundError: no such folder, or no definition in it.
        ValueError: a definition that is not valid.
    """
    folder = folder or _shipped()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of benchmark definitions (looked from {Path.cwd()})")
    paths = sorted(folder.glob("*.yaml")) + (sorted((folder / "extra").glob("*.yaml")) if extra else [])
    found = [(path.stem if folder == _shipped() else str(path), load_benchmark(path)) for path in paths]
    found = [(called, benchmark) for called, benchmark in found if benchmark.collection.embedded is None]
    if not found:
        raise FileNotFoundError(f"{folder}: holds no benchmark definitions (*.yaml)")
    return found


def find_benchmark(called: str) -> Benchmark:
    """Return the benchmark of a definition file, or of a name among the definitions that ship with the package.

    Raises:
        FileNotFoundError: neither a file nor such a name.
        ValueError: a definition that is not valid.
    """
    path = Path(called)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        return load_benchmark(path)
    known = {found.stem: found for found in (*_shipped().glob("*.yaml"), *(_shipped() / "extra").glob("*.yaml"))}
    if called not in known:
        hint = nearest(called, known, otherwise="headrank benchmarks --suite all lists them", most=3)
        raise FileNotFoundError(
            f"benchmark {called!r}: neither a file nor a definition that ships with the package; {hint}"
        )
    return load_benchmark(known[called])


def _shipped() -> Path:
    """The folder ``pipelines`` of the project, a link to which makes it part of the package."""
    return Path(str(resources.files("headrank_pipeline"))) / "resources" / "pipelines"


@cache
def named_suites() -> Mapping[str, NamedSuite]:
    """Return all suites by name: those of ``suites.yaml``, ``main`` and ``all``."""
    main, every = ([name for name, _ in find_benchmarks(extra=extra)] for extra in (False, True))
    ours = "headrank_pipeline"
    found = [
        NamedSuite(name="main", title="what anybody can download and many report on", source=ours, benchmarks=main),
        NamedSuite(name="all", title="every definition of the package", source=ours, benchmarks=every),
    ]
    file = _shipped().with_name("suites.yaml")
    listed = yaml.safe_load(file.read_text(encoding="utf-8"))
    found += [NamedSuite(name=name, **facts) for name, facts in listed.items()]
    return {suite.name: suite for suite in found}


def find_suite(name: str) -> list[tuple[str, Benchmark]]:
    """Return the benchmarks of a suite, and what to call each on the command line.

    Raises:
        ValueError: no such suite; names those that there are.
    """
    suites = named_suites()
    if name not in suites:
        hint = f"{nearest(name, suites, otherwise='')} suites: {', '.join(suites)}"
        raise ValueError(f"suite {name!r}: no such suite; {hint.lstrip()}")
    return [(called, find_benchmark(called)) for called in suites[name].benchmarks]
