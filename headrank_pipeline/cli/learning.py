"""headrank lists, select-heads, train: from judgments to heads, and to a model that reads them well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.attention.model_files import named_model
from headrank_pipeline.attention.recipe import RECIPES, Recipe
from headrank_pipeline.cli.commands import (
    ASSIGNMENT,
    CommandWithMovedFlags,
    WritingCommand,
    assigned,
    command_line,
    echo_json,
    table,
)
from headrank_pipeline.cli.reranking import model_option, path_option
from headrank_pipeline.experiment.batches import Progress
from headrank_pipeline.experiment.directory import environment
from headrank_pipeline.files import check_writable, open_input
from headrank_pipeline.learn.lists import describe_file, read_lists, write_lists
from headrank_pipeline.learn.schedule import TrainingConfig, configured
from headrank_pipeline.learn.settings import CRITERIA, MOVES, SelectionConfig

if TYPE_CHECKING:
    from headrank_pipeline.learn.selection import Selection
    from headrank_pipeline.learn.trainer import TrainingReport

__all__ = ["lists", "select_heads", "train"]

# CoRe finds heads by raw attention and reranks by calibrated, filtered attention of spans one token longer (its
# core_detector.py and reranker_calib.py).
_DETECTION = {"core": {"content_free": None, "filter_deviations": None, "trailing_columns": 0}}

_TRAINING = TrainingConfig()
_OPTION = click.option(
    "--option",
    "options",
    multiple=True,
    type=ASSIGNMENT,
    help="Sets one option of the prompt or the rule, such as passages=isolated or passage_words=100; repeatable. "
    "docs/options.md lists them.  [default: as the model was trained]",
)
_MOVED = {"--passages": "--option passages=isolated"}


@click.command(cls=WritingCommand)
@path_option("--candidates", "Candidates (JSONL), as headrank retrieve writes them.", required=True)
@path_option("--qrels", "TREC or BEIR judgments.", required=True)
@path_option("--output", "File of graded lists to write; a name that ends in .gz is gzipped.", required=True)
@path_option("--corpus", "Corpus that supplies missing texts, and judged passages that the first stage missed.")
@click.option(
    "--unjudged",
    type=click.Choice(["zero", "drop"]),
    default="zero",
    show_default=True,
    help="What becomes of unjudged passages: they get grade 0, or are left out.",
)
@click.option("--depth", type=click.IntRange(min=1), help="Candidates taken per query.  [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lists(
    candidates: Path, qrels: Path, output: Path, corpus: Path | None, unjudged: Any, depth: int | None, as_json: bool
) -> None:
    """Join candidates and judgments to graded lists, which select-heads and train learn from."""
    counts = asdict(write_lists(candidates, qrels, output, unjudged=unjudged, corpus=corpus, cutoff=depth))
    if as_json:
        echo_json({"output": str(output), **counts})
        return
    click.echo(
        f"{counts['written']} lists of {counts['passages']} passages, {counts['judged']} of them judged: {output}"
    )
    click.echo(f"{counts['added']} judged passages added from the corpus, {counts['dropped']} unjudged ones left out")
    click.echo(
        f"left out: {counts['without_judgements']} queries without judgments, {counts['without_candidates']} without "
        f"candidates, {counts['one_grade']} whose passages have one grade only"
    )


@click.command(name="select-heads", cls=CommandWithMovedFlags, moved=_MOVED)
@model_option(required=True)
@path_option(
    "--lists", "Graded lists to choose by, as headrank lists writes them; never those of a test set.", required=True
)
@path_option("--output", "Head set (JSON) to write; the per-head table goes beside it (.tsv).", required=True)
@click.option("--criterion", type=click.Choice(CRITERIA), default="entropy-regularised", show_default=True,
              help="Rule that chooses heads from their scores (docs/learning.md).")  # fmt: skip
@click.option("--num-heads", default=16, show_default=True, help="Heads to choose.")
@click.option("--lambda", "entropy_weight", default=0.25, show_default=True, help="Weight of the entropy term.")
@click.option("--flatness-weight", default=0.0, show_default=True,
              help="Weight of a term against heads whose attention goes by place.")  # fmt: skip
@click.option(
    "--depth-cap", type=float, help="Chooses heads only in this share of the layers, the lowest; for example 0.7."
)
@click.option("--window", default=4, show_default=True, help="Layers in a row that --criterion layer-window takes.")
@click.option("--temperature", default=0.1, show_default=True, help="Temperature of CoRe's contrastive score.")
@click.option(
    "--relevance-level",
    "-l",
    default=1,
    show_default=True,
    help="Lowest grade that counts as relevant, for qrscore and core.",
)
@click.option("--order", type=click.Choice(["random", "given", "reversed"]), default="random", show_default=True,
              help="Order of the passages in the prompts.")  # fmt: skip
@click.option("--list-size", type=int, help="Passages drawn from each list.  [default: all]")
@click.option("--max-lists", type=click.IntRange(min=1), help="Uses only the first so many lists.")
@click.option(
    "--max-prompt-tokens",
    type=click.IntRange(min=1),
    help="Tokens of a prompt at most.  [default: all the model's positions]",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the draws and orders.")
@click.option("--system", type=click.Choice(list(RECIPES)), default="headrank", show_default=True,
              help="System whose prompt and rule the heads are measured with.")  # fmt: skip
@_OPTION
@click.option("--figure/--no-figure", default=True, show_default=True, help="Draws a map of layers and heads (.png).")
@click.option("--device", default="auto", show_default=True, help="Device that computes: auto, cpu, cuda, cuda:1, …")
@click.option("--dtype", default="auto", show_default=True,
              help="Type of the weights: auto, float32, bfloat16 or float16.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of a Hugging Face model.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def select_heads(
    model: str,
    lists: Path,
    output: Path,
    system: str,
    options: tuple[str, ...],
    figure: bool,
    device: str,
    dtype: str,
    revision: str | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Score every head of a model on graded lists and choose the best; prints what other criteria would choose."""
    from headrank_pipeline.attention.model import load
    from headrank_pipeline.comparison.canvas import require_pictures
    from headrank_pipeline.comparison.learning_figures import head_map
    from headrank_pipeline.learn.selection import select_heads as select

    if output.suffix in (".tsv", ".png"):
        raise click.UsageError(f"--output {output}: the head set is JSON, and its table and picture lie beside it as "
                               f".tsv and .png; name it .json")  # fmt: skip
    check_writable(output)
    if figure:
        require_pictures()
    model, config, changes = str(named_model(model)), SelectionConfig(**settings), _read_options(options, system)
    opened = open_input(lists, "graded lists")
    graded = read_lists(opened)
    loaded = load(model, "all", device=device, dtype=dtype, revision=revision)
    origin = describe_file(opened)
    with Progress(
        min(len(graded), config.max_lists or len(graded)), 0, unit=("list", "lists"), what="select heads"
    ) as bar:
        found = select(
            loaded,
            _recipe(system, model, loaded.source.revision, changes),
            graded,
            config,
            origin=origin,
            on_list=lambda _done: bar.advance(1),
        )
    found.heads.save(output)
    found.table.save(output.with_suffix(".tsv"), scores=found.scores, chosen=found.heads)
    if figure:
        picture = head_map(output.with_suffix(".tsv"), origin=f"Made by: {command_line()}")
        output.with_suffix(".png").write_bytes(picture.captioned_png)
    if as_json:
        echo_json({"output": str(output), "heads": found.heads.describe(), "candidates": _costs(found)})
        return
    click.echo(table(["criterion", "heads", "layers", "FLOPs", "chosen"], _selection_rows(found, config.criterion)))
    counts = ", ".join(f"{value} {name}" for name, value in found.table.counts.items())
    click.echo(f"lists: {counts}; {found.heads.selection['constant_heads']} constant heads")
    if (places := found.heads.places) is not None:
        click.echo(
            f"places: the largest mean share of attention is {places.ratio:.2f} times the smallest; even is 1, the "
            f"standard error {max(places.error):.2f} at most"
        )
    click.echo(f"{found.heads.name}: {output}")


def _selection_rows(found: Selection, criterion: str) -> list[list[str]]:
    rows = []
    for name, (chosen, cost) in found.candidates.items():
        shown = " ".join(f"{layer}-{head}" for layer, head in chosen.heads[:8])
        more = f" +{len(chosen.heads) - 8}" if len(chosen.heads) > 8 else ""
        kept = f"{cost.depth} of {cost.layers}"
        mark = " *" if name == criterion else ""
        rows.append([name + mark, str(len(chosen.heads)), kept, f"{cost.share:.0%}", shown + more])
    return rows


def _costs(found: Selection) -> dict[str, Any]:
    return {
        name: {
            "heads": [list(head) for head in chosen.heads],
            "layers_kept": cost.depth,
            "layers": cost.layers,
            "flops_share": round(cost.share, 4),
            "prompt_tokens": cost.tokens,
        }
        for name, (chosen, cost) in found.candidates.items()
    }


@click.command(cls=CommandWithMovedFlags, moved=_MOVED)
@model_option(required=True)
@click.option("--heads", required=True, help="Head set to train: JSON file, published name, 'all' or 'layers:10-13'.")
@path_option("--lists", "Graded training lists.", required=True)
@path_option("--dev", "Graded lists for early stopping, of other queries.")
@path_option("--output", "Folder of the trained model; log and checkpoints go to its 'training'.", required=True)
@click.option("--moves", type=click.Choice(MOVES), help="Which weights move: low-rank updates of q and k "
              "(lora) or of every projection (lora-all); q and k of the heads' layers (heads) or of all (qk); or "
              f"all.  [default: {_TRAINING.moves}]")  # fmt: skip
@click.option("--epochs", type=int, help=f"Times that training goes through the lists.  [default: {_TRAINING.epochs}]")
@click.option("--learning-rate", type=float, help=f"Largest step size.  [default: {_TRAINING.learning_rate}]")
@click.option("--list-size", type=int, help=f"Passages drawn from each list.  [default: {_TRAINING.list_size}]")
@click.option(
    "--lists-per-step", type=int, help=f"Lists whose gradients make one step.  [default: {_TRAINING.lists_per_step}]"
)
@click.option("--seed", type=int, help=f"Seed of the draws and orders.  [default: {_TRAINING.seed}]")
@click.option("--set", "settings", multiple=True, type=ASSIGNMENT,
              help="Sets any other training setting, such as objective.beta=4 or patience=3; repeatable.")  # fmt: skip
@click.option("--max-lists", type=click.IntRange(min=1), help="Uses only the first so many training lists.")
@_OPTION
@click.option("--export-dtype", default="auto", show_default=True, help="Type of the weights that are written.")
@click.option("--figure/--no-figure", default=True, show_default=True, help="Draws the curves (training/curves.png).")
@click.option("--device", default="auto", show_default=True, help="Device that computes: auto, cpu, cuda, cuda:1, …")
@click.option("--dtype", default="auto", show_default=True, help="Type of the weights that do not move.")
@click.option("--revision", help="Branch, tag or commit of a Hugging Face model.")
@click.option("--overwrite", is_flag=True, help="Starts anew if the output holds another run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train(
    model: str,
    heads: str,
    lists: Path,
    dev: Path | None,
    output: Path,
    settings: tuple[str, ...],
    max_lists: int | None,
    options: tuple[str, ...],
    export_dtype: str,
    figure: bool,
    device: str,
    dtype: str,
    revision: str | None,
    overwrite: bool,
    as_json: bool,
    **common: Any,
) -> None:
    """Align heads with the grades of lists; the same command continues an interrupted run.

    Writes a folder that reranks: weights cut off after the deepest head, tokenizer, heads.json, recipe.json, a card.
    """
    from headrank_pipeline.attention.model import load
    from headrank_pipeline.comparison.canvas import require_pictures
    from headrank_pipeline.comparison.learning_figures import training_curves
    from headrank_pipeline.learn.trainer import Trainer, TrainingData

    directory = output / "training"
    _check_output(output, directory, model)
    if figure:
        require_pictures()
    named = {name: value for name, value in common.items() if value is not None}
    config, changes = configured(_TRAINING, named | assigned(settings, "--set")), _read_options(options, "headrank")
    train_lists = open_input(lists, "graded lists")
    dev_lists = open_input(dev, "graded lists") if dev else None
    origin = {"lists": describe_file(train_lists), "max_lists": max_lists}
    origin |= {} if dev_lists is None else {"dev": describe_file(dev_lists)}
    held_out = () if dev_lists is None else read_lists(dev_lists)
    data = TrainingData(read_lists(train_lists)[:max_lists], held_out, origin)
    model = str(named_model(model))
    loaded = load(model, heads, device=device, dtype=dtype, revision=revision)
    trainer = Trainer(
        loaded,
        _recipe("headrank", model, loaded.source.revision, changes),
        data,
        config,
        directory=directory,
        overwrite=overwrite,
    )
    with Progress(trainer.steps, trainer.done, unit=("step", "steps"), what="train") as bar:
        report = trainer.run(on_event=lambda event: bar.advance(1) if event["event"] == "step" else None)
    _export(trainer, report, output, export_dtype)
    if figure:
        picture = training_curves(directory / "log.jsonl", origin=f"Made by: {command_line()}")
        (directory / "curves.png").write_bytes(picture.captioned_png)
    _report(report, output, as_json=as_json)


def _check_output(output: Path, training: Path, model: str) -> None:
    """Raise UsageError where the trained model would be written over its base or over what train did not make."""
    if not output.is_dir():
        return
    if Path(model).is_dir() and output.samefile(model):
        raise click.UsageError(f"--output {output} is the folder that --model names, and would be lost; name a new one")
    if not training.is_dir() and (found := sorted(entry.name for entry in output.iterdir())):
        raise click.UsageError(
            f"--output {output}: the folder holds what train did not write ({found[0]}, …), which could be lost; "
            f"name a new one"
        )


def _export(trainer: Any, report: TrainingReport, output: Path, dtype: str) -> None:
    from headrank_pipeline.learn.export import export

    versions = environment()
    made_by = {
        "dev nDCG@10": {"before": report.dev_before, "after": report.dev_best},
        "steps": report.steps,
        "best step": report.best_step,
        "data": dict(trainer.data.origin),
        "heads": trainer.loaded.heads.selection,
        "config": trainer.config.describe(),
        "packages": versions["packages"],
        "commit": versions["git"],
    }
    export(trainer.loaded, trainer.scorer.reading, output, dtype=dtype, made_by=made_by)


def _report(report: TrainingReport, output: Path, *, as_json: bool) -> None:
    if as_json:
        echo_json({"output": str(output), "end": report.end, "steps": report.steps, "best_step": report.best_step,
                   "dev_before": report.dev_before, "dev_best": report.dev_best})  # fmt: skip
        return
    if report.dev_best is not None:
        rows = [["before training", f"{report.dev_before:.4f}"], [f"step {report.best_step}", f"{report.dev_best:.4f}"]]
        click.echo(table(["dev lists", "nDCG@10"], rows))
    click.echo(f"{report.end} after {report.steps} steps: {output}")


def _read_options(texts: tuple[str, ...], system: str) -> dict[str, Any]:
    """Return name -> value; what the system's prompt and rule do not know is refused before a model is loaded."""
    found = assigned(texts, "--option")
    RECIPES[system].varied(found)
    return found


def _recipe(system: str, model: str, revision: str | None, options: Mapping[str, Any]) -> Recipe:
    """Return what heads are measured with: HeadRank's is that of a trained folder; its passages are every system's."""
    from headrank_pipeline.attention.model_files import recipe_of

    trained = recipe_of(model, revision)
    recipe = trained if system == "headrank" else RECIPES[system]
    return recipe.varied({**_DETECTION.get(system, {}), "passages": trained.template.passages, **options})
