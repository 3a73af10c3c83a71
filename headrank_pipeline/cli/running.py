"""headrank run: one benchmark, or all of them, from retrieval to evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.cli.benchmarks import amount, need_lines
from headrank_pipeline.cli.reporting import PARTIAL, CommandWithMovedFlags, command_line, echo_json, refuse_typed, table
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

if TYPE_CHECKING:
    from headrank_pipeline.experiment.batches import Workers
    from headrank_pipeline.experiment.benchmark import Benchmark
    from headrank_pipeline.experiment.inputs import LocalFiles
    from headrank_pipeline.experiment.runner import Outcome
    from headrank_pipeline.experiment.stages import FirstStageOptions
    from headrank_pipeline.experiment.suite import Row, Suite
    from headrank_pipeline.pipeline import Reranker

__all__ = ["run"]

_FILES = ("corpus", "topics", "qrels", "index", "candidates", "exclusions")
# Flags that say which benchmarks are run and how it is reported; the others belong to each benchmark's own command.
_OF_THE_CALL = {"definitions", "every", "pipelines", "extra", "data", "dry_run", "output", "as_json", "overwrite"}


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@click.argument("definitions", nargs=-1, metavar="[BENCHMARK]...")
@click.option("--all", "every", is_flag=True, help="Every main benchmark; a summary table at the end.")
@click.option("--extra", is_flag=True, help="Run the extra benchmarks, too, with --all.")
@path_option("--pipelines", "With --all: folder of definitions, in place of those that ship with the package.")
@path_option("--data", "Folder of collections, one folder per benchmark, in place of naming files.")
@click.option("--dry-run", is_flag=True, help="Show commands, files and download sizes; run and fetch nothing.")
@path_option("--output", "Run directory; with several benchmarks the folder of their run directories.")
@path_option("--corpus", "Build an index of this corpus; topics are looked for beside it.")
@path_option("--topics", "Queries.")
@path_option("--qrels", "Judgments.")
@click.option("--index", help="Folder of an index, or the name of a prebuilt one; with --corpus: where to build.")
@path_option("--candidates", "Saved candidates; nothing is retrieved.")
@path_option("--exclusions", "Lines 'qid docid': documents to leave out before the cutoff.")
@click.option("--dataset", help="Any collection of ir_datasets, without a definition: beir/scifact/test.")
@click.option(
    "--first-stage",
    type=click.Choice(["bm25", "dense", "impact", "fusion"]),
    default="bm25",
    show_default=True,
    help="First stage to use instead of the benchmark's BM25. fusion joins BM25 and a dense index.",
)
@click.option(
    "--encoder", help="Folder or name of the encoder for dense, impact and fusion.  [default: the index's own]"
)
@click.option("--language", help="Language of BM25's analyzer: de, zh, …  [default: the index's own; en for a corpus]")
@click.option("--dense-index", help="Folder or name of the dense index, with fusion.")
@click.option(
    "--texts", help="Source of passages if the index stores none: corpus file, Lucene index or ir_datasets:ID."
)
@click.option(
    "--rrf-k",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Constant of reciprocal rank fusion, with fusion.",
)
@click.option("--offline", is_flag=True, help="Open no socket; what is not local is an error that names its flag.")
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Search threads of the first stage."
)
@model_option(required=False)
@with_options(*RERANKER_OPTIONS[1:])
@click.option("--depth", type=click.IntRange(min=1), help="Candidates that are reranked.  [default: the benchmark's]")
@with_options(*RUN_OPTIONS)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """Run benchmarks: retrieve, rerank, evaluate; the same command continues an interrupted run.

    BENCHMARK is a name that `headrank benchmarks` lists, or the file of a definition.
    """
    from headrank_pipeline.experiment.inputs import check_sources

    if given["model"] is None and not given["dry_run"]:
        raise click.UsageError("Missing option '--model'.")
    if not given["every"]:
        refuse_typed("pipelines", "extra", because="for --all")
    if given["first_stage"] != "fusion":
        refuse_typed("rrf_k", because="for --first-stage fusion")
    jobs = list(_jobs(ctx, given))
    choice = _choice(given)
    several = given["every"] or len(jobs) > 1
    if given["dry_run"]:
        _show(jobs, choice, as_json=given["as_json"])
        return
    for job in jobs:
        job.local.check()
        if not several:  # of several, what one lacks is told in the summary, and the others run
            check_sources(job.benchmark, job.local, choice)
    with open_reranker(reranker_spec(given), given["workers"]) as reranker:
        if several:
            suite = _run_several(jobs, given, reranker)
        else:
            outcome = jobs[0].execute(given, reranker, command_line())
    if several:
        _report_suite(ctx, suite, given)
    else:
        report(ctx, outcome, as_json=given["as_json"])


@dataclass(frozen=True, slots=True)
class _Job:
    """One benchmark with its files, its run directory and the command that runs it alone."""

    benchmark: Benchmark
    local: LocalFiles
    output: Path
    command: str

    def execute(self, given: dict[str, Any], reranker: Reranker | Workers, command: str) -> Outcome:
        from headrank_pipeline.experiment.directory import RunDirectory
        from headrank_pipeline.experiment.inputs import resolve_inputs
        from headrank_pipeline.experiment.runner import RunPlan, execute

        inputs = resolve_inputs(
            self.benchmark, self.local, RunDirectory(self.output), threads=given["threads"], stage=_choice(given)
        )
        plan = RunPlan(
            output=self.output,
            supply=inputs.supply,
            reranker=reranker,
            depth=self.benchmark.depth if given["depth"] is None else given["depth"],
            batch_size=given["batch_size"],
            tag=given["tag"] or given["system"],
            benchmark={"name": self.benchmark.name, "version": self.benchmark.version},
            judgement=inputs.judgement,
            limit=given["limit"],
            shard=given["shard"],
        )
        return execute(plan, overwrite=given["overwrite"], command=command)


def _jobs(ctx: click.Context, given: dict[str, Any]) -> list[_Job]:
    from headrank_pipeline.experiment.inputs import LocalFiles
    from headrank_pipeline.experiment.suite import local_files

    found = _definitions(given)
    files = {name: given[name] for name in _FILES}
    several = given["every"] or len(found) > 1
    if (several or given["data"]) and any(files.values()):
        named = ", ".join(f"--{name}" for name, value in files.items() if value)
        raise click.UsageError(
            f"{named} belongs to one benchmark; for several give --data FOLDER with a folder for each"
            if several
            else f"{named} and --data both say where the collection is; give one of them"
        )
    _refuse_equal_names(found)
    flags = _flags(ctx)
    jobs = []
    for called, benchmark in found:
        local = LocalFiles(**files, offline=given["offline"])
        output = given["output"] or default_output(benchmark.name, given["system"], given["model"] or "MODEL")
        if given["data"]:
            local = local_files(given["data"], benchmark.name, offline=given["offline"])
            if not several and local == LocalFiles(offline=given["offline"]):
                raise FileNotFoundError(
                    f"{given['data']}: expected a folder {benchmark.name} in it (beir- may be left out) with the "
                    f"collection's files (docs/benchmarks.md)"
                )
        if several:
            output = given["output"] / benchmark.name if given["output"] else output
        _refuse_depth_above_hits(given["depth"], benchmark, local)
        definition = [] if called is None else [called]
        command = ["headrank", "run", *definition, "--output", str(output), *_file_flags(local, files), *flags]
        jobs.append(_Job(benchmark, local, output, shlex.join(command)))
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


def _choice(given: dict[str, Any]) -> FirstStageOptions:
    from headrank_pipeline.experiment.stages import FirstStageOptions

    settings = {name: given[name] for name in ("dense_index", "encoder", "texts", "language", "rrf_k")}
    return FirstStageOptions(method=given["first_stage"], **settings)


def _definitions(given: dict[str, Any]) -> list[tuple[str | None, Benchmark]]:
    """Return what is to be run, and what it is called on the command line, where it is a definition."""
    from headrank_pipeline.experiment.benchmark import benchmark_of_dataset, benchmark_of_files
    from headrank_pipeline.experiment.catalogue import find_benchmark, find_benchmarks

    named = (given["every"], bool(given["definitions"]), given["dataset"] is not None)
    depth = {} if given["depth"] is None else {"depth": given["depth"]}
    if not any(named) and given["qrels"] and (name := _own_name(given)):
        return [(None, benchmark_of_files(name, **depth))]
    if sum(named) != 1:
        raise click.UsageError(
            "name a benchmark (headrank benchmarks lists them), or pass --all to run every one, or --dataset ID, or a "
            "collection of your own: --corpus or --index with --topics and --qrels, or --candidates and --qrels"
        )
    if given["dataset"] is not None:
        return [(None, benchmark_of_dataset(given["dataset"], **depth))]
    if given["every"]:
        return [*find_benchmarks(given["pipelines"], extra=given["extra"])]
    return [(called, find_benchmark(called)) for called in given["definitions"]]


def _own_name(given: dict[str, Any]) -> str | None:
    """What a collection without a definition is called: the folder of its file, else its index."""
    file: Path | None = given["corpus"] or given["candidates"]
    if file is not None:
        return file.absolute().parent.name
    return None if given["index"] is None else Path(given["index"]).absolute().name


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


def _file_flags(local: LocalFiles, files: dict[str, Any]) -> list[str]:
    return [part for name in files if (value := getattr(local, name)) for part in (f"--{name}", str(value))]


# --------------------------------------------------------------------------------------------------- several benchmarks


def _run_several(jobs: Sequence[_Job], given: dict[str, Any], reranker: Reranker | Workers) -> Suite:
    from headrank_pipeline.experiment.suite import run_suite

    by_name = {job.benchmark.name: job for job in jobs}

    def run_one(benchmark: Benchmark) -> Outcome:
        job = by_name[benchmark.name]
        return job.execute(given, reranker, job.command)

    return run_suite([(job.benchmark, job.output) for job in jobs], _summary(given), run_one)


def _summary(given: dict[str, Any]) -> Path:
    from headrank_pipeline.experiment.suite import SUMMARY

    folder: Path = given["output"] or default_output("all", given["system"], given["model"])
    return folder / SUMMARY


def _report_suite(ctx: click.Context, suite: Suite, given: dict[str, Any]) -> None:
    if given["as_json"]:
        echo_json(suite.to_dict())
    else:
        click.echo(suite_table(suite, given["tag"] or given["system"]))
        for row in suite.rows:
            if row.message:
                click.echo(f"  {row.name}: {row.status}: {row.message}")
        click.echo(f"summary: {_summary(given)}")
    if any(row.status != "done" for row in suite.rows):
        ctx.exit(PARTIAL)


def suite_table(suite: Suite, system: str) -> str:
    """Return one line per benchmark with its first measure, then the means."""
    rows = [_suite_row(row) for row in suite.rows]
    for name, mean in suite.means().items():
        measure = next(iter(mean["first_stage"]), None)
        if measure is not None and len(suite.rows) > 1:
            values = [f"{mean[stage][measure]:.4f}" for stage in ("first_stage", "reranked")]
            rows.append([f"mean of {name} ({mean['benchmarks']})", "", measure, *values, "", "", ""])
    return table(["benchmark", "queries", "measure", "first stage", system, "published", "check", "status"], rows)


def _suite_row(row: Row) -> list[str]:
    measure = next(iter(row.first_stage), None)
    if measure is None:
        return [row.name, "", "", "", "", "", "", row.status]
    published = f"{row.published[measure]:.4f}" if measure in row.published else ""
    values = [f"{row.first_stage[measure]:.4f}", f"{row.reranked[measure]:.4f}"]
    return [row.name, str(row.queries), measure, *values, published, row.checks.get(measure, ""), row.status]


# -------------------------------------------------------------------------------------------------------------- dry run


def _show(jobs: Sequence[_Job], stage: FirstStageOptions, *, as_json: bool) -> None:
    """Print what would be run and read; nothing is loaded and no socket is opened."""
    from dataclasses import asdict

    from headrank_pipeline.experiment.catalogue import needs, to_download

    wanted = [needs(job.benchmark, job.local, stage) for job in jobs]
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
