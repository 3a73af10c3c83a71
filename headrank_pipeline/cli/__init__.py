"""The command line: parse, call one function, print what it returned."""

from __future__ import annotations

import click

from headrank_pipeline.cli.benchmarks import benchmarks
from headrank_pipeline.cli.calibrating import calibrate
from headrank_pipeline.cli.comparison import analyze, compare
from headrank_pipeline.cli.demo import demo
from headrank_pipeline.cli.doctor import doctor
from headrank_pipeline.cli.evaluation import evaluate
from headrank_pipeline.cli.explaining import explain
from headrank_pipeline.cli.hub import push
from headrank_pipeline.cli.learning import lists, select_heads, train
from headrank_pipeline.cli.mcp import mcp
from headrank_pipeline.cli.merging import merge
from headrank_pipeline.cli.reporting import ReportingGroup, start_logging
from headrank_pipeline.cli.reproducing import reproduce
from headrank_pipeline.cli.reranking import rerank
from headrank_pipeline.cli.retrieval import index, retrieve
from headrank_pipeline.cli.running import run
from headrank_pipeline.cli.serving import serve

__all__ = ["main"]


@click.group(cls=ReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Log every step, and show the traceback of an error.")
@click.version_option(package_name="headrank-pipeline")
def main(debug: bool) -> None:
    """Rerank Pyserini's candidates with selected attention heads of a language model.

    Results go to standard output, progress and logs to standard error. Exit status: 0 done, 2 bad arguments, 3 missing
    prerequisite (Java, GPU), 4 missing file or resource, 5 invalid data, 6 failure at run time, 7 some queries failed.
    """
    start_logging(debug=debug)


for command in (
    demo,
    benchmarks,
    index,
    retrieve,
    rerank,
    explain,
    run,
    merge,
    reproduce,
    evaluate,
    compare,
    analyze,
    lists,
    select_heads,
    train,
    push,
    calibrate,
    mcp,
    serve,
    doctor,
):
    main.add_command(command)
