"""headrank compare, headrank analyze: finished runs against each other, and what they do with their lists."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.cli.commands import WritingCommand, command_line, echo_json, in_flags

if TYPE_CHECKING:
    from headrank_pipeline.comparison.tables import Table

__all__ = ["analyze", "compare"]

# Spelled out here, since importing them would bring pandas to every command; a test holds them against the originals.
FIELDS = ("benchmark", "candidates", "depth", "topics", "qrels")
ANALYSES = {
    "middle-zone": "Promotion of passages from the middle of the prompt.",
    "position": "Share and spread of scores, and final ranks, by place in the prompt.",
    "order-sensitivity": "Agreement between runs of a system given other orders.",
    "length-bias": "CoRe's test: short relevant against long irrelevant passages.",
    "scatter": "Every query against the baseline.",
    "head-map": "How good every head was on the lists that heads were selected by.",
}

_runs = partial(click.argument, "runs", nargs=-1, required=True, type=click.Path(path_type=Path))
_QRELS = click.option(
    "--qrels",
    type=click.Path(path_type=Path),
    help="TREC or BEIR judgments, or ir_datasets:ID.  [default: those of the runs]",
)
_LEVEL = click.option(
    "--relevance-level",
    "-l",
    type=click.IntRange(min=1),
    help="Lowest grade that counts as relevant.  [default: the runs', or 1]",
)
_BASELINE = click.option(
    "--baseline",
    help="Run that the others are tested against: 'first stage' (or bm25), a run's name or path, or a tag.  "
    "[default: first stage]",
)
_SEED = click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap and the randomisation test.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(cls=WritingCommand)
@_runs(metavar="RUN...")
@_QRELS
@click.option("--output", type=click.Path(path_type=Path), help="Folder for Markdown, CSV, JSON, figures and the page.")
@_BASELINE
@click.option(
    "--measure",
    "-m",
    "measures",
    multiple=True,
    help="Measure to compare by; repeatable, the first is drawn.  [default: the runs', or nDCG@10, R@100]",
)
@_LEVEL
@_SEED
@click.option(
    "--allow-different",
    multiple=True,
    type=click.Choice(FIELDS),
    help="Compares runs that differ in this, too; repeatable.",
)
@_JSON
def compare(
    runs: tuple[Path, ...],
    qrels: Path | None,
    output: Path | None,
    baseline: str,
    measures: tuple[str, ...],
    relevance_level: int | None,
    seed: int,
    allow_different: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare runs on the same candidates: quality with paired tests, and cost.

    RUN is a run directory, or a TREC run file of any tool, plain or gzipped. A run file needs --qrels. If all runs are
    files there is no first stage, and the first run is the baseline.
    """
    from headrank_pipeline.comparison.canvas import require_pictures
    from headrank_pipeline.comparison.compare import compare as compare_runs
    from headrank_pipeline.comparison.comparison_report import comparison_record, comparison_tables, save_comparison

    if output:
        require_pictures()
    comparison = compare_runs(
        runs,
        qrels=qrels,
        baseline=baseline,
        measures=measures,
        relevance_level=relevance_level,
        seed=seed,
        allow_different=allow_different,
    )
    written = save_comparison(comparison, output, command=command_line()) if output else []
    if as_json:
        echo_json({**comparison_record(comparison, command_line()), "files": [str(path) for path in written]})
        return
    for note in comparison.notes:
        click.echo(f"note: {note}", err=True)
    _echo(comparison_tables(comparison), written)


@click.command(cls=WritingCommand)
@_runs(metavar="RUN_DIR...")
@_QRELS
@click.option("--output", type=click.Path(path_type=Path), help="Folder for figures, CSV, Markdown and the page.")
@click.option("--middle-zone", is_flag=True, help=ANALYSES["middle-zone"])
@click.option("--position", is_flag=True, help=ANALYSES["position"])
@click.option("--order-sensitivity", is_flag=True, help=ANALYSES["order-sensitivity"])
@click.option("--length-bias", is_flag=True, help=ANALYSES["length-bias"])
@click.option("--scatter", is_flag=True, help=ANALYSES["scatter"])
@click.option("--head-map", is_flag=True, help=ANALYSES["head-map"])
@click.option(
    "--zone",
    nargs=2,
    type=float,
    default=(0.25, 0.75),
    show_default=True,
    help="Where the middle of the prompt begins and ends, as shares of it.",
)
@click.option("--top", default=0.25, show_default=True, help="Share of the list whose final ranks count as success.")
@click.option("--judged-only", is_flag=True, help="Leaves unjudged passages out of the middle zone.")
@click.option("--bins", default=10, show_default=True, help="Parts that the prompt is divided into.")
@click.option(
    "--scale",
    type=click.Choice(["auto", "raw", "rank"]),
    default="auto",
    show_default=True,
    help="How scores by place are drawn: as they are (raw), as ranks, or what suits the system.",
)
@click.option(
    "--length-ratio",
    default=0.5,
    show_default=True,
    help="Length bias: largest length of a query's longest relevant passage, as a share of its longest irrelevant one.",
)
@click.option(
    "--candidates", type=click.Path(path_type=Path), help="Candidates with texts, for runs that do not find theirs."
)
@click.option(
    "--heads-table",
    type=click.Path(path_type=Path),
    help="Per-head table of select-heads.  [default: beside the runs' head sets]",
)
@click.option("--head-measure", default="score", show_default=True, help="Column of that table to draw.")
@click.option("--measure", "-m", default="nDCG@10", show_default=True, help="Measure to analyse by.")
@_LEVEL
@_BASELINE
@_SEED
@_JSON
def analyze(
    runs: tuple[Path, ...],
    qrels: Path | None,
    output: Path | None,
    zone: tuple[float, float],
    top: float,
    as_json: bool,
    **rest: Any,
) -> None:
    """Look into runs; without a flag, everything that applies to them."""
    from headrank_pipeline.comparison.analysis import Zone
    from headrank_pipeline.comparison.analysis_report import Options, save_analysis
    from headrank_pipeline.comparison.analysis_report import analyze as analyze_runs
    from headrank_pipeline.comparison.comparison_report import frame_records

    wanted = [name for name in ANALYSES if rest.pop(name.replace("-", "_"))]
    options = Options(zone=Zone(*zone, top), **rest)
    found = analyze_runs(runs, qrels=qrels, only=wanted, options=options, command=command_line())
    written = save_analysis(found, output) if output else []
    if as_json:
        frames = {name: frame_records(frame) for name, frame in found.frames.items()}
        echo_json({"analyses": frames, "skipped": found.skipped, "files": [str(path) for path in written]})
        return
    for name, reason in found.skipped.items():
        click.echo(f"note: {name} left out: {in_flags(reason, click.get_current_context().command)}", err=True)
    _echo(found.tables, written)


def _echo(tables: list[Table], written: list[Path]) -> None:
    for table in tables:
        click.echo(f"{table.to_text()}\n{table.note}\n" if table.note else f"{table.to_text()}\n")
    for path in written:
        click.echo(str(path))
