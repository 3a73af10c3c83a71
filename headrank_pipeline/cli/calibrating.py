"""headrank calibrate: probabilities from scores, fitted on training lists and checked on others."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.cli.commands import CommandWithMovedFlags, command_line, echo_json, table
from headrank_pipeline.cli.reranking import MOVED_FLAGS, SYSTEM_OPTIONS, path_option, reranker_spec, with_options
from headrank_pipeline.files import check_writable

if TYPE_CHECKING:
    from headrank_pipeline.learn.lists import GradedList
    from headrank_pipeline.rerank.attention_reranker import AttentionReranker
    from headrank_pipeline.rerank.calibrated import Calibration, Lifts

__all__ = ["calibrate"]

_log = logging.getLogger(__name__)


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@path_option("--lists", "Graded lists to fit on, as headrank lists writes them; never those of a test set.")
@path_option("--calibration", "Checks this calibration instead of fitting one.")
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Graded lists that the fit does not see, to measure how far its probabilities are off; repeatable.",
)
@path_option("--output", "Calibration (JSON) to write.")
@path_option("--figure", "Reliability diagram (PNG) of the lists of --check.")
@with_options(*SYSTEM_OPTIONS)
@click.option("--relevance-level", "-l", default=1, show_default=True, help="Lowest grade that counts as relevant.")
@click.option("--list-size", type=click.IntRange(min=2), help="Passages drawn from each list.  [default: all]")
@click.option("--max-lists", type=click.IntRange(min=1), help="Uses only the first so many lists of each file.")
@click.option("--seed", default=0, show_default=True, help="Seed of what is drawn from lists.")
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def calibrate(
    lists: Path | None,
    calibration: Path | None,
    check: tuple[Path, ...],
    output: Path | None,
    figure: Path | None,
    relevance_level: int,
    list_size: int | None,
    max_lists: int | None,
    seed: int,
    as_json: bool,
    **reranker: Any,
) -> None:
    """Fit probabilities of relevance to a reranker's scores, and measure their calibration error."""
    from headrank_pipeline.learn.lists import describe_file, read_lists
    from headrank_pipeline.rerank.attention_reranker import AttentionReranker
    from headrank_pipeline.rerank.calibrated import Calibration, reading_of

    _check_files(lists, calibration, check, output, figure)
    given = {path: read_lists(path)[:max_lists] for path in (*check, *filter(None, [lists]))}
    if lists is not None:
        _check_unseen(given[lists], {path: given[path] for path in check})
    checked_file = None if calibration is None else _of_level(Calibration.load(calibration), relevance_level)
    opened = reranker_spec(reranker).open()
    if not isinstance(opened, AttentionReranker):
        raise click.UsageError(
            "calibrate needs a system that reads attention, without the options calibration and threshold"
        )
    if checked_file is not None:
        checked_file.check_reading(opened)
    drawn = {path: _Drawn.of(found, relevance_level, list_size, seed) for path, found in given.items()}
    if lists is not None and output is not None:
        examples = _examples(opened, drawn[lists])
        passage, nothing = examples.fitted()
        about = {**describe_file(lists), "lists": len(drawn[lists].lists), "passages": len(examples.passages)}
        sizes = {"list_size": list_size, "seed": seed}
        found = Calibration(passage, nothing, relevance_level, reading_of(opened), {**about, **sizes})
        found.save(output)
    else:
        assert checked_file is not None
        found = checked_file
    checked = {path.name: _examples(opened, drawn[path]).checked(found) for path in check}
    if figure is not None:
        _draw(figure, checked)
    if as_json:
        echo_json({"calibration": asdict(found), "output": None if output is None else str(output), "check": checked})
        return
    if output is not None:
        click.echo(f"{output}: fitted on {found.fitted['passages']} passages of {found.fitted['lists']} lists")
    _report(checked)


def _check_files(
    lists: Path | None, calibration: Path | None, check: Sequence[Path], output: Path | None, figure: Path | None
) -> None:
    """Raise where files do not go together or cannot be written, before a model is loaded."""
    if (lists is None) == (calibration is None):
        raise click.UsageError("give --lists to fit a calibration, or --calibration to check one")
    if lists is not None and output is None:
        raise click.UsageError("--output is missing: the file that the fitted calibration goes to")
    if not check and (calibration is not None or figure is not None):
        raise click.UsageError("--check is missing: the lists to check the calibration on")
    if len({path.name for path in check}) < len(check):
        raise click.UsageError("--check: two files have the same name, by which results are told apart; rename one")
    if figure is not None:
        from headrank_pipeline.comparison.canvas import require_pictures

        require_pictures()
    for file in filter(None, (output, figure)):
        check_writable(file)


def _check_unseen(fitted: Sequence[GradedList], check: Mapping[Path, Sequence[GradedList]]) -> None:
    """Raise UsageError where a query that is fitted is checked, too: its error would come out too small."""
    seen = {(one.ranking.query.qid, one.ranking.query.text) for one in fitted}
    for path, found in check.items():
        if both := [one.qid for one in found if (one.ranking.query.qid, one.ranking.query.text) in seen]:
            raise click.UsageError(
                f"--check {path}: {len(both)} of its queries are fitted, too, as is {both[0]}; check on others"
            )


def _report(checked: Mapping[str, Mapping[str, Any]]) -> None:
    for file, parts in checked.items():
        for name, told in parts.items():
            click.echo(f"{file}, {name}: expected calibration error {told['ece']:.3f} over {told['examples']} examples")
            rows = [[f"{b['probability']:.3f}", f"{b['share']:.3f}", str(b["count"])] for b in told["bins"]]
            click.echo(table(["mean probability", "share relevant" if name == "passages" else "share", "count"], rows))


def _draw(path: Path, checked: Mapping[str, Any]) -> None:
    from headrank_pipeline.comparison.learning_figures import reliability_diagram

    path.write_bytes(reliability_diagram(checked, origin=f"Made by: {command_line()}").captioned_png)


def _of_level(calibration: Calibration, relevance_level: int) -> Calibration:
    """Return the calibration, unless another grade counted as relevant when it was fitted."""
    if (fitted := calibration.relevance_level) != relevance_level:
        raise click.UsageError(
            f"the calibration counts grade {fitted} and higher as relevant, -l says {relevance_level}; give -l {fitted}"
        )
    return calibration


@dataclass(frozen=True)
class _Drawn:
    """Lists with something relevant, and lists of the same queries and sizes without."""

    lists: Sequence[GradedList]
    empty: Sequence[GradedList]
    relevance_level: int

    @classmethod
    def of(cls, lists: Sequence[GradedList], relevance_level: int, size: int | None, seed: int) -> _Drawn:
        from headrank_pipeline.learn.calibration import without_relevant
        from headrank_pipeline.learn.lists import sublist

        full, empty = [], []
        for graded in lists:
            without = without_relevant(graded, relevance_level)
            if max(graded.grades) < relevance_level or without is None or len(without) < 2:
                continue
            # All of one size, as the largest of many scores is larger than that of few.
            kept = min(len(without), size or len(without))
            full.append(sublist(graded, kept, seed=seed))
            empty.append(sublist(without, kept, seed=seed))
        if not full:
            raise click.UsageError(f"no list has both passages of grade {relevance_level} and others; see -l")
        if left_out := len(lists) - len(full):
            _log.info("%d lists have relevant passages only, or none, and are left out", left_out)
        return cls(full, empty, relevance_level)


@dataclass(frozen=True)
class _Examples:
    """What both regressions are fitted to or checked on."""

    passages: list[tuple[Lifts, int, bool]]  # lifts of the list, place in it, whether it is relevant
    lists: list[tuple[Lifts, bool]]  # lifts of the list, whether nothing in it is relevant

    def fitted(self) -> Any:
        from headrank_pipeline.learn.calibration import fit_logistic

        passages = fit_logistic([seen.of_passage(p) for seen, p, _ in self.passages], [r for *_, r in self.passages])
        return passages, fit_logistic([seen.of_list() for seen, _ in self.lists], [empty for _, empty in self.lists])

    def checked(self, calibration: Any) -> dict[str, Any]:
        scores = {id(seen): calibration.of_passages(seen) for seen, *_ in self.passages}
        return {
            "passages": _checked([scores[id(seen)][p] for seen, p, _ in self.passages], [r for *_, r in self.passages]),
            "nothing relevant": _checked(
                [calibration.of_nothing(seen) for seen, _ in self.lists], [empty for _, empty in self.lists]
            ),
        }


def _examples(reranker: AttentionReranker, drawn: _Drawn) -> _Examples:
    from headrank_pipeline.pipeline import Failure
    from headrank_pipeline.rerank.calibrated import lifts

    examples = _Examples([], [])
    for lists, empty in ((drawn.lists, False), (drawn.empty, True)):
        for graded in lists:
            (read,) = lifts(reranker, [graded.ranking])
            if isinstance(read, Failure):
                raise read.error
            ranking, seen = read
            grades = dict(zip(graded.ranking.docids, graded.grades, strict=True))
            examples.lists.append((seen, empty))
            if not empty:
                relevant = (grades[docid] >= drawn.relevance_level for docid in ranking.docids)
                examples.passages.extend((seen, place, is_relevant) for place, is_relevant in enumerate(relevant))
    return examples


def _checked(probabilities: Sequence[float], outcomes: Sequence[bool]) -> dict[str, Any]:
    from headrank_pipeline.learn.calibration import expected_calibration_error, reliability

    return {
        "ece": expected_calibration_error(probabilities, outcomes),
        "examples": len(outcomes),
        "share": sum(outcomes) / len(outcomes),
        "bins": [asdict(part) for part in reliability(probabilities, outcomes)],
    }
