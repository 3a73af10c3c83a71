"""The analyses that a user asked for, or all that apply, as tables, figures and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from headrank_pipeline.comparison.analysis import Grades, Scale, Zone, middle_zone, place_shares, score_positions
from headrank_pipeline.comparison.biases import length_bias, order_sensitivity
from headrank_pipeline.comparison.canvas import Picture, shortened
from headrank_pipeline.comparison.comparable import find_qrels
from headrank_pipeline.comparison.compare import compare
from headrank_pipeline.comparison.comparison_report import origin_of, write_pictures, write_text
from headrank_pipeline.comparison.finished import FinishedRun, read_finished_runs
from headrank_pipeline.comparison.learning_figures import head_map
from headrank_pipeline.comparison.report import Section, html_page
from headrank_pipeline.comparison.run_figures import (
    length_bias_figure,
    middle_zone_figure,
    order_figure,
    place_figure,
    position_figure,
    scatter_figure,
    spread_figure,
)
from headrank_pipeline.comparison.tables import Cell, Column, Shown, Table
from headrank_pipeline.experiment.evaluate import defaults_of, open_qrels, parse_measure
from headrank_pipeline.files import Input, PathLike
from headrank_pipeline.trec import read_qrels

__all__ = ["ANALYSES", "Analysis", "Options", "analyze", "save_analysis"]

ANALYSES = ("middle-zone", "position", "order-sensitivity", "length-bias", "scatter", "head-map")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to analyse.

    Args:
        zone: which places are the middle, and which final ranks success.
        judged_only: leave unjudged passages out of the middle zone.
        bins: parts of the prompt in the position figures.
        scale: see `analysis.score_positions`.
        length_ratio: CoRe's; see `biases.length_bias`.
        candidates: texts, where the runs do not find theirs.
        measure: the quality shown with order, length and scatter.
        relevance_level: lowest relevant grade; None for that of the first run's evaluation.
        baseline: run that the scatter compares with; None for the first stage.
        seed: seed of the bootstraps.
        heads_table: per-head table of the head map; None for those beside the head sets that the runs read.
        head_measure: column of that table.
    """

    zone: Zone = field(default_factory=Zone)
    judged_only: bool = False
    bins: int = 10
    scale: Scale = "auto"
    length_ratio: float = 0.5
    candidates: Path | None = None
    measure: str = "nDCG@10"
    relevance_level: int | None = None
    baseline: str | None = None
    seed: int = 0
    heads_table: Path | None = None
    head_measure: str = "score"


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found.

    Args:
        sections: one per analysis, with its tables and pictures.
        frames: name -> the numbers behind them.
        skipped: analysis -> why it does not apply to these runs.
        facts: name and value of what all of it rests on.
    """

    sections: Sequence[Section]
    frames: Mapping[str, pd.DataFrame]
    skipped: Mapping[str, str]
    facts: Sequence[tuple[str, str]]

    @property
    def tables(self) -> list[Table]:
        """All tables, in order."""
        return [table for section in self.sections for table in section.tables]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [picture for section in self.sections for picture in section.pictures]


@dataclass(frozen=True)
class _Job:
    """What every analysis works on."""

    runs: Sequence[FinishedRun]
    qrels: Input
    grades: Grades
    level: int
    options: Options
    command: str

    def origin(self, files: str) -> str:
        return origin_of(self.runs, f"{files} and the judgments", self.command)


Part = tuple[Section, dict[str, pd.DataFrame]]


def analyze(
    paths: Sequence[str | Path],
    *,
    qrels: PathLike | None = None,
    only: Collection[str] = (),
    options: Options | None = None,
    command: str = "headrank analyze",
) -> Analysis:
    """Return the analyses of some run directories.

    Args:
        paths: run directories.
        qrels: a qrels file or ``ir_datasets:ID``; None for what the runs were evaluated with.
        only: names of `ANALYSES`; empty for all that apply, the others being listed with the reason.
        options: how.
        command: the command line, for captions.

    Raises:
        FileNotFoundError: a directory without a run, missing judgments, or texts that an analysis in `only` needs.
        ValueError: an unfinished run, an unknown analysis, or one in `only` that does not apply to these runs.
    """
    if unknown := sorted(set(only) - set(ANALYSES)):
        raise ValueError(f"no analysis {', '.join(unknown)}; known: {', '.join(ANALYSES)}")
    chosen = options or Options()
    parse_measure(chosen.measure)
    runs = read_finished_runs([Path(path) for path in paths])
    judgments = open_qrels(find_qrels(runs) if qrels is None else qrels)  # may be a pipe, and is read several times
    recorded = runs[0].recorded_evaluation or {}
    level = chosen.relevance_level or recorded.get("relevance_level", defaults_of(qrels)[1])
    job = _Job(runs, judgments, read_qrels(judgments), level, chosen, command)
    sections: list[Section] = []
    frames: dict[str, pd.DataFrame] = {}
    skipped: dict[str, str] = {}
    for name in ANALYSES:
        if only and name not in only:
            continue
        try:
            section, found = _PARTS[name](job)
        except (ValueError, FileNotFoundError) as error:
            if only:
                raise
            skipped[name] = str(error)
            continue
        sections.append(section)
        frames |= found
    facts = [("command", command), ("judgments", f"{judgments}, relevant from grade {level}")]
    facts += [(run.name, f"{run.directory.path}, depth {run.depth}, commit {run.commit}") for run in runs]
    return Analysis(sections, frames, skipped, facts)


def save_analysis(analysis: Analysis, output: Path) -> list[Path]:
    """Write figures, a CSV per frame, Markdown and the page, and return their paths; equal runs give equal files."""
    output.mkdir(parents=True, exist_ok=True)
    written = write_pictures(output, analysis.pictures)
    for name, frame in analysis.frames.items():
        written.append(write_text(output / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n")))
    notes = [f"{name} left out: {reason}" for name, reason in analysis.skipped.items()]
    told = "".join(f"- {note}\n" for note in notes)
    markdown = "\n".join(["# Analysis\n", told, *(table.to_markdown() for table in analysis.tables)])
    written.append(write_text(output / "analysis.md", markdown))
    summary = "What the systems do with the lists that they are given. Click a heading to sort."
    page = html_page("Analysis", summary, facts=analysis.facts, notes=notes, sections=analysis.sections)
    return [*written, write_text(output / "analysis.html", page)]


# ------------------------------------------------------------------------------------------------------------ parts


def _middle_zone(job: _Job) -> Part:
    zone = job.options.zone
    frame = middle_zone(
        job.runs,
        job.grades,
        zone=zone,
        relevance_level=job.level,
        judged_only=job.options.judged_only,
        seed=job.options.seed,
    )
    if not frame["queries"].any():
        raise ValueError("no judged query has 4 or more candidates: there is no middle to look at")
    places = f"{zone.low:.0%} to {zone.high:.0%} of the prompt"
    top = f"the first {zone.top:.0%} of ranks"
    columns = [Column("system"), Column("queries", "d")]
    for kind in ("relevant", "irrelevant"):
        columns += [Column(f"{kind} in zone", ",d"), Column(f"{kind} promoted", ".1%"), Column("95% interval", "low")]
    columns.append(Column("gap", "+.1%", "relevant minus irrelevant"))
    rows: list[list[Cell]] = []
    for row in frame.to_dict("records"):
        cells: list[Cell] = [row["system"], row["queries"]]
        for kind in ("relevant", "irrelevant"):
            interval = _interval(row[f"{kind}_low"], row[f"{kind}_high"], ".1%")
            cells += [row[kind], row[f"{kind}_rate"], interval]
        rows.append([*cells, row["gap"]])
    chance = float(frame["chance"].mean())
    note = (
        f"Zone: {places}. Promoted: among {top}. Unjudged passages are "
        f"{'left out' if job.options.judged_only else 'irrelevant'}; a random order promotes {chance:.0%}."
    )
    origin = job.origin("scores.jsonl, first_stage.trec, manifest.json")
    picture = middle_zone_figure(frame, zone=places, top=top, chance=chance, origin=origin)
    table = Table("Middle-zone promotion", columns, rows, note)
    return Section("Middle zone", tables=[table], pictures=[picture]), {"middle-zone": frame}


def _position(job: _Job) -> Part:
    options = job.options
    frame = score_positions(job.runs, job.grades, bins=options.bins, scale=options.scale, relevance_level=job.level)
    if frame.empty:
        raise ValueError("no judged query has 6 or more candidates: there are no parts of a prompt to look at")
    columns = [Column("system"), Column("scores")]
    for name in ("spread before", "spread after", "rank, relevant", "rank, others"):
        form = ".0%" if "rank" in name else ".3f"
        columns += [Column(f"{name}: ends", form), Column("middle", form)]
    rows = [_position_row(part, job.options.zone) for _, part in frame.groupby("system", sort=False)]
    origin = job.origin("scores.jsonl, first_stage.trec, manifest.json")
    pictures = [spread_figure(frame, origin=origin), position_figure(frame, origin=origin)]
    zone = options.zone
    note = (
        f"Spread of scores within a part of the prompt, 1 being that of the whole list, and mean final rank, 0% being "
        f"the best. Middle: {zone.low:.0%} to {zone.high:.0%} of the prompt; ends: the rest. Every part: position.csv."
    )
    table = Table("Scores and ranks by place in the prompt", columns, rows, note)
    shares = place_shares(job.runs)
    drawn = shares.dropna()
    if not drawn.empty:
        pictures.insert(0, place_figure(drawn, origin=origin))
    section = Section("Place in the prompt", tables=[_place_table(shares, zone), table], pictures=pictures)
    return section, {"position": frame, "place-shares": shares}


def _place_table(shares: pd.DataFrame, zone: Zone) -> Table:
    columns = [
        Column("system"),
        Column("prompt order"),
        Column("queries", "d"),
        Column("first", ".2f", "mean share of the first part"),
        Column("middle", ".2f"),
        Column("last", ".2f"),
        Column("largest / smallest", ".2f", "of the smooth curve"),
        Column("standard error", ".2f", "of a share, mean over places"),
    ]
    rows: list[list[Cell]] = []
    for _, part in shares.groupby("system", sort=False):
        share = part["share"].to_numpy()
        middle = share[part["centre"].between(zone.low, zone.high)].mean()
        known = [share[0], middle, share[-1], part["fitted"].max() / part["fitted"].min(), part["error"].mean()]
        numbers: list[Cell] = [float(value) if math.isfinite(value) else None for value in known]
        rows.append([part["system"].iloc[0], part["order"].iloc[0], int(part["queries"].iloc[0]), *numbers])
    note = (
        "Mean share of a list's scores by place, 1 being even; scores below 0 have none. Noise makes places differ, "
        "too: largest and smallest are those of a smooth curve. Only over shuffled prompts (option shuffle_seed=1) "
        "is it the reranker's alone; in first-stage order the better passages stand first. Every place: "
        "place-shares.csv."
    )
    return Table("Share of scores by place in the prompt", columns, rows, note)


def _position_row(part: pd.DataFrame, zone: Zone) -> list[Cell]:
    inside = part["centre"].between(zone.low, zone.high)
    cells: list[Cell] = [part["system"].iloc[0], part["scale"].iloc[0]]
    for name in ("spread_before", "spread_after", "rank_relevant", "rank_irrelevant"):
        cells += [float(part.loc[~inside, name].mean()), float(part.loc[inside, name].mean())]
    return cells


def _order(job: _Job) -> Part:
    measure = job.options.measure
    frame, per_query = order_sensitivity(job.runs, job.qrels, measure=measure, relevance_level=job.level)
    columns = [
        Column("system"),
        Column("orders", "d"),
        Column("queries", "d"),
        Column("Kendall's τ", ".3f", "of the rankings, mean over queries and pairs of orders"),
        Column("τ given", ".3f", "of the orders in the prompts"),
        Column("RBO 0.9", ".3f", "rank-biased overlap"),
        Column("overlap@10", ".3f"),
        Column(f"{measure} mean", ".4f"),
        Column("lowest", ".4f"),
        Column("highest", ".4f"),
        Column("spread per query", ".4f", "best minus worst order"),
    ]
    names = ("system", "orders", "queries", "kendall_tau", "given_tau", "rbo", "overlap_10", measure)
    rows: list[list[Cell]] = [
        [*(row[name] for name in names), row["lowest"], row["highest"], row["spread"]]
        for row in frame.to_dict("records")
    ]
    picture = order_figure(per_query, measure=measure, origin=job.origin("scores.jsonl, run.trec, first_stage.trec"))
    section = Section("Order sensitivity", tables=[Table("Order sensitivity", columns, rows)], pictures=[picture])
    return section, {"order-sensitivity": frame, "order-sensitivity-per-query": per_query}


def _length(job: _Job) -> Part:
    options = job.options
    frame = length_bias(
        job.runs,
        job.qrels,
        job.grades,
        candidates=options.candidates,
        ratio=options.length_ratio,
        measure=options.measure,
        relevance_level=job.level,
        seed=options.seed,
    )
    columns = [
        Column("system"),
        Column("queries", "d", "kept"),
        Column("of", "d", "judged"),
        Column(options.measure, ".4f", "on the kept queries"),
        Column("gold above longest", ".1%", "a relevant passage above the longest irrelevant one"),
        Column("length correlation", "+.3f", "Spearman, mean over all queries; above 0: long passages first"),
        Column("95% interval", "low"),
    ]
    names = ("system", "queries", "judged", options.measure, "gold_above_longest", "length_correlation")
    rows: list[list[Cell]] = [
        [*(row[name] for name in names), _interval(row["length_low"], row["length_high"], "+.3f")]
        for row in frame.to_dict("records")
    ]
    note = (
        f"CoRe's test: queries whose longest relevant passage has at most {options.length_ratio:g} times the words of "
        f"the longest irrelevant one (words counted up to 500)."
    )
    origin = job.origin("scores.jsonl, run.trec, first_stage.trec, the candidates' texts")
    picture = length_bias_figure(frame, measure=options.measure, ratio=options.length_ratio, origin=origin)
    table = Table("Length bias", columns, rows, note)
    return Section("Length bias", tables=[table], pictures=[picture]), {"length-bias": frame}


def _scatter(job: _Job) -> Part:
    options = job.options
    comparison = compare(
        [run.directory.path for run in job.runs],
        qrels=job.qrels,
        baseline=options.baseline,
        measures=[options.measure],
        relevance_level=job.level,
        seed=options.seed,
    )
    values = comparison.values(options.measure)
    origin = job.origin("run.trec, first_stage.trec")
    picture = scatter_figure(values, measure=options.measure, baseline=comparison.baseline, origin=origin)
    return Section("Query by query", pictures=[picture]), {"per-query": values.reset_index()}


def _head_map(job: _Job) -> Part:
    tables, without = _head_tables(job)
    if not tables:
        raise ValueError(
            f"no head table is known for {', '.join(without)}: select-heads writes one beside the head set (NAME.tsv); "
            f"name one with heads_table=FILE"
        )
    pictures, frames = [], []
    for number, (path, systems) in enumerate(tables.items(), start=1):
        picture = head_map(path, measure=job.options.head_measure, origin=f"Command: {shortened(job.command, 240)}")
        name = "head-map" if len(tables) == 1 else f"head-map-{number}"
        title = f"{picture.title}: {', '.join(systems) or path.stem}"
        pictures.append(replace(picture, name=name, title=title))
        frame = pd.read_csv(path, sep="\t")
        frame.insert(0, "system", ", ".join(systems) or path.stem)
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    measures = [name for name in frame.columns if name not in ("system", "layer", "head", "constant_lists", "chosen")]
    columns = [Column("system"), Column("layer", "d"), Column("head", "d"), *(Column(name, ".4f") for name in measures)]
    chosen = frame[frame["chosen"] == 1].to_dict("records")
    rows: list[list[Cell]] = [[row[column.name] for column in columns] for row in chosen]
    note = "Of the lists that the heads were selected by." + (
        f" No table is known for {', '.join(without)}." if without else ""
    )
    table = Table("Chosen heads", columns, rows, note)
    return Section("Heads", tables=[table], pictures=pictures), {"head-map": frame}


def _head_tables(job: _Job) -> tuple[dict[Path, list[str]], list[str]]:
    """Table -> the systems that read its heads, and the systems of which none is known."""
    if job.options.heads_table is not None:
        return {job.options.heads_table: []}, []
    tables: dict[Path, list[str]] = {}
    without: list[str] = []
    for run in job.runs:
        beside = None if run.heads_file is None else run.heads_file.with_suffix(".tsv")
        if beside is not None and beside.is_file():
            tables.setdefault(beside, []).append(run.name)
        else:
            without.append(run.name)
    return tables, without


_PARTS: dict[str, Callable[[_Job], Part]] = {
    "middle-zone": _middle_zone,
    "position": _position,
    "order-sensitivity": _order,
    "length-bias": _length,
    "scatter": _scatter,
    "head-map": _head_map,
}


def _interval(low: Any, high: Any, form: str) -> Cell:
    return None if low != low else Shown(f"{format(low, form)} to {format(high, form)}", float(low))
