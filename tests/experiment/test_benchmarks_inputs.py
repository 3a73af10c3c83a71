"""First stages in place of a benchmark's own, exclusions, collections without a definition, facts that must agree."""

import hashlib
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_encoder import tiny_encoder, tiny_impact_index
from tiny_models import tiny_model

from headrank_pipeline.cli import main
from headrank_pipeline.experiment import facts
from headrank_pipeline.experiment.benchmark import Benchmark, benchmark_of_dataset, load_benchmark
from headrank_pipeline.experiment.directory import RunDirectory
from headrank_pipeline.experiment.sources import Dataset, LocalFiles, Sources
from headrank_pipeline.experiment.stages import BM25, FirstStageOptions, Workspace
from headrank_pipeline.first_stage import bm25, dense
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_qrels, read_topics, write_candidates

ROOT = Path(__file__).resolve().parents[2]


def benchmark(**changes) -> Benchmark:
    record = {
        "schema": 1,
        "name": "mini",
        "version": "1",
        "title": "Five passages",
        "collection": {},
        "queries": "judged",
        "first_stage": {"method": "bm25", "k1": 0.9, "b": 0.4, "hits": 3, "remove_query": False},
        "depth": 3,
        "measures": ["RR"],
        "relevance_level": 1,
        "references": [{"measure": "RR", "value": 1.0, "source": "by hand"}],
    }
    stage = record["first_stage"] | changes.pop("first_stage", {})
    return Benchmark.model_validate_json(json.dumps(record | {"first_stage": stage} | changes))


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def files(tmp_path, tiny_corpus) -> dict[str, Path]:
    topics, qrels = tmp_path / "topics.tsv", tmp_path / "qrels.txt"
    topics.write_text("q1\tflea\nq2\tdog\n")
    qrels.write_text("q1 0 007 1\nq2 0 d2 1\n")
    return {"corpus": tiny_corpus, "topics": topics, "qrels": qrels}


def found(inputs) -> dict[str, tuple[str, ...]]:
    return {ranking.query.qid: ranking.docids for ranking in inputs.supply.rankings()}


# ------------------------------------------------------------------------------------------ first stages of a benchmark


def test_dense_and_fused_stages_of_a_corpus_are_built_once_and_hold_the_benchmarks_hits(
    files,
    encoder_folder,
    tmp_path,
    caplog,
):
    caplog.set_level("INFO")
    directory, local = RunDirectory(tmp_path / "run"), LocalFiles(**files, offline=True)
    vectors = FirstStageOptions(method="dense", encoder=str(encoder_folder))
    by_vector = Sources(benchmark(), local, vectors).open(directory)
    assert by_vector.judgement.references == ()  # published for BM25
    assert not (directory.path / "dense-index").exists()
    rankings = found(by_vector)
    assert [len(docids) for docids in rankings.values()] == [3, 3]

    both = FirstStageOptions(method="fusion", encoder=str(encoder_folder), rrf_k=10)
    fused = Sources(benchmark(), local, both).open(directory)
    assert "was built from this corpus, used again" not in caplog.text
    [first, _] = fused.supply.rankings()
    assert "dense-index was built from this corpus, used again" in caplog.text
    lexical = found(Sources(benchmark(), local).open(directory))
    ranks = [docids.index(first.docids[0]) for docids in (lexical["q1"], rankings["q1"]) if first.docids[0] in docids]
    assert len(first) == 3
    assert first.scores[0] == pytest.approx(sum(1 / (11 + rank) for rank in ranks))
    assert fused.supply.identity["k"] == 10
    assert len({json.dumps(i.supply.identity, sort_keys=True) for i in (by_vector, fused)}) == 2


def test_an_impact_stage_takes_its_passages_from_a_corpus(files, tmp_path):
    index = tiny_impact_index(tmp_path / "impact")
    local = LocalFiles(topics=files["topics"], qrels=files["qrels"], index=str(index), offline=True)
    stage = FirstStageOptions(method="impact", texts=str(files["corpus"]))
    [flea, dog] = Sources(benchmark(), local, stage).open(RunDirectory(tmp_path)).supply.rankings()
    assert (flea.docids, dog.candidates[0].text) == (("d1", "007"), "The dog sleeps.")
    with pytest.raises(FileNotFoundError, match="impact indexes store no passages; pass first stage option texts="):
        Sources(benchmark(), local, FirstStageOptions(method="impact")).open(RunDirectory(tmp_path))


@pytest.mark.parametrize("method", ["bm25", "dense", "impact", "fusion"])
def test_offline_takes_no_passages_from_elsewhere(files, tmp_path, method):
    local = LocalFiles(topics=files["topics"], qrels=files["qrels"], index=str(tmp_path), offline=True)
    stage = FirstStageOptions(method=method, texts="ir_datasets:vaswani")
    with pytest.raises(FileNotFoundError, match="offline=True: texts ir_datasets:vaswani is no file or folder here"):
        Sources(benchmark(), local, stage).open(RunDirectory(tmp_path))


def test_passages_that_the_index_does_not_store_come_from_texts(files, slim_index, tmp_path):
    local = LocalFiles(topics=files["topics"], qrels=files["qrels"], index=str(slim_index), offline=True)
    plain = Sources(benchmark(), local).open(RunDirectory(tmp_path))
    given = Sources(benchmark(), local, FirstStageOptions(texts=str(files["corpus"]))).open(RunDirectory(tmp_path))
    for without, ranking in zip(plain.supply.rankings(), given.supply.rankings(), strict=True):
        assert ranking.docids == without.docids
        assert all(candidate.text is None for candidate in without.candidates)
        assert all("flea" in candidate.text or candidate.docid == "d2" for candidate in ranking.candidates)
    assert given.supply.identity["source"]["texts"] == str(files["corpus"])
    assert len(given.judgement.references) == 1  # the same BM25


def test_parameters_of_bm25_replace_the_benchmarks_in_both_stages_that_have_it(files, encoder_folder, tmp_path):
    def opened(**choice):
        directory, local = RunDirectory(tmp_path / "run"), LocalFiles(**files, offline=True)
        return Sources(benchmark(), local, FirstStageOptions(**choice)).open(directory)

    own, same, other = opened(), opened(k1=0.9), opened(k1=0.0, b=0.0)
    assert same.supply.identity == own.supply.identity
    assert len(same.judgement.references) == 1
    assert other.judgement.references == ()  # published for other parameters
    assert (other.supply.identity["first_stage"]["k1"], other.supply.identity["first_stage"]["b"]) == (0.0, 0.0)
    [flea, _] = other.supply.rankings()
    searched = bm25(str(RunDirectory(tmp_path / "run").index), k1=0.0, b=0.0, hits=len(flea))
    assert flea.scores == next(iter(searched.retrieve([flea.query]))).scores
    assert flea.scores != next(iter(own.supply.rankings())).scores
    fused = opened(method="fusion", encoder=str(encoder_folder), b=0.1).supply.identity["fusion"]
    assert fused[0]["first_stage"]["b"] == 0.1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"method": "dense"}, r"pass index=FOLDER \(or a name\), or corpus=FILE"),
        ({"method": "impact"}, "needs an impact index; pass index=FOLDER"),
    ],
)
def test_a_first_stage_without_its_index_names_the_flag(files, tmp_path, choice, message):
    local = LocalFiles(topics=files["topics"], qrels=files["qrels"], offline=True)
    with pytest.raises(FileNotFoundError, match=message):
        Sources(benchmark(), local, FirstStageOptions(**choice)).open(RunDirectory(tmp_path))


def test_an_index_and_the_corpus_that_it_was_built_from_are_one_configuration(files, tiny_index, tmp_path):
    def identity(index=None, stage=BM25, **changes):
        named = {"topics": files["topics"], "qrels": files["qrels"], "index": index} | changes
        inputs = Sources(benchmark(), LocalFiles(**named, offline=True), stage).open(RunDirectory(tmp_path))
        return inputs.supply.identity

    built = identity(corpus=files["corpus"])
    assert identity(str(tiny_index)) == identity(str(tiny_index), corpus=files["corpus"]) == built
    assert identity(str(tiny_index), FirstStageOptions(threads=2)) == built
    assert identity(str(tiny_index), FirstStageOptions(texts=str(files["corpus"]))) != built


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dense", {"encodr": "x"}, "first stage dense has no option 'encodr'; did you mean 'encoder'"),
        ("dense", {"method": "bm25"}, "has no option 'method'"),
        ("bm25", {"rrf_k": 60}, "rrf_k is for first stage fusion; bm25 has none"),
        ("bm25", {"threads": "two"}, "option threads: .* integer"),
        ("bm25", {"threads": 0}, "threads 0: expected at least 1"),
        ("dense", {"language": "de"}, "language is for BM25; first stage dense has none"),
        ("impact", {"b": 0.5}, "b is for BM25; first stage impact has none"),
        ("bm25", {"k1": -1}, "first stage bm25 option k1: .* greater than or equal to 0, got -1"),
        ("bm25", {"k1": math.inf}, "option k1: .* finite number"),
        ("fusion", {"b": 1.5}, "first stage fusion option b: .* less than or equal to 1, got 1.5"),
    ],
)
def test_options_that_a_first_stage_does_not_know_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        FirstStageOptions.read(method, options)
    assert FirstStageOptions.read("fusion", {"rrf_k": 9}) == FirstStageOptions(method="fusion", rrf_k=9)


def test_flags_of_another_first_stage_are_refused():
    with pytest.raises(ValueError, match="dense_index and encoder are for first stage dense, impact or fusion"):
        FirstStageOptions(encoder="minilm")
    with pytest.raises(ValueError, match="name the index of dense by index=FOLDER"):
        FirstStageOptions(method="dense", dense_index="x")
    with pytest.raises(ValueError, match="language is for BM25; first stage dense has none"):
        FirstStageOptions(method="dense", language="de")


def test_a_corpus_is_indexed_in_its_language(files, tmp_path):
    files["corpus"] = tmp_path / "corpus.tsv"
    files["corpus"].write_text("d1\tDie Häuser am Meer.\n", encoding="utf-8")
    files["topics"].write_text("q1\tHaus\n")
    files["qrels"].write_text("q1 0 d1 1\n")
    local, directory = LocalFiles(**files, offline=True), RunDirectory(tmp_path / "run")
    german = Sources(benchmark(), local, FirstStageOptions(language="de")).open(directory)
    assert found(german) == {"q1": ("d1",)}
    assert german.judgement.references == ()  # published for English
    english = Sources(benchmark(), local).open(directory)
    assert english.supply.identity != german.supply.identity
    assert found(english) == {"q1": ()}  # its own index is built anew
    there = LocalFiles(**files, index=str(tmp_path / "run" / "index"), offline=True)
    with pytest.raises(ValueError, match="language: there en, wanted de"):
        found(Sources(benchmark(), there, FirstStageOptions(language="de")).open(directory))


def test_a_prebuilt_dense_index_brings_the_encoder_of_pyserinis_reproductions(files, tmp_path):
    local = LocalFiles(topics=files["topics"], qrels=files["qrels"], index="msmarco-v1-passage.bge-base-en-v1.5")
    inputs = Sources(benchmark(), local, FirstStageOptions(method="dense")).open(RunDirectory(tmp_path))
    encoder = inputs.supply.identity["source"]["encoder"]
    assert (encoder["name"], encoder["pooling"], encoder["l2_norm"]) == ("BAAI/bge-base-en-v1.5", "cls", True)
    assert encoder["query_prefix"].startswith("Represent this sentence")
    assert dense("beir-v1.0.0-quora.bge-base-en-v1.5").describe()["encoder"]["query_prefix"] is None
    with pytest.raises(ValueError, match="which encoder its queries need is not known here"):
        dense("msmarco-v1-passage.tct_colbert")
    offline = LocalFiles(topics=files["topics"], qrels=files["qrels"], index=local.index, offline=True)
    with pytest.raises(FileNotFoundError, match="offline=True: index msmarco-v1-passage"):
        Sources(benchmark(), offline, FirstStageOptions(method="dense")).open(RunDirectory(tmp_path))


# ----------------------------------------------------------------------------------------------------------- exclusions


def test_documents_of_the_excluded_grade_are_gone_before_the_cutoff(files, tmp_path):
    local = LocalFiles(**files, offline=True)
    before = found(Sources(benchmark(), local).open(RunDirectory(tmp_path / "run")))["q1"]
    irrelevant = next(docid for docid in before[1:] if docid != "007")
    files["qrels"].write_text(f"q1 0 007 1\nq1 0 {before[0]} -100\nq1 0 {irrelevant} 0\nq2 0 d2 1\n")
    excluding = benchmark(first_stage={"exclude_grade": -100})
    inputs = Sources(excluding, local).open(RunDirectory(tmp_path / "run"))
    after = found(inputs)
    assert after["q1"][:2] == before[1:] and len(after["q1"]) == 3  # a fourth passage moved up
    assert before[0] not in after["q1"]
    assert inputs.supply.identity["first_stage"]["exclude_sha256"]


def test_excluded_documents_are_taken_out_of_saved_candidates_too(files, tmp_path):
    hits = (Candidate("d1", 2.0, "a"), Candidate("007", 1.0, "b"))
    write_candidates(tmp_path / "c.jsonl", [Ranking(Query(qid, "flea"), hits) for qid in ("q1", "q2")])
    (tmp_path / "out.txt").write_text("q1 d1\n")
    local = LocalFiles(candidates=tmp_path / "c.jsonl", qrels=files["qrels"], exclusions=tmp_path / "out.txt")
    inputs = Sources(benchmark(), local).open(RunDirectory(tmp_path / "run"))
    assert found(inputs) == {"q1": ("007",), "q2": ("d1", "007")}
    assert inputs.supply.identity["exclude_sha256"]


def test_the_querys_own_document_is_taken_out_of_saved_candidates_too(files, tmp_path):
    hits = (Candidate("q1", 2.0, "a"), Candidate("007", 1.0, "b"))
    write_candidates(tmp_path / "c.jsonl", [Ranking(Query(qid, "flea"), hits) for qid in ("q1", "q2")])
    local = LocalFiles(candidates=tmp_path / "c.jsonl", qrels=files["qrels"])
    removing = benchmark(first_stage={"remove_query": True})
    inputs = Sources(removing, local).open(RunDirectory(tmp_path / "run"))
    assert found(inputs) == {"q1": ("007",), "q2": ("q1", "007")}
    kept = Sources(benchmark(), local).open(RunDirectory(tmp_path / "run"))
    assert inputs.supply.identity == {**kept.supply.identity, "remove_query": True, "exclude_sha256": None}


@pytest.mark.parametrize("method", ["bm25", "dense"])
def test_a_first_stage_leaves_out_the_querys_own_document_and_the_excluded(
    files, tiny_index, encoder_folder, tmp_path, method
):
    files["topics"].write_text("007\tflea\n")
    files["qrels"].write_text("007 0 7 1\n")
    (tmp_path / "out.txt").write_text("007 d1\n")
    if method == "bm25":
        stage, local = FirstStageOptions(), LocalFiles(**files | {"corpus": None, "index": str(tiny_index)})
    else:
        stage, local = FirstStageOptions(method="dense", encoder=str(encoder_folder)), LocalFiles(**files)
    whole, removing = (benchmark(first_stage={"hits": 5, "remove_query": removed}) for removed in (False, True))
    before = found(Sources(whole, local, stage).open(RunDirectory(tmp_path)))["007"]
    without = replace(local, exclusions=tmp_path / "out.txt")
    after = found(Sources(removing, without, stage).open(RunDirectory(tmp_path)))["007"]
    assert {"007", "d1"} < set(before)
    assert after == tuple(docid for docid in before if docid not in {"007", "d1"})


def test_qrels_without_the_excluded_documents_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=r"leaves out documents of grade -100, and .*qrels\.txt has none; pass excl"):
        Sources(benchmark(first_stage={"exclude_grade": -100}), LocalFiles(**files)).open(
            RunDirectory(tmp_path / "run")
        )
    (tmp_path / "out.txt").write_text("q1 0 d1 1\n")
    with pytest.raises(ValueError, match=r"out\.txt:1: expected 'qid docid', got 4 columns"):
        Sources(benchmark(), LocalFiles(**files, exclusions=tmp_path / "out.txt")).open(RunDirectory(tmp_path / "run"))


# ----------------------------------------------------------------------------------------------------- facts that agree


@pytest.fixture
def collection(tmp_path, monkeypatch):
    """A collection that ir_datasets knows, and what the catalogue says about it."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets

    (tmp_path / "docs.tsv").write_text("007\tone flea\n7\ta cat\n8\ta dog\n")
    (tmp_path / "queries.tsv").write_text("1\tflea\n02\tcat\n")
    (tmp_path / "qrels.txt").write_text("1 0 007 2\n02 0 7 1\n")
    dataset = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"), queries_tsv=str(tmp_path / "queries.tsv"),
        qrels_trec=str(tmp_path / "qrels.txt"),
    )  # fmt: skip
    ir_datasets.registry.register("local/five", dataset)
    known = {"queries": 2, "grades": {"1": 1, "2": 1}}
    monkeypatch.setattr(facts, "catalogue", lambda: {"datasets": {"local/five": known}, "indexes": {}})
    yield known
    del ir_datasets.registry._registered["local/five"]


def test_any_collection_of_ir_datasets_runs_without_a_definition(collection, tmp_path):
    model = tiny_model(tmp_path / "model")
    arguments = ["run", "ir_datasets:local/five", "--model", str(model), "--heads", "all"]
    arguments += ["--first-stage-weight", "0.5", "--log-scores", "--option", "chat=plain"]
    arguments += ["--output", str(tmp_path / "run")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    described = manifest["identity"]["reranker"]
    assert (described["first_stage_weight"], described["logs"]) == (0.5, True)
    assert described["template"]["chat"]["name"] == "plain"
    assert manifest["identity"]["benchmark"]["name"] == "local-five"
    assert manifest["origins"]["qrels"] == "ir_datasets local/five"
    lines = (tmp_path / "run" / "first_stage.trec").read_text().splitlines()
    assert [line.split()[:3:2] for line in lines] == [["1", "007"], ["02", "7"]]


def test_a_folder_that_served_another_collection_gives_none_of_its_passages(collection, tmp_path, monkeypatch):
    import ir_datasets

    (tmp_path / "others.tsv").write_text("007\tone hen\n")
    others = ir_datasets.create_dataset(docs_tsv=str(tmp_path / "others.tsv"))
    monkeypatch.setitem(ir_datasets.registry._registered, "local/six", others)
    setting = Workspace(benchmark().first_stage, FirstStageOptions(), RunDirectory(tmp_path))
    first, second = (setting.fetched(Dataset("corpus", f"local/{name}", False).open) for name in ("five", "six"))
    assert [json.loads(line)["text"] for line in second.read_text().splitlines()] == ["one hen"]
    written = first.stat().st_mtime_ns
    again = setting.fetched(Dataset("corpus", "local/five", False).open)
    assert (again, again.stat().st_mtime_ns) == (first, written)


def test_files_of_ones_own_run_without_a_definition(files, tmp_path):
    given = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    arguments = ["run", *given, "--offline", "--model", str(tiny_model(tmp_path / "model")), "--heads", "all"]
    result = CliRunner().invoke(main, [*arguments, "--output", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "run" / "first_stage.trec").read_text().splitlines()
    assert {line.split()[0] for line in lines} == {"q1", "q2"}


def test_a_damaged_copy_of_a_collection_is_noticed(collection, tmp_path):
    collection["queries"] = 3
    definition = benchmark_of_dataset("local/five")
    with pytest.raises(ValueError, match=r"ir_datasets local/five: gave 2 queries, expected 3; the copy is damaged"):
        Sources(definition, LocalFiles()).open(RunDirectory(tmp_path / "run"))
    collection["grades"] = {"1": 2}
    with pytest.raises(ValueError, match=r"gave judgments \{'1': 1, '2': 1\} \(grade: count\), expected \{'1': 2\}"):
        Sources(definition, LocalFiles()).open(RunDirectory(tmp_path / "other"))
    assert not (tmp_path / "other" / "qrels.txt").exists()


@pytest.fixture
def kept_archive(tmp_path, monkeypatch):
    """BEIR's archive where ir_datasets keeps it, and what it has unpacked; the catalogue knows the archive."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    files = {"queries.jsonl": "{}", "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\t2\t1\n"}
    folder = tmp_path / "beir" / "scifact"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "source.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(f"scifact/{name}", text)
    (folder / "queries.json").write_text(files["queries.jsonl"])
    (folder / "test.qrels").write_text(files["qrels/test.tsv"])
    data = (folder / "source.zip").read_bytes()
    published = {"url": "https://beir", "bytes": len(data), "path": "beir/scifact/source.zip"}
    known = dict(facts.catalogue()["datasets"]["beir/scifact/test"])
    known["downloads"] = [published | {"md5": hashlib.md5(data).hexdigest()}]
    monkeypatch.setattr(facts, "catalogue", lambda: {"datasets": {"beir/scifact/test": known}, "indexes": {}})
    return folder


def test_what_ir_datasets_has_kept_is_checked_before_it_is_read(kept_archive, caplog):
    caplog.set_level("INFO")
    facts.check_copies("beir/scifact/test")
    assert "source.zip: equals https://beir (MD5 " in caplog.text
    facts.check_copies("beir/another")  # nothing is known, nothing can be compared


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "source.zip",
            r"source\.zip has 5 bytes and MD5 \w{32}, expected \d+ bytes and MD5 \w{32}; "
            r"it is not what https://beir gives",
        ),
        ("test.qrels", r"test\.qrels has 5 bytes that are no file of the archive; it is not what .*source\.zip gives"),
    ],
)
def test_a_kept_file_whose_checksum_differs_ends_the_run(kept_archive, tmp_path, name, message):
    (kept_archive / name).write_text("other")
    with pytest.raises(ValueError, match=f"ir_datasets beir/scifact/test: .*{message}: remove it and run again"):
        Sources(benchmark_of_dataset("beir/scifact/test"), LocalFiles()).open(RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run" / "qrels.txt").exists()


def test_files_of_ones_own_are_compared_by_number_where_no_content_is_pinned(files, caplog):
    caplog.set_level("INFO")
    fiqa = facts.catalogue()["datasets"]["beir/fiqa/test"]
    qrels = {"q1": {f"d{i}": 1 for i in range(fiqa["judgments"])}}
    queries = [Query(f"q{i}", "flea") for i in range(fiqa["queries"])]
    facts.compare_qrels("beir-fiqa", "beir/fiqa/test", qrels, "here")
    facts.compare_topics("beir-fiqa", "beir/fiqa/test", queries, "here")
    assert "here: qrels of beir-fiqa: judgments {'1': 1706} (grade: count), as many as the official ones" in caplog.text
    assert "here: topics of beir-fiqa: 648 queries, as many as the official ones" in caplog.text
    caplog.clear()
    facts.compare_qrels("beir-fiqa", "beir/fiqa/test", {"q1": {"d1": 2}}, "here")
    facts.compare_topics("beir-fiqa", "beir/fiqa/test", queries[:-1], "here")
    assert "found judgments {'2': 1} (grade: count), the official ones have judgments {'1': 1706}" in caplog.text
    assert "found 647 queries, the official ones have 648 queries: scores do not compare" in caplog.text
    caplog.clear()
    aops = facts.catalogue()["datasets"]["bright/aops"]["grades"]
    without = {"q1": {f"d{i}": 1 for i in range(aops["1"])}}
    facts.compare_qrels("bright-aops", "bright/aops", without, "here", without_grade=-100)
    facts.compare_qrels("own", None, without, "here")
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_other_judgments_in_the_right_number_are_told_where_content_is_pinned(caplog):
    facts.compare_qrels("beir-scifact", "beir/scifact/test", {"q1": {f"d{i}": 1 for i in range(339)}}, "here")
    assert "here: qrels differ from the pinned ones of beir-scifact" in caplog.text


def test_the_definition_made_for_a_dataset_equals_the_shipped_one():
    shipped = load_benchmark(ROOT / "pipelines" / "beir-scifact.yaml")
    assert benchmark_of_dataset("beir/scifact/test").first_stage == shipped.first_stage
    aops = load_benchmark(ROOT / "pipelines" / "extra" / "bright-aops.yaml")
    assert benchmark_of_dataset("bright/aops").first_stage == aops.first_stage


@pytest.mark.shared_data
def test_the_pins_hold_for_the_collections_at_hand(shared_data, caplog):
    qrels = read_qrels(shared_data / "scifact" / "qrels" / "test.tsv")
    queries = [query for query in read_topics(shared_data / "scifact" / "queries.jsonl") if query.qid in qrels]
    pinned = facts.pins()["beir-scifact"]
    assert (len(queries), facts.topics_sha256(queries)) == (pinned["topics"]["queries"], pinned["topics"]["sha256"])
    assert (339, facts.qrels_sha256(qrels)) == (pinned["qrels"]["judgments"], pinned["qrels"]["sha256"])
    caplog.set_level("INFO")
    facts.compare_qrels("beir-scifact", "beir/scifact/test", qrels, "here")
    assert "here: qrels equal the pinned ones of beir-scifact" in caplog.text
    next(iter(qrels.values()))["one more"] = 1
    facts.compare_qrels("beir-scifact", "beir/scifact/test", qrels, "here")
    assert "here: qrels differ from the pinned ones of beir-scifact" in caplog.text


@pytest.mark.parametrize("name", ["trec-news", "robust04", "signal1m", "bioasq"])
def test_a_benchmark_that_nobody_supplies_says_which_files_to_fetch_and_how_to_pass_them(name, files, tmp_path):
    wanted = load_benchmark(ROOT / "pipelines" / "extra" / f"beir-{name}.yaml")
    for given, flag in ((LocalFiles(), "qrels; pass qrels=FILE"), (LocalFiles(qrels=files["qrels"]), "topics; pass")):
        with pytest.raises(FileNotFoundError, match=f"beir-{name} names no ir_datasets entry for its {flag}") as caught:
            Sources(wanted, given).open(RunDirectory(tmp_path))
        for file in (f"topics.beir-v1.0.0-{name}.test.tsv.gz", f"qrels.beir-v1.0.0-{name}.test.txt"):
            assert file in str(caught.value)
        assert "--topics and --qrels" in str(caught.value) and "--corpus or --index" in str(caught.value)
