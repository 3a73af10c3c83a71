"""One HTML page that explains a list: passages with shaded words, scores by place, shares of heads.

Everything is inside it and nothing runs: shading by a word of the query is chosen by CSS alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:  # it brings torch, which pages do without
    from headrank_pipeline.rerank.explanation import ExplainedPassage, ExplainedWord, Explanation

__all__ = ["explanation_html", "page_in_run"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_LISTED = 8  # words and heads in lists
_WIDTH, _HEIGHT = 320, 150  # of the chart, in its own units


def page_in_run(run: Path, qid: str) -> Path:
    """Return where the page of a query lies in a run directory; reports link to it if it is there.

    Examples:
        >>> page_in_run(Path("runs/a"), "q/1").as_posix()
        'runs/a/explanations/q%2F1.html'
    """
    return run / "explanations" / f"{quote(qid, safe='')}.html"


def explanation_html(explanation: Explanation, *, docids: Sequence[str] = (), command: str = "") -> str:
    """Return the page.

    Args:
        explanation: explanation of one list.
        docids: the passages whose text is shown; all of them where none is named. Charts show the whole list.
        command: the command line, for the foot of the page.
    """
    style = (files("headrank_pipeline") / "resources" / "report" / "explanation.css").read_text(encoding="utf-8")
    shown = [explanation.of(docid) for docid in docids] or list(explanation.passages)
    words = [word for passage in explanation.passages for word in passage.words]
    most = max((word.contribution for word in words), default=0.0)
    most_by_part = [max(map(abs, column)) for column in zip(*(word.by_query_word for word in words), strict=True)]
    articles = "".join(_article(explanation, passage, [most, *most_by_part]) for passage in shown)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(explanation.query)}: explained</title>\n"
        f"<style>\n{style}{_choices_style(explanation)}</style>\n"
        f"</head>\n<body>\n<main>\n<h1>{escape(explanation.query)}</h1>\n"
        f'<p class="lead">Which words of each passage {_counted(len(explanation.heads), "attention head")} looked at. '
        f"The words of a passage add up to its score.</p>\n"
        f'<p class="lead"><span class="legend"></span> Stronger shades add more, on one scale for the page, by the '
        f"square root{_about_subtraction(explanation)}.</p>\n"
        f'<section class="charts">\n{_places(explanation)}{_heads(explanation, shown[0])}</section>\n'
        f"{_choices(explanation)}{articles}{_foot(explanation, command)}</main>\n</body>\n</html>\n"
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _about_subtraction(explanation: Explanation) -> str:
    if all(word.contribution >= 0 for passage in explanation.passages for word in passage.words):
        return ""
    return "; dotted words lower the score"


# ------------------------------------------------------------------------------------------------------- passages


def _article(explanation: Explanation, passage: ExplainedPassage, most: Sequence[float]) -> str:
    """Return a passage; `most` is what is shaded darkest: of a word, then of it by each part of the query."""
    first = max((abs(other.score) for other in explanation.passages), default=0.0)
    place = "" if explanation.isolated else f"place {passage.place} in the prompt"
    words = "".join(_word(word, most) for word in passage.words)
    return (
        f"<article>\n<header><h2>{passage.rank}. {escape(passage.docid)}</h2><span>{place}</span>"
        f'<span class="score">score {passage.score:.4g}</span></header>\n{_meter(passage.score, first)}\n'
        f'<p class="text">{words}</p>\n'
        f"<details><summary>Words and heads in numbers</summary>\n<div>\n"
        f"{_shares(((word.text, word.contribution) for word in passage.top(_LISTED)), passage.score, 'Words')}"
        f"{_shares(_largest_heads(explanation, passage.heads), passage.score, 'Heads')}</div></details>\n</article>\n"
    )


def _word(word: ExplainedWord, most: Sequence[float]) -> str:
    tones = [f"--w:{_tone(word.contribution, most[0])}"]
    parts = zip(word.by_query_word, most[1:], strict=True)
    tones += [f"--q{part}:{_tone(abs(value), largest)}" for part, (value, largest) in enumerate(parts)]
    less = ' class="less"' if word.contribution < 0 else ""
    return (
        f'<span{less} style="{";".join(tones)}" title="{word.contribution:.3g}">{escape(word.text)}</span>'
        f"{escape(word.after)}"
    )


def _tone(value: float, most: float) -> str:
    return f"{(max(0.0, value) / most) ** 0.5 if most > 0 else 0.0:.3f}".rstrip("0").rstrip(".") or "0"


def _meter(value: float, most: float) -> str:
    share = min(1.0, max(0.0, value / most)) if most > 0 else 0.0
    return f'<div class="meter" aria-hidden="true"><span style="--w:{share:.4f}"></span></div>'


def _shares(values: Iterable[tuple[str, float]], whole: float, heading: str) -> str:
    """Return a list of names with bars: their parts of the score, in per cent of it."""
    listed = list(values)
    most = max((value for _, value in listed), default=0.0)
    items = "".join(
        f'<li><span class="name" title="{escape(name)}">{escape(name)}</span>{_meter(value, most)}'
        f"<span>{_percent(value, whole)}</span></li>"
        for name, value in listed
    )
    return f'<div><h2>{heading}</h2>\n<ul class="shares">{items}</ul></div>\n'


def _percent(value: float, whole: float) -> str:
    """A part of a score below 0 has no meaning as a share of it."""
    return f"{value / whole:.1%}" if whole > 0 else f"{value:.2g}"


# --------------------------------------------------------------------------------------------------------- charts


def _largest_heads(explanation: Explanation, values: Sequence[float]) -> list[tuple[str, float]]:
    names = (f"{layer}-{head}" for layer, head in explanation.heads)
    return sorted(zip(names, values, strict=True), key=lambda named: -named[1])[:_LISTED]


def _heads(explanation: Explanation, passage: ExplainedPassage) -> str:
    """Return the heads' parts of one passage's score: those of a whole list are equal where each head's sum to 1."""
    left = len(passage.heads) - _LISTED
    heading = f"Heads (layer-head) in the score of {passage.rank}. {escape(passage.docid)}"
    rest = f'<p class="note">The {_LISTED} largest of {len(passage.heads)}.</p>' if left > 0 else ""
    return f"<div>{_shares(_largest_heads(explanation, passage.heads), passage.score, heading)}{rest}</div>\n"


def _places(explanation: Explanation) -> str:
    """Return the chart of scores by place in the prompt, or by rank where passages have none."""
    by_rank = explanation.isolated
    passages = sorted(explanation.passages, key=lambda passage: passage.rank if by_rank else passage.place)
    scores = [passage.score for passage in passages]
    curve = None if by_rank else explanation.curve
    heading = "Scores by rank" if by_rank else "Scores by place in the prompt"
    told = (
        "Passages do not see each other here: their place in the prompt changes nothing."
        if by_rank
        else "Dashed: the mean share of each place, whatever stands there."
        if curve
        else "A list's order can move scores: compare the two ends."
    )
    return f'<div><h2>{heading}</h2>\n{_chart(scores, curve, passages)}<p class="note">{told}</p></div>\n'


def _chart(scores: Sequence[float], curve: Sequence[float] | None, passages: Sequence[ExplainedPassage]) -> str:
    mean = sum(scores) / len(scores)
    expected = [share * mean for share in curve] if curve else []
    high, low = max([*scores, *expected, 0.0]), min([*scores, *expected, 0.0])
    extent = (high - low) or 1.0
    step, zero = _WIDTH / len(scores), _HEIGHT * high / extent
    bars = ""
    for place, (score, passage) in enumerate(zip(scores, passages, strict=True)):
        height = _HEIGHT * abs(score) / extent
        top = zero - height if score >= 0 else zero
        kind = "bar" if score >= 0 else "below"
        bars += (
            f'<rect class="{kind}" x="{(place + 0.12) * step:.2f}" y="{top:.2f}" width="{0.76 * step:.2f}" '
            f'height="{height:.2f}"><title>{escape(passage.docid)}: {score:.4g}</title></rect>'
        )
    points = " ".join(
        f"{(place + 0.5) * step:.2f},{zero - _HEIGHT * value / extent:.2f}" for place, value in enumerate(expected)
    )
    line = f'<polyline class="curve" points="{points}"/>' if points else ""
    return (
        f'<svg viewBox="0 -4 {_WIDTH} {_HEIGHT + 22}" role="img" '
        f'aria-label="Bars: {len(scores)} scores from {min(scores):.3g} to {max(scores):.3g}">{bars}'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{zero:.2f}" y2="{zero:.2f}"/>{line}'
        f'<text x="0" y="{_HEIGHT + 14}">1</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{len(scores)}</text></svg>\n'
    )


# ---------------------------------------------------------------------------------------- query words, foot of page


def _choices(explanation: Explanation) -> str:
    """Return the choice of a query word, as radio buttons: CSS shades by the one that is checked."""
    if not explanation.query_words:
        return ""
    names = ["all", *explanation.query_words]
    labels = "".join(
        f'<label><input type="radio" name="by" id="by{place}"{" checked" if place == 0 else ""}>{escape(name)}</label>'
        for place, name in enumerate(names)
    )
    return f"<fieldset><legend>Shade by what this word of the query looked at</legend>{labels}</fieldset>\n"


def _choices_style(explanation: Explanation) -> str:
    return "".join(
        f"main:has(#by{part + 1}:checked) .text span {{ background: rgb(var(--tone) / calc(var(--q{part}) * "
        f"var(--most))); text-decoration: none; }}\n"
        for part in range(len(explanation.query_words))
    )


def _foot(explanation: Explanation, command: str) -> str:
    layers = sorted({layer for layer, _ in explanation.heads})
    facts = [
        ("system", explanation.system),
        ("model", explanation.model),
        ("heads", f"{len(explanation.heads)}, in layers {layers[0]} to {layers[-1]}"),
        ("query id", explanation.qid),
        ("passages", str(len(explanation.passages))),
        *([("command", command)] if command else []),
    ]
    stated = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<footer><dl>{stated}</dl></footer>\n"
