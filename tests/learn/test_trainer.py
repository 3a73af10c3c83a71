"""Training on a tiny model: it learns, resumes bit-equal, stops where it must, and exports what reranks."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from decoder_families import family_folder
from graded_lists import overlap_lists
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.attention.recipe import HEADRANK, PLAIN
from headrank_pipeline.learn.checkpoint import TrainingDirectory
from headrank_pipeline.learn.export import export
from headrank_pipeline.learn.lists import GradedList, sublist
from headrank_pipeline.learn.movable import checkpointed_activations, fold_lora, movable_weights, set_movable
from headrank_pipeline.learn.preference import grade_divergence, list_loss
from headrank_pipeline.learn.schedule import TrainingConfig, configured, learning_rate, plan
from headrank_pipeline.learn.scorer import ListScorer, mean_ndcg
from headrank_pipeline.learn.settings import Objective
from headrank_pipeline.learn.trainer import NotFiniteError, Trainer, TrainingData
from headrank_pipeline.pipeline import MissingPrerequisite
from headrank_pipeline.rerank.systems import headrank

# Short prompts: the words of the frame teach nothing here and would be most of the tokens.
SHORT = replace(
    HEADRANK,
    template=replace(
        HEADRANK.template,
        opening="",
        instruction="",
        query_label="",
        label="",
        separator="\n",
        rows="query",
        chat=PLAIN,
    ),
)
HEADS = HeadSet("two", ((0, 0), (1, 1)))
LISTS, DEV = overlap_lists(64), overlap_lists(24, seed=1, prefix="v")
QUICK = TrainingConfig(moves="all", learning_rate=1e-2, epochs=4, lists_per_pass=8, list_size=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose q heads are copies of their k heads: equal tokens look at each other from the start."""
    path = tiny_model(tmp_path_factory.mktemp("trained") / "model", layers=3)
    loaded = load(path, "all", device="cpu")
    with torch.no_grad():
        for layer in loaded.model.layers:
            keys = layer.self_attn.k_proj.weight.view(2, 16, 64)
            layer.self_attn.q_proj.weight.copy_(keys.repeat_interleave(2, dim=0).reshape(64, 64))
    loaded.model.save_pretrained(path)
    return path


def fresh(folder, heads=HEADS):
    return load(folder, heads, device="cpu")


def trained(folder, directory, config, data=None, **run):
    loaded = fresh(folder)
    trainer = Trainer(loaded, SHORT, data or TrainingData(LISTS, DEV), config, directory=directory)
    return loaded, trainer.run(**run)


def weights(loaded):
    return {name: weight.clone() for name, weight in loaded.model.state_dict().items()}


# -------------------------------------------------------------------------------------------------------- learning


def test_training_lifts_ndcg_on_lists_it_never_saw(folder, tmp_path):
    loaded, report = trained(folder, tmp_path, QUICK)
    assert report.end == "finished"
    assert report.steps == 32
    assert report.dev_best >= report.dev_before + 0.05  # 0.86 -> 0.97 when this was written
    scorer = ListScorer(AttentionReader(loaded), SHORT)
    assert mean_ndcg(scorer, DEV) == pytest.approx(report.dev_best, abs=1e-9)
    assert not movable_weights(loaded.model)


@pytest.mark.parametrize(("moves", "rate"), [("lora", 5e-3), ("lora-all", 5e-3), ("qk", 5e-3)])
@pytest.mark.parametrize("kind", ["preference", "group-contrastive", "listwise"])
def test_every_choice_of_weights_and_loss_lowers_the_loss(folder, tmp_path, moves, rate, kind):
    objective = Objective(kind=kind)
    config = replace(QUICK, moves=moves, learning_rate=rate, objective=objective)
    loaded, _ = trained(folder, tmp_path, config, TrainingData(LISTS[:32]))
    assert _mean_loss(loaded, objective) < _mean_loss(fresh(folder), objective)


def _mean_loss(loaded, objective):
    scores = ListScorer(AttentionReader(loaded), SHORT).scores(LISTS[:32])
    losses = [list_loss(objective, s, torch.tensor(g.grades)).loss for s, g in zip(scores, LISTS, strict=False)]
    return float(torch.stack(losses).mean())


def test_distillation_follows_the_teacher(folder, tmp_path):
    taught = [GradedList(g.ranking, g.grades, tuple(0.1 * grade for grade in g.grades)) for g in LISTS]
    config = replace(QUICK, objective=Objective(kind="distillation"), epochs=2)
    _, report = trained(folder, tmp_path, config, TrainingData(taught, DEV))
    assert report.dev_best > report.dev_before + 0.02


# ------------------------------------------------------------------------------------------------- what may move


@pytest.mark.parametrize("moves", ["lora", "lora-all", "heads", "qk", "all"])
def test_every_movable_weight_gets_a_gradient_and_no_other(folder, moves):
    loaded = fresh(folder)
    names = set_movable(loaded.model, moves)
    scores = ListScorer(AttentionReader(loaded), SHORT).forward(
        ListScorer(AttentionReader(loaded), SHORT).prompts(LISTS[:2])
    )
    torch.stack([one.log()[0] for one in scores]).sum().backward()
    with_gradient = {name for name, weight in loaded.model.named_parameters() if weight.grad is not None}
    assert with_gradient == set(names)
    assert not any(name.startswith("layers.1.mlp") or "layers.1.self_attn.v_proj" in name for name in names)
    if moves in ("heads", "qk"):
        assert {name.split(".")[3] for name in names} == {"q_proj", "k_proj", "q_norm", "k_norm"}
        assert {name.split(".")[1] for name in names} == ({"1"} if moves == "heads" else {"0", "1"})
    if moves == "lora-all":
        below = {name.split(".")[3] for name in names if name.startswith("layers.0.")}
        assert below == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
        assert {name.split(".")[3] for name in names if name.startswith("layers.1.")} == {"q_proj", "k_proj"}
    if moves == "all":
        assert {"embed_tokens.weight", "layers.0.mlp.up_proj.weight", "layers.1.input_layernorm.weight"} <= set(names)


@pytest.mark.parametrize("moves", ["lora", "lora-all", "heads", "qk", "all"])
def test_a_fused_matrix_of_q_k_and_v_moves_whole(tmp_path, moves):
    loaded = fresh(family_folder(tmp_path, "phi3"), HeadSet("two", ((0, 0), (2, 1))))
    names = set_movable(loaded.model, moves, read={0, 2})
    scorer = ListScorer(AttentionReader(loaded), SHORT)
    torch.stack([one.log()[0] for one in scorer.forward(scorer.prompts(LISTS[:2]))]).sum().backward()
    with_gradient = {name for name, weight in loaded.model.named_parameters() if weight.grad is not None}
    assert with_gradient == set(names)
    moved = {name.split(".")[1] for name in names if "qkv_proj" in name}
    assert moved == ({"0", "2"} if moves == "heads" else {"0", "1", "2"})


@pytest.mark.parametrize("moves", ["lora", "lora-all", "heads", "qk"])
def test_a_family_without_matrices_of_q_and_k_is_refused_by_name(tmp_path, moves):
    loaded = fresh(family_folder(tmp_path, "deepseek_v3"))
    with pytest.raises(
        ValueError, match=rf"moves '{moves}': a DeepseekV3Model has no q_proj .*q_a_proj.*choose moves=all"
    ):
        set_movable(loaded.model, moves)


def test_all_moves_what_keys_and_queries_of_the_deepest_layer_are_made_of(tmp_path):
    names = set_movable(fresh(family_folder(tmp_path, "deepseek_v3")).model, "all")
    deepest = {name.removeprefix("layers.1.") for name in names if name.startswith("layers.1.")}
    assert {"self_attn.q_b_proj.weight", "self_attn.kv_a_proj_with_mqa.weight", "input_layernorm.weight"} <= deepest
    assert not any("o_proj" in name or "mlp" in name for name in deepest)


def test_only_the_layers_that_are_read_move_with_the_heads(folder, tmp_path):
    """Heads of layer 0 and 1 of three: q and k of both move, and nothing of the third is there."""
    before = weights(fresh(folder))
    loaded = load(folder, HeadSet("two", ((0, 1), (1, 0))), device="cpu")
    Trainer(loaded, SHORT, TrainingData(LISTS), replace(QUICK, moves="heads", max_steps=1), directory=tmp_path).run()
    moved = {name.split(".")[1] for name, weight in weights(loaded).items() if not torch.equal(weight, before[name])}
    assert moved == {"0", "1"}
    loaded = load(folder, HeadSet("deepest", ((1, 0),)), device="cpu")
    config = replace(QUICK, moves="heads", max_steps=1)
    Trainer(loaded, SHORT, TrainingData(LISTS), config, directory=tmp_path / "deepest").run()
    moved = {name.split(".")[1] for name, weight in weights(loaded).items() if not torch.equal(weight, before[name])}
    assert moved == {"1"}


def test_lora_without_peft_is_a_missing_prerequisite(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPrerequisite, match=r"pip install 'headrank-pipeline\[train\]'"):
        set_movable(fresh(folder).model, "lora")


def test_unknown_choice_of_weights_is_refused(folder):
    with pytest.raises(ValueError, match="expected one of lora, lora-all, heads"):
        set_movable(fresh(folder).model, "some")


def test_embeddings_may_move_at_a_rate_of_their_own(folder, tmp_path):
    start, moved = fresh(folder), []
    for factor in (1.0, 0.5):
        config = replace(QUICK, embedding_factor=factor, max_steps=1)
        loaded, _ = trained(folder, tmp_path / str(factor), config, TrainingData(LISTS))
        moved.append((loaded.model.embed_tokens.weight - start.model.embed_tokens.weight).abs().max())
    assert float(moved[1] / moved[0]) == pytest.approx(0.5, rel=1e-3)


def test_frozen_weights_stay_as_they_were(folder, tmp_path):
    before = weights(fresh(folder))
    loaded, _ = trained(folder, tmp_path, replace(QUICK, moves="qk", max_steps=2))
    moved = {name for name, weight in weights(loaded).items() if not torch.equal(weight, before[name])}
    assert moved
    assert all("q_proj" in name or "k_proj" in name or "_norm" in name for name in moved)


def test_folding_lora_keeps_the_scores(folder):
    loaded = fresh(folder)
    set_movable(loaded.model, "lora", lora_rank=4)
    with torch.no_grad():
        for weight in movable_weights(loaded.model).values():
            weight.normal_(std=0.1)
    scorer = ListScorer(AttentionReader(loaded), SHORT)
    before = scorer.scores(LISTS[:3])
    fold_lora(loaded.model)
    assert not any("lora" in name for name in loaded.model.state_dict())
    for one, other in zip(scorer.scores(LISTS[:3]), before, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    plain = ListScorer(AttentionReader(fresh(folder)), SHORT).scores(LISTS[:3])
    assert not torch.allclose(plain[0], before[0], atol=1e-3)


def test_recomputed_activations_give_the_same_gradients(folder):
    gradients = []
    for enabled in (False, True):
        loaded = fresh(folder)
        set_movable(loaded.model, "all")
        scorer = ListScorer(AttentionReader(loaded), SHORT)
        with checkpointed_activations(loaded.model, enabled=enabled):
            loaded.model.train()
            (scores,) = scorer.forward(scorer.prompts(LISTS[:1]))
            scores.log()[0].backward()
        assert not any(getattr(layer, "gradient_checkpointing", False) for layer in loaded.model.layers)
        gradients.append({name: weight.grad for name, weight in movable_weights(loaded.model).items()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_gradients_in_one_padded_pass_equal_those_one_by_one(folder):
    gradients = []
    for size in (1, 4):
        loaded = fresh(folder)
        set_movable(loaded.model, "qk")
        scorer = ListScorer(AttentionReader(loaded), SHORT)
        prompts = scorer.prompts([sublist(graded, 3 + i, seed=0) for i, graded in enumerate(LISTS[:4])])
        for start in range(0, 4, size):
            scores = scorer.forward(prompts[start : start + size])
            torch.stack([one.log()[0] for one in scores]).sum().backward()
        gradients.append([weight.grad for weight in movable_weights(loaded.model).values()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_steps_gradient_is_that_of_the_mean_loss_however_it_is_split(folder, tmp_path):
    config = replace(QUICK, moves="qk", lists_per_step=4, lists_per_pass=3, max_steps=1, clip=None, list_size=4)
    trained(folder, tmp_path, config, TrainingData(LISTS))
    loaded = fresh(folder)
    set_movable(loaded.model, "qk")
    scorer = ListScorer(AttentionReader(loaded), SHORT)
    drawn = [sublist(LISTS[d.index], 4, seed=0, epoch=d.epoch, draw=d.draw) for d in next(plan(config, len(LISTS)))]
    scores = scorer.forward(scorer.prompts(drawn))
    losses = [list_loss(config.objective, s, torch.tensor(g.grades)).loss for s, g in zip(scores, drawn, strict=True)]
    torch.stack(losses).mean().backward()
    norm = torch.stack([weight.grad.norm() for weight in movable_weights(loaded.model).values()]).norm()
    (step, _) = _log(tmp_path)
    assert step["loss"] == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-5)
    assert step["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_the_middle_zone_is_that_of_the_prompt_whatever_order_it_is_written_in(folder, tmp_path):
    config = replace(QUICK, lists_per_step=1, lists_per_pass=1, max_steps=1)
    shuffled = replace(SHORT, template=replace(SHORT.template, shuffle_seed=1))
    Trainer(fresh(folder), shuffled, TrainingData(LISTS[:1]), config, directory=tmp_path).run()
    (draw,) = next(plan(config, 1))
    drawn = sublist(LISTS[0], None, seed=0, epoch=draw.epoch, draw=draw.draw)
    scorer = ListScorer(AttentionReader(fresh(folder)), shuffled)
    (prompt,) = scorer.prompts([drawn])
    zone = torch.zeros(6, dtype=torch.bool)
    zone[list(prompt.order[1:-1])] = True  # of six places all but the first and the last
    assert zone.tolist() != [False, True, True, True, True, False]
    (scores,) = scorer.scores([drawn])
    expected = grade_divergence(scores.log(), torch.tensor(drawn.grades), zone)
    (step, _) = _log(tmp_path)
    assert step["regulariser"] == pytest.approx(float(expected), rel=1e-4)


def test_every_epoch_draws_other_passages_in_another_order(folder, tmp_path, monkeypatch):
    seen, prompts = [], ListScorer.prompts

    def noted(self, lists):
        seen.extend(graded.ranking.docids for graded in lists)
        return prompts(self, lists)

    monkeypatch.setattr(ListScorer, "prompts", noted)
    trained(folder, tmp_path, replace(QUICK, epochs=3, draws=2, list_size=4), TrainingData(LISTS[:1]))
    assert len(seen) == 6
    assert len(set(seen)) == 6
    assert len({frozenset(docids) for docids in seen}) > 1


@pytest.mark.parametrize("data", [TrainingData(LISTS), TrainingData(LISTS, DEV)], ids=["no dev lists", "dev lists"])
def test_averaged_weights_are_the_running_mean_of_those_of_each_step(folder, tmp_path, data):
    steady = replace(QUICK, decay="none", warmup=0.0)
    alone = TrainingData(LISTS)
    after = [weights(trained(folder, tmp_path / f"{n}", replace(steady, max_steps=n), alone)[0]) for n in (1, 2)]
    before = weights(fresh(folder))
    mean = {n: 0.5625 * before[n] + 0.1875 * after[0][n] + 0.25 * after[1][n] for n in before}
    config = replace(steady, max_steps=2, averaging=0.75)
    loaded, report = trained(folder, tmp_path / "averaged", config, data)
    assert report.best_step == 2
    for name, weight in weights(loaded).items():
        torch.testing.assert_close(weight, mean[name], rtol=0, atol=1e-6)
    if data.dev:
        scorer = ListScorer(AttentionReader(loaded), SHORT)
        assert mean_ndcg(scorer, DEV) == pytest.approx(report.dev_best, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------- resume


def test_judging_the_running_mean_leaves_the_weights_that_move_as_they_are(folder, tmp_path):
    config = replace(QUICK, max_steps=4, averaging=0.5, evaluate_every=1)
    steps = []
    for name, data in (("judged", TrainingData(LISTS, DEV)), ("unjudged", TrainingData(LISTS))):
        trained(folder, tmp_path / name, config, data)
        steps.append([event for event in _log(tmp_path / name) if event["event"] == "step"])
    assert steps[0] == steps[1]


@pytest.mark.parametrize(("moves", "averaging"), [("lora", None), ("lora", 0.5), ("lora-all", None), ("all", 0.5)])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder, tmp_path, moves, averaging):
    config = replace(QUICK, moves=moves, epochs=1, max_steps=6, list_size=4, evaluate_every=2, lora_dropout=0.1)
    config = replace(config, averaging=averaging)
    whole, report = trained(folder, tmp_path / "whole", config)
    _, first = trained(folder, tmp_path / "parts", config, pause_after=3)
    assert (first.end, first.steps) == ("paused", 3)
    parts, second = trained(folder, tmp_path / "parts", config)
    assert (second.end, second.steps, second.best_step) == ("finished", 6, report.best_step)
    for (name, weight), other in zip(weights(whole).items(), weights(parts).values(), strict=True):
        assert torch.equal(weight, other), name
    logs = [_log(tmp_path / part) for part in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_dropout_of_a_step_depends_on_its_number_alone(folder, tmp_path):
    config = replace(QUICK, moves="lora", epochs=1, max_steps=4, list_size=4, lora_dropout=0.3)
    undisturbed, _ = trained(folder, tmp_path / "one", config)
    disturbed, _ = trained(folder, tmp_path / "two", config, on_event=lambda event: torch.rand(1))
    for (name, weight), other in zip(weights(undisturbed).items(), weights(disturbed).values(), strict=True):
        assert torch.equal(weight, other), name


def _log(directory):
    events = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in event.items() if name != "seconds"} for event in events]


def test_steps_after_the_last_checkpoint_are_taken_again(folder, tmp_path, monkeypatch):
    config = replace(QUICK, epochs=1, max_steps=6, evaluate_every=2)
    whole, _ = trained(folder, tmp_path / "whole", config)

    class Killed(Exception):
        pass

    def kill(event):
        if event["event"] == "step" and event["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        trained(folder, tmp_path / "killed", config, on_event=kill)
    with (tmp_path / "killed" / "log.jsonl").open("a") as log:
        log.write('{"event": "st')  # the crash cut the last line
    parts, _ = trained(folder, tmp_path / "killed", config)
    for weight, other in zip(weights(whole).values(), weights(parts).values(), strict=True):
        assert torch.equal(weight, other)
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")


def test_a_first_line_after_the_checkpoint_that_a_crash_cut_is_dropped(tmp_path):
    directory = TrainingDirectory(tmp_path)
    directory.append({"event": "step", "step": 1})
    whole = directory.log.read_text()
    directory.log.write_text(whole + '{"event": "st')
    directory.rewind(1)
    assert directory.log.read_text() == whole
    directory.log.write_text('{"event": "st\n' + whole)  # before the last line no crash cuts anything
    with pytest.raises(ValueError, match=r"log\.jsonl:1: not a line of a training's log"):
        directory.rewind(1)


def test_state_and_weights_that_were_changed_are_refused_by_name_and_a_kill_between_leaves_the_old_ones(tmp_path):
    directory = TrainingDirectory(tmp_path)
    for number in range(3):
        directory.save_state({"weights": torch.full((4,), float(number))})
        directory.save_best({"weight": torch.full((4,), float(number))})
    (tmp_path / "state.pt").rename(tmp_path / "kept")
    with pytest.raises(FileNotFoundError, match=r"state\.pt: no such file, though this training"):
        directory.load_state()
    (tmp_path / "kept").rename(tmp_path / "state.pt")
    old = directory.state.read_bytes()
    directory.save_state({"weights": torch.full((4,), 9.0)})
    directory.state.write_bytes(old)  # as a kill just before the rename leaves it: the digests are the next one's, too
    assert directory.load_state()["weights"].tolist() == [2.0] * 4
    for path, read in ((directory.state, directory.load_state), (directory.best, directory.load_best)):
        data = bytearray(path.read_bytes())
        place = data.index(torch.full((4,), 2.0).numpy().tobytes())
        data[place + 2] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(ValueError, match=rf"{path.name}: not as it was saved, its SHA-256 is another"):
            read()
    directory.setup.write_text("{")
    with pytest.raises(ValueError, match=r"setup\.json: not valid JSON"):
        directory.claim({})
    directory.claim({}, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["setup.json"]


def test_finished_run_is_not_trained_again(folder, tmp_path):
    config = replace(QUICK, max_steps=3)
    first, _ = trained(folder, tmp_path, config)
    log = _log(tmp_path)
    second, report = trained(folder, tmp_path, config)
    assert report.steps == 3
    assert _log(tmp_path) == log
    for weight, other in zip(weights(first).values(), weights(second).values(), strict=True):
        assert torch.equal(weight, other)


def test_another_run_in_the_same_directory_is_refused(folder, tmp_path):
    trained(folder, tmp_path, replace(QUICK, max_steps=1))
    with pytest.raises(ValueError, match="holds a run that differs in config"):
        trained(folder, tmp_path, replace(QUICK, max_steps=1, seed=1))
    loaded = fresh(folder)
    config = replace(QUICK, max_steps=1, seed=1)
    report = Trainer(loaded, SHORT, TrainingData(LISTS, DEV), config, directory=tmp_path, overwrite=True).run()
    assert report.steps == 1


def test_other_lists_are_another_run_though_they_are_as_many(folder, tmp_path):
    config = replace(QUICK, max_steps=1)
    trained(folder, tmp_path, config)
    others = overlap_lists(len(LISTS), seed=2)
    for data in (TrainingData(others, DEV), TrainingData(LISTS, overlap_lists(len(DEV), seed=3, prefix="v"))):
        with pytest.raises(ValueError, match="holds a run that differs in data"):
            trained(folder, tmp_path, config, data)


def test_two_cannot_train_in_one_folder(folder, tmp_path):
    waiting = Trainer(fresh(folder), SHORT, TrainingData(LISTS, DEV), replace(QUICK, max_steps=2), directory=tmp_path)
    refused = []

    def interfere(event):
        with pytest.raises(RuntimeError, match=r"another process \(id \d+\) is writing this training run"):
            Trainer(fresh(folder), SHORT, TrainingData(LISTS, DEV), QUICK, directory=tmp_path, overwrite=True)
        with pytest.raises(RuntimeError, match="another process"):
            waiting.run()
        refused.append(event["event"])

    _, report = trained(folder, tmp_path, replace(QUICK, max_steps=2), on_event=interfere)
    assert (refused, report.steps) == (["dev", "step", "step", "dev", "end"], 2)
    assert waiting.run().steps == 2  # what the other one left is gone on from


def test_starting_anew_leaves_files_that_are_not_ours(folder, tmp_path):
    config = replace(QUICK, max_steps=1)
    (tmp_path / "thesis.tex").write_text("years of work")
    trained(folder, tmp_path, config)
    Trainer(fresh(folder), SHORT, TrainingData(LISTS), config, directory=tmp_path, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", "setup.json", ".lock"}


# ------------------------------------------------------------------------------------------------ stopping and errors


def test_early_stopping_keeps_the_best_weights(folder, tmp_path):
    config = replace(QUICK, moves="qk", learning_rate=1.0, epochs=9, evaluate_every=2, patience=2, warmup=0.0)
    loaded, report = trained(folder, tmp_path, config)
    assert (report.end, report.best_step, report.steps) == ("patience", 0, 4)
    assert report.dev_best == report.dev_before
    for weight, other in zip(weights(loaded).values(), weights(fresh(folder)).values(), strict=True):
        assert torch.equal(weight, other)


def test_dev_lists_that_come_out_the_same_are_no_gain(folder, tmp_path):
    config = replace(QUICK, moves="qk", learning_rate=1e-12, evaluate_every=1, patience=2)
    _, report = trained(folder, tmp_path, config)
    assert (report.end, report.best_step, report.steps) == ("patience", 0, 2)


def test_a_clipped_gradient_moves_weights_less(folder, tmp_path):
    before, moved = weights(fresh(folder)), []
    for clip in (None, 1e-12):  # far below AdamW's epsilon: it would undo any other scale
        config = replace(QUICK, moves="qk", max_steps=1, clip=clip)
        loaded, _ = trained(folder, tmp_path / str(clip), config, TrainingData(LISTS))
        moved.append(max(float((weight - before[name]).abs().max()) for name, weight in weights(loaded).items()))
    assert 0 < moved[1] < moved[0] / 100


def test_a_gradient_that_is_not_finite_stops_with_the_qids_and_moves_nothing(folder, tmp_path):
    loaded = fresh(folder)
    before = weights(loaded)
    config = replace(QUICK, moves="qk", lists_per_step=3)
    trainer = Trainer(loaded, SHORT, TrainingData(LISTS[:3]), config, directory=tmp_path)
    loaded.model.layers[1].self_attn.q_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NotFiniteError, match=r"step 1: the gradient is (nan|inf) after qids q\d, q\d, q\d$"):
        trainer.run()
    for name, weight in weights(loaded).items():
        assert torch.equal(weight, before[name])


def test_nan_loss_stops_with_the_list_that_caused_it(folder, tmp_path, monkeypatch):
    config = replace(QUICK, epochs=1, lists_per_step=4, lists_per_pass=1, save_every=1)
    culprit = LISTS[next(iter(list(plan(config, len(LISTS)))[2])).index].qid
    forward, prompts = ListScorer.forward, ListScorer.prompts
    seen = []

    def noted(self, lists):
        seen[:] = [graded.qid for graded in lists]
        return prompts(self, lists)

    def poisoned(self, made):
        return [s * float("nan") if qid == culprit else s for qid, s in zip(seen, forward(self, made), strict=True)]

    monkeypatch.setattr(ListScorer, "prompts", noted)
    monkeypatch.setattr(ListScorer, "forward", poisoned)
    with pytest.raises(NotFiniteError, match=rf"step 3: the loss of qid {culprit} \(epoch 0, .* is nan"):
        trained(folder, tmp_path, config, TrainingData(LISTS))
    assert torch.load(tmp_path / "state.pt", weights_only=True)["progress"]["step"] == 2


def test_exploding_weights_stop_with_the_qids(folder, tmp_path):
    loaded = fresh(folder)
    with torch.no_grad():
        loaded.model.embed_tokens.weight[5:].fill_(float("inf"))
    trainer = Trainer(loaded, SHORT, TrainingData(LISTS[:8]), QUICK, directory=tmp_path)
    with pytest.raises(NotFiniteError, match=r"step 1: the loss of qid q\d+ .* is nan"):
        trainer.run()


def test_same_query_in_training_and_dev_is_refused():
    with pytest.raises(ValueError, match="qid q0 and 63 others are in both"):
        TrainingData(LISTS, LISTS)


def test_a_budget_of_no_tokens_is_no_default(folder):
    scorer = ListScorer(AttentionReader(fresh(folder)), SHORT, max_prompt_tokens=0)
    with pytest.raises(ValueError, match="0 tokens, which leaves fewer than"):
        scorer.prompts(LISTS[:1])


def test_calibrated_rule_is_refused(folder, tmp_path):
    calibrated = replace(SHORT, rule=replace(SHORT.rule, content_free="N/A"))
    trainer = Trainer(fresh(folder), calibrated, TrainingData(LISTS), QUICK, directory=tmp_path)
    with pytest.raises(ValueError, match="subtracts a content-free query"):
        trainer.run()


def test_half_precision_on_a_cpu_is_refused(folder, tmp_path):
    loaded = load(folder, HEADS, device="cpu", dtype="bfloat16")
    with pytest.raises(ValueError, match="load the model with dtype float32"):
        Trainer(loaded, SHORT, TrainingData(LISTS), QUICK, directory=tmp_path)


def test_autocast_trains(folder, tmp_path):
    config = replace(QUICK, precision="bfloat16", max_steps=2)
    _, report = trained(folder, tmp_path, config)
    trained(folder, tmp_path / "full", replace(config, precision="float32"))
    assert report.steps == 2
    first, second = (_log(path)[1]["loss"] for path in (tmp_path, tmp_path / "full"))
    assert first == pytest.approx(second, rel=0.05)
    assert first != second


@pytest.mark.parametrize("moves", ["lora", "qk", "all"])
def test_half_precision_under_autocast_keeps_scores_and_movable_weights_in_float32(folder, moves):
    """What training does on a GPU: weights in bfloat16, autocast, those that move in float32."""
    loaded = load(folder, HEADS, device="cpu", dtype="bfloat16")
    set_movable(loaded.model, moves)
    scorer = ListScorer(AttentionReader(loaded), SHORT)
    with torch.autocast("cpu", torch.bfloat16):
        (scores,) = scorer.forward(scorer.prompts(LISTS[:1]))
        (read,) = scorer.scores(LISTS[:1])
    assert (scores.dtype, read.dtype) == (torch.float32, torch.float32)
    assert float(scores.detach().sum()) == pytest.approx(1.0, abs=1e-5)  # bfloat16 would be off by 1e-3
    scores.log()[0].backward()
    for weight in movable_weights(loaded.model).values():
        assert weight.dtype == torch.float32
        assert torch.isfinite(weight.grad).all()


# ---------------------------------------------------------------------------------------------------------- schedule


def test_plan_sees_every_list_once_per_draw_and_epoch_in_another_order():
    config = TrainingConfig(epochs=2, draws=2, lists_per_step=3)
    steps = list(plan(config, 5))
    assert [len(step) for step in steps] == [3, 3, 3, 1] * 2
    assert len(steps) == config.steps(5)
    for epoch in (0, 1):
        seen = sorted((draw.index, draw.draw) for step in steps for draw in step if draw.epoch == epoch)
        assert seen == [(index, draw) for index in range(5) for draw in (0, 1)]
    assert [d.index for s in steps[:4] for d in s] != [d.index for s in steps[4:] for d in s]
    assert len(list(plan(replace(config, max_steps=3), 5))) == 3


def test_cosine_rate_by_hand():
    config = TrainingConfig(learning_rate=2.0, warmup=0.25, decay="cosine")
    rates = [learning_rate(config, step, 8) for step in range(8)]
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[5] == pytest.approx(1.0)  # half of the way down
    assert rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)


def test_configuration_from_names_and_values():
    config = configured(TrainingConfig(), {"epochs": 5, "objective.beta": 4.0, "objective.margins": [0.1, 0.2]})
    assert (config.epochs, config.objective.beta, config.objective.margins) == (5, 4.0, (0.1, 0.2))
    with pytest.raises(ValueError, match=r"no setting 'epoch'; did you mean 'epochs'"):
        configured(TrainingConfig(), {"epoch": 5})
    with pytest.raises(ValueError, match=r"no setting 'objective\.betta'; did you mean 'objective\.beta'"):
        configured(TrainingConfig(), {"objective.betta": 5})
    with pytest.raises(ValueError, match=r"training setting epochs: .* got 'many'"):
        configured(TrainingConfig(), {"epochs": "many"})
    for name in ("epochs", "save_every"):
        with pytest.raises(ValueError, match=rf"training setting {name}: .* got '5'"):
            configured(TrainingConfig(), {name: "5"})  # nothing is converted
    with pytest.raises(ValueError, match="max_steps 0: expected a number above 0, or None"):
        TrainingConfig(max_steps=0)
    with pytest.raises(ValueError, match=r"warmup 1\.0: expected .*a share of at least 0 and below 1"):
        TrainingConfig(warmup=1.0)
    with pytest.raises(ValueError, match=r"averaging 1\.0: expected a decay between 0 and 1, or None"):
        TrainingConfig(averaging=1.0)
    with pytest.raises(ValueError, match=r"epochs 0: expected at least 1$"):
        configured(TrainingConfig(), {"epochs": 0})


# ------------------------------------------------------------------------------------------------------------ export


@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_exported_folder_reranks_as_the_trained_model_did(folder, tmp_path, dtype):
    loaded, report = trained(folder, tmp_path / "new" / "training", replace(QUICK, moves="lora", max_steps=3))
    made_by = {"dev": report.dev_best}
    path = export(loaded, SHORT, tmp_path / "new", dtype=dtype, made_by=made_by)
    reranker = headrank(path, device="cpu", dtype="float32", chat="plain")  # heads, template and rule come along
    assert reranker.recipe.template.rows == "query"
    assert reranker.reader.source.layers == 2
    expected = ListScorer(AttentionReader(loaded), SHORT).scores(DEV[:3])
    for graded, scores in zip(DEV[:3], expected, strict=True):
        found = {c.docid: c.score for c in reranker.rerank(graded.ranking).candidates}
        tolerance = 1e-6 if dtype == "auto" else 2e-3
        assert [found[docid] for docid in graded.ranking.docids] == pytest.approx(scores.tolist(), abs=tolerance)
    card = (path / "README.md").read_text()
    assert str(tmp_path) not in card + (path / "heads.json").read_text() + (path / "config.json").read_text()
    assert str(report.dev_best) in card
    assert card.startswith("---\nlibrary_name: headrank_pipeline\npipeline_tag: text-ranking\n")
    assert HeadSet.load(path / "heads.json").model == "new"
    assert (path / "training" / "log.jsonl").is_file()
    assert not list(path.glob(".export*"))
    assert len({file.stat().st_mode for file in path.iterdir() if file.is_file()}) == 1  # as the umask has it


def test_export_refuses_a_model_whose_lora_is_not_folded_in(folder, tmp_path):
    loaded, _ = trained(folder, tmp_path / "training", replace(QUICK, moves="lora"), pause_after=1)
    with pytest.raises(ValueError, match="not folded in yet"):
        export(loaded, SHORT, tmp_path / "new")


def test_export_refuses_weights_that_the_dtype_cannot_hold(folder, tmp_path):
    loaded = fresh(folder)
    with torch.no_grad():
        loaded.model.embed_tokens.weight[0, 0] = 1e30
    with pytest.raises(ValueError, match=r"embed_tokens.weight is not finite in torch.float16"):
        export(loaded, SHORT, tmp_path / "new", dtype="float16")
    assert list((tmp_path / "new").iterdir()) == []
    shutil.rmtree(tmp_path / "new")
