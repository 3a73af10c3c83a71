"""Rank fusion: ``a | b`` and what may be joined with it."""

from dataclasses import dataclass

import pytest

from headrank_pipeline.pipeline import Source, as_queries, fuse
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_run

FLEA = Query("q1", "flea")


@dataclass(frozen=True)
class Fixed(Source):
    """Answers every query with the same passages."""

    docids: str
    text: str | None = None

    def retrieve(self, queries):
        for query in as_queries(queries):
            hits = (Candidate(d, 10.0 - rank, self.text) for rank, d in enumerate(self.docids))
            yield Ranking(query, tuple(hits))

    def describe(self):
        return {"docids": self.docids}

    def most(self):
        return len(self.docids)


def fused(source: Source) -> Ranking:
    [ranking] = source.retrieve([FLEA])
    return ranking


def test_scores_are_sums_of_reciprocal_ranks():
    ranking = fused(Fixed("ab") | Fixed("bc"))
    assert ranking.docids == ("b", "a", "c")
    assert ranking.scores == (1 / 62 + 1 / 61, 1 / 61, 1 / 62)


def test_equal_scores_keep_the_order_of_the_sources():
    assert fused(Fixed("xa") | Fixed("ya")).docids == ("a", "x", "y")
    assert fused(Fixed("ya") | Fixed("xa")).docids == ("a", "y", "x")


def test_three_rankings_weigh_the_same_however_they_are_written():
    a, b, c = Fixed("abc"), Fixed("bca"), Fixed("cd")
    ranking = fused(a | b | c)
    assert ranking == fused(fuse(a, b, c)) == fused(a | (b | c))
    assert ranking.scores[0] == pytest.approx(1 / 63 + 1 / 62 + 1 / 61)  # c: rank 3, 2, 1


def test_a_fusion_of_another_constant_stays_a_ranking_of_its_own():
    source = fuse(Fixed("ab"), Fixed("ba"), k=1) | Fixed("b")
    assert source.describe()["sources"][0]["k"] == 1
    assert fused(source).docids == ("b", "a")


def test_a_text_comes_from_whichever_source_knows_it():
    assert {c.docid: c.text for c in fused(Fixed("ab") | Fixed("bc", text="known")).candidates} == {
        "a": None, "b": "known", "c": "known",
    }  # fmt: skip


def test_a_cutoff_after_the_fusion_cuts_the_fused_ranking():
    assert fused((Fixed("ab") | Fixed("bc")) % 2).docids == ("b", "a")
    assert (Fixed("ab") | Fixed("bc")).most() == 4


def test_what_cannot_be_fused_is_named():
    with pytest.raises(TypeError, match=r"\| takes a source on its right to fuse with, got 3"):
        Fixed("a") | 3
    with pytest.raises(ValueError, match="two sources or more, got 1"):
        fuse(Fixed("a"))
    with pytest.raises(ValueError, match="k 0: expected at least 1"):
        fuse(Fixed("a"), Fixed("b"), k=0)


def test_scores_equal_those_of_pyserini(tmp_path):
    from headrank_pipeline.first_stage.jvm import start_jvm

    start_jvm()
    from pyserini.fusion import reciprocal_rank_fusion
    from pyserini.trectools import TrecRun

    runs = []
    for number, docids in enumerate(("abcdef", "fxbya")):
        path = tmp_path / f"{number}.trec"
        write_run(path, Fixed(docids).retrieve([FLEA]), "run")
        runs.append(TrecRun(str(path)))
    theirs = reciprocal_rank_fusion(runs, rrf_k=60, depth=10, k=10).run_data
    ours = fused(Fixed("abcdef") | Fixed("fxbya"))
    assert dict(zip(theirs["docid"], theirs["score"], strict=True)) == pytest.approx(
        dict(zip(ours.docids, ours.scores, strict=True))
    )
