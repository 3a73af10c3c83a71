"""The first stage of a run: the benchmark's BM25, or a dense, impact or fused one in its place.

What determines the candidates is known without opening anything: an index is opened, built or downloaded when
candidates are first asked for, so that a run whose candidates are there continues without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrank_pipeline.experiment.benchmark import Benchmark, FirstStage
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.supply import CandidateSource, queries_sha256
from headrank_pipeline.files import Input, open_input
from headrank_pipeline.first_stage.index import ENGLISH, check_language
from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import RRF_K, fuse
from headrank_pipeline.records import Query, Ranking

if TYPE_CHECKING:
    from headrank_pipeline.pipeline import Source

__all__ = ["FirstStageOptions", "Workspace", "first_stage_supply"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStageOptions:
    """A first stage in place of the benchmark's own; hits, remove_query and exclusions stay the benchmark's.

    Args:
        method: ``fusion`` joins the benchmark's BM25 and a dense index by reciprocal ranks.
        dense_index: with fusion: folder or name of the dense index.
        encoder: of queries, for dense, impact and fusion; with a corpus also of passages.
        texts: where passages come from when the index stores none.
        language: of BM25's analyzer; None: that of the index, English for one that is built.
        rrf_k: the constant of the fusion.
        threads: of the search; changes no ranking.
    """

    method: Literal["bm25", "dense", "impact", "fusion"] = "bm25"
    dense_index: str | None = None
    encoder: str | None = None
    texts: str | None = None
    language: str | None = None
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
            if self.method not in ("bm25", "fusion"):
                raise ValueError(f"language is for BM25's analyzer; first stage {self.method} has none")
        if self.method == "bm25" and (self.dense_index or self.encoder):
            raise ValueError("dense_index and encoder are for first stage dense, impact or fusion")
        if self.method != "fusion" and self.dense_index:
            raise ValueError(f"dense_index is for first stage fusion; with {self.method} name the index by --index")

    def refuse_beside_candidates(self) -> None:
        """Raise ValueError where something was chosen: with saved candidates nothing is retrieved."""
        chosen = [own.name for own in fields(self) if getattr(self, own.name) != own.default]
        if chosen:
            flags = ", ".join(
                "--first-stage" if name == "method" else f"--first-stage-option {name}" for name in chosen
            )
            raise ValueError(f"--candidates are taken as they are: drop {flags}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """Where a first stage works, beside what the benchmark says.

    Args:
        corpus: an index is built from it.
        index: folder or name of an index; with `corpus` where to build.
        offline: nothing is downloaded.
        directory: where an index that has to be built goes.
        threads: changes no ranking.
        exclude: docids to leave out, per qid.
    """

    corpus: Path | None
    index: str | None
    offline: bool
    directory: RunDirectory
    threads: int = 1
    exclude: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Stage:
    """A first stage that is not open yet: what determines its candidates, how to open it, where it comes from."""

    identity: Mapping[str, Any]
    open: Callable[[], Source]
    origin: str


def first_stage_supply(
    benchmark: Benchmark, choice: FirstStageOptions, setting: Workspace, queries: Sequence[Query]
) -> tuple[CandidateSource, str]:
    """Return the candidates of a first stage and where they come from.

    Raises:
        FileNotFoundError: an index that is neither local nor allowed to be fetched.
        ValueError: an index of another corpus, or a choice that lacks something.
    """
    stage = _stage(benchmark, choice, setting)
    identity = {**stage.identity, "queries_sha256": queries_sha256(queries)}

    def search(asked: Sequence[Query]) -> Iterator[Ranking]:
        return stage.open().retrieve(asked)

    supply = CandidateSource(
        identity=identity, rankings=lambda: search(queries), retrieves=True, queries=queries, search=search
    )
    return supply, stage.origin


def _stage(benchmark: Benchmark, choice: FirstStageOptions, setting: Workspace) -> _Stage:
    if setting.offline and choice.texts is not None and not Path(choice.texts).exists():
        raise FileNotFoundError(
            f"--offline: texts {choice.texts} is no file or folder here and may open a socket; name a corpus file or "
            f"the folder of a Lucene index"
        )
    if choice.method == "bm25":
        return _lexical(benchmark, choice, setting)
    if choice.method == "dense":
        return _dense(benchmark, choice, setting, setting.index)
    if choice.method == "impact":
        return _impact(benchmark, choice, setting)
    parts = [_lexical(benchmark, choice, setting), _dense(benchmark, choice, setting, choice.dense_index)]
    return _Stage(
        {"fusion": [dict(part.identity) for part in parts], "k": choice.rrf_k, "hits": benchmark.first_stage.hits},
        lambda: fuse(*(part.open() for part in parts), k=choice.rrf_k) % benchmark.first_stage.hits,
        " | ".join(part.origin for part in parts),
    )


# -------------------------------------------------------------------------------------------------------------- lexical


def _lexical(benchmark: Benchmark, choice: FirstStageOptions, setting: Workspace) -> _Stage:
    stage = benchmark.first_stage
    corpus = setting.corpus or (None if setting.index else benchmark.collection.embedded_file("corpus.jsonl"))
    if corpus is not None:
        return _lexical_of_corpus(stage, corpus, setting, choice.language or ENGLISH)
    index = setting.index or benchmark.collection.pyserini_index
    if index is None:
        raise FileNotFoundError(
            f"benchmark {benchmark.name} names no prebuilt index; pass --corpus, --index or --candidates"
        )
    source = _bm25(index, stage, setting, texts=choice.texts, language=choice.language)
    if Path(index).is_dir():
        built_from = None if choice.texts else _built_from(Path(index), stage, choice.language)
        identity = {"source": source.describe()} if built_from is None else _identity(built_from, stage, setting)
        return _Stage(identity, lambda: source, index)
    _refuse_download(index, setting)
    # Described by its name: asking the source itself would start Java and fetch the index only to continue a run.
    named = {"index": index} | ({"texts": choice.texts} if choice.texts else {})
    return _Stage(_identity(named | _spoken(choice.language), stage, setting), lambda: source, index)


def _lexical_of_corpus(stage: FirstStage, corpus: Path, setting: Workspace, language: str) -> _Stage:
    """BM25 over a corpus; its index is built when candidates are first asked for, and used again afterwards."""
    read = open_input(corpus, "corpus")
    target = Path(setting.index) if setting.index else setting.directory.index

    def opened() -> Source:
        _ensure_index(read, target, stage, language, setting)
        return _bm25(str(target), stage, setting)

    collection = {"corpus_sha256": read.sha256} | _spoken(language)
    return _Stage(_identity(collection, stage, setting), opened, f"{target}, from {corpus}")


def _built_from(index: Path, stage: FirstStage, language: str | None) -> dict[str, str] | None:
    """The corpus of an index that is as `_ensure_index` would build it, or None: then the index is what it is."""
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


def _identity(collection: Mapping[str, str], stage: FirstStage, setting: Workspace) -> dict[str, Any]:
    from headrank_pipeline.first_stage.jvm import versions
    from headrank_pipeline.first_stage.removal import Removal

    excluded = Removal(stage.remove_query, setting.exclude).describe()["exclude_sha256"]
    stated = stage.model_dump() | ({"exclude_sha256": excluded} if excluded else {})
    return {**collection, "first_stage": stated, **versions()}


def _ensure_index(corpus: Input, target: Path, stage: FirstStage, language: str, setting: Workspace) -> None:
    """Build the index unless it is there and was built from the same corpus."""
    from headrank_pipeline.first_stage.index import build_index, index_identity

    wanted, multifield = _wanted(corpus.sha256, stage, language), bool(stage.fields)
    ours = setting.index is None
    known = index_identity(target)
    known = {} if known is None else {"language": ENGLISH, **known}
    if not _is_there(target, wanted, known, ours=ours, flag="--index"):
        build_index(corpus, target, threads=setting.threads, multifield=multifield, language=language, overwrite=ours)


def _is_there(target: Path, wanted: Mapping[str, Any], known: Mapping[str, Any], *, ours: bool, flag: str) -> bool:
    if wanted.items() <= known.items():
        logger.info("index: %s was built from this corpus, used again", target)
        return True
    if known and not ours:
        changed = "; ".join(f"{k}: there {known.get(k)}, wanted {v}" for k, v in wanted.items() if known.get(k) != v)
        raise ValueError(
            f"{target}: holds an index of another corpus or kind ({changed}); choose another {flag}, or drop --corpus "
            f"to use it as it is"
        )
    return False


def _refuse_download(index: str, setting: Workspace) -> None:
    if setting.offline:
        raise FileNotFoundError(
            f"--offline: index {index} is no folder here and would be downloaded by Pyserini; "
            f"pass --corpus FILE, --index FOLDER or --candidates FILE"
        )


def _bm25(
    index: str, stage: FirstStage, setting: Workspace, *, texts: str | None = None, language: str | None = None
) -> Source:
    from headrank_pipeline.first_stage.lexical import bm25

    return bm25(
        index,
        k1=stage.k1,
        b=stage.b,
        texts=texts,
        hits=stage.hits,
        threads=setting.threads,
        fields=stage.fields,
        language=language,
        remove_query=stage.remove_query,
        exclude=setting.exclude,
    )


# ----------------------------------------------------------------------------------------------------- dense and impact


def _dense(benchmark: Benchmark, choice: FirstStageOptions, setting: Workspace, index: str | None) -> _Stage:
    from headrank_pipeline.first_stage.dense import dense

    flag = "--first-stage-option dense_index=FOLDER" if choice.method == "fusion" else "--index FOLDER"
    corpus = setting.corpus or (None if index else benchmark.collection.embedded_file("corpus.jsonl"))
    if corpus is not None:
        return _dense_of_corpus(benchmark, choice, setting, corpus, index)
    if index is None:
        raise FileNotFoundError(f"--first-stage {choice.method}: pass {flag} (or a name), or --corpus FILE")
    source = dense(index, choice.encoder, texts=choice.texts, threads=setting.threads, **_common(benchmark, setting))
    if not Path(index).is_dir():
        _refuse_download(index, setting)
    return _Stage({"source": source.describe()}, lambda: source, index)


def _dense_of_corpus(
    benchmark: Benchmark, choice: FirstStageOptions, setting: Workspace, corpus: Path, index: str | None
) -> _Stage:
    from headrank_pipeline.first_stage.dense import dense
    from headrank_pipeline.first_stage.dense_index import build_dense_index
    from headrank_pipeline.first_stage.encoder import load_encoder
    from headrank_pipeline.first_stage.index import index_identity

    if choice.encoder is None:
        raise ValueError(
            f"--first-stage {choice.method} with --corpus: pass --first-stage-option encoder=FOLDER, a sentence "
            f"encoder, or drop --corpus and name indexes that are built (they know their encoder)"
        )
    encoder = load_encoder(choice.encoder)
    target = Path(index) if index else setting.directory.path / "dense-index"
    read = open_input(corpus, "corpus")
    wanted = {"corpus_sha256": read.sha256, "encoder": encoder.describe()}

    def opened() -> Source:
        known = index_identity(target) or {}
        if not _is_there(target, wanted, known, ours=index is None, flag="index"):
            build_dense_index(read, target, encoder, overwrite=index is None)
        return dense(target, encoder, threads=setting.threads, **_common(benchmark, setting))

    stated = {"method": "dense", **_stated(benchmark, setting)}
    return _Stage({**wanted, "first_stage": stated}, opened, f"{target}, from {corpus}")


def _impact(benchmark: Benchmark, choice: FirstStageOptions, setting: Workspace) -> _Stage:
    from headrank_pipeline.first_stage.impact import impact

    if setting.index is None or setting.corpus is not None:
        raise FileNotFoundError("--first-stage impact: pass --index, an impact index (folder or name), and no --corpus")
    if not Path(setting.index).is_dir():
        _refuse_download(setting.index, setting)
    texts = choice.texts or benchmark.collection.pyserini_index
    if texts is None or (setting.offline and choice.texts is None):
        raise FileNotFoundError(
            "--first-stage impact: impact indexes store no passages; pass --first-stage-option texts=FILE, a corpus "
            "or the folder of a Lucene index with documents"
        )
    source = impact(setting.index, choice.encoder, texts=texts, threads=setting.threads, **_common(benchmark, setting))
    return _Stage({"source": source.describe()}, lambda: source, setting.index)


def _common(benchmark: Benchmark, setting: Workspace) -> dict[str, Any]:
    stage = benchmark.first_stage
    return {"hits": stage.hits, "remove_query": stage.remove_query, "exclude": setting.exclude}


def _stated(benchmark: Benchmark, setting: Workspace) -> dict[str, Any]:
    from headrank_pipeline.first_stage.removal import Removal

    stage = benchmark.first_stage
    return {"hits": stage.hits, **Removal(stage.remove_query, setting.exclude).describe()}
