"""A comparison as tables, figures and files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from headrank_pipeline.comparison.canvas import Picture, shortened
from headrank_pipeline.comparison.compare import FIRST_STAGE, Comparison
from headrank_pipeline.comparison.explanation_page import page_in_run
from headrank_pipeline.comparison.finished import FinishedRun, RunFile
from headrank_pipeline.comparison.report import Section, html_page
from headrank_pipeline.comparison.run_figures import cost_figure, difference_figure, scatter_figure
from headrank_pipeline.comparison.tables import Cell, Column, Shown, Table
from headrank_pipeline.files import atomic_writer, plain, write_json

__all__ = ["comparison_tables", "origin_of", "save_comparison", "write_pictures", "write_text"]

IDEAL = "ideal order of the candidates"
_MOST_QUERIES = 1000  # in the page; the CSV has them all
_GIB = 2**30
_OPEN = "not known, or not the same for all"

_COSTS = (
    (Column("p50 s", ".3f", "median seconds per query"), "latency_p50"),
    (Column("p95 s", ".3f", "95th percentile of seconds per query"), "latency_p95"),
    (Column("queries/s", ".2f"), "queries_per_second"),
    (Column("prompt tokens", ",.0f", "mean per query"), "prompt_tokens"),
    (Column("generated tokens", ",.0f", "mean per query"), "generated_tokens"),
    (Column("forward passes", ",.1f", "mean per query"), "forward_passes"),
    (Column("format ok", ".1%", "replies that needed no repair"), "formatting_success"),
    (Column("peak GiB", ".2f", "most memory that the process held"), "peak_memory_bytes"),
    (Column("GPU GiB", ".2f", "most memory allocated on the device"), "gpu_peak_memory_bytes"),
    (Column("batch", "d", "queries handed to the reranker at once"), "batch_size"),
    (Column("failed", "d", "queries that failed; they count 0"), "failed"),
)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the tables of a comparison: means, tests per measure, costs."""
    return [_means(comparison), *_all_tests(comparison), *_costs(comparison)]


def save_comparison(comparison: Comparison, output: Path, *, command: str) -> list[Path]:
    """Write Markdown, CSV, JSON, figures and the page, and return their paths; equal runs give equal files.

    Args:
        comparison: what to write.
        output: folder; made when missing.
        command: the command line, for captions and the page.
    """
    output.mkdir(parents=True, exist_ok=True)
    tables, pictures = comparison_tables(comparison), _pictures(comparison, command)
    facts = _facts(comparison, command)
    written = write_pictures(output, pictures)
    for name, frame in (
        ("summary.csv", comparison.summary),
        ("tests.csv", comparison.tests),
        ("per_query.csv", comparison.per_query),
    ):
        written.append(write_text(output / name, frame.to_csv(index=False, lineterminator="\n")))
    notes = "".join(f"- {note}\n" for note in comparison.notes)
    lines = [f"- {name}: {value}\n" for name, value in facts]
    markdown = "\n".join(["# Comparison\n", notes, *(table.to_markdown() for table in tables), "".join(lines)])
    written.append(write_text(output / "comparison.md", markdown))
    write_json(output / "comparison.json", comparison_record(comparison, command))
    page = html_page(
        f"{len(comparison.runs)} {'runs' if len(comparison.runs) > 1 else 'run'} compared",
        _summary_line(comparison),
        facts=facts,
        notes=comparison.notes,
        sections=_sections(comparison, pictures, output),
    )
    return [*written, output / "comparison.json", write_text(output / "report.html", page)]


def write_pictures(output: Path, pictures: Sequence[Picture]) -> list[Path]:
    """Write each picture with its caption below it and return the paths."""
    paths = [output / "figures" / f"{picture.name}.png" for picture in pictures]
    for path, picture in zip(paths, pictures, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.captioned_png)
    return paths


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all and return its path."""
    with atomic_writer(path) as file:
        file.write(text)
    return path


def origin_of(runs: Sequence[FinishedRun | RunFile], files: str, command: str) -> str:
    """Return the sentence of a caption that says which runs and files a figure is drawn from, and how."""
    commits = ", ".join(sorted({run.commit for run in runs}, key=lambda commit: (commit == "?", commit)))
    names = ", ".join(run.name for run in runs) if len(runs) <= 4 else f"{len(runs)} runs"
    return f"Drawn from {files} of {names} (made by commit {commits}). Command: {shortened(command, 240)}"


# ---------------------------------------------------------------------------------------------------------- tables


def _means(comparison: Comparison) -> Table:
    columns, names = [Column("system")], list(comparison.measures)
    for measure in names:
        columns += [
            Column(measure, ".4f", "mean over the queries of the judgments"),
            Column("95% interval", "low", "bootstrap over queries"),
        ]
    rows: list[list[Cell]] = []
    for row in comparison.summary.to_dict("records"):
        cells: list[Cell] = [row["system"]]
        for measure in names:
            low, high = row[f"{measure} low"], row[f"{measure} high"]
            cells += [row[measure], Shown(f"{low:.4f} to {high:.4f}", low)]
        rows.append(cells)
    note = f"{comparison.conditions['queries']} queries; one that a run lacks counts 0."
    if comparison.ceiling:
        rows.append([IDEAL, *(cell for measure in names for cell in (comparison.ceiling[measure], None))])
        recall = f"R@{comparison.finished[0].depth}"
        note += (
            f" {IDEAL}: the most that any reranker of these candidates can reach; they hold "
            f"{comparison.ceiling[recall]:.4f} of the relevant passages ({recall})."
        )
    return Table("Means", columns, rows, note)


def _all_tests(comparison: Comparison) -> list[Table]:
    return [_tests(comparison, measure) for measure in comparison.measures] if len(comparison.tests) else []


def _tests(comparison: Comparison, measure: str) -> Table:
    columns = [
        Column("system"),
        Column("difference", "+.4f", "mean of system minus baseline"),
        Column("95% interval", "low", "bootstrap over queries"),
        Column("win/tie/loss", "wins", "queries; sorts by wins minus losses"),
        Column("t-test p", "p", "paired, two-sided"),
        Column("Holm", "p", "corrected over the systems of this table"),
        Column("randomisation p", "p", "paired sign-flip test, two-sided"),
        Column("Holm", "p", "corrected over the systems of this table"),
        Column("Cohen's d", "+.3f", "mean of the paired differences in standard deviations"),
    ]
    rows: list[list[Cell]] = []
    for row in comparison.tests[comparison.tests["measure"] == measure].to_dict("records"):
        wins, ties, losses = row["wins"], row["ties"], row["losses"]
        rows.append(
            [
                row["system"],
                row["difference"],
                Shown(f"{row['low']:+.4f} to {row['high']:+.4f}", row["low"]),
                Shown(f"{wins}/{ties}/{losses}", wins - losses),
                row["t_test"],
                row["t_test_holm"],
                row["randomisation"],
                row["randomisation_holm"],
                row["effect_size"],
            ]
        )
    note = (
        f"Baseline: {comparison.baseline}. Where nothing differs, p is 1 by definition. Holm's correction is over the "
        f"{len(rows)} system{'s' if len(rows) > 1 else ''} of this table."
    )
    return Table(f"{measure} against {comparison.baseline}", columns, rows, note)


def _costs(comparison: Comparison) -> list[Table]:
    """One table; none where no run is known to have cost anything."""
    if not comparison.finished:
        return []
    runs = comparison.summary[comparison.summary["system"] != FIRST_STAGE]
    rows: list[list[Cell]] = [
        [row["system"], *(_cost(column, row[field]) for column, field in _COSTS)] for row in runs.to_dict("records")
    ]
    gpus = sorted({name for name in runs["gpu"] if isinstance(name, str)}) or ["none"]
    mixed = runs["batch_size"].nunique() > 1
    note = (
        f"Tokens and passes are means per query. Latency is a batch's time divided by its queries"
        f"{'; batch sizes differ, so compare latencies with care' if mixed else ''}. GPU: {', '.join(gpus)}. "
        f"- where a run's files do not say."
    )
    return [Table("Time, tokens, memory", [Column("system"), *(column for column, _ in _COSTS)], rows, note)]


def _cost(column: Column, value: Any) -> Cell:
    if value is None or math.isnan(value):
        return None
    if "GiB" in column.name:
        return float(value) / _GIB
    return int(value) if column.form == "d" else float(value)


def _per_query(comparison: Comparison, output: Path) -> Table:
    """Return a row per query; values of runs that hold an explanation page of the query link to it."""
    measure, *_ = comparison.measures
    values = comparison.values(measure)
    columns = [Column("query"), *(Column(shortened(system), ".4f", system) for system in values.columns)]
    folders = {run.name: run.path for run in comparison.finished}

    def cell(system: str, qid: str, value: float) -> Cell:
        page = page_in_run(folders[system], qid) if system in folders else None
        if page is None or not page.is_file():
            return value
        return Shown(f"{value:.4f}", value, quote(Path(os.path.relpath(page, output)).as_posix()))

    rows: list[list[Cell]] = [
        [str(qid), *(cell(system, str(qid), float(value)) for system, value in zip(values.columns, row, strict=True))]
        for qid, row in zip(values.index, values.to_numpy(), strict=True)
    ]
    linked = any(isinstance(value, Shown) for row in rows for value in row)
    note = "A value links to the page on which headrank explain shows the query's passages." if linked else ""
    return Table(f"{measure} of every query", columns, rows, note)


# --------------------------------------------------------------------------------------------------- page and files


def _pictures(comparison: Comparison, command: str) -> list[Picture]:
    measure, *_ = comparison.measures
    files = ["run.trec, first_stage.trec, manifest.json"] if comparison.finished else []
    files += ["run files"] if comparison.conditions["files"] else []
    origin = origin_of(comparison.runs, f"{', '.join(files)} and the judgments", command)
    pictures: list[Picture] = []
    baseline = comparison.baseline
    pictures.append(difference_figure(comparison.tests, measure=measure, baseline=baseline, origin=origin))
    pictures.append(scatter_figure(comparison.values(measure), measure=measure, baseline=baseline, origin=origin))
    cost = cost_figure(comparison.summary, measure=measure, origin=origin)
    return [*pictures, cost] if cost else pictures


def _sections(comparison: Comparison, pictures: Sequence[Picture], output: Path) -> list[Section]:
    tests, costs = _all_tests(comparison), _costs(comparison)
    named = {picture.name: picture for picture in pictures}
    queries = comparison.conditions["tested"]
    per_query = [_per_query(comparison, output)] if queries <= _MOST_QUERIES else []
    told = "" if per_query else f"{queries} queries are too many for a page; per_query.csv holds them."
    quality = [named["quality-cost"]] if "quality-cost" in named else []
    return [
        Section("Quality", tables=[_means(comparison)]),
        Section(f"Against the baseline: {comparison.baseline}", tables=tests, pictures=[named["difference"]]),
        *([Section("Cost", tables=costs, pictures=quality)] if costs else []),
        Section("Query by query", told, tables=per_query, pictures=[named["per-query"]]),
    ]


def _summary_line(comparison: Comparison) -> str:
    known = comparison.conditions
    benchmark = f"{known['benchmark']['name']}, " if known["benchmark"] else ""
    candidates = "the same candidates for every system, " if known["candidates"] and not known["files"] else ""
    depth = f"depth {known['depth']}, " if known["depth"] and not known["files"] else ""
    return (
        f"{benchmark}{known['queries']} queries, {candidates}{depth}baseline {comparison.baseline}. "
        f"Click a heading to sort."
    )


def _facts(comparison: Comparison, command: str) -> list[tuple[str, str]]:
    known = comparison.conditions
    benchmark = known["benchmark"]
    facts = [
        ("command", command),
        (
            "benchmark",
            f"{benchmark['name']}, version {benchmark['version']}"
            if benchmark
            else "none named, or not the same for all",
        ),
        ("candidates", json.dumps(known["candidates"], sort_keys=True) if known["candidates"] else _OPEN),
        ("depth", str(known["depth"] or _OPEN)),
        (
            "judgments",
            f"{known['qrels']}, SHA-256 {known['qrels_sha256'][:16]}…, relevant from {known['relevance_level']}",
        ),
        ("tests", f"over {known['tested']} queries, seed {known['seed']}"),
    ]
    return facts + [(run.name, run.origin) for run in comparison.runs]


def comparison_record(comparison: Comparison, command: str) -> dict[str, Any]:
    """Return everything but the values of single queries, as JSON-ready values."""
    return {
        "command": command,
        "conditions": plain(comparison.conditions),
        "notes": list(comparison.notes),
        "measures": list(comparison.measures),
        "baseline": comparison.baseline,
        "ceiling": dict(comparison.ceiling),
        "systems": frame_records(comparison.summary),
        "tests": frame_records(comparison.tests),
    }


def frame_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """JSON has neither nan nor infinity: both become null."""

    def known(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{str(name): known(value) for name, value in row.items()} for row in frame.to_dict("records")]
