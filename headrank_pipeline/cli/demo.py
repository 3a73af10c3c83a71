"""headrank demo: the main job on the collection and the model that ship with the package."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.cli.reporting import command_line, echo_json, table
from headrank_pipeline.cli.reranking import measures_table

if TYPE_CHECKING:
    from headrank_pipeline.experiment.directory import RunDirectory
    from headrank_pipeline.experiment.judgement import Judged

__all__ = ["demo"]

_SHOWN = 3  # passages per query and stage
_TITLE_WIDTH = 40


@click.command()
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run directory."
)
@click.option("--examples", default=3, show_default=True, help="Queries to show.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(output: Path, examples: int, device: str, as_json: bool) -> None:
    """Index the embedded collection, retrieve with BM25, rerank with HeadRank, evaluate both."""
    from headrank_pipeline.experiment.benchmark import embedded_benchmark
    from headrank_pipeline.experiment.directory import RunDirectory
    from headrank_pipeline.experiment.inputs import LocalFiles, resolve_inputs
    from headrank_pipeline.experiment.runner import RunPlan, execute
    from headrank_pipeline.rerank.recipes import embedded_heads, embedded_model, headrank
    from headrank_pipeline.trec import read_qrels

    benchmark = embedded_benchmark("demo")
    inputs = resolve_inputs(benchmark, LocalFiles(offline=True), RunDirectory(output))
    plan = RunPlan(
        output=output,
        supply=inputs.supply,
        reranker=headrank(embedded_model(), embedded_heads(), device=device),
        depth=benchmark.depth,
        tag="headrank",
        benchmark={"name": benchmark.name, "version": benchmark.version},
        judgement=inputs.judgement,
    )
    outcome = execute(plan, overwrite=True, command=command_line())
    assert outcome.judged is not None  # the demo has qrels
    untrained = is_untrained(embedded_model())
    if as_json:
        echo_json({"output": str(output), "untrained": untrained, **_means(outcome.judged)})
        return
    click.echo(f"Queries that reranking moved most, losses among them ({_SHOWN} best passages before and after):")
    for line in example_lines(outcome.directory, outcome.judged, read_qrels(inputs.judgement.qrels), examples):
        click.echo(line)
    click.echo(f"\n{benchmark.title}: {outcome.judged.reranked.queries} queries, depth {benchmark.depth}\n")
    click.echo(measures_table(outcome.judged, "headrank"))
    if untrained:
        click.echo(
            "\nThe embedded model's weights are untrained: the headrank column shows that the way from query to run\n"
            "works, not how well HeadRank ranks. For that, give a real model to headrank run or headrank rerank."
        )
    click.echo(f"\nrun        {outcome.directory.run}\nmade by    {outcome.directory.manifest}")
    click.echo(f"raw scores {outcome.directory.scores}")


def is_untrained(model: Path) -> bool:
    """Return whether the embedded model's own configuration says that its weights are random."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return config.get("headrank", {}).get("trained") is False


def example_lines(
    directory: RunDirectory, judged: Judged, qrels: Mapping[str, Mapping[str, int]], count: int
) -> Iterator[str]:
    """Yield the best passages before and after of the queries that moved most, losses among them."""
    from headrank_pipeline.trec import read_candidates, read_run

    measure, *_ = judged.reranked.means
    before, after = judged.first_stage.per_query, judged.reranked.per_query
    moved = sorted(after, key=lambda qid: after[qid][measure] - before[qid][measure])
    losses = count // 3
    shown = {*moved[:losses], *moved[len(moved) - (count - losses) :]}
    reranked = read_run(directory.run)
    for ranking in read_candidates(directory.candidates):
        qid = ranking.query.qid
        if qid not in shown:
            continue
        yield f"\n{qid}: {ranking.query.text}   {measure} {before[qid][measure]:.2f} -> {after[qid][measure]:.2f}"
        titles = {c.docid: c.title or c.text or "" for c in ranking.candidates}
        grades = qrels.get(qid, {})
        rows = [
            [_passage(old.docid, titles, grades), _passage(new.docid, titles, grades)]
            for old, new in zip(ranking.candidates[:_SHOWN], reranked[qid][:_SHOWN], strict=True)
        ]
        yield table(["BM25 (grade, passage)", "HeadRank (grade, passage)"], rows)


def _passage(docid: str, titles: Mapping[str, str], grades: Mapping[str, int]) -> str:
    title = titles[docid] if len(titles[docid]) <= _TITLE_WIDTH else titles[docid][: _TITLE_WIDTH - 1] + "…"
    return f"{grades.get(docid, '-')} {docid} {title}"


def _means(judged: Judged) -> dict[str, Any]:
    return {"first_stage": dict(judged.first_stage.means), "reranked": dict(judged.reranked.means)}
