"""Where a benchmark's topics, qrels and candidates come from."""

import json
from pathlib import Path
from pipes import piped

import pytest

from headrank_pipeline.experiment.benchmark import Benchmark, benchmark_of_files, embedded_benchmark
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.sources import LocalFiles, Sources
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates


def benchmark(**changes) -> Benchmark:
    record = {
        "schema": 1,
        "name": "mini",
        "version": "1",
        "title": "Five passages",
        "collection": {"ir_datasets": "local/mini", "pyserini_index": "mini.flat"},
        "queries": "judged",
        "first_stage": {"method": "bm25", "k1": 0.9, "b": 0.4, "hits": 3, "remove_query": False},
        "depth": 3,
        "measures": ["RR"],
        "relevance_level": 1,
    }
    return Benchmark.model_validate_json(json.dumps(record | changes))


@pytest.fixture
def files(tmp_path):
    """Topics with one query that is not judged, and qrels."""
    topics, qrels = tmp_path / "topics.tsv", tmp_path / "qrels.txt"
    topics.write_text("q1\tflea\nq2\tdog\nq3\tcat\n")
    qrels.write_text("q1 0 007 1\nq3 0 7 1\n")
    return {"topics": topics, "qrels": qrels}


def found(inputs):
    return {ranking.query.qid: ranking.docids for ranking in inputs.supply.rankings()}


def test_local_files_come_first_and_only_judged_topics_are_kept(files, tiny_index, tmp_path):
    inputs = Sources(benchmark(), LocalFiles(**files, index=str(tiny_index))).open(RunDirectory(tmp_path / "run"))
    assert list(found(inputs)) == ["q1", "q3"]
    assert inputs.supply.identity["first_stage"]["k1"] == 0.9
    assert dict(inputs.supply.origins) == {
        "topics": str(files["topics"]),
        "index": str(tiny_index),
        "qrels": str(files["qrels"]),
    }


def test_all_topics_are_kept_where_the_benchmark_says_so(files, tiny_index, tmp_path):
    local = LocalFiles(**files, index=str(tiny_index))
    inputs = Sources(benchmark(queries="all"), local).open(RunDirectory(tmp_path / "run"))
    assert list(found(inputs)) == ["q1", "q2", "q3"]


def test_a_corpus_is_indexed_once_with_topics_beside_it(files, tiny_corpus, tmp_path, caplog):
    caplog.set_level("INFO")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(tiny_corpus.read_bytes())
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "flea"}\n{"_id": "q2", "text": "dog"}\n')
    directory = RunDirectory(tmp_path / "run")
    local = LocalFiles(corpus=corpus, qrels=files["qrels"], offline=True)

    inputs = Sources(benchmark(), local).open(directory)
    assert not directory.index.exists()  # built when candidates are asked for: a resumed run needs none
    first = found(inputs)
    assert first["q1"][0] in {"d1", "007", "7"}
    assert inputs.supply.origins["topics"].endswith("queries.jsonl, found beside the corpus")

    again = Sources(benchmark(), local).open(directory)
    assert again.supply.identity == inputs.supply.identity
    assert found(again) == first
    assert "was built from this corpus, used again" in caplog.text

    corpus.write_text('{"_id": "new", "title": "", "text": "one more flea"}\n')
    changed = Sources(benchmark(), local).open(directory)
    assert changed.supply.identity != inputs.supply.identity
    assert found(changed) == {"q1": ("new",)}


def test_an_index_of_another_corpus_is_not_replaced_behind_the_users_back(files, tiny_index, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "new", "title": "", "text": "one more flea"}\n')
    local = LocalFiles(**files, corpus=corpus, index=str(tiny_index))
    inputs = Sources(benchmark(), local).open(RunDirectory(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"holds an index of another corpus or kind .*choose another index"):
        found(inputs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qrels", "gone: no such qrels file"),
        ("topics", "gone: no such topics file"),
        ("index", "gone: no such index folder; build one with `headrank index"),
        ("corpus", "gone: no such corpus file"),
        ("exclusions", "gone: no such exclusions file"),
        ("candidates", "gone: no such candidates file"),
    ],
)
def test_what_is_not_there_is_named(files, tiny_index, tmp_path, name, message):
    given = {**files, "index": str(tiny_index)} if name != "candidates" else {"qrels": files["qrels"]}
    given |= {name: str(tmp_path / "gone") if name == "index" else tmp_path / "gone"}
    with pytest.raises(FileNotFoundError, match=message):
        Sources(benchmark(), LocalFiles(**given)).open(RunDirectory(tmp_path / "run"))


def test_saved_candidates_are_restricted_to_judged_queries(files, tmp_path):
    path = tmp_path / "candidates.jsonl"
    hits = (Candidate("007", 1.0, "one flea"),)
    write_candidates(path, [Ranking(Query(qid, "flea"), hits) for qid in ("q1", "q2", "q3")])
    inputs = Sources(benchmark(), LocalFiles(candidates=path, qrels=files["qrels"])).open(
        RunDirectory(tmp_path / "run")
    )
    assert list(found(inputs)) == ["q1", "q3"]
    assert inputs.supply.retrieves is False


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"offline=True: the qrels would come from ir_datasets \(local/mini\).*pass qrels=FILE"),
        (("qrels",), r"offline=True: the topics would .*pass topics=FILE"),
        (("qrels", "topics"), r"offline=True: index mini\.flat is no file or folder here .*corpus=FILE, index=FOLDER"),
    ],
)
def test_offline_refuses_what_may_open_a_socket_and_names_the_flag(files, tmp_path, given, message):
    local = LocalFiles(**{name: files[name] for name in given}, offline=True)
    with pytest.raises(FileNotFoundError, match=message):
        Sources(benchmark(), local).open(RunDirectory(tmp_path / "run"))


def test_topics_and_qrels_come_from_ir_datasets_with_string_ids(files, tiny_index, tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    ir_datasets = pytest.importorskip("ir_datasets")
    numbers = tmp_path / "numbers.tsv"
    numbers.write_text("007\tflea\n8\tdog\n")
    judged = tmp_path / "judged.txt"
    judged.write_text("007 0 7 2\n")
    dataset = ir_datasets.create_dataset(queries_tsv=str(numbers), qrels_trec=str(judged))
    ir_datasets.registry.register("local/mini", dataset)
    try:
        directory = RunDirectory(tmp_path / "run")
        inputs = Sources(benchmark(), LocalFiles(index=str(tiny_index))).open(directory)
    finally:
        del ir_datasets.registry._registered["local/mini"]
    assert list(found(inputs)) == ["007"]
    assert directory.qrels.read_text() == "007 0 7 2\n"
    assert inputs.judgement.qrels == directory.qrels
    assert inputs.supply.origins["qrels"] == "ir_datasets local/mini"


def test_an_entry_that_ir_datasets_lacks_is_named_with_the_flag(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the qrels of local/mini: it knows no such coll.*pass qrels=FILE"):
        Sources(benchmark(), LocalFiles()).open(RunDirectory(tmp_path / "run"))


def test_a_prebuilt_index_is_described_by_name_without_opening_it(files, tmp_path):
    inputs = Sources(benchmark(), LocalFiles(**files)).open(RunDirectory(tmp_path / "run"))
    assert inputs.supply.identity["index"] == "mini.flat"
    assert inputs.supply.identity["first_stage"]["hits"] == 3
    files["topics"].write_text("q1\tfly\nq3\tcat\n")
    others = Sources(benchmark(), LocalFiles(**files)).open(RunDirectory(tmp_path / "run"))
    assert others.supply.identity != inputs.supply.identity


def test_what_comes_from_nowhere_is_told_without_opening_anything(files):
    nowhere = Sources(benchmark(collection={}), LocalFiles(**files))
    with pytest.raises(FileNotFoundError, match="mini names no prebuilt index; pass corpus=FILE, index=FOLDER or"):
        nowhere.check()
    assert [(need.what, need.state) for need in nowhere.needs()] == [
        ("topics", "local"),
        ("qrels", "local"),
        ("index", "missing"),
    ]


def test_judgments_may_come_through_a_pipe(files, tmp_path):
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, [Ranking(Query("q1", "flea"), (Candidate("007", 1.0, "one flea"),))])
    with piped(files["qrels"].read_bytes()) as qrels:
        sources = Sources(benchmark(), LocalFiles(candidates=path, qrels=Path(qrels)))
        sources.check()
        assert list(found(sources.open(RunDirectory(tmp_path)))) == ["q1"]


def test_topics_without_any_judgment_are_refused(files, tiny_index, tmp_path):
    files["qrels"].write_text("other 0 d1 1\n")
    with pytest.raises(ValueError, match=r"none of the 3 topics .* is judged in"):
        Sources(benchmark(), LocalFiles(**files, index=str(tiny_index))).open(RunDirectory(tmp_path / "run"))


def test_100_candidates_are_retrieved_where_fewer_are_reranked():
    assert [benchmark_of_files("mine", depth=depth).first_stage.hits for depth in (10, 200)] == [100, 200]


def test_candidates_beside_a_corpus_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match=r"candidates already hold queries and passages; drop corpus=.* and index=i"):
        LocalFiles(candidates=tmp_path / "c", corpus=tmp_path / "d", index="i")


def test_the_embedded_collection_needs_no_network_and_no_file(tmp_path):
    demo = embedded_benchmark("demo")
    Sources(demo, LocalFiles(offline=True)).check()
    inputs = Sources(demo, LocalFiles(offline=True)).open(RunDirectory(tmp_path / "run"))
    assert inputs.judgement.qrels.name == "qrels.tsv"
    assert "corpus_sha256" in inputs.supply.identity
