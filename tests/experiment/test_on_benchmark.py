"""evaluate(reranker, benchmark): queries, judgments and candidates of a collection that ir_datasets knows."""

import json
import sys

import ir_datasets
import pytest
from click.testing import CliRunner
from run_directories import Scripted

from headrank_pipeline import evaluate, saved_candidates
from headrank_pipeline.cli import main
from headrank_pipeline.experiment import facts
from headrank_pipeline.experiment.benchmark import benchmark_of_dataset
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

ID = "local/three"
FLEAS_LAST = {"007": 1.0, "7": 2.0, "8": 3.0}


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """Three passages, two judged queries and one that nobody judged, by ir_datasets' own classes."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    (tmp_path / "docs.tsv").write_text("007\tone flea\n7\ta flea and a cat\n8\ta dog\n")
    (tmp_path / "queries.tsv").write_text("1\tflea\n02\tdog\n3\tcat\n")
    (tmp_path / "qrels.txt").write_text("1 0 007 2\n1 0 7 1\n02 0 8 1\n")
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"), queries_tsv=str(tmp_path / "queries.tsv"),
        qrels_trec=str(tmp_path / "qrels.txt"),
    )  # fmt: skip
    ir_datasets.registry.register(ID, dataset)
    yield tmp_path
    del ir_datasets.registry._registered[ID]


def lists(*qids):
    texts = {"007": "one flea", "7": "a flea and a cat", "8": "a dog"}
    passages = tuple(Candidate(docid, 3.0 - place, texts[docid]) for place, docid in enumerate(texts))
    return [Ranking(Query(qid, "flea"), passages) for qid in qids]


def reranker(**changed):
    return Scripted({}, by_docid=FLEAS_LAST | changed)


@pytest.fixture
def nano(tmp_path, monkeypatch):
    """NanoBEIR's SciFact by ir_datasets' own reader, with three passages and two queries in place of the published."""
    parquet = pytest.importorskip("pyarrow.parquet")
    from ir_datasets.datasets.nano_beir import GenericDoc, GenericQuery, NanoBeirDocs, NanoBeirQrels, NanoBeirQueries
    from pyarrow import table

    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    monkeypatch.setattr(facts, "catalogue", lambda: {"datasets": {}, "indexes": {}})  # checksums of the published files
    columns = {
        "corpus": {"_id": ["007", "7", "8"], "text": ["one flea", "a flea and a cat", "a dog"]},
        "queries": {"_id": ["1", "02"], "text": ["flea", "dog"]},
        "qrels": {"query-id": ["1", "02"], "corpus-id": ["007", "8"]},
    }
    places = {}
    for name, values in columns.items():
        parquet.write_table(table(values), tmp_path / f"{name}.parquet")
        places[name] = ir_datasets.util.LocalDownload(tmp_path / f"{name}.parquet")
    dataset = ir_datasets.Dataset(
        NanoBeirDocs("scifact", places["corpus"], GenericDoc),
        NanoBeirQueries("scifact", places["queries"], GenericQuery),
        NanoBeirQrels(places["qrels"], {1: "relevant"}),
    )
    monkeypatch.setitem(ir_datasets.registry._registered, "nano-beir/scifact", dataset)


def test_a_reranker_gets_what_bm25_finds_in_the_collections_documents(nano):
    found = evaluate(reranker(), "nano-beir-scifact", ["RR", "R@100"])
    # BM25 puts the shorter passage first, and finds the other query's only document.
    assert found.first_stage.means == {"RR": 1.0, "R@100": 1.0}
    assert found.means == {"RR": 0.75, "R@100": 1.0}
    assert (found.queries, found.missing) == (2, ())


def test_what_ir_datasets_lacks_to_read_a_collection_is_named(nano, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(ir_datasets.lazy_libs, "_cache", {})
    with pytest.raises(
        MissingPrerequisite, match=r"qrels of nano-beir/scifact: This dataset requires pyarrow\. Run 'pip "
    ):
        evaluate(reranker(), "nano-beir-scifact")


def test_candidates_of_a_file_are_taken_and_queries_that_it_lacks_count_0(collection):
    write_candidates(collection / "c.jsonl", lists("1"))
    found = evaluate(reranker(), ID, "RR", candidates=collection / "c.jsonl")
    assert (found.first_stage.means, found.means) == ({"RR": 0.5}, {"RR": 0.25})  # the dog first
    assert found.missing == ("02",)
    shallow = evaluate(reranker(), ID, "RR", candidates=collection / "c.jsonl", depth=2)
    assert shallow.means == {"RR": 0.5}  # the dog is below
    strict = evaluate(reranker(), ID, "RR", candidates=collection / "c.jsonl", relevance_level=2)
    assert strict.means["RR"] == pytest.approx(1 / 6)  # 007 only, last


def test_a_first_stage_and_a_pipeline_are_asked_the_judged_queries(collection):
    write_candidates(collection / "c.jsonl", lists("1", "02"))
    source = saved_candidates(collection / "c.jsonl")
    by_stages = evaluate(reranker(), f"ir_datasets:{ID}", ["RR"], candidates=source)
    assert (by_stages.first_stage.means["RR"], by_stages.means["RR"]) == pytest.approx(
        ((1 + 1 / 3) / 2, (1 / 2 + 1) / 2)
    )
    pipeline = evaluate(source % 3 >> reranker(), ID, ["RR"])
    assert (pipeline.per_query, pipeline.first_stage) == (by_stages.per_query, None)


def test_the_querys_own_document_is_taken_out_of_any_first_stage(collection, monkeypatch):
    arguana = benchmark_of_dataset("beir/arguana")
    monkeypatch.setattr(
        "headrank_pipeline.experiment.on_benchmark.benchmark_of_dataset",
        lambda dataset, depth: arguana.model_copy(update={"collection": benchmark_of_dataset(dataset).collection}),
    )
    (collection / "queries.tsv").write_text("007\tflea\n")
    (collection / "qrels.txt").write_text("007 0 7 1\n")
    write_candidates(collection / "c.jsonl", lists("007"))
    source = saved_candidates(collection / "c.jsonl")
    assert evaluate(source, ID, "RR").means == {"RR": 1.0}
    assert evaluate(reranker(), ID, "RR", candidates=source).first_stage.means == {"RR": 1.0}


def test_a_run_is_kept_where_output_names_a_folder(collection):
    write_candidates(collection / "c.jsonl", lists("1", "02"))
    arguments = {"candidates": collection / "c.jsonl", "output": collection / "run"}
    first = evaluate(reranker(), ID, **arguments)
    scores = (collection / "run" / "scores.jsonl").read_bytes()
    assert evaluate(reranker(), ID, **arguments) == first
    assert (collection / "run" / "scores.jsonl").read_bytes() == scores  # times of reranking are in it
    written = json.loads((collection / "run" / "evaluation.json").read_text())
    assert written["reranked"]["means"] == first.means
    assert first.to_dict()["first_stage"]["means"] == written["first_stage"]["means"]
    with pytest.raises(ValueError, match="holds a run of another configuration"):
        evaluate(reranker(), ID, depth=1, **arguments)


def test_a_run_is_judged_by_a_collection_too(collection):
    found = evaluate({"1": {"7": 2.0, "007": 1.0}, "02": {"8": 1.0}}, f"ir_datasets:{ID}", "nDCG@10")
    assert found.means["nDCG@10"] == pytest.approx(((1 + 2 / 1.5849625) / (2 + 1 / 1.5849625) + 1) / 2)
    run = collection / "run.trec"
    run.write_text("1 Q0 7 1 2.0 x\n1 Q0 007 2 1.0 x\n02 Q0 8 1 1.0 x\n")
    told = CliRunner().invoke(main, ["evaluate", str(run), "--qrels", f"ir_datasets:{ID}", "--json"])
    assert json.loads(told.stdout)["means"]["nDCG@10"] == pytest.approx(found.means["nDCG@10"])


@pytest.mark.parametrize(
    ("arguments", "changes", "error", "message"),
    [
        ((reranker(), "local/thre"), {}, FileNotFoundError, "nor an id of ir_datasets; did you mean .local/three"),
        ((reranker(), "beir-scfact"), {}, FileNotFoundError, "did you mean .beir-scifact"),
        ((reranker(), {"q": {"d": 1}}), {}, TypeError, "expected its name, or an id of ir_datasets, got dict"),
        (({"q": {"d": 1.0}}, {"q": {"d": 1}}), {"depth": 3}, TypeError, "depth and output are for a reranker; a run"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(collection, arguments, changes, error, message):
    with pytest.raises(error, match=message):
        evaluate(*arguments, **changes)


def test_a_pipeline_takes_no_candidates(collection):
    write_candidates(collection / "c.jsonl", lists("1"))
    with pytest.raises(TypeError, match="a pipeline has"):
        evaluate(saved_candidates(collection / "c.jsonl"), ID, depth=3)


def test_a_collection_with_a_definition_has_its_level_measures_and_published_scores():
    dl19 = benchmark_of_dataset("msmarco-passage/trec-dl-2019/judged")
    assert (dl19.relevance_level, dl19.measures) == (2, ("nDCG@10", "MAP@100", "R@100"))
    assert (dl19.name, dl19.collection.pyserini_index) == ("msmarco-passage-trec-dl-2019-judged", None)
    assert dl19.references
    assert benchmark_of_dataset("beir/quora/dev").first_stage.remove_query
    assert not benchmark_of_dataset("vaswani").first_stage.remove_query
    deep = benchmark_of_dataset("beir/scifact/test", depth=200)
    assert (deep.depth, deep.first_stage.hits) == (200, 200)
