"""What a model card knows of the model that another was made from."""

from pathlib import Path

import pytest
from huggingface_hub import metadata_load

import headrank_pipeline
from headrank_pipeline.learn.card import base_model_of, hub_name, new_metadata


def test_the_owner_of_a_base_model_stays():
    assert base_model_of("Qwen/Qwen3-0.6B", None) == "Qwen/Qwen3-0.6B"
    assert base_model_of("Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf", None) == "Qwen/Qwen3-0.6B-GGUF"
    assert base_model_of("smollm2", "embedded") is None


def test_a_folder_is_no_name_but_its_card_or_its_heads_may_know_one(tmp_path: Path):
    folder = tmp_path / "aligned"
    folder.mkdir()
    assert base_model_of(str(folder), "Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (folder / "README.md").write_text("---\nbase_model: someone/base\n---\n# aligned\n")
    assert base_model_of(str(folder), "Qwen/Qwen3-0.6B") == "someone/base"


def test_a_folder_that_looks_like_a_name_is_none(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("models/aligned") == "models/aligned"
    (tmp_path / "models" / "aligned").mkdir(parents=True)
    assert hub_name("models/aligned") is None


def test_what_is_not_known_is_left_out():
    assert new_metadata(base_model=None).to_dict() == {
        "pipeline_tag": "text-ranking",
        "library_name": "headrank_pipeline",
        "tags": ["headrank", "reranker", "attention-heads"],
    }


@pytest.mark.parametrize("name", ["model", "smollm2"])
def test_the_models_that_ship_have_cards_with_metadata(name: str):
    shipped = Path(headrank_pipeline.__file__).parent / "resources" / name
    metadata = metadata_load(shipped / "README.md")
    assert (metadata["license"], metadata["pipeline_tag"]) == ("apache-2.0", "text-ranking")
