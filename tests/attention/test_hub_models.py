"""Models that go by a Hugging Face name: what was trained with the weights is fetched with them, at their revision."""

from __future__ import annotations

import json
import logging
import shutil

import huggingface_hub.constants
import pytest
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import HEADS_FILE, RECIPE_FILE, recipe_of
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import headrank, icr

NAME = "me/aligned"
FIRST, SECOND = "1" * 40, "2" * 40
GIVEN = Ranking(
    Query("q1", "how do birds fly?"), tuple(Candidate(f"d{n}", -n, text) for n, text in enumerate(["Birds.", "Fish."]))
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("weights"), layers=3)


@pytest.fixture
def hub(tmp_path, weights, monkeypatch):
    """A cache as the hub's library lays it out: two commits of a model, of which only the second was trained."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--me--aligned"
    for commit, heads in {FIRST: ((0, 0),), SECOND: ((1, 2), (0, 3))}.items():
        snapshot = repository / "snapshots" / commit
        shutil.copytree(weights, snapshot)
        HeadSet("its own", heads, model="as it was called").save(snapshot / HEADS_FILE)
    template = {"name": "headrank", "passages": "isolated", "label": "", "passage_words": 7}
    recipe = {"name": "headrank", "template": template, "rule": {"length_exponent": 0.5}}
    (repository / "snapshots" / SECOND / RECIPE_FILE).write_text(json.dumps(recipe))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SECOND)
    (repository / "refs" / "untrained").write_text(FIRST)
    (repository / ".no_exist" / FIRST).mkdir(parents=True)
    (repository / ".no_exist" / FIRST / RECIPE_FILE).touch()  # the hub was asked once
    return repository


def test_a_trained_model_reads_as_its_folder_does(hub, caplog):
    by_name, by_folder = headrank(NAME, device="cpu"), headrank(hub / "snapshots" / SECOND, device="cpu")
    assert by_name.recipe == by_folder.recipe
    assert (by_name.recipe.template.passages, by_name.recipe.template.passage_words) == ("isolated", 7)
    assert by_name.reader.heads.heads == ((1, 2), (0, 3))
    assert by_name.rerank(GIVEN).scores == by_folder.rerank(GIVEN).scores
    assert by_name.describe()["revision"] == SECOND
    assert "was selected on" not in caplog.text
    assert icr(NAME, device="cpu").recipe.template.passages == "isolated"
    assert recipe_of(NAME).template.passage_words == 7


def test_heads_and_recipe_are_those_of_the_revision(hub):
    reranker = headrank(NAME, revision="untrained", device="cpu")
    assert reranker.reader.heads.heads == ((0, 0),)
    assert reranker.recipe.template.passages == "causal"
    assert reranker.describe()["revision"] == FIRST
    assert recipe_of(NAME, FIRST) == HEADRANK


def test_what_the_hub_cannot_be_asked_is_said(hub, caplog):
    (hub / "snapshots" / SECOND / RECIPE_FILE).unlink()
    (hub / "snapshots" / SECOND / HEADS_FILE).unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=r"me/aligned brings no heads.json; name a"):
        headrank(NAME, device="cpu")
    assert "me/aligned: the hub cannot be asked whether it has a recipe.json" in caplog.text
    caplog.clear()
    headrank(NAME, HeadSet("given", ((0, 0),)), revision=FIRST, device="cpu")
    assert "cannot be asked" not in caplog.text


def test_a_damaged_recipe_is_refused(hub):
    (hub / "snapshots" / SECOND / RECIPE_FILE).write_text("{}")
    with pytest.raises(ValueError, match="not the template and rule of a trained model"):
        headrank(NAME, device="cpu")
