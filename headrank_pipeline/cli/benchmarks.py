"""headrank benchmarks: what can be run, what is here and what would be downloaded; opens no socket."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from headrank_pipeline.cli.commands import CommandWithMovedFlags, echo_json, table
from headrank_pipeline.experiment import facts

if TYPE_CHECKING:
    from headrank_pipeline.experiment.benchmark import Benchmark
    from headrank_pipeline.experiment.sources import Need

__all__ = ["amount", "benchmarks", "need_lines"]


_MOVED = {"--pipelines": "the folder, with a / in it, in the place of BENCHMARK", "--extra": "--suite all"}


@click.command(cls=CommandWithMovedFlags, moved=_MOVED)
@click.argument("definitions", nargs=-1, metavar="[BENCHMARK]...")
@click.option("--suite", metavar="NAME", help="Only the benchmarks of a suite.  [default: main]")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of collections, one folder per benchmark.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def benchmarks(definitions: tuple[str, ...], suite: str | None, data: Path | None, as_json: bool) -> None:
    """List benchmarks (queries, corpus, first stage, what is cached and what must be downloaded), and all suites.

    BENCHMARK is what `headrank run` takes: a name, the file of a definition, a folder of them, or ir_datasets:ID.
    """
    from headrank_pipeline.experiment.benchmark import find_named, find_suite, named_suites
    from headrank_pipeline.experiment.sources import Sources, to_download
    from headrank_pipeline.experiment.suite import local_files

    if definitions and suite is not None:
        raise click.UsageError(f"--suite {suite} and {definitions[0]} both say what is listed; give one")
    named = [pair for called in definitions for pair in find_named(called)] or find_suite(suite or "main")
    found = [benchmark for _, benchmark in named]
    wanted = {b.name: Sources(b, local_files(data, b.name, offline=False)).needs() for b in found}
    if as_json:
        echo_json(
            [
                {
                    "name": b.name,
                    "title": b.title,
                    "group": b.group,
                    "suites": [known.name for known in named_suites().values() if b.name in known.benchmarks],
                    "queries": _queries(b),
                    "docs": _docs(b),
                    "first_stage": b.first_stage.model_dump(),
                    "needs": [asdict(need) for need in wanted[b.name]],
                }
                for b in found
            ]
        )
        return
    rows = [[b.name, _count(_queries(b)), _count(_docs(b)), _stage(b), *_states(wanted[b.name])] for b in found]
    click.echo(table(["benchmark", "queries", "docs", "first stage", "topics, qrels", "index"], rows))
    click.echo(f"\n{len(found)} benchmarks; to download in all: {amount(*to_download(wanted.values()))}")
    if not definitions and suite is None:
        suites = [[known.name, str(len(known.benchmarks)), known.title] for known in named_suites().values()]
        click.echo(f"\n{table(['suite', 'benchmarks', ''], suites)}\n\nheadrank run --suite NAME runs one")


def need_lines(found: Sequence[Need]) -> list[str]:
    """Return one line per need: what, where it is or comes from, how large."""
    return [
        f"  {need.what:<13} {need.state:<9} {_amount(need):>9}  {need.name}  {_from(need)}".rstrip() for need in found
    ]


def amount(known: int, unknown: int) -> str:
    """Return what has to be downloaded for people.

    Examples:
        >>> amount(2_170_758_745, 0), amount(0, 1)
        ('2.2 GB (models not counted)', '0 B and 1 of unknown size (models not counted)')
    """
    return f"{size(known)}{f' and {unknown} of unknown size' if unknown else ''} (models not counted)"


def size(number: int | None) -> str:
    """Return a number of bytes for people.

    Examples:
        >>> size(8_849_995), size(2_170_758_745), size(None)
        ('8.8 MB', '2.2 GB', '?')
    """
    if number is None:
        return "?"
    amount = float(number)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit != "MB" else f"{amount:.1f} MB"
        amount /= 1000
    return f"{amount:.1f} GB"


def _states(found: Sequence[Need]) -> tuple[str, str]:
    *judgments, collection = found if found[-1].what in ("index", "corpus") else (*found, found[0])
    return ", ".join(dict.fromkeys(_state(need) for need in judgments)), _state(collection)


def _state(need: Need) -> str:
    return f"{need.state} {_amount(need)}".rstrip()


def _amount(need: Need) -> str:
    return size(need.size) if need.state == "download" else ""


def _from(need: Need) -> str:
    return "" if need.place == need.name else f"({need.place})"


def _queries(benchmark: Benchmark) -> int | None:
    return facts.known_of("datasets", benchmark.collection.ir_datasets).get("queries")


def _docs(benchmark: Benchmark) -> int | None:
    """Without an index of Pyserini one is built from all documents of the collection."""
    collection = benchmark.collection
    known = facts.known_of("indexes", collection.pyserini_index) or facts.known_of("datasets", collection.ir_datasets)
    return known.get("docs")


def _stage(benchmark: Benchmark) -> str:
    stage = benchmark.first_stage
    fields = " multifield" if stage.fields else ""
    return f"{stage.method}{fields} k1={stage.k1} b={stage.b} hits={stage.hits}"


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"
