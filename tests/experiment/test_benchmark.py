import tracemalloc
from pathlib import Path

import pytest

from headrank_pipeline.experiment.benchmark import Reference, check_references, load_benchmark

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
SCIFACT = (PIPELINES / "beir-scifact.yaml").read_text(encoding="utf-8")


def changed(tmp_path, old, new):
    assert old in SCIFACT
    path = tmp_path / "changed.yaml"
    path.write_text(SCIFACT.replace(old, new, 1), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(PIPELINES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_definition_is_valid_and_named_as_its_file(path):
    assert load_benchmark(path).name == path.stem


def test_scifact_states_every_first_stage_parameter_and_its_published_scores():
    benchmark = load_benchmark(PIPELINES / "beir-scifact.yaml")
    stage = benchmark.first_stage
    assert (stage.k1, stage.b, stage.hits, stage.fields, stage.remove_query) == (0.9, 0.4, 100, None, True)
    assert {r.measure: r.value for r in benchmark.references} == {"nDCG@10": 0.6789, "R@100": 0.9253}
    assert benchmark.collection.ir_datasets == "beir/scifact/test"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  remove_query:",
            "  remove_querry:",
            "unknown key 'remove_querry' in first_stage; did you mean 'remove_query'",
        ),
        ("depth: 100", "dept: 100", "unknown key 'dept'; did you mean 'depth'"),
        ("depth: 100", "zzz: 1", "unknown key 'zzz'; known keys: schema, name"),
        ("    value:", "    valeu:", "unknown key 'valeu' in references.0; did you mean 'value'"),
        ("  hits: 100", "", "missing key 'first_stage.hits'; expected int"),
        ("k1: 0.9", 'k1: "0.9"', "first_stage.k1: expected float, got str '0.9'"),
        ("hits: 100", "hits: 100.0", "first_stage.hits: expected int, got float 100.0"),
        ("name: beir-scifact", "name: no", "name: expected str, got bool False"),
        ('version: "1"', "version: 1", "version: expected str, got int 1"),
        ("remove_query: true", "remove_query: null", "first_stage.remove_query: expected bool, got null None"),
        ("[nDCG@10, R@100]", "nDCG@10", "measures: expected list, got str 'nDCG@10'"),
        ("[nDCG@10, R@100]", "[nDGC@10, R@100]", "measures: unknown measure 'nDGC@10'; did you mean 'nDCG@10'"),
        ("[nDCG@10, R@100]", "[nDCG@10]", r"references to \['R@100'\] that are not in measures"),
        ("queries: judged", "queries: jugded", "queries: expected 'judged' or 'all', got 'jugded'"),
        ("schema: 1", "schema: 2", "schema: expected 1, got 2"),
        ("hits: 100", "hits: 10", "depth 100 is above first_stage.hits 10"),
        ("  b: 0.4", "  b: 0.4\n  b: 0.5", "key 'b' occurs twice, again on line 18"),
        ("  b: 0.4", "  b: [0.4", "not valid YAML"),
        ("  b: 0.4", "  ? [b, c]\n  : 0.4", "not valid YAML: key on line 17: expected a word, got a sequence"),
        ("  b: 0.4", "  b: 2026-13-01", "not valid YAML: month must be in"),
        ("  b: 0.4", "  b: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("  b: 0.4", "  b: " + "[" * 3000, "not valid YAML: nested too deeply"),
        ("  b: 0.4", "  b: 0.4" + " " * 100_000, "longer than 100000 characters"),
        ("  k1: 0.9", "  k1: &k 0.9\n  x: *k", "not valid YAML: alias on line 17; write the value out"),
        ("  ir_datasets:", "  embedded: demo\n  ir_datasets:", "collection: embedded cannot stand beside"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_was_expected(tmp_path, old, new, message):
    path = changed(tmp_path, old, new)
    with pytest.raises(ValueError, match=message) as caught:
        load_benchmark(path)
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())


def test_an_alias_is_refused_before_it_unpacks(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.yaml: not valid YAML: alias on line 2"):
        load_benchmark(path)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_file_that_is_no_mapping_and_a_missing_file(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="expected a mapping of keys, got list"):
        load_benchmark(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml: no such benchmark file"):
        load_benchmark(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [(0.67894, "OK"), (0.67886, "OK"), (0.67896, "near"), (0.6794, "near"), (0.6784, "near"), (0.67945, "FAIL")],
)
def test_published_scores_are_checked_to_four_decimals(measured, verdict):
    published = Reference(measure="nDCG@10", value=0.6789, source="a table")
    (check,) = check_references([published], {"nDCG@10": measured})
    assert check.verdict == verdict
