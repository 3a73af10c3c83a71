"""Benchmark definitions, strict YAML without logic read into frozen models; and the names that they go by.

A definition states everything that can change a number: collection names, every first-stage parameter, the depth, the
measures, and the published scores that the first stage must reproduce. A key that is not known is refused with the
nearest known one, a value of the wrong type with the key's name; nothing is converted silently.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from headrank_pipeline.experiment.evaluate import parse_measure
from headrank_pipeline.files import open_text
from headrank_pipeline.options import nearest

__all__ = [
    "DATASETS",
    "Benchmark",
    "Collection",
    "FirstStage",
    "NamedSuite",
    "Reference",
    "ReferenceCheck",
    "benchmark_of_dataset",
    "benchmark_of_files",
    "check_references",
    "embedded_benchmark",
    "find_benchmark",
    "find_benchmarks",
    "find_named",
    "find_suite",
    "load_benchmark",
    "named_suites",
]

Verdict = Literal["OK", "near", "FAIL"]

# Pyserini's two-click reproductions call a score OKish up to this difference.
_NEAR = 0.0005
_LARGEST_DEFINITION = 100_000
_NAME = r"^[a-z0-9][a-z0-9._-]*$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Collection(_Strict):
    """Where topics, qrels and the index come from when no local file is given.

    Args:
        ir_datasets: id of the ir_datasets entry with topics and qrels.
        pyserini_index: name of Pyserini's prebuilt index.
        pyserini_topics: Pyserini's name of the topics, for the record and for its own commands.
        pyserini_qrels: Pyserini's name of the qrels, likewise.
        embedded: name of a collection that is shipped inside this package.
    """

    ir_datasets: str | None = None
    pyserini_index: str | None = None
    pyserini_topics: str | None = None
    pyserini_qrels: str | None = None
    embedded: Literal["demo"] | None = None

    @model_validator(mode="after")
    def _one_home(self) -> Collection:
        elsewhere = [self.ir_datasets, self.pyserini_index, self.pyserini_topics, self.pyserini_qrels]
        if self.embedded and any(elsewhere):
            raise ValueError("embedded cannot stand beside ir_datasets or pyserini names; keep one")
        return self

    def embedded_file(self, name: str) -> Path | None:
        """Return the path of a file of the embedded collection, or None where the collection is not embedded."""
        if self.embedded is None:
            return None
        return Path(str(resources.files("headrank_pipeline"))) / "resources" / self.embedded / name


class FirstStage(_Strict):
    """BM25 with every parameter stated; names and meanings are those of `first_stage.bm25`.

    Args:
        exclude_grade: documents with this grade in the qrels are left out per query before the cutoff (BRIGHT: -100).
    """

    method: Literal["bm25"]
    k1: Annotated[float, Field(ge=0)]
    b: Annotated[float, Field(ge=0, le=1)]
    hits: Annotated[int, Field(ge=1)]
    remove_query: bool
    fields: dict[str, float] | None = None
    exclude_grade: Annotated[int, Field(lt=0)] | None = None


class Reference(_Strict):
    """A published first-stage score.

    Args:
        measure: a measure as `evaluate` takes it.
        value: the score to four decimals, as published.
        source: repository, file and entry where it stands.
    """

    measure: str
    value: Annotated[float, Field(ge=0, le=1)]
    source: Annotated[str, Field(min_length=1)]


class Benchmark(_Strict):
    """One benchmark, as a file of `pipelines/` defines it.

    Args:
        schema_version: version of this schema, the key ``schema`` of the file.
        name: lower-case name, used in paths.
        version: raised whenever a change of the file could change a number.
        group: benchmarks of one group are reported by their mean as well (the 12 forums of CQADupStack).
        queries: ``judged`` keeps the topics that occur in the qrels, ``all`` keeps all of them.
        depth: how many candidates are reranked.
        relevance_level: lowest grade that counts as relevant for binary measures.
        references: published first-stage scores.
    """

    schema_version: Literal[1] = Field(alias="schema")
    name: Annotated[str, Field(pattern=_NAME)]
    version: str
    title: str
    group: Annotated[str, Field(pattern=_NAME)] | None = None
    collection: Collection
    queries: Literal["judged", "all"]
    first_stage: FirstStage
    depth: Annotated[int, Field(ge=1)]
    measures: Annotated[tuple[str, ...], Field(min_length=1)]
    relevance_level: Annotated[int, Field(ge=1)]
    references: tuple[Reference, ...] = ()
    notes: str = ""

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: tuple[str, ...]) -> tuple[str, ...]:
        for measure in measures:
            parse_measure(measure)
        return measures

    @model_validator(mode="after")
    def _consistent(self) -> Benchmark:
        if self.depth > self.first_stage.hits:
            raise ValueError(f"depth {self.depth} is above first_stage.hits {self.first_stage.hits}; raise hits")
        unmeasured = [r.measure for r in self.references if r.measure not in self.measures]
        if unmeasured:
            raise ValueError(f"references to {unmeasured} that are not in measures {list(self.measures)}; add them")
        return self


class ReferenceCheck(_Strict):
    """A measured first-stage score beside the published one.

    Args:
        verdict: OK when equal to four decimals, near up to 0.0005 away, else FAIL.
    """

    measure: str
    published: float
    measured: float
    verdict: Verdict
    source: str


def load_benchmark(path: str | os.PathLike[str]) -> Benchmark:
    """Return the benchmark that a YAML file defines.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an alias, an unknown or repeated key, a missing key, a value of the wrong type or range.
    """
    with open_text(path, "benchmark") as file:
        text = file.read(_LARGEST_DEFINITION + 1)
    if len(text) > _LARGEST_DEFINITION:
        raise ValueError(f"{path}: longer than {_LARGEST_DEFINITION} characters; expected a definition of a page")
    try:
        data = yaml.load(text, Loader=_DefinitionLoader)
    except RecursionError as error:
        raise ValueError(f"{path}: not valid YAML: nested too deeply to be read") from error
    except (yaml.YAMLError, ValueError) as error:  # no month 13, numbers of thousands of digits
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of keys, got {type(data).__name__}")
    try:
        # By way of JSON, whose strict mode takes lists for tuples; YAML dates become the strings they look like.
        return Benchmark.model_validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        problems = sorted(
            error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"
        )  # misspelt keys first
        lines = [f"{path}: {_explain(problem)}" for problem in problems]
        raise ValueError("\n".join(lines)) from error


def embedded_benchmark(name: str) -> Benchmark:
    """Return a benchmark whose definition and collection ship with the package.

    Raises:
        FileNotFoundError: no such benchmark.
    """
    return load_benchmark(Path(str(resources.files("headrank_pipeline"))) / "resources" / name / "pipeline.yaml")


def benchmark_of_files(name: str, *, depth: int = 100) -> Benchmark:
    """Return a benchmark that names no collection: everything comes from the files that are given with it.

    Its first stage is BM25 as Pyserini has it, its measures are nDCG@10 and R@100.

    Args:
        name: name of the benchmark; it is made fit for a folder.
        depth: candidates that are reranked; so many are retrieved, 100 at least.

    Examples:
        >>> benchmark_of_files("My Corpus").name
        'my-corpus'
    """
    hits = max(depth, 100)  # R@100 is measured
    return Benchmark(
        schema=1,
        name=re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "local",
        version="1",
        title=f"files of {name}",
        collection=Collection(),
        queries="judged",
        first_stage=FirstStage(method="bm25", k1=0.9, b=0.4, hits=hits, remove_query=False),
        depth=depth,
        measures=("nDCG@10", "R@100"),
        relevance_level=1,
    )


def check_references(references: Sequence[Reference], means: Mapping[str, float]) -> list[ReferenceCheck]:
    """Return how the measured first-stage means compare with the published scores.

    Examples:
        >>> published = Reference(measure="nDCG@10", value=0.6789, source="pyserini 2cr")
        >>> check_references([published], {"nDCG@10": 0.67893})[0].verdict
        'OK'
    """
    return [
        ReferenceCheck(
            measure=reference.measure,
            published=reference.value,
            measured=means[reference.measure],
            verdict=_verdict(means[reference.measure], reference.value),
            source=reference.source,
        )
        for reference in references
    ]


def _verdict(measured: float, published: float) -> Verdict:
    if f"{measured:.4f}" == f"{published:.4f}":
        return "OK"
    # The published value is itself rounded; a hair more keeps 0.6794 against 0.6789 on the inner side of the limit.
    return "near" if abs(measured - published) <= _NEAR + 1e-9 else "FAIL"


class _DefinitionLoader(yaml.SafeLoader):
    """YAML of definitions: no aliases, a few of which unpack to gigabytes, and no key twice, the last of which wins."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.line + 1
            raise yaml.YAMLError(f"alias on line {line}; write the value out, definitions have no aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"key on line {key.start_mark.line + 1}: expected a word, got a {key.id}")
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"key {key.value!r} occurs twice, again on line {line}; delete one")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# --------------------------------------------------------------------------------------------- errors worth reading

_JSON_NAMES = {"str": "str", "int": "int", "float": "float", "bool": "bool", "dict": "mapping", "list": "list"}
_EXPECTED = {
    "string_type": "str",
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "tuple_type": "list",
    "dict_type": "mapping",
    "model_type": "mapping",
    "model_attributes_type": "mapping",
}


def _explain(problem: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors: the key, what was expected and what was found."""
    kind, where = problem["type"], tuple(problem["loc"])
    key, found = ".".join(str(part) for part in where), problem["input"]
    if kind == "extra_forbidden":
        return _explain_unknown(where)
    if kind == "missing":
        return f"missing key {key!r}; expected {_expected_at(where)}"
    if kind in _EXPECTED:
        return f"{key}: expected {_EXPECTED[kind]}, got {_JSON_NAMES.get(type(found).__name__, 'null')} {found!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: expected {message.removeprefix('Input should be ')}, got {found!r}"


def _explain_unknown(where: Sequence[str | int]) -> str:
    *parents, key = where
    known = _keys_at(parents)
    place = f" in {'.'.join(str(part) for part in parents)}" if parents else ""
    return f"unknown key {str(key)!r}{place}; {nearest(str(key), known, what='known keys', cutoff=0.5)}"


def _model_at(where: Sequence[str | int]) -> type[BaseModel]:
    nested: dict[str, type[BaseModel]] = {"collection": Collection, "first_stage": FirstStage, "references": Reference}
    return nested[str(where[0])] if where else Benchmark


def _keys_at(where: Sequence[str | int]) -> list[str]:
    return [field.alias or name for name, field in _model_at(where).model_fields.items()]


def _expected_at(where: Sequence[str | int]) -> str:
    *parents, key = where
    for name, field in _model_at(parents).model_fields.items():
        if key in (name, field.alias):
            annotation = field.annotation
            return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    return "a value"


# ------------------------------------------------------------------------------------- what benchmarks and suites go by


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
        FileNotFoundError: no such suite; names those that there are.
    """
    suites = named_suites()
    if name not in suites:
        hint = f"{nearest(name, suites, otherwise='')} suites: {', '.join(suites)}"
        raise FileNotFoundError(f"suite {name!r}: no such suite; {hint.lstrip()}")
    return [(called, find_benchmark(called)) for called in suites[name].benchmarks]
