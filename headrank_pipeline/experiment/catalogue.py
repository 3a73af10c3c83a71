"""What each benchmark needs, how large it is and whether it is here already; opens no socket and starts no Java.

The facts are those of `facts.catalogue`; a test holds them against the installed releases.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from headrank_pipeline.experiment.benchmark import Benchmark, load_benchmark
from headrank_pipeline.experiment.facts import catalogue, datasets_home
from headrank_pipeline.experiment.inputs import LocalFiles, topics_beside
from headrank_pipeline.experiment.stages import FirstStageOptions

__all__ = ["Need", "corpus_size", "find_benchmark", "find_benchmarks", "needs", "query_count", "to_download"]

State = Literal["local", "cached", "download", "missing"]


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a run of a benchmark reads.

    Args:
        what: "topics", "qrels", "index", "texts", "corpus" or "candidates".
        name: a path, or a name that ir_datasets or Pyserini resolves.
        state: ``local`` is a file of the user or of this package, ``cached`` was downloaded before, ``missing`` cannot
            be had from anywhere that is known.
        size: bytes to download, None where nothing is to be downloaded or the size is not known.
        place: the file or folder, or the address that it comes from.
        md5: of the download, as its owner states it.
    """

    what: str
    name: str
    state: State
    size: int | None
    place: str
    md5: str | None = None


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
        near = difflib.get_close_matches(called, known, n=3)
        raise FileNotFoundError(
            f"benchmark {called!r}: neither a file nor a definition that ships with the package; "
            + (f"near names: {', '.join(near)}" if near else "headrank benchmarks --suite all lists them")
        )
    return load_benchmark(known[called])


def _shipped() -> Path:
    """The folder ``pipelines`` of the project, a link to which makes it part of the package."""
    return Path(str(resources.files("headrank_pipeline"))) / "resources" / "pipelines"


def query_count(benchmark: Benchmark) -> int | None:
    """Return how many queries a benchmark has, or None where it is not known before they are read."""
    facts = _dataset(benchmark)
    return None if facts is None else int(facts["queries"])


def corpus_size(benchmark: Benchmark) -> int | None:
    """Return how many documents the benchmark's index holds, or None where that is not known.

    Without an index of Pyserini one is built from all documents of the collection.
    """
    facts = _index(benchmark.collection.pyserini_index) or _dataset(benchmark)
    return None if facts is None else int(facts["docs"])


def needs(benchmark: Benchmark, local: LocalFiles, stage: FirstStageOptions | None = None) -> list[Need]:
    """Return what a run would read, in the order in which inputs are looked for.

    Args:
        benchmark: the definition.
        local: files that replace what it names.
        stage: a first stage in place of its BM25.
    """
    qrels = [_file("qrels", local.qrels)] if local.qrels else _judgments(benchmark, "qrels")
    if local.candidates is not None:
        return [_file("candidates", local.candidates), *qrels]
    topics = local.topics or topics_beside(local.corpus) or benchmark.collection.embedded_file("queries.jsonl")
    queries = [_file("topics", topics)] if topics else _judgments(benchmark, "topics")
    if queries == qrels or {need.place for need in queries} == {need.place for need in qrels}:
        queries = []  # one archive holds both
        qrels = [_both(need) for need in qrels]
    return [*queries, *qrels, *_collections(benchmark, local, stage or FirstStageOptions())]


def to_download(wanted: Iterable[Sequence[Need]]) -> tuple[int, int]:
    """Return the bytes to download, every address counted once, and how many downloads have no known size."""
    sizes = {need.place: need.size for found in wanted for need in found if need.state == "download"}
    return sum(size or 0 for size in sizes.values()), sum(size is None for size in sizes.values())


def _both(need: Need) -> Need:
    return Need("topics, qrels", need.name, need.state, need.size, need.place, need.md5)


def _file(what: str, path: Path) -> Need:
    return Need(what, str(path), "local" if path.exists() else "missing", None, str(path))


def _dataset(benchmark: Benchmark) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = catalogue()["datasets"].get(benchmark.collection.ir_datasets)
    return found


def _index(name: str | None) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = catalogue()["indexes"].get(name)
    return found


def _judgments(benchmark: Benchmark, what: str) -> list[Need]:
    embedded = benchmark.collection.embedded_file("qrels.tsv")
    if embedded is not None:
        return [_file(what, embedded)]
    name, facts = benchmark.collection.ir_datasets, _dataset(benchmark)
    if name is None:
        return [Need(what, "none public", "missing", None, f"pass --{what} FILE")]
    if facts is None:
        return [Need(what, name, "download", None, f"ir_datasets:{name}")]
    home = datasets_home()
    if facts["ready"] and all((home / file).exists() for file in facts["ready"]):
        return [Need(what, name, "cached", None, str((home / facts["ready"][0]).parent))]
    return [_download(what, name, file, home) for file in facts["downloads"] if _serves(file, what, facts)]


def _serves(file: Mapping[str, Any], what: str, facts: Mapping[str, Any]) -> bool:
    """Return whether a download holds topics or qrels; where there are two, their addresses say which is which."""
    if len(facts["downloads"]) == 1:
        return True
    return ("qrels" in file["url"]) == (what == "qrels")


def _download(what: str, name: str, file: Mapping[str, Any], home: Path) -> Need:
    places = [home / "downloads" / file["md5"], *([home / file["path"]] if file["path"] else [])]
    there = next((place for place in places if place.exists()), None)
    if there is not None:
        return Need(what, name, "cached", None, str(there), file["md5"])
    return Need(what, name, "download", file["bytes"], file["url"], file["md5"])


def _collections(benchmark: Benchmark, local: LocalFiles, stage: FirstStageOptions) -> list[Need]:
    """The index or indexes of the first stage, and where passages come from if those store none."""
    if stage.method in ("dense", "impact") and local.corpus is None:
        return _without_passages(benchmark, local.index, "--index FOLDER", stage)
    found = [_collection(benchmark, local)]
    if stage.method == "bm25" and stage.texts is not None:
        found.append(_named("texts", stage.texts))
    if stage.method == "fusion" and local.corpus is None:
        found += _without_passages(benchmark, stage.dense_index, "--first-stage-option dense_index=FOLDER", stage)
    return list({need.place: need for need in reversed(found)}.values())[::-1]


def _without_passages(benchmark: Benchmark, name: str | None, flag: str, stage: FirstStageOptions) -> list[Need]:
    if name is None:
        return [Need("index", "none", "missing", None, f"pass {flag} (or a name), or --corpus FILE")]
    facts = _index(name)
    owner = (facts and facts["texts"]) or benchmark.collection.pyserini_index
    texts = stage.texts or (None if Path(name).is_dir() and stage.method != "impact" else owner)
    return [_named("index", name)] + ([] if texts is None else [_named("texts", texts)])


def _collection(benchmark: Benchmark, local: LocalFiles) -> Need:
    corpus = local.corpus or (None if local.index else benchmark.collection.embedded_file("corpus.jsonl"))
    if corpus is not None:
        return _file("corpus", corpus)
    name = local.index or benchmark.collection.pyserini_index
    if name is not None:
        return _named("index", name)
    if benchmark.collection.ir_datasets is not None:
        return _documents(benchmark)
    return Need("index", "none", "missing", None, "pass --corpus FILE, --index FOLDER or --candidates FILE")


def _documents(benchmark: Benchmark) -> Need:
    """The documents of a collection of ir_datasets; BEIR's are in the archive of topics and qrels."""
    name, facts = str(benchmark.collection.ir_datasets), _dataset(benchmark)
    if facts is not None and name.startswith("beir/"):
        return _download("corpus", name, facts["downloads"][0], datasets_home())
    return Need("corpus", name, "download", None, f"ir_datasets:{name}/docs")


def _named(what: str, name: str) -> Need:
    """An index or other source of passages: a path, or a name that Pyserini or ir_datasets resolves."""
    if Path(name).exists():
        return Need(what, name, "local", None, name)
    facts = _index(name)
    if facts is None:
        return Need(what, name, "download", None, name if name.startswith("ir_datasets:") else f"pyserini:{name}")
    for home in _pyserini_homes():
        if (home / "indexes" / facts["folder"]).is_dir():
            return Need(what, name, "cached", None, str(home / "indexes" / facts["folder"]), facts["md5"])
    return Need(what, name, "download", facts["bytes"], facts["url"], facts["md5"])


def _pyserini_homes() -> list[Path]:
    """Where Pyserini's releases keep indexes: the later ones look beside the present folder first."""
    if named := os.environ.get("PYSERINI_CACHE"):
        return [Path(named)]
    return [Path.cwd() / ".cache" / "pyserini", Path.home() / ".cache" / "pyserini"]
