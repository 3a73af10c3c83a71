"""The page that explains a list, and the links to it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from run_directories import Scripted, graded_candidates, make_run

from headrank_pipeline.comparison.compare import compare
from headrank_pipeline.comparison.comparison_report import save_comparison
from headrank_pipeline.comparison.explanation_page import explanation_html, page_in_run
from headrank_pipeline.rerank.explanation import ExplainedPassage, ExplainedWord, Explanation

HOSTILE = "<script>alert('1')</script>"


def word(text, contribution, parts=(), after=" ", start=0):
    return ExplainedWord(text, after, contribution, parts, start, 1)


def explanation(**changes) -> Explanation:
    swimming = (word(HOSTILE, 0.4, (0.3, 0.1)), word("swim", 0.3, (0.05, 0.25), "\n"), word('"&"', -0.1, (0.0, -0.1)))
    passages = (
        ExplainedPassage("d<1>", 1, 2, "", 0.6, swimming, (0.5, 0.1)),
        ExplainedPassage("d2", 2, 1, "", 0.1, (word("fly", 0.1, (0.1, 0.0)),), (0.1, 0.0)),
    )
    given = {"curve": (1.2, 0.8), "query_words": ("birds", "swim?"), **changes}
    return Explanation("q1", "do birds <b>swim</b>?", "headrank", "some/model", ((3, 1), (4, 2)), passages, **given)


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._hidden = [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "title")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data


def test_texts_are_escaped_and_nothing_runs_or_is_fetched():
    page = explanation_html(explanation(), command="headrank explain --query '<i>'")
    parsed = Page(page)
    assert not {"script", "b", "i", "img", "link"} & {tag for tag, _ in parsed.tags}
    assert f'{HOSTILE} swim\n"&"' in parsed.text
    assert "do birds <b>swim</b>?" in parsed.text
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=|url\(|@import|https?:", page)


def test_words_are_shaded_on_one_scale():
    shades = re.findall(r'<span[^>]*style="--w:([\d.]+)[^>]*title="([-\d.e]+)">', explanation_html(explanation()))
    assert [(float(tone), float(value)) for tone, value in shades] == [
        (1.0, 0.4), (pytest.approx(0.75**0.5, abs=1e-3), 0.3), (0.0, -0.1), (0.5, 0.1),
    ]  # fmt: skip


def test_negative_words_are_marked_and_said():
    page = explanation_html(explanation())
    assert page.count('class="less"') == 1
    assert "dotted words lower the score" in page


def test_query_words_are_chosen_without_a_script():
    page = explanation_html(explanation())
    names = [attrs["id"] for tag, attrs in Page(page).tags if tag == "input"]
    assert names == ["by0", "by1", "by2"]
    assert "#by2:checked" in page
    assert 'style="--w:1;--q0:1;--q1:0.632"' in page
    assert "<fieldset>" not in explanation_html(explanation(query_words=()))


def test_the_place_curve_is_drawn_and_isolated_passages_have_none():
    causal, isolated = explanation_html(explanation()), explanation_html(explanation(isolated=True))
    assert '<polyline class="curve"' in causal
    assert "place 2 in the prompt" in causal
    assert '<polyline class="curve"' not in isolated
    assert "in the prompt</span>" not in isolated


def test_chosen_passages_are_shown_alone():
    page = explanation_html(explanation(), docids=["d2"])
    assert page.count("<article>") == 1
    with pytest.raises(KeyError, match="no docid 'd3'"):
        explanation_html(explanation(), docids=["d3"])


@pytest.mark.usefixtures("small_pictures")
def test_reports_link_to_the_pages_that_a_run_holds(tmp_path):
    candidates, qrels, grades = graded_candidates(tmp_path, 2, 4)
    run, without = (make_run(tmp_path / name, candidates, qrels, Scripted(grades, 0.5)) for name in ("run 1", "run 2"))
    page = page_in_run(run, "q1")
    page.parent.mkdir()
    page.touch()
    output = tmp_path / "deep" / "report"
    save_comparison(compare([run, without], qrels=qrels), output, command="")
    report = (output / "report.html").read_text(encoding="utf-8")
    (link,) = re.findall('<a href="([^"]*)">', report)
    assert link == "../../run%201/explanations/q1.html"
    assert (output / unquote(link)).resolve() == page.resolve()
