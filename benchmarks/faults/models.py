"""Faults of models and what goes with them: folders, head sets, passage caches, checkpoints of trainings, indexes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import torch
from graded_lists import overlap_lists
from tiny_encoder import tiny_encoder
from tiny_models import tiny_model

from faults.judging import DOCUMENTED, EQUAL, REFUSED, Fault, NotHeld, NotJudged, equal_or_refused, mutated, refusal
from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.passage_cache import PassageCache
from headrank_pipeline.attention.recipe import HEADRANK, PLAIN
from headrank_pipeline.learn.schedule import TrainingConfig
from headrank_pipeline.learn.trainer import Trainer, TrainingData
from headrank_pipeline.pipeline import Failure
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import headrank, icr

__all__ = ["FAULTS"]

torch.set_num_threads(1)

_HEADS = HeadSet("two", ((0, 1), (1, 2)))
_LIST = Ranking(
    Query("q1", "which birds fly?"),
    tuple(
        Candidate(f"d{i}", 9.0 - i, text)
        for i, text in enumerate(("Birds fly.", "Fish swim.", "Ships sink.", "Query."))
    ),
)


@cache
def _folder() -> Path:
    return tiny_model(Path(mkdtemp(prefix="faults-model-")) / "model", layers=2)


def _scores(folder: Path, heads: Any = _HEADS, make: Any = headrank, **settings: Any) -> tuple[Any, dict[str, float]]:
    """What a reranker says of itself, and the scores it gives.

    Raises:
        ValueError: the query failed.
    """
    reranker = make(str(folder), heads, device="cpu", **settings)
    [attempt] = reranker.attempt_batch([_LIST])
    if isinstance(attempt, Failure):
        raise attempt.error
    return reranker.describe(), dict(zip(attempt.docids, attempt.scores, strict=True))


@cache
def _expected(isolated: bool = False) -> tuple[Any, dict[str, float]]:
    return _scores(_folder(), **({"passages": "isolated", "label": ""} if isolated else {}))


def models(chance: Random, room: Path) -> str:
    """A model's folder with a file cut, flipped, edited or gone: refused by name, or it says that it is another."""
    folder = Path(shutil.copytree(_folder(), room / "model"))
    path = chance.choice(sorted(file for file in folder.iterdir() if file.is_file()))
    draw = chance.randrange(5)
    if draw == 0:
        path.unlink()
    elif draw == 1 and path.suffix == ".json":
        record = json.loads(path.read_bytes())
        key = chance.choice(list(record))
        record[key] = chance.choice((None, -1, 0, 10**9, "x", [], {}))
        path.write_text(json.dumps(record))
    elif draw == 2:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        name = chance.choice(sorted(weights))
        weights[name].view(-1)[chance.randrange(weights[name].numel())] = chance.choice((math.nan, math.inf, 1e38))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        path.write_bytes(mutated(chance, path.read_bytes()))
    make = chance.choice((headrank, icr))
    try:
        told, scores = _scores(folder, make=make)
    except Exception as error:
        if refusal(error, [str(folder), path.name, "qid q1", "tokenizer", "config"]):
            return REFUSED
        raise NotHeld(f"{path.name}: not by name: {type(error).__name__}: {str(error)[:300]}") from error
    expected = _scores(_folder(), make=make)
    if not all(map(math.isfinite, scores.values())):
        raise NotHeld(f"{path.name}: scores that are not finite")
    if scores == expected[1]:
        return EQUAL
    if told == expected[0]:
        raise NotHeld(f"{path.name}: other scores, and it says that it is the same")
    return DOCUMENTED


def heads(chance: Random, room: Path) -> str:
    """A head set that was damaged or edited: refused by name, equal, or another digest."""
    path = room / "heads.json"
    _HEADS.save(path)
    record = json.loads(path.read_bytes())
    draw = chance.randrange(3)
    odd: tuple[Any, ...] = (
        None, [], {}, "x", 3, [[0, 9]], [[9, 0]], [[0, 1], [0, 1]], [[0.0, 1]], [[True, 1]], [[-1, 0]], [0, 1], ["0-1"],
        [[0, 1, 2]], [[10**30, 0]], [float("nan"), 1.0], [1.0], [1.0, -1.0], [0.0, 0.0], [1e308, 1e308], [[0, 0]],
    )  # fmt: skip
    if draw == 0:
        path.write_bytes(mutated(chance, path.read_bytes()))
    elif draw == 1:
        record[chance.choice(("heads", "weights"))] = chance.choice(odd)
        path.write_text(json.dumps(record))
    else:
        record[chance.choice(("name", "model", "selection", "source", "unknown"))] = chance.choice(odd)
        path.write_text(json.dumps(record))
    try:
        told, scores = _scores(_folder(), path)
    except Exception as error:
        if refusal(error, ["heads.json", "head set", "qid q1"]):
            return REFUSED
        raise NotHeld(f"not by name: {type(error).__name__}: {str(error)[:300]}") from error
    if scores == _expected()[1]:
        return EQUAL
    if told["heads"]["sha256"] == _expected()[0]["heads"]["sha256"] or not all(map(math.isfinite, scores.values())):
        raise NotHeld(f"other scores under the same digest, or none: {scores}")
    return DOCUMENTED


def cache_files(chance: Random, room: Path) -> str:
    """A passage cache whose files were damaged, swapped, deleted or replaced: the scores stay."""
    folder = room / "cache"
    settings = {"passages": "isolated", "label": ""}
    _scores(_folder(), passage_cache=PassageCache(folder, memory_bytes=0), **settings)
    files = sorted(folder.rglob("*.safetensors"))
    path = chance.choice(files)
    draw = chance.randrange(5)
    if draw == 0:
        path.unlink()
    elif draw == 1:
        shutil.copyfile(chance.choice([file for file in files if file != path]), path)
    elif draw == 2:
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(mutated(chance, path.read_bytes()))
    expected = {docid: round(score, 5) for docid, score in _expected(True)[1].items()}

    def again() -> dict[str, float]:
        _, scores = _scores(_folder(), passage_cache=PassageCache(folder, memory_bytes=0), **settings)
        return {docid: round(score, 5) for docid, score in scores.items()}

    return equal_or_refused(again, expected, str(folder))


# --------------------------------------------------------------------------------------------------------- checkpoints

_SHORT = replace(
    HEADRANK,
    template=replace(
        HEADRANK.template, opening="", instruction="", query_label="", label="", separator="\n", chat=PLAIN
    ),
)
_CONFIG = TrainingConfig(moves="qk", learning_rate=1e-2, epochs=2, lists_per_pass=4, lists_per_step=4, save_every=1)


def _trained(directory: Path, *, stop: int | None = None, strike: Any = None) -> dict[str, Any]:
    """Train for four steps; the weights at the end as bytes."""
    loaded = load(_folder(), _HEADS, device="cpu")
    data = TrainingData(overlap_lists(8), overlap_lists(4, seed=1, prefix="v"))
    trainer = Trainer(loaded, _SHORT, data, _CONFIG, directory=directory)
    steps = 0

    def event(found: Any) -> None:
        nonlocal steps
        steps += found["event"] == "step"
        if steps == stop:
            strike()

    trainer.run(on_event=event)
    return {name: weight.numpy().tobytes() for name, weight in loaded.model.state_dict().items()}


@cache
def _weights() -> dict[str, Any]:
    return _trained(Path(mkdtemp(prefix="faults-training-")))


def checkpoints(chance: Random, room: Path) -> str:
    """A training that was killed at a step, and then perhaps had its state, best weights, log or setup damaged."""
    directory = room / "training"
    if (pid := os.fork()) == 0:
        try:
            _trained(directory, stop=chance.randrange(1, 4), strike=lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    chance = Random(f"damage {chance.random()}")
    if chance.random() < 0.6:
        files = sorted(file for file in directory.iterdir() if file.name[0] != ".")
        if not files:
            raise NotJudged
        path = chance.choice(files)
        path.write_bytes(mutated(chance, path.read_bytes()))
    return equal_or_refused(lambda: _trained(directory), _weights(), str(directory))


# ------------------------------------------------------------------------------------------------------------- indexes


@cache
def _dense() -> tuple[Path, Path, list[tuple[str, ...]]]:
    from headrank_pipeline.first_stage.dense_index import build_dense_index
    from headrank_pipeline.first_stage.vectors import dense

    home = Path(mkdtemp(prefix="faults-dense-"))
    texts = ("a flea can live", "the dog sleeps", "spies and one flea", "a cat without any flea")
    corpus = home / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": f"d{i}", "title": "", "text": t}) + "\n" for i, t in enumerate(texts)))
    (home / "encoder").mkdir()
    build_dense_index(corpus, home / "index", tiny_encoder(home / "encoder"))
    return home, corpus, _found(dense(home / "index", home / "encoder"))


def _found(source: Any) -> list[tuple[str, ...]]:
    queries = {"q1": "flea", "q2": "the dog"}
    return [tuple(f"{c.docid} {c.text}" for c in ranking.candidates) for ranking in source.retrieve(queries)]


def indexes(chance: Random, room: Path) -> str:
    """A dense index with a file cut off, lost or exchanged."""
    from headrank_pipeline.first_stage.vectors import dense

    home, _, expected = _dense()
    folder = Path(shutil.copytree(home / "index", room / "index"))
    path = chance.choice(sorted(folder.iterdir()))
    if chance.random() < 0.3:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])
    return equal_or_refused(lambda: _found(dense(folder, home / "encoder")), expected, str(folder))


FAULTS: dict[str, Fault] = {
    "heads": heads,
    "models": models,
    "cache": cache_files,
    "checkpoints": checkpoints,
    "indexes": indexes,
}
