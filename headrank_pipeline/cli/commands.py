"""The commands, and what users see of them: one line per error with its exit status, logs on stderr, aligned tables."""

from __future__ import annotations

import json
import logging
import re
import select
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from headrank_pipeline.options import read_assignment
from headrank_pipeline.pipeline import MissingPrerequisite, Terminated

__all__ = [
    "ASSIGNMENT",
    "PARTIAL",
    "CommandWithMovedFlags",
    "ReportingGroup",
    "assigned",
    "command_line",
    "echo_json",
    "in_flags",
    "main",
    "refuse_typed",
    "start_logging",
    "table",
]

PARTIAL = 7  # some queries failed; the others are there
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

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
    "mcp": "serving",
    "serve": "serving",
    "doctor": "doctor",
}


class ReportingGroup(click.Group):
    """Turns the exceptions of the package into one line and an exit status; ``--debug`` keeps the traceback.

    With ``--json`` standard output gets ``{"error": …, "status": …}``, too.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        # Looked for by hand: a command line that is wrong elsewhere is not parsed to the end.
        as_json = "--json" in ctx.args
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):
            raise
        except click.ClickException as error:
            _echo_error(error.format_message(), error.exit_code, as_json=as_json)
            raise
        except KeyboardInterrupt:
            _echo_error("interrupted", _INTERRUPTED, as_json=as_json)
            click.echo("interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except Terminated as ended:
            click.echo(str(ended), err=True)
            ctx.exit(0)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError) as error:
            if _nobody_reads(error):
                raise
            message = in_flags(_message(error), self.get_command(ctx, ctx.invoked_subcommand or ""))
            _echo_error(message, _exit_status(error), as_json=as_json)
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {message}", err=True)
            ctx.exit(_exit_status(error))


class _Commands(ReportingGroup):
    """Imports a command's module when it is asked for, so that one command does not wait for the others' imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None where there is none of this name."""
        if cmd_name not in _MODULES:
            return None
        command: click.Command = getattr(
            import_module(f"{__package__}.{_MODULES[cmd_name]}"), cmd_name.replace("-", "_")
        )
        return command


# An argument as Python has it, in a message of the package: overwrite=True, qrels=FILE, option shuffle_seed=1.
# Not in what is quoted, and not in a URL: those are the user's words.
_ARGUMENT = re.compile(r"(?<![\w./=?&'\"-])((?:first stage )?option )?([a-z][a-z0-9_]*)=([^\s,;:()]*[^\s,;:().])")


def in_flags(message: str, command: click.Command | None) -> str:
    """Return a message of the package, which names arguments as Python has them, with the flags of a command.

    Examples:
        >>> @click.command()
        ... @click.option("--qrels")
        ... @click.option("--overwrite", is_flag=True)
        ... def run(): ...
        >>> in_flags("name qrels=FILE, or start anew with overwrite=True; k1=0.9 is no flag", run)
        'name --qrels FILE, or start anew with --overwrite; k1=0.9 is no flag'
        >>> in_flags("http://host/v1?qrels=x: got 'overwrite=True'", run)
        "http://host/v1?qrels=x: got 'overwrite=True'"
    """
    flags = {flag: option for option in (command.params if command else ()) for flag in option.opts}

    def written(found: re.Match[str]) -> str:
        kind, name, value = found.groups()
        flag = f"--{(kind or name).strip().replace(' ', '-').replace('_', '-')}"
        if flag not in flags:
            return found[0]
        if kind:
            return f"{flag} {name}={value}"
        return flag if getattr(flags[flag], "is_flag", False) else f"{flag} {value}"

    return _ARGUMENT.sub(written, message)


def _echo_error(message: str, status: int, *, as_json: bool) -> None:
    if as_json:
        echo_json({"error": message, "status": status})


class WritingCommand(click.Command):
    """A command that does not write over a file that it reads."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line, and refuse an output that is one of the inputs."""
        rest = super().parse_args(ctx, args)
        flags = {param.name: param.opts[0] for param in self.params}
        files = [(name, file) for name, given in ctx.params.items() for file in _files(given)]
        outputs = [(name, file) for name, file in files if name in _OUTPUTS]
        for name, output in outputs:
            for other, file in files:
                if other not in _OUTPUTS and file.samefile(output):
                    raise click.UsageError(
                        f"{flags[name]} {output} is what {flags[other]} names, and would be lost; name another", ctx
                    )
        return rest


_OUTPUTS = ("output", "figure")


def _files(given: Any) -> Iterator[Path]:
    """Yield the files that a parameter's value names.

    Not folders: an unfinished run may lie in a folder that is called like its system or its benchmark. Not devices or
    pipes: they can be both read and written.
    """
    for value in given if isinstance(given, tuple | list) else (given,):
        if isinstance(value, str | Path):
            with suppress(OSError, ValueError):  # a text may be no path at all
                if Path(value).is_file():
                    yield Path(value)


class CommandWithMovedFlags(WritingCommand):
    """A command that says of each flag that it once had what to write instead.

    Args:
        moved: flag -> what says the same now.
    """

    def __init__(self, *arguments: Any, moved: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.moved = moved

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name not in self.moved:
                raise
            instead = self.moved[error.option_name]
            raise click.UsageError(f"{error.option_name} is no flag any more; write {instead}", ctx) from error


class _Assignment(click.ParamType[str]):
    """``NAME=VALUE``, checked and kept as text, so that a command line can be written again from its parameters."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            read_assignment(value)
        except ValueError as error:
            self.fail(f"{error}, for example patience=3", param, ctx)
        return str(value)


ASSIGNMENT = _Assignment()


def assigned(texts: Iterable[str], flag: str) -> dict[str, Any]:
    """Return name -> value of what a repeatable flag of type `ASSIGNMENT` was given.

    Raises:
        click.UsageError: a name that is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in map(read_assignment, texts):
        if name in found:
            raise click.UsageError(f"{flag} {name} is given twice; give it once")
        found[name] = value
    return found


def _nobody_reads(error: Exception) -> bool:
    """Return whether the error is that a pipe like ``| head`` has ended; click then ends without a word."""
    if not isinstance(error, BrokenPipeError):
        return False
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _exit_status(error: Exception) -> int:
    if isinstance(error, MissingPrerequisite):
        return 3
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return 4
    if isinstance(error, ValueError | TypeError | KeyError | FileExistsError):
        return 5
    return 6


def _message(error: Exception) -> str:
    # A KeyError's str() is the repr of its message.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or type(error).__name__


class _StderrHandler(logging.Handler):
    """Writes to whatever standard error is now, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        bars = sys.modules.get("tqdm")
        if bars is not None and sys.stderr.isatty():
            bars.tqdm.write(text, file=sys.stderr)
        else:
            click.echo(text, err=True)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        ctx = click.get_current_context(silent=True)
        return in_flags(super().format(record), ctx.command if ctx else None)


def start_logging(*, debug: bool) -> None:
    """Show this package's log from INFO up (DEBUG with `debug`); calling it twice adds nothing."""
    package = logging.getLogger("headrank_pipeline")
    package.setLevel(logging.DEBUG if debug else logging.INFO)
    if not any(isinstance(handler, _StderrHandler) for handler in package.handlers):
        handler = _StderrHandler()
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
        package.addHandler(handler)
        package.propagate = False  # importing pyserini gives the root logger a handler of its own: every line twice


def refuse_typed(*names: str, because: str) -> None:
    """Refuse flags that the user typed where they would change nothing.

    Args:
        names: parameters of the present command.
        because: follows the flags in the message.
    """
    ctx = click.get_current_context()
    typed = [
        option.opts[0]
        for option in ctx.command.params
        if option.name in names and ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    ]
    if typed:
        raise click.UsageError(f"{', '.join(typed)}: {because}")


def command_line() -> str:
    """Return the command as typed, for a manifest; no flag of ours takes a secret."""
    return shlex.join(["headrank", *sys.argv[1:]])


def echo_json(value: Any) -> None:
    """Print a result for machines."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table; columns whose every cell is a number, or empty, are set right.

    Examples:
        >>> print(table(["measure", "value"], [["nDCG@10", "0.6789"], ["R@100", "12.5"]]))
        measure   value
        nDCG@10  0.6789
        R@100      12.5
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(_is_number(cell) for cell in column[1:]) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = zip(row, widths, right, strict=True)
        lines.append("  ".join(c.rjust(width) if r else c.ljust(width) for c, width, r in cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("+-").replace(".", "", 1).replace(",", "").isdigit()


# ----------------------------------------------------------------------------------------------------- the command line


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Log every step, and show the traceback of an error.")
@click.version_option(package_name="headrank-pipeline")
def main(debug: bool) -> None:
    """Rerank Pyserini's candidates with selected attention heads of a language model.

    Results go to standard output, progress and logs to standard error. Exit status: 0 done, 2 bad arguments, 3 missing
    prerequisite (Java, GPU), 4 missing file or resource, 5 invalid data, 6 failure at run time,
    7 some queries or benchmarks failed.
    """
    start_logging(debug=debug)
