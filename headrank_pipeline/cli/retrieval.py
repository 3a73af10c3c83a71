"""headrank index, headrank retrieve: the first stage; the only commands besides run and demo that start Java."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from headrank_pipeline.cli.reporting import echo_json

__all__ = ["index", "retrieve"]


@click.command()
@click.option("--corpus", required=True, type=click.Path(path_type=Path), help="BEIR or {id, contents} JSONL, or TSV.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Folder of the index.")
@click.option("--threads", default=1, show_default=True, help="1 keeps the order of the corpus.")
@click.option("--multifield", is_flag=True, help="Keep the title in a field of its own.")
@click.option("--overwrite", is_flag=True, help="Replace an index that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def index(corpus: Path, output: Path, threads: int, multifield: bool, overwrite: bool, as_json: bool) -> None:
    """Build a BM25 index of a corpus."""
    from headrank_pipeline.first_stage.index import build_index

    summary = build_index(corpus, output, threads=threads, multifield=multifield, overwrite=overwrite)
    if as_json:
        echo_json({**asdict(summary), "path": str(summary.path)})
        return
    empty = f", {summary.empty_docs} empty ones left out" if summary.empty_docs else ""
    click.echo(f"{summary.path}: {summary.docs} documents in {summary.seconds:.1f} s{empty}")


@click.command()
@click.option("--index", required=True, help="Folder of an index, or the name of a prebuilt one of Pyserini.")
@click.option("--topics", required=True, type=click.Path(path_type=Path), help="TSV, BEIR JSONL or TREC topics.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="NAME.jsonl or NAME.jsonl.gz: candidates with text, for rerank; any other name: a TREC run.",
)
@click.option("--hits", default=1000, show_default=True, help="Candidates per query.")
@click.option("--k1", default=0.9, show_default=True)
@click.option("--b", default=0.4, show_default=True)
@click.option("--fields", multiple=True, metavar="NAME=BOOST", help="Field boost of a multifield index; repeatable.")
@click.option("--remove-query", is_flag=True, help="Leave out the document whose id is the query's id.")
@click.option("--threads", default=1, show_default=True)
@click.option("--tag", default="bm25", show_default=True, help="Last column of a TREC run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def retrieve(
    index: str,
    topics: Path,
    output: Path,
    hits: int,
    k1: float,
    b: float,
    fields: tuple[str, ...],
    remove_query: bool,
    threads: int,
    tag: str,
    as_json: bool,
) -> None:
    """Retrieve candidates with BM25."""
    from headrank_pipeline.first_stage.lexical import bm25
    from headrank_pipeline.trec import read_topics, write_candidates, write_run

    boosts = dict(_boost(field) for field in fields) or None
    queries = read_topics(topics)
    source = bm25(index, k1=k1, b=b, hits=hits, threads=threads, fields=boosts, remove_query=remove_query)
    rankings = source.retrieve(queries)
    if output.name.endswith((".jsonl", ".jsonl.gz")):
        write_candidates(output, rankings)
    else:
        write_run(output, rankings, tag)
    if as_json:
        echo_json({"output": str(output), "queries": len(queries), "source": source.describe()})
    else:
        click.echo(f"{output}: {len(queries)} queries")


def _boost(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r}: expected NAME=BOOST, for example title=1.0", param_hint="--fields"
        ) from error
