"""Several workers against one process, with the runner's small reranker; Ray is started once for the module."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner
from test_runner import TESTS, Interrupting, Overlap, manifest_of, plan, ranking_of

from headrank_pipeline.cli import main
from headrank_pipeline.experiment.runner import execute
from headrank_pipeline.experiment.scaleout import _Answer, workers
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra 'ray')")


@pytest.fixture
def candidates(tmp_path) -> Path:
    """Nine queries, the fourth of which has no candidates."""
    rankings = [ranking_of(f"q{i}", f"life of flea number {'x' * i}") for i in range(9)]
    rankings[3] = Ranking(Query("q3", "nothing found"))
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, rankings)
    return path


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    """Ray, started once: the workers of each test run in it."""
    with workers(Overlap, 2, device="cpu"):
        yield


def rerank(candidates: Path, output: Path, build=Overlap, count: int = 2, **changes):
    with workers(build, count, device="cpu") as started:
        return execute(plan(candidates, output, started, **changes))


def journal_of(directory: Path) -> list[dict]:
    """The lines by qid: workers write them in the order in which batches are done."""
    lines = sorted(map(json.loads, (directory / "scores.jsonl").read_text().splitlines()), key=lambda line: line["qid"])
    return [{key: value for key, value in line.items() if key not in ("seconds", "digest")} for line in lines]


def same_run(first: Path, second: Path) -> bool:
    return all((first / name).read_bytes() == (second / name).read_bytes() for name in ("run.trec", "first_stage.trec"))


@needs_ray
def test_two_workers_write_the_files_of_one_process(tmp_path, running_ray):
    from test_endpoint import completion, serving  # imports transformers, which each worker would import with this file

    rankings = [ranking_of(f"q{i}") for i in range(6)]
    rankings[2] = Ranking(Query("q2", "no text"), (Candidate("d1", 2.0, "a flea"), Candidate("d2", 1.0)))
    rankings[3] = Ranking(Query("q3", "nothing found"))
    write_candidates(tmp_path / "candidates.jsonl", rankings)
    told = []
    with serving(lambda asked, _: (200, completion("[3] > [1]"))) as server:
        command = ["rerank", "--candidates", str(tmp_path / "candidates.jsonl"), "--batch-size", "2"]
        command += ["--system", "rankgpt", "--option", f"endpoint={server.url}", "--model", "any", "--output"]
        for count in (1, 2):
            done = CliRunner().invoke(main, [*command, str(tmp_path / f"run{count}"), "--workers", str(count)])
            assert done.exit_code == 7, done.output
            told.append([line.split(" ", 1)[1] for line in done.output.splitlines() if " WARNING " in line])
    assert told[0] == told[1]
    assert any(line.startswith("WARNING failed: qid q2") for line in told[1])
    one, two = tmp_path / "run1", tmp_path / "run2"
    assert same_run(one, two)
    assert journal_of(one) == journal_of(two)
    first, second = manifest_of(one), manifest_of(two)
    assert first["identity"] == second["identity"]
    assert [manifest["sessions"][0]["workers"] for manifest in (first, second)] == [1, 2]
    assert list(second["totals"]["failed"]) == ["q2"]
    for name in ("notes", "failed", "queries_without_candidates"):
        assert first["totals"][name] == second["totals"][name]
    session = second["sessions"][0]
    assert session["queries"] == first["sessions"][0]["queries"] == 5  # q2 failed after it had been read
    assert second["totals"]["queries_per_second"] == pytest.approx(5 / session["seconds"], rel=0.01)
    assert second["totals"]["latency_p50_seconds"] < session["seconds"] / 4  # of the reranker, not of the way there
    assert session["peak_memory_bytes"] > 2**20


@dataclass
class Dying(Overlap):
    """Kills its own process at a query, as the kernel does when memory runs out; once, where there is a marker."""

    marker: Path | None = None

    def rerank_batch(self, rankings):
        if any(ranking.query.qid == "q6" for ranking in rankings) and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rerank_batch(rankings)


@needs_ray
def test_a_worker_killed_in_the_middle_costs_nothing_but_time(candidates, tmp_path, running_ray, capfd):
    execute(plan(candidates, tmp_path / "one"))
    marker = tmp_path / "died"
    rerank(candidates, tmp_path / "two", partial(Dying, marker=marker))
    assert marker.exists()
    assert same_run(tmp_path / "one", tmp_path / "two")
    assert journal_of(tmp_path / "one") == journal_of(tmp_path / "two")
    assert capfd.readouterr().out == ""  # results go there, and Ray would tell there of the death

    rerank(candidates, tmp_path / "two", partial(marked, tmp_path / "started"))
    assert len(list((tmp_path / "started").iterdir())) == 1  # nothing is open: only the one that describes itself


@dataclass
class WaitingForAnother(Overlap):
    """Holds the first query until the journal has a line of another batch."""

    journal: Path = Path()

    def rerank_batch(self, rankings):
        deadline = time.monotonic() + 60
        if any(ranking.query.qid == "q0" for ranking in rankings):
            while not (self.journal.exists() and self.journal.read_bytes()):
                if time.monotonic() > deadline:
                    raise TimeoutError("the others waited for the first")
                time.sleep(0.05)
        return super().rerank_batch(rankings)


@needs_ray
def test_no_batch_waits_for_one_before_it(candidates, tmp_path, running_ray):
    outcome = rerank(
        candidates, tmp_path / "two", partial(WaitingForAnother, journal=tmp_path / "two" / "scores.jsonl")
    )
    assert not outcome.failed
    execute(plan(candidates, tmp_path / "one"))
    assert same_run(tmp_path / "one", tmp_path / "two")


@needs_ray
@pytest.mark.slow
def test_workers_continue_what_one_process_began_and_the_other_way_round(candidates, tmp_path, running_ray):
    execute(plan(candidates, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        execute(plan(candidates, tmp_path / "run", Interrupting()))
    written = (tmp_path / "run" / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["qid"] for line in written] == ["q0", "q1", "q3", "q2", "q4", "q5"]
    # Its batch kills every worker that tries it: that ends, and what is done stays.
    with pytest.raises(RuntimeError, match=r"a batch was given up \(Actor.*\); if its worker dies.*the same command"):
        rerank(candidates, tmp_path / "run", Dying, batch_size=2)
    assert not (tmp_path / "run" / "run.trec").exists()
    reranker = Overlap()
    execute(plan(candidates, tmp_path / "run", reranker))
    assert reranker.seen in (["q6", "q7"], ["q6", "q7", "q8"])  # q8's batch may have been done beside theirs
    assert same_run(tmp_path / "whole", tmp_path / "run")


def marked(folder: Path) -> Overlap:
    folder.mkdir(exist_ok=True)
    (folder / str(os.getpid())).touch()
    return Overlap()


def without_gpu() -> Overlap:
    raise MissingPrerequisite("device 'cuda': torch sees 0 GPUs; use device cpu")


def named_by_its_process() -> Overlap:
    return Overlap(name=str(os.getpid()))


@needs_ray
@pytest.mark.slow
def test_what_keeps_a_worker_from_its_reranker_is_told_in_its_own_words(candidates, tmp_path, running_ray):
    with pytest.raises(MissingPrerequisite) as caught:
        rerank(candidates, tmp_path / "run", without_gpu)
    assert str(caught.value) == "device 'cuda': torch sees 0 GPUs; use device cpu"
    assert "in without_gpu" in caught.value.__notes__[0]  # for --debug
    with pytest.raises(RuntimeError, match=r"is not that of the others \(system: expected '\d+', got '\d+'\)"):
        rerank(candidates, tmp_path / "run", named_by_its_process)
    assert not (tmp_path / "run" / "run.trec").exists()


@needs_ray
@pytest.mark.parametrize(
    ("count", "device", "error", "message"),
    [
        (2, "cuda", MissingPrerequisite, "workers 2 with device 'cuda': expected a GPU for each, Ray has 0"),
        (999, "cpu", MissingPrerequisite, "workers 999: expected a CPU slot for each"),
        (2, "cuda:1", ValueError, "names one GPU for all of them"),
        (0, "cpu", ValueError, "workers 0: expected at least 1"),
    ],
)
def test_workers_that_the_machine_has_no_place_for_are_refused(running_ray, count, device, error, message):
    with pytest.raises(error, match=message), workers(Overlap, count, device=device):
        pass


@pytest.mark.parametrize("here", [True, False])
def test_an_error_from_another_machine_says_so(here, caplog):
    worker = f"{socket.gethostname() if here else 'elsewhere'}:17"
    answer = _Answer(None, FileNotFoundError("model folder /models/a does not exist"), (), worker)
    with pytest.raises(FileNotFoundError, match="/models/a"):
        pickle.loads(answer.sent()).result_or_raise()
    assert caplog.messages == ([] if here else ["what follows was met by worker elsewhere:17, on another machine"])


def test_without_ray_the_extra_is_named(candidates, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["rerank", "--candidates", str(candidates), "--output", str(tmp_path / "run"), "--model", "any"]
    done = CliRunner().invoke(main, [*command, "--workers", "2"])
    assert done.exit_code == 3
    assert "pip install 'headrank-pipeline[ray]'" in done.output


INTERRUPTED = dedent("""
    import os, sys, time
    from pathlib import Path
    sys.path[:0] = sys.argv[1].split(os.pathsep)
    from test_runner import Overlap, plan
    from headrank_pipeline.experiment.runner import execute
    from headrank_pipeline.experiment.scaleout import workers

    class Slow(Overlap):
        def rerank_batch(self, rankings):
            time.sleep(0.5)
            return super().rerank_batch(rankings)

    with workers(Slow, 2) as started:
        execute(plan(Path(sys.argv[2]), Path(sys.argv[3]), started))
""")


def processes_of(session: int) -> list[str]:
    """Command lines of the processes of a session, itself included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == session:
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_an_interrupted_run_can_be_continued_and_leaves_nothing_behind(candidates, tmp_path):
    # Not below tmp_path: the names of Ray's sockets there would be too long.
    with tempfile.TemporaryDirectory(prefix="t") as scratch:
        home = tmp_path / "home"
        home.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, TESTS, str(candidates), str(tmp_path / "run")],
            env={**os.environ, "TMPDIR": scratch, "HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            journal = tmp_path / "run" / "scores.jsonl"
            while process.poll() is None and not (journal.exists() and journal.read_bytes()):
                time.sleep(0.05)
            assert any("raylet" in line for line in processes_of(process.pid))
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert (output, errors.splitlines()[-1]) == ("", "KeyboardInterrupt")
        for _ in range(100):
            if not processes_of(process.pid):
                break
            time.sleep(0.1)
        assert processes_of(process.pid) == []
        assert (list(Path(scratch).iterdir()), list(home.rglob("*"))) == ([], [])

    assert 2 <= len(journal_of(tmp_path / "run")) < 9
    execute(plan(candidates, tmp_path / "whole"))
    execute(plan(candidates, tmp_path / "run"))
    assert same_run(tmp_path / "whole", tmp_path / "run")


A_MACHINE_GOES = dedent("""
    import logging, os, signal, sys, threading, time
    from functools import partial
    from pathlib import Path
    import ray
    from ray.cluster_utils import Cluster
    from test_runner import Overlap, plan
    from headrank_pipeline.experiment.runner import execute
    from headrank_pipeline.experiment.scaleout import workers

    class Stuck(Overlap):
        '''On one machine its first batch never ends, on the others it waits for that to have begun.'''

        def __init__(self, node, folder):
            super().__init__()
            self.node, self.folder = node, folder

        def rerank_batch(self, rankings):
            if ray.get_runtime_context().get_node_id() == self.node:
                (self.folder / str(os.getpid())).touch()
                time.sleep(3600)
            while not any(self.folder.iterdir()):
                time.sleep(0.05)
            return super().rerank_batch(rankings)

    def goes(cluster, machine, folder):
        while not (workers_there := [int(path.name) for path in folder.iterdir()]):
            time.sleep(0.05)
        for process in machine.all_processes["raylet"]:
            os.kill(process.process.pid, signal.SIGSTOP)  # so that nobody there can tell the cluster
        os.kill(workers_there[0], signal.SIGKILL)
        time.sleep(3)
        cluster.remove_node(machine, allow_graceful=False)

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1})
    machine = cluster.add_node(num_cpus=1)
    threading.Thread(target=goes, args=(cluster, machine, Path(sys.argv[3])), daemon=True).start()
    with workers(partial(Stuck, machine.node_id, Path(sys.argv[3])), 2, device="cpu") as started:
        execute(plan(Path(sys.argv[1]), Path(sys.argv[2]), started))
    os._exit(0)  # the cluster's own tidying waits for the machine that has gone
""")


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Ray has clusters on Linux only")
def test_a_machine_that_goes_away_costs_nothing_but_time(candidates, tmp_path):
    """The cluster takes it for alive: what is sent there fails at once, as often as it is sent."""
    (tmp_path / "stuck").mkdir()
    # Not below tmp_path: the names of Ray's sockets there would be too long.
    with tempfile.TemporaryDirectory(prefix="t", ignore_cleanup_errors=True) as scratch:
        paths = [candidates, tmp_path / "run", tmp_path / "stuck"]
        process = subprocess.Popen(
            [sys.executable, "-c", A_MACHINE_GOES, *map(str, paths)],
            env={**os.environ, "TMPDIR": scratch, "PYTHONPATH": TESTS},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=300)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    assert "all are started again" in errors
    execute(plan(candidates, tmp_path / "one"))
    assert same_run(tmp_path / "one", tmp_path / "run")


BESIDE_A_JVM = dedent("""
    import ctypes, os, sys
    from pathlib import Path
    sys.path[:0] = sys.argv[1].split(os.pathsep)
    from test_runner import Overlap
    from headrank_pipeline.experiment.scaleout import workers
    from headrank_pipeline.first_stage.lexical import bm25
    from headrank_pipeline.records import Query

    CRASHES = (4, 7, 8, 11)  # SIGILL, SIGBUS, SIGFPE, SIGSEGV
    sigaction = ctypes.CDLL(None).sigaction

    def handlers():
        actions = [ctypes.create_string_buffer(256) for _ in CRASHES]
        for number, action in zip(CRASHES, actions):
            sigaction(number, None, action)
        return [action.raw[:8] for action in actions]

    first_stage = bm25(Path(sys.argv[2]), hits=3)
    found = list(first_stage.retrieve([Query("q", "flea")]))
    of_the_jvm = handlers()
    with workers(Overlap, 1):
        during = handlers()
    assert found == list(first_stage.retrieve([Query("q", "flea")]))
    print(during == of_the_jvm, handlers() == of_the_jvm)
""")


@needs_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library of Linux for signal handlers")
def test_a_jvm_keeps_its_signals_while_ray_runs_and_afterwards(tiny_index):
    """A JVM handles SIGSEGV and its like for its own ends; Ray takes them when it starts, and drops them at its end."""
    command = [sys.executable, "-c", BESIDE_A_JVM, TESTS, str(tiny_index)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr
