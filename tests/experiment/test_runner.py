"""The runner, with a small real reranker: word overlap between query and passage."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace

import pytest

from headrank_pipeline.experiment import directory as directory_module
from headrank_pipeline.experiment.batches import (
    CandidateSource,
    Progress,
    supply_from_file,
    supply_from_source,
    try_batch,
)
from headrank_pipeline.experiment.benchmark import Reference
from headrank_pipeline.experiment.directory import Entry, Journal, RunDirectory, environment, usage
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.pipeline import Failure, MissingPrerequisite, Reranker, Source
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import candidate_line, read_candidates, read_run, write_candidates

TEXTS = ("the flea lives", "a dog and a flea", "cats", "life of a flea and a dog", "nothing here")


@dataclass
class Overlap(Reranker):
    """Shared words, plus a share of the whole batch, so that the composition of a batch shows in the scores."""

    name: str = "overlap"
    places: dict[str, str] = field(default_factory=dict)
    failing: frozenset[str] = frozenset()
    error: type[BaseException] = ValueError
    seen: list[str] = field(default_factory=list)

    def rerank_batch(self, rankings: Sequence[Ranking]) -> list[Ranking]:
        bad = [ranking.query.qid for ranking in rankings if ranking.query.qid in self.failing]
        if bad:
            raise self.error(f"no way to read {bad[0]}")
        self.seen += [ranking.query.qid for ranking in rankings]
        shift = sum(len(ranking.query.text) for ranking in rankings) / 1000
        return [self._rescored(ranking, shift) for ranking in rankings]

    def _rescored(self, ranking: Ranking, shift: float) -> Ranking:
        words = set(ranking.query.text.split())
        scores = [len(words & set((c.text or "").split())) / 3 + shift for c in ranking.candidates]
        return replace(ranking, notes={"prompt_tokens": 10.0, "passages_cut": 0.0}).rescored(scores)

    def describe(self):
        return {"system": self.name}

    def origins(self):
        return self.places


class FivePassages(Source):
    """Gives every query the same five passages; counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def retrieve(self, queries):
        self.calls += 1
        for query in queries:
            yield ranking_of(query.qid, query.text)

    def describe(self):
        return {"source": "five passages"}


def ranking_of(qid: str, text: str = "life of a flea") -> Ranking:
    candidates = (Candidate(f"d{i}", 5.0 - i, passage) for i, passage in enumerate(TEXTS))
    return Ranking(Query(qid, text), tuple(candidates))


@pytest.fixture
def candidates(tmp_path) -> Path:
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, [ranking_of(f"q{i}", f"life of flea number {'x' * i}") for i in range(7)])
    return path


def plan(candidates: Path, output: Path, reranker: Reranker | None = None, **changes) -> RunPlan:
    supply = changes.pop("supply", None) or supply_from_file(candidates)
    return RunPlan(
        output=output, reranker=reranker or Overlap(), supply=supply, **({"depth": 4, "batch_size": 2} | changes)
    )


def manifest_of(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text(encoding="utf-8"))


def test_a_run_reranks_to_the_depth_and_appends_the_rest(candidates, tmp_path):
    outcome = execute(plan(candidates, tmp_path / "run"), command="headrank rerank --depth 4")
    found = read_run(tmp_path / "run" / "run.trec")
    assert list(found) == [f"q{i}" for i in range(7)]
    assert [c.docid for c in found["q0"]] == ["d3", "d0", "d1", "d2", "d4"]
    manifest = manifest_of(tmp_path / "run")
    assert manifest == outcome.manifest
    assert (manifest["status"], outcome.failed) == ("complete", {})
    assert manifest["identity"]["reranker"] == {"system": "overlap"}
    assert manifest["sessions"][0]["command"] == "headrank rerank --depth 4"
    assert manifest["totals"]["notes"] == {"prompt_tokens": 70.0, "passages_cut": 0.0}
    assert manifest["totals"]["latency_p50_seconds"] > 0
    assert len(manifest["environment"]["packages"]["torch"]) >= 5


def test_gpu_in_the_manifest_is_the_one_that_was_used(monkeypatch):
    peaks = [0, 5 * 2**30]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 2,
        max_memory_allocated=lambda index=0: peaks[index],  # torch's current device is the first one
        get_device_name=lambda index=0: f"card {index}",
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 1, cuda=cuda))
    found = usage()
    assert (found["gpu"], found["gpu_peak_memory_bytes"]) == ("card 1", 5 * 2**30)
    assert found["peak_memory_bytes"] > 2**25  # bytes, where Linux counts KiB


def test_the_time_of_a_batch_is_divided_by_its_queries():
    started = time.perf_counter()
    tried = try_batch(Overlap(), [ranking_of(f"q{number}") for number in range(5)])
    assert 0 < sum(entry.seconds for entry in tried.entries) <= time.perf_counter() - started


def test_raw_scores_survive_in_the_journal(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    line = json.loads((tmp_path / "run" / "scores.jsonl").read_text().splitlines()[0])
    shift = sum(len(f"life of flea number {'x' * i}") for i in range(2)) / 1000
    assert line["docids"] == ["d3", "d0", "d1", "d2"]
    assert line["scores"] == [3 / 3 + shift, 1 / 3 + shift, 1 / 3 + shift, 0 / 3 + shift]


class Interrupting(Overlap):
    """Stops like Ctrl-C before the given batch."""

    def rerank_batch(self, rankings):
        if len(self.seen) >= 4:
            raise KeyboardInterrupt
        return super().rerank_batch(rankings)


def test_an_interrupted_run_has_no_run_file_and_continues_where_it_stopped(candidates, tmp_path, caplog):
    execute(plan(candidates, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        execute(plan(candidates, tmp_path / "run", Interrupting()))
    assert "4 of 7 queries done; the same command continues" in caplog.text
    assert not (tmp_path / "run" / "run.trec").exists()
    assert manifest_of(tmp_path / "run")["status"] == "running"

    reranker = Overlap()
    execute(plan(candidates, tmp_path / "run", reranker))
    assert reranker.seen == ["q4", "q5", "q6"]
    for name in ("run.trec", "first_stage.trec"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [bool(session["finished"]) for session in manifest_of(tmp_path / "run")["sessions"]] == [False, True]


def test_an_unfinished_batch_is_done_again_as_a_whole(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "whole"))
    execute(plan(candidates, tmp_path / "run"))
    journal = tmp_path / "run" / "scores.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # q3 torn: killed while it was written
    reranker = Overlap()
    execute(plan(candidates, tmp_path / "run", reranker))
    assert reranker.seen == ["q2", "q3", "q4", "q5", "q6"]
    assert all(json.loads(line)["qid"] for line in journal.read_bytes().splitlines())  # the torn piece is gone
    assert (tmp_path / "run" / "run.trec").read_bytes() == (tmp_path / "whole" / "run.trec").read_bytes()


def test_a_finished_run_is_not_done_again(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    before = (tmp_path / "run" / "run.trec").read_bytes()
    reranker = Overlap()
    execute(plan(candidates, tmp_path / "run", reranker))
    assert (reranker.seen, (tmp_path / "run" / "run.trec").read_bytes()) == ([], before)


# What other processes import: these files and what all tests share.
TESTS = os.pathsep.join(str(folder) for folder in Path(__file__).parents[:2])

SLOW_RUN = dedent("""
    import os, sys, time
    from pathlib import Path
    sys.path[:0] = sys.argv[1].split(os.pathsep)
    from test_runner import Overlap, plan
    from headrank_pipeline.experiment.runner import execute

    class Slow(Overlap):
        def rerank_batch(self, rankings):
            time.sleep(0.25)
            return super().rerank_batch(rankings)

    execute(plan(Path(sys.argv[2]), Path(sys.argv[3]), Slow()))
""")


def start_slow_run(candidates: Path, output: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SLOW_RUN, TESTS, str(candidates), str(output)])


def wait_for_lines(journal: Path, count: int) -> None:
    for _ in range(600):
        if journal.exists() and journal.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"{journal} never got {count} lines")


def test_a_killed_run_run_again_equals_an_uninterrupted_one_byte_for_byte(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "whole"))
    process = start_slow_run(candidates, tmp_path / "run")
    wait_for_lines(tmp_path / "run" / "scores.jsonl", 2)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = (tmp_path / "run" / "scores.jsonl").read_bytes().count(b"\n")
    assert 2 <= done < 7
    assert not (tmp_path / "run" / "run.trec").exists()

    assert start_slow_run(candidates, tmp_path / "run").wait() == 0
    assert (tmp_path / "run" / "run.trec").read_bytes() == (tmp_path / "whole" / "run.trec").read_bytes()


def test_a_second_process_is_kept_out(candidates, tmp_path):
    process = start_slow_run(candidates, tmp_path / "run")
    try:
        wait_for_lines(tmp_path / "run" / "scores.jsonl", 2)
        with pytest.raises(RuntimeError, match=rf"another process \(id {process.pid}\) is writing this run"):
            execute(plan(candidates, tmp_path / "run"))
    finally:
        process.kill()
        process.wait()


def test_a_directory_of_another_configuration_is_refused_with_every_difference(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    other = plan(candidates, tmp_path / "run", Overlap(name="other"), depth=3)
    with pytest.raises(ValueError, match="another configuration") as caught:
        execute(other)
    message = str(caught.value)
    assert "depth: there 4, now 3" in message
    assert "reranker.system: there 'overlap', now 'other'" in message
    assert "overwrite=True" in message

    execute(other, overwrite=True)
    assert manifest_of(tmp_path / "run")["identity"]["depth"] == 3
    assert len(manifest_of(tmp_path / "run")["sessions"]) == 1


def test_candidates_changed_since_are_another_configuration(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    write_candidates(candidates, [ranking_of("q0")])
    with pytest.raises(ValueError, match=r"candidates\.candidates_sha256: there"):
        execute(plan(candidates, tmp_path / "run"))


def journal_lines(directory: Path) -> list[bytes]:
    return (directory / "scores.jsonl").read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"d2"', b'"d9"'), (b'"d3", "d0"', b'"d0", "d3"'), (b"[1.0", b"[1.5"), (b"10.0", b"11.0"), (b'"q1"', b'"q0"')],
)
def test_a_changed_line_of_the_journal_is_refused_and_overwritten_when_asked(candidates, tmp_path, old, new):
    whole = execute(plan(candidates, tmp_path / "run")).directory
    before = whole.run.read_bytes()
    lines = journal_lines(whole.path)
    changed = [line.replace(old, new) for line in lines]
    assert changed != lines
    whole.scores.write_bytes(b"".join(changed))
    with pytest.raises(ValueError, match=r"scores\.jsonl:[12]: not as this run wrote it, its digest is another"):
        execute(plan(candidates, tmp_path / "run"))
    reranker = Overlap()
    execute(plan(candidates, tmp_path / "run", reranker), overwrite=True)
    assert (len(reranker.seen), whole.run.read_bytes()) == (7, before)


def test_a_line_of_another_run_is_refused(candidates, tmp_path):
    for name in ("a", "b"):
        execute(plan(candidates, tmp_path / name, Overlap(name=name)))
    (tmp_path / "a" / "scores.jsonl").write_bytes(
        b"".join([*journal_lines(tmp_path / "a")[:6], *journal_lines(tmp_path / "b")[6:]])
    )
    with pytest.raises(ValueError, match=r"scores\.jsonl:7: not as this run wrote it"):
        execute(plan(candidates, tmp_path / "a", Overlap(name="a")))


def test_lines_of_before_there_were_digests_are_taken_with_a_warning_but_not_after_others(candidates, tmp_path, caplog):
    run = execute(plan(candidates, tmp_path / "run")).directory
    before, lines = run.run.read_bytes(), journal_lines(run.path)
    bare = [line[: line.index(b', "digest"')] + b"}\n" for line in lines]
    run.scores.write_bytes(b"".join(bare[:4] + lines[4:]))
    execute(plan(candidates, tmp_path / "run"))
    assert "4 lines were written before lines had digests; they are taken as they are, unchecked" in caplog.text
    assert run.run.read_bytes() == before
    run.scores.write_bytes(b"".join(lines[:4] + bare[4:]))
    with pytest.raises(ValueError, match=r"scores\.jsonl:5: has no digest, and the lines before it do"):
        execute(plan(candidates, tmp_path / "run"))


@pytest.mark.parametrize(
    "line",
    [
        "[]", "3", '{"qid": 1, "error": "x", "notes": {}}', '{"qid": "q", "error": 3, "notes": {}}', "[" * 100000,
        '{"qid": "q", "error": "x", "notes": []}', '{"qid": "q", "error": "x", "notes": {"n": "many"}}',
        '{"qid": "q", "docids": ["a"], "scores": [NaN], "notes": {}, "seconds": 0}',
        '{"qid": "q", "docids": ["a"], "scores": [1' + "0" * 400 + '], "notes": {}, "seconds": 0}',
        '{"qid": "q", "docids": ["a", "a"], "scores": [2, 1], "notes": {}, "seconds": 0}',
        '{"qid": "q", "docids": [["a"]], "scores": [2], "notes": {}, "seconds": 0}',
        '{"qid": "q", "docids": "a", "scores": [2], "notes": {}, "seconds": 0}',
    ],
)  # fmt: skip
def test_what_is_no_entry_is_named(line):
    with pytest.raises(ValueError, match=r"^here: not a line of a run's journal"):
        Entry.parse(line, "here")


def test_a_call_that_failed_before_any_work_blocks_nothing(candidates, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{oops\n")
    with pytest.raises(ValueError, match=r"broken.jsonl:1: not valid JSON"):
        execute(plan(broken, tmp_path / "run"))
    assert execute(plan(candidates, tmp_path / "run")).manifest["status"] == "complete"


def test_scores_without_a_manifest_are_not_taken_for_ours(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"holds scores\.jsonl, .*run\.trec but no manifest\.json"):
        execute(plan(candidates, tmp_path / "run"))


def test_a_manifest_of_another_schema_is_refused(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest_of(tmp_path / "run") | {"schema": 2}))
    with pytest.raises(ValueError, match="expected a manifest of schema 1, got 2"):
        execute(plan(candidates, tmp_path / "run"))


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_the_commit_of_a_checkout_around_an_installed_package_is_not_its_own(tmp_path, monkeypatch):
    room = tmp_path / "site-packages" / "headrank_pipeline" / "experiment"
    room.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(directory_module, "__file__", str(room / "directory.py"))
    assert environment()["git"] is None


def test_another_environment_is_told_and_recorded(candidates, tmp_path, caplog):
    execute(plan(candidates, tmp_path / "run"))
    path = tmp_path / "run" / "manifest.json"
    manifest = manifest_of(tmp_path / "run")
    manifest["environment"]["packages"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    execute(plan(candidates, tmp_path / "run"))
    assert "continued in another environment" in caplog.text
    assert manifest_of(tmp_path / "run")["sessions"][1]["environment_changes"]["packages.torch"]["before"] == "1.0"


def test_a_moved_model_and_a_passage_cache_are_told_and_recorded_but_no_other_run(candidates, tmp_path, caplog):
    execute(plan(candidates, tmp_path / "run", Overlap(places={"model": "old/m"})))
    before = manifest_of(tmp_path / "run")
    execute(plan(candidates, tmp_path / "run", Overlap(places={"model": "new/m", "passage_cache": "keys"})))
    after = manifest_of(tmp_path / "run")
    assert before["identity"] == after["identity"]
    assert (before["origins"]["model"], after["origins"]["model"]) == ("old/m", "new/m")
    assert "may change results in their last digits: passage_cache None -> keys" in caplog.text
    assert after["sessions"][1]["environment_changes"] == {"passage_cache": {"before": None, "now": "keys"}}


def test_a_failing_query_leaves_its_batch_intact_and_is_tried_again_next_time(candidates, tmp_path):
    outcome = execute(plan(candidates, tmp_path / "run", Overlap(failing=frozenset({"q3"}))))
    assert outcome.failed == {"q3": "ValueError: no way to read q3"}
    assert manifest_of(tmp_path / "run")["status"] == "partial"
    assert list(read_run(tmp_path / "run" / "run.trec")) == ["q0", "q1", "q2", "q4", "q5", "q6"]

    reranker = Overlap()
    assert execute(plan(candidates, tmp_path / "run", reranker)).failed == {}
    assert reranker.seen == ["q2", "q3"]
    execute(plan(candidates, tmp_path / "whole"))
    assert (tmp_path / "run" / "run.trec").read_bytes() == (tmp_path / "whole" / "run.trec").read_bytes()


def test_results_of_a_partial_run_are_withdrawn_while_its_queries_are_open_again(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run", Overlap(failing=frozenset({"q6"}))))
    assert (tmp_path / "run" / "run.trec").exists()
    with pytest.raises(KeyboardInterrupt):
        execute(plan(candidates, tmp_path / "run", Overlap(failing=frozenset({"q6"}), error=KeyboardInterrupt)))
    assert not (tmp_path / "run" / "run.trec").exists()


def test_three_failures_and_no_success_stop_the_run_with_the_error_itself(candidates, tmp_path):
    reranker = Overlap(failing=frozenset(f"q{i}" for i in range(7)))
    with pytest.raises(ValueError, match="no way to read q2"):
        execute(plan(candidates, tmp_path / "run", reranker, batch_size=7))
    assert not (tmp_path / "run" / "run.trec").exists()


def test_one_query_that_fails_alone_is_an_error(tmp_path):
    path = tmp_path / "one.jsonl"
    write_candidates(path, [ranking_of("q0")])
    with pytest.raises(ValueError, match="no way to read q0"):
        execute(plan(path, tmp_path / "run", Overlap(failing=frozenset({"q0"}))))


@pytest.mark.parametrize("error", [MissingPrerequisite, KeyError, ZeroDivisionError])
def test_errors_that_are_not_about_one_query_surface(candidates, tmp_path, error):
    with pytest.raises(error):
        execute(plan(candidates, tmp_path / "run", Overlap(failing=frozenset({"q5"}), error=error)))


class Losing(Overlap):
    def rerank_batch(self, rankings):
        return [r.cut(3) if r.query.qid == "q6" else r for r in super().rerank_batch(rankings)]


def test_a_reranker_that_loses_a_candidate_is_caught(candidates, tmp_path):
    outcome = execute(plan(candidates, tmp_path / "run", Losing()))
    assert "lost ['d2']" in outcome.failed["q6"]


class Attempting(Overlap):
    """Knows which query failed and what that one has cost."""

    def _attempts(self, rankings):
        live = [ranking for ranking in rankings if ranking.query.qid not in self.failing]
        reranked = {ranking.query.qid: ranking for ranking in self.rerank_batch(live)}
        error, notes = ValueError("garbage"), {"prompt_tokens": 7.0, "replies": 2.0}
        return [reranked.get(ranking.query.qid) or Failure(ranking.query, error, notes) for ranking in rankings]


def test_a_failed_query_keeps_its_counts_and_the_others_of_its_batch_are_not_done_twice(candidates, tmp_path):
    reranker = Attempting(failing=frozenset({"q3"}))
    outcome = execute(plan(candidates, tmp_path / "run", reranker, batch_size=4))
    assert outcome.failed == {"q3": "ValueError: garbage"}
    assert reranker.seen == ["q0", "q1", "q2", "q4", "q5", "q6"]
    totals = outcome.manifest["totals"]
    assert totals["notes"] == {"prompt_tokens": 67.0, "passages_cut": 0.0, "replies": 2.0}
    assert totals["queries_counted"] == outcome.manifest["sessions"][0]["queries"] == 7

    execute(plan(candidates, tmp_path / "run", Attempting(), batch_size=4))  # the next attempt's counts replace them
    assert manifest_of(tmp_path / "run")["totals"]["notes"] == {"prompt_tokens": 70.0, "passages_cut": 0.0}


def test_three_failures_beside_a_success_do_not_stop_a_run(candidates, tmp_path):
    failing = frozenset({"q0", "q1", "q2"})
    assert set(execute(plan(candidates, tmp_path / "run", Attempting(failing=failing), batch_size=4)).failed) == failing
    later = frozenset({"q2", "q3", "q4"})  # a batch each, after a success
    assert set(execute(plan(candidates, tmp_path / "late", Overlap(failing=later), batch_size=1)).failed) == later


class Shuffling(Overlap):
    def rerank_batch(self, rankings):
        return super().rerank_batch(rankings)[::-1]


def test_a_reranker_that_mixes_queries_up_ends_the_run(candidates, tmp_path):
    with pytest.raises(ValueError, match="returned 2 rankings in another order than the 2 given"):
        execute(plan(candidates, tmp_path / "run", Shuffling()))


def test_where_the_judgments_came_from_is_recorded_also_when_they_come_later(candidates, tmp_path):
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q0 0 d3 1\n")
    execute(plan(candidates, tmp_path / "run"))
    assert manifest_of(tmp_path / "run")["origins"] == {"candidates": str(candidates)}
    execute(plan(candidates, tmp_path / "run", judgement=Judgement(qrels=qrels)))
    assert manifest_of(tmp_path / "run")["origins"] == {"candidates": str(candidates), "qrels": str(qrels)}


def test_queries_without_candidates_are_noted_and_never_reach_the_reranker(tmp_path):
    path = tmp_path / "some.jsonl"
    nothing = [Ranking(Query(qid, "nothing found")) for qid in ("q1", "q3")]
    write_candidates(path, [ranking_of("q0"), nothing[0], ranking_of("q2"), nothing[1]])
    reranker = Overlap()
    execute(plan(path, tmp_path / "run", reranker))
    assert reranker.seen == ["q0", "q2"]
    totals = manifest_of(tmp_path / "run")["totals"]
    assert (totals["queries_without_candidates"], totals["queries_counted"]) == (["q1", "q3"], 2)
    assert totals["latency_p50_seconds"] > 0
    assert manifest_of(tmp_path / "run")["status"] == "complete"
    assert list(read_run(tmp_path / "run" / "run.trec")) == ["q0", "q2"]


def test_the_first_stage_runs_once_and_what_it_gave_is_used_again(tmp_path):
    source = FivePassages()
    queries = [Query(f"q{i}", "life of a flea") for i in range(5)]
    supply = supply_from_source(source, queries)
    with pytest.raises(KeyboardInterrupt):
        execute(plan(tmp_path, tmp_path / "run", Interrupting(), supply=supply))
    execute(plan(tmp_path, tmp_path / "run", supply=supply))
    assert source.calls == 1
    assert manifest_of(tmp_path / "run")["identity"]["candidates"]["source"] == {"source": "five passages"}
    changed = supply_from_source(source, [*queries[:4], Query("q4", "another text")])
    with pytest.raises(ValueError, match=r"candidates\.queries_sha256"):
        execute(plan(tmp_path, tmp_path / "run", supply=changed))


def test_only_the_wanted_queries_of_a_candidates_file_are_run(candidates, tmp_path):
    supply = supply_from_file(candidates, only={"q1", "q4", "q99"})
    execute(plan(candidates, tmp_path / "run", supply=supply))
    assert list(read_run(tmp_path / "run" / "run.trec")) == ["q1", "q4"]


def test_both_stages_are_evaluated_from_the_files_written(candidates, tmp_path):
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("q0 0 d3 1\nq1 0 d9 1\n")
    published = Reference(measure="RR", value=0.125, source="by hand")
    judgement = Judgement(qrels=qrels, measures=("RR",), references=(published,))
    outcome = execute(plan(candidates, tmp_path / "run", judgement=judgement))
    assert outcome.judged is not None
    assert (outcome.judged.first_stage.means, outcome.judged.reranked.means) == ({"RR": 0.125}, {"RR": 0.5})
    assert [check.verdict for check in outcome.judged.checks] == ["OK"]
    strict = execute(plan(candidates, tmp_path / "strict", judgement=replace(judgement, relevance_level=2)))
    assert strict.judged is not None and strict.judged.reranked.means == {"RR": 0.0}
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert written["reranked"]["per_query"] == {"q0": {"RR": 1.0}, "q1": {"RR": 0.0}}
    assert written["reranked"]["missing"] == []
    assert len(written["qrels_sha256"]) == len(written["run_sha256"]) == 64


def test_qrels_of_other_topics_are_refused_before_any_work(candidates, tmp_path):
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("PLAIN-2 0 d3 1\n")
    reranker = Overlap()
    with pytest.raises(ValueError, match="judges none of the 7 queries"):
        execute(plan(candidates, tmp_path / "run", reranker, judgement=Judgement(qrels=qrels)))
    assert reranker.seen == []


def test_repeated_qids_and_empty_candidates_are_refused(tmp_path):
    twice = CandidateSource(identity={}, rankings=lambda: iter([ranking_of("q0"), ranking_of("q0")]), retrieves=False)
    with pytest.raises(ValueError, match="qid q0: occurs twice"):
        execute(plan(tmp_path, tmp_path / "run", supply=twice))
    nothing = CandidateSource(identity={}, rankings=lambda: iter([]), retrieves=False)
    with pytest.raises(ValueError, match="no queries"):
        execute(plan(tmp_path, tmp_path / "other", supply=nothing))


@pytest.mark.parametrize(
    ("name", "value"), [("depth", 0), ("batch_size", 0), ("tag", "two words"), ("tag", ""), ("tag", "a\0b")]
)
def test_a_plan_that_makes_no_sense_is_refused_when_it_is_written(candidates, tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        plan(candidates, tmp_path / "run", **{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevance_level": 0}, "relevance level 0: expected a grade"),
        ({"measures": ()}, "no measures given"),
        ({"measures": ["alpha_nDCG@10"]}, r"measure 'alpha_nDCG@10': nothing installed computes it"),
        ({"measures": ["INST(T=1)"]}, r"measure 'INST\(T=1\)': nothing installed computes it \(Asser.* parameters"),
        ({"measures": ["nDCG(T=1)@10"]}, r"measure 'nDCG\(T=1\)@10': nothing installed computes it \(KeyError"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_reranked(tmp_path, changes, message):
    (tmp_path / "qrels.txt").write_text("q0 0 d0 1\n")
    with pytest.raises(ValueError, match=message):
        Judgement(qrels=tmp_path / "qrels.txt", **changes)


def test_the_last_line_of_a_query_wins_and_a_damaged_one_is_named(tmp_path):
    path = tmp_path / "scores.jsonl"
    journal = Journal(path)
    journal.append([Entry("q1", notes={"n": 2.0}, error="ValueError: x"), Entry("q2", ("a",), (0.1,), {}, 0.5)])
    assert Journal(path).failures == {"q1": Entry("q1", notes={"n": 2.0}, error="ValueError: x")}
    journal.append([Entry("q1", ("b", "c"), (1e-300, -0.0), {"n": 1.0}, 0.25)])
    again = Journal(path)
    assert (again.failures, sorted(again.scored_qids())) == ({}, ["q1", "q2"])
    assert again.read("q1") == Entry("q1", ("b", "c"), (1e-300, -0.0), {"n": 1.0}, 0.25)
    again.append([Entry("q2", error="ValueError: y")])
    assert Journal(path).scored_qids() == ["q1"]
    with pytest.raises(ValueError, match=r"here: not a line of .*1 docids, 1 of them different, and 0 scores"):
        Entry.parse('{"qid": "q", "docids": ["a"], "scores": [], "notes": {}, "seconds": 0}', "here")
    path.write_bytes(path.read_bytes().replace(b'"qid": "q2"', b'"pid": "q2"'))
    with pytest.raises(ValueError, match=r"scores\.jsonl:2: not as this run wrote it"):
        Journal(path)


def test_progress_tells_done_total_rate_and_time_to_go(caplog):
    caplog.set_level("INFO")
    with Progress(total=10, done=4, log_every=0.0) as progress:
        progress._started -= 2.0
        progress.advance(2)
    assert "6/10 queries, 1.00 queries/s, 0:00:04 to go" in caplog.text


# ------------------------------------------------------------------------------------- inputs that change, --overwrite


@dataclass
class Meddling(Overlap):
    """Does something to the world before its third query."""

    meddle: Callable[[], object] = lambda: None

    def rerank_batch(self, rankings):
        if len(self.seen) == 2:
            self.meddle()
        return super().rerank_batch(rankings)


def other_texts(candidates: Path) -> None:
    rankings = list(read_candidates(candidates))
    new = [replace(r, candidates=tuple(replace(c, text="flea life of a") for c in r.candidates)) for r in rankings]
    candidates.write_text("".join(candidate_line(ranking) + "\n" for ranking in new))  # in place


def test_candidates_replaced_during_a_run_are_read_as_they_were_digested(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "whole"))
    new = tmp_path / "new.jsonl"
    write_candidates(new, [ranking_of("q0")])
    execute(plan(candidates, tmp_path / "run", Meddling(meddle=lambda: new.replace(candidates))))
    assert (tmp_path / "run" / "run.trec").read_bytes() == (tmp_path / "whole" / "run.trec").read_bytes()


def test_candidates_changed_in_place_during_a_run_are_never_scored_under_the_old_digest(
    candidates, tmp_path, monkeypatch
):
    monkeypatch.setattr("headrank_pipeline.experiment.runner._HELD_CHARACTERS", 0)
    whole, before = execute(plan(candidates, tmp_path / "whole")).directory, candidates.read_bytes()
    meddling = Meddling(meddle=lambda: other_texts(candidates))
    with pytest.raises(ValueError, match="changed"):
        execute(plan(candidates, tmp_path / "run", meddling))
    assert not (tmp_path / "run" / "run.trec").exists()
    candidates.write_bytes(before)
    execute(plan(candidates, tmp_path / "run"))
    assert (tmp_path / "run" / "run.trec").read_bytes() == whole.run.read_bytes()


def test_candidates_that_are_held_are_scored_as_they_were_read(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "whole"))
    execute(plan(candidates, tmp_path / "run", Meddling(meddle=lambda: other_texts(candidates))))
    assert (tmp_path / "run" / "run.trec").read_bytes() == (tmp_path / "whole" / "run.trec").read_bytes()


@pytest.mark.parametrize("readings", [2, 3])
def test_candidates_that_become_fewer_end_the_run(tmp_path, monkeypatch, readings):
    """Whatever gives them: the first reading says what there is, the others must give the same."""
    monkeypatch.setattr("headrank_pipeline.experiment.runner._HELD_CHARACTERS", 0)
    calls: list[int] = []

    def rankings():
        calls.append(1)
        return iter([ranking_of(f"q{number}") for number in range(4 if len(calls) < readings else 3)])

    supply = CandidateSource(identity={}, rankings=rankings, retrieves=False)
    with pytest.raises(ValueError, match="qid q3: its candidates are not those that were read when the run began"):
        execute(plan(tmp_path, tmp_path / "run", supply=supply))
    assert not (tmp_path / "run" / "run.trec").exists()
    assert len(calls) == readings


@pytest.mark.parametrize(("held", "readings"), [(2**26, 1), (0, 3)])
def test_a_run_reads_its_candidates_once_and_what_cannot_be_held_three_times(tmp_path, monkeypatch, held, readings):
    monkeypatch.setattr("headrank_pipeline.experiment.runner._HELD_CHARACTERS", held)
    calls: list[int] = []

    def rankings():
        calls.append(1)
        return iter([ranking_of(f"q{number}") for number in range(4)])

    supply = CandidateSource(identity={}, rankings=rankings, retrieves=False)
    execute(plan(tmp_path, tmp_path / "run", supply=supply))
    assert len(calls) == readings  # to know what there is, to rerank, to write


def test_retrieved_candidates_that_were_changed_before_a_resume_are_refused(tmp_path):
    supply = supply_from_source(FivePassages(), [Query(f"q{i}", "life of a flea") for i in range(5)])
    with pytest.raises(KeyboardInterrupt):
        execute(plan(tmp_path, tmp_path / "run", Interrupting(), supply=supply))
    other_texts(tmp_path / "run" / "candidates.jsonl")
    with pytest.raises(ValueError, match=r"candidates\.jsonl: not what the first stage wrote: expected SHA-256"):
        execute(plan(tmp_path, tmp_path / "run", supply=supply))
    reranker = Overlap()
    execute(plan(tmp_path, tmp_path / "run", reranker, supply=supply), overwrite=True)
    assert len(reranker.seen) == 5


def state_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file() and path.name != ".lock"}


def test_overwriting_keeps_the_batches_of_an_equal_plan(candidates, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        execute(plan(candidates, tmp_path / "run", Interrupting()))
    reranker = Overlap()
    execute(plan(candidates, tmp_path / "run", reranker), overwrite=True)
    assert reranker.seen == ["q4", "q5", "q6"]
    assert len(manifest_of(tmp_path / "run")["sessions"]) == 2


@pytest.mark.parametrize("fault", ["candidates", "qrels", "first batch", "interrupt", "first stage"])
def test_overwriting_destroys_nothing_where_the_new_run_cannot_begin(candidates, tmp_path, fault):
    execute(plan(candidates, tmp_path / "run"))
    (tmp_path / "run" / "notes.md").touch()
    before, changes, reranker = state_of(tmp_path / "run"), {"depth": 3}, Overlap()
    if fault == "candidates":
        candidates.write_bytes(candidates.read_bytes()[:-9])
    if fault == "qrels":
        (tmp_path / "qrels.txt").write_text("other 0 d1 1\n")
        changes["judgement"] = Judgement(qrels=tmp_path / "qrels.txt")
    if fault == "first batch":
        reranker = Overlap(failing=frozenset(f"q{i}" for i in range(7)))
    if fault == "interrupt":
        reranker = Overlap(failing=frozenset({"q0"}), error=KeyboardInterrupt)
    if fault == "first stage":
        changes["supply"] = CandidateSource(identity={}, rankings=lambda: (1 / 0 for _ in "x"), retrieves=True)
    with pytest.raises((ValueError, KeyboardInterrupt, ZeroDivisionError)):
        execute(plan(candidates, tmp_path / "run", reranker, **changes), overwrite=True)
    assert state_of(tmp_path / "run") == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*before, ".lock"])


def test_an_old_run_goes_with_the_first_batch_of_the_new_one(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    later = Overlap(failing=frozenset({"q4"}), error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        execute(plan(candidates, tmp_path / "run", later, depth=3), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "manifest.json", "scores.jsonl"]
    execute(plan(candidates, tmp_path / "run", depth=3))
    assert manifest_of(tmp_path / "run")["identity"]["depth"] == 3


@pytest.mark.parametrize("step", range(14))
def test_a_kill_while_a_run_is_replaced_leaves_the_old_one_or_the_new_one(candidates, tmp_path, monkeypatch, step):
    """Every rename and every deletion may be the last thing that a process does."""
    execute(plan(candidates, tmp_path / "run"))
    old = state_of(tmp_path / "run")
    done, killed = [], [True]

    def dying(name):
        real = getattr(Path, name)

        def call(self, *arguments, **named):
            if killed[0] and len(done) == step:
                raise SystemExit  # from here on nothing works, as in a process that is gone
            done.append(name)
            return real(self, *arguments, **named)

        return call

    for name in ("rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(Path, name, dying(name))
    new = plan(candidates, tmp_path / "run", depth=3)
    with suppress(SystemExit):
        execute(new, overwrite=True)
    monkeypatch.undo()
    directory = RunDirectory(tmp_path / "run")
    directory.recover()
    found = state_of(directory.path)
    if manifest_of(directory.path)["identity"]["depth"] == 4:
        assert {name: found.get(name) for name in old} == old
    execute(new, overwrite=True)
    assert manifest_of(directory.path)["identity"]["depth"] == 3
    assert sorted(path.name for path in directory.path.iterdir()) == sorted([*old, ".lock"])


def test_an_old_run_comes_back_where_the_new_one_was_killed_with_nothing_but_failures(candidates, tmp_path):
    execute(plan(candidates, tmp_path / "run"))
    old, directory = state_of(tmp_path / "run"), RunDirectory(tmp_path / "run")
    directory.set_aside()
    journal = Journal(directory.scores, "another run")
    journal.append([Entry("q0", error='CUDA error "docids": [], "scores": []')])
    directory.recover()
    assert state_of(directory.path) == old
    directory.set_aside()
    journal.append([Entry("q0", error="CUDA error"), Entry("q1", ("d0",), (1.0,))])
    directory.recover()
    assert (directory.run.exists(), directory.has_aside, directory.scores.exists()) == (False, False, True)


def test_litter_of_a_killed_run_is_removed_by_the_next(candidates, tmp_path):
    (tmp_path / "run").mkdir()
    litter = [tmp_path / "run" / f".{name}.77.0123abcd.tmp" for name in ("manifest.json", "run.trec")]
    for path in litter:
        path.touch()
    execute(plan(candidates, tmp_path / "run"))
    assert not any(path.exists() for path in litter)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sessions", "x"), ("sessions", ["x"]), ("sessions", [{"command": 3}]),
        ("sessions", [{"command": None, "queries": 2}]), ("identity", []), ("origins", "x"),
        ("environment", None), ("totals", []), ("totals", {"failed": []}), ("status", 3), ("identity", {"depth": "4"}),
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_named(candidates, tmp_path, place, value):
    execute(plan(candidates, tmp_path / "run"))
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest_of(tmp_path / "run") | {place: value}))
    with pytest.raises(ValueError, match=rf"manifest\.json: {place}.*the file was changed"):
        execute(plan(candidates, tmp_path / "run"))


# ------------------------------------------------------------------------------------------- reranking that did nothing


@dataclass
class Following(Reranker):
    """Scores that say something of the passages only as far as they are told to."""

    kind: str
    template: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)

    def rerank_batch(self, rankings):
        return [r.rescored([self.score(r.query.qid, i, c) for i, c in enumerate(r.candidates)]) for r in rankings]

    def score(self, qid, place, candidate):
        chance = int.from_bytes(hashlib.sha256(f"{qid} {candidate.docid}".encode()).digest()[:4]) / 2**32
        return {"equal": 1.0, "first stage": -place, "place": place + 2 * chance, "passages": chance}[self.kind]

    def describe(self):
        return {"system": self.kind, "template": {"passages": "causal", **self.template}, **self.more}


@pytest.mark.parametrize(
    ("kind", "template", "told"),
    [
        ("equal", {}, "all scores of a list are equal in 9 of 9 lists"),
        ("first stage", {}, "reranking changed nothing: 9 of 9 lists are in the order of the first stage"),
        (
            "place",
            {"reverse": True},
            r"fall with the place in the prompt: Kendall's tau -0\.[6-9]\d .* turned round, and",
        ),
        ("place", {}, r"rise with the place in the prompt: Kendall's tau \+0\.[6-9]\d in the mean over 9 lists"),
        ("place", {"passages": "isolated"}, None),
        ("passages", {}, None),
    ],
)
def test_reranking_that_did_nothing_is_told_in_the_log_and_the_manifest(tmp_path, caplog, kind, template, told):
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, [ranking_of(f"q{number}") for number in range(9)])
    totals = execute(plan(path, tmp_path / "run", Following(kind, template), depth=5)).manifest["totals"]
    if told is None:
        assert totals["warnings"] == []
    else:
        [warning] = totals["warnings"]
        assert re.search(told, warning)
        assert warning in caplog.text


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({"first_stage_weight": 0.8}, False),  # the prompt follows the first stage, and the scores do as asked
        ({"first_stage_weight": 0.0}, True),
        ({"rule": {"both_orders": True}}, False),
        ({"rule": {"both_orders": False}}, True),
    ],
)
def test_nothing_is_said_of_a_place_that_scores_follow_as_asked_or_that_is_not_one(tmp_path, more, known):
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, [ranking_of(f"q{number}") for number in range(9)])
    totals = execute(plan(path, tmp_path / "run", Following("place", more=more), depth=5)).manifest["totals"]
    assert (bool(totals["warnings"]), totals["effect"]["place_correlation"] is not None) == (known, known)
