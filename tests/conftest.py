"""Shared fixtures: the real collections beside the project, and indexes that are built once per session."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import huggingface_hub.constants
import pytest
from hypothesis import settings

# Threads fight over tiny matrices: one thread is several times faster here, in this process and those it starts.
os.environ["OMP_NUM_THREADS"] = "1"
# Indexers of five passages live for a second: Java need not compile for longer (a third of their time).
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

# A written file is flushed to the disk, which takes as long as the machine pleases.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

PASSAGES = (
    {"_id": "d1", "title": "Flea", "text": "A flea can live up to a year."},
    {"_id": "d2", "title": "Dog", "text": "The dog sleeps."},
    {"_id": "007", "title": "", "text": "Spies and one flea."},
    {"_id": "7", "title": "Cat", "text": "A cat without any flea, flea, flea."},
    {"_id": "d5", "title": "Emoji 🙂", "text": "naïve café, 東京, 𝔘nicode flea \u2028 done"},
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that take minutes are asked for."""
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker of those tests; hide GPUs from all tests but those that are for one."""
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")
    if config.option.markexpr != "gpu":  # "auto" would be bfloat16 on a GPU, and what is expected is a CPU's float32
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch is not imported yet


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip them otherwise."""
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: pytest --slow"))


@pytest.fixture(autouse=True)
def package_log() -> None:
    """A command that ran in this process took the package's log to itself; every test begins with it given back."""
    package = logging.getLogger("headrank_pipeline")
    package.propagate, package.handlers = True, []
    package.setLevel(logging.NOTSET)


_OFFLINE = os.environ.get("HF_HUB_OFFLINE")


@pytest.fixture(autouse=True)
def hub_as_at_the_start() -> Iterator[None]:
    """A command with --offline forbids its process the hub; what follows begins as the first test did."""
    known = huggingface_hub.constants.HF_HUB_OFFLINE
    yield
    huggingface_hub.constants.HF_HUB_OFFLINE = known
    os.environ.pop("HF_HUB_OFFLINE", None)
    if _OFFLINE is not None:
        os.environ["HF_HUB_OFFLINE"] = _OFFLINE


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real collections; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real collections are not beside the project (no {SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def fresh_python() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """A function that runs code in an interpreter of its own: what is imported and started there is its own."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five passages as BEIR JSONL."""
    path = tmp_path_factory.mktemp("tiny") / "corpus.jsonl"
    path.write_text("".join(json.dumps(passage) + "\n" for passage in PASSAGES), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_index(tiny_corpus: Path) -> Path:
    """A Lucene index of the five passages."""
    from headrank_pipeline.first_stage import build_index

    return build_index(tiny_corpus, tiny_corpus.with_name("index")).path


@pytest.fixture(scope="session")
def slim_index(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the five passages that stores no text, as Pyserini's ``-slim`` ones."""
    from headrank_pipeline.first_stage.jvm import anserini_jar, find_java

    folder = tmp_path_factory.mktemp("slim")
    (folder / "corpus").mkdir()
    (folder / "corpus" / "part.jsonl").write_bytes(tiny_corpus.read_bytes())
    command = [str(find_java().home / "bin" / "java"), "-cp", str(anserini_jar()), "io.anserini.index.IndexCollection"]
    command += ["-collection", "BeirFlatCollection", "-generator", "DefaultLuceneDocumentGenerator", "-threads", "1"]
    command += ["-input", str(folder / "corpus"), "-index", str(folder / "index")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "index"


@pytest.fixture(scope="session")
def scifact_index(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Lucene index of SciFact, as Pyserini's flat BEIR index."""
    from headrank_pipeline.first_stage import build_index

    folder = tmp_path_factory.mktemp("scifact") / "index"
    return build_index(shared_data / "scifact" / "corpus.jsonl.gz", folder).path
