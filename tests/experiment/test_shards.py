"""Shards of a run, merged, against one process: byte for byte."""

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_runner import FivePassages, Overlap, manifest_of, plan, ranking_of, wait_for_lines

from headrank_pipeline.cli import main
from headrank_pipeline.experiment.batches import _CHUNK, Shard, supply_from_file, supply_from_source
from headrank_pipeline.experiment.benchmark import Reference
from headrank_pipeline.experiment.directory import Journal, journal_key
from headrank_pipeline.experiment.judgement import Judgement
from headrank_pipeline.experiment.merging import merge
from headrank_pipeline.experiment.reproduction import recorded_command
from headrank_pipeline.experiment.runner import execute
from headrank_pipeline.files import locked_folder
from headrank_pipeline.first_stage import search
from headrank_pipeline.pipeline import Source, Terminated
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import candidate_line, write_candidates

QUERIES = 19


@pytest.fixture
def candidates(tmp_path) -> Path:
    rankings = [ranking_of(f"q{i}", f"life of flea number {'x' * i}") for i in range(QUERIES)]
    rankings[5] = Ranking(Query("q5", "nothing found"))
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, rankings)
    return path


@pytest.fixture
def judgement(tmp_path) -> Judgement:
    (tmp_path / "qrels.txt").write_text("".join(f"q{i} 0 d{i % 5} {1 + i % 2}\n" for i in range(0, QUERIES, 2)))
    published = Reference(measure="RR", value=0.4, source="by hand")
    return Judgement(qrels=tmp_path / "qrels.txt", measures=("RR", "nDCG@10"), references=(published,))


def untimed(directory: Path) -> dict:
    manifest = manifest_of(directory)
    timings = ("seconds", "latency_p50_seconds", "latency_p95_seconds", "queries_per_second")
    totals = {name: value for name, value in manifest["totals"].items() if name not in timings}
    return {**manifest, "totals": totals, "sessions": None}


def entries(directory: Path) -> list:
    journal = Journal(directory / "scores.jsonl", journal_key(manifest_of(directory)["identity"]))
    scored = [replace(journal.read(qid), seconds=0.0) for qid in journal.scored_qids()]
    return [*scored, *journal.failures.values()]


def assert_same(one: Path, merged: Path) -> None:
    names = {path.name for path in one.iterdir()} - {".lock"}
    assert {path.name for path in merged.iterdir()} - {".lock"} == {name for name in names if not name.startswith(".")}
    for name in names & {"run.trec", "first_stage.trec", "evaluation.json", "candidates.jsonl"}:
        assert (one / name).read_bytes() == (merged / name).read_bytes(), name
    assert untimed(one) == untimed(merged)
    assert entries(one) == entries(merged)


class Slow(Overlap):
    def rerank_batch(self, rankings):
        time.sleep(0.3)
        return super().rerank_batch(rankings)


def run_slowly(*arguments: object, **settings: object) -> None:
    """What a process of its own does; it ends with 0 where SIGTERM ended the run."""
    with suppress(Terminated):
        execute(plan(*arguments, Slow(failing=frozenset({"q7"})), **settings))


def test_eight_shards_merged_are_one_process_with_two_killed_and_restarted(candidates, judgement, tmp_path):
    reranker = Overlap(failing=frozenset({"q7"}))
    settings = {"batch_size": 1, "judgement": judgement}
    one = execute(plan(candidates, tmp_path / "one", reranker, **settings))
    assert [check.verdict for check in one.judged.checks]
    folders = [tmp_path / f"shard{number}" for number in range(1, 9)]
    for number, folder in enumerate(folders, start=1):
        if number in (3, 8):  # three queries each
            sent = signal.SIGKILL if number == 3 else signal.SIGTERM
            shard = {"shard": Shard(number, 8), **settings}
            process = get_context("fork").Process(target=run_slowly, args=(candidates, folder), kwargs=shard)
            process.start()
            wait_for_lines(folder / "scores.jsonl", 1)
            os.kill(process.pid, sent)
            process.join(60)
            assert process.exitcode == (-signal.SIGKILL if number == 3 else 0)
            assert 1 <= (folder / "scores.jsonl").read_bytes().count(b"\n") < 3
            assert not (folder / "run.trec").exists()
            with pytest.raises(ValueError, match=rf"shard {number}/8 \(.*\): not finished \(status running\)"):
                merge(tmp_path / "merged", folders[:number])
        execute(plan(candidates, folder, reranker, shard=Shard(number, 8), **settings))
        assert not (folder / "evaluation.json").exists()
    merged = merge(tmp_path / "merged", folders[::-1])
    assert_same(tmp_path / "one", tmp_path / "merged")
    assert list(merged.failed) == ["q7"]
    again = execute(plan(candidates, tmp_path / "merged", reranker, **settings))  # an ordinary run, which can go on
    assert (tmp_path / "merged" / "run.trec").read_bytes() == (tmp_path / "one" / "run.trec").read_bytes()
    assert len(again.manifest["sessions"]) == 11  # of eight shards, two of them in two calls, and this one


class Vectors(Source):
    """What a query finds depends on what else is in its chunk, as last digits of vectors do."""

    def retrieve(self, queries):
        known = list(queries)
        for place in range(0, len(known), _CHUNK):
            chunk = known[place : place + _CHUNK]
            for query in chunk:
                ranking = ranking_of(query.qid, query.text)
                shift = sum(len(other.text) for other in chunk) / 1e4
                yield replace(ranking, candidates=tuple(replace(c, score=c.score + shift) for c in ranking.candidates))

    def describe(self):
        return {"source": "vectors"}


def test_shards_retrieve_their_own_queries_and_find_what_one_process_finds(tmp_path):
    queries = [Query(f"q{i}", "flea " * (i % 7 + 1)) for i in range(80)]
    source = supply_from_source(Vectors(), queries)
    execute(plan(tmp_path, tmp_path / "one", supply=source, limit=75))
    folders = [tmp_path / f"shard{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(folders, start=1):
        execute(plan(tmp_path, folder, supply=source, limit=75, shard=Shard(number, 3)))
        assert (folder / "candidates.jsonl").read_text().count("\n") == [24, 26, 25][number - 1]
    merge(tmp_path / "merged", folders)
    assert_same(tmp_path / "one", tmp_path / "merged")
    assert search._CHUNK == _CHUNK


@pytest.fixture
def three(candidates, judgement, tmp_path) -> list[Path]:
    folders = [tmp_path / f"shard{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(folders, start=1):
        execute(plan(candidates, folder, shard=Shard(number, 3), judgement=judgement))
    return folders


def test_what_keeps_shards_from_being_one_run_is_named(candidates, judgement, three, tmp_path):
    first, second, third = three
    out = tmp_path / "merged"

    def refused(message: str, *folders: Path, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=message):
            merge(out, folders)
        assert not out.exists() and not list(tmp_path.glob(".*"))

    refused("shard 2/3: missing among the 2 given; all 3 are needed", first, third)
    refused(r"shard2\): shard 2/3 is given twice", first, second, second)
    execute(plan(candidates, tmp_path / "deeper", depth=3, shard=Shard(2, 3), judgement=judgement))
    refused(r"shard 2/3 \(.*deeper\): was run with other settings:\n  depth: expected 4 as in .*1/3 .*, got 3",
            first, tmp_path / "deeper", third)  # fmt: skip
    other = replace(judgement, measures=("RR",))
    execute(plan(candidates, tmp_path / "judged", shard=Shard(3, 3), judgement=other))
    refused(r"shard 3/3 .*\n  judgement.measures: expected", first, second, tmp_path / "judged")
    execute(plan(candidates, tmp_path / "whole"))
    refused("whole: a run of all queries, not of a shard", tmp_path / "whole", first)
    refused("nowhere: no manifest.json", tmp_path / "nowhere", error=FileNotFoundError)
    execute(plan(candidates, tmp_path / "four", shard=Shard(1, 4)))
    refused(r"four\): expected one of 3 shards", first, tmp_path / "four")
    for file in ("run.trec", "first_stage.trec"):
        kept = (third / file).read_bytes()
        (third / file).write_bytes(kept[:-30])
        refused(rf"shard 3/3 \(.*shard3\): {file}: expected SHA-256", first, second, third)
        (third / file).write_bytes(kept)
    lines = (third / "scores.jsonl").read_text().splitlines(keepends=True)
    (third / "scores.jsonl").write_text("".join(lines[:-1]))
    refused("shard 3/3 .*scores.jsonl: expected 7 queries, got 6", first, second, third)
    (third / "scores.jsonl").write_text("".join(lines))
    (tmp_path / "qrels.txt").rename(tmp_path / "moved.txt")
    refused("no such qrels file any more; name it with qrels=FILE", *three, error=FileNotFoundError)
    assert merge(out, three, qrels=tmp_path / "moved.txt").judged is not None
    with pytest.raises(FileExistsError, match="is there already"):
        merge(out, three)


def test_shards_of_a_list_that_names_a_query_twice_are_refused(tmp_path):
    path = tmp_path / "candidates.jsonl"
    path.write_text("".join(candidate_line(ranking_of(qid)) + "\n" for qid in ("q0", "q1", "q2", "q0")))
    supply = replace(supply_from_file(path), rankings=lambda: map(ranking_of, ("q0", "q1", "q2", "q0")))
    for number in (1, 2):
        execute(plan(path, tmp_path / f"shard{number}", supply=supply, shard=Shard(number, 2)))
    with pytest.raises(ValueError, match=r"shard 2/2 .*qid q0: is in shard 1/2"):
        merge(tmp_path / "merged", [tmp_path / "shard1", tmp_path / "shard2"])


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/3/5"])
def test_a_shard_that_there_is_not_is_refused_as_a_flag(text, tmp_path):
    done = CliRunner().invoke(main, ["rerank", "--candidates", "c", "--output", "o", "--model", "m", "--shard", text])
    assert (done.exit_code, "expected I/N with I from 1 to N, for example 3/8" in done.stderr) == (2, True)


def test_more_shards_than_batches_are_refused(candidates, tmp_path):
    with pytest.raises(ValueError, match="19 queries make 10 batches of 2, none of which is divided; take at most 10"):
        execute(plan(candidates, tmp_path / "run", shard=Shard(1, 11)))


def test_a_merged_run_is_made_again_by_one_command_and_a_shard_by_its_own(candidates, three, tmp_path):
    words = ["headrank", "rerank", "--candidates", "c.jsonl", "--shard", "1/3", "--output", "x"]
    for folder in three:
        manifest = manifest_of(folder)
        manifest["sessions"][0]["command"] = " ".join(words)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    merge(tmp_path / "merged", three)
    assert recorded_command(tmp_path / "merged") == ["rerank", "--candidates", "c.jsonl"]
    assert recorded_command(three[0]) == ["rerank", "--candidates", "c.jsonl", "--shard", "1/3"]


def test_the_first_queries_are_run_and_published_scores_not_checked(candidates, judgement, tmp_path):
    outcome = execute(plan(candidates, tmp_path / "run", limit=3, judgement=judgement))
    assert outcome.manifest["totals"]["queries"] == 3
    assert (outcome.judged.reranked.answered, len(outcome.judged.reranked.missing)) == (2, 8)  # q0 and q2 are judged
    assert (list(outcome.judged.checks), outcome.judged.unasked) == ([], 8)
    with pytest.raises(ValueError, match="limit: there 3, now None"):
        execute(plan(candidates, tmp_path / "run", judgement=judgement))
    source = FivePassages()
    supply = supply_from_source(source, [Query("a", "flea"), Query("b", "dog"), Query("c", "cat")])
    execute(plan(candidates, tmp_path / "found", supply=supply, limit=2))
    assert (tmp_path / "found" / "candidates.jsonl").read_text().count("\n") == 2


def test_a_merge_that_was_killed_leaves_nothing_that_looks_like_a_run(three, tmp_path):
    litter = tmp_path / ".merged.merging"
    shutil.copytree(three[0], litter)
    merge(tmp_path / "merged", three)
    assert not litter.exists()


def test_two_merges_into_one_folder_do_not_take_each_others_files(three, tmp_path):
    with locked_folder(tmp_path / ".merged.merging", "merged run"):
        (tmp_path / ".merged.merging" / "run.trec").write_text("of the first one")
        with pytest.raises(RuntimeError, match=r"another process .* is writing this merged run; wait for it"):
            merge(tmp_path / "merged", three)
        assert (tmp_path / ".merged.merging" / "run.trec").exists()
    assert merge(tmp_path / "merged", three).directory.run.stat().st_size > 100
    assert not (tmp_path / ".merged.merging").exists()
