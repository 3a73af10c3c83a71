"""A benchmark's topics, qrels and candidates: local files first, then what is shipped, then the network.

With ``offline`` nothing that could open a socket is touched; the error names the flag that supplies the file instead.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrank_pipeline.experiment.benchmark import Benchmark
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.facts import (
    check_copies,
    check_grades,
    check_queries,
    compare_qrels,
    compare_topics,
)
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.stages import FirstStageOptions, Workspace, first_stage_supply
from headrank_pipeline.experiment.supply import CandidateSource, supply_from_file
from headrank_pipeline.files import atomic_writer, numbered_lines
from headrank_pipeline.first_stage.index import ENGLISH
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import Qrels, read_qrels, read_topics

__all__ = ["Inputs", "LocalFiles", "check_sources", "resolve_inputs", "topics_beside"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFiles:
    """What the user has at hand; each one replaces what the benchmark names.

    Args:
        corpus: BEIR or JSONL corpus; an index is built from it. Topics are looked for beside it.
        topics: queries.
        qrels: judgments.
        index: folder of an index, or the name of a prebuilt one; with `corpus`, where to build.
        candidates: first-stage candidates; nothing is retrieved.
        exclusions: lines ``qid docid``: documents to leave out before the cutoff.
        offline: touch nothing that could open a socket.
    """

    corpus: Path | None = None
    topics: Path | None = None
    qrels: Path | None = None
    index: str | None = None
    candidates: Path | None = None
    exclusions: Path | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        beside = [f"--{name}" for name in ("corpus", "topics", "index") if getattr(self, name) is not None]
        if self.candidates is not None and beside:
            raise ValueError(f"--candidates already holds queries and passages; drop {' and '.join(beside)}")

    def check(self) -> None:
        """Fail where a named file is not there; a model need not be loaded to learn that.

        Raises:
            FileNotFoundError: names the file, its flag and the folder it was looked for from.
        """
        for name in ("corpus", "topics", "qrels", "candidates", "exclusions"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise FileNotFoundError(f"--{name}: {path}: no such {name} file (looked from {Path.cwd()})")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run needs besides its reranker."""

    supply: CandidateSource
    judgement: Judgement


def check_sources(benchmark: Benchmark, local: LocalFiles, stage: FirstStageOptions | None = None) -> None:
    """Fail where topics or qrels can come from nowhere; a model need not be loaded to learn that.

    Raises:
        FileNotFoundError: names what is missing and the flag that supplies it.
        ValueError: a first stage chosen beside saved candidates.
    """
    if local.candidates is not None and stage is not None:
        stage.refuse_beside_candidates()
    embedded = benchmark.collection.embedded_file
    if local.qrels is None and embedded("qrels.tsv") is None:
        _dataset_id(benchmark, local, "qrels", "--qrels FILE")
    topics = local.topics or local.candidates or topics_beside(local.corpus)
    if topics is None and embedded("queries.jsonl") is None:
        _dataset_id(benchmark, local, "topics", "--topics FILE")


def resolve_inputs(
    benchmark: Benchmark,
    local: LocalFiles,
    directory: RunDirectory,
    *,
    stage: FirstStageOptions | None = None,
) -> Inputs:
    """Return a benchmark's candidates and judgments.

    Args:
        benchmark: the definition.
        local: files that replace what it names.
        directory: where an index that has to be built and downloaded qrels go.
        stage: a first stage in place of the benchmark's; published scores are then not checked.

    Raises:
        FileNotFoundError: a missing file, or something that is neither local nor allowed to be fetched.
        ValueError: malformed input, or no query that is judged.
    """
    choice = stage or FirstStageOptions()
    qrels, qrels_origin = _qrels(benchmark, local, directory)
    judgments = read_qrels(qrels)
    dataset = benchmark.collection.ir_datasets
    compare_qrels(benchmark.name, dataset, judgments, qrels_origin, without_grade=benchmark.first_stage.exclude_grade)
    judgement = Judgement(
        qrels=qrels,
        measures=benchmark.measures,
        relevance_level=benchmark.relevance_level,
        references=benchmark.references if choice.method == "bm25" and choice.language in (None, ENGLISH) else (),
    )
    judged = set(judgments) if benchmark.queries == "judged" else None
    exclude = _exclusions(benchmark, local, judgments, qrels_origin)
    if local.candidates is not None:
        choice.refuse_beside_candidates()
        supply = _without(supply_from_file(local.candidates, only=judged), benchmark.first_stage.remove_query, exclude)
        origins = {"candidates": str(local.candidates)}
    else:
        queries, topics_origin = _judged_topics(benchmark, local, judged, qrels)
        setting = Workspace(
            corpus=local.corpus or _corpus(benchmark, local, directory),
            index=local.index,
            offline=local.offline,
            directory=directory,
            threads=choice.threads,
            exclude=exclude,
        )
        supply, index_origin = first_stage_supply(benchmark, choice, setting, queries)
        origins = {"topics": topics_origin, "index": index_origin}
    origins["qrels"] = qrels_origin
    for name, origin in origins.items():
        logger.info("%s: %s", name, origin)
    return Inputs(replace(supply, origins=origins), judgement)


# ------------------------------------------------------------------------------------------------- topics and qrels


def topics_beside(corpus: Path | None) -> Path | None:
    """Return the file of queries that lies beside a corpus in BEIR's layout, or None."""
    names = ("queries.jsonl", "queries.jsonl.gz")
    return None if corpus is None else next((f for n in names if (f := corpus.with_name(n)).is_file()), None)


def _qrels(benchmark: Benchmark, local: LocalFiles, directory: RunDirectory) -> tuple[Path, str]:
    path = local.qrels or benchmark.collection.embedded_file("qrels.tsv")
    if path is not None:
        return path, str(path)
    dataset = _dataset_id(benchmark, local, "qrels", "--qrels FILE")
    grades = []
    with atomic_writer(directory.qrels) as file:
        for judgment in _fetched(dataset, "qrels", "--qrels FILE"):
            file.write(f"{judgment.query_id} 0 {judgment.doc_id} {judgment.relevance}\n")
            grades.append(judgment.relevance)
        check_grades(dataset, grades)
    return directory.qrels, f"ir_datasets {dataset}"


def _topics(benchmark: Benchmark, local: LocalFiles) -> tuple[list[Query], str]:
    if local.topics is not None:
        return read_topics(local.topics), str(local.topics)
    beside = topics_beside(local.corpus)
    if beside is not None:
        return read_topics(beside), f"{beside}, found beside the corpus"
    embedded = benchmark.collection.embedded_file("queries.jsonl")
    if embedded is not None:
        return read_topics(embedded), str(embedded)
    dataset = _dataset_id(benchmark, local, "topics", "--topics FILE")
    fetched = _fetched(dataset, "queries", "--topics FILE")
    queries = [Query(str(query.query_id), query.default_text()) for query in fetched]
    check_queries(dataset, len(queries))
    return queries, f"ir_datasets {dataset}"


def _judged_topics(
    benchmark: Benchmark, local: LocalFiles, judged: Collection[str] | None, qrels: Path
) -> tuple[list[Query], str]:
    queries, origin = _topics(benchmark, local)
    kept = [query for query in queries if judged is None or query.qid in judged]
    if not kept:
        raise ValueError(f"none of the {len(queries)} topics ({origin}) is judged in {qrels}")
    logger.info("%d of %d topics are run (queries: %s)", len(kept), len(queries), benchmark.queries)
    if judged is not None:
        compare_topics(benchmark.name, benchmark.collection.ir_datasets, kept, origin)
    return kept, origin


def _dataset_id(benchmark: Benchmark, local: LocalFiles, what: str, flag: str) -> str:
    dataset = benchmark.collection.ir_datasets
    if dataset is None:
        told = f" ({benchmark.notes})" if benchmark.notes else ""
        raise FileNotFoundError(
            f"benchmark {benchmark.name} names no ir_datasets entry for its {what}; pass {flag}{told}"
        )
    if local.offline:
        raise FileNotFoundError(
            f"--offline: the {what} of {benchmark.name} would come from ir_datasets ({dataset}), which may open a "
            f"socket; pass {flag}"
        )
    return dataset


def _fetched(dataset: str, what: str, flag: str) -> Iterator[Any]:
    """Records of ir_datasets, whose failures (no network, no such id) become one error that says what to do."""
    import ir_datasets

    check_copies(dataset)
    try:
        loaded = ir_datasets.load(dataset)
    except KeyError as error:
        near = difflib.get_close_matches(dataset, list(ir_datasets.registry), n=3)
        told = f" (near: {', '.join(near)})" if near else ""
        raise FileNotFoundError(
            f"ir_datasets could not give the {what} of {dataset}: it knows no such collection{told}; pass {flag}"
        ) from error
    try:
        yield from getattr(loaded, f"{what}_iter")()
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        raise FileNotFoundError(f"ir_datasets could not give the {what} of {dataset} ({error}); pass {flag}") from error


# ---------------------------------------------------------------------------------------------- exclusions and passages


def _exclusions(
    benchmark: Benchmark, local: LocalFiles, judgments: Qrels, qrels_origin: str
) -> dict[str, frozenset[str]]:
    """Return qid -> docids that the benchmark leaves out before the cutoff."""
    grade = benchmark.first_stage.exclude_grade
    if local.exclusions is not None:
        return _read_exclusions(local.exclusions)
    if grade is None:
        return {}
    found = {
        qid: frozenset(docid for docid, known in judged.items() if known == grade) for qid, judged in judgments.items()
    }
    found = {qid: docids for qid, docids in found.items() if docids}
    if not found:
        raise ValueError(
            f"benchmark {benchmark.name} leaves out documents of grade {grade}, and {qrels_origin} has none; pass "
            f"--exclusions FILE with lines 'qid docid', or qrels that hold them (ir_datasets' do)"
        )
    return found


def _read_exclusions(path: Path) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for number, line in numbered_lines(path, "exclusions"):
        columns = line.split()
        if len(columns) != 2:
            raise ValueError(f"{path}:{number}: expected 'qid docid', got {len(columns)} columns: {line[:80]!r}")
        found.setdefault(columns[0], set()).add(columns[1])
    return {qid: frozenset(docids) for qid, docids in found.items()}


def _without(supply: CandidateSource, remove_query: bool, exclude: Mapping[str, frozenset[str]]) -> CandidateSource:
    """Return saved candidates less what a query must not get; whoever saved them may not have known it."""
    from headrank_pipeline.first_stage.removal import Removal

    if not remove_query and not exclude:
        return supply
    removal = Removal(remove_query, exclude)

    def kept() -> Iterator[Ranking]:
        for ranking in supply.rankings():
            yield ranking.without(removal.of(ranking.query.qid))

    return replace(supply, identity={**supply.identity, **removal.describe()}, rankings=kept)


def _corpus(benchmark: Benchmark, local: LocalFiles, directory: RunDirectory) -> Path | None:
    """Return the collection's documents as a file where no index is named: written once from ir_datasets."""
    collection = benchmark.collection
    if local.index or collection.pyserini_index or collection.embedded or collection.ir_datasets is None:
        return None
    target = directory.path / "corpus.jsonl"
    if target.is_file():
        return target
    dataset = _dataset_id(benchmark, local, "documents", "--corpus FILE or --index FOLDER")
    with atomic_writer(target) as file:
        for document in _fetched(dataset, "docs", "--corpus FILE"):
            text = getattr(document, "text", None)
            record = {"_id": document.doc_id, "title": getattr(document, "title", None) or ""}
            file.write(json.dumps({**record, "text": document.default_text() if text is None else text}) + "\n")
    return target
