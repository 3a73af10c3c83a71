"""Ray, connected or started for one call, and kept from what else this process does: signals, output, environment.

With `experiment.scaleout` the only module that sees Ray.
"""

from __future__ import annotations

import ctypes
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headrank_pipeline.pipeline import require_extra

__all__ = ["ray_session"]

# Bytes for batches on their way; Ray would take a third of the machine, whose memory is for models.
_OBJECT_STORE = 512 * 2**20
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
_SILENT = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
_OF_OUR_OWN = _SILENT | {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback interface, as Ray does there
    "RAY_AUTH_MODE": "token",  # with one for this call; otherwise Ray writes one into the user's home
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def ray_session(*, slots: int) -> Iterator[tuple[Any, bool]]:
    """Give Ray, connected, and whether it was started here, for this call alone.

    It is the one that is connected already, else the cluster that RAY_ADDRESS names, else one of this machine's, which
    listens to this machine alone, takes no task from anybody else, and ends with the context.

    Args:
        slots: CPUs that Ray may give to workers, where it is started here.

    Raises:
        MissingPrerequisite: Ray is not installed.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    known = sys.modules.get("ray")
    running = known is not None and known.is_initialized()
    if running or "RAY_ADDRESS" in os.environ:
        ray = _imported()
        if not running:
            with _environment(_SILENT), _silent_stderr(), _signals_kept():
                ray.init(**quiet)
        try:
            yield ray, False
        finally:
            if not running:
                with _signals_kept():
                    ray.shutdown()
        return
    # The environment is set before the import, which reads some of it. What can be imported here can be imported in
    # the workers: they have to make what `build` names.
    own = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with _environment(_OF_OUR_OWN | own), TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        ray = _imported()
        with _silent_stderr(), _signals_kept():
            ray.init(
                num_cpus=slots,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                _temp_dir=folder,
                **quiet,
            )
        try:
            yield ray, True
        finally:
            with _signals_kept():
                ray.shutdown()


def _imported() -> Any:
    require_extra("ray", "a run on several workers", "ray", "pyarrow")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised besides
    # Ray would print what happens to workers on standard output, where our results go.
    ray._private.worker._worker_logs_enabled = False
    return ray


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Inside the block others may handle crashes; afterwards who did so before does again.

    A JVM in this process needs SIGSEGV for its own ends. When Ray starts, its handlers and Python's faulthandler would
    take it for a crash; when Ray ends, it leaves the signals to the system, which ends the process.
    """
    sigaction = ctypes.CDLL(None).sigaction
    kept = {number: ctypes.create_string_buffer(256) for number in _CRASHES}  # struct sigaction has 152 bytes on Linux
    for number, action in kept.items():
        sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            sigaction(number, action, None)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's native code announces there that it was told to be silent; errors of `ray.init` are exceptions."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
