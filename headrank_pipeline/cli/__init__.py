"""The command line: parse, call one function, print what it returned."""

from headrank_pipeline.cli.commands import main

__all__ = ["main"]
