"""Run files of any tool in a comparison: alone, and beside run directories."""

import gzip
import hashlib
import json
import re
from collections import defaultdict
from pathlib import Path
from pipes import piped

import numpy as np
import pytest
import pytrec_eval
from click.testing import CliRunner
from ir_datasets.formats import TrecQrel
from run_directories import Scripted, graded_candidates, make_run
from scipy import stats

from headrank_pipeline.cli.comparison import analyze as analyze_command
from headrank_pipeline.cli.comparison import compare as compare_command
from headrank_pipeline.comparison.analysis_report import analyze
from headrank_pipeline.comparison.compare import FIRST_STAGE, compare
from headrank_pipeline.comparison.comparison_report import comparison_tables, save_comparison
from headrank_pipeline.comparison.finished import read_runs
from headrank_pipeline.experiment.benchmark import benchmark_of_dataset
from headrank_pipeline.experiment.sources import Dataset

pytestmark = pytest.mark.usefixtures("small_pictures")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Judgments, the run directory ``ours``, and run files: ``same.trec`` is its run.trec, ``theirs.txt`` another."""
    folder = tmp_path_factory.mktemp("files")
    candidates, qrels, grades = graded_candidates(folder, 12, 20)
    ours = make_run(folder / "ours", candidates, qrels, Scripted(grades, 0.5))
    (folder / "same.trec").write_bytes((ours / "run.trec").read_bytes())
    lines = []
    for number in range(10):  # q10 and q11 are missing, and every two passages are tied
        for rank in range(15):
            lines.append(f"q{number} Q0 d{number}-{(rank * 7) % 15} {rank + 1} {(30 - rank) // 2} theirs\n")
    (folder / "theirs.txt").write_text("".join(lines))
    return folder


def columns(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def trec_eval(made: Path, run: Path) -> dict[str, dict[str, float]]:
    """What pytrec_eval says of a file, read here, with 0 for a query that the run lacks."""
    grades, scores = defaultdict(dict), defaultdict(dict)
    for qid, _, docid, grade in columns(made / "qrels.txt"):
        grades[qid][docid] = int(grade)
    for qid, _, docid, _, score, _ in columns(run):
        scores[qid][docid] = float(score)
    found = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut_10", "recall_100"}).evaluate(scores)
    nothing = {"ndcg_cut_10": 0.0, "recall_100": 0.0}
    return {qid: found.get(qid, nothing) for qid in grades}


# ---------------------------------------------------------------------------------------------------------- figures


def test_run_files_alone_have_the_figures_of_trec_eval_and_the_tests_of_scipy(made):
    found = compare([made / "same.trec", made / "theirs.txt"], qrels=made / "qrels.txt")
    assert found.systems == ["same", "theirs"]
    values = {}
    for name, file in (("same", "same.trec"), ("theirs", "theirs.txt")):
        expected = trec_eval(made, made / file)
        row = found.summary.set_index("system").loc[name]
        for measure, theirs in (("nDCG@10", "ndcg_cut_10"), ("R@100", "recall_100")):
            by_query = {qid: result[theirs] for qid, result in expected.items()}
            assert found.values(measure)[name].to_dict() == by_query
            assert row[measure] == pytest.approx(np.mean(list(by_query.values())), abs=1e-12)
        values[name] = [result["ndcg_cut_10"] for result in expected.values()]
    test = found.tests.set_index(["measure", "system"]).loc[("nDCG@10", "theirs")]
    assert test["difference"] == pytest.approx(np.mean(values["theirs"]) - np.mean(values["same"]), abs=1e-12)
    assert test["t_test"] == pytest.approx(stats.ttest_rel(values["theirs"], values["same"]).pvalue, rel=1e-9)
    assert "theirs lacks 2 of the judged queries, which count 0: q10, q11" in found.notes


def test_measures_and_level_of_run_files_alone_are_those_of_evaluate(made):
    from headrank_pipeline import evaluate

    found = compare([made / "same.trec", made / "theirs.txt"], qrels=made / "qrels.txt")
    alone = evaluate(made / "theirs.txt", made / "qrels.txt")
    assert found.measures == tuple(alone.means)
    assert found.conditions["relevance_level"] == alone.relevance_level == 1
    assert found.summary.set_index("system").loc["theirs", list(alone.means)].to_dict() == alone.means


def test_judgments_of_ir_datasets_are_those_of_a_file_with_the_benchmarks_measures_and_level(made, monkeypatch):
    lines = [line.split() for line in (made / "qrels.txt").read_text().splitlines()]
    judged = [TrecQrel(qid, docid, int(grade), "0") for qid, _, docid, grade in lines]  # what would be downloaded
    monkeypatch.setattr(Dataset, "records", lambda _: iter(judged))
    monkeypatch.setattr("headrank_pipeline.experiment.facts.check_grades", lambda *_: None)
    called, runs = "ir_datasets:msmarco-passage/trec-dl-2019/judged", [made / "same.trec", made / "theirs.txt"]
    found, filed = compare(runs, qrels=called), compare(runs, qrels=made / "qrels.txt", relevance_level=2)
    assert (found.conditions["qrels"], found.conditions["relevance_level"]) == (called, 2)
    assert found.measures == tuple(benchmark_of_dataset(called.partition(":")[2]).measures)
    assert found.values("nDCG@10").equals(filed.values("nDCG@10"))
    assert (
        compare([made / "ours"], qrels=called).measures == compare([made / "ours"], qrels=made / "qrels.txt").measures
    )


@pytest.mark.parametrize("form", ["plain", "gzip", "pipe"])
def test_a_copy_of_a_run_has_exactly_the_figures_and_tests_of_its_directory(made, tmp_path, form):
    data = (made / "ours" / "run.trec").read_bytes()
    (tmp_path / "copy.trec").write_bytes(data)
    (tmp_path / "copy.trec.gz").write_bytes(gzip.compress(data))
    with piped(data) as pipe:
        copy = {"plain": tmp_path / "copy.trec", "gzip": tmp_path / "copy.trec.gz", "pipe": pipe}[form]
        found = compare([made / "ours", copy], qrels=made / "qrels.txt")
    first, ours, copied = found.systems
    assert (first, ours) == (FIRST_STAGE, "ours")
    for frame in (found.tests, found.per_query):
        one, other = (frame[frame["system"] == name].drop(columns="system") for name in (ours, copied))
        assert len(one) > 0
        assert one.reset_index(drop=True).equals(other.reset_index(drop=True))
    means = found.summary.set_index("system")[[c for c in found.summary if c.startswith(found.measures)]]
    assert means.loc[ours].to_dict() == means.loc[copied].to_dict()
    directory = compare([made / "ours"], qrels=made / "qrels.txt").summary.set_index("system")
    assert means.loc[[FIRST_STAGE, "ours"]].equals(directory[means.columns])


def test_measures_beside_a_directory_are_those_of_its_evaluation(made):
    found = compare([made / "theirs.txt", made / "ours"], qrels=made / "qrels.txt")
    assert found.systems == [FIRST_STAGE, "theirs", "ours"]
    assert found.measures == ("nDCG@10", "R@20", "RR")


# ----------------------------------------------------------------------------------------------- names and baselines


def test_a_file_goes_by_its_stem_and_names_stay_distinct(made, tmp_path):
    def names(*files: str) -> list[str]:
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((made / "theirs.txt").read_bytes())
        return [run.name for run in read_runs([tmp_path / file for file in files])]

    assert names("bm25.trec.gz", "rank.gpt.txt", "plain") == ["bm25", "rank.gpt", "plain"]
    assert names("a/run.trec", "b/run.txt", "b/other.trec") == ["a/run", "b/run", "b/other"]
    assert names("run.bm25", "run.splade") == ["run.bm25", "run.splade"]
    assert names("bm25.trec", "bm25.trec") == ["bm25", "bm25 (2)"]
    assert names("first stage.trec") == ["first stage (2)"]
    (tmp_path / "link.trec").symlink_to(tmp_path / "plain")
    assert [run.name for run in read_runs([tmp_path / "link.trec", made / "ours"])] == ["link", "ours"]


@pytest.mark.parametrize(("wanted", "name"), [(None, "same"), ("theirs", "theirs"), ("FILE", "theirs")])
def test_the_first_of_run_files_alone_is_the_baseline_unless_one_is_named(made, wanted, name):
    wanted = str(made / "theirs.txt") if wanted == "FILE" else wanted
    found = compare([made / "same.trec", made / "theirs.txt"], qrels=made / "qrels.txt", baseline=wanted)
    assert found.baseline == name
    assert set(found.tests["system"]) == {"same", "theirs"} - {name}


def test_beside_a_directory_the_first_stage_is_the_baseline_unless_a_file_is_named(made):
    runs = [made / "theirs.txt", made / "ours"]
    assert compare(runs, qrels=made / "qrels.txt").baseline == FIRST_STAGE
    found = compare(runs, qrels=made / "qrels.txt", baseline="theirs", measures=["RR"])
    assert list(found.tests["system"]) == [FIRST_STAGE, "ours"]


def test_a_file_that_is_called_bm25_goes_before_the_first_stage(made, tmp_path):
    (tmp_path / "bm25.trec").write_bytes((made / "theirs.txt").read_bytes())
    assert (
        compare([tmp_path / "bm25.trec", made / "ours"], qrels=made / "qrels.txt", baseline="bm25").baseline == "bm25"
    )


@pytest.mark.parametrize("wanted", [FIRST_STAGE, "bm25"])
def test_run_files_alone_have_no_first_stage(made, wanted):
    expected = f"baseline '{wanted}': no such system; systems: same, theirs; only run directories bring a first stage"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        compare([made / "same.trec", made / "theirs.txt"], qrels=made / "qrels.txt", baseline=wanted)


# ----------------------------------------------------------------------------------------------------------- report


def test_what_run_files_do_not_say_is_told_and_shown_as_unknown(made, tmp_path):
    found = compare([made / "same.trec", made / "theirs.txt"], qrels=made / "qrels.txt")
    told = "same, theirs: benchmark, candidates, depth and topics of a run file are not known, and were not checked"
    assert found.notes[0] == told
    assert found.ceiling == {}
    assert [table.title for table in comparison_tables(found)] == [
        "Means",
        "nDCG@10 against same",
        "R@100 against same",
    ]
    save_comparison(found, tmp_path, command="headrank compare")
    page, record = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "comparison.json").read_text())
    assert told in page
    assert "the same candidates" not in page
    assert "ideal order" not in page
    assert not (tmp_path / "figures" / "quality-cost.png").exists()
    assert record["conditions"]["depth"] is record["conditions"]["candidates"] is None
    digest = hashlib.sha256((made / "theirs.txt").read_bytes()).hexdigest()
    assert record["conditions"]["files"]["theirs"] == {"path": str(made / "theirs.txt"), "sha256": digest}
    assert f"- theirs: {made / 'theirs.txt'}, a run file, SHA-256 {digest[:16]}…" in (
        tmp_path / "comparison.md"
    ).read_text(encoding="utf-8")


def test_beside_a_directory_a_file_has_no_costs_and_the_ceiling_is_the_directorys(made, tmp_path):
    found = compare([made / "theirs.txt", made / "ours"], qrels=made / "qrels.txt")
    assert "first stage and ideal order of the candidates are those of ours" in found.notes
    assert found.ceiling == compare([made / "ours"], qrels=made / "qrels.txt").ceiling
    costs = {row[0]: row[1:] for row in comparison_tables(found)[-1].cells()}
    assert list(costs) == ["theirs", "ours"]
    assert set(costs["theirs"]) == {"-"}
    assert costs["ours"][3] == "1,000"
    save_comparison(found, tmp_path, command="headrank compare")
    page = (tmp_path / "report.html").read_text()
    assert "theirs: benchmark, candidates, depth and topics of a run file are not known" in page
    assert "the same candidates for every system" not in page
    drawn = "run.trec, first_stage.trec, manifest.json, run files and the judgments of theirs, ours"
    assert re.search(drawn + r" \(made by commit ([^,]+, )?\?\)", page)


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("runs", [["theirs.txt", "same.trec"], ["ours", "theirs.txt"]])
def test_a_run_file_needs_judgments_by_name(made, runs):
    expected = f"{made / 'theirs.txt'}: a run file does not say what judges it; name the judgments with qrels=FILE"
    with pytest.raises(ValueError) as refusal:
        compare([made / name for name in runs])
    assert str(refusal.value) == expected


def test_one_run_file_has_nothing_to_be_compared_with(made):
    with pytest.raises(ValueError, match=r"theirs\.txt: one run file has nothing to be compared with; name another"):
        compare([made / "theirs.txt"], qrels=made / "qrels.txt")


def test_what_is_neither_directory_nor_file_says_what_was_expected(made):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such run directory or TREC run file \(looked from "):
        compare([made / "ours", made / "nowhere"], qrels=made / "qrels.txt")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("q0 Q0 d0-1 1 0.5", r"expected 6 columns 'qid Q0 docid rank score tag', got 5"),
        ("q0 Q0 d0-0 2 0.5 t", r"qid q0 docid d0-0 occurs before on line 1; delete one"),
        ("q0 Q0 d0-1 2 nan t", r"score 'nan': scores must be finite"),
    ],
)
def test_a_malformed_run_file_is_refused_with_file_and_line(made, tmp_path, line, told):
    (tmp_path / "odd.trec").write_text(f"q0 Q0 d0-0 1 2.5 t\n{line}\n")
    with pytest.raises(ValueError, match=rf"odd\.trec:2: .*{told}"):
        compare([made / "ours", tmp_path / "odd.trec"], qrels=made / "qrels.txt")


def test_a_run_file_of_other_topics_is_refused_by_its_name(made, tmp_path):
    (tmp_path / "other.trec").write_text("264014 Q0 d1 1 2.5 t\n")
    with pytest.raises(ValueError, match=r"other\.trec and the qrels have no query in common: .*264014"):
        compare([made / "ours", tmp_path / "other.trec"], qrels=made / "qrels.txt")


def test_analyze_says_that_it_needs_run_directories(made):
    expected = (
        f"{made / 'theirs.txt'}: a file, which does not say which candidates were reranked, and how; expected a "
        "directory that headrank run wrote (headrank compare takes run files, too)"
    )
    with pytest.raises(ValueError) as refusal:
        analyze([made / "ours", made / "theirs.txt"], qrels=made / "qrels.txt")
    assert str(refusal.value) == expected
    result = CliRunner().invoke(analyze_command, [str(made / "theirs.txt")])
    assert str(result.exception) == expected


# ---------------------------------------------------------------------------------------------------------- command


def test_the_command_compares_run_files(made, tmp_path):
    files = [str(made / "same.trec"), str(made / "theirs.txt")]
    arguments = [*files, "--qrels", str(made / "qrels.txt")]
    result = CliRunner().invoke(compare_command, arguments, catch_exceptions=False)
    assert "nDCG@10 against same" in result.stdout
    assert "Time, tokens" not in result.stdout
    assert "note: same, theirs: benchmark, candidates, depth and topics" in result.stderr
    result = CliRunner().invoke(compare_command, [*arguments, "--baseline", "theirs", "--json"], catch_exceptions=False)
    assert [system["system"] for system in json.loads(result.output)["systems"]] == ["same", "theirs"]
    assert json.loads(result.output)["baseline"] == "theirs"
