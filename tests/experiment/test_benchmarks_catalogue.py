"""Every name and figure of the definitions against the libraries that own them, without network.

The catalogue is made by this file: ``python tests/experiment/test_benchmarks_catalogue.py`` writes it anew.
"""

import importlib.util
import json
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from headrank_pipeline.experiment.benchmark import Benchmark, find_suite, load_benchmark, named_suites
from headrank_pipeline.first_stage.jvm import start_jvm, versions

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = ROOT / "headrank_pipeline" / "resources" / "catalogue.json"
MAIN = sorted((ROOT / "pipelines").glob("*.yaml"))
EXTRA = sorted((ROOT / "pipelines" / "extra").glob("*.yaml"))

THE_14 = {
    "trec-dl-2019", "trec-dl-2020", "beir-trec-covid", "beir-nfcorpus", "beir-scifact", "beir-scidocs", "beir-fiqa",
    "beir-arguana", "beir-webis-touche2020", "beir-dbpedia-entity", "beir-nq", "beir-hotpotqa", "beir-fever",
    "beir-climate-fever",
}  # fmt: skip
ENCODERS = (".bge-base-en-v1.5", ".contriever", ".contriever-msmarco", ".splade-pp-ed", ".splade-v3")
# Definitions whose collection is not public: ir_datasets has no entry.
MULTIHOP = {"multihop-musique", "multihop-2wikimultihopqa"}
WITHOUT_DATASET = {"beir-trec-news", "beir-robust04", "beir-signal1m", "beir-bioasq"} | MULTIHOP
# Definitions without an index of Pyserini and without a published score: each says so in its notes.
NANO = {path.stem for path in EXTRA if path.stem.startswith("nano-beir-")}
WITHOUT_INDEX = NANO | MULTIHOP
WITHOUT_SCORE = WITHOUT_INDEX | {"trec-dl-hard"}


def definitions() -> list[Benchmark]:
    found = [load_benchmark(path) for path in MAIN + EXTRA]
    return [benchmark for benchmark in found if benchmark.collection.embedded is None]


# ------------------------------------------------------------------------------------- what the libraries know offline


def package_file(package: str, *parts: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def pyserini_indexes() -> dict[str, dict]:
    start_jvm()
    from pyserini import prebuilt_index_info as known

    return known.FAISS_INDEX_INFO | known.LUCENE_HNSW_INDEX_INFO | known.IMPACT_INDEX_INFO | known.TF_INDEX_INFO


def index_names() -> list[str]:
    """The benchmarks' own indexes, and those of the same collections whose encoder `dense` and `impact` know."""
    own = {benchmark.collection.pyserini_index for benchmark in definitions()} - {None}
    stems = {name.removesuffix(".flat") for name in own}
    others = {stem + encoder + kind for stem in stems for encoder in ENCODERS for kind in ("", ".hnsw", ".hnsw-int8")}
    return sorted(own | (others & pyserini_indexes().keys()))


def index_facts(name: str) -> dict:
    info = pyserini_indexes()[name]
    folder = f"{info['filename'].removesuffix('.tar.gz')}.{info['md5']}"
    return {
        "docs": info.get("documents"), "bytes": info["size compressed (bytes)"], "md5": info["md5"], "folder": folder,
        "url": info["urls"][0], "texts": info.get("texts"),
    }  # fmt: skip


def dataset_facts(name: str) -> dict:
    known = json.loads(package_file("ir_datasets", "etc", "metadata.json").read_text())

    def facts(kind: str) -> dict:
        entry = known[name].get(kind) or known[name.rpartition("/")[0]][kind]
        return known[entry["_ref"]][kind] if "_ref" in entry else entry

    qrels = facts("qrels")
    downloads, ready = dataset_files(name)
    return {
        "docs": facts("docs")["count"],
        "queries": known[name]["queries"]["count"],
        "judgments": qrels["count"],
        "grades": dict(sorted(qrels["fields"]["relevance"]["counts_by_value"].items(), key=lambda item: int(item[0]))),
        "downloads": downloads,
        "ready": ready,
    }


def dataset_files(name: str) -> tuple[list[dict], list[str]]:
    """What ir_datasets downloads for topics and qrels, and the files that make a download unnecessary."""
    home, _, rest = name.removesuffix("/judged").partition("/")
    known = json.loads(package_file("ir_datasets", "etc", "downloads.json").read_text())[home]
    ready: list[str] = []
    if home == "beir":
        base, split = rest.rsplit("/", 1) if rest.endswith("/test") else (rest, "test")
        ready = [f"beir/{base}/queries.json", f"beir/{base}/{split}.qrels"]
        keys = ["cqadupstack" if base.startswith("cqadupstack/") else base]
    elif home == "bright":
        keys = [f"{rest}/queries"]
    elif home == "nano-beir":
        keys = [f"{rest}/queries", f"{rest}/qrels"]
    elif rest == "trec-dl-hard":  # its questions are some of those of both years
        keys = ["trec-dl-2019/queries", "trec-dl-2020/queries", "trec-dl-hard/qrels"]
        ready = [f"{home}/trec-dl-2019/queries.tsv", f"{home}/trec-dl-2020/queries.tsv.gz", f"{home}/{rest}/qrels"]
    elif home == "msmarco-passage-v2":
        keys = [f"{rest}/queries", f"{rest}/qrels"]
        ready = [f"{home}/{known[key]['cache_path']}" for key in keys]
    elif rest == "dev/small":
        ready = [f"{name}/queries.tsv", f"{name}/qrels"]
        keys = ["collectionandqueries"]  # the small set comes with the collection
    else:
        keys = [f"{rest}/{what}" for what in ("queries", "qrels")]
        # The queries of 2019 are kept unpacked, those of 2020 as they came.
        ready = [
            f"{home}/{rest}/{'queries.tsv' if rest.endswith('2019') else 'queries.tsv.gz'}",
            f"{home}/{rest}/qrels",
        ]
    files = [
        # NanoBEIR's hints are numbers of rows.
        {"url": known[key]["url"], "bytes": None if home == "nano-beir" else known[key]["size_hint"],
         "md5": known[key]["expected_md5"],
         "path": f"{home}/{known[key]['cache_path']}" if "cache_path" in known[key] else None}
        for key in keys
    ]  # fmt: skip
    return files, ready


def made_catalogue() -> dict:
    collections = [benchmark.collection for benchmark in definitions()]
    return {
        "schema": 1,
        "made_from": {**versions(), "ir_datasets": metadata.version("ir_datasets")},
        "indexes": {name: index_facts(name) for name in index_names()},
        "datasets": {name: dataset_facts(name) for name in sorted({c.ir_datasets for c in collections} - {None})},
    }


# ----------------------------------------------------------------------------------------------------------- the tests


def test_the_14_benchmarks_are_there_beside_the_demo():
    assert {path.stem for path in MAIN} == THE_14 | {"demo"}


@pytest.mark.parametrize("path", EXTRA, ids=lambda path: path.stem)
def test_every_extra_definition_is_valid_and_named_as_its_file(path):
    assert load_benchmark(path).name == path.stem


def test_every_suite_is_made_of_definitions_and_has_as_many_as_its_name_says():
    suites = named_suites()
    known = {path.stem for path in MAIN + EXTRA} - {"demo"}
    assert set(suites) == {
        "main", "all", "beir-13", "trec-dl", "blitzrank-14", "bright", "cqadupstack", "nano-beir", "multihop",
    }  # fmt: skip
    assert set(suites["main"].benchmarks) == THE_14
    assert set(suites["all"].benchmarks) == known
    for name, suite in suites.items():
        assert set(suite.benchmarks) <= known and len(set(suite.benchmarks)) == len(suite.benchmarks), name
        assert suite.title and suite.source
    sizes = {name: len(suite.benchmarks) for name, suite in suites.items()}
    assert (sizes["beir-13"], sizes["blitzrank-14"], sizes["trec-dl"], sizes["bright"]) == (13, 14, 6, 12)
    assert set(suites["nano-beir"].benchmarks) == NANO
    # All but one are measured by nDCG@10, so that one mean can be taken over a suite.
    assert {benchmark.measures[0] for _, benchmark in find_suite("all")} == {"nDCG@10", "MRR@10"}
    assert {benchmark.name for _, benchmark in find_suite("all") if benchmark.measures[0] == "MRR@10"} == {
        "msmarco-passage-dev"
    }
    with pytest.raises(FileNotFoundError, match=r"suite 'beir13': no such suite; did you mean 'beir-13'\?"):
        find_suite("beir13")


def test_every_ir_datasets_id_is_registered_and_has_topics_and_qrels(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    import ir_datasets

    registered = set(ir_datasets.registry)
    for benchmark in definitions():
        name = benchmark.collection.ir_datasets
        assert (name is None) == (benchmark.name in WITHOUT_DATASET), benchmark.name
        if name is not None:
            assert name in registered
            dataset = ir_datasets.registry[name]
            assert dataset.has_queries() and dataset.has_qrels(), name


def test_every_pyserini_name_is_in_its_catalogue():
    indexes = pyserini_indexes()
    from pyserini.search._base import qrels_mapping, topics_mapping

    for benchmark in definitions():
        collection = benchmark.collection
        assert (collection.pyserini_index is None) == (benchmark.name in WITHOUT_INDEX), benchmark.name
        assert collection.pyserini_index is None or collection.pyserini_index in indexes
        for name, known in (
            (collection.pyserini_topics, topics_mapping), (collection.pyserini_qrels, qrels_mapping),
        ):  # fmt: skip
            assert name in known if benchmark.name not in WITHOUT_SCORE else name is None, benchmark.name


def test_published_scores_are_those_of_the_installed_pyserini():
    tables = {}
    files = {"beir": "datasets", "bright": "datasets", "msmarco-v1-passage": "topics", "msmarco-v2-passage": "topics"}
    for name, key in files.items():
        conditions = yaml.safe_load(package_file("pyserini", "2cr", f"{name}.yaml").read_text())["conditions"]
        for condition in conditions:
            for entry in condition[key]:
                place = f"2cr/{name}.yaml, {condition['name']}, {entry.get('dataset') or entry['topic_key']}"
                tables[f"pyserini {metadata.version('pyserini')}, {place}"] = entry["scores"][0]
    for benchmark in definitions():
        assert bool(benchmark.references) == (benchmark.name not in WITHOUT_SCORE), benchmark.name
        assert bool(benchmark.references) or "No published score is checked" in benchmark.notes, benchmark.name
        for reference in benchmark.references:
            assert tables[reference.source][reference.measure] == reference.value, benchmark.name


def test_the_splits_with_excluded_documents_say_so():
    wanted = {"bright-aops", "bright-leetcode", "bright-theoremqa-questions"}
    excluding = {b.name for b in definitions() if b.first_stage.exclude_grade is not None}
    with_such_grades = {
        b.name
        for b in definitions()
        if b.collection.ir_datasets and "-100" in dataset_facts(b.collection.ir_datasets)["grades"]
    }
    assert excluding == with_such_grades == wanted


def test_the_catalogue_holds_what_the_installed_libraries_say():
    assert json.loads(CATALOGUE.read_text(encoding="utf-8")) == made_catalogue()


if __name__ == "__main__":
    CATALOGUE.write_text(json.dumps(made_catalogue(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
