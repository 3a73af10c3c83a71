from __future__ import annotations

import json

import pytest

from headrank_pipeline.attention.heads import HeadSet, all_heads, published_heads, resolve_heads

PUBLISHED = {
    "qrranker-qwen3-4b": (16, 25),
    "qrhead-llama-3.1-8b-nq": (16, 21),
    "qrhead-qwen2.5-7b-nq": (16, 21),
    "qrhead-qwen3-8b-nq": (16, 25),
    "core-llama-3.1-8b": (8, 15),
    "core-mistral-7b": (8, 19),
    "core-granite-8b": (8, 35),
    "core-phi-4": (8, 24),
}


def resolved(heads):
    return resolve_heads(heads, layers=4, heads_per_layer=2, model="tiny")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_load_with_their_source(name):
    heads = published_heads(name)
    assert (len(heads.heads), heads.depth) == PUBLISHED[name]
    assert heads.model and "arXiv" in (heads.source or "")


def test_saved_set_loads_equal(tmp_path):
    heads = HeadSet("mine", ((2, 0), (0, 1)), "Qwen/Qwen3-0.6B", "main", (0.5, 1.5), {"criterion": "QRScore"}, "us")
    heads.save(tmp_path / "heads.json")
    loaded = HeadSet.load(tmp_path / "heads.json")
    assert loaded == heads and loaded.selection == heads.selection


def test_minimal_file_is_enough(tmp_path):
    (tmp_path / "mine.json").write_text('{"heads": [[1, 0]]}')
    assert resolved(tmp_path / "mine.json") == HeadSet("mine", ((1, 0),))
    assert resolved(str(tmp_path / "mine.json")).depth == 2


def test_windows_and_all():
    assert resolved("all") == all_heads(4, 2)
    assert resolved("layers:1-2").heads == ((1, 0), (1, 1), (2, 0), (2, 1))
    with pytest.raises(ValueError, match="layer window 3-4: the model has layers 0-3"):
        resolved("layers:3-4")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"heads": []}, "is empty"),
        ({"heads": [[1, 2], [1, 2]]}, "1-2 occur more than once"),
        ({"heads": [[1]]}, "is not a head"),
        ({"heads": [[1, -2]]}, "is not a head"),
        ({"heads": [[1, True]]}, "is not a head"),
        ({"heads": ["13-4"]}, "is not a head"),
        ({"heads": [[-1, 2]]}, "is not a head; expected .*, whole numbers from 0"),
        ({"heads": [[1, 2]], "weights": [1, 2]}, "2 weights for 1 heads"),
        ({"heads": [[1, 2]], "weights": [float("nan")]}, "weights must be finite"),
        ({"heads": [[1, 2], [1, 3]], "weights": [1, -1]}, "weights add up to 0; expected more than 0"),
        ({"heads": [[1, 2], [1, 3], [1, 4]], "weights": [0.1, 0.2, -0.3]}, "weights add up to"),
        ({"heads": [[1, 2]], "weights": [-1]}, "weights add up to -1"),
        ({"heads": [[1, 2]], "layers": 3}, "unknown keys"),
        ([[1, 2]], "expected a head set"),
    ],
)
def test_malformed_set_is_refused_with_its_file(tmp_path, record, message):
    path = tmp_path / "heads.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=message) as caught:
        HeadSet.load(path)
    assert str(path) in str(caught.value)


def test_file_that_is_not_json_is_refused_with_its_line(tmp_path):
    (tmp_path / "heads.json").write_text('{"heads":\n oops}')
    with pytest.raises(ValueError, match=r"heads.json:2: not valid JSON"):
        HeadSet.load(tmp_path / "heads.json")


def test_unknown_names_and_missing_files_are_told_apart():
    with pytest.raises(FileNotFoundError, match=r"did you mean .core-llama-3\.1-8b"):
        resolved("core-lama-3.1-8b")
    with pytest.raises(FileNotFoundError, match=r"head set file nowhere.json does not exist"):
        resolved("nowhere.json")


@pytest.mark.parametrize("head", [(4, 0), (0, 2)])
def test_the_first_layer_and_head_beyond_a_model_are_refused(head):
    HeadSet("corner", ((3, 1),)).check(layers=4, heads=2, model="m")
    with pytest.raises(ValueError, match=rf"names {head[0]}-{head[1]}, but m has layers 0-3 with heads 0-1"):
        HeadSet("beyond", (head,)).check(layers=4, heads=2, model="m")


def test_digest_depends_on_heads_and_weights_alone():
    heads = HeadSet("a", ((1, 0),))
    pair = HeadSet("a", ((1, 0), (2, 0)), weights=(1.0, 2.0))
    assert pair.digest() != HeadSet("a", ((2, 0), (1, 0)), weights=(1.0, 2.0)).digest()
    assert heads.digest() == HeadSet("b", ((1, 0),), source="elsewhere").digest()
    assert heads.digest() != HeadSet("a", ((1, 0),), weights=(2.0,)).digest()


@pytest.mark.parametrize("change", [{"name": ["x"]}, {"model": 3}, {"source": {}}, {"selection": []}, {"heads": None}])
def test_a_file_with_a_value_of_another_kind_is_named(tmp_path, change):
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"name": "a", "heads": [[0, 1]]} | change))
    with pytest.raises(ValueError, match=rf"heads\.json: head set.*{next(iter(change))} .*: expected"):
        HeadSet.load(path)
