"""Pushing to a stand-in of the hub, and using by name what was pushed; huggingface_hub itself is the real one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import Hub, hub_server
from huggingface_hub import ModelCard
from run_directories import graded_candidates, make_run

from headrank_pipeline import HeadSet, embedded_model, headrank
from headrank_pipeline.adapters.hub import CardFacts, prepare
from headrank_pipeline.cli import main
from headrank_pipeline.rerank.calibrated import Calibration, reading_of

PUSHED = {
    "README.md", "config.json", "heads.json", "model.safetensors", "recipe.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model with what must not leave the machine beside it."""
    folder = tmp_path / "model"
    shutil.copytree(embedded_model(), folder)
    (folder / "training").mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"code")
    (folder / "README.md").write_text(
        '---\nlanguage: de\nlicense: mit\ntags: [mine]\n---\n\n# model\n\n`headrank("model")  # this folder`\n'
    )
    return folder


def in_fresh_python(hub: Hub, home: Path, code: str) -> str:
    """What code prints in a process whose hub is the stand-in; Xet, the hub's other way to send weights, is off."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HOME": str(home)}
    environment["HF_HUB_DISABLE_XET"] = "1"
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_model_and_a_head_set_are_pushed_and_used_by_their_names(tmp_path: Path):
    heads = HeadSet("two", ((1, 0), (2, 3)), model="someone/base")
    heads.save(tmp_path / "two.json")
    code = f"""
from headrank_pipeline import headrank, rank
from headrank_pipeline.cli import main
more = ["--license", "apache-2.0", "--base-model", "someone/base"]
main(["push", {str(embedded_model())!r}, "me/ranker", *more], standalone_mode=False)
main(["push", {str(tmp_path / "two.json")!r}, "me/heads", "--license", "mit"], standalone_mode=False)
texts = ["The dog sleeps.", "A flea can live up to a year."]
print("equal", rank("flea life", texts, model="me/ranker") == rank("flea life", texts, model="embedded"))
read = headrank("embedded", "me/heads").reader.heads
print(read.heads, read.digest() == {heads.digest()!r})
try:
    headrank("embedded", "me/nothing")
except FileNotFoundError as error:
    print(error)
refused = ["push", {str(tmp_path / "two.json")!r}, "forbidden/heads", "--license", "mit"]
print("status", main(refused, standalone_mode=False))
"""
    with hub_server() as hub:
        printed = in_fresh_python(hub, tmp_path / "home", code)
    assert set(hub.repositories["me/ranker"]) == PUSHED
    assert set(hub.repositories["me/heads"]) == {"README.md", "heads.json"}
    weights = embedded_model() / "model.safetensors"
    assert hub.repositories["me/ranker"]["model.safetensors"] == weights.read_bytes()
    assert "Bearer hf_test" in hub.tokens
    assert "equal True\n" in printed
    assert "((1, 0), (2, 3)) True\n" in printed
    assert "heads 'me/nothing': there is no such file, and no heads.json could be had" in printed
    assert re.search(r"error: .*403.*", printed)
    assert "status 6" in printed


def test_a_model_is_pushed_with_its_calibration_and_gives_probabilities_by_its_name(model: Path, tmp_path: Path):
    reading = reading_of(headrank(str(model)))
    Calibration((-1.0, 2.0, -0.5), (0.5, -1.0, 0.3), 1, reading, {"lists": 0}).save(model / "calibration.json")
    code = f"""
from headrank_pipeline import Candidate, Query, Ranking, headrank
from headrank_pipeline.cli import main
main(["push", {str(model)!r}, "me/ranker", "--base-model", "someone/base"], standalone_mode=False)
ranking = Ranking(Query("q", "flea life"), (Candidate("a", 2.0, "The dog."), Candidate("b", 1.0, "A flea lives.")))
here, there = (headrank(name, calibration="own").rerank(ranking) for name in ({str(model)!r}, "me/ranker"))
print("equal", here.scores == there.scores, max(here.scores) < 1 > sum(here.scores))
"""
    with hub_server() as hub:
        printed = in_fresh_python(hub, tmp_path / "home", code)
    assert set(hub.repositories["me/ranker"]) == PUSHED | {"calibration.json"}
    assert "left out: pytorch_model.bin, training\n" in printed
    assert "equal True True\n" in printed

    for name in ("fingerprint", "heads"):
        other = Calibration((-1.0, 2.0, -0.5), (0.5, -1.0, 0.3), 1, {**reading, name: "another"}, {})
        other.save(model / "calibration.json")
        with pytest.raises(ValueError, match=rf"calibration\.json: was fitted for another reading.*: {name} differ"):
            prepare(model, tmp_path / "no", "me/x", CardFacts(base_model="a/b"))
        assert not (tmp_path / "no").exists()


def test_offline_asks_the_hub_nothing_while_a_model_is_opened_and_forbids_it_no_longer(tmp_path: Path):
    code = """
import os, huggingface_hub.constants
from headrank_pipeline.rerank.systems import SystemSpec
try:
    SystemSpec("headrank", "me/ranker", offline=True).open()
except FileNotFoundError as error:
    print(error)
print("then", os.environ.get("HF_HUB_OFFLINE"), huggingface_hub.constants.HF_HUB_OFFLINE)
"""
    with hub_server() as hub:
        printed = in_fresh_python(hub, tmp_path / "home", code)
    assert hub.asked == []
    assert "model 'me/ranker' is neither a local model folder" in printed
    assert "then None False\n" in printed


def test_a_hub_that_cannot_be_reached_is_told_after_one_try(tmp_path: Path):
    code = f"""
from headrank_pipeline.cli import main
main(["push", {str(embedded_model())!r}, "me/ranker", "--license", "mit", "--base-model", "a/b"], standalone_mode=False)
for model in ("me/ranker", "me/files/ranker.gguf"):
    try:
        main(["rerank", "--candidates", {str(tmp_path / "c.jsonl")!r}, "--model", model, "--heads", "all",
              "--output", "run"], standalone_mode=False)
    except FileNotFoundError as error:
        print(error)
try:
    main(["rerank", "--candidates", {str(tmp_path / "c.jsonl")!r}, "--model", "embedded", "--heads", "me/heads",
          "--output", "run"], standalone_mode=False)
except FileNotFoundError as error:
    print(error)
"""
    graded_candidates(tmp_path, queries=1, passages=2)[0].rename(tmp_path / "c.jsonl")
    hub = Hub()
    hub.url = "http://127.0.0.1:9"
    printed = in_fresh_python(hub, tmp_path / "home", code)
    assert "error: me/ranker: http://127.0.0.1:9 cannot be reached" in printed
    for what in ("model 'me/ranker'", "model 'me/files/ranker.gguf'", "heads 'me/heads'"):
        assert f"{what}: there is no such folder or file here, and the Hugging Face hub" in printed
    assert "Retrying" not in printed


def test_a_dry_run_writes_what_would_be_pushed_and_says_what_is_left_out(model: Path, tmp_path: Path):
    asked = [
        "push",
        str(model),
        "me/ranker",
        "--base-model",
        "a/b",
        "--dataset",
        "d1",
        "--dry-run",
        str(tmp_path / "x"),
    ]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert {file.name for file in (tmp_path / "x").iterdir()} == PUSHED
    assert "left out: pytorch_model.bin, training\n" in done.output
    card = ModelCard.load(tmp_path / "x" / "README.md")
    assert card.data.to_dict() == {
        "language": "de", "license": "mit", "base_model": "a/b", "datasets": ["d1"], "pipeline_tag": "text-ranking",
        "library_name": "headrank_pipeline", "tags": ["mine", "headrank", "reranker", "attention-heads"],
    }  # fmt: skip
    assert card.text.strip() == '# model\n\n`headrank("me/ranker")`'
    again = CliRunner().invoke(main, asked)
    assert (again.exit_code, again.output) == (5, f"error: {tmp_path / 'x'}: is not empty; name a new folder\n")


def test_measures_of_a_run_of_this_model_go_into_the_card(tmp_path: Path):
    candidates, qrels, _ = graded_candidates(tmp_path, queries=2, passages=4)
    run = make_run(tmp_path / "run", candidates, qrels, headrank("embedded"))
    facts = CardFacts(base_model="a/b", license="mit", runs=(run,))
    prepare(embedded_model(), tmp_path / "pushed", "me/ranker", facts)
    card = ModelCard.load(tmp_path / "pushed" / "README.md")
    means = json.loads((run / "evaluation.json").read_text())["reranked"]["means"]
    assert {one.metric_name: one.metric_value for one in card.data.eval_results} == {
        name: round(value, 4) for name, value in means.items()
    }
    assert card.data.model_name == "ranker"
    assert {one.dataset_name for one in card.data.eval_results} == {"run"}

    HeadSet("other", ((0, 0),), model="a/b").save(tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"run: was not made with the heads of .*other\.json"):
        prepare(tmp_path / "other.json", tmp_path / "no", "me/heads", facts)
    shutil.copytree(embedded_model(), tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run: was not made with the model in .*changed, whose files are others"):
        prepare(tmp_path / "changed", tmp_path / "no", "me/ranker", facts)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_pushed_is_said_before_anything_is_written(model: Path, tmp_path: Path):
    def refused(error: type[Exception], message: str, source: Path = model, name: str = "me/x", **facts):
        given = {"base_model": "a/b", "license": "mit", **facts}
        with pytest.raises(error, match=message):
            prepare(source, tmp_path / "no", name, CardFacts(**given))
        assert not (tmp_path / "no").exists()

    refused(ValueError, "repository 'x': expected owner/name", name="x")
    refused(ValueError, "repository 'a/b/c'", name="a/b/c")
    refused(ValueError, "names no base model; say which: --base-model", base_model=None)
    refused(FileNotFoundError, "neither a model folder nor a head set", source=tmp_path / "nothing")
    (model / "README.md").write_text("# model\n")
    refused(ValueError, "names no license; say which: --license", license=None)
    (model / "recipe.json").write_text("{}")
    refused(ValueError, "not the template and rule of a trained model")
    (model / "model.safetensors").unlink()
    refused(ValueError, r"no safetensors weights, found \['pytorch_model.bin'\]")
    (model / "heads.json").unlink()
    refused(FileNotFoundError, "has no heads.json; expected a folder that headrank train wrote")


def test_the_card_of_a_head_set_names_the_model_of_its_heads(tmp_path: Path):
    HeadSet("two", ((1, 0), (2, 3)), model="someone/base").save(tmp_path / "two.json")
    prepare(tmp_path / "two.json", tmp_path / "pushed", "me/heads", CardFacts(license="mit"))
    card = ModelCard.load(tmp_path / "pushed" / "README.md")
    assert card.data.base_model == "someone/base"
    assert 'headrank("someone/base", "me/heads")' in card.text
    assert HeadSet.load(tmp_path / "pushed" / "heads.json") == HeadSet.load(tmp_path / "two.json")
