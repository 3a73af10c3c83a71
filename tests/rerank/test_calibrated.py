"""Scores with a meaning: probabilities that keep the order, compare across queries, and belong to one reading."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import SMOLLM2
from headrank_pipeline.cli import main
from headrank_pipeline.learn.calibration import expected_calibration_error, fit_logistic, reliability
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.calibrated import NOTHING, Calibration, Lifts, calibrated, lifts, reading_of
from headrank_pipeline.rerank.systems import headrank, icr

HEADS = HeadSet("some", ((0, 0), (1, 3)))
TEXTS = (
    "Birds fly high.",
    "Fish swim in the sea.",
    "A stone lies still.",
    "Winter is cold.",
    "Gulls fly over the sea.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("qwen3"), layers=2)


@pytest.fixture(scope="module")
def reranker(folder):
    return headrank(folder, HEADS, device="cpu", dtype="float32", passages="isolated")


def ranking(qid="q", texts=TEXTS):
    candidates = tuple(Candidate(f"d{place}", -float(place), text) for place, text in enumerate(texts))
    return Ranking(Query(qid, "how do birds fly?"), candidates)


def calibration(reranker, **changes):
    made = Calibration((-1.0, 2.0, -0.5), (0.5, -1.0, 0.3), 1, reading_of(reranker), {"lists": 0})
    return replace(made, **changes)


# --------------------------------------------------------------------------------------------------------- numbers


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.floats(0.01, 5), st.floats(-3, 3))
def test_probabilities_keep_the_order_of_the_scores(values, weight, mean_weight):
    made = Calibration((0.3, weight, mean_weight), (0.0, -1.0, 0.0), 1, {}, {})
    seen = Lifts(tuple(sorted(values, reverse=True)))
    found = made.of_passages(seen)
    assert found == sorted(found, reverse=True)
    assert all(0.0 <= probability <= 1.0 for probability in (*found, made.of_nothing(seen)))


def test_rounding_does_not_turn_two_scores_a_digit_apart():
    larger, smaller = 0.5729363018559264, 0.5729363018559263
    made = Calibration((-1.2202700254153518, 0.8909645125391604, 0.0), (0.0, -1.0, 0.0), 1, {}, {})
    found = made.of_passages(Lifts((larger, smaller)))
    assert found[0] >= found[1]
    assert made.of_passages(Lifts((smaller,))) > made.of_passages(Lifts((larger,)))  # each by itself


def test_what_is_no_calibration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weight of a passage's score is -1.0, expected above 0"):
        Calibration((0.0, -1.0, 0.0), (0.0, 0.0, 0.0), 1, {}, {})
    with pytest.raises(ValueError, match="nothing: expected 3 finite numbers, got"):
        Calibration((0.0, 1.0, 0.0), (0.0, float("nan"), 0.0), 1, {}, {})
    (tmp_path / "c.json").write_text('{"passage": [0, 1, 0]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"c.json: not a calibration .* headrank calibrate"):
        Calibration.load(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="no such calibration"):
        Calibration.load(tmp_path / "none.json")


def test_a_logistic_regression_finds_the_probabilities_that_made_its_examples():
    pytest.importorskip("sklearn")
    chance = random.Random(0)
    rows = [(chance.uniform(-3, 3),) for _ in range(4000)]
    seen = [chance.random() < 1 / (1 + 2.718281828 ** -(0.5 + 2 * x)) for (x,) in rows]
    intercept, weight = fit_logistic(rows, seen)
    assert intercept == pytest.approx(0.5, abs=0.15)
    assert weight == pytest.approx(2.0, abs=0.2)
    with pytest.raises(ValueError, match="of one kind only"):
        fit_logistic(rows[:3], [True] * 3)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50))
def test_bins_hold_all_examples(pairs):
    probabilities, outcomes = zip(*pairs, strict=True)
    found = reliability(probabilities, outcomes)
    assert sum(part.count for part in found) == len(pairs)
    assert 0.0 <= expected_calibration_error(probabilities, outcomes) <= 1.0
    assert expected_calibration_error([float(outcome) for outcome in outcomes], outcomes) == 0.0


# --------------------------------------------------------------------------------------------------------- reading


def test_scores_become_probabilities_in_the_same_order(reranker):
    found = calibrated(reranker, calibration(reranker)).rerank(ranking())
    assert set(found.docids) == set(ranking().docids)
    assert all(0.0 < score < 1.0 for score in found.scores)
    assert 0.0 < found.notes["nothing_relevant"] < 1.0
    ((plain, seen),) = lifts(reranker, [ranking()])
    assert found.docids == plain.docids
    assert NOTHING.docid not in plain.docids
    assert list(seen.passages) == sorted(seen.passages, reverse=True)


def test_lifts_do_not_depend_on_the_other_passages(folder):
    first = headrank(folder, HeadSet("one", ((0, 0),)), device="cpu", dtype="float32", passages="isolated")
    (few, seen_few), (many, seen_many) = lifts(first, [ranking(texts=TEXTS[:2]), ranking(qid="r")])
    of_few, of_many = (dict(zip(r.docids, s.passages, strict=True)) for r, s in ((few, seen_few), (many, seen_many)))
    assert of_few["d0"] == pytest.approx(of_many["d0"], abs=0.05)  # shares of the list differ by a factor of 2


def test_a_threshold_leaves_out_what_is_below(reranker):
    whole = calibrated(reranker, calibration(reranker)).rerank(ranking())
    cut = calibrated(reranker, calibration(reranker), threshold=whole.scores[2]).rerank(ranking())
    assert cut.docids == whole.docids[:3]
    assert cut.notes["nothing_relevant"] == whole.notes["nothing_relevant"]


def test_an_empty_ranking_stays_empty(reranker):
    empty = Ranking(Query("none", "x"))
    assert calibrated(reranker, calibration(reranker)).rerank_batch([empty, ranking()])[0] == empty


def test_a_calibration_of_another_reading_is_refused(reranker, folder):
    other = headrank(folder, HeadSet("others", ((1, 1),)), device="cpu", passages="isolated")
    with pytest.raises(ValueError, match=r"fitted for another reading: heads differ .* headrank calibrate"):
        calibrated(other, calibration(reranker))


def test_what_has_no_shares_is_refused(folder, reranker):
    with pytest.raises(ValueError, match="icr: its scores can be negative"):
        calibrated(icr(folder, device="cpu"), calibration(reranker))
    with pytest.raises(ValueError, match="long_lists refine"):
        calibrated(headrank(folder, HEADS, device="cpu", long_lists="refine"), calibration(reranker))
    with pytest.raises(ValueError, match="threshold 2"):
        calibrated(reranker, calibration(reranker), threshold=2)
    with pytest.raises(ValueError, match="headrank:nothing is kept for calibration"):
        calibrated(reranker, calibration(reranker)).rerank(Ranking(Query("q", "x"), (replace(NOTHING, text="x"),)))


# --------------------------------------------------------------------------------------------------------- command


def test_the_commands_fit_check_and_apply(folder, tmp_path):
    pytest.importorskip("sklearn")
    HEADS.save(tmp_path / "heads.json")
    chance = random.Random(1)
    lists, check, output = (tmp_path / name for name in ("lists.jsonl", "check.jsonl", "calibration.json"))
    for path in (lists, check):
        lines = []
        for number in range(8):
            found = [{"docid": f"d{n}", "score": -n, "grade": chance.choice((0, 0, 1)), "doc": {"text": t}}
                     for n, t in enumerate(chance.sample(TEXTS, 5))]  # fmt: skip
            lines.append({"query": {"qid": f"{path.stem}{number}", "text": "how do birds fly?"}, "candidates": found})
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    model = ["--model", folder, "--heads", tmp_path / "heads.json", "--device", "cpu", "--option", "passages=isolated"]
    other = shutil.copy(check, tmp_path / "other.jsonl")
    fit = ["calibrate", "--lists", lists, "--check", check, "--output", output, *model, "--json"]
    told = invoke(*fit)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["check"]["check.jsonl"]["passages"]["ece"] < 0.3
    same = invoke(*fit, "--check", other)
    assert json.loads(same.stdout)["check"] == {
        name: json.loads(told.stdout)["check"]["check.jsonl"] for name in ("check.jsonl", "other.jsonl")
    }
    seen = invoke("calibrate", "--lists", lists, "--check", lists, "--output", tmp_path / "none.json", *model)
    assert (seen.exit_code, "8 of its queries are fitted, too" in " ".join(seen.stderr.split())) == (2, True)
    picture = tmp_path / "reliability.png"
    again = invoke("calibrate", "--calibration", output, "--check", check, "--figure", picture, *model, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["check"] == json.loads(told.stdout)["check"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    twice = invoke("calibrate", "--calibration", output, "--check", check, "--check", folder / "check.jsonl", *model)
    assert (twice.exit_code, "two files have the same name" in twice.output) == (2, True)
    other = invoke("calibrate", "--calibration", output, "--check", check, *model, "--option", "passage_words=3")
    assert other.exit_code == 5
    assert "fitted for another reading: template differ" in other.stderr
    grade = invoke("calibrate", "--calibration", output, "--check", check, *model, "-l", "2")
    assert grade.exit_code == 2
    assert "grade 1 and higher as relevant, -l says 2" in " ".join(grade.stderr.split())
    calibrated_twice = invoke(*fit, "--option", f"calibration={output}")
    assert (calibrated_twice.exit_code, "without the options calibration" in calibrated_twice.output) == (2, True)
    applied = ["--candidates", lists, "--output", tmp_path / "run", *model, "--option", f"calibration={output}"]
    told = invoke("rerank", *applied, "--option", "threshold=0.2")
    assert told.exit_code == 0, told.output
    assert "queries with nothing relevant, by their probabilities" in told.output
    run = (tmp_path / "run" / "run.trec").read_text(encoding="utf-8").splitlines()
    above = (tmp_path / "run" / "run.above-threshold.trec").read_text(encoding="utf-8").splitlines()
    assert above == [line for line in run if float(line.split()[4]) >= 0.2]
    assert len(run) == 40
    told = invoke("rerank", *applied)
    assert told.exit_code == 0, told.output
    assert not (tmp_path / "run" / "run.above-threshold.trec").exists()


def test_calibrate_has_no_flags_that_it_would_always_refuse():
    told = invoke("calibrate", "--help")
    assert "--first-stage-weight" not in told.output
    assert "--log-scores" not in told.output


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--option", "threshold=0.5", "--first-stage-weight", "0.5"], 2, "without --first-stage-weight"),
        (["--option", "threshold=2", "--option", "calibration=c.json"], 5, "threshold 2: expected a probability"),
    ],
)  # fmt: skip
def test_a_threshold_that_means_nothing_is_refused(options, status, message, folder, tmp_path):
    run = ["--candidates", tmp_path / "none", "--output", tmp_path / "run", "--model", folder]
    told = invoke("rerank", *run, *options)
    assert told.exit_code == status
    assert message in " ".join(told.output.split())


def test_a_threshold_takes_the_calibration_that_a_model_brings(folder, reranker, tmp_path):
    for asked in ({"threshold": 0.5}, {"calibration": "own"}):
        with pytest.raises(ValueError, match=r"brings no calibration.json.* calibration=FILE"):
            headrank(folder, HEADS, device="cpu", **asked)
    model = shutil.copytree(folder, tmp_path / "model")
    calibration(reranker).save(model / "calibration.json")
    HEADS.save(model / "heads.json")
    given = {"device": "cpu", "dtype": "float32", "passages": "isolated"}
    found = headrank(model, HEADS, calibration="own", **given).rerank(ranking())
    assert found.scores == calibrated(reranker, calibration(reranker)).rerank(ranking()).scores
    cut = headrank(model, HEADS, threshold=found.scores[2], **given).rerank(ranking())
    assert cut.docids == found.docids[:3]
    with pytest.raises(ValueError, match="heads differ"):
        headrank(model, HeadSet("others", ((1, 1),)), threshold=0.5, **given)


def test_weights_made_on_another_machine_are_told_from_others_by_no_fingerprint_alone(reranker):
    strange = {**reading_of(reranker), "fingerprint": "another"}
    with pytest.raises(ValueError, match=r"fingerprint differ .*'another' there.*with '[0-9a-f]{64}' here"):
        calibration(reranker, reading=strange).check_reading(reranker)
    calibration(reranker, reading={**strange, "fingerprint": None}).check_reading(reranker)
    lacking = {name: value for name, value in strange.items() if name != "fingerprint"}
    with pytest.raises(ValueError, match="fingerprint differ"):
        calibration(reranker, reading=lacking).check_reading(reranker)


def test_models_on_the_hub_are_told_apart_by_name_and_commit(folder):
    def on_hub(name, commit):
        found = headrank(folder, HEADS, device="cpu", dtype="float32", passages="isolated")
        # what source_of gives a model whose files are in the hub's cache
        found.reader.source = replace(found.reader.source, name=name, revision=commit, fingerprint="")
        return found

    fitted = calibration(on_hub("org/one", "a" * 40))
    fitted.check_reading(on_hub("org/one", "a" * 40))
    for name, commit in (("org/two", "a" * 40), ("org/one", "b" * 40)):
        with pytest.raises(
            ValueError, match=f"fingerprint differ .*'org/one@{'a' * 40}' there.*'{name}@{commit}' here"
        ):
            fitted.check_reading(on_hub(name, commit))
    written_before = replace(fitted, reading={**fitted.reading, "fingerprint": ""})  # which could be any model's
    with pytest.raises(ValueError, match="fingerprint differ"):
        written_before.check_reading(on_hub("org/one", "a" * 40))


def test_the_calibration_that_smollm2_brings_was_fitted_with_its_weights():
    shipped = SMOLLM2.resources / "calibration.json"
    if not shipped.exists():
        pytest.skip("this version ships none")
    fitted = Calibration.load(shipped).fitted
    for name in ("adapter.safetensors", "heads.json", "recipe.json"):
        assert fitted["with"][name] == hashlib.sha256((SMOLLM2.resources / name).read_bytes()).hexdigest(), (
            f"{name} is not what the calibration was fitted with: run benchmarks/smollm2_calibration.py"
        )


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])
