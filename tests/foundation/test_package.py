"""What importing costs, what is public, and which processes see Java."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headrank_pipeline

PUBLIC = [
    "Candidate",
    "HeadSet",
    "Query",
    "Ranking",
    "RerankingSearcher",
    "__version__",
    "bm25",
    "core",
    "dense",
    "embedded_model",
    "evaluate",
    "headrank",
    "icr",
    "impact",
    "interpolated",
    "qrhead",
    "qrranker",
    "rank",
    "rankgpt",
    "run_experiment",
    "saved_candidates",
    "saved_run",
    "smollm2",
]
HEAVY = ("torch", "transformers", "jnius", "pyserini", "pandas", "numpy", "pytrec_eval", "click")


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_public_names_are_exactly_these():
    assert headrank_pipeline.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(headrank_pipeline))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_had_and_is_documented(name):
    value = getattr(headrank_pipeline, name)
    assert isinstance(value, str) or value.__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'bm52'"):
        headrank_pipeline.bm52  # noqa: B018


def test_the_architecture_names_every_module():
    package = Path(headrank_pipeline.__file__).parent
    told = (package.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in package.rglob("[!_]*.py") if path.parent.name != "cli"}
    assert modules - set(re.findall(r"\w+\.py", told)) == set()


def test_importing_the_package_takes_under_0_3_seconds_and_loads_nothing_heavy():
    code = f"""
import sys, time
started = time.perf_counter()
import headrank_pipeline
print(time.perf_counter() - started, [name for name in {HEAVY} if name in sys.modules])
"""
    answers = [fresh(code).split(" ", 1) for _ in range(3)]
    assert min(float(seconds) for seconds, _ in answers) < 0.3
    assert {loaded for _, loaded in answers} == {"[]"}


def test_the_command_line_starts_without_torch_or_java():
    code = f"""
import sys
import headrank_pipeline.cli
print([name for name in {HEAVY} if name in sys.modules and name != "click"])
"""
    assert fresh(code) == "[]"


def test_first_stages_load_no_torch_and_are_functions_whatever_was_imported_before():
    code = """
import sys
from headrank_pipeline.first_stage import lexical, sparse, vectors
from headrank_pipeline.first_stage import bm25, dense, impact
print(callable(bm25), callable(dense), callable(impact), "torch" in sys.modules, "pyserini" in sys.modules)
"""
    assert fresh(code) == "True True True False False"


def test_module_entry_point_is_the_command():
    done = subprocess.run([sys.executable, "-m", "headrank_pipeline", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"headrank, version {headrank_pipeline.__version__}"


def test_shipped_demo_definition_is_the_one_in_pipelines():
    root = Path(headrank_pipeline.__file__).resolve().parent
    view, file = root.parent / "pipelines" / "demo.yaml", root / "resources" / "demo" / "pipeline.yaml"
    assert view.read_text(encoding="utf-8") == file.read_text(encoding="utf-8")


def lines_of_functions(source):
    """Lines of each function, docstring included; decorators (a command's flags) are not."""
    functions = [
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {function.name: function.end_lineno - function.lineno + 1 for function in functions}


def test_nothing_that_ships_names_a_place_of_one_machine():
    root = Path(headrank_pipeline.__file__).parent
    text = {".py", ".json", ".md", ".jsonl", ".tsv", ".yaml"}
    shipped = [path for path in root.rglob("*") if path.suffix in text and path.is_file()]
    assert len(shipped) > 100
    found = [
        path.name
        for path in shipped
        if re.search(r"[\s\"=](/work|/home|/root|/Users)/", path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_no_function_is_longer_than_60_lines_and_no_file_much_longer_than_600():
    sources = {path: path.read_text(encoding="utf-8") for path in Path(headrank_pipeline.__file__).parent.rglob("*.py")}
    assert lines_of_functions("def f():\n    def g():\n        pass\n\n    return g\n") == {"f": 5, "g": 2}
    assert [
        (path.name, name, lines)
        for path, source in sources.items()
        for name, lines in lines_of_functions(source).items()
        if lines > 60
    ] == []
    assert [path.name for path, source in sources.items() if source.count("\n") > 640] == []
