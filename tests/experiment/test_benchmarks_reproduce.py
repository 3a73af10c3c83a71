"""headrank reproduce, and a whole run with --offline on a kernel that gives it no socket."""

import json
import platform
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_encoder import tiny_encoder
from tiny_models import tiny_model

from headrank_pipeline.cli import main
from headrank_pipeline.experiment.reproduction import compare_runs, recorded_command
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_run, write_candidates, write_run

ROOT = Path(__file__).resolve().parents[2]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("again") / "model")


@pytest.fixture(scope="module")
def first(model, tmp_path_factory) -> Path:
    """A finished run, and the command that made it in its manifest."""
    folder = tmp_path_factory.mktemp("first")
    passages = ("Birds fly.", "A flea can live up to a year.", "Dogs sleep.")
    hits = tuple(Candidate(f"d{i}", 3.0 - i, passage) for i, passage in enumerate(passages))
    write_candidates(
        folder / "c.jsonl", [Ranking(Query(f"q{i}", f"how long does flea {i} live"), hits) for i in (1, 2)]
    )
    (folder / "qrels.txt").write_text("q1 0 d1 1\nq2 0 d2 1\n")
    (folder / "heads.json").write_text('{"name": "two", "heads": [[0, 1], [2, 3]]}')
    command = [
        "rerank", "--candidates", "c.jsonl", "--qrels", folder / "qrels.txt", "--model", model,
        "--heads", "heads.json", "--output", "run", "--overwrite",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["headrank", *map(str, command)])
        patch.chdir(folder)  # where the relative names of the command start
        result = invoke(*command)
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_a_run_is_made_again_from_its_manifest_and_is_equal(first, tmp_path):
    result = invoke("reproduce", first, "--output", tmp_path / "again")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].endswith("again: equal")
    assert (tmp_path / "again" / "run.trec").read_bytes() == (first / "run.trec").read_bytes()


def test_no_code_in_the_folder_that_a_manifest_names_is_run(first, tmp_path, monkeypatch):
    """Whoever hands a run over also writes the folder into its manifest, and may have put modules there."""
    copy = shutil.copytree(first.parent, tmp_path / "folder")
    trap = f"from pathlib import Path\nPath({str(tmp_path / 'sprung')!r}).touch()\nraise SystemExit(3)\n"
    (copy / "click.py").write_text(trap)
    manifest = json.loads((copy / "run" / "manifest.json").read_text())
    manifest["sessions"][0]["folder"] = str(copy)
    (copy / "run" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("PYTHONPATH", ".")  # a second way to that folder, beside Python's own
    result = invoke("reproduce", copy / "run", "--output", tmp_path / "again")
    assert not (tmp_path / "sprung").exists()
    assert result.exit_code == 0, result.output


def test_a_run_from_another_machine_says_which_folder_is_wanted(first, tmp_path, monkeypatch, capfd):
    copy = shutil.copytree(first, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sessions"][0]["folder"] = "/nowhere/else"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = invoke("reproduce", copy)
    assert (result.exit_code, "was made in /nowhere/else, which is not on this machine" in result.stderr) == (4, True)
    monkeypatch.chdir(tmp_path)  # holds no c.jsonl, which is told before a model is loaded
    assert invoke("reproduce", copy, "--here").exit_code == 4
    assert f"c.jsonl: no such candidates file (looked from {tmp_path})" in capfd.readouterr().err


def changed(first: Path, folder: Path, edit) -> Path:
    """A copy of the run with another run.trec and the measures that belong to it."""
    copy = shutil.copytree(first, folder / "changed")
    run = read_run(copy / "run.trec")
    edit(run)
    rankings = [Ranking.from_scores(Query(qid, "flea"), candidates) for qid, candidates in run.items()]
    write_run(copy / "run.trec", rankings, "headrank")
    return copy


def test_other_bytes_with_the_same_measures_are_near(first, tmp_path):
    def swap_the_irrelevant(run):
        d0, d2 = (next(c for c in run["q1"] if c.docid == docid) for docid in ("d0", "d2"))
        run["q1"] = [Candidate({"d0": "d2", "d2": "d0"}.get(c.docid, c.docid), c.score) for c in run["q1"]]
        assert d0.score != d2.score

    copy = changed(first, tmp_path, swap_the_irrelevant)
    found = compare_runs(first, copy)
    assert (found.verdict, found.reordered) == ("near", ("q1",))
    evaluation = json.loads((copy / "evaluation.json").read_text())
    evaluation["reranked"]["means"]["nDCG@10"] += 0.0005
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    assert compare_runs(first, copy).verdict == "near"
    (copy / "evaluation.json").unlink()  # other orders without measures to compare
    assert compare_runs(first, copy).verdict == "different"


def test_a_query_that_only_one_of_the_runs_has_is_told(first, tmp_path):
    copy = changed(first, tmp_path, lambda run: run.pop("q2"))
    assert compare_runs(first, copy).reordered == compare_runs(copy, first).reordered == ("q2",)


def test_other_measures_are_different_and_the_cause_is_named(first, tmp_path):
    copy = changed(first, tmp_path, lambda run: None)
    evaluation = json.loads((copy / "evaluation.json").read_text())
    evaluation["reranked"]["means"]["nDCG@10"] += 0.01
    (copy / "evaluation.json").write_text(json.dumps(evaluation))
    (copy / "run.trec").write_text((copy / "run.trec").read_text().replace("headrank", "other"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["identity"]["depth"] = 7
    (copy / "manifest.json").write_text(json.dumps(manifest))
    found = compare_runs(first, copy)
    assert found.verdict == "different"
    assert found.configuration == (("depth", 100, 7),)


def test_what_cannot_be_made_again_is_named(first, tmp_path):
    assert invoke("reproduce", tmp_path).exit_code == 4
    copy = shutil.copytree(first, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["sessions"][0]["command"] = "headrank run --all --model m"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="only runs of `headrank run BENCHMARK` and `headrank rerank`"):
        recorded_command(copy)
    (copy / "run.trec").unlink()
    with pytest.raises(ValueError, match=r"holds no run\.trec, so it is not finished"):
        recorded_command(copy)


@pytest.mark.parametrize("written", ["--output run", "--output=run"])
def test_where_it_wrote_is_not_part_of_the_command(first, tmp_path, written):
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    manifest = (copy / "manifest.json").read_text()
    assert "--output run" in manifest
    (copy / "manifest.json").write_text(manifest.replace("--output run", written))
    words = recorded_command(copy)
    assert words[0] == "rerank" and words[-2:] == ["--heads", "heads.json"] and "run" not in words


# -------------------------------------------------------------------------------------------------------------- offline

# A seccomp filter, which all threads and child processes inherit, Java's included: socket(2) with AF_INET or AF_INET6
# fails with EAFNOSUPPORT, so that none can be open. Java and urllib3 ask for one when they are loaded, to learn whether
# the machine has IPv6; that they ask cannot be forbidden. What would be a use of the network in Python (to resolve a
# name, connect, send) ends the process.
NO_SOCKETS = """
import ctypes, os, struct, sys
number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
def step(code, true, false, value):
    return struct.pack("HBBI", code, true, false, value)
program = b"".join([
    step(0x20, 0, 0, 0),            # load the number of the system call
    step(0x15, 0, 4, number),       # another one: allow
    step(0x20, 0, 0, 16),           # load its first argument
    step(0x15, 1, 0, 2),            # AF_INET: refuse
    step(0x15, 0, 1, 10),           # not AF_INET6: allow
    step(0x06, 0, 0, 0x50000 | 97), # refuse with EAFNOSUPPORT
    step(0x06, 0, 0, 0x7FFF0000),   # allow
])
buffer = ctypes.create_string_buffer(program, len(program))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
filter = Program(len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter), 0, 0):
    sys.exit(77)  # this kernel or container has no seccomp
"""
NO_PYTHON_NETWORK = """
def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto", "socket.sendmsg"):
        sys.stderr.write(f"the network was used: {event} {arguments}\\n")
        sys.stderr.flush()
        os._exit(78)
sys.addaudithook(refuse)
"""


@pytest.fixture(scope="module")
def without_sockets(fresh_python):
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the filter is for Linux on x86-64 or arm64")
    control = fresh_python(NO_SOCKETS + "import socket\nsocket.socket(socket.AF_INET6)\n")
    if control.returncode == 77:
        pytest.skip("this kernel or container does not allow seccomp filters")
    assert "Address family not supported by protocol" in control.stderr
    asking = "import socket\nsocket.getaddrinfo('localhost', 80)\n"
    assert fresh_python(NO_SOCKETS + NO_PYTHON_NETWORK + asking).returncode == 78
    return lambda code: fresh_python(NO_SOCKETS + NO_PYTHON_NETWORK + code)


@pytest.mark.slow
def test_a_whole_offline_run_opens_no_socket(without_sockets, tiny_corpus, model, tmp_path):
    definition = (ROOT / "pipelines" / "beir-scifact.yaml").read_text(encoding="utf-8")
    (tmp_path / "mini.yaml").write_text(definition.replace("name: beir-scifact", "name: mini"))
    (tmp_path / "topics.tsv").write_text("q1\tflea\n")
    (tmp_path / "qrels.txt").write_text("q1 0 007 1\n")
    arguments = [
        "run", tmp_path / "mini.yaml", "--offline", "--corpus", tiny_corpus, "--topics", tmp_path / "topics.tsv",
        "--qrels", tmp_path / "qrels.txt", "--model", model, "--heads", "all", "--output", tmp_path / "run",
        "--first-stage", "fusion",
        "--first-stage-option", f"encoder={tiny_encoder(tmp_path / 'encoder')}",
    ]  # fmt: skip
    done = without_sockets(
        f"sys.argv = ['headrank', *{[str(argument) for argument in arguments]!r}]\n"
        "from headrank_pipeline.cli import main\nmain()\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / "run" / "run.trec").read_text().splitlines()) == 5
