"""headrank doctor --model: one model read in several ways, and against stored scores."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.attention.places import Places
from headrank_pipeline.cli import main
from headrank_pipeline.rerank import self_check
from headrank_pipeline.rerank.self_check import check_model, shipped_lists

WAYS = [
    "batched against alone",
    "fast path against none of it",
    "truncated (2 layers) against whole (4)",
    "fast path against the model's own attention",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_of_reading_a_model_agrees(folder, dtype):
    heads = HeadSet("two", ((0, 1), (1, 2)), weights=(1.0, 3.0))
    found = list(check_model(folder, heads, device="cpu", dtype=dtype))
    assert [one.name for one in found] == WAYS
    assert all(one.agrees and one.lists == 3 for one in found)
    assert max(one.largest for one in found) < (1e-5 if dtype == "float32" else 0.1)


def test_heads_with_place_curves_are_checked_as_others_are(folder):
    curves = Places((0, 1), (2, 1), ((3, 1), (1, 2)), (0.1, 0.1), "passages", 4, 5)
    found = list(check_model(folder, HeadSet("two", ((0, 1), (1, 2)), places=curves), device="cpu", dtype="float32"))
    assert [one.name for one in found] == WAYS
    assert all(one.agrees for one in found)


def test_a_way_that_differs_is_named_and_ends_with_status_6(folder, monkeypatch):
    own = self_check.own_attention
    monkeypatch.setattr(  # a version of the libraries whose own attention looks further away
        self_check, "own_attention", lambda *given, **named: [rows.roll(3, dims=-1) for rows in own(*given, **named)]
    )
    result = CliRunner().invoke(main, ["doctor", "--model", str(folder), "--device", "cpu", "--json"])
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.exit_code == 6
    assert [name for name, check in checks.items() if check["status"] == "wrong"] == [WAYS[-1]]
    assert "order differs in" in checks[WAYS[-1]]["found"] and "report it" in checks[WAYS[-1]]["action"]


def test_the_embedded_model_gives_its_stored_scores_and_drift_is_seen(monkeypatch):
    *_, stored = check_model(embedded_model(), device="cpu")
    assert stored.name.startswith("these versions against torch ") and stored.note == "stored for embedded"
    assert stored.agrees and stored.turned == 0
    rounded = self_check.scores_of
    monkeypatch.setattr(
        self_check,
        "scores_of",
        lambda *given: [[score * (1.01 if place else 1) for place, score in enumerate(one)] for one in rounded(*given)],
    )
    *_, drifted = check_model(embedded_model(), device="cpu")
    assert not drifted.agrees and 0.005 < drifted.largest < 0.02


def test_a_score_that_is_no_number_is_a_difference(folder, tmp_path):
    difference = self_check._difference("x", [[1.0, float("nan")]], [[1.0, 0.5]], 1e-3, "")
    assert not difference.agrees


def test_shipped_lists_are_short_and_whole():
    lists = shipped_lists()
    assert [len(ranking.candidates) for ranking in lists] == [5, 5, 5]
    assert all(len(candidate.text.split()) <= 40 for ranking in lists for candidate in ranking.candidates)


def test_flags_of_reading_need_a_model():
    result = CliRunner().invoke(main, ["doctor", "--heads", "all"])
    assert result.exit_code == 2 and "no model is read without --model" in result.stderr
