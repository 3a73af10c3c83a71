"""benchmarks/evidence.py: splits and planned tests by hand, and the whole command on tiny collections, twice."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from graded_lists import overlap_lists
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.trec import read_qrels, read_run, read_topics, write_candidates

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import alignment_settings
import interpolation_settings
import layouts
from evidence.data import GRADED, LEARNED, OWN, TAUGHT, Judged, by_teacher, split_lists
from evidence.experiment import Experiment
from evidence.frozen import read_all_heads, scored_by_heads
from evidence.report import Comparison, Results, planned_tests, tables
from smollm2.in_batch import RULE

_script = spec_from_file_location("evidence_script", Path(sys.path[0]) / "evidence.py")  # the package has its name
assert _script is not None and _script.loader is not None
script = module_from_spec(_script)
_script.loader.exec_module(script)

QRELS = {
    "antique_graded": "qrels/train.tsv",
    "cranfield": "qrels/test.tsv",
    "nfcorpus_preproc": "qrels/train.tsv.gz",
    "scifact": "qrels/test.tsv",
}


def write_collection(data: Path, candidates: Path, name: str, lists: list[GradedList], *, label: int = 0) -> None:
    """Write judgments and corpus as the collections have them, and the candidates that BM25 would find."""
    qrels = data / name / QRELS[name]
    qrels.parent.mkdir(parents=True)
    rows = [f"{one.qid}\t{docid}\t{grade + label}" for one in lists
            for docid, grade in zip(one.ranking.docids, one.grades, strict=True)]  # fmt: skip
    text = "query-id\tcorpus-id\tscore\n" + "\n".join(rows) + "\n"
    qrels.write_bytes(gzip.compress(text.encode()) if qrels.suffix == ".gz" else text.encode())
    with gzip.open(data / name / "corpus.jsonl.gz", "wt") as corpus:
        for one in lists:
            for candidate in one.ranking.candidates:
                corpus.write(json.dumps({"_id": candidate.docid, "title": "", "text": candidate.text}) + "\n")
    candidates.parent.mkdir(parents=True, exist_ok=True)
    write_candidates(candidates, [one.ranking.cut(5) for one in lists])


@pytest.fixture(scope="module")
def collections(tmp_path_factory):
    """Tiny collections; candidates lie where the command keeps BM25's, so that no Java starts."""
    root = tmp_path_factory.mktemp("evidence")
    data, output = root / "data", root / "output"
    for number, name in enumerate(GRADED):
        lists = overlap_lists(6, passages=7, seed=number, prefix=f"{name[0]}")
        label = 1 if name == "antique_graded" else 0
        write_collection(data, output / "lists" / f"{name}.jsonl", name, lists, label=label)
    for name in OWN:
        (data / name).mkdir()
        lists = overlap_lists(6, passages=5, seed=9, prefix=name[0])
        write_candidates(data / name / "candidates.jsonl.gz", [one.ranking for one in lists])
        write_qrels(data / name / "qrels.txt", lists)
    (data / TAUGHT).mkdir()
    with gzip.open(data / TAUGHT / "candidates.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(taught(number, 12)) + "\n" for number in range(6))
        file.write(json.dumps(taught(6, 9)) + "\n")  # too short to be graded
    judged = overlap_lists(4, passages=6, seed=7)
    write_collection(data, output / "candidates/scifact.jsonl", "scifact", judged)
    for name, file in (("dl19", "candidates.jsonl.gz"), ("noveleval", "candidates_bm25order.jsonl.gz")):
        (data / name).mkdir()
        write_candidates(data / name / file, [one.ranking for one in judged])
        write_qrels(data / name / "qrels.txt", judged)
    return root


def taught(number: int, passages: int) -> dict:
    """A record of a teacher who prefers later passages."""
    docs = [{"docid": f"z{i:02}", "doc": {"text": f"birds fly {i}"}} for i in range(passages)]
    order = [doc["docid"] for doc in reversed(docs)]
    return {"query": {"qid": f"z{number}", "text": "birds"}, "candidates": docs, "teacher_ranking": order}


def write_qrels(path: Path, lists: list[GradedList]) -> None:
    rows = [f"{one.qid} 0 {docid} {grade}\n" for one in lists
            for docid, grade in zip(one.ranking.docids, one.grades, strict=True)]  # fmt: skip
    path.write_text("".join(rows))


def write_demo_candidates(path: Path) -> None:
    """The first four judged passages of some demo queries, in docid order; the others count 0."""
    demo = Path(str(files("headrank_pipeline") / "resources/demo"))
    passages = {passage.docid: passage.text for passage in read_corpus(demo / "corpus.jsonl")}
    qrels = read_qrels(demo / "qrels.tsv")
    rankings = [
        Ranking(q, tuple(Candidate(d, -float(i), passages[d]) for i, d in enumerate(sorted(qrels[q.qid])[:4])))
        for q in read_topics(demo / "queries.jsonl")[:4]
    ]
    write_candidates(path, rankings)


def test_lists_are_split_by_query_in_equal_shares_and_grades_are_antiques_labels_less_one(collections):
    split = split_lists(collections / "data", collections / "output/lists", seed=0, selection=6, alignment=13, dev=6)
    parts = [{graded.qid for graded in part} for part in (split.selection, split.alignment, split.dev)]
    assert [len(part) for part in parts] == [6, 13, 6]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert sorted(qid.partition("/")[0] for qid in parts[1]) == sorted([*LEARNED, *LEARNED, "antique_graded"])
    graded = [one for one in split.alignment if one.qid.partition("/")[0] != TAUGHT]
    assert {grade for one in graded for grade in one.grades} == {0, 1, 2}
    assert {len(one) for one in graded} == {5}
    other = split_lists(collections / "data", collections / "output/lists", seed=1, selection=6, alignment=13, dev=6)
    assert {graded.qid for graded in other.alignment} != parts[1]
    with pytest.raises(ValueError, match="antique_graded: 6 queries with two grades, 7 are asked for"):
        split_lists(collections / "data", collections / "output/lists", seed=2, selection=18, alignment=18, dev=6)


def test_a_teachers_order_becomes_grades():
    record = taught(0, 12)
    one = by_teacher(record)
    graded = dict(zip(one.ranking.docids, one.grades, strict=True))
    assert [graded[docid] for docid in record["teacher_ranking"]] == [3, 3, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_unseen_collections_count_the_same_however_many_queries_they_have():
    def system(scifact: list[float], dl19: list[float], noveleval: list[float]) -> dict:
        table = {"scifact": scifact, "dl19": dl19, "noveleval": noveleval, "demo": [0.5]}
        return {place: [{f"q{i}": value for i, value in enumerate(values)}] for place, values in table.items()}

    results = Results({"old": system([0.5] * 6, [0.2, 0.4], [0.3]), "new": system([0.6] * 6, [0.2, 0.4], [0.9])})
    assert results.unseen("old", 0) == pytest.approx((0.5 + 0.3 + 0.3) / 3)
    [record] = planned_tests(results, [Comparison("new against old", "new", "old")])
    assert record["tests"]["unseen"]["difference"] == pytest.approx((0.1 + 0.0 + 0.6) / 3)
    assert record["tests"]["scifact"]["difference"] == pytest.approx(0.1)
    assert (record["tests"]["unseen"]["wins"], record["tests"]["unseen"]["ties"]) == (7, 2)


def test_only_the_collections_that_are_named_are_averaged_and_shown():
    def system(dl19: float, demo: float) -> dict:
        return {"dl19": [{"q0": dl19, "q1": dl19}], "demo": [{"q0": demo}], "scifact": [{"q0": 9.0}]}

    results = Results({"old": system(0.2, 0.5), "new": system(0.6, 0.7)}, ("dl19", "demo"))
    records = planned_tests(results, [Comparison("new against old", "new", "old")])
    assert records[0]["tests"]["unseen"]["difference"] == pytest.approx((0.4 + 0.2) / 2)
    means, tests = tables(results, records)
    assert [column.name for column in means.columns] == ["system", "mean of these", "DL19", "demo"]
    assert [column.name for column in tests.columns][3:] == ["DL19", "demo", "p (Holm)"]


def test_spread_is_over_seeds_and_p_values_are_corrected_over_the_planned_comparisons():
    def seeds(*values: float) -> dict:
        return {place: [{"q0": value, "q1": value - 0.1, "q2": value - 0.2} for value in values]
                for place in ("scifact", "dl19", "noveleval", "demo")}  # fmt: skip

    results = Results({"fixed": seeds(0.5), "a": seeds(0.6, 0.8), "b": seeds(0.6, 0.8)})
    records = planned_tests(results, [Comparison("a", "a", "fixed"), Comparison("b", "b", "a")])
    assert records[0]["by_seed"]["unseen"] == pytest.approx([0.1, 0.3])
    assert records[0]["spread"]["unseen"] == pytest.approx(0.2 / 2**0.5)
    raw = [record["tests"]["dl19"]["randomisation"] for record in records]
    assert raw == [0.25, 1.0]  # three queries, all better: 2 of the 2^3 sign patterns are as extreme
    assert [record["tests"]["dl19"]["randomisation_holm"] for record in records] == [0.5, 1.0]


@pytest.mark.parametrize("rule", [{}, RULE], ids=["mean", "geometric"])
def test_heads_scored_from_one_reading_of_all_score_as_a_reranker_with_those_heads(collections, tmp_path, rule):
    data = collections / "data/dl19"
    judged = Judged("dl19", data / "candidates.jsonl.gz", data / "qrels.txt", depth=5)
    experiment = Experiment(
        model=tiny_model(tmp_path / "model", layers=2), output=tmp_path / "output", collections=[judged],
        reading={"passages": "isolated", **rule}, dtype="float32", cache_bytes=2**20, training_words=50,
        selection=SelectionConfig(), training={}, command="test",
    )  # fmt: skip
    read_all_heads(experiment)
    heads = HeadSet("some", ((0, 1), (1, 0), (1, 3)), model=None)
    (found,) = scored_by_heads(experiment, "some", heads)
    plain = experiment.run("plain", judged, lambda: experiment.reranker(experiment.model, heads))
    (every,) = scored_by_heads(experiment, "every", None)
    known, wanted, others = (
        {(qid, one.docid): one.score for qid, candidates in read_run(run.directory.path / "run.trec").items()
         for one in candidates} for run in (found, plain, every)
    )  # fmt: skip
    assert known == pytest.approx(wanted, rel=1e-5)
    assert known != pytest.approx(others, rel=1e-5)


@pytest.mark.slow
def test_the_command_compares_every_system_and_a_second_call_only_reads_what_is_there(collections, tmp_path, capsys):
    model, output = tiny_model(tmp_path / "model", layers=2), collections / "output"
    write_demo_candidates(output / "candidates/demo.jsonl")
    command = ["--model", model, "--data", collections / "data", "--output", output, "--seeds", 1, "--num-heads", 2,
               "--lists", 6, 6, 6, "--order-queries", 2, "--passages", "isolated", "--dtype", "float32",
               "--set", "max_steps=1", "--threads", 1]  # fmt: skip
    script.main([str(part) for part in command])
    page = capsys.readouterr().out
    assert "| aligned, interpolated |" in page
    assert "| 1.000 |" in page  # Kendall's tau of isolated passages in five orders
    first = json.loads((output / "evidence.json").read_text())
    assert (output / "evidence.png").read_bytes().startswith(b"\x89PNG")
    assert all(0 < value[0] < 1 for places in first["nDCG@10"].values() for value in places.values())
    made = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/run.trec")}
    assert len(made) == 4 * (2 + 6 + 5 + 2)
    script.main([str(part) for part in command])
    assert made == {path: path.stat().st_mtime_ns for path in output.glob("runs/*/*/run.trec")}
    again = json.loads((output / "evidence.json").read_text())
    assert again["planned"] == first["planned"]
    with pytest.raises(SystemExit, match="other settings \\(training\\)"):
        script.main([*(str(part) for part in command), "--set", "epochs=9"])


def test_settings_are_compared_on_lists_that_were_not_trained_on(collections, tmp_path, capsys):
    common = ["--data", collections / "data", "--lists", tmp_path / "lists", "--sizes", 6, 6, 6, "--threads", 1]
    (tmp_path / "lists").mkdir()
    for path in (collections / "output/lists").glob("*.jsonl"):  # what BM25 found
        (tmp_path / "lists" / path.name).write_bytes(path.read_bytes())
    model = ["--model", tiny_model(tmp_path / "model", layers=2)]
    settings = ["--num-heads", 2, "max_steps=1 averaging=null learning_rate=0.1", "max_steps=1 learning_rate=1e-9"]
    alignment_settings.main([str(part) for part in (*model, *common, *settings)])
    said = capsys.readouterr().out
    assert f"{TAUGHT} 5" in said  # one of six was trained on
    before, first, second = (line.partition("mean")[2] for line in said.splitlines() if "mean of" in line)
    assert before == second != first


def test_weights_beside_bm25_are_chosen_on_some_collections_and_judged_on_others(collections, tmp_path, capsys):
    shared = ["--data", collections / "data", "--lists", collections / "output/lists", "--sizes", 6, 6, 6]
    interpolation_settings.main([str(part) for part in ("--model", embedded_model(), *shared, "--threads", 1)])
    said = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in said if line.startswith(TAUGHT)]
    assert len(rows) == 2
    assert [row[-1] for row in rows] == ["+0.0000", "+0.0000"]  # BM25 alone
    assert sum(line.startswith("chosen by") for line in said) == 4


def test_a_weight_is_judged_where_it_was_not_chosen():
    gains = {"a": np.array([0.3, 0.1, 0.0]), "b": np.array([-0.1, 0.1, 0.0])}
    assert interpolation_settings._judged(gains, "worst").tolist() == [-0.1, 0.1]  # a's best on b, b's best on a


def test_layouts_are_trained_and_judged_each_in_its_own_way(collections, tmp_path, capsys):
    output = tmp_path / "layouts"
    shutil.copytree(collections / "output/candidates", output / "candidates")
    write_demo_candidates(output / "candidates/demo.jsonl")
    shared = ["--data", collections / "data", "--lists", collections / "output/lists", "--sizes", 6, 6, 6]
    model = ["--model", tiny_model(tmp_path / "model", layers=2), "--num-heads", 2, "--max-steps", 1, "--threads", 1]
    layouts.main([str(part) for part in (*model, *shared, "--output", output)])
    found = json.loads((output / "layouts.json").read_text())["nDCG@10"]
    assert found["isolated"] != found["causal, not trained for it"]
    assert list(found)[-2:] == ["causal, distilled", "causal, distilled and aligned"]
    made = {path.parent.name: path.read_bytes() for path in output.glob("models/*/model.safetensors")}
    assert len(set(made.values())) == 3
    recipes = {path.parent.name: json.loads(path.read_text()) for path in output.glob("models/*/recipe.json")}
    assert {name: recipe["template"]["passages"] for name, recipe in recipes.items()} == {
        "isolated-aligned": "isolated", "causal": "causal", "causal-aligned": "causal",
    }  # fmt: skip
