"""headrank push: a model or a head set to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from headrank_pipeline.cli.commands import table

__all__ = ["push"]


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--license", help="License as the hub spells it, such as apache-2.0.  [default: that of the card]")
@click.option("--base-model", metavar="OWNER/NAME", help="Model that it was made from.  [default: that of the card]")
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Hub's name of training data; repeatable.")
@click.option(
    "--run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Evaluated run directory of this model, whose measures go into the card; repeatable.",
)
@click.option("--private", is_flag=True, help="Makes the repository private if it is new.")
@click.option(
    "--dry-run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Writes what would be pushed into a new folder, and pushes nothing.",
)
def push(
    source: Path,
    repository: str,
    license: str | None,
    base_model: str | None,
    datasets: tuple[str, ...],
    runs: tuple[Path, ...],
    private: bool,
    dry_run: Path | None,
) -> None:
    """Push SOURCE, a trained model's folder or a head set's JSON file, to the Hugging Face hub.

    Only safetensors weights, the tokenizer, heads, recipe and the card are pushed. A model is then used as --model
    OWNER/NAME, a head set as --heads OWNER/NAME. The token is HF_TOKEN, or what `hf auth login` stored.
    """
    from headrank_pipeline.adapters.hub import CardFacts, prepare, upload

    facts = CardFacts(base_model=base_model, license=license, datasets=datasets, runs=runs)
    with tempfile.TemporaryDirectory() as scratch:
        target = dry_run or Path(scratch) / "push"
        left_out = prepare(source, target, repository, facts)
        click.echo(table(["file", "bytes"], [[f.name, f"{f.stat().st_size:,}"] for f in sorted(target.iterdir())]))
        if left_out:
            click.echo(f"left out: {', '.join(left_out)}")
        click.echo(f"written, not pushed: {target}" if dry_run else upload(target, repository, private=private))
