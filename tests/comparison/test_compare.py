"""Comparison of runs: agreement with trec_eval and scipy, cases worked out by hand, refusals."""

import json
import math
import shutil
from pathlib import Path
from pipes import piped

import numpy as np
import pytest
from click.testing import CliRunner
from run_directories import Scripted, graded_candidates, make_run, shuffled_copy, write_qrels
from scipy import stats

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.cli.comparison import FIELDS as CLI_FIELDS
from headrank_pipeline.cli.comparison import compare as compare_command
from headrank_pipeline.comparison.comparable import FIELDS
from headrank_pipeline.comparison.compare import FIRST_STAGE, compare
from headrank_pipeline.comparison.comparison_report import comparison_tables, save_comparison
from headrank_pipeline.comparison.costs import cost_of
from headrank_pipeline.comparison.finished import read_finished, read_finished_runs
from headrank_pipeline.comparison.significance import (
    bootstrap_means,
    bootstrap_ratio,
    effect_size,
    holm,
    paired_tests,
    randomisation_p,
    t_test_p,
    wins_ties_losses,
)
from headrank_pipeline.experiment.directory import Entry, journal_key
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, write_candidates

pytestmark = pytest.mark.usefixtures("small_pictures")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Candidates, qrels, and the runs good, bad and rankgpt on 12 queries of 20 passages."""
    folder = tmp_path_factory.mktemp("compare")
    candidates, qrels, grades = graded_candidates(folder, 12, 20)
    replies = {"prompt_tokens": 5000, "generated_tokens": 90, "forward_passes": 91, "replies": 4, "replies_repaired": 1}
    for name, noise, notes in (("good", 0.5, {"prompt_tokens": 1000}), ("bad", 5.0, {}), ("rankgpt", 1.5, replies)):
        make_run(folder / "runs" / name, candidates, qrels, Scripted(grades, noise, notes=notes), tag=f"tag-{name}")
    return folder


@pytest.fixture(scope="module")
def comparison(made):
    runs = [made / "runs" / name for name in ("good", "bad", "rankgpt")]
    return compare(runs, qrels=made / "qrels.txt", measures=["nDCG@10", "R@5"])


# ------------------------------------------------------------------------------------------------------- statistics


def test_means_equal_trec_eval(made, comparison):
    import pytrec_eval

    from headrank_pipeline.trec import read_qrels, read_run

    grades = read_qrels(made / "qrels.txt")
    for name in ("good", "bad"):
        run = {q: {c.docid: c.score for c in found} for q, found in read_run(made / "runs" / name / "run.trec").items()}
        judged = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut_10", "recall_5"}).evaluate(run)
        row = comparison.summary.set_index("system").loc[name]
        assert round(row["nDCG@10"], 4) == round(np.mean([v["ndcg_cut_10"] for v in judged.values()]), 4)
        assert round(row["R@5"], 4) == round(np.mean([v["recall_5"] for v in judged.values()]), 4)


def test_judgments_may_come_through_a_pipe(made, comparison):
    runs = [made / "runs" / name for name in ("good", "bad", "rankgpt")]
    with piped((made / "qrels.txt").read_bytes()) as qrels:
        found = compare(runs, qrels=qrels, measures=["nDCG@10", "R@5"])
    assert found.per_query.equals(comparison.per_query)
    assert found.conditions["qrels_sha256"] == comparison.conditions["qrels_sha256"]


def test_p_values_of_a_comparison_equal_scipy(comparison):
    values = comparison.values("nDCG@10")
    row = comparison.tests.set_index(["measure", "system"]).loc[("nDCG@10", "bad")]
    assert row["t_test"] == pytest.approx(stats.ttest_rel(values["bad"], values[FIRST_STAGE]).pvalue, rel=1e-12)
    exact = stats.permutation_test(
        (values["bad"], values[FIRST_STAGE]),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert row["randomisation"] == pytest.approx(exact.pvalue, abs=1e-12)
    assert row["difference"] == pytest.approx((values["bad"] - values[FIRST_STAGE]).mean(), abs=1e-12)


def test_many_queries_are_tested_with_seeded_draws_close_to_the_exact_value():
    differences = np.random.default_rng(3).normal(0.15, 1.0, size=16)
    bits = (np.arange(2**16)[:, None] >> np.arange(16)) & 1
    exact = float((np.abs((2.0 * bits - 1) @ differences) >= abs(differences.sum()) - 1e-9).mean())
    p = randomisation_p(differences, seed=1)
    assert p == randomisation_p(differences, seed=1) != randomisation_p(differences, seed=2)
    assert p == pytest.approx(exact, abs=0.01)
    assert randomisation_p(np.arange(1.0, 31.0)) == 1 / 20_001  # no draw is as extreme but the observed one


def test_identical_values_differ_by_0_with_p_1_and_effect_0():
    values = np.array([0.1, 0.5, 0.5, 1.0])
    [test] = paired_tests(values[:, None], values)
    assert (test.difference, test.t_test, test.randomisation, test.effect_size) == (0.0, 1.0, 1.0, 0.0)
    assert (test.wins, test.ties, test.losses) == (0, 4, 0)
    assert (test.interval.low, test.interval.high) == (0.0, 0.0)


def test_sums_in_another_order_are_ties():
    assert wins_ties_losses(np.array([0.1 + 0.2 - 0.3, 0.3 - 0.1 - 0.2, 0.5])) == (1, 2, 0)


def test_identical_runs_differ_by_0_with_p_1(made, tmp_path):
    shutil.copytree(made / "runs" / "good", tmp_path / "copy")
    found = compare([made / "runs" / "good", tmp_path / "copy"], qrels=made / "qrels.txt", baseline="good")
    copies = found.tests[found.tests["system"] == "copy"]
    assert len(copies) == 3
    assert set(copies["difference"]) == {0.0}
    for column in ("t_test", "t_test_holm", "randomisation", "randomisation_holm"):
        assert set(copies[column]) == {1.0}


def test_one_query_cannot_be_tested_and_a_constant_difference_is_certain():
    assert math.isnan(t_test_p(np.array([0.2])))
    assert math.isnan(randomisation_p(np.array([0.2])))
    assert math.isnan(effect_size(np.array([0.2])))
    constant = np.array([0.2, 0.2, 0.2])
    assert (t_test_p(constant), randomisation_p(constant), effect_size(-constant)) == (0.0, 0.25, -math.inf)
    assert t_test_p(np.array([1e-13, 0.0, -1e-13])) == 1.0  # the same sum in another order


def test_holm_multiplies_by_the_number_of_tests_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    corrected = holm([0.01, math.nan, 0.9, 0.8])
    assert corrected[0] == pytest.approx(0.03)
    assert math.isnan(corrected[1])
    assert corrected[2:] == [1.0, 1.0]


def test_holm_of_a_comparison_covers_the_systems_of_one_measure(comparison):
    for _, rows in comparison.tests.groupby("measure"):
        assert list(rows["system"]) == ["good", "bad", "rankgpt"]
        assert list(rows["t_test_holm"]) == pytest.approx(holm(list(rows["t_test"])))


def test_bootstrap_intervals_hold_the_mean_and_agree_with_scipy():
    values = np.random.default_rng(0).random(40)
    [found] = bootstrap_means(values[:, None], seed=5)
    assert found == bootstrap_means(values[:, None], seed=5)[0]
    wanted = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=0.01), pytest.approx(wanted.high, abs=0.01))
    ratio = bootstrap_ratio(values, np.ones(40), seed=5)
    assert (ratio.low, ratio.high) == (pytest.approx(found.low), pytest.approx(found.high))
    assert math.isnan(bootstrap_ratio(np.zeros(3), np.zeros(3)).low)
    halves = bootstrap_ratio(np.array([0.5, 0.0]), np.array([1.0, 0.0]))  # every fourth draw has no whole at all
    assert (halves.low, halves.high) == (0.5, 0.5)


def test_effect_size_is_the_mean_in_standard_deviations():
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)


# ---------------------------------------------------------------------------------------------------------- content


def three_passages(folder: Path) -> tuple[Path, Path]:
    """Two queries with three candidates, the relevant one last; a third judged query that no run has."""
    passages = [Candidate(docid, 3.0 - place, "text") for place, docid in enumerate(("a", "b", "c"))]
    write_candidates(folder / "c.jsonl", [Ranking(Query(qid, "flea"), tuple(passages)) for qid in ("q1", "q2")])
    return folder / "c.jsonl", write_qrels(folder / "q.txt", {"q1": {"c": 1, "z": 1}, "q2": {"c": 2}, "q3": {"a": 1}})


def test_means_wins_and_ceiling_by_hand_with_a_missing_query_as_0(tmp_path):
    candidates, qrels = three_passages(tmp_path)
    best = make_run(tmp_path / "best", candidates, qrels, Scripted({}, by_docid={"c": 9.0, "b": 2.0, "a": 1.0}))
    found = compare([best], qrels=qrels, measures=["RR", "R@100"])
    assert list(found.summary["RR"]) == pytest.approx([2 / 9, 2 / 3])  # 1/3 + 1/3 + 0 and 1 + 1 + 0, by three queries
    row = found.tests.iloc[0]
    assert (row["wins"], row["ties"], row["losses"], row["difference"]) == (2, 0, 0, pytest.approx(2 / 3))
    assert found.ceiling == {"RR": pytest.approx(2 / 3), "R@100": pytest.approx((0.5 + 1 + 0) / 3)}
    assert found.notes[0] == (
        "no run has 1 of the 3 judged queries: the means in the table count them 0, as trec_eval does, tests leave "
        "them out; means over the other 2: first stage RR 0.3333, R@100 0.7500; best RR 1.0000, R@100 0.7500"
    )
    assert len(found.notes) == 1
    assert sorted(found.per_query["qid"].unique()) == ["q1", "q2"]
    save_comparison(found, tmp_path / "page", command="headrank compare best")
    assert "over 2 queries, seed 0" in (tmp_path / "page" / "report.html").read_text()
    recorded = json.loads((tmp_path / "page" / "comparison.json").read_text())["conditions"]
    assert (recorded["queries"], recorded["tested"]) == (3, 2)


def test_the_ceiling_reorders_down_to_the_depth_and_keeps_the_rest(tmp_path):
    candidates, qrels = three_passages(tmp_path)
    run = make_run(tmp_path / "run", candidates, qrels, Scripted({}), depth=2)
    ceiling = compare([run], qrels=qrels, measures=["RR", "R@3"]).ceiling
    # c is third: out of the reranker's reach, but there.
    assert ceiling == {"RR": pytest.approx(2 / 9), "R@3": pytest.approx(1.5 / 3), "R@2": 0.0}


def test_costs_come_from_notes_per_query_and_absent_ones_stay_unknown(made, comparison):
    rows = comparison.summary.set_index("system")
    assert rows.loc["rankgpt", "prompt_tokens"] == 5000
    assert rows.loc["rankgpt", "generated_tokens"] == 90
    assert rows.loc["rankgpt", "forward_passes"] == 91
    assert rows.loc["rankgpt", "formatting_success"] == 0.75
    assert rows.loc["good", "latency_p95"] >= rows.loc["good", "latency_p50"] > 0
    good = cost_of(read_finished(made / "runs" / "good"))
    assert (good.generated_tokens, good.formatting_success, good.gpu_peak_memory_bytes) == (None, None, None)
    cells = {row[0]: row for row in comparison_tables(comparison)[-1].cells()}
    assert cells["rankgpt"][4:8] == ["5,000", "90", "91.0", "75.0%"]
    assert cells["good"][5] == cells["good"][7] == "-"


def test_costs_are_those_of_all_sessions_and_of_the_queries_that_were_counted(made, tmp_path):
    run = Path(shutil.copytree(made / "runs" / "rankgpt", tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    [session], totals = manifest["sessions"], manifest["totals"]
    del totals["queries_counted"]  # as in runs of earlier builds, which counted scored queries alone
    sessions = [{**session, "peak_memory_bytes": 2**50}, session]
    changed(run / "manifest.json", sessions=sessions, totals={**totals, "failed": {"q0": "no reply"}})
    cost = cost_of(read_finished(run))
    assert (cost.peak_memory_bytes, cost.prompt_tokens) == (2**50, pytest.approx(12 * 5000 / 11))


def test_a_torn_line_and_a_query_without_candidates_are_no_scores(made, tmp_path):
    run = Path(shutil.copytree(made / "runs" / "good", tmp_path / "run"))
    line = Entry("q98").line(journal_key(read_finished(run).identity))
    with (run / "scores.jsonl").open("a") as journal:
        journal.write(line + '{"qid": "q99", "doc')
    assert set(read_finished(run).scored) == {f"q{number}" for number in range(12)}


def test_failed_queries_count_0_and_are_told(made, tmp_path):
    candidates, qrels = made / "candidates.jsonl", made / "qrels.txt"
    run = make_run(tmp_path / "partial", candidates, qrels, Scripted({}, failing=frozenset({"q3"})))
    found = compare([run, made / "runs" / "good"], qrels=qrels, measures=["nDCG@10"])
    assert list(found.per_query.query("qid == 'q3' and system == 'partial'")["nDCG@10"]) == [0.0]
    assert any("partial lacks 1 of the judged queries" in note for note in found.notes)
    assert found.summary.set_index("system").loc["partial", "failed"] == 1


def test_reranking_that_changed_nothing_is_told(made, tmp_path):
    candidates, qrels = made / "candidates.jsonl", made / "qrels.txt"
    order = {c.docid: c.score for ranking in read_candidates(candidates) for c in ranking.candidates}
    run = make_run(tmp_path / "echo", candidates, qrels, Scripted({}, by_docid=order))
    told = "echo: reranking changed nothing: 12 of 12 lists are in the order of the first stage"
    found = compare([run, made / "runs" / "good"], qrels=qrels)
    assert [note for note in found.notes if "reranking" in note] == [told]
    save_comparison(found, tmp_path / "report", command="headrank compare")
    assert all(told in (tmp_path / "report" / name).read_text() for name in ("report.html", "comparison.md"))


@pytest.mark.parametrize(
    ("wanted", "name"),
    [("bm25", FIRST_STAGE), ("first-stage", FIRST_STAGE), ("bad", "bad"), ("tag-bad", "bad"), ("DIR", "bad")],
)
def test_a_baseline_is_the_first_stage_a_name_a_tag_or_a_directory(made, wanted, name):
    runs = [made / "runs" / "good", made / "runs" / "bad"]
    wanted = str(made / "runs" / "bad") + "/" if wanted == "DIR" else wanted
    found = compare(runs, qrels=made / "qrels.txt", baseline=wanted, measures=["RR"])
    assert found.baseline == name
    assert name not in set(found.tests["system"])


def test_an_unknown_baseline_lists_the_systems(made):
    with pytest.raises(ValueError, match=r"baseline 'splade'.*first stage, good"):
        compare([made / "runs" / "good"], qrels=made / "qrels.txt", baseline="splade")


def test_names_are_the_shortest_different_ends_of_the_paths(made, tmp_path):
    for folder in ("a", "b"):
        shutil.copytree(made / "runs" / "good", tmp_path / folder / "good")
    paths = [tmp_path / "a" / "good", tmp_path / "b" / "good", tmp_path / "b" / "good"]
    assert [run.name for run in read_finished_runs(paths)] == ["a/good", "b/good", "b/good (2)"]


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def others(made):
    """A function that makes a run which differs from `good` in one thing."""

    def make(folder: Path, *, candidates: Path | None = None, qrels: Path | None = None, **plan) -> list[Path]:
        path = candidates or made / "candidates.jsonl"
        run = make_run(folder, path, qrels or made / "qrels.txt", Scripted({}), **plan)
        return [made / "runs" / "good", run]

    return make


def test_runs_of_other_depth_are_refused_with_both_values_unless_allowed(made, others, tmp_path):
    runs = others(tmp_path / "shallow", depth=7)
    with pytest.raises(ValueError, match=r"(?s)depth: good has 100, shallow has 7.*allow_different=depth") as refusal:
        compare(runs, qrels=made / "qrels.txt")
    assert "candidates" not in str(refusal.value).splitlines()[1]
    found = compare(runs, qrels=made / "qrels.txt", allow_different=["depth"])
    assert found.notes[0] == "allowed to differ: depth: good has 100, shallow has 7"
    assert found.conditions["depth"] is None
    assert found.conditions["candidates"] is not None
    assert "R@100" in comparison_tables(found)[0].note  # of the first run, as its ceiling
    save_comparison(found, tmp_path / "page", command="headrank compare")
    page = (tmp_path / "page" / "report.html").read_text()
    assert "the same candidates for every system, baseline" in page


def test_runs_on_other_candidates_are_refused(made, others, tmp_path):
    shuffled = shuffled_copy(made / "candidates.jsonl", tmp_path / "s.jsonl", 1)
    with pytest.raises(ValueError, match=r"candidates\.candidates_sha256: good has '") as refusal:
        compare(others(tmp_path / "other", candidates=shuffled), qrels=made / "qrels.txt")
    hashes = {
        read_finished(path).identity["candidates"]["candidates_sha256"]
        for path in (made / "runs" / "good", tmp_path / "other")
    }
    assert len(hashes) == 2
    assert all(value in str(refusal.value) for value in hashes)


def test_where_manifests_cannot_tell_the_first_stage_files_do(made, others, tmp_path):
    """One run retrieved what another read from a file: the two identities have no key in common."""
    shuffled = shuffled_copy(made / "candidates.jsonl", tmp_path / "s.jsonl", 1)
    runs = others(tmp_path / "other", candidates=shuffled)
    manifest = json.loads((runs[1] / "manifest.json").read_text())
    manifest["identity"]["candidates"] = {"source": {"stage": "bm25"}, "queries_sha256": "0"}
    (runs[1] / "manifest.json").write_text(json.dumps(manifest))
    told = r"(?s)candidates \(qid q0\): good has d0-0 at rank 1, other has d0-.* with allow_different=candidates$"
    with pytest.raises(ValueError, match=told):
        compare(runs, qrels=made / "qrels.txt")
    found = compare(runs, qrels=made / "qrels.txt", allow_different=["candidates"])
    assert found.notes[0].startswith("allowed to differ: candidates (qid q0): good has d0-0 at rank 1")
    assert found.notes[1] == "first stage and ideal order of the candidates are those of good"
    assert found.conditions["candidates"] is None
    save_comparison(found, tmp_path / "page", command="headrank compare")
    page = (tmp_path / "page" / "report.html").read_text()
    assert "the same candidates for every system" not in page
    assert "queries, depth 100, baseline first stage" in page
    lines = (made / "runs" / "good" / "first_stage.trec").read_text().splitlines(keepends=True)
    (runs[1] / "first_stage.trec").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"candidates \(qid q11\): good has d11-19 at rank 20, other has none"):
        compare(runs, qrels=made / "qrels.txt")
    (runs[1] / "first_stage.trec").write_text("".join(lines))
    assert compare(runs, qrels=made / "qrels.txt", baseline="bm25").baseline == FIRST_STAGE


def changed(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_index_paths_and_hashes_of_topics_are_no_difference_and_a_first_stage_goes_by_its_name(made, tmp_path):
    runs = [Path(shutil.copytree(made / "runs" / "good", tmp_path / name)) for name in ("here", "there")]
    for run in runs:
        identity = json.loads((run / "manifest.json").read_text())["identity"]
        candidates = {"source": {"stage": "dense", "index": run.name}, "qids_sha256": run.name}
        changed(run / "manifest.json", identity={**identity, "candidates": candidates})
    assert compare(runs, qrels=made / "qrels.txt", baseline="dense").baseline == FIRST_STAGE
    with pytest.raises(ValueError, match="baseline 'bm25': no such system"):
        compare(runs, qrels=made / "qrels.txt", baseline="bm25")


def test_runs_on_other_topics_are_refused(made, others, tmp_path):
    lines = (made / "candidates.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[:9]))
    runs = others(tmp_path / "few", candidates=tmp_path / "few.jsonl")
    with pytest.raises(ValueError, match=r"topics: good has 12 queries \(q10, q11, q9 only here\), few has 9 queries"):
        compare(runs, qrels=made / "qrels.txt")


def test_runs_evaluated_with_other_qrels_are_refused(made, others, tmp_path):
    other = write_qrels(tmp_path / "other.txt", {"q0": {"d0-1": 1}})
    with pytest.raises(ValueError, match=r"(?s)qrels.qrels_sha256: good has .*allow_different=qrels"):
        compare(others(tmp_path / "run", qrels=other), qrels=made / "qrels.txt")


def test_the_relevance_level_is_that_of_the_runs_which_must_agree(made, tmp_path):
    run = Path(shutil.copytree(made / "runs" / "good", tmp_path / "run"))
    changed(run / "evaluation.json", relevance_level=2)
    assert compare([run]).conditions["relevance_level"] == 2
    with pytest.raises(ValueError, match=r"qrels\.relevance_level: good has 1, run has 2"):
        compare([made / "runs" / "good", run])


def test_runs_of_other_benchmarks_are_refused(made, others, tmp_path):
    runs = others(tmp_path / "run", benchmark={"name": "dl19", "version": "2"})
    with pytest.raises(ValueError, match=r"benchmark: good has None, run has \{'name': 'dl19'"):
        compare(runs, qrels=made / "qrels.txt")


def test_unfinished_runs_and_other_folders_are_refused(made, tmp_path):
    shutil.copytree(made / "runs" / "good", tmp_path / "open")
    (tmp_path / "open" / "run.trec").unlink()
    with pytest.raises(ValueError, match="open: the run is not finished"):
        compare([tmp_path / "open"])
    with pytest.raises(FileNotFoundError, match=r"runs below it, .*runs/\*/ names them"):
        compare([made / "runs"])


def test_judgments_are_those_of_the_runs_while_they_are_unchanged(made, tmp_path):
    assert compare([made / "runs" / "good"]).conditions["qrels"] == str(made / "qrels.txt")
    shutil.copytree(made / "runs" / "good", tmp_path / "good")
    evaluation = json.loads((tmp_path / "good" / "evaluation.json").read_text())
    (tmp_path / "good" / "evaluation.json").write_text(json.dumps({**evaluation, "qrels_sha256": "0"}))
    with pytest.raises(FileNotFoundError, match=r"no judgments known for .*good; name them with qrels=FILE"):
        compare([tmp_path / "good"])


def test_a_relative_path_in_a_manifest_starts_where_its_command_was_called(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    three_passages(home)
    heads = HeadSet(name="two", heads=((0, 1), (2, 3)))
    heads.save(home / "heads.json")
    monkeypatch.chdir(home)
    make_run(Path("run"), Path("c.jsonl"), Path("q.txt"), Scripted({}))
    manifest = json.loads((home / "run" / "manifest.json").read_text())
    assert (manifest["origins"]["candidates"], manifest["origins"]["qrels"]) == ("c.jsonl", "q.txt")
    monkeypatch.chdir(tmp_path)
    for name in ("c.jsonl", "q.txt", "heads.json"):
        shutil.copyfile(home / "q.txt", tmp_path / name)  # others of the same name, where nobody meant them
    (tmp_path / "q.txt").write_text("q1 0 a 1\n")
    assert compare([home / "run"]).conditions["qrels"] == str(home / "q.txt")
    run = read_finished(home / "run")
    assert [ranking.query.qid for ranking in run.rankings()] == ["q1", "q2"]
    run.manifest["identity"]["reranker"]["heads"] = {"sha256": heads.digest()}
    run.manifest["sessions"][0]["command"] += " --heads heads.json"
    assert run.heads_file == home / "heads.json"
    shutil.move(home, tmp_path / "moved")  # with its files: who stands beside them finds them
    monkeypatch.chdir(tmp_path / "moved")
    assert compare(["run"]).conditions["qrels"] == "q.txt"


# ---------------------------------------------------------------------------------------------------------- command


def test_the_command_prints_tables_for_people_and_json_for_machines(made):
    arguments = [*(str(made / "runs" / name) for name in ("good", "bad")), "--qrels", str(made / "qrels.txt")]
    result = CliRunner().invoke(compare_command, [*arguments, "--baseline", "bm25"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "nDCG@10 against first stage" in result.output
    result = CliRunner().invoke(compare_command, [*arguments, "--json"], catch_exceptions=False)
    assert [system["system"] for system in json.loads(result.output)["systems"]] == [FIRST_STAGE, "good", "bad"]


def test_the_command_takes_the_fields_that_the_check_knows():
    assert CLI_FIELDS == FIELDS


def test_every_form_is_written(comparison, tmp_path):
    written = save_comparison(comparison, tmp_path / "a", command="headrank compare runs/*/")
    figures = {f"figures/{name}.png" for name in ("difference", "per-query", "quality-cost")}
    tables = {"summary.csv", "tests.csv", "per_query.csv", "comparison.md", "comparison.json", "report.html"}
    assert {path.relative_to(tmp_path / "a").as_posix() for path in written} == figures | tables
    record = json.loads((tmp_path / "a" / "comparison.json").read_text())
    assert (record["baseline"], record["conditions"]["depth"]) == (FIRST_STAGE, 100)
    assert "| good |" in (tmp_path / "a" / "comparison.md").read_text()
    assert (tmp_path / "a" / "per_query.csv").read_text().splitlines()[0] == "system,qid,nDCG@10,R@5"


def test_the_first_stage_is_tested_where_a_run_is_the_baseline(made):
    found = compare([made / "runs" / "good"], qrels=made / "qrels.txt", baseline="good", measures=["RR"])
    assert list(found.tests["system"]) == [FIRST_STAGE]
    assert [table.title for table in comparison_tables(found)] == ["Means", "RR against good", "Time, tokens, memory"]


def test_the_same_comparison_gives_the_same_numbers(made, comparison):
    again = compare(
        [run.directory.path for run in comparison.runs], qrels=made / "qrels.txt", measures=["nDCG@10", "R@5"]
    )
    assert again.tests.equals(comparison.tests)
    assert again.summary.equals(comparison.summary)
    assert not again.tests.equals(
        compare(
            [run.directory.path for run in again.runs], qrels=made / "qrels.txt", measures=["nDCG@10", "R@5"], seed=1
        ).tests
    )


@pytest.mark.shared_data
def test_the_first_stage_of_dl19_has_its_published_value(shared_data, tmp_path):
    """0.5058, Anserini's figure for BM25 with k1 0.9 and b 0.4, to four digits."""
    qrels = shared_data / "dl19" / "qrels.txt"
    run = make_run(tmp_path / "run", shared_data / "dl19" / "candidates.jsonl.gz", None, Scripted({}))
    found = compare([run], qrels=qrels, measures=["nDCG@10"])
    assert round(found.summary["nDCG@10"][0], 4) == 0.5058
    assert found.ceiling["nDCG@10"] > 0.85
