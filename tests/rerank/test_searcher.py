"""RerankingSearcher around real Pyserini searchers, its hits written by Pyserini's own writer."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval

from headrank_pipeline.first_stage.jvm import start_jvm
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Ranking
from headrank_pipeline.rerank.searcher import RerankingSearcher
from headrank_pipeline.trec import read_run


class ShortestFirst(Reranker):
    """Prefers short passages, with scores as small as a mean attention mass."""

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [
            ranking.rescored([1e-9 / (1 + len(c.text)) for c in ranking.candidates if c.text is not None])
            for ranking in rankings
        ]

    def describe(self) -> dict[str, Any]:
        return {"reranker": "shortest first"}


class OnlyTheShortest(ShortestFirst):
    """Leaves all passages out but one, as a threshold does."""

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        return [ranking.cut(1) for ranking in super().rerank_batch(rankings)]


SHORT_TO_LONG = ["007", "d1", "7", "d5"]  # the passages with a flea: 19, 30, 35 and 41 characters


@pytest.fixture(scope="module")
def lucene(tiny_index: Path):
    start_jvm()
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(str(tiny_index))
    searcher.set_bm25(0.9, 0.4)
    return searcher


@pytest.fixture
def searcher(lucene) -> RerankingSearcher:
    return RerankingSearcher(lucene, ShortestFirst())


def test_hits_come_in_the_rerankers_order_with_what_the_first_stage_said(lucene, searcher):
    first = lucene.search("flea", 10)
    hits = searcher.search("flea")
    assert [hit.docid for hit in hits] == SHORT_TO_LONG
    for hit in hits:
        assert (first[hit.first_rank - 1].docid, first[hit.first_rank - 1].score) == (hit.docid, hit.first_score)
    assert (hits[1].title, hits[1].text) == ("Flea", "A flea can live up to a year.")
    assert hits[1].raw_score == 1e-9 / (1 + len(hits[1].text))


def test_the_first_stages_hits_are_left_alone(lucene, searcher):
    before = [(hit.docid, hit.score) for hit in lucene.search("flea", 10)]
    searcher.search("flea")
    assert [(hit.docid, hit.score) for hit in lucene.search("flea", 10)] == before


def test_below_the_depth_the_first_stages_order_continues(lucene):
    first = [hit.docid for hit in lucene.search("flea", 10)]
    hits = RerankingSearcher(lucene, ShortestFirst(), depth=2).search("flea", 10)
    assert [hit.docid for hit in hits] == sorted(first[:2], key=SHORT_TO_LONG.index) + first[2:]
    assert [hit.text is None for hit in hits] == [False, False, True, True]
    assert all(above.raw_score > below.raw_score for above, below in pairwise(hits))


def test_what_the_reranker_left_out_is_no_hit(lucene):
    first = [hit.docid for hit in lucene.search("flea", 10)]
    hits = RerankingSearcher(lucene, OnlyTheShortest(), depth=10).search("flea", 10)
    assert [hit.docid for hit in hits] == SHORT_TO_LONG[:1]
    hits = RerankingSearcher(lucene, OnlyTheShortest(), depth=3).search("flea", 10)
    assert [hit.docid for hit in hits] == [min(first[:3], key=SHORT_TO_LONG.index), *first[3:]]


def test_k_cuts_after_reranking_the_whole_depth(searcher):
    assert [hit.docid for hit in searcher.search("flea", 1)] == SHORT_TO_LONG[:1]
    assert [hit.docid for hit in searcher.search("flea", k=2)] == SHORT_TO_LONG[:2]


def test_batch_search_equals_search_and_keeps_the_order_of_the_qids(searcher):
    found = searcher.batch_search(["flea", "zebra", "dog"], ["7", "007", "q"], 10, 2)
    assert list(found) == ["7", "007", "q"]
    assert found == {"7": searcher.search("flea"), "007": [], "q": searcher.search("dog")}


def test_further_arguments_reach_the_first_stage(searcher):
    assert searcher.search("flea", 10, None, {"nowhere": 1.0}) == []
    assert searcher.search("flea", fields={"nowhere": 1.0}) == []
    assert searcher.batch_search(["flea"], ["q"], 10, 1, None, {"nowhere": 1.0}) == {"q": []}
    assert searcher.batch_search(["flea"], ["q"], fields={"nowhere": 1.0}) == {"q": []}


def test_documents_are_pyserinis(lucene, searcher):
    assert searcher.num_docs == lucene.num_docs == 5
    assert searcher.doc("007").raw() == lucene.doc("007").raw()
    assert searcher.doc("gone") is None
    assert list(searcher.batch_doc(["007", "gone"], 1)) == ["007"]


def test_close_closes_the_index(tiny_index):
    from pyserini.search.lucene import LuceneSearcher

    searcher = RerankingSearcher(LuceneSearcher(str(tiny_index)), ShortestFirst())
    searcher.close()
    with pytest.raises(Exception, match="closed"):
        searcher.search("flea")


def test_hits_are_frozen(searcher):
    with pytest.raises(dataclasses.FrozenInstanceError):
        searcher.search("flea")[0].score = 1.0


@pytest.mark.parametrize("depth", [2, 100])
def test_a_run_of_pyserinis_writer_evaluates_in_our_order(lucene, tmp_path, depth):
    """Six decimals turn every raw score here into 0.000000, and ties are broken by docid descending."""
    from pyserini.output_writer import OutputFormat, get_output_writer

    searcher = RerankingSearcher(lucene, ShortestFirst(), depth=depth)
    found = searcher.batch_search(["flea", "dog"], ["q1", "q2"], 10)
    with get_output_writer(str(tmp_path / "run"), OutputFormat.TREC, "w", tag="ours") as writer:
        for qid, hits in found.items():
            writer.write(qid, hits)
    run = read_run(tmp_path / "run")
    assert {qid: [c.docid for c in read] for qid, read in run.items()} == {
        qid: [hit.docid for hit in hits] for qid, hits in found.items()
    }
    scores = {c.docid: c.score for c in run["q1"]}
    for rank, hit in enumerate(found["q1"], start=1):
        result = pytrec_eval.RelevanceEvaluator({"q1": {hit.docid: 1}}, {"recip_rank"}).evaluate({"q1": scores})
        assert result["q1"]["recip_rank"] == pytest.approx(1 / rank)


def test_an_index_without_stored_text_takes_it_from_another(slim_index, lucene):
    from pyserini.search.lucene import LuceneSearcher

    slim = LuceneSearcher(str(slim_index))
    with pytest.raises(ValueError, match=r"docid \w+ has no stored text .*: pass texts=LuceneSearcher\(INDEX\)"):
        RerankingSearcher(slim, ShortestFirst()).search("flea")
    hits = RerankingSearcher(slim, ShortestFirst(), texts=lucene).search("flea")
    assert [hit.docid for hit in hits] == SHORT_TO_LONG


def test_a_document_missing_from_the_texts_is_named(lucene, tmp_path):
    from pyserini.search.lucene import LuceneSearcher

    from headrank_pipeline.first_stage import build_index

    (tmp_path / "corpus").write_text("d1\tflea\n")
    other = LuceneSearcher(str(build_index(tmp_path / "corpus", tmp_path / "index").path))
    with pytest.raises(ValueError, match=r"docid \w+ is not in the index that texts come from"):
        RerankingSearcher(lucene, ShortestFirst(), texts=other).search("flea")


@pytest.mark.parametrize(
    ("queries", "qids", "error", "message"),
    [
        (["flea"], ["q1", "q2"], ValueError, "expected equal"),
        (["flea", "dog"], ["q1", "q1"], ValueError, "expected equal"),
        (["flea"], [7], TypeError, "ids are strings"),
        ([" "], ["q1"], ValueError, "qid q1: query text ' ' is empty"),
        ([object()], ["q1"], TypeError, "a reranker reads the words"),
    ],
)
def test_wrong_batches_are_refused(searcher, queries, qids, error, message):
    with pytest.raises(error, match=message):
        searcher.batch_search(queries, qids)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [(-1, ValueError, "k -1: expected at least 1 hit"), (0, ValueError, "k 0: expected"), (2.0, TypeError, "k 2"),
     (True, TypeError, "k True: expected a whole number of hits, got bool")],
)  # fmt: skip
def test_a_number_of_hits_that_is_none_is_refused(searcher, k, error, message):
    with pytest.raises(error, match=message):
        searcher.search("flea", k)
    with pytest.raises(error, match=message):
        searcher.batch_search(["flea"], ["q"], k)


def test_a_faiss_searcher_without_texts_gets_a_hint_where_it_is_given():
    start_jvm()
    from pyserini.search.faiss import FaissSearcher

    with pytest.raises(ValueError, match=r"FaissSearcher has no documents .*; pass texts=LuceneSearcher\(INDEX\)"):
        RerankingSearcher(FaissSearcher.__new__(FaissSearcher), ShortestFirst())


def test_a_depth_that_is_no_number_of_hits_is_refused(lucene):
    with pytest.raises(ValueError, match="depth 0: expected at least 1"):
        RerankingSearcher(lucene, ShortestFirst(), depth=0)
    with pytest.raises(TypeError, match=r"depth 2\.5: expected a whole number of hits, got float"):
        RerankingSearcher(lucene, ShortestFirst(), depth=2.5)


def test_hits_carry_lucenes_document_as_pyserinis_scripts_expect(lucene, searcher):
    for hit in (*searcher.search("flea"), *searcher.batch_search(["flea"], ["q1"])["q1"]):
        assert hit.docid == json.loads(hit.lucene_document.get("raw"))["_id"]
    assert "first_hit" not in repr(searcher.search("flea", 1))


def test_a_path_is_no_searcher_and_a_name_no_reranker(lucene, tiny_index):
    for first_stage, reranker in (
        (str(tiny_index), ShortestFirst()),
        (tiny_index, ShortestFirst()),
        (lucene, "headrank"),
    ):
        with pytest.raises(TypeError, match="expected a searcher and a reranker, got"):
            RerankingSearcher(first_stage, reranker)
