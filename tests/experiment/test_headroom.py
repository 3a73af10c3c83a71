"""What reranking can change of a measure, and what a run and a suite say of it."""

import itertools
import json

import pytest
from run_directories import Scripted, write_qrels

from headrank_pipeline.experiment.batches import supply_from_file
from headrank_pipeline.experiment.benchmark import benchmark_of_files
from headrank_pipeline.experiment.evaluate import evaluate
from headrank_pipeline.experiment.judgement import Headroom, Judgement, headroom
from headrank_pipeline.experiment.runner import RunPlan, execute
from headrank_pipeline.experiment.suite import Row, Suite, run_suite
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import write_candidates

MEASURES = ["nDCG@2", "RR", "R@3", "R@4", "P@2", "MAP"]


def lists(**docids: str) -> dict[str, list[Candidate]]:
    return {
        qid: [Candidate(docid, float(-rank)) for rank, docid in enumerate(letters)] for qid, letters in docids.items()
    }


def room(grades, depth=4, measures=MEASURES, level=1, **docids) -> Headroom:
    run = lists(**docids)
    scores = {qid: {c.docid: c.score for c in found} for qid, found in run.items()}
    return headroom(run, grades, evaluate(scores, grades, measures, relevance_level=level), depth)


def test_best_and_fixed_are_those_of_all_orders_there_are():
    grades = {"q1": {"a": 0, "b": 2, "c": 1, "z": 3}, "q2": {"x": 1}, "q3": {"b": 1}}
    docids = {"q1": "abcd", "q2": "abcd"}
    found = room(grades, **docids)
    for measure in MEASURES:
        values = {
            qid: [
                evaluate({qid: {d: float(-r) for r, d in enumerate(order)}}, {qid: grades[qid]}, measure).means[measure]
                for order in itertools.permutations(letters)
            ]
            for qid, letters in docids.items()
        }
        assert found.best[measure] == pytest.approx(sum(max(v) for v in values.values()) / 3), measure  # q3 counts 0
        assert found.fixed[measure] == sum(max(v) - min(v) < 1e-9 for v in values.values()), measure
    assert (found.queries, found.without_relevant) == (2, 1)
    assert found.blind() == ["R@4"]


def test_only_candidates_above_the_depth_move():
    found = room({"q": {"c": 1}}, depth=2, q="abc")
    assert found.blind() == MEASURES  # the relevant one is third
    assert found.best["RR"] == pytest.approx(1 / 3)
    assert room({"q": {"b": 1}}, depth=2, q="abc").blind() == ["R@3", "R@4", "P@2"]


@pytest.mark.parametrize(
    ("docids", "measure", "told"),
    [
        ({"q1": "abc"}, "R@3", "R@3 cannot see reranking: no order of the 4 best candidates changes it"),
        (
            {"q1": "xyz"},
            "RR",
            "RR cannot see reranking: no order of the 4 best candidates changes it: none of them is ",
        ),
        ({"q1": "bac", "q2": "xyz"}, "RR", "RR can only fall: 1 of 2 queries have the best order of their candidates"),
        (
            {"q1": "abc", "q2": "xyz", "q3": "xyz"},
            "RR",
            "RR sees reranking in 1 of 3 queries only: no order of the 4 best candidates changes the others (2 of them",
        ),
        ({"q1": "abc", "q2": "xyz"}, "RR", None),
    ],
)
def test_a_measure_that_says_little_is_told_with_the_reason(docids, measure, told):
    remark = room({qid: {"b": 1} for qid in ("q1", "q2", "q3")}, **docids).remark(measure)
    assert (remark is None) if told is None else remark.startswith(told), remark


def test_equal_grades_of_all_candidates_leave_nothing_to_see():
    assert room({"q": {"a": 1, "b": 1}}, measures=["nDCG@10", "MAP"], q="ab").blind() == ["nDCG@10", "MAP"]


def test_the_relevance_level_decides_for_binary_measures_only():
    found = room({"q": {"a": 0, "b": 1}}, measures=["nDCG@10", "RR"], level=2, q="ab")
    assert (found.blind(), found.without_relevant) == (["RR"], 1)


# --------------------------------------------------------------------------------------------- of a run and of a suite


def run_of(folder, name, relevant, preferred):
    """A run of two queries whose candidates are a, b, c; the reranker puts `preferred` first."""
    home = folder / name
    home.mkdir(parents=True)
    passages = tuple(Candidate(docid, 3.0 - place, "text") for place, docid in enumerate("abc"))
    write_candidates(home / "c.jsonl", [Ranking(Query(qid, "flea"), passages) for qid in ("q1", "q2")])
    write_qrels(home / "qrels.txt", {qid: {docid: 1} for qid, docid in relevant.items()})
    plan = RunPlan(
        output=home / "run",
        reranker=Scripted({}, by_docid={"a": 1.0, "b": 0.5, "c": 0.1, preferred: 9.0}),
        supply=supply_from_file(home / "c.jsonl"),
        judgement=Judgement(qrels=home / "qrels.txt", measures=("RR", "R@100")),
    )
    return execute(plan)


def test_a_run_says_that_its_measure_cannot_see_reranking(tmp_path, caplog):
    outcome = run_of(tmp_path, "blind", {"q1": "z", "q2": "y"}, "c")
    assert "RR cannot see reranking: no order of the 100 best candidates changes it: none of them is" in caplog.text
    written = json.loads((tmp_path / "blind" / "run" / "evaluation.json").read_text())["headroom"]
    assert (written["blind"], written["without_relevant"]) == (["RR", "R@100"], 2)
    assert outcome.judged.headroom.to_dict() == written


def test_a_suite_says_which_sets_lost_which_are_blind_and_what_counts_nothing(tmp_path):
    relevant = {
        "won": ({"q1": "c", "q2": "b"}, "c"),
        "lost": ({"q1": "a", "q2": "b", "q3": "a"}, "c"),
        "blind": ({"q1": "z", "q2": "z"}, "c"),
    }
    benchmarks = [(benchmark_of_files(name), tmp_path / name) for name in relevant]

    def run_one(benchmark):
        return run_of(tmp_path, benchmark.name, *relevant[benchmark.name])

    suite = run_suite(benchmarks, tmp_path / "summary.json", run_one)
    won, lost, blind = suite.rows
    # c, b and a first: 1/3 and 1/2 become 1 and 1/3; 1 and 1/2 (and 0 for q3) become 1/2 and 1/3.
    assert won.gain("RR") == round((1 + 1 / 3) / 2 - (1 / 3 + 1 / 2) / 2, 4)
    assert lost.gain("RR") == round((1 / 2 + 1 / 3) / 3 - (1 + 1 / 2) / 3, 4)
    assert (lost.judged, lost.missing, blind.blind) == (3, 1, ["RR", "R@100"])
    assert blind.message.startswith("RR cannot see reranking")
    mean = suite.means()["all"]
    assert (mean["lost"], mean["sets"]) == ({"RR": ["lost"], "R@100": []}, {"RR": 3, "R@100": 3})
    assert mean["blind"] == {"RR": ["blind"], "R@100": ["won", "lost", "blind"]}
    assert mean["best"]["RR"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert suite.remarks() == [
        "RR cannot see reranking on 1 of 3 sets, where no order of the candidates changes it: blind",
        "RR fell on 1 of 2 sets: lost -0.2222",
        "R@100 cannot see reranking on 3 of 3 sets, where no order of the candidates changes it: won, lost, blind",
        "judged queries that the run lacks count 0: 1 of 3 in lost",
    ]
    assert json.loads((tmp_path / "summary.json").read_text())["remarks"] == suite.remarks()


def test_a_mean_says_over_how_many_sets_it_is_taken():
    rows = [
        Row(name="a", group=None, status="done", first_stage={"RR": 0.2}, reranked={"RR": 0.1}, best={"RR": 1.0}),
        Row(name="b", group=None, status="done", first_stage={"MAP": 0.2}, reranked={"MAP": 0.2}, best={"MAP": 1.0}),
    ]
    assert Suite(rows).means()["all"]["sets"] == {"RR": 1, "MAP": 1}
    assert Suite(rows).remarks() == ["RR fell on 1 of 1 sets: a -0.1000", "MAP fell on none of 1 sets"]
