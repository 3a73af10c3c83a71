"""The first stage of a run: the benchmark's BM25, or a dense, impact or fused one in its place.

What determines the candidates is known without opening anything: an index is opened, built or downloaded when
candidates are first asked for, so that a run whose candidates are there continues without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from headrank_pipeline.experiment.batches import CandidateSource, queries_sha256
from headrank_pipeline.experiment.benchmark import FirstStage
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.files import open_input
from headrank_pipeline.first_stage.index import ENGLISH, check_language
from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import RRF_K, fuse
from headrank_pipeline.records import Query, Ranking

if TYPE_CHECKING:
    from headrank_pipeline.pipeline import Source

__all__ = ["BM25", "FirstStageOptions", "Located", "Workspace", "first_stage_supply"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStageOptions:
    """A first stage in place of the benchmark's own; hits, remove_query and exclusions stay the benchmark's.

    Args:
        method: ``fusion`` joins the benchmark's BM25 and a dense index by reciprocal ranks.
        dense_index: folder or name of the dense index, for fusion.
        encoder: encoder of queries, for dense, impact and fusion; with a corpus it encodes passages, too.
        texts: where passages come from when the index stores none.
        language: language of BM25's analyzer; None takes the index's, or English for an index that is built.
        k1: term frequency saturation of BM25; None takes the benchmark's.
        b: length normalisation of BM25; None takes the benchmark's.
        rrf_k: the constant of the fusion.
        threads: search threads; they change no ranking.
    """

    method: Literal["bm25", "dense", "impact", "fusion"] = "bm25"
    dense_index: str | None = None
    encoder: str | None = None
    texts: str | None = None
    language: str | None = None
    k1: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    b: Annotated[float, Field(ge=0, le=1)] | None = None
    rrf_k: int = RRF_K
    threads: int = 1

    @classmethod
    def read(cls, method: str, options: Mapping[str, Any]) -> FirstStageOptions:
        """Return the first stage of a method with options by their names.

        Raises:
            ValueError: an option that there is not, that this method does not know, or of the wrong type.
        """
        names = {own.name for own in fields(cls)} - {"method"}
        refuse_unknown(f"first stage {method}", options, others=tuple(sorted(names)))
        if "rrf_k" in options and method != "fusion":
            raise ValueError(f"rrf_k is for first stage fusion; {method} has none")
        return read_settings(cls, f"first stage {method}", {"method": method, **options})

    def __post_init__(self) -> None:
        for name in ("rrf_k", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.language is not None:
            check_language(self.language)
        for name in ("language", "k1", "b"):
            if getattr(self, name) is not None and self.method not in ("bm25", "fusion"):
                raise ValueError(f"{name} is for BM25; first stage {self.method} has none")
        if self.method == "bm25" and (self.dense_index or self.encoder):
            raise ValueError("dense_index and encoder are for first stage dense, impact or fusion")
        if self.method != "fusion" and self.dense_index:
            raise ValueError(f"dense_index is for first stage fusion; name the index of {self.method} by index=FOLDER")

    def bm25(self, stage: FirstStage) -> FirstStage:
        """Return a benchmark's BM25 with the parameters that were chosen in place of its own."""
        chosen = {name: value for name in ("k1", "b") if (value := getattr(self, name)) is not None}
        return stage.model_copy(update=chosen)

    def refuse_beside_candidates(self) -> None:
        """Raise ValueError where something was chosen: with saved candidates nothing is retrieved."""
        chosen = {own.name: value for own in fields(self) if (value := getattr(self, own.name)) != own.default}
        if chosen:
            names = {name: "first_stage" if name == "method" else f"first stage option {name}" for name in chosen}
            told = [f"{names[name]}={value}" for name, value in chosen.items()]
            raise ValueError(f"candidates are taken as they are: drop {', '.join(told)}")


BM25 = FirstStageOptions()


@dataclass(frozen=True, slots=True)
class Located:
    """Where an index is.

    Args:
        index: folder or name; with `corpus` where to build, None for the run directory.
        corpus: gives the file that it is built from; takes a path for one that has to be fetched.
        texts: where passages come from that the index does not store.
    """

    index: str | None
    corpus: Callable[[Path], Path] | None = None
    texts: str | None = None


@dataclass(frozen=True, slots=True)
class Workspace:
    """What a first stage is, apart from its indexes.

    Args:
        stage: first stage that the benchmark defines, with the parameters that the user chose.
        choice: what the user chose in its place.
        directory: where an index that has to be built goes.
        exclude: docids to leave out, per qid.
    """

    stage: FirstStage
    choice: FirstStageOptions
    directory: RunDirectory
    exclude: Mapping[str, Collection[str]] = field(default_factory=dict)

    def fetched(self, corpus: Callable[[Path], Path]) -> Path:
        """Return the file of a corpus."""
        return corpus(self.directory.path / "corpus.jsonl")

    def removal(self) -> dict[str, Any]:
        """Return what describes the documents left out."""
        from headrank_pipeline.first_stage.search import Removal

        return Removal(self.stage.remove_query, self.exclude).describe()

    def common(self) -> dict[str, Any]:
        """Return the arguments that every first stage takes."""
        stage = self.stage
        return {
            "hits": stage.hits,
            "threads": self.choice.threads,
            "remove_query": stage.remove_query,
            "exclude": self.exclude,
        }


@dataclass(frozen=True, slots=True)
class _Stage:
    """A first stage that is not open yet: what determines its candidates, how to open it, where it comes from."""

    identity: Mapping[str, Any]
    open: Callable[[], Source]
    origin: str


def first_stage_supply(setting: Workspace, indexes: Sequence[Located], queries: Sequence[Query]) -> CandidateSource:
    """Return the candidates of a first stage.

    Args:
        setting: the first stage.
        indexes: BM25's and the dense one for fusion, else the one index.
        queries: what it is asked.

    Raises:
        FileNotFoundError: an index that is not there.
        ValueError: an index of another corpus, or a choice that lacks something.
    """
    stage = _stage(setting, indexes)
    identity = {**stage.identity, "queries_sha256": queries_sha256(queries)}

    def search(asked: Sequence[Query]) -> Iterator[Ranking]:
        return stage.open().retrieve(asked)

    return CandidateSource(
        identity=identity,
        rankings=lambda: search(queries),
        retrieves=True,
        origins={"index": stage.origin},
        queries=queries,
        search=search,
    )


def _stage(setting: Workspace, indexes: Sequence[Located]) -> _Stage:
    if setting.choice.method == "bm25":
        return _lexical(setting, *indexes)
    if setting.choice.method == "dense":
        return _dense(setting, *indexes)
    if setting.choice.method == "impact":
        return _impact(setting, *indexes)
    lexical, dense = indexes
    parts, k, hits = [_lexical(setting, lexical), _dense(setting, dense)], setting.choice.rrf_k, setting.stage.hits
    return _Stage(
        {"fusion": [dict(part.identity) for part in parts], "k": k, "hits": hits},
        lambda: fuse(*(part.open() for part in parts), k=k) % hits,
        " | ".join(part.origin for part in parts),
    )


# -------------------------------------------------------------------------------------------------------------- lexical


def _lexical(setting: Workspace, place: Located) -> _Stage:
    language = setting.choice.language
    if place.corpus is not None:
        return _lexical_of_corpus(setting, place, setting.fetched(place.corpus))
    assert place.index is not None
    index = place.index
    source = _bm25(index, setting, texts=place.texts, language=language)
    if Path(index).is_dir():
        built_from = None if place.texts else _built_from(Path(index), setting.stage, language)
        identity = {"source": source.describe()} if built_from is None else _identity(built_from, setting)
        return _Stage(identity, lambda: source, index)
    # Described by its name: asking the source itself would start Java and fetch the index only to continue a run.
    named = {"index": index} | ({"texts": place.texts} if place.texts else {})
    return _Stage(_identity(named | _spoken(language), setting), lambda: source, index)


def _lexical_of_corpus(setting: Workspace, place: Located, corpus: Path) -> _Stage:
    """BM25 over a corpus; its index is built when candidates are first asked for, and used again afterwards."""
    from headrank_pipeline.first_stage.index import build_index, index_identity

    language = setting.choice.language or ENGLISH
    read, stage = open_input(corpus, "corpus"), setting.stage
    target = Path(place.index) if place.index else setting.directory.index

    def opened() -> Source:
        known = index_identity(target)
        known = {} if known is None else {"language": ENGLISH, **known}
        if not _is_there(target, _wanted(read.sha256, stage, language), known, ours=place.index is None):
            build_index(
                read,
                target,
                threads=setting.choice.threads,
                multifield=bool(stage.fields),
                language=language,
                overwrite=place.index is None,
            )
        return _bm25(str(target), setting)

    collection = {"corpus_sha256": read.sha256} | _spoken(language)
    return _Stage(_identity(collection, setting), opened, f"{target}, from {corpus}")


def _built_from(index: Path, stage: FirstStage, language: str | None) -> dict[str, str] | None:
    """The corpus of an index that is as `_lexical_of_corpus` builds it, or None: then the index is what it is."""
    from headrank_pipeline.first_stage.index import index_identity

    known = index_identity(index) or {}
    corpus, spoken = known.get("corpus_sha256"), known.get("language", ENGLISH)
    if corpus is None or language not in (None, spoken):  # of another language: refused when it is opened
        return None
    as_built = _wanted(corpus, stage, spoken).items() <= {"language": spoken, **known}.items()
    return {"corpus_sha256": corpus, **_spoken(spoken)} if as_built else None


def _wanted(corpus_sha256: str, stage: FirstStage, language: str) -> dict[str, Any]:
    """What an index notes of itself that is built for a first stage."""
    from headrank_pipeline.first_stage.jvm import versions

    collection = "BeirMultifieldCollection" if stage.fields else "BeirFlatCollection"
    return {"corpus_sha256": corpus_sha256, "collection": collection, "language": language, **versions()}


def _spoken(language: str | None) -> dict[str, str]:
    return {} if language in (None, ENGLISH) else {"language": str(language)}


def _identity(collection: Mapping[str, str], setting: Workspace) -> dict[str, Any]:
    from headrank_pipeline.first_stage.jvm import versions

    excluded = setting.removal()["exclude_sha256"]
    stated = setting.stage.model_dump() | ({"exclude_sha256": excluded} if excluded else {})
    return {**collection, "first_stage": stated, **versions()}


def _is_there(target: Path, wanted: Mapping[str, Any], known: Mapping[str, Any], *, ours: bool) -> bool:
    if wanted.items() <= known.items():
        logger.info("index: %s was built from this corpus, used again", target)
        return True
    if known and not ours:
        changed = "; ".join(f"{k}: there {known.get(k)}, wanted {v}" for k, v in wanted.items() if known.get(k) != v)
        raise ValueError(
            f"{target}: holds an index of another corpus or kind ({changed}); choose another index, or drop the corpus "
            f"to use it as it is"
        )
    return False


def _bm25(index: str, setting: Workspace, *, texts: str | None = None, language: str | None = None) -> Source:
    from headrank_pipeline.first_stage.lexical import bm25

    stage = setting.stage
    return bm25(index, k1=stage.k1, b=stage.b, fields=stage.fields, texts=texts, language=language, **setting.common())


# ----------------------------------------------------------------------------------------------------- dense and impact


def _dense(setting: Workspace, place: Located) -> _Stage:
    from headrank_pipeline.first_stage.vectors import dense

    if place.corpus is not None:
        return _dense_of_corpus(setting, place, setting.fetched(place.corpus))
    assert place.index is not None
    source = dense(place.index, setting.choice.encoder, texts=place.texts, **setting.common())
    return _Stage({"source": source.describe()}, lambda: source, place.index)


def _dense_of_corpus(setting: Workspace, place: Located, corpus: Path) -> _Stage:
    from headrank_pipeline.first_stage.dense_index import build_dense_index
    from headrank_pipeline.first_stage.encoder import load_encoder
    from headrank_pipeline.first_stage.index import index_identity
    from headrank_pipeline.first_stage.vectors import dense

    if setting.choice.encoder is None:
        raise ValueError(
            f"first stage {setting.choice.method} with a corpus: pass first stage option encoder=FOLDER, a sentence "
            f"encoder, or drop the corpus and name indexes that are built (they know their encoder)"
        )
    encoder = load_encoder(setting.choice.encoder)
    target = Path(place.index) if place.index else setting.directory.path / "dense-index"
    read = open_input(corpus, "corpus")
    wanted = {"corpus_sha256": read.sha256, "encoder": encoder.describe()}

    def opened() -> Source:
        if not _is_there(target, wanted, index_identity(target) or {}, ours=place.index is None):
            build_dense_index(read, target, encoder, overwrite=place.index is None)
        return dense(target, encoder, **setting.common())

    stated = {"method": "dense", "hits": setting.stage.hits, **setting.removal()}
    return _Stage({**wanted, "first_stage": stated}, opened, f"{target}, from {corpus}")


def _impact(setting: Workspace, place: Located) -> _Stage:
    from headrank_pipeline.first_stage.sparse import impact

    assert place.index is not None and place.texts is not None
    source = impact(place.index, setting.choice.encoder, texts=place.texts, **setting.common())
    return _Stage({"source": source.describe()}, lambda: source, place.index)
