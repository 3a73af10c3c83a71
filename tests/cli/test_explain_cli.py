"""headrank explain: JSON, text, page, the deletion test, and what it refuses."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from headrank_pipeline.cli import main
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

TEXTS = {
    "d1": "Dogs sleep for half of the day, and older ones for longer; puppies need even more rest than that.",
    "d2": "A flea lives for about a hundred days when it finds a host, and much less without one.",
    "d3": "The life cycle of the flea has four stages: egg, larva, pupa and adult, and takes some weeks in all.",
}


def explain(candidates, *arguments: object) -> Result:
    given = ["explain", "--candidates", candidates, "--model", "embedded", "--option", "device=cpu", *arguments]
    return CliRunner().invoke(main, [str(argument) for argument in given])


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    passages = tuple(Candidate(docid, -float(place), text) for place, (docid, text) in enumerate(TEXTS.items()))
    queries = (Query("q1", "how long does a flea live"), Query("q2", "how long do dogs sleep"))
    path = tmp_path_factory.mktemp("explain") / "candidates.jsonl"
    write_candidates(path, [Ranking(query, passages) for query in queries])
    return path


def test_json_words_add_up_to_scores(candidates):
    result = explain(candidates, "--qid", "q1", "--by-query-word", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert {passage["docid"] for passage in record["passages"]} == set(TEXTS)
    for passage in record["passages"]:
        assert sum(word["contribution"] for word in passage["words"]) == pytest.approx(passage["score"], abs=1e-6)
    assert record["query_words"][:6] == ["how", "long", "does", "a", "flea", "live"]


def test_terminal_names_the_words_and_the_page_is_written(candidates, tmp_path):
    page = tmp_path / "page.html"
    result = explain(candidates, "--qid", "q1", "--query", "do dogs sleep", "--docid", "d1", "--output", page)
    assert result.exit_code == 0, result.output
    first, text, word, *_ = result.stdout.splitlines()
    assert first.split()[1] == "d1"
    assert text == TEXTS["d1"]
    assert word.split()[0] in TEXTS["d1"].split()
    assert "█" in word
    assert "<h1>do dogs sleep</h1>" in page.read_text(encoding="utf-8")


def test_deletion_test_prints_its_figure_with_an_interval(candidates):
    result = explain(candidates, "--faithfulness", "3", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["words"], found["lists"], found["passages"]) == (3, 2, 6)
    assert found["difference"] == pytest.approx(found["top"] - found["random"])
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]
    assert "95% interval" in explain(candidates, "--qid", "q1", "--faithfulness", "3").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "has 2 lists: name one with --qid (q1, q2"),
        (("--qid", "q3"), "no list of qid q3"),
        (("--qid", "q1", "--docid", "d9", "--model", "./nope"), "no docid 'd9' among the 3 passages"),
        (("--qid", "q1", "--output", f"{__file__}/page.html", "--model", "./nope"), "is a file; choose another output"),
        (("--qid", "q1", "--option", "normalise=zscore"), "normalise 'zscore': scores compare"),
        (("--qid", "q1", "--option", "calibration=own"), "probabilities are no sums over words"),
        (("--faithfulness", "--docid", "d1"), "--faithfulness tests whole lists"),
        (("--qid", "q1", "--output", "."), "a folder that is no run directory"),
    ],
)
def test_what_cannot_be_explained_is_refused(candidates, arguments, message):
    result = explain(candidates, *arguments)
    assert result.exit_code not in (0, 1)
    assert message in result.output
