"""What a benchmark needs, and many benchmarks in one go."""

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from run_directories import Scripted, graded_candidates
from tiny_models import tiny_model

from headrank_pipeline.cli import main
from headrank_pipeline.experiment.batches import supply_from_file
from headrank_pipeline.experiment.benchmark import (
    benchmark_of_dataset,
    benchmark_of_files,
    find_benchmark,
    load_benchmark,
)
from headrank_pipeline.experiment.facts import catalogue
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.experiment.sources import LocalFiles, Sources, to_download
from headrank_pipeline.experiment.stages import FirstStageOptions
from headrank_pipeline.experiment.suite import Row, Suite, local_files, run_suite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"

# Sockets are refused below Python's socket module as well: the audit event is raised for every one that is opened.
WITHOUT_SOCKETS = """
import sys
def refuse(event, args):
    if event.startswith("socket."):
        raise RuntimeError(f"a socket was used: {event} {args}")
sys.addaudithook(refuse)
from headrank_pipeline.cli import main
"""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "ir_datasets"))
    monkeypatch.setenv("PYSERINI_CACHE", str(tmp_path / "pyserini"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


# ------------------------------------------------------------------------------------------------------------ catalogue


def states(name: str, **local: object) -> dict[str, str]:
    found = Sources(load_benchmark(PIPELINES / f"{name}.yaml"), LocalFiles(**local)).needs()
    return {need.what: need.state for need in found}


def test_what_was_downloaded_before_is_cached(empty_caches):
    assert states("beir-scifact") == {"topics, qrels": "download", "index": "download"}
    facts = catalogue()
    (empty_caches / "pyserini" / "indexes" / facts["indexes"]["beir-v1.0.0-scifact.flat"]["folder"]).mkdir(parents=True)
    for file in facts["datasets"]["beir/scifact/test"]["ready"]:
        path = empty_caches / "ir_datasets" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert states("beir-scifact") == {"topics, qrels": "cached", "index": "cached"}


def test_topics_and_qrels_of_two_downloads_are_told_apart(empty_caches):
    facts = catalogue()["datasets"]["msmarco-passage/trec-dl-2019/judged"]["downloads"]
    [qrels] = [file for file in facts if "qrels" in file["url"]]
    (empty_caches / "ir_datasets" / "downloads").mkdir(parents=True)
    (empty_caches / "ir_datasets" / "downloads" / qrels["md5"]).touch()
    assert states("trec-dl-2019") == {"topics": "download", "qrels": "cached", "index": "download"}


def test_local_files_replace_what_is_named(tmp_path):
    for name in ("corpus.jsonl", "queries.jsonl", "q.tsv"):
        (tmp_path / name).touch()
    found = states("beir-scifact", corpus=tmp_path / "corpus.jsonl", qrels=tmp_path / "q.tsv")
    assert found == {"topics": "local", "qrels": "local", "corpus": "local"}
    assert states("beir-scifact", candidates=tmp_path / "nowhere", qrels=tmp_path / "q.tsv")["candidates"] == "missing"
    assert states("extra/beir-trec-news")["qrels"] == "missing"


def test_what_a_first_stage_of_vectors_downloads_is_counted_with_the_passages():
    dl19 = load_benchmark(PIPELINES / "trec-dl-2019.yaml")
    stage, name = FirstStageOptions(method="dense"), "msmarco-v1-passage.bge-base-en-v1.5"
    *_, index, texts = found = Sources(dl19, LocalFiles(index=name), stage).needs()
    assert (index.name, index.size, texts.what, texts.name) == (name, 25_217_210_007, "texts", "msmarco-v1-passage")
    fused = Sources(dl19, LocalFiles(), FirstStageOptions(method="fusion", dense_index=name)).needs()
    assert {need.place for need in fused} == {need.place for need in found}  # BM25's index is that of the passages
    *_, unknown, _ = Sources(dl19, LocalFiles(index="msmarco-v1-passage.ance"), stage).needs()
    assert to_download([found]) == (27_388_160_120, 0)
    assert to_download([found, [unknown]]) == (27_388_160_120, 1)


def test_documents_of_a_dataset_without_an_index_are_a_download(empty_caches):
    *_, documents = found = Sources(benchmark_of_dataset("beir/fiqa/test"), LocalFiles()).needs()
    assert (documents.what, documents.state, to_download([found])) == ("corpus", "download", (17_948_027, 0))
    *_, documents = found = Sources(benchmark_of_dataset("vaswani"), LocalFiles()).needs()
    assert (documents.what, documents.size, to_download([found])) == ("corpus", None, (0, 2))


def test_the_table_lists_queries_documents_and_sizes(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the definitions are part of the package
    result = invoke("benchmarks")
    [line] = [line for line in result.stdout.splitlines() if line.startswith("beir-scifact")]
    assert line.endswith("  download 8.8 MB")
    assert all(text in line for text in ("300", "5,183", "bm25 k1=0.9 b=0.4 hits=100", "download 2.8 MB"))
    # FEVER and Climate-FEVER, DL19 and DL20 among them; the last two share one index, which counts once.
    assert "14 benchmarks; to download in all: 21.7 GB" in result.stdout
    assert "nano-beir             13  NanoBEIR" in result.stdout
    every = json.loads(invoke("benchmarks", "--suite", "all", "--json").stdout)
    assert len(every) == 63
    [dl22] = [known for known in every if known["name"] == "trec-dl-2022"]
    assert (dl22["suites"], dl22["queries"], dl22["docs"]) == (["all", "trec-dl", "blitzrank-14"], 76, 138_364_198)


def test_what_is_listed_is_named_as_what_is_run(mini):
    listed = invoke("benchmarks", "ir_datasets:nano-beir/scifact", "beir-nq", mini / "pipelines").stdout
    assert [line.split()[0] for line in listed.splitlines()[1:6]] == [
        "nano-beir-scifact", "beir-nq", "beir-one", "beir-two", "three",
    ]  # fmt: skip
    assert listed.splitlines()[1].split()[1:3] == ["50", "2,919"]
    for flags, message in (
        (["--suite", "bright", "beir-nq"], "--suite bright and beir-nq both say what is listed; give one"),
        (["--extra"], "--extra is no flag any more; write --suite all"),
        (["--pipelines", "x"], "--pipelines is no flag any more; write the folder"),
    ):
        result = invoke("benchmarks", *flags)
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.stderr


def test_a_folder_without_definitions_is_named(tmp_path):
    result = invoke("benchmarks", tmp_path / "nowhere")
    assert (result.exit_code, "nowhere: no such benchmark file" in result.stderr) == (4, True)
    (tmp_path / "empty").mkdir()
    result = invoke("benchmarks", tmp_path / "empty")
    assert (result.exit_code, "empty: holds no benchmark definitions (*.yaml)" in result.stderr) == (4, True)


def test_a_benchmark_goes_by_its_name_or_by_a_file(tmp_path, monkeypatch):
    assert find_benchmark("beir-nq") == find_benchmark(str(PIPELINES / "beir-nq.yaml"))
    assert find_benchmark("bright-aops") == load_benchmark(PIPELINES / "extra" / "bright-aops.yaml")
    with pytest.raises(FileNotFoundError, match=r"'beir-scfact': neither a file nor .*did you mean 'beir-scifact'"):
        find_benchmark("beir-scfact")
    with pytest.raises(FileNotFoundError, match="headrank benchmarks --suite all lists them"):
        find_benchmark("zzz")
    with pytest.raises(FileNotFoundError, match="no such benchmark file"):
        find_benchmark("beir-nq.yaml")
    monkeypatch.chdir(tmp_path)
    own = (PIPELINES / "beir-nq.yaml").read_text(encoding="utf-8").replace("beir-nq\n", "mine\n", 1)
    Path("beir-nq").write_text(own, encoding="utf-8")
    assert find_benchmark("beir-nq").name == "mine"


def test_commands_name_what_ships_and_the_files_of_others(mini):
    def named(*arguments):
        shown = json.loads(invoke("run", *arguments, "--dry-run", "--json").stdout)
        return [run["command"].split()[2] for run in shown["runs"]]

    assert {"beir-scifact", "trec-dl-2020"} < set(named("--suite", "main"))
    assert str(mini / "pipelines" / "beir-one.yaml") in named(mini / "pipelines")


# ------------------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_of_all_opens_no_socket_and_shows_every_command_and_size(fresh_python):
    done = fresh_python(
        WITHOUT_SOCKETS
        + """
sys.argv = ["headrank", "run", "--suite", "main", "--dry-run", "--output", "runs/paper"]
import time
started = time.perf_counter()
try:
    main()
finally:
    print(time.perf_counter() - started, file=sys.stderr)
    print(sorted({"torch", "jnius", "ir_datasets"} & set(sys.modules)), file=sys.stderr)
"""
    )
    assert done.returncode == 0, done.stderr
    seconds, heavy = done.stderr.splitlines()[-2:]
    assert float(seconds) < 10
    assert heavy == "[]"
    commands = [line for line in done.stdout.splitlines() if line.startswith("headrank run")]
    assert len(commands) == 14
    assert "headrank run beir-fiqa --output runs/paper/beir-fiqa" in commands
    assert done.stdout.count("  index         download") == 14
    assert "14 runs; to download in all: 21.7 GB" in done.stdout


# ------------------------------------------------------------------------------------------------------------- the runs


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("suite") / "model")


@pytest.fixture
def mini(tmp_path) -> Path:
    """Three definitions, and data for two of them: one in a folder without the prefix."""
    text = (PIPELINES / "beir-scifact.yaml").read_text(encoding="utf-8")
    passages = ("Birds fly.", "A flea can live up to a year.", "Dogs sleep.")
    hits = tuple(Candidate(f"d{i}", 3.0 - i, passage) for i, passage in enumerate(passages))
    (tmp_path / "pipelines").mkdir()
    for name, folder in (("beir-one", "one"), ("beir-two", "beir-two"), ("three", None)):
        definition = text.replace("name: beir-scifact", f"name: {name}").replace(
            "collection:", "group: pair\ncollection:"
        )
        (tmp_path / "pipelines" / f"{name}.yaml").write_text(
            definition if folder else definition.replace("group: pair\n", "")
        )
        if folder:
            home = tmp_path / "data" / folder
            home.mkdir(parents=True)
            write_candidates(home / "candidates.jsonl", [Ranking(Query("q1", "how long does a flea live"), hits)])
            (home / "qrels.txt").write_text("q1 0 d1 1\n")
    return tmp_path


def arguments(mini: Path, model: Path) -> list[object]:
    return [
        "run", mini / "pipelines", "--data", mini / "data", "--offline",
        "--output", mini / "out", "--model", model, "--heads", "all", "--batch-size", 4,
    ]  # fmt: skip


def test_all_are_run_what_is_missing_is_named_and_a_second_call_continues(mini, model):
    result = invoke(*arguments(mini, model))
    assert result.exit_code == 7, result.output
    summary = json.loads((mini / "out" / "summary.json").read_text())
    assert [(row["name"], row["status"]) for row in summary["benchmarks"]] == [
        ("beir-one", "done"), ("beir-two", "done"), ("three", "missing"),
    ]  # fmt: skip
    assert "pass qrels=FILE" in summary["benchmarks"][2]["message"]
    # BM25 has the one relevant passage on rank 2: 1 / log2(3).
    assert summary["means"]["pair"]["first_stage"]["nDCG@10"] == pytest.approx(0.6309, abs=1e-4)
    assert summary["means"]["pair"]["benchmarks"] == "2 of 2"
    assert summary["means"]["all"]["benchmarks"] == "0 of 1"
    assert all(summary["means"]["all"][part] == {} for part in ("first_stage", "reranked", "best", "sets"))
    assert summary["benchmarks"][0]["best"]["nDCG@10"] == 1.0
    assert "R@100 cannot see reranking on 2 of 2 sets, where no order of the candidates changes it: " in result.stdout
    assert "mean of pair (2 of 2)" in result.stdout and "three: missing: --offline: the qrels" in result.stdout

    before = {
        path: path.read_bytes() for path in (mini / "out").rglob("scores.jsonl")
    }  # times of reranking are in them
    again = invoke(*arguments(mini, model))
    assert again.stdout == result.stdout
    assert {path: path.read_bytes() for path in (mini / "out").rglob("scores.jsonl")} == before != {}


def test_a_suite_is_run_by_its_name_with_a_row_for_every_set(mini, model):
    for name in ("multihop-musique", "hotpotqa"):
        (mini / "data" / name).symlink_to(mini / "data" / "one")
    result = invoke(
        "run", "--suite", "multihop", "--data", mini / "data", "--offline", "--output", mini / "out",
        "--model", model, "--heads", "all",
    )  # fmt: skip
    assert result.exit_code == 7, result.output
    rows = json.loads((mini / "out" / "summary.json").read_text())["benchmarks"]
    assert [(row["name"], row["status"]) for row in rows] == [
        ("multihop-musique", "done"), ("multihop-2wikimultihopqa", "missing"), ("beir-hotpotqa", "done"),
    ]  # fmt: skip
    assert list(rows[0]["first_stage"]) == ["nDCG@10", "R@5", "R@2"]
    assert "mean of all (2 of 3)" in result.stdout


@pytest.mark.shared_data
def test_dl19_has_its_published_first_stage_score(shared_data, model, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "trec-dl-2019").symlink_to(shared_data / "dl19")
    result = invoke(
        "run", PIPELINES / "trec-dl-2019.yaml", PIPELINES / "trec-dl-2020.yaml", "--offline",
        "--data", tmp_path / "data", "--model", model, "--heads", "all", "--depth", 1, "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 7, result.output
    done, missing = json.loads((tmp_path / "out" / "summary.json").read_text())["benchmarks"]
    assert (done["queries"], round(done["first_stage"]["nDCG@10"], 4)) == (43, 0.5058)
    assert done["checks"] == {"nDCG@10": "OK"}
    assert missing["status"] == "missing"


def test_each_run_records_the_command_that_runs_it_alone(mini, model):
    invoke(*arguments(mini, model))
    manifest = json.loads((mini / "out" / "beir-one" / "manifest.json").read_text())
    command = manifest["sessions"][0]["command"]
    assert "--suite" not in command and "--batch-size 4" in command
    shown = invoke(*arguments(mini, model), "--dry-run").stdout
    assert command in shown
    alone = invoke(*shlex.split(command)[1:])
    assert alone.exit_code == 0, alone.output  # the same directory: it continues the run, with nothing left to do


def test_a_dry_run_repeats_the_name_of_the_embedded_model_as_it_was_given():
    shown = invoke("run", PIPELINES / "beir-fiqa.yaml", "--model", "embedded", "--dry-run").stdout
    assert "--output runs/beir-fiqa/headrank-embedded --model embedded" in shown


def test_files_of_one_benchmark_are_refused_for_several(mini, model):
    result = invoke(*arguments(mini, model), "--qrels", mini / "q.txt")
    assert result.exit_code == 2
    assert "--qrels belongs to one benchmark; for several give --data FOLDER" in result.stderr


def test_benchmarks_of_one_name_are_refused_before_anything_is_loaded(mini):
    one = mini / "pipelines" / "beir-one.yaml"
    changed = mini / "shallow.yaml"
    changed.write_text(one.read_text().replace("depth: 100", "depth: 1"))
    result = invoke("run", one, changed, "--model", mini / "nowhere", "--data", mini / "data")
    assert result.exit_code == 2
    assert f"{one} and {changed} both define a benchmark named 'beir-one'; rename one" in " ".join(
        result.stderr.split()
    )


def test_a_folder_of_collections_serves_a_single_benchmark_too(mini, model, tmp_path):
    def shown(*arguments):
        return invoke("run", mini / "pipelines" / "beir-one.yaml", *arguments, "--dry-run", "--json")

    [run] = json.loads(shown("--data", mini / "data").stdout)["runs"]
    assert {need["state"] for need in run["needs"]} == {"local"}
    assert f"--qrels {mini / 'data'}" in run["command"]
    for flags, status, message in (
        (["--data", tmp_path / "nowhere"], 4, "nowhere: no such folder of collections"),
        (["--data", tmp_path], 4, "expected a folder beir-one in it (beir- may be left out)"),
        (["--data", mini / "data", "--qrels", "q"], 2, "--qrels and --data both say where the collection is"),
        (["--pipelines", mini], 2, "--pipelines is no flag any more; write the folder"),
        (["--all"], 2, "--all is no flag any more; write --suite main"),
        (["--suite", "bright"], 2, "both say what is run; give one"),
    ):
        result = shown(*flags)
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (status, True), result.stderr


def test_a_definition_with_fields_is_run_among_several(mini, model):
    path = mini / "pipelines" / "beir-one.yaml"
    multifield = path.read_text().replace("fields: null", "fields: {contents: 1.0, title: 1.0}")
    assert "contents: 1.0" in multifield
    path.write_text(multifield)
    result = invoke(*arguments(mini, model))
    assert result.exit_code == 7, result.output
    first = json.loads((mini / "out" / "summary.json").read_text())["benchmarks"][0]
    assert (first["name"], first["status"]) == ("beir-one", "done")


def test_topics_that_can_come_from_nowhere_are_told_before_a_model_is_loaded(mini, tmp_path):
    corpus, qrels = tmp_path / "corpus.jsonl", mini / "data" / "beir-two" / "qrels.txt"
    corpus.write_text('{"_id": "d1", "text": "a"}\n')
    result = invoke("run", "--corpus", corpus, "--qrels", qrels, "--model", tmp_path / "nowhere", "--heads", "all")
    assert result.exit_code == 4
    assert "names no ir_datasets entry for its topics; pass --topics FILE" in result.stderr


def test_an_index_of_ones_own_needs_no_corpus_beside_it(tiny_index, model, tmp_path):
    (tmp_path / "topics.tsv").write_text("q1\tflea\n")
    (tmp_path / "qrels.txt").write_text("q1 0 d1 1\n")
    files = ("--topics", tmp_path / "topics.tsv", "--qrels", tmp_path / "qrels.txt", "--output", tmp_path / "out")
    result = invoke("run", "--offline", "--index", tiny_index, *files, "--model", model, "--heads", "all")
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["identity"]["benchmark"] == {"name": "index", "version": "1"}
    assert manifest["origins"]["index"] == str(tiny_index)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (
            ["--first-stage", "dense", "--first-stage-option", "encoder=e"],
            "--first-stage dense, --first-stage-option encoder=e",
        ),
        (["--first-stage-option", "language=de"], "--first-stage-option language=de"),
        (["--first-stage-option", "texts=x"], "--first-stage-option texts=x"),
    ],
)
def test_a_first_stage_is_not_chosen_beside_saved_candidates(mini, model, tmp_path, flags, named):
    home = mini / "data" / "beir-two"
    definition = mini / "pipelines" / "beir-two.yaml"
    files = ["--candidates", home / "candidates.jsonl", "--qrels", home / "qrels.txt"]
    result = invoke("run", definition, *files, *flags, "--model", tmp_path / "nowhere", "--heads", "all")
    assert (result.exit_code, f"taken as they are: drop {named}\n" in result.stderr) == (5, True), result.stderr
    result = invoke(*arguments(mini, model), *flags)  # of several, the summary tells
    assert "taken as they are" in result.stderr + result.stdout


def test_a_language_without_analyzer_is_told_before_a_model_is_loaded(mini, tmp_path):
    result = invoke(
        "run",
        mini / "pipelines" / "beir-two.yaml",
        "--first-stage-option",
        "language=xx",
        "--model",
        tmp_path / "nowhere",
    )
    assert (result.exit_code, "language 'xx': Anserini has no analyzer" in result.stderr) == (5, True), result.stderr


def test_a_collection_without_a_definition_retrieves_as_many_as_are_reranked():
    shown = invoke("run", "ir_datasets:beir/scifact/test", "--depth", 200, "--model", "embedded", "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert benchmark_of_dataset("beir/scifact/test", depth=200).first_stage.hits == 200
    assert benchmark_of_dataset("beir/scifact/test", depth=20).first_stage.hits == 100


@pytest.mark.parametrize(
    ("depth", "message"),
    [(0, "0 is not in the range x>=1"), (101, "--depth 101 is above the 100 hits of beir-scifact's first stage")],
)
def test_a_depth_that_cannot_be_reranked_is_refused_before_anything_is_loaded(tmp_path, depth, message):
    result = invoke("run", PIPELINES / "beir-scifact.yaml", "--model", tmp_path / "nowhere", "--depth", depth)
    assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.stderr


def test_saved_candidates_may_be_deeper_than_the_first_stage(mini, model):
    home = mini / "data" / "one"
    result = invoke(
        "run", mini / "pipelines" / "beir-one.yaml", "--candidates", home / "candidates.jsonl",
        "--qrels", home / "qrels.txt", "--output", mini / "deep", "--model", model, "--heads", "all", "--depth", 200,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads((mini / "deep" / "manifest.json").read_text())["identity"]["depth"] == 200


def test_a_benchmark_or_all_must_be_named(model):
    result = invoke("run", "--model", model)
    assert (result.exit_code, "or a suite (--suite main)" in " ".join(result.stderr.split())) == (2, True)
    result = invoke("run", "--suite", "bigbright", "--model", model)
    assert (result.exit_code, "no such suite; did you mean 'bright'? suites: main, all" in result.stderr) == (4, True)
    result = invoke("run", PIPELINES / "beir-scifact.yaml")
    assert (result.exit_code, "Missing option '--model'" in result.stderr) == (2, True)


def test_a_corpus_is_preferred_to_saved_candidates(tmp_path):
    home = tmp_path / "scifact"
    (home / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl.gz", "queries.jsonl", "qrels/test.tsv", "candidates.jsonl"):
        (home / name).touch()
    found = local_files(tmp_path, "beir-scifact", offline=True)
    assert (found.corpus, found.topics, found.qrels, found.candidates) == (
        home / "corpus.jsonl.gz", home / "queries.jsonl", home / "qrels" / "test.tsv", None,
    )  # fmt: skip


def test_the_summary_is_up_to_date_after_each_benchmark_and_says_which_is_partial(tmp_path):
    candidates, qrels, grades = graded_candidates(tmp_path, 3, 4)
    summary, before = tmp_path / "summary.json", []

    def run_one(benchmark):
        known = json.loads(summary.read_text())["benchmarks"] if summary.exists() else []
        before.append([row["status"] for row in known])
        reranker = Scripted(grades, failing=frozenset({"q1"} if benchmark.name == "one" else ()))
        supply, judgement = supply_from_file(candidates), Judgement(qrels=qrels)
        return execute(RunPlan(output=tmp_path / benchmark.name, reranker=reranker, supply=supply, judgement=judgement))

    both = [(benchmark_of_files(name), tmp_path / name) for name in ("one", "two")]
    assert [row.status for row in run_suite(both, summary, run_one).rows] == ["partial", "done"]
    assert before == [[], ["partial"]]


def test_a_benchmark_that_is_not_finished_is_in_no_mean():
    rows = [
        Row(name="a", group=None, status="done", reranked={"nDCG@10": 0.5}),
        Row(name="b", group=None, status="partial", reranked={"nDCG@10": 0.9}),
    ]
    mean = Suite(rows).means()["all"]
    assert (mean["benchmarks"], mean["first_stage"], mean["reranked"]) == ("1 of 2", {}, {"nDCG@10": 0.5})
