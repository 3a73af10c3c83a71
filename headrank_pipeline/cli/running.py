"""headrank run: one benchmark, several or a suite of them, from retrieval to evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from headrank_pipeline.cli.benchmarks import amount, need_lines
from headrank_pipeline.cli.commands import (
    ASSIGNMENT,
    PARTIAL,
    CommandWithMovedFlags,
    assigned,
    command_line,
    echo_json,
    in_flags,
    table,
)
from headrank_pipeline.cli.reranking import (
    MOVED_FLAGS,
    RERANKER_OPTIONS,
    RUN_OPTIONS,
    default_output,
    model_option,
    open_reranker,
    path_option,
    report,
    reranker_spec,
    with_options,
)
from headrank_pipeline.experiment.batches import Shard, Workers
from headrank_pipeline.experiment.benchmark import Benchmark, benchmark_of_files, find_named, find_suite
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.runner import Outcome, RunPlan, execute
from headrank_pipeline.experiment.sources import LocalFiles, Sources, to_download
from headrank_pipeline.experiment.stages import BM25, FirstStageOptions
from headrank_pipeline.experiment.suite import SUMMARY, Row, Suite, local_files, run_suite
from headrank_pipeline.pipeline import Reranker

__all__ = ["run"]

_FILES = ("corpus", "topics", "qrels", "index", "candidates", "exclusions")
# Flags that say which benchmarks are run and how it is reported; the others belong to each benchmark's own command.
_OF_THE_CALL = {"definitions", "suite", "data", "dry_run", "output", "as_json", "overwrite"}
# Flags that went: what says the same.
_MOVED = {
    "--dataset": "ir_datasets:ID in the place of BENCHMARK",
    "--pipelines": "the folder, with a / in it, in the place of BENCHMARK",
    "--all": "--suite main",
    "--extra": "--suite all",
    "--threshold": "headrank rerank … --option threshold=P; a run holds every candidate",
    **{
        f"--{name.replace('_', '-')}": f"--first-stage-option {name}={value}"
        for name, value in {
            "dense_index": "NAME", "encoder": "NAME", "language": "de", "rrf_k": "N", "texts": "NAME", "threads": "N"
        }.items()
    },
}  # fmt: skip


@click.command(cls=CommandWithMovedFlags, moved={**MOVED_FLAGS, **_MOVED})
@click.argument("definitions", nargs=-1, metavar="[BENCHMARK]...")
@click.option(
    "--suite", metavar="NAME", help="All benchmarks of a suite, as `headrank benchmarks` lists them; one summary."
)
@path_option("--data", "Folder of collections, one folder per benchmark, in place of naming files.")
@click.option("--dry-run", is_flag=True, help="Show commands, files and download sizes; run and fetch nothing.")
@path_option("--output", "Run directory; with several benchmarks the folder of their run directories.")
@path_option("--corpus", "Build an index of this corpus; topics are looked for beside it.")
@path_option("--topics", "Queries.")
@path_option("--qrels", "Judgments.")
@click.option("--index", help="Folder of an index, or the name of a prebuilt one; with --corpus: where to build.")
@path_option("--candidates", "Saved candidates; nothing is retrieved.")
@path_option("--exclusions", "Lines 'qid docid': documents to leave out before the cutoff.")
@click.option(
    "--first-stage",
    type=click.Choice(["bm25", "dense", "impact", "fusion"]),
    default="bm25",
    show_default=True,
    help="First stage to use instead of the benchmark's BM25. fusion joins BM25 and a dense index.",
)
@click.option(
    "--first-stage-option",
    "stage_options",
    type=ASSIGNMENT,
    multiple=True,
    help="Setting of the first stage, repeatable: k1 and b (BM25), encoder, dense_index (fusion), rrf_k (fusion), "
    "language (BM25's analyzer: de, zh, …), texts (source of passages if the index stores none: corpus file, Lucene "
    "index or ir_datasets:ID), threads.",
)
@click.option("--offline", is_flag=True, help="Open no socket; what is not local is an error that names its flag.")
@model_option(required=False)
@with_options(*RERANKER_OPTIONS[1:])
@click.option("--depth", type=click.IntRange(min=1), help="Candidates that are reranked.  [default: the benchmark's]")
@with_options(*RUN_OPTIONS)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """Run benchmarks: retrieve, rerank, evaluate; the same command continues an interrupted run.

    BENCHMARK is a name that `headrank benchmarks` lists, the file of a definition or a folder of them, or
    ir_datasets:ID, any collection of ir_datasets (ir_datasets:beir/scifact/test).
    """
    if given["model"] is None and not given["dry_run"]:
        raise click.UsageError("Missing option '--model'.")
    request = RunRequest.of(ctx, given)
    if any(option.partition("=")[0] == "threshold" for option in given["options"]):
        raise click.UsageError(
            "no threshold: a run holds every candidate; headrank rerank also writes a file of those above one"
        )
    jobs = list(_jobs(request))
    several = len(jobs) > 1 or request.suite is not None
    if request.dry_run:
        _show(jobs, as_json=request.as_json)
        return
    if not several:  # of several, what one lacks is told in the summary, and the others run
        jobs[0].sources.check()
    with open_reranker(reranker_spec(given), request.workers) as reranker:
        if several:
            suite = _run_several(jobs, request, reranker)
        else:
            outcome = jobs[0].execute(request, reranker, command_line())
    if several:
        _report_suite(ctx, suite, request)
    else:
        report(ctx, outcome, as_json=request.as_json)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a call asks for, apart from the reranker.

    Args:
        definitions: benchmarks by name, file, folder, or ``ir_datasets:ID``.
        suite: name of a suite, in their place.
        data: folder of collections.
        local: files of one collection, as they were named.
        stage: the first stage in place of the benchmark's.
        output: run directory, or the folder of several.
        system: system of the reranker; with `model` it names runs that are not named otherwise.
        depth: candidates that are reranked, or None for each benchmark's own.
        flags: those of the call that each benchmark's own command repeats.
    """

    definitions: tuple[str, ...]
    suite: str | None
    data: Path | None
    local: LocalFiles
    stage: FirstStageOptions
    output: Path | None
    system: str
    model: str | None
    depth: int | None
    limit: int | None
    shard: Shard | None
    batch_size: int
    workers: int
    tag: str | None
    dry_run: bool
    overwrite: bool
    as_json: bool
    flags: tuple[str, ...]

    @classmethod
    def of(cls, ctx: click.Context, given: Mapping[str, Any]) -> RunRequest:
        """Return the request of a command line that click has parsed."""
        method, options = given["first_stage"], assigned(given["stage_options"], "--first-stage-option")
        kept = {own.name: given[own.name] for own in fields(cls) if own.name in given}
        return cls(
            **kept,
            local=LocalFiles(**{name: given[name] for name in _FILES}, offline=given["offline"]),
            stage=FirstStageOptions.read(method, options) if options or method != "bm25" else BM25,
            flags=tuple(_flags(ctx)),
        )

    @property
    def summary(self) -> Path:
        """Where the summary of several benchmarks goes."""
        return (self.output or self.default_output(self.suite or "several")) / SUMMARY

    def default_output(self, name: str) -> Path:
        """Return where a run of this name goes when nothing is said."""
        return default_output(name, self.system, self.model or "MODEL")


@dataclass(frozen=True, slots=True)
class _Job:
    """One benchmark with its inputs, its run directory and the command that runs it alone."""

    sources: Sources
    output: Path
    command: str

    @property
    def benchmark(self) -> Benchmark:
        return self.sources.benchmark

    def execute(self, request: RunRequest, reranker: Reranker | Workers, command: str) -> Outcome:
        inputs = self.sources.open(RunDirectory(self.output))
        plan = RunPlan(
            output=self.output,
            supply=inputs.supply,
            reranker=reranker,
            depth=self.benchmark.depth if request.depth is None else request.depth,
            batch_size=request.batch_size,
            tag=request.tag or request.system,
            benchmark={"name": self.benchmark.name, "version": self.benchmark.version},
            judgement=inputs.judgement,
            limit=request.limit,
            shard=request.shard,
        )
        return execute(plan, overwrite=request.overwrite, command=command)


def _jobs(request: RunRequest) -> list[_Job]:
    found = _definitions(request)
    named = [name for name in _FILES if getattr(request.local, name)]
    several = len(found) > 1 or request.suite is not None
    if (several or request.data) and named:
        flags = ", ".join(f"--{name}" for name in named)
        raise click.UsageError(
            f"{flags} belongs to one benchmark; for several give --data FOLDER with a folder for each"
            if several
            else f"{flags} and --data both say where the collection is; give one of them"
        )
    _refuse_equal_names(found)
    jobs = []
    for called, benchmark in found:
        local = request.local
        output = request.output or request.default_output(benchmark.name)
        if request.data:
            local = local_files(request.data, benchmark.name, offline=local.offline)
            if not several and local == request.local:
                raise FileNotFoundError(
                    f"{request.data}: expected a folder {benchmark.name} in it (beir- may be left out) with the "
                    f"collection's files (docs/benchmarks.md)"
                )
        if several and request.output:
            output = request.output / benchmark.name
        _refuse_depth_above_hits(request.depth, benchmark, local)
        definition = [] if called is None else [called]
        command = ["headrank", "run", *definition, "--output", str(output), *_file_flags(local), *request.flags]
        jobs.append(_Job(Sources(benchmark, local, request.stage), output, shlex.join(command)))
    return jobs


def _refuse_equal_names(found: Sequence[tuple[str | None, Benchmark]]) -> None:
    """Names are what run directories, data folders and rows of the summary go by."""
    places: dict[str, str | None] = {}
    for called, benchmark in found:
        if benchmark.name in places:
            raise click.UsageError(
                f"{places[benchmark.name]} and {called} both define a benchmark named {benchmark.name!r}; rename one"
            )
        places[benchmark.name] = called


def _refuse_depth_above_hits(depth: int | None, benchmark: Benchmark, local: LocalFiles) -> None:
    """As a definition is refused; saved candidates are as many as there are."""
    hits = benchmark.first_stage.hits
    if depth is not None and depth > hits and local.candidates is None:
        raise click.UsageError(
            f"--depth {depth} is above the {hits} hits of {benchmark.name}'s first stage; lower it, or raise "
            f"first_stage.hits in a definition"
        )


def _definitions(request: RunRequest) -> list[tuple[str | None, Benchmark]]:
    """Return what is to be run, and what it is called on the command line, where it is called anything."""
    if request.suite is not None and request.definitions:
        raise click.UsageError(f"--suite {request.suite} and {request.definitions[0]} both say what is run; give one")
    if request.suite is not None:
        return [*find_suite(request.suite)]
    if request.definitions:
        return [found for called in request.definitions for found in find_named(called, depth=request.depth)]
    if request.local.qrels and (name := _own_name(request.local)):
        return [(None, benchmark_of_files(name, **({} if request.depth is None else {"depth": request.depth})))]
    raise click.UsageError(
        "name a benchmark (headrank benchmarks lists them), ir_datasets:ID or a suite (--suite main), or a "
        "collection of your own: --corpus or --index with --topics and --qrels, or --candidates and --qrels"
    )


def _own_name(local: LocalFiles) -> str | None:
    """What a collection without a definition is called: the folder of its file, else its index."""
    file = local.corpus or local.candidates
    if file is not None:
        return file.absolute().parent.name
    return None if local.index is None else Path(local.index).absolute().name


def _flags(ctx: click.Context) -> list[str]:
    """The flags of this call that each benchmark's own command repeats, as far as they differ from their defaults."""
    flags: list[str] = []
    for option in ctx.command.params:
        value = ctx.params.get(option.name or "")
        if option.name in (*_OF_THE_CALL, *_FILES) or value == option.get_default(ctx) or value in (None, ()):
            continue
        if isinstance(option, click.Option) and option.is_flag:
            flags.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        for single in value if isinstance(value, tuple) else (value,):
            flags += [option.opts[0], str(single)]
    return flags


def _file_flags(local: LocalFiles) -> list[str]:
    return [part for name in _FILES if (value := getattr(local, name)) for part in (f"--{name}", str(value))]


# --------------------------------------------------------------------------------------------------- several benchmarks


def _run_several(jobs: Sequence[_Job], request: RunRequest, reranker: Reranker | Workers) -> Suite:
    by_name = {job.benchmark.name: job for job in jobs}

    def run_one(benchmark: Benchmark) -> Outcome:
        job = by_name[benchmark.name]
        return job.execute(request, reranker, job.command)

    return run_suite([(job.benchmark, job.output) for job in jobs], request.summary, run_one)


def _report_suite(ctx: click.Context, suite: Suite, request: RunRequest) -> None:
    if request.as_json:
        echo_json(suite.to_dict())
    else:
        click.echo(suite_table(suite, request.tag or request.system))
        for row in suite.rows:
            if row.message:
                click.echo(f"  {row.name}: {row.status}: {in_flags(row.message, ctx.command)}")
        for remark in suite.remarks():
            click.echo(remark)
        click.echo(f"summary: {request.summary}")
    if any(row.status != "done" for row in suite.rows):
        ctx.exit(PARTIAL)


def suite_table(suite: Suite, system: str) -> str:
    """Return one line per benchmark with its first measure, then the means."""
    rows = [_suite_row(row) for row in suite.rows]
    for name, mean in suite.means().items():
        measure = next(iter(mean["first_stage"]), None)
        if measure is not None and len(suite.rows) > 1:
            first_stage, reranked, best = (mean[stage][measure] for stage in ("first_stage", "reranked", "best"))
            values = [f"{first_stage:.4f}", f"{reranked:.4f}", f"{reranked - first_stage:+.4f}", f"{best:.4f}"]
            sets = f"{mean['sets'][measure]} of"
            counted = mean["benchmarks"] if mean["benchmarks"].startswith(sets) else f"{sets} these"
            rows.append([f"mean of {name} ({counted})", "", measure, *values, "", "", ""])
    columns = ["benchmark", "queries", "measure", "first stage", system, "gain", "best", "published", "check", "status"]
    return table(columns, rows)


def _suite_row(row: Row) -> list[str]:
    measure = next(iter(row.first_stage), None)
    if measure is None:
        return [row.name, *[""] * 8, row.status]
    published = f"{row.published[measure]:.4f}" if measure in row.published else ""
    values = [f"{value[measure]:.4f}" for value in (row.first_stage, row.reranked, row.best)]
    values.insert(2, f"{row.gain(measure):+.4f}")
    return [row.name, str(row.queries), measure, *values, published, row.checks.get(measure, ""), row.status]


# -------------------------------------------------------------------------------------------------------------- dry run


def _show(jobs: Sequence[_Job], *, as_json: bool) -> None:
    """Print what would be run and read; nothing is loaded and no socket is opened."""
    wanted = [job.sources.needs() for job in jobs]
    known, unknown = to_download(wanted)
    if as_json:
        echo_json(
            {
                "runs": [
                    {"command": job.command, "output": str(job.output), "needs": [asdict(need) for need in found]}
                    for job, found in zip(jobs, wanted, strict=True)
                ],
                "bytes_to_download": known,
                "downloads_of_unknown_size": unknown,
            }
        )
        return
    for job, found in zip(jobs, wanted, strict=True):
        click.echo(job.command)
        for line in need_lines(found):
            click.echo(line)
        click.echo(f"  writes        {job.output}/\n")
    click.echo(f"{len(jobs)} run{'' if len(jobs) == 1 else 's'}; to download in all: {amount(known, unknown)}")
