"""Where a benchmark's topics, qrels and candidates come from: local files, then what is shipped, then the network.

Each input is a value (`File`, `Dataset`, `Named`, `Nowhere`) with ``check()``, which fails where it cannot be had, and
``needs()``, which says what would be read. Neither opens a socket or starts Java. `Sources` holds those of a benchmark.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from headrank_pipeline.experiment import facts
from headrank_pipeline.experiment.batches import CandidateSource, supply_from_file, supply_from_source
from headrank_pipeline.experiment.benchmark import Benchmark
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.stages import BM25, FirstStageOptions, Located, Workspace, first_stage_supply
from headrank_pipeline.files import atomic_writer, check_input, numbered_lines
from headrank_pipeline.first_stage.index import ENGLISH
from headrank_pipeline.options import nearest
from headrank_pipeline.pipeline import MissingPrerequisite, Source
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import Qrels, read_topics

__all__ = ["Inputs", "LocalFiles", "Need", "Sources", "to_download", "topics_beside"]

logger = logging.getLogger(__name__)

_INDEX = "corpus=FILE, index=FOLDER or candidates=FILE"
_TEXTS = "first stage option texts=FILE, a corpus or the folder of a Lucene index with documents"


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
        given = {name: getattr(self, name) for name in ("corpus", "topics", "index")}
        beside = [f"{name}={value}" for name, value in given.items() if value is not None]
        if self.candidates is not None and beside:
            raise ValueError(f"candidates already hold queries and passages; drop {' and '.join(beside)}")


def topics_beside(corpus: Path | None) -> Path | None:
    """Return the file of queries that lies beside a corpus in BEIR's layout, or None."""
    names = ("queries.jsonl", "queries.jsonl.gz")
    return None if corpus is None else next((f for n in names if (f := corpus.with_name(n)).is_file()), None)


# ------------------------------------------------------------------------------------------------------------ one input


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
        md5: MD5 of the download, as its owner states it.
    """

    what: str
    name: str
    state: Literal["local", "cached", "download", "missing"]
    size: int | None
    place: str
    md5: str | None = None


def to_download(wanted: Iterable[Sequence[Need]]) -> tuple[int, int]:
    """Return the bytes to download, every address counted once, and how many downloads have no known size."""
    sizes = {need.place: need.size for found in wanted for need in found if need.state == "download"}
    return sum(size or 0 for size in sizes.values()), sum(size is None for size in sizes.values())


@dataclass(frozen=True, slots=True)
class File:
    """A file of the user, or one that ships with the package."""

    what: str
    path: Path
    note: str = ""

    def __str__(self) -> str:
        return f"{self.path}{self.note}"

    def check(self) -> None:
        """Raise FileNotFoundError where there is nothing to read."""
        try:
            check_input(self.path, self.what)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.what}={error}") from error

    def needs(self) -> list[Need]:
        """Return the file."""
        return [Need(self.what, str(self.path), "local" if self.path.exists() else "missing", None, str(self.path))]

    def open(self, _target: Path) -> Path:
        """Return the path."""
        return self.path


@dataclass(frozen=True, slots=True)
class Dataset:
    """Topics, qrels or documents (the corpus) of an entry of ir_datasets."""

    what: str
    name: str
    offline: bool

    def __str__(self) -> str:
        return f"ir_datasets {self.name}"

    def check(self) -> None:
        """Raise FileNotFoundError where nothing may be fetched; what is there already may open a socket, too."""
        if self.offline:
            raise FileNotFoundError(
                f"offline=True: the {self.what} would come from ir_datasets ({self.name}), which may open a socket; "
                f"pass {self.what}=FILE"
            )

    def needs(self) -> list[Need]:
        """Return what ir_datasets has kept or would download."""
        known = facts.known_of("datasets", self.name)
        if self.what == "corpus":
            if known and self.name.startswith("beir/"):  # in the archive of topics and qrels
                return [_download("corpus", self.name, known["downloads"][0])]
            return [Need("corpus", self.name, "download", None, f"ir_datasets:{self.name}/docs")]
        if not known:
            return [Need(self.what, self.name, "download", None, f"ir_datasets:{self.name}")]
        ready = [facts.datasets_home() / file for file in known["ready"]]
        if ready and all(file.exists() for file in ready):
            return [Need(self.what, self.name, "cached", None, str(ready[0].parent))]
        files = known["downloads"]
        if len(files) > 1:  # their addresses say which is which
            files = [file for file in files if ("qrels" in file["url"]) == (self.what == "qrels")]
        return [_download(self.what, self.name, file) for file in files]

    def records(self) -> Iterator[Any]:
        """Yield ir_datasets' records; its failures (no network, no such id) become one error that says what to do."""
        import ir_datasets

        facts.check_copies(self.name)
        told = f"ir_datasets could not give the {self.what} of {self.name}"
        try:
            loaded = ir_datasets.load(self.name)
        except KeyError as error:
            hint = nearest(self.name, ir_datasets.registry, otherwise="", most=3)
            raise FileNotFoundError(
                f"{told}: it knows no such collection; pass {self.what}=FILE. {hint}".rstrip(" .")
            ) from error
        kind = {"topics": "queries", "qrels": "qrels", "corpus": "docs"}[self.what]
        try:
            yield from getattr(loaded, f"{kind}_iter")()
        except ImportError as error:  # names the package and its pip command
            raise MissingPrerequisite(f"{told}: {error}") from error
        except (OSError, RuntimeError, KeyError, AttributeError) as error:
            raise FileNotFoundError(f"{told} ({error}); pass {self.what}=FILE") from error

    def open(self, target: Path) -> Path:
        """Write qrels in TREC's layout, or a corpus in BEIR's, to a file and return it; a corpus is written once.

        The name of a corpus file holds the dataset's: the folder may have served another benchmark before.
        """
        if self.what == "corpus":
            target = target.with_stem(f"{target.stem}-{self.name.replace('/', '+')}")
            if target.is_file():
                return target
        with atomic_writer(target) as file:
            if self.what == "corpus":
                file.writelines(map(_beir_line, self.records()))
                return target
            grades = []
            for judgment in self.records():
                file.write(f"{judgment.query_id} 0 {judgment.doc_id} {judgment.relevance}\n")
                grades.append(judgment.relevance)
            facts.check_grades(self.name, grades)
        return target


@dataclass(frozen=True, slots=True)
class Named:
    """An index, or another source of passages: a path, or a name that Pyserini or ir_datasets resolves."""

    what: str
    name: str
    flag: str
    offline: bool

    def check(self) -> None:
        """Raise FileNotFoundError where it would have to be fetched and nothing may be."""
        if self.offline and not Path(self.name).exists():
            raise FileNotFoundError(
                f"offline=True: {self.what} {self.name} is no file or folder here and would be downloaded; pass "
                f"{self.flag}"
            )

    def needs(self) -> list[Need]:
        """Return where it lies or comes from."""
        what, name = self.what, self.name
        if Path(name).exists():
            return [Need(what, name, "local", None, name)]
        known = facts.known_of("indexes", name)
        if not known:
            place = name if name.startswith("ir_datasets:") else f"pyserini:{name}"
            return [Need(what, name, "download", None, place)]
        for home in facts.pyserini_homes():
            if (home / "indexes" / known["folder"]).is_dir():
                return [Need(what, name, "cached", None, str(home / "indexes" / known["folder"]), known["md5"])]
        return [Need(what, name, "download", known["bytes"], known["url"], known["md5"])]


@dataclass(frozen=True, slots=True)
class Nowhere:
    """An input that neither the benchmark nor the user names."""

    what: str
    why: str
    flag: str
    note: str = ""

    def check(self) -> NoReturn:
        """Raise FileNotFoundError."""
        raise FileNotFoundError(f"{self.why}; pass {self.flag}{self.note}")

    def needs(self) -> list[Need]:
        """Return that it is missing."""
        return [Need(self.what, "none", "missing", None, f"pass {self.flag}")]

    def open(self, _target: Path) -> NoReturn:
        """Raise FileNotFoundError."""
        self.check()


def _beir_line(document: Any) -> str:
    text = getattr(document, "text", None)
    record = {"_id": document.doc_id, "title": getattr(document, "title", None) or ""}
    return json.dumps({**record, "text": document.default_text() if text is None else text}) + "\n"


Place = File | Dataset | Named | Nowhere


def _download(what: str, name: str, file: Mapping[str, Any]) -> Need:
    home = facts.datasets_home()
    places = [home / "downloads" / file["md5"], *([home / file["path"]] if file["path"] else [])]
    there = next((place for place in places if place.exists()), None)
    if there is not None:
        return Need(what, name, "cached", None, str(there), file["md5"])
    return Need(what, name, "download", file["bytes"], file["url"], file["md5"])


# ------------------------------------------------------------------------------------------------ all of a benchmark


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run needs besides its reranker."""

    supply: CandidateSource
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the inputs of one run come from.

    Args:
        benchmark: the definition.
        local: files that replace what it names.
        stage: a first stage in place of the benchmark's; published scores are then not checked.
        source: one that is open already, in place of both.
    """

    benchmark: Benchmark
    local: LocalFiles = field(default_factory=LocalFiles)
    stage: FirstStageOptions = BM25
    source: Source | None = None

    def check(self) -> None:
        """Fail where an input can come from nowhere; a model need not be loaded to learn that.

        Raises:
            FileNotFoundError: names what is missing and the argument that supplies it.
            ValueError: a first stage chosen beside saved candidates.
        """
        if self.local.candidates is not None and self.stage != BM25:
            self.stage.refuse_beside_candidates()
        for place in (self.qrels, self.queries, *self._others()):
            place.check()

    def needs(self) -> list[Need]:
        """Return what a run would read, in the order in which inputs are looked for."""
        queries, qrels = self.queries.needs(), self.qrels.needs()
        if {need.place for need in queries} == {need.place for need in qrels}:  # one archive holds both
            queries, qrels = [], [replace(need, what="topics, qrels") for need in qrels]
        others = [need for place in self._others() for need in place.needs()]
        return [*queries, *qrels, *list({need.place: need for need in reversed(others)}.values())[::-1]]

    def open(self, directory: RunDirectory) -> Inputs:
        """Return the candidates and judgments.

        Args:
            directory: where an index that has to be built and downloaded files go.

        Raises:
            FileNotFoundError: a missing file, or something that is neither local nor allowed to be fetched.
            ValueError: malformed input, or no query that is judged.
        """
        self.check()
        benchmark = self.benchmark
        stage, own = self.stage, benchmark.first_stage
        as_published = stage.language in (None, ENGLISH) and stage.k1 in (None, own.k1) and stage.b in (None, own.b)
        published = self.source is None and stage.method == "bm25" and as_published
        judgement = Judgement(
            qrels=self.qrels.open(directory.qrels),
            measures=benchmark.measures,
            relevance_level=benchmark.relevance_level,
            references=benchmark.references if published else (),
        )
        grades = judgement.grades
        dataset, grade = benchmark.collection.ir_datasets, benchmark.first_stage.exclude_grade
        facts.compare_qrels(benchmark.name, dataset, grades, str(self.qrels), without_grade=grade)
        exclude = self._exclusions(grades)
        judged = grades if benchmark.queries == "judged" else None
        if self.local.candidates is not None:
            supply = supply_from_file(self.local.candidates, only=judged)
            supply = _without(supply, benchmark.first_stage.remove_query, exclude)
        elif self.source is not None:
            supply = supply_from_source(self.source, self._judged_topics(judged))
            supply = _without(supply, benchmark.first_stage.remove_query, exclude)
            supply = replace(supply, origins={"topics": str(self.queries)})
        else:
            supply = self._retrieved(self._judged_topics(judged), exclude, directory)
        supply = replace(supply, origins={**supply.origins, "qrels": str(self.qrels)})
        for name, origin in supply.origins.items():
            logger.info("%s: %s", name, origin)
        return Inputs(supply, judgement)

    # ------------------------------------------------------------------------------------------------ topics and qrels

    @property
    def qrels(self) -> File | Dataset | Nowhere:
        """Where judgments come from."""
        return self._judged("qrels", self.local.qrels, "qrels.tsv")

    @property
    def queries(self) -> File | Dataset | Nowhere:
        """Where queries come from: topics, or saved candidates, which hold them."""
        if self.local.candidates is not None:
            return File("candidates", self.local.candidates)
        if self.local.topics is None and (beside := topics_beside(self.local.corpus)) is not None:
            return File("topics", beside, ", found beside the corpus")
        return self._judged("topics", self.local.topics, "queries.jsonl")

    def _judged(self, what: str, own: Path | None, name: str) -> File | Dataset | Nowhere:
        path = own or self.benchmark.collection.embedded_file(name)
        return self._dataset(what) if path is None else File(what, path)

    def _dataset(self, what: str) -> Dataset | Nowhere:
        name, notes = self.benchmark.collection.ir_datasets, self.benchmark.notes
        if name is not None:
            return Dataset(what, name, self.local.offline)
        told = f"benchmark {self.benchmark.name} names no ir_datasets entry for its {what}"
        return Nowhere(what, told, f"{what}=FILE", f" ({notes})" if notes else "")

    def _judged_topics(self, judged: Qrels | None) -> list[Query]:
        place, benchmark = self.queries, self.benchmark
        if isinstance(place, Dataset):
            queries = [Query(str(query.query_id), query.default_text()) for query in place.records()]
            facts.check_queries(place.name, len(queries))
        else:
            queries = read_topics(place.open(Path()))
        kept = [query for query in queries if judged is None or query.qid in judged]
        if not kept:
            raise ValueError(f"none of the {len(queries)} topics ({place}) is judged in {self.qrels}")
        logger.info("%d of %d topics are run (queries: %s)", len(kept), len(queries), benchmark.queries)
        if judged is not None:
            facts.compare_topics(benchmark.name, benchmark.collection.ir_datasets, kept, str(place))
        return kept

    # ----------------------------------------------------------------------------------------------------- first stage

    def _others(self) -> Iterator[Place]:
        """Everything but queries and qrels."""
        if self.local.exclusions is not None:
            yield File("exclusions", self.local.exclusions)
        if self.local.candidates is None and self.source is None:
            for places, _ in self._indexes():
                yield from places

    def _retrieved(
        self, queries: Sequence[Query], exclude: Mapping[str, frozenset[str]], directory: RunDirectory
    ) -> CandidateSource:
        setting = Workspace(self.stage.bm25(self.benchmark.first_stage), self.stage, directory, exclude)
        supply = first_stage_supply(setting, [located for _, located in self._indexes()], queries)
        return replace(supply, origins={"topics": str(self.queries), **supply.origins})

    def _indexes(self) -> list[tuple[list[Place], Located]]:
        """Each index of the first stage: where it and its passages come from, and what opens it."""
        if self.stage.method == "dense":
            return [self._dense(self.local.index, "index=FOLDER (or a name), or corpus=FILE")]
        if self.stage.method == "impact":
            return [self._impact()]
        if self.stage.method == "bm25":
            return [self._lexical()]
        flag = "first stage option dense_index=FOLDER (or a name), or corpus=FILE"
        return [self._lexical(), self._dense(self.stage.dense_index, flag)]

    def _lexical(self) -> tuple[list[Place], Located]:
        if (corpus := self._corpus(self.local.index)) is not None:
            return [corpus], Located(self.local.index, corpus.open)
        name, texts = self.local.index or self.benchmark.collection.pyserini_index, self.stage.texts
        index = self._index(name, f"benchmark {self.benchmark.name} names no prebuilt index", _INDEX)
        return [index, *self._texts(texts)], Located(name, texts=texts)

    def _dense(self, name: str | None, flag: str) -> tuple[list[Place], Located]:
        if (corpus := self._corpus(name)) is not None:
            return [corpus], Located(name, corpus.open)
        texts = self.stage.texts
        if texts is None and name is not None and not Path(name).is_dir():  # a folder may hold passages, too
            texts = facts.known_of("indexes", name).get("texts") or self.benchmark.collection.pyserini_index
        index = self._index(name, f"first stage {self.stage.method} needs an index of vectors", flag)
        return [index, *self._texts(texts)], Located(name, texts=self.stage.texts)

    def _impact(self) -> tuple[list[Place], Located]:
        name = None if self.local.corpus else self.local.index
        index = self._index(name, "first stage impact needs an impact index", "index=FOLDER (or a name), and no corpus")
        texts = self.stage.texts or self.benchmark.collection.pyserini_index
        without = Nowhere("texts", "impact indexes store no passages", _TEXTS)
        return [index, *(self._texts(texts) or [without])], Located(name, texts=texts)

    def _index(self, name: str | None, why: str, flag: str) -> Named | Nowhere:
        return Nowhere("index", why, flag) if name is None else Named("index", name, _INDEX, self.local.offline)

    def _texts(self, name: str | None) -> list[Place]:
        return [] if name is None else [Named("texts", name, _TEXTS, self.local.offline)]

    def _corpus(self, index: str | None) -> File | Dataset | Nowhere | None:
        """The documents that an index is built from: the user's, else what ships, else of ir_datasets."""
        collection, local = self.benchmark.collection, self.local.corpus
        path = local or (None if index else collection.embedded_file("corpus.jsonl"))
        if path is not None:
            return File("corpus", path)
        there = index or self.local.index or collection.pyserini_index
        return None if there or collection.ir_datasets is None else self._dataset("corpus")

    # ------------------------------------------------------------------------------------------------------ exclusions

    def _exclusions(self, grades: Qrels) -> dict[str, frozenset[str]]:
        """Return qid -> docids that the benchmark leaves out before the cutoff."""
        grade = self.benchmark.first_stage.exclude_grade
        if self.local.exclusions is not None:
            return _read_exclusions(self.local.exclusions)
        if grade is None:
            return {}
        found = {qid: frozenset(d for d, known in judged.items() if known == grade) for qid, judged in grades.items()}
        found = {qid: docids for qid, docids in found.items() if docids}
        if not found:
            raise ValueError(
                f"benchmark {self.benchmark.name} leaves out documents of grade {grade}, and {self.qrels} has none; "
                f"pass exclusions=FILE with lines 'qid docid', or qrels that hold them (ir_datasets' do)"
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
    """Return candidates less what a query must not get; whoever saved or found them may not have known it."""
    from headrank_pipeline.first_stage.search import Removal

    if not remove_query and not exclude:
        return supply
    removal = Removal(remove_query, exclude)

    def kept(rankings: Iterable[Ranking]) -> Iterator[Ranking]:
        for ranking in rankings:
            yield ranking.without(removal.of(ranking.query.qid))

    search = supply.search
    return replace(
        supply,
        identity={**supply.identity, **removal.describe()},
        rankings=lambda: kept(supply.rankings()),
        search=None if search is None else lambda asked: kept(search(asked)),
    )
