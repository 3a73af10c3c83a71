"""A benchmark's topics, qrels and candidates: local files first, then what is shipped, then the network.

With ``offline`` nothing that could open a socket is touched; the error names the flag that supplies the file instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrank_pipeline.experiment.benchmark import Benchmark, FirstStage
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.manifest import file_sha256
from headrank_pipeline.experiment.supply import Supply, queries_sha256, supply_from_file, supply_from_source
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import atomic_writer, read_qrels, read_topics

if TYPE_CHECKING:
    from headrank_pipeline.pipeline import Source

__all__ = ["Inputs", "LocalFiles", "resolve_inputs", "topics_beside"]

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
        offline: touch nothing that could open a socket.
    """

    corpus: Path | None = None
    topics: Path | None = None
    qrels: Path | None = None
    index: str | None = None
    candidates: Path | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        beside = [f"--{name}" for name in ("corpus", "topics", "index") if getattr(self, name) is not None]
        if self.candidates is not None and beside:
            raise ValueError(f"--candidates already holds queries and passages; drop {' and '.join(beside)}")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run needs besides its reranker."""

    supply: Supply
    judgement: Judgement


def resolve_inputs(benchmark: Benchmark, local: LocalFiles, directory: RunDirectory, *, threads: int = 1) -> Inputs:
    """Return a benchmark's candidates and judgments.

    Args:
        benchmark: the definition.
        local: files that replace what it names.
        directory: where an index that has to be built and downloaded qrels go.
        threads: for the first stage; changes no ranking.

    Raises:
        FileNotFoundError: a missing file, or something that is neither local nor allowed to be fetched.
        ValueError: malformed input, or no query that is judged.
    """
    qrels, qrels_origin = _qrels(benchmark, local, directory)
    judgement = Judgement(
        qrels=qrels,
        measures=benchmark.measures,
        relevance_level=benchmark.relevance_level,
        references=benchmark.references,
    )
    judged = set(read_qrels(qrels)) if benchmark.queries == "judged" else None
    if local.candidates is not None:
        supply, origins = supply_from_file(local.candidates, only=judged), {"candidates": str(local.candidates)}
    else:
        queries, topics_origin = _topics(benchmark, local)
        kept = [query for query in queries if judged is None or query.qid in judged]
        if not kept:
            raise ValueError(f"none of the {len(queries)} topics ({topics_origin}) is judged in {qrels}")
        logger.info("%d of %d topics are run (queries: %s)", len(kept), len(queries), benchmark.queries)
        supply, index_origin = _first_stage(benchmark, local, directory, kept, threads)
        origins = {"topics": topics_origin, "index": index_origin}
    origins["qrels"] = qrels_origin
    for name, origin in origins.items():
        logger.info("%s: %s", name, origin)
    found = Supply(identity=supply.identity, rankings=supply.rankings, retrieves=supply.retrieves, origins=origins)
    return Inputs(found, judgement)


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
    with atomic_writer(directory.qrels) as file:
        for judgment in _fetched(dataset, "qrels", "--qrels FILE"):
            file.write(f"{judgment.query_id} 0 {judgment.doc_id} {judgment.relevance}\n")
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
    return [Query(str(query.query_id), query.default_text()) for query in fetched], f"ir_datasets {dataset}"


def _dataset_id(benchmark: Benchmark, local: LocalFiles, what: str, flag: str) -> str:
    dataset = benchmark.collection.ir_datasets
    if dataset is None:
        raise FileNotFoundError(f"benchmark {benchmark.name} names no ir_datasets entry for its {what}; pass {flag}")
    if local.offline:
        raise FileNotFoundError(
            f"--offline: the {what} of {benchmark.name} would come from ir_datasets ({dataset}), which may open a "
            f"socket; pass {flag}"
        )
    return dataset


def _fetched(dataset: str, what: str, flag: str) -> Iterator[Any]:
    """Records of ir_datasets, whose failures (no network, no such id) become one error that says what to do."""
    import ir_datasets

    try:
        loaded = ir_datasets.load(dataset)
        yield from loaded.qrels_iter() if what == "qrels" else loaded.queries_iter()
    except (OSError, RuntimeError, KeyError, AttributeError) as error:
        raise FileNotFoundError(f"ir_datasets could not give the {what} of {dataset} ({error}); pass {flag}") from error


# ----------------------------------------------------------------------------------------------------- first stage


def _first_stage(
    benchmark: Benchmark, local: LocalFiles, directory: RunDirectory, queries: Sequence[Query], threads: int
) -> tuple[Supply, str]:
    stage = benchmark.first_stage
    corpus = local.corpus or (None if local.index else benchmark.collection.embedded_file("corpus.jsonl"))
    if corpus is not None:
        target = Path(local.index) if local.index else directory.index
        supply = _supply_from_corpus(stage, corpus, target, queries, ours=local.index is None, threads=threads)
        return supply, f"{target}, from {corpus}"
    index = local.index or benchmark.collection.pyserini_index
    if index is None:
        raise FileNotFoundError(
            f"benchmark {benchmark.name} names no prebuilt index; pass --corpus, --index or --candidates"
        )
    if Path(index).is_dir():
        return supply_from_source(_bm25(index, stage, threads), queries), index
    if local.offline:
        raise FileNotFoundError(
            f"--offline: index {index} is no folder here and would be downloaded by Pyserini; "
            f"pass --corpus FILE, --index FOLDER or --candidates FILE"
        )
    # Described by its name: asking the source itself would start Java and fetch the index only to continue a run.
    identity = _identity({"index": index}, stage, queries)
    source = _bm25(index, stage, threads)
    return Supply(identity=identity, rankings=lambda: source.retrieve(queries), retrieves=True), index


def _supply_from_corpus(
    stage: FirstStage, corpus: Path, target: Path, queries: Sequence[Query], *, ours: bool, threads: int
) -> Supply:
    """Candidates of a corpus; its index is built when they are first asked for, and used again afterwards."""
    checksum = file_sha256(corpus, "corpus")

    def retrieve() -> Iterator[Ranking]:
        _ensure_index(corpus, checksum, target, multifield=bool(stage.fields), ours=ours, threads=threads)
        return _bm25(str(target), stage, threads).retrieve(queries)

    identity = _identity({"corpus_sha256": checksum}, stage, queries)
    return Supply(identity=identity, rankings=retrieve, retrieves=True)


def _identity(collection: Mapping[str, str], stage: FirstStage, queries: Sequence[Query]) -> dict[str, Any]:
    from headrank_pipeline.first_stage.jvm import versions

    return {
        **collection,
        "first_stage": stage.model_dump(),
        "queries_sha256": queries_sha256(queries),
        **versions(),
    }


def _ensure_index(corpus: Path, checksum: str, target: Path, *, multifield: bool, ours: bool, threads: int) -> None:
    """Build the index unless it is there and was built from the same corpus."""
    from headrank_pipeline.first_stage.index import build_index, index_identity
    from headrank_pipeline.first_stage.jvm import versions

    collection = "BeirMultifieldCollection" if multifield else "BeirFlatCollection"
    wanted = {"corpus_sha256": checksum, "collection": collection, **versions()}
    known = index_identity(target) or {}
    if wanted.items() <= known.items():
        logger.info("index: %s was built from this corpus, used again", target)
        return
    if known and not ours:
        changed = "; ".join(f"{k}: there {known.get(k)}, wanted {v}" for k, v in wanted.items() if known.get(k) != v)
        raise ValueError(
            f"{target}: holds an index of another corpus or kind ({changed}); choose another --index, or drop --corpus "
            f"to use it as it is"
        )
    build_index(corpus, target, threads=threads, multifield=multifield, overwrite=ours)


def _bm25(index: str, stage: FirstStage, threads: int) -> Source:
    from headrank_pipeline.first_stage.lexical import bm25

    return bm25(
        index,
        k1=stage.k1,
        b=stage.b,
        hits=stage.hits,
        threads=threads,
        fields=stage.fields,
        remove_query=stage.remove_query,
    )
