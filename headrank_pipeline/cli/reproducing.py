"""headrank reproduce: make a run again from its manifest and say whether it came out the same."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click

from headrank_pipeline.cli.commands import echo_json, table
from headrank_pipeline.experiment.reproduction import Reproduction, compare_runs, recorded_command, recorded_folder

__all__ = ["reproduce"]

_DIFFERENT = 6
_SHOWN = 5  # qids and changes


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder of the new run.  [default: RUN-again]")
@click.option("--here", is_flag=True, help="Run the command in this folder, not in the one that it was called in.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def reproduce(ctx: click.Context, run: Path, output: Path | None, here: bool, as_json: bool) -> None:
    """Run the command of RUN's manifest again, elsewhere, and compare: equal, near (within 0.0005) or different.

    Relative paths in the command start where it was called, as the manifest says. Status 6 means different.
    """
    again = output or run.with_name(f"{run.name}-again")
    arguments = [*recorded_command(run), "--output", str(again.absolute())]
    # A process of its own, as the first call was: no Java, model or logger of this one is in its way.
    done = subprocess.run(
        [sys.executable, "-m", "headrank_pipeline", *arguments],
        stdout=subprocess.DEVNULL,
        check=False,
        env=_environment(),
        cwd=Path.cwd() if here else recorded_folder(run),
    )
    if done.returncode:
        click.echo(f"error: `headrank {shlex.join(arguments)}` ended with status {done.returncode}", err=True)
        ctx.exit(done.returncode)
    found = compare_runs(run, again)
    if as_json:
        echo_json({"run": str(run), "again": str(again), **asdict(found)})
    else:
        for line in lines(found):
            click.echo(line)
        click.echo(f"{run} and {again}: {found.verdict}")
    if found.verdict == "different":
        ctx.exit(_DIFFERENT)


def _environment() -> dict[str, str]:
    """Variables with which Python finds the modules of this process, and none in the folder that a manifest names."""
    places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    return {**os.environ, "PYTHONPATH": places, "PYTHONSAFEPATH": "1"}


def lines(found: Reproduction) -> list[str]:
    """Return what to print of a comparison, above its verdict."""
    shown = []
    if found.means:
        rows = [[name, f"{old:.4f}", f"{new:.4f}"] for name, (old, new) in found.means.items()]
        shown.append(table(["measure", "first", "again"], rows))
    if found.reordered:
        some = ", ".join(found.reordered[:_SHOWN])
        shown.append(f"{len(found.reordered)} of {found.queries} queries are ranked differently: {some}")
    for title, changes in (("configuration", found.configuration), ("environment", found.environment)):
        for key, old, new in changes[:_SHOWN]:
            shown.append(f"{title} {key}: first {old!r}, again {new!r}")
        if len(changes) > _SHOWN:
            shown.append(f"{title}: {len(changes) - _SHOWN} changes more")
    return shown
