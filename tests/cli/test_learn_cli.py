"""lists, select-heads and train from the command line, and the figures they draw."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from graded_lists import overlap_lists
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.cli import learning, main
from headrank_pipeline.comparison.learning_figures import head_map, training_curves
from headrank_pipeline.learn.lists import read_lists, save_lists
from headrank_pipeline.learn.schedule import TrainingConfig
from headrank_pipeline.learn.settings import CRITERIA
from headrank_pipeline.rerank.systems import headrank
from headrank_pipeline.trec import write_candidates

PNG = b"\x89PNG"


def invoke(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    tiny_model(root / "model")
    save_lists(root / "train.jsonl", overlap_lists(8))
    save_lists(root / "dev.jsonl", overlap_lists(4, seed=1, prefix="v"))
    return root


def test_lists_joins_candidates_and_judgments(tmp_path):
    graded = overlap_lists(3)
    write_candidates(tmp_path / "candidates.jsonl", [one.ranking for one in graded])
    (tmp_path / "qrels.txt").write_text("q0 0 q0d1 2\nq0 0 q0d2 1\nq2 0 q2d0 1\n")
    arguments = ["--candidates", tmp_path / "candidates.jsonl", "--qrels", tmp_path / "qrels.txt"]
    said = invoke("lists", *arguments, "--output", tmp_path / "train.jsonl.gz")
    assert "2 lists of 12 passages, 3 of them judged" in said.stdout
    assert "1 queries without judgments" in said.stdout
    assert [one.grades for one in read_lists(tmp_path / "train.jsonl.gz")] == [(0, 2, 1, 0, 0, 0), (1, 0, 0, 0, 0, 0)]
    counts = json.loads(invoke("lists", *arguments, "--output", tmp_path / "t.jsonl", "--json").stdout)
    assert counts["written"] == 2
    refused = invoke("lists", *arguments[:2], "--qrels", tmp_path / "none.txt", "--output", tmp_path / "x", code=4)
    assert "none.txt: no such qrels file" in refused.stderr


def test_heads_are_selected_and_trained_into_a_folder_that_reranks(folder, tmp_path):
    heads = tmp_path / "heads.json"
    said = invoke(
        "select-heads", "--model", folder / "model", "--lists", folder / "train.jsonl", "--output", heads,
        "--num-heads", 2, "--depth-cap", 0.5, "--window", 2,
    )  # fmt: skip
    chosen = HeadSet.load(heads)
    assert chosen.depth <= 2
    assert chosen.selection["data"]["file"] == "train.jsonl"
    assert heads.with_suffix(".png").read_bytes().startswith(PNG)
    assert len(heads.with_suffix(".tsv").read_text().splitlines()) == 17
    assert [line.split()[0] for line in said.stdout.splitlines()[1:7]] == list(CRITERIA)
    assert "of 4  " in said.stdout  # layers kept, beside each candidate set

    command = (
        "train", "--model", folder / "model", "--heads", heads, "--lists", folder / "train.jsonl",
        "--dev", folder / "dev.jsonl", "--output", tmp_path / "new", "--moves", "qk", "--epochs", 2,
        "--set", "lists_per_step=4", "--set", "objective.beta=4",
    )  # fmt: skip
    said = invoke(*command)
    assert "finished after 4 steps" in said.stdout
    assert (tmp_path / "new" / "training" / "curves.png").read_bytes().startswith(PNG)
    card = (tmp_path / "new" / "README.md").read_text()
    assert '"beta": 4' in card
    assert str(tmp_path) not in card
    ranking = overlap_lists(1)[0].ranking
    reranked = headrank(tmp_path / "new", device="cpu").rerank(ranking)
    assert sorted(reranked.docids) == sorted(ranking.docids)
    again = json.loads(invoke(*command, "--json").stdout)  # finished already: nothing is trained
    assert (again["end"], again["steps"]) == ("finished", 4)
    refused = invoke(*command, "--seed", 3, code=5)
    assert "holds a run that differs in config" in refused.stderr


@pytest.mark.parametrize("suffix", [".tsv", ".png"])
def test_a_head_set_does_not_go_where_its_table_or_picture_would(folder, tmp_path, suffix):
    refused = invoke("select-heads", "--model", folder / "model", "--lists", folder / "train.jsonl", "--output",
                     tmp_path / f"heads{suffix}", code=2)  # fmt: skip
    assert f"heads{suffix}: the head set is JSON" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_before_a_model_is_loaded(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for output, code, message in ((tmp_path, 4, "found a folder"), (tmp_path / "file" / "x.json", 5, "is a file")):
        for command in ("select-heads", "calibrate"):
            refused = invoke(
                command, "--model", "./nope", "--lists", folder / "train.jsonl", "--output", output, code=code
            )
            assert message in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_core_heads_are_found_by_raw_attention_though_core_reranks_with_calibrated(folder, tmp_path):
    command = ("select-heads", "--model", folder / "model", "--lists", folder / "train.jsonl", "--system", "core")
    invoke(*command, "--criterion", "core", "--num-heads", 2, "--window", 1, "--output", tmp_path / "core.json")
    rule = HeadSet.load(tmp_path / "core.json").selection["rule"]
    assert (rule["content_free"], rule["filter_deviations"]) == (None, None)


def test_a_trained_folder_is_selected_and_trained_on_with_its_own_prompt(folder, tmp_path):
    model, output = shutil.copytree(folder / "model", tmp_path / "model"), tmp_path / "new"
    template = HEADRANK.varied({"passages": "isolated", "passage_words": 7, "instruction": "Find:"}).template.describe()
    recipe = {"name": "headrank", "template": {k: v for k, v in template.items() if k != "chat"}, "rule": {}}
    (model / "recipe.json").write_text(json.dumps(recipe))
    command = ("train", "--model", model, "--heads", "all", "--lists", folder / "train.jsonl", "--max-lists", 1,
               "--moves", "qk", "--epochs", 1, "--no-figure", "--output", output)  # fmt: skip
    invoke(*command)
    assert json.loads((output / "recipe.json").read_text())["template"] == recipe["template"]
    selected = [tmp_path / "own.json", tmp_path / "other.json"]
    for heads, source in zip(selected, (model, folder / "model"), strict=True):
        invoke("select-heads", "--model", source, "--lists", folder / "train.jsonl", "--num-heads", 2, "--window", 1,
               "--no-figure", "--output", heads)  # fmt: skip
    tokens = [HeadSet.load(heads).selection["lists"]["prompt_tokens"] for heads in selected]
    assert tokens[0] < tokens[1]  # the same passages, cut to 7 words, under a shorter instruction


def test_unknown_settings_are_refused(folder, tmp_path):
    command = ("train", "--model", folder / "model", "--heads", "all", "--lists", folder / "train.jsonl",
               "--output", tmp_path / "new")  # fmt: skip
    assert "did you mean 'objective.beta'" in invoke(*command, "--set", "objective.beto=1", code=5).stderr
    assert "expected NAME=VALUE" in invoke(*command, "--set", "patience", code=2).stderr


def test_figures_refuse_files_that_are_something_else(tmp_path):
    (tmp_path / "heads.tsv").write_text("layer\thead\tchosen\n0\t0\t1\n")
    with pytest.raises(ValueError, match="no measure 'score'; it has layer, head, chosen"):
        head_map(tmp_path / "heads.tsv")
    (tmp_path / "other.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="expected the head table"):
        head_map(tmp_path / "other.tsv")
    (tmp_path / "log.jsonl").write_text('{"event": "dev", "step": 0, "ndcg": 0.5, "best": true}\n')
    with pytest.raises(ValueError, match="no steps in it"):
        training_curves(tmp_path / "log.jsonl")


def test_head_map_leaves_constant_heads_blank_and_equal_files_give_equal_pictures(tmp_path):
    rows = ["layer\thead\tscore\tchosen", "0\t0\t-inf\t0", "0\t1\t0.5\t1", "1\t0\t0.1\t0", "1\t1\tnan\t0"]
    (tmp_path / "heads.tsv").write_text("\n".join(rows) + "\n")
    first, second = (head_map(tmp_path / "heads.tsv").png for _ in range(2))
    assert first == second
    assert first.startswith(PNG)


def test_heads_of_every_system_are_measured_with_the_passages_that_a_model_was_trained_for(tmp_path):
    layouts = [
        [learning._recipe(system, str(model), None, asked).template.passages for system in ("headrank", "icr", "core")]
        for model, asked in (
            (embedded_model(), {}),
            (embedded_model(), {"passages": "causal"}),
            (tmp_path, {}),
        )  # no trained folder
    ]
    assert layouts == [["isolated"] * 3, ["causal"] * 3, ["causal"] * 3]


def test_help_of_train_shows_the_defaults_that_training_has():
    defaults = TrainingConfig()
    for parameter in main.get_command(None, "train").params:
        if parameter.name in ("moves", "epochs", "learning_rate", "list_size", "lists_per_step", "seed"):
            assert parameter.help.endswith(f"[default: {getattr(defaults, parameter.name)}]")
