"""headrank rerank: candidates through a reranker into a run directory; and what headrank run shares with it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrank_pipeline.attention.model_files import first_stage_weight
from headrank_pipeline.cli.commands import (
    ASSIGNMENT,
    PARTIAL,
    CommandWithMovedFlags,
    assigned,
    command_line,
    echo_json,
    refuse_typed,
    table,
)
from headrank_pipeline.experiment import scaleout
from headrank_pipeline.experiment.batches import Shard, supply_from_file
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.evaluate import DEFAULT_MEASURES
from headrank_pipeline.experiment.judgement import Judged, Judgement
from headrank_pipeline.experiment.runner import Outcome, RunPlan, execute
from headrank_pipeline.files import atomic_writer
from headrank_pipeline.rerank.long_lists import summary
from headrank_pipeline.rerank.systems import OWN_SYSTEMS, SystemSpec, check_system, forbid_hub

if TYPE_CHECKING:
    from headrank_pipeline.experiment.batches import Workers
    from headrank_pipeline.pipeline import Reranker

__all__ = [
    "MOVED_FLAGS",
    "RERANKER_OPTIONS",
    "RUN_OPTIONS",
    "SYSTEM_OPTIONS",
    "default_output",
    "measures_table",
    "model_option",
    "open_reranker",
    "path_option",
    "report",
    "rerank",
    "reranker_spec",
    "with_options",
]

_log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])

# Flags that went, since one kind of system alone knows them: what says the same.
_OPTIONS = {
    "api_key_env": "NAME",
    "batch_tokens": "N",
    "chat": "NAME",
    "dtype": "TYPE",
    "endpoint": "URL",
    "max_new_tokens": "N",
    "max_prompt_tokens": "N",
    "num_passes": "N",
    "passage_cache": "DIR",
    "passage_cache_limit": "GIB",
    "passage_cache_memory": "GIB",
    "passage_words": "N",
    "passages": "isolated",
    "revision": "NAME",
    "stride": "N",
    "thinking": "true",
    "threshold": "P",
    "timeout": "SECONDS",
    "window_size": "N",
}
MOVED_FLAGS = {
    **{f"--{name.replace('_', '-')}": f"--option {name}={value}" for name, value in _OPTIONS.items()},
    "--no-thinking": "--option thinking=false",
}


def path_option(name: str, text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Return a click option that takes a path."""
    return click.option(name, type=click.Path(path_type=Path), required=required, help=text)


def model_option(*, required: bool) -> Callable[[Command], Command]:
    """Return the option that names a model."""
    return click.option(
        "--model",
        required=required,
        help="Folder, Hugging Face name or GGUF file of a model; 'embedded', which ships with the package; or "
        "'smollm2' (headrank doctor says how to install it).",
    )


def _system(ctx: click.Context, option: click.Parameter, name: str) -> str:
    try:
        check_system(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return name


SYSTEM_OPTIONS = (
    model_option(required=True),
    click.option(
        "--heads",
        help="Attention heads to read: a JSON file, the name of a published set, OWNER/NAME on the hub, 'all' or "
        "'layers:10-13'.  [default: those that the model or the system brings]",
    ),
    click.option(
        "--system",
        metavar="NAME",
        callback=_system,
        default="headrank",
        show_default=True,
        help=f"Method that scores the candidates: {', '.join(OWN_SYSTEMS)}, or one that an installed package adds.",
    ),
    click.option(
        "--option",
        "options",
        multiple=True,
        type=ASSIGNMENT,
        help="Sets one option of the system, such as passages=isolated, dtype=bfloat16 or passage_words=100; "
        "repeatable. docs/options.md lists them.",
    ),
    click.option("--device", help="Device that computes: auto, cpu, cuda, cuda:1, …  [default: auto]"),
)
RERANKER_OPTIONS = (
    *SYSTEM_OPTIONS,
    click.option(
        "--first-stage-weight",
        type=click.FloatRange(0, 1),
        help="Mixes in the first stage's scores with this weight, 0 to 1. Choose it on training queries.",
    ),
    click.option(
        "--log-scores",
        is_flag=True,
        help="Takes the logarithm of the reranker's scores before they are mixed: right for shares of attention, such "
        "as headrank's.",
    ),
)


def _shard(_: click.Context, __: click.Parameter, text: str | None) -> Shard | None:
    try:
        return None if text is None else Shard.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


RUN_OPTIONS = (
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Run the first N queries only."),
    click.option(
        "--shard",
        metavar="I/N",
        callback=_shard,
        help="Run part I of N equal parts of the queries; headrank merge makes one run of all parts.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="Queries handed to the reranker at once.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that rerank, each with its own model, and its own GPU if there are any. More than 1 needs Ray.",
    ),
    click.option("--tag", help="Name in the last column of the run.  [default: the system's name]"),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Starts anew if the output holds another run, which is deleted when the first batch is done.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Prints the result, or the error, as JSON."),
)


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds click options in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@path_option("--candidates", "Candidates with texts (JSONL), as headrank retrieve writes them.", required=True)
@path_option("--output", "Folder of the run; the same command continues an interrupted one.", required=True)
@with_options(*RERANKER_OPTIONS)
@click.option("--depth", type=click.IntRange(min=1), default=100, show_default=True,
              help="Candidates of each query that are reranked; the rest follow in their order.")  # fmt: skip
@path_option("--qrels", "Relevance judgments to evaluate the run with.")
@click.option("--measure", "-m", "measures", multiple=True,
              help="Measure to report; repeatable.  [default: nDCG@10, R@100]")  # fmt: skip
@click.option("--relevance-level", "-l", default=1, show_default=True, help="Lowest grade that counts as relevant.")
@with_options(*RUN_OPTIONS)
@click.pass_context
def rerank(
    ctx: click.Context,
    /,
    candidates: Path,
    output: Path,
    depth: int,
    qrels: Path | None,
    measures: tuple[str, ...],
    relevance_level: int,
    limit: int | None,
    shard: Shard | None,
    batch_size: int,
    workers: int,
    tag: str | None,
    overwrite: bool,
    as_json: bool,
    **reranker: Any,
) -> None:
    """Rerank saved candidates; the same command continues an interrupted run. Needs no Java."""
    spec, threshold = _without_threshold(reranker_spec(reranker))
    judgement = None
    if qrels is None:
        refuse_typed("measures", "relevance_level", because="nothing is evaluated without --qrels")
    else:
        judgement = Judgement(qrels=qrels, measures=measures or DEFAULT_MEASURES, relevance_level=relevance_level)
    supply = supply_from_file(candidates)
    next(supply.rankings(), None)  # a file of another kind is told before a model is loaded, which may take minutes
    with open_reranker(spec, workers) as opened:
        plan = RunPlan(
            output=output,
            supply=supply,
            reranker=opened,
            depth=depth,
            batch_size=batch_size,
            tag=tag or spec.system,
            judgement=judgement,
            limit=limit,
            shard=shard,
        )
        outcome = execute(plan, overwrite=overwrite, command=command_line())
    _write_above(outcome.directory, threshold)
    report(ctx, outcome, as_json=as_json)


def _without_threshold(spec: SystemSpec) -> tuple[SystemSpec, float | None]:
    """Take the threshold out of a spec: a run holds every candidate, and what is above it is written beside."""
    options = dict(spec.options)
    threshold = options.pop("threshold", None)
    if threshold is None:
        return spec, None
    from headrank_pipeline.rerank.calibrated import check_threshold  # imports torch

    check_threshold(threshold)
    if spec.first_stage_weight is not None:
        raise click.UsageError(
            "threshold is for probabilities, and scores are probabilities only without --first-stage-weight"
        )
    if options.get("calibration") is None:
        options["calibration"] = "own"
    return replace(spec, options=options), float(threshold)


def _write_above(directory: RunDirectory, threshold: float | None) -> None:
    """Write the lines of a run whose score is at least the threshold beside it; None removes an earlier call's."""
    directory.above_threshold.unlink(missing_ok=True)
    if threshold is None or not directory.run.exists():
        return
    lines = directory.run.read_text(encoding="utf-8").splitlines(keepends=True)
    with atomic_writer(directory.above_threshold) as file:
        file.write("".join(line for line in lines if float(line.split()[4]) >= threshold))


def default_output(benchmark: str, system: str, model: str) -> Path:
    """Return where a run goes when nothing is said; no time stamp, so that the same command continues it.

    Examples:
        >>> default_output("beir-scifact", "headrank", "Qwen/Qwen3-0.6B").as_posix()
        'runs/beir-scifact/headrank-qwen3-0.6b'
    """
    return Path("runs") / benchmark / f"{system}-{re.sub(r'[^a-z0-9._-]+', '-', Path(model).name.lower())}"


def reranker_spec(given: Mapping[str, Any]) -> SystemSpec:
    """Return the reranker that the values of `SYSTEM_OPTIONS` describe, by their parameters' names.

    Args:
        given: what click parsed, with the flags of `RERANKER_OPTIONS` and ``offline`` where the command has them; other
            names are ignored.
    """
    weight, log_scores = given.get("first_stage_weight"), given.get("log_scores", False)
    if log_scores and weight is None:
        raise click.UsageError("--log-scores says how --first-stage-weight mixes; give that, too")
    options = assigned(given["options"], "--option")
    if given["device"] is not None:
        if "device" in options:
            raise click.UsageError("device is set by --option and by a flag of its own; set it once")
        options["device"] = given["device"]
    return SystemSpec(
        given["system"],
        given["model"],
        given["heads"],
        options,
        first_stage_weight=weight,
        log_scores=log_scores,
        offline=given.get("offline", False),
    )


@contextmanager
def open_reranker(spec: SystemSpec, workers: int) -> Iterator[Reranker | Workers]:
    """Give a spec's reranker, in this process or in workers that end with the context."""
    if spec.offline:
        forbid_hub()  # here, too, where workers rerank: the first stage may have an encoder
    if spec.system == "headrank" and spec.heads is None and spec.first_stage_weight is None:
        _advise_on_mixing(str(spec.model))
    if workers == 1:
        yield spec.open()
        return
    with scaleout.workers(spec.open, workers, device=spec.device) as started:
        yield started


def _advise_on_mixing(model: str) -> None:
    weight = first_stage_weight(model)
    if weight is None:
        return
    because = (
        "alone it is below BM25 on the public collections that it was measured on; " if model == "embedded" else ""
    )
    _log.info(
        "%s: %s--first-stage-weight %s --log-scores applies the mixing weight tuned for this model",
        model,
        because,
        weight,
    )


# --------------------------------------------------------------------------------------------------------- reports


def report(ctx: click.Context, outcome: Outcome, *, as_json: bool) -> None:
    """Print what a run came to, and end with status 7 where queries failed."""
    totals = outcome.manifest["totals"]
    if as_json:
        record = {"output": str(outcome.directory.path), "status": outcome.manifest["status"], "totals": totals}
        echo_json({**record, "evaluation": _means(outcome.judged) if outcome.judged else None})
    else:
        if outcome.judged is not None:
            click.echo(measures_table(outcome.judged, outcome.manifest["identity"]["tag"]))
            judged = outcome.judged.reranked
            missing = f", {len(judged.missing)} of them missing from the run (counted 0)" if judged.missing else ""
            if missing or judged.queries != totals["queries"]:
                click.echo(f"means over {judged.queries} judged queries{missing}")
            if missing:
                click.echo(measures_table(outcome.judged, outcome.manifest["identity"]["tag"], answered=True))
                click.echo(f"means over the {judged.answered} judged queries that the run has")
            if outcome.judged.unasked:
                click.echo(
                    "only a part of the judged queries was run: the first stage is not checked against published scores"
                )
        rate = f", {totals['queries_per_second']:.2f} queries/s" if totals["queries_per_second"] else ""
        click.echo(f"{totals['queries']} queries, {len(totals['failed'])} failed{rate}: {outcome.directory.run}")
        if line := summary(totals["notes"], totals["queries"]):
            click.echo(line)
        if (nothing := totals["notes"].get("nothing_relevant")) is not None:
            click.echo(f"{nothing:.1f} queries with nothing relevant, by their probabilities")
        for qid, message in outcome.failed.items():
            click.echo(f"  qid {qid}: {message}")
    if outcome.failed:
        ctx.exit(PARTIAL)


def measures_table(judged: Judged, system: str, *, answered: bool = False) -> str:
    """Return the measures of both stages, and the published first-stage scores where there are any.

    Args:
        judged: both evaluations.
        system: heads the second column.
        answered: take means over the judged queries that the run has, which nobody published.
    """
    stages = (judged.first_stage, judged.reranked)
    first_stage, reranked = (stage.means_of_answered if answered else stage.means for stage in stages)
    checks = {} if answered else {check.measure: check for check in judged.checks}
    rows = []
    for name, value in first_stage.items():
        row = [name, f"{value:.4f}", f"{reranked[name]:.4f}"]
        if checks:
            check = checks.get(name)
            row += [f"{check.published:.4f}", check.verdict] if check else ["", ""]
        rows.append(row)
    published = ["published first stage", "check"] if checks else []
    return table(["measure", "first stage", system, *published], rows)


def _means(judged: Judged) -> dict[str, Any]:
    record = judged.to_dict()
    for part in ("first_stage", "reranked"):
        del record[part]["per_query"]
    return record
