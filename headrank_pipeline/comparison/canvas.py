"""How figures look and are saved; with `run_figures` and `learning_figures` all that sees matplotlib, when it draws.

Figures are made without pyplot, so that no backend is chosen for the whole process, and in a style of their own,
whatever matplotlibrc says. Equal data give equal bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrank_pipeline.pipeline import require_extra

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "Picture",
    "columns_of",
    "draw",
    "require_pictures",
    "shortened",
    "wrapped",
]

# Okabe and Ito's colours, which colour-blind readers can tell apart; marks and line styles differ as well.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6E6E6E"

Draw = Callable[[Any], None]  # takes a matplotlib figure or a part of one

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
}
_DPI = 200
_CAPTION_SIZE = 6.5
_CHARACTERS_PER_INCH = 20.5  # of a caption
_CAPTION_LINE_INCHES = 0.125


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with what made it.

    Args:
        name: name of its file, without the ending.
        title: what it shows.
        caption: how to read it, which systems and files it is drawn from, and the command.
        png: the picture without the caption, for a page that writes the caption itself.
        captioned_png: the same with the caption below, for a file that travels alone.
    """

    name: str
    title: str
    caption: str
    png: bytes
    captioned_png: bytes


def require_pictures() -> None:
    """Raise MissingPrerequisite where nothing can be drawn: called before the work whose pictures would be lost."""
    require_extra("report", "drawing pictures", "matplotlib")


def draw(name: str, title: str, caption: str, size: tuple[float, float], content: Draw) -> Picture:
    """Return a picture.

    Args:
        name: name of its file, without the ending.
        title: what it shows.
        caption: see `Picture`.
        size: width and height in inches, without the caption.
        content: draws on what it is given.
    """
    require_pictures()
    from matplotlib import style

    with style.context(["default", _STYLE]):
        return Picture(name, title, caption, _plain(size, content), _captioned(size, content, caption))


def _plain(size: tuple[float, float], content: Draw) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    content(figure)
    return _png(figure)


def _captioned(size: tuple[float, float], content: Draw, caption: str) -> bytes:
    from matplotlib.figure import Figure

    width, height = size
    lines = textwrap.wrap(caption, int((width - 0.2) * _CHARACTERS_PER_INCH))
    below = 0.12 + _CAPTION_LINE_INCHES * len(lines)
    figure = Figure(figsize=(width, height + below), dpi=_DPI, layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[height, below], squeeze=False).ravel()
    content(upper)
    lower.text(0.1 / width, 0.97, "\n".join(lines), va="top", size=_CAPTION_SIZE, color="#444444", linespacing=1.25)
    return _png(figure)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})  # the version would change the bytes
    return file.getvalue()


def shortened(name: str, width: int = 32) -> str:
    """Return a name that fits, its middle left out: beginning and end tell systems apart.

    Examples:
        >>> shortened("headrank-qwen3-0.6b-selected-16-heads-reverse", 20)
        'headrank-…ds-reverse'
    """
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"


def wrapped(name: str, width: int = 24) -> str:
    r"""Return a name on at most two lines.

    Examples:
        >>> wrapped("headrank-qwen3-0.6b-selected", 20)
        'headrank-qwen3-0.6b-\nselected'
    """
    name = shortened(name, 2 * width)
    return name if len(name) <= width else f"{name[:width]}\n{name[width:]}"


def columns_of(count: int) -> int:
    """Return how many of `count` equal panels stand side by side, at most 4.

    Examples:
        >>> [columns_of(count) for count in (1, 3, 4, 5, 20)]
        [1, 3, 2, 3, 4]
    """
    if count <= 3:
        return count
    return 2 if count == 4 else 3 if count <= 9 else 4
