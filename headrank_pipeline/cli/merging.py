"""headrank merge: the shards of a run become one run."""

from __future__ import annotations

from pathlib import Path

import click

from headrank_pipeline.cli.reranking import path_option, report
from headrank_pipeline.experiment import merging

__all__ = ["merge"]


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SHARD_DIR...")
@path_option("--qrels", "Judgments, if the file that the shards named is not there any more.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def merge(ctx: click.Context, output: Path, shards: tuple[Path, ...], qrels: Path | None, as_json: bool) -> None:
    """Make one run of all shards of `run --shard` or `rerank --shard`, equal to a run of one process.

    OUTPUT is a new folder. Every shard must be there once, finished, and run with the same settings.
    """
    report(ctx, merging.merge(output, shards, qrels=qrels), as_json=as_json)
