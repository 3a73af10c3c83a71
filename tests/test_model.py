"""What identifies a model: its files, however large they are."""

from __future__ import annotations

import pytest
from transformers import Qwen3Config

from headrank_pipeline.attention.model import source_of

MIB = 2**20


@pytest.fixture
def large(tmp_path):
    """A model folder whose weights take more than what is hashed whole; the file is sparse, so it costs nothing."""
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(80 * MIB)
    return tmp_path


def fingerprint(folder):
    return source_of(str(folder), Qwen3Config(), None).fingerprint


def overwrite(folder, start, count):
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(start)
        weights.write(bytes([1]) * count)


@pytest.mark.parametrize("start", [0, 30 * MIB + 4321, 78 * MIB + 4321, 80 * MIB - 300_000])
def test_one_retrained_projection_of_a_large_file_is_another_model(large, start):
    before = fingerprint(large)
    overwrite(large, start, 300_000)  # q of a layer of 384 dimensions in bfloat16
    assert fingerprint(large) != before


def test_a_copied_folder_is_the_same_model(large, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    for file in large.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert fingerprint(copy) == fingerprint(large)
