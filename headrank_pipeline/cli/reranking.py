"""headrank rerank: candidates through a reranker into a run directory; and what headrank run shares with it."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from headrank_pipeline.cli.baselines import (
    BASELINE_FLAGS,
    BASELINE_OPTIONS,
)
from headrank_pipeline.cli.reporting import PARTIAL, command_line, echo_json, refuse_typed, table
from headrank_pipeline.rerank.systems import OWN_SYSTEMS, SystemSpec, check_system

if TYPE_CHECKING:
    from headrank_pipeline.experiment.batches import Workers
    from headrank_pipeline.experiment.judgement import Judged
    from headrank_pipeline.experiment.runner import Outcome
    from headrank_pipeline.pipeline import Reranker

__all__ = [
    "PASSAGES_OPTION",
    "RERANKER_FLAGS",
    "RERANKER_OPTIONS",
    "RUN_OPTIONS",
    "default_output",
    "load_reranker",
    "measures_table",
    "model_option",
    "open_reranker",
    "path_option",
    "report",
    "rerank",
    "with_options",
]

_log = logging.getLogger(__name__)

Command = TypeVar("Command", bound=Callable[..., Any])


def path_option(name: str, text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Return a click option that takes a path."""
    return click.option(name, type=click.Path(path_type=Path), required=required, help=text)


PASSAGES_OPTION = click.option(
    "--passages",
    type=click.Choice(["causal", "isolated"]),
    help="What a passage sees: those before it, or the opening and itself only.  [default: as trained, else causal]",
)


def model_option(*, required: bool) -> Callable[[Command], Command]:
    """Return the option that names a model."""
    return click.option(
        "--model",
        required=required,
        help="Folder, Hugging Face name or GGUF file of a model; 'embedded', which ships with the package; or "
        "'smollm2' (headrank doctor says how to install it).",
    )


def _tokens(ctx: click.Context, option: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r}: expected a whole number from 1, or auto")
    return int(text)


def _system(ctx: click.Context, option: click.Parameter, name: str) -> str:
    try:
        check_system(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return name


RERANKER_OPTIONS = (
    model_option(required=True),
    click.option("--heads", help="Head set: JSON file, published name, 'all' or 'layers:10-13'."),
    click.option(
        "--system",
        metavar="NAME",
        callback=_system,
        default="headrank",
        show_default=True,
        help=f"Method that scores the candidates: {', '.join(OWN_SYSTEMS)}, or one that an installed package adds.",
    ),
    click.option("--max-prompt-tokens", type=int, help="Budget of a prompt.  [default: all the model's positions]"),
    click.option("--passage-words", type=int, help="Words kept of a passage.  [default: the system's own]"),
    PASSAGES_OPTION,
    click.option(
        "--option", "options", multiple=True, metavar="NAME=VALUE", help="Any other option of the system; repeatable."
    ),
    path_option("--passage-cache", "Folder that keeps the keys of isolated passages from query to query, run to run."),
    click.option(
        "--passage-cache-memory",
        type=click.FloatRange(min=0),
        metavar="GIB",
        help="GiB of cached keys on the device, also without --passage-cache.  [default: 2 with a folder, else 0]",
    ),
    click.option(
        "--passage-cache-limit",
        type=click.FloatRange(min=0),
        metavar="GIB",
        help="What the folder may hold; what was not used for longest goes first.  [default: 64]",
    ),
    click.option(
        "--batch-tokens",
        metavar="N",
        callback=_tokens,
        help="Tokens of one forward pass, or auto: what free memory allows.  [default: 16384]",
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, …"),
    click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16."),
    click.option("--revision", help="Revision of a Hugging Face model."),
    click.option("--chat", help="Turn markup: auto, chatml, granite, llama3, mistral, phi or plain.  [default: auto]"),
    click.option(
        "--first-stage-weight",
        type=float,
        help="Mix in the first stage's scores, 0 to 1; choose it on training queries.",
    ),
    click.option(
        "--log-scores",
        is_flag=True,
        help="Mix it with the logarithm of the reranker's scores: for shares of attention, as headrank's.",
    ),
    *BASELINE_OPTIONS,
)
RUN_OPTIONS = (
    click.option("--batch-size", default=8, show_default=True, help="Queries handed to the reranker at once."),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Processes that rerank, each with a model, and a GPU where there are any; more than 1 needs Ray.",
    ),
    click.option("--tag", help="Last column of the run.  [default: the system's name]"),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Start anew where the output holds another run; that one goes with the first batch.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
)


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds click options in this order."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@path_option("--candidates", "Candidates JSONL with text, as retrieve writes them.", required=True)
@path_option("--output", "Run directory.", required=True)
@with_options(*RERANKER_OPTIONS)
@click.option("--depth", type=click.IntRange(min=1), default=100, show_default=True,
              help="Candidates that are reranked; the rest follow.")  # fmt: skip
@path_option("--qrels", "Evaluate with these judgments.")
@click.option("--measure", "-m", "measures", multiple=True, help="Repeatable.  [default: nDCG@10, R@100]")
@click.option("--relevance-level", "-l", default=1, show_default=True)
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
    batch_size: int,
    workers: int,
    tag: str | None,
    overwrite: bool,
    as_json: bool,
    **reranker: Any,
) -> None:
    """Rerank saved candidates; the same command continues an interrupted run. Needs no Java."""
    from headrank_pipeline.experiment.evaluate import DEFAULT_MEASURES
    from headrank_pipeline.experiment.judgement import Judgement
    from headrank_pipeline.experiment.runner import RunPlan, execute
    from headrank_pipeline.experiment.supply import supply_from_file
    from headrank_pipeline.trec import read_qrels

    judgement = None
    if qrels is None:
        refuse_typed("measures", "relevance_level", because="nothing is evaluated without --qrels")
    else:
        judgement = Judgement(qrels=qrels, measures=measures or DEFAULT_MEASURES, relevance_level=relevance_level)
        read_qrels(judgement.opened)  # a wrong name or line is told before a model is loaded, which may take minutes
    supply = supply_from_file(candidates)
    next(supply.rankings(), None)  # so is a file of another kind
    with open_reranker(workers, **reranker) as opened:
        plan = RunPlan(
            output=output,
            supply=supply,
            reranker=opened,
            depth=depth,
            batch_size=batch_size,
            tag=tag or reranker["system"],
            judgement=judgement,
        )
        outcome = execute(plan, overwrite=overwrite, command=command_line())
    report(ctx, outcome, as_json=as_json)


def default_output(benchmark: str, system: str, model: str) -> Path:
    """Return where a run goes when nothing is said; no time stamp, so that the same command continues it.

    Examples:
        >>> default_output("beir-scifact", "headrank", "Qwen/Qwen3-0.6B").as_posix()
        'runs/beir-scifact/headrank-qwen3-0.6b'
    """
    return Path("runs") / benchmark / f"{system}-{re.sub(r'[^a-z0-9._-]+', '-', Path(model).name.lower())}"


@contextmanager
def open_reranker(workers: int, **flags: Any) -> Iterator[Reranker | Workers]:
    """Give the reranker that the flags describe, in this process or in workers that end with the context."""
    if flags.get("offline"):
        _forbid_hub()  # in this process too, whose first stage may have an encoder
    if flags["system"] == "headrank" and flags.get("heads") is None and flags["first_stage_weight"] is None:
        _advise_on_mixing(flags["model"] or "")
    if workers == 1:
        yield load_reranker(**flags)
        return
    from headrank_pipeline.experiment import scaleout

    # An endpoint's model is elsewhere: its workers need no GPU.
    device = "cpu" if flags.get("endpoint") else flags["device"]
    with scaleout.workers(partial(load_reranker, **flags), workers, device=device) as started:
        yield started


def load_reranker(
    system: str,
    model: str,
    heads: str | None,
    max_prompt_tokens: int | None,
    passage_words: int | None,
    passages: str | None,
    passage_cache: Path | None,
    passage_cache_memory: float | None,
    passage_cache_limit: float | None,
    batch_tokens: int | str | None,
    options: tuple[str, ...],
    device: str,
    dtype: str,
    revision: str | None,
    chat: str | None = None,
    first_stage_weight: float | None = None,
    log_scores: bool = False,
    offline: bool = False,
    **baseline: Any,
) -> Reranker:
    """Return the reranker that the flags describe, with its model loaded; `baseline` are the flags of baselines."""
    named = {
        "passage_words": passage_words,
        "passages": passages,
        "passage_cache": passage_cache,
        "passage_cache_memory": passage_cache_memory,
        "passage_cache_limit": passage_cache_limit,
        "max_prompt_tokens": max_prompt_tokens,
        "batch_tokens": batch_tokens,
        "revision": revision,
        "chat": chat,
        "device": None if device == "auto" else device,
        "dtype": None if dtype == "auto" else dtype,
        **baseline,
    }
    if passage_cache_limit is not None and passage_cache is None:
        raise click.UsageError("--passage-cache-limit bounds a folder; name it with --passage-cache")
    if log_scores and first_stage_weight is None:
        raise click.UsageError("--log-scores says how --first-stage-weight mixes; give that, too")
    changes = dict(map(_option, options)) | {name: value for name, value in named.items() if value is not None}
    spec = SystemSpec(
        system, model, heads, changes, first_stage_weight=first_stage_weight, log_scores=log_scores, offline=offline
    )
    return spec.open()


# Every flag that `load_reranker` takes, by its own signature: a command that left one out would ignore it.
RERANKER_FLAGS = (
    *(name for name in inspect.signature(load_reranker).parameters if name != "baseline"),
    *BASELINE_FLAGS,
)


def _advise_on_mixing(model: str) -> None:
    from headrank_pipeline.rerank.named_models import first_stage_weight

    weight = first_stage_weight(model)
    if weight is None:
        return
    because = (
        "alone it is below BM25 on the public collections that it was measured on; " if model == "embedded" else ""
    )
    _log.info("%s: %s--first-stage-weight %s --log-scores mixes the two as was chosen for it", model, because, weight)


def _option(text: str) -> tuple[str, Any]:
    """``reverse=true`` and ``passage_words=null`` are JSON values; what is not JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r}: expected NAME=VALUE, for example reverse=true", param_hint="--option")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _forbid_hub() -> None:
    """Keep the Hugging Face libraries off the network; they read this only when they are first imported."""
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"


# --------------------------------------------------------------------------------------------------------- reports


def report(ctx: click.Context, outcome: Outcome, *, as_json: bool) -> None:
    """Print what a run came to, and end with status 7 where queries failed."""
    from headrank_pipeline.rerank.long_lists import summary

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
        rate = f", {totals['queries_per_second']:.2f} queries/s" if totals["queries_per_second"] else ""
        click.echo(f"{totals['queries']} queries, {len(totals['failed'])} failed{rate}: {outcome.directory.run}")
        if told := summary(totals["notes"], totals["queries"]):
            click.echo(told)
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
