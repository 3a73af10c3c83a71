"""headrank index, headrank retrieve: the first stage; the only commands besides run and demo that start Java."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.cli.commands import ASSIGNMENT, WritingCommand, assigned, echo_json, refuse_typed
from headrank_pipeline.pipeline import Source
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import CandidateLayout, read_topics, write_candidates, write_run

if TYPE_CHECKING:
    from headrank_pipeline.first_stage.index import IndexSummary

__all__ = ["index", "retrieve"]

logger = logging.getLogger(__name__)


@click.command(cls=WritingCommand)
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="BEIR or {id, contents} JSONL, or TSV.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the index.")
@click.option("--threads", default=1, show_default=True, help="Indexing threads; 1 keeps the order of the corpus.")
@click.option("--multifield", is_flag=True, help="Keep the title in a field of its own.")
@click.option("--language", help="Language of the corpus, for BM25's analyzer: de, zh, …  [default: en]")
@click.option("--dense", is_flag=True, help="Index vectors of --encoder; the same command continues a build.")
@click.option("--encoder", help="Folder of a sentence encoder, or its Hugging Face name, with --dense.")
@click.option(
    "--hnsw",
    is_flag=False,
    flag_value="faiss",
    type=click.Choice(["faiss", "lucene"]),
    help="Build for approximate search in large corpora, with --dense. FAISS builds it unless another name follows.",
)
@click.option(
    "--pooling",
    type=click.Choice(["cls", "mean"]),
    help="Pooling of the encoder's tokens, with --dense.  [default: as the folder states]",
)
@click.option(
    "--l2-norm/--no-l2-norm",
    default=None,
    help="Scale vectors to length 1, with --dense.  [default: as the folder states]",
)
@click.option("--query-prefix", help="Text set before every query, with --dense.")
@click.option("--passage-prefix", help="Text set before every passage, with --dense.")
@click.option("--device", default="cpu", show_default=True, help="Device of the encoder.")
@click.option("--overwrite", is_flag=True, help="Replace an index that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def index(
    corpus: Path,
    output: Path,
    threads: int,
    multifield: bool,
    language: str | None,
    dense: bool,
    encoder: str | None,
    hnsw: str | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Build a BM25 index of a corpus, or with --dense a FAISS or Lucene HNSW index."""
    if dense:
        refuse_typed("threads", "multifield", "language", because="for BM25; leave these or --dense out")
        summary = _dense_index(corpus, output, encoder, hnsw=hnsw, overwrite=overwrite, settings=settings)
    else:
        refuse_typed("encoder", "hnsw", *settings, because="for an index of vectors; add --dense")
        from headrank_pipeline.first_stage.index import ENGLISH, build_index

        summary = build_index(
            corpus, output, threads=threads, multifield=multifield, language=language or ENGLISH, overwrite=overwrite
        )
    if as_json:
        echo_json({**asdict(summary), "path": str(summary.path)})
        return
    empty = f", {summary.empty_docs} empty ones left out" if summary.empty_docs else ""
    click.echo(f"{summary.path}: {summary.docs} documents in {summary.seconds:.1f} s{empty}")


@click.command(cls=WritingCommand)
@click.option("--index", help="Folder of an index, or the name of a prebuilt one of Pyserini.")
@click.option("--run", type=click.Path(path_type=Path), help="Saved TREC run to take instead of searching an index.")
@click.option(
    "--texts", help="Source of passages that the index or run lacks: corpus file, Lucene index or ir_datasets:ID."
)
@click.option("--topics", required=True, type=click.Path(path_type=Path), help="TSV, BEIR JSONL or TREC topics.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="NAME.jsonl or NAME.jsonl.gz: candidates with text, for rerank; any other name: a TREC run.",
)
@click.option("--hits", type=click.IntRange(min=1), default=1000, show_default=True, help="Candidates per query.")
@click.option("--k1", type=click.FloatRange(min=0), default=0.9, show_default=True, help="Term frequency saturation.")
@click.option("--b", type=click.FloatRange(0, 1), default=0.4, show_default=True, help="Length normalisation of BM25.")
@click.option(
    "--fields",
    multiple=True,
    type=ASSIGNMENT,
    metavar="NAME=BOOST",
    help="Field boost of a multifield index; repeatable.",
)
@click.option("--language", help="Language of BM25's analyzer.  [default: the one `headrank index` noted, else en]")
@click.option("--remove-query", is_flag=True, help="Leave out the document whose id is the query's id.")
@click.option("--dense", is_flag=True, help="Search an index of vectors; BM25's flags do not apply.")
@click.option("--encoder", help="Encoder of the queries, with --dense.  [default: the index's own]")
@click.option(
    "--ef-search",
    type=click.IntRange(min=1),
    help="Breadth of the search, with --dense and HNSW.  [default: the index's own]",
)
@click.option("--threads", default=1, show_default=True, help="Search threads.")
@click.option("--tag", help="Last column of a TREC run.  [default: bm25, dense or saved]")
@click.option(
    "--layout",
    type=click.Choice(["rank_llm", "pyserini"]),
    default="rank_llm",
    show_default=True,
    help="Form of the candidates: rank_llm's, or replies of Pyserini's REST server. rerank reads both.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def retrieve(
    index: str | None,
    run: Path | None,
    texts: str | None,
    topics: Path,
    output: Path,
    hits: int,
    k1: float,
    b: float,
    fields: tuple[str, ...],
    language: str | None,
    remove_query: bool,
    dense: bool,
    encoder: str | None,
    ef_search: int | None,
    threads: int,
    tag: str | None,
    layout: CandidateLayout,
    as_json: bool,
) -> None:
    """Retrieve candidates with BM25, or by vectors with --dense; or add texts to the candidates of a saved --run."""
    as_candidates = _is_for_candidates(output)
    _refuse_idle_flags(run=run is not None, dense=dense, as_candidates=as_candidates)
    queries = read_topics(topics)
    if run is not None:
        if as_candidates and texts is None:
            logger.warning(
                "%s: candidates without text, which no reranker can read; name a source of texts with --texts", output
            )
        method, source, queries = "saved", *_saved(run, queries, texts, hits)
    elif index is None:
        raise click.UsageError("give --index to search an index, or --run for a saved TREC run")
    elif dense:
        from headrank_pipeline.first_stage import dense as dense_source

        method = "dense"
        source = dense_source(
            index, encoder, texts=texts, hits=hits, threads=threads, ef_search=ef_search, remove_query=remove_query
        )
    else:
        from headrank_pipeline.first_stage.lexical import bm25

        method = "bm25"
        scoring: dict[str, Any] = {"k1": k1, "b": b, "fields": _boosts(fields), "language": language}
        source = bm25(index, **scoring, texts=texts, hits=hits, threads=threads, remove_query=remove_query)
    sizes: list[int] = []
    rankings = _telling_of_empty(source.retrieve(queries), sizes)
    if as_candidates:
        write_candidates(output, rankings, layout)
    else:
        write_run(output, rankings, tag or method)
    counts = {"queries": len(queries), "candidates": sum(sizes)}
    if as_json:
        echo_json({"output": str(output), **counts, "source": source.describe()})
    else:
        form = "" if as_candidates else " in a TREC run"
        click.echo(f"{output}: {counts['queries']} queries, {counts['candidates']} candidates{form}")


def _refuse_idle_flags(*, run: bool, dense: bool, as_candidates: bool) -> None:
    of_bm25, of_vectors = ("k1", "b", "fields", "language"), ("encoder", "ef_search")
    if run:
        of_a_search = ("index", "dense", "remove_query", *of_vectors, *of_bm25)
        refuse_typed(*of_a_search, because="--run is taken as it is; leave these out")
    elif dense:
        refuse_typed(*of_bm25, because="for BM25; leave these or --dense out")
    else:
        refuse_typed(*of_vectors, because="for an index of vectors; add --dense")
    if as_candidates:
        refuse_typed("tag", because="the last column of a TREC run; candidates have none")
    else:
        refuse_typed("layout", because="the form of candidates, which a TREC run does not hold")


def _is_for_candidates(output: Path) -> bool:
    """Return whether a name is one of candidates and not of a TREC run."""
    if output.is_dir():  # told now, and not when all is retrieved
        raise click.BadParameter(f"{output}: a folder; name a file in it", param_hint="--output")
    if output.name.endswith((".jsonl", ".jsonl.gz")):
        return True
    if ".json" in output.suffixes:
        raise click.BadParameter(f"{output}: name it NAME.jsonl or NAME.jsonl.gz", param_hint="--output")
    return False


def _telling_of_empty(rankings: Iterator[Ranking], sizes: list[int]) -> Iterator[Ranking]:
    """Pass rankings on, and say at their end which had no candidate: a run file has no line for those.

    Args:
        rankings: what was found.
        sizes: gets the number of candidates of each.
    """
    without = []
    for ranking in rankings:
        sizes.append(len(ranking))
        if not ranking.candidates:
            without.append(ranking.query.qid)
        yield ranking
    if without:
        named = ", ".join(without[:3]) + (", …" if len(without) > 3 else "")
        logger.warning("%d queries found nothing (%s); where judged they count 0", len(without), named)


def _saved(run: Path, topics: list[Query], texts: str | None, hits: int) -> tuple[Source, list[Query]]:
    """Return a saved run as a first stage, and those topics that it has candidates for."""
    from headrank_pipeline.first_stage import saved_run

    source = saved_run(run, topics, texts)
    queries = source.queries()
    if len(queries) < len(topics):
        logger.warning("%s: has no candidates for %d of %d topics", run, len(topics) - len(queries), len(topics))
    return source % hits, queries


def _dense_index(
    corpus: Path, output: Path, encoder: str | None, *, hnsw: str | None, overwrite: bool, settings: dict[str, Any]
) -> IndexSummary:
    from headrank_pipeline.first_stage.dense_index import Kind, build_dense_index
    from headrank_pipeline.first_stage.encoder import load_encoder

    if encoder is None:
        raise click.UsageError("--dense needs --encoder, the folder of a sentence encoder or its Hugging Face name")
    loaded = load_encoder(encoder, **settings)
    kinds: dict[str | None, Kind] = {None: "flat", "faiss": "hnsw", "lucene": "lucene-hnsw"}
    return build_dense_index(corpus, output, loaded, kind=kinds[hnsw], overwrite=overwrite, on_progress=_progress())


def _progress() -> Callable[[int, int], None]:
    """Return what shows how far an encoding is: a bar on a terminal, otherwise a log line per shard."""
    started = time.monotonic()
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(unit="passage", desc="encode", file=sys.stderr)

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        return show
    return lambda done, total: logger.info("encoded %d/%d passages, %.0f s", done, total, time.monotonic() - started)


def _boosts(texts: tuple[str, ...]) -> dict[str, float]:
    boosts = assigned(texts, "--fields")
    for name, value in boosts.items():
        if type(value) not in (int, float):
            raise click.BadParameter(
                f"{name}={value}: expected NAME=BOOST, for example title=1.0", param_hint="--fields"
            )
    return {name: float(value) for name, value in boosts.items()}
