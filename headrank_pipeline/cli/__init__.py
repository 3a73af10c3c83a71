"""The command line: parse, call one function, print what it returned."""

from __future__ import annotations

from importlib import import_module

import click

from headrank_pipeline.cli.reporting import ReportingGroup, start_logging

__all__ = ["main"]

# Each command's module, in the order of the help.
_MODULES = {
    "demo": "demo",
    "benchmarks": "benchmarks",
    "index": "retrieval",
    "retrieve": "retrieval",
    "rerank": "reranking",
    "explain": "explaining",
    "run": "running",
    "merge": "merging",
    "reproduce": "reproducing",
    "evaluate": "evaluation",
    "compare": "comparison",
    "analyze": "comparison",
    "lists": "learning",
    "select-heads": "learning",
    "train": "learning",
    "push": "hub",
    "calibrate": "calibrating",
    "mcp": "mcp",
    "serve": "serving",
    "doctor": "doctor",
}


class _Commands(ReportingGroup):
    """Imports a command's module when it is asked for, so that one command does not wait for the others' imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None where there is none of this name."""
        if cmd_name not in _MODULES:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{_MODULES[cmd_name]}"), cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Log every step, and show the traceback of an error.")
@click.version_option(package_name="headrank-pipeline")
def main(debug: bool) -> None:
    """Rerank Pyserini's candidates with selected attention heads of a language model.

    Results go to standard output, progress and logs to standard error. Exit status: 0 done, 2 bad arguments, 3 missing
    prerequisite (Java, GPU), 4 missing file or resource, 5 invalid data, 6 failure at run time, 7 some queries failed.
    """
    start_logging(debug=debug)
