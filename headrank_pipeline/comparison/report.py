"""One HTML page that needs nothing else: style, script and figures are inside it.

Tables sort by a click, a tap or the keyboard on a heading. The page forbids itself any outside reference
(Content-Security-Policy), holds no time stamp, and is the same for the same runs.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files

from headrank_pipeline.comparison.canvas import Picture
from headrank_pipeline.comparison.tables import Cell, Column, Shown, Table

__all__ = ["Section", "html_page"]

_TALL = 25  # rows; longer tables scroll inside the page
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page.

    Args:
        title: its heading.
        text: a paragraph below it.
        tables: tables, in order.
        pictures: pictures, which follow the tables.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default=(), repr=False)


def html_page(
    title: str, summary: str, *, facts: Sequence[tuple[str, str]], notes: Sequence[str], sections: Sequence[Section]
) -> str:
    """Return the page.

    Args:
        title: its title and first heading.
        summary: the line below it.
        facts: name and value of what all of it rests on (depth, judgments, command).
        notes: warnings, shown before everything else.
        sections: sections, in order.
    """
    style, script = (
        (files("headrank_pipeline") / "resources" / "report" / name).read_text(encoding="utf-8")
        for name in ("report.css", "report.js")
    )
    stated = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    warned = "".join(f"<li>{escape(note)}</li>" for note in notes)
    body = "".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        f"<p>{escape(summary)}</p>\n"
        + (f'<ul class="notes">{warned}</ul>\n' if notes else "")
        + f"{body}<section>\n<h2>What made this page</h2>\n<dl>{stated}</dl>\n</section>\n"
        f"</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>\n" if section.text else ""
    tables = "".join(_table(table) for table in section.tables)
    pictures = "".join(_figure(picture) for picture in section.pictures)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}{tables}{pictures}</section>\n"


def _table(table: Table) -> str:
    header = "".join(_heading(column) for column in table.columns)
    rows = "".join(_row(table.columns, row) for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>\n' if table.note else ""
    tall = " tall" if len(table.rows) > _TALL else ""
    return (
        f"<h3>{escape(table.title)}</h3>\n"
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table class="sortable"><thead><tr>{header}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n{note}'
    )


def _heading(column: Column) -> str:
    kind = ' class="number"' if column.numeric else ""
    title = f' title="{escape(column.meaning)}"' if column.meaning else ""
    return f'<th scope="col"{kind}><button type="button"{title}>{escape(column.name)}</button></th>'


def _row(columns: Sequence[Column], row: Sequence[Cell]) -> str:
    first, *rest = zip(columns, row, strict=True)
    name = f'<th scope="row">{escape(first[0].text(first[1]))}</th>'
    return f"<tr>{name}{''.join(_cell(column, value) for column, value in rest)}</tr>\n"


def _cell(column: Column, value: Cell) -> str:
    order = value.order if isinstance(value, Shown) else value
    known = column.numeric and isinstance(order, int | float) and not math.isnan(order)
    sortable = f' data-order="{_number(float(order))}"' if known else ""  # type: ignore[arg-type]
    kind = ' class="number"' if column.numeric else ""
    text = escape(column.text(value))
    if isinstance(value, Shown) and value.link is not None:
        text = f'<a href="{escape(value.link)}">{text}</a>'
    return f"<td{kind}{sortable}>{text}</td>"


def _number(value: float) -> str:
    """As JavaScript reads it."""
    return f"{'-' if value < 0 else ''}Infinity" if math.isinf(value) else repr(value)


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f'<figure>\n<div class="scroll" tabindex="0" role="region" aria-label="{escape(picture.title)}">'
        f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>\n"
    )
