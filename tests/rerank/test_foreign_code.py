"""Code that a model folder brings is not run, and nobody is asked whether it should be."""

from __future__ import annotations

import io
import json
import sys

import pytest
from tiny_encoder import tiny_encoder
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.first_stage.encoder import load_encoder
from headrank_pipeline.rerank.baselines.first_token import first_token
from headrank_pipeline.rerank.baselines.pointwise import qwen3_reranker
from headrank_pipeline.rerank.baselines.rankgpt import rankgpt
from headrank_pipeline.rerank.systems import core, headrank, icr, qrhead, qrranker

HEADS = HeadSet("one", ((0, 0),))
SYSTEMS = {
    "headrank": lambda folder: headrank(folder, HEADS, device="cpu"),
    "icr": lambda folder: icr(folder, device="cpu"),
    "qrhead": lambda folder: qrhead(folder, HEADS, device="cpu"),
    "core": lambda folder: core(folder, HEADS, device="cpu"),
    "qrranker": lambda folder: qrranker(folder, HEADS, device="cpu"),
    "rankgpt": lambda folder: rankgpt(folder, device="cpu"),
    "first-token": lambda folder: first_token(folder, device="cpu"),
    "qwen3-reranker": lambda folder: qwen3_reranker(folder, device="cpu"),
    "encoder": lambda folder: load_encoder(folder).queries(["a flea"]),
}
# Two files that name code: the configuration, and the tokenizer's own.
CODE = {
    "config.json": {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoModelForCausalLM": "own.Own"},
    "tokenizer_config.json": {"AutoTokenizer": ["own.Own", "own.Own"]},
}


@pytest.fixture
def willing(monkeypatch):
    """Standard input that says yes to everything, and how much of it was read."""
    stream = io.StringIO("yes\n" * 20)
    monkeypatch.setattr(sys, "stdin", stream)
    return stream


def with_code(folder, marker, *, file, unknown):
    """Put a module into the folder that leaves a marker when it is run, and name it in a file of the folder."""
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit('ran')\n")
    record = json.loads((folder / file).read_text())
    record["auto_map"] = CODE[file]
    if unknown:
        record |= {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "OwnTokenizer"}
    (folder / file).write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_architecture_in_the_folder_is_refused_unrun_and_unasked(tmp_path, willing, system):
    made = tiny_encoder(tmp_path) if system == "encoder" else tiny_model(tmp_path, layers=1)
    folder = with_code(made, tmp_path / "ran", file="config.json", unknown=True)
    with pytest.raises(ValueError, match=r"its architecture is Python code in its own folder .* never run here"):
        SYSTEMS[system](folder)
    assert not (tmp_path / "ran").exists() and willing.tell() == 0


@pytest.mark.parametrize("system", ["headrank", "rankgpt", "encoder"])
@pytest.mark.parametrize("file", CODE)
def test_code_beside_a_known_architecture_is_left_alone(tmp_path, willing, system, file):
    made = tiny_encoder(tmp_path) if system == "encoder" else tiny_model(tmp_path, layers=1)
    folder = with_code(made, tmp_path / "ran", file=file, unknown=False)
    SYSTEMS[system](folder)
    assert not (tmp_path / "ran").exists() and willing.tell() == 0


@pytest.mark.parametrize("system", ["headrank", "rankgpt"])
def test_a_tokenizer_in_the_folder_is_not_run(tmp_path, willing, system):
    folder = with_code(tiny_model(tmp_path, layers=1), tmp_path / "ran", file="tokenizer_config.json", unknown=True)
    try:
        SYSTEMS[system](folder)  # its tokenizer.json tells all that is needed
    except FileNotFoundError as error:
        assert "no tokenizer" in str(error)
    assert not (tmp_path / "ran").exists() and willing.tell() == 0
