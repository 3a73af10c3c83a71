"""headrank explain: which words of each passage the heads looked at; and whether they matter (--faithfulness)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headrank_pipeline.cli.commands import CommandWithMovedFlags, command_line, echo_json
from headrank_pipeline.cli.reranking import MOVED_FLAGS, SYSTEM_OPTIONS, path_option, reranker_spec, with_options

if TYPE_CHECKING:
    from headrank_pipeline.records import Ranking
    from headrank_pipeline.rerank.attention_reranker import AttentionReranker
    from headrank_pipeline.rerank.explanation import Deletion, ExplainedPassage, Explanation
    from headrank_pipeline.rerank.systems import SystemSpec

__all__ = ["explain"]

_PASSAGES, _WORDS = 3, 5  # that a terminal gets
_TONES = (None, 153, 117, 75, 33)  # backgrounds of the 256 colours, from nothing to the darkest blue
_FAITHFULNESS = 5


@click.command(cls=CommandWithMovedFlags, moved=MOVED_FLAGS)
@path_option("--candidates", "Candidates with texts (JSONL), as headrank retrieve writes them.", required=True)
@with_options(*SYSTEM_OPTIONS)
@click.option("--qid", help="The list to explain.  [default: the file's only one; with --faithfulness, all]")
@click.option("--query", help="Asks this instead of the list's own query.")
@click.option("--docid", "docids", multiple=True, help="Shows this passage only; repeatable.")
@click.option("--depth", type=click.IntRange(min=1), default=100, show_default=True,
              help="Candidates that are read, as in headrank rerank.")  # fmt: skip
@click.option("--by-query-word", is_flag=True, help="Tells what each word of the query looked at: one pass more each.")
@path_option("--output", "HTML page to write; a run directory keeps it where headrank compare links to it.")
@click.option(
    "--faithfulness",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=_FAITHFULNESS,
    metavar="[WORDS]",
    help="Tests explanations instead: deletes the top WORDS (5) of each passage, and random others.",
)
@click.option("--json", "as_json", is_flag=True, help="Prints JSON.")
def explain(
    candidates: Path,
    qid: str | None,
    query: str | None,
    docids: tuple[str, ...],
    depth: int,
    by_query_word: bool,
    output: Path | None,
    faithfulness: int | None,
    as_json: bool,
    **system: Any,
) -> None:
    """Show which words of each passage the heads looked at; a passage's words add up to its score. Needs no Java."""
    if faithfulness is not None and (output is not None or docids or query is not None or by_query_word):
        raise click.UsageError(
            "--faithfulness tests whole lists: leave out --output, --docid, --query, --by-query-word"
        )
    spec = reranker_spec(system)
    if spec.options.keys() & {"calibration", "threshold"}:
        raise click.UsageError("probabilities are no sums over words; leave the options calibration and threshold out")
    lists = _lists(candidates, qid, depth, every=faithfulness is not None)
    if faithfulness is not None:
        _test(_opened(spec), lists, faithfulness, as_json=as_json)
        return
    (ranking,) = lists
    if unknown := [docid for docid in docids if docid not in ranking.docids]:
        raise click.UsageError(f"qid {ranking.query.qid}: no docid {unknown[0]!r} among the {len(ranking)} passages")
    page = None if output is None else _page(output, ranking.query.qid)
    explanation = _opened(spec).explain(_asked(ranking, query), by_query_word=by_query_word)
    shown = [explanation.of(docid) for docid in docids] or list(explanation.passages)
    if page is not None:
        _write_page(page, explanation, docids)
    if as_json:
        chosen = {passage.docid for passage in shown}
        record = explanation.to_dict()
        record["passages"] = [passage for passage in record["passages"] if passage["docid"] in chosen]
        echo_json(record)
    else:
        _print(explanation, shown if docids else shown[:_PASSAGES], page)


def _lists(candidates: Path, qid: str | None, depth: int, *, every: bool) -> list[Ranking]:
    """Return the list that is asked for, or all of them, cut to the depth.

    Raises:
        click.UsageError: no such list, or several and none was named.
    """
    from headrank_pipeline.trec import read_candidates

    found = [ranking for ranking in read_candidates(candidates) if qid is None or ranking.query.qid == qid]
    if not found:
        raise click.UsageError(f"{candidates}: no list {'' if qid is None else f'of qid {qid}'}; look at its qids")
    if len(found) > 1 and not every:
        some = ", ".join(ranking.query.qid for ranking in islice(found, 5))
        raise click.UsageError(f"{candidates} has {len(found)} lists: name one with --qid ({some}, …)")
    return [ranking.cut(depth) for ranking in found]


def _asked(ranking: Ranking, query: str | None) -> Ranking:
    return ranking if query is None else replace(ranking, query=replace(ranking.query, text=query))


def _opened(spec: SystemSpec) -> AttentionReranker:
    reranker: Any = spec.open()
    if not hasattr(reranker, "explain"):
        raise click.UsageError(f"--system {spec.system} reads no attention, so there is nothing to read off")
    opened: AttentionReranker = reranker
    return opened


# --------------------------------------------------------------------------------------------------------- results


def _page(output: Path, qid: str) -> Path:
    """Return the file of the page, which can be written."""
    from headrank_pipeline.comparison.explanation_page import page_in_run
    from headrank_pipeline.experiment.directory import RunDirectory
    from headrank_pipeline.files import check_writable

    page = output
    if output.is_dir():
        if not RunDirectory(output).manifest.exists():
            raise click.UsageError(f"--output {output}: a folder that is no run directory; name an HTML file in it")
        page = page_in_run(output, qid)
    check_writable(page)
    return page


def _write_page(page: Path, explanation: Explanation, docids: Sequence[str]) -> None:
    from headrank_pipeline.comparison.explanation_page import explanation_html
    from headrank_pipeline.files import atomic_writer

    with atomic_writer(page) as file:
        file.write(explanation_html(explanation, docids=docids, command=command_line()))


def _print(explanation: Explanation, shown: Sequence[ExplainedPassage], page: Path | None) -> None:
    most = max((word.contribution for passage in explanation.passages for word in passage.words), default=0.0)
    for passage in shown:
        click.secho(f"{passage.rank}. {passage.docid}  {passage.score:.4g}", bold=True)
        click.echo(_shaded(passage, most))
        width = max((len(word.text) for word in passage.top(_WORDS)), default=0)
        for word in passage.top(_WORDS):
            bar = "█" * round(20 * max(0.0, word.contribution) / most) if most > 0 else ""
            click.echo(
                f"   {word.text:{width}}  {word.contribution:9.4g}  {_looked_most(explanation, word)}{bar}".rstrip()
            )
        click.echo()
    left = len(explanation.passages) - len(shown)
    if left:
        click.echo(f"{left} passages more: --docid shows others, --output PAGE.html and --json all of them")
    if page is not None:
        click.echo(f"page: {page}")


def _shaded(passage: ExplainedPassage, most: float) -> str:
    """Return the text with backgrounds, which click leaves out where no terminal is."""
    parts = []
    for word in passage.words:
        share = (max(0.0, word.contribution) / most) ** 0.5 if most > 0 else 0.0
        tone = _TONES[min(len(_TONES) - 1, int(share * len(_TONES)))]
        parts.append(word.text if tone is None else click.style(word.text, bg=tone, fg=16))
        parts.append(" " if word.after.isspace() else word.after)
    return "".join(parts)


def _looked_most(explanation: Explanation, word: Any) -> str:
    """Return the part of the query that looked most, where that was read."""
    if not word.by_query_word:
        return ""
    largest = max(range(len(word.by_query_word)), key=lambda part: word.by_query_word[part])
    return f"{explanation.query_words[largest]:20}  "


# -------------------------------------------------------------------------------------------------------- deletion


def _test(reranker: AttentionReranker, lists: Sequence[Ranking], words: int, *, as_json: bool) -> None:
    from tqdm import tqdm

    from headrank_pipeline.rerank.explanation import deletion_test

    found: dict[str, list[Deletion]] = {}
    for ranking in tqdm(lists, desc="deletion test", disable=None):  # None: off where no terminal is
        found[ranking.query.qid] = deletion_test(reranker, ranking, words)
    summary = _summary(found, words)
    if as_json:
        echo_json(summary)
        return
    low, high = summary["interval"]
    falls = [
        (f"top {words} words", f"{summary['top']:.3f}"),
        ("random other words", f"{summary['random']:.3f}"),
        ("difference", f"{summary['difference']:.3f}  (95% interval {low:.3f} to {high:.3f})"),
    ]
    click.echo(f"{summary['lists']} lists, {summary['passages']} passages. How far a score falls without")
    click.echo("\n".join(f"  {name:20} {value}" for name, value in falls))
    click.echo("in units of the list's mean score; the random words have at least as many tokens.")
    click.echo(f"The top words count more in {summary['won']} of {summary['passages']} passages.")


def _summary(found: dict[str, list[Deletion]], words: int) -> dict[str, Any]:
    """Return means over passages and the interval of their difference, lists being drawn where there are several."""
    import numpy as np

    from headrank_pipeline.comparison.significance import bootstrap_ratio

    tested = [deletion for deletions in found.values() for deletion in deletions]
    if not tested:
        raise ValueError(f"no passage has enough words to delete {words} of them and as many others; delete fewer")
    groups = list(found.values()) if len(found) > 1 else [[deletion] for deletion in tested]
    differences = np.array([sum(one.top - one.random for one in group) for group in groups])
    interval = bootstrap_ratio(differences, np.array([float(len(group)) for group in groups]))
    return {
        "words": words,
        "lists": len(found),
        "passages": len(tested),
        "top": sum(one.top for one in tested) / len(tested),
        "random": sum(one.random for one in tested) / len(tested),
        "difference": float(differences.sum()) / len(tested),
        "interval": [interval.low, interval.high],
        "drawn": "lists" if len(found) > 1 else "passages",
        "won": sum(one.top > one.random for one in tested),
    }
