"""The page: one file, nothing from outside, every name escaped, tables that a script can sort."""

import base64
import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from headrank_pipeline.comparison.canvas import Picture, draw
from headrank_pipeline.comparison.report import Section, html_page
from headrank_pipeline.comparison.tables import Column, Shown, Table

NASTY = '<script>alert("x")</script>&|'


class Structure(HTMLParser):
    """Collects tags, attributes and the nesting."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def picture() -> Picture:
    return draw("dots", "Dots", f"Two dots. {NASTY}", (2.0, 1.5), lambda figure: figure.subplots().plot([1, 2], "o"))


@pytest.fixture(scope="module")
def page(picture) -> str:
    names = [f"system-{number:02d}-{'long-' * 20}name" for number in range(20)]
    table = Table(
        "Means",
        [Column("system"), Column("nDCG@10", ".4f", "higher is better"), Column("W/T/L", "wins"), Column("p", "p")],
        [[name, 0.5 + index / 100, Shown("1/2/3", -2.0), 1e-9] for index, name in enumerate(names)]
        + [[NASTY, None, None, float("nan")], ["d", float("inf"), None, 1.0]],
        note=NASTY,
    )
    sections = [Section("Quality", NASTY, tables=[table], pictures=[picture])]
    return html_page(NASTY, "Summary.", facts=[("command", NASTY)], notes=[NASTY], sections=sections)


def parsed(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    assert structure.open == []
    return structure


def test_the_page_refers_to_nothing_outside(page):
    structure = parsed(page)
    for _, attributes in structure.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not structure.all("link") and not structure.all("iframe")
    assert "@import" not in page
    assert not re.search(r"url\(|https?://|//[a-z]+\.", page)
    policy = next(a["content"] for a in structure.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_names_are_escaped_everywhere(page):
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;|") >= 7
    assert len(parsed(page).all("script")) == 1


def test_figures_are_inline_and_whole(page, picture):
    [image] = parsed(page).all("img")
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) == picture.png
    assert image["alt"] == "Dots"


def test_every_heading_is_a_button_and_every_number_has_its_value(page):
    structure = parsed(page)
    assert len(structure.all("button")) == 4
    [table] = structure.all("table")
    assert table["class"] == "sortable"
    cells = structure.all("td")
    orders = [cell.get("data-order") for cell in cells]
    assert orders[:3] == ["0.5", "-2.0", "1e-09"]
    assert orders[-6:] == [None, None, None, "Infinity", None, "1.0"]  # what is not known sorts last
    assert page.count("-name</th>") == 20


def test_the_page_fits_a_phone(page):
    structure = parsed(page)
    viewport = next(a for a in structure.all("meta") if a.get("name") == "viewport")
    assert viewport["content"].startswith("width=device-width")
    scrolling = [a for a in structure.all("div") if "scroll" in (a.get("class") or "")]
    assert len(scrolling) == 2  # around the table and the figure
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)  # the keyboard gets there too


def test_long_tables_scroll_inside_the_page():
    def long(rows: int) -> str:
        table = Table("T", [Column("query")], [[str(n)] for n in range(rows)])
        return html_page("t", "", facts=[], notes=[], sections=[Section("s", tables=[table])])

    assert 'class="scroll tall"' in long(26)
    assert 'class="scroll tall"' not in long(25)


def test_markdown_keeps_bars_inside_their_cell_and_text_shortens_names():
    table = Table("T", [Column("system"), Column("x", ".1f")], [["a|b", 1.0], ["n" * 60, None]], note="Note.")
    assert table.to_markdown().splitlines()[4] == "| a\\|b | 1.0 |"
    last = table.to_text().splitlines()[-1]
    assert (len(last.split()[0]), last.split()[1]) == (40, "-")
    alike = Table("T", [Column("system")], [["n" * 30 + "1" + "n" * 30], ["n" * 30 + "2" + "n" * 30]])
    assert "n" * 30 + "2" in alike.to_text()  # shortened they would look the same


def test_a_figure_is_the_same_each_time_whatever_matplotlibrc_says(picture, tmp_path):
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 20\nsavefig.dpi: 30\n")
    code = (
        "import sys, hashlib\n"
        "from headrank_pipeline.comparison.canvas import draw\n"
        "made = draw('dots', 'Dots', sys.argv[1], (2.0, 1.5), lambda figure: figure.subplots().plot([1, 2], 'o'))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "print(hashlib.sha256(made.png + made.captioned_png).hexdigest())\n"
    )
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path)}
    command = [sys.executable, "-c", code, picture.caption]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == hashlib.sha256(picture.png + picture.captioned_png).hexdigest()


def test_a_name_with_dollar_signs_is_drawn_as_it_stands():
    made = draw("d", "D", "$x_", (2.0, 1.5), lambda figure: figure.subplots().set_title("cost $\\oops$"))
    blank = draw("d", "D", "$x_", (2.0, 1.5), lambda figure: figure.subplots())
    assert made.png != blank.png  # as mathematics it would not parse


def test_a_captioned_figure_is_higher_than_a_plain_one(picture):
    def height(png: bytes) -> int:
        return int.from_bytes(png[20:24], "big")

    assert height(picture.png) == 300
    assert height(picture.captioned_png) > 330
