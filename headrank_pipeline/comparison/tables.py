"""Tables of a report: values with a format per column, as text and as Markdown; `report` writes them as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headrank_pipeline.comparison.canvas import shortened

__all__ = ["Cell", "Column", "Table"]

NOTHING = "-"
_NAME_WIDTH = 40  # of a row's name on a terminal; files keep it whole


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell whose text is not its value: ``12/3/8`` sorts by wins minus losses; it may link to a page."""

    text: str
    order: float
    link: str | None = None


Cell = str | float | int | Shown | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Args:
        name: its heading.
        form: ``text``, ``p`` for p-values, or a format of numbers such as ``.4f``.
        meaning: one line for the reader; shown where there is room.
    """

    name: str
    form: str = "text"
    meaning: str = ""

    @property
    def numeric(self) -> bool:
        """Whether its values are set right and sort as numbers."""
        return self.form != "text"

    def text(self, value: Cell) -> str:
        """Return a value as it is shown.

        Examples:
            >>> Column("difference", "+.4f").text(0.0213), Column("p", "p").text(3e-6), Column("x", ".1f").text(None)
            ('+0.0213', '<0.0001', '-')
        """
        if isinstance(value, Shown):
            return value.text
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return NOTHING
        if isinstance(value, str) or not self.numeric:
            return str(value)
        if self.form == "p":
            return "<0.0001" if value < 0.0001 else f"{value:.4f}"
        return format(value, self.form)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values under named columns.

    Args:
        title: what it shows.
        columns: columns from left to right; the first one names the row.
        rows: one cell per column.
        note: how to read it.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def cells(self) -> list[list[str]]:
        """Return the rows as they are shown."""
        return [[column.text(v) for column, v in zip(self.columns, row, strict=True)] for row in self.rows]

    def to_text(self) -> str:
        """Return title and an aligned table.

        Examples:
            >>> print(Table("Means", [Column("system"), Column("nDCG@10", ".4f")], [["bm25", 0.5]]).to_text())
            Means
            <BLANKLINE>
            system  nDCG@10
            bm25     0.5000
        """
        header = [column.name for column in self.columns]
        lines = [header, *_narrowed(self.cells())]
        widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
        shown = []
        for line in lines:
            parts = zip(line, widths, self.columns, strict=True)
            shown.append("  ".join(t.rjust(w) if c.numeric else t.ljust(w) for t, w, c in parts).rstrip())
        return "\n".join([self.title, "", *shown])

    def to_markdown(self) -> str:
        """Return a heading, a pipe table and the note."""
        header = [_escaped(column.name) for column in self.columns]
        rule = ["---:" if column.numeric else "---" for column in self.columns]
        lines = [header, rule, *([_escaped(text) for text in row] for row in self.cells())]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n" + (f"\n{self.note}\n" if self.note else "")


def _narrowed(rows: list[list[str]]) -> list[list[str]]:
    """The rows with long names shortened in their middle, unless two names would then look the same."""
    names = [shortened(row[0], _NAME_WIDTH) for row in rows]
    if len(set(names)) < len({row[0] for row in rows}):
        return rows
    return [[name, *row[1:]] for name, row in zip(names, rows, strict=True)]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
