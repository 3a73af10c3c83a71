"""headrank evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from headrank_pipeline.cli.commands import echo_json, table
from headrank_pipeline.experiment.evaluate import evaluate as evaluate_run

__all__ = ["evaluate"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--qrels", required=True, type=click.Path(path_type=Path), help="TREC or BEIR judgments, or ir_datasets:ID."
)
@click.option(
    "--measure",
    "-m",
    "measures",
    multiple=True,
    help="nDCG@k, R@k, P@k, MAP, RR, RR@k, … or trec_eval's names; repeatable.  [default: nDCG@10, R@100]",
)
@click.option(
    "--relevance-level",
    "-l",
    type=int,
    help="Lowest relevant grade, for binary measures.  [default: that of the run's "
    "own evaluation, or of the benchmark that ir_datasets:ID names; else 1]",
)
@click.option("--per-query", "-q", is_flag=True, help="Print every query as well.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    run: Path, qrels: Path, measures: tuple[str, ...], relevance_level: int | None, per_query: bool, as_json: bool
) -> None:
    """Evaluate a TREC run, or the run.trec of a run directory; queries that it lacks count 0.

    RUN and --qrels may be pipes, or - for standard input.
    """
    result = evaluate_run(run, qrels, measures or None, relevance_level=relevance_level)
    if as_json:
        record = result.to_dict()
        if not per_query:
            del record["per_query"]
        echo_json(record)
        return
    names = list(result.means)
    rows = [[qid, *(f"{values[name]:.4f}" for name in names)] for qid, values in result.per_query.items()]
    rows = rows if per_query else []
    rows.append(["all", *(f"{result.means[name]:.4f}" for name in names)])
    if result.missing:
        answered = result.means_of_answered
        rows.append(["of the run", *(f"{answered[name]:.4f}" for name in names)])
    click.echo(table(["query", *names], rows))
    click.echo(f"{result.queries} queries, {len(result.missing)} of them missing from the run (counted 0)")
    if result.relevance_level != 1:
        click.echo(f"grades of {result.relevance_level} and above count as relevant in binary measures")
    if result.missing:
        click.echo(f"of the run: means over the {result.answered} judged queries that it has")
    if result.unjudged:
        click.echo(f"{len(result.unjudged)} queries of the run have no judgments (not counted)")
