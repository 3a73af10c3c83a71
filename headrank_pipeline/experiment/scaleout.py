"""Reranking on many devices: Ray Data streams batches to workers, each a process with a model of its own.

This process loads no model. It sends batches out, takes back what became of each as soon as it is done, and alone
writes the journal: the run is that of one process, only the order of the journal's lines may differ. A worker that dies
is started again and its batch is tried again; where Ray loses one for good, all are started anew. How many batches are
on their way is for Ray Data's back-pressure to say.

The only module that sees Ray, which is imported when workers are asked for (docs/scaling.md). Ray is connected or
started for one call, and kept from what else this process does: signals, output, environment.
"""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import secrets
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from headrank_pipeline.experiment.batches import Batches, TriedBatch, try_batch
from headrank_pipeline.experiment.directory import differences, usage
from headrank_pipeline.files import plain
from headrank_pipeline.pipeline import MissingPrerequisite, Reranker, require_extra

__all__ = [
    "RayWorkers",
    "workers",
]

logger = logging.getLogger(__name__)


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


# --------------------------------------------------------------------------------------------------- batches to workers


_PACKAGE = __name__.partition(".")[0]

# A batch whose worker died is tried again so often, then by so many sets of workers: it may be the batch that kills it.
# A machine that went away and is not yet known to have fails every try at once, so new workers are the way on.
_RETRIES = 1
_STREAMS = 2


@contextmanager
def workers(build: Callable[[], Reranker], count: int, *, device: str = "auto") -> Iterator[RayWorkers]:
    """Start workers for `RunPlan.reranker`, and stop them at the end.

    They run where Ray runs already (``ray.init(address=…)``), else in the cluster that RAY_ADDRESS names, else on this
    machine, where Ray is started for them, listens to this machine alone and takes no task from anybody else.

    Args:
        build: makes the reranker, in each worker; it travels there, so it must be picklable.
        count: how many workers.
        device: what `build` was told. With ``cuda`` each worker gets a GPU of its own, with ``auto`` where there are
            GPUs at all, with ``cpu`` none.

    Raises:
        MissingPrerequisite: Ray is not installed, or has fewer GPUs or CPU slots than workers.
        ValueError: less than one worker, or a device that names one GPU for all of them.
        Exception: whatever `build` raises.
    """
    if count < 1:
        raise ValueError(f"workers {count}: expected at least 1")
    if device.startswith("cuda:"):
        raise ValueError(f"device {device!r} with workers: names one GPU for all of them; 'cuda' gives each its own")
    threads = max(1, (os.cpu_count() or 1) // count)
    with ray_session(slots=threads * count) as (ray, ours):
        slots = {"num_cpus": threads if ours else 1, "num_gpus": _gpus_each(ray.cluster_resources(), count, device)}
        yield RayWorkers(build, count, slots)


class RayWorkers:
    """Workers that Ray runs (see `experiment.batches.Workers`); made by `workers`.

    They are started with the first batch and stopped after the last. Before that, one builds its reranker only to
    describe it, so that what is wrong with a model or its flags is known before anything is retrieved.
    """

    def __init__(self, build: Callable[[], Reranker], count: int, slots: Mapping[str, float]) -> None:
        self.count = count
        self._slots = slots
        self._usage: Mapping[str, Any] = {}
        setup = _WorkerSetup(build, str(Path.cwd()), logging.getLogger(_PACKAGE).getEffectiveLevel())
        description, self._origins = self._introduced(setup)
        self._setup = replace(setup, description=description)

    def describe(self) -> dict[str, Any]:
        """Return what every worker's reranker says of itself; one that says something else takes no part."""
        return dict(self._setup.description or {})

    def origins(self) -> dict[str, str]:
        """Return where what the first worker's reranker works with lies."""
        return dict(self._origins)

    def usage(self) -> dict[str, Any]:
        """Return GPU and peak memory of the worker that took most."""
        return dict(self._usage) or usage()

    def try_batches(self, batches: Batches) -> Generator[TriedBatch, None, None]:
        """Yield what became of each batch, as soon as it is done: none waits for one whose worker was lost.

        Raises:
            RuntimeError: the worker of one batch died each time it was tried.
            Exception: what `try_batch` raises, or what kept a worker from building its reranker.
        """
        import ray

        self._usage = {}
        if not batches.open:
            return
        left = set(batches.open)
        streams = _STREAMS
        while True:
            try:
                for number, tried in self._stream(replace(batches, open=frozenset(left))):
                    left.remove(number)
                    streams = _STREAMS
                    yield tried
                return
            except ray.exceptions.RayError as error:
                streams -= 1
                if not streams:
                    raise RuntimeError(
                        f"workers: a batch was given up ({_short_message(error)}); if its worker dies, for want of "
                        f"memory perhaps, it is tried {_STREAMS * (_RETRIES + 1)} times: take fewer workers or smaller "
                        f"batches. Finished batches are in the journal, the same command continues"
                    ) from error
                logger.debug("workers: %s", error)
                logger.warning(
                    "workers: one was lost (%s); all are started again, %d batches are left",
                    type(error).__name__,
                    len(left),
                )

    def _stream(self, batches: Batches) -> Generator[tuple[int, TriedBatch], None, None]:
        """Yield each batch's number and what became of it, as `try_batches` does; raises Ray's own errors."""
        seen: set[str] = set()
        rows = iter(self._answers(batches).iter_rows())
        try:
            for row in rows:
                answer: _Answer = pickle.loads(row["answer"])
                if answer.worker not in seen and len(seen) >= self.count:
                    logger.warning("a worker died; %s took its place, and its batch was tried again", answer.worker)
                seen.add(answer.worker)
                self._usage = max(self._usage, answer.usage, key=lambda found: found.get("peak_memory_bytes", 0))
                yield row["number"], answer.result_or_raise()
        finally:
            del rows  # which stops the workers

    def _introduced(self, setup: _WorkerSetup) -> tuple[dict[str, Any], dict[str, str]]:
        """What a reranker says of itself and of its origins; its process ends with that, and gives back its memory."""
        import ray

        introduction = ray.remote(max_calls=1, max_retries=0)(_introduction).options(**self._slots)
        try:
            answer: _Answer = pickle.loads(ray.get(introduction.remote(setup)))
        except ray.exceptions.RayError as error:
            raise RuntimeError(
                f"workers: the first one died while it built its reranker ({_short_message(error)})"
            ) from error
        introduced: tuple[dict[str, Any], dict[str, str]] = answer.result_or_raise()
        return introduced

    def _answers(self, batches: Batches) -> Any:
        """A dataset with a row for each batch, which reading it brings about."""
        from ray.data import ActorPoolStrategy, DataContext, read_datasource

        context = DataContext.get_current().copy()
        context.execution_options.preserve_order = False
        context.target_max_block_size = 1  # byte: every batch is a block of its own, and is sent as soon as it is read
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        with DataContext.current(context), warnings.catch_warnings():
            # From Ray 2.64 on max_task_retries cannot be given here; the extra's bound keeps to those before.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            source = read_datasource(_source(batches, self._setup.folder), num_cpus=0, override_num_blocks=1)
            return source.map(
                _Worker,
                fn_constructor_args=(self._setup,),
                compute=ActorPoolStrategy(size=self.count),
                max_task_retries=_RETRIES,
                **self._slots,
            )


# --------------------------------------------------------------------------------------------------- in the workers


@dataclass(frozen=True, slots=True)
class _WorkerSetup:
    """What a worker needs to make its reranker.

    Args:
        build: makes it.
        folder: where the user called; paths in `build` mean what they mean there.
        level: level of the package's log.
        description: what the reranker must say of itself, or None where that is not known yet.
    """

    build: Callable[[], Reranker]
    folder: str
    level: int
    description: Mapping[str, Any] | None = None

    def made(self) -> Reranker:
        """Return the reranker.

        Raises:
            RuntimeError: it is another one than the description says.
        """
        with suppress(FileNotFoundError):  # another machine may not have the folder, and need none
            os.chdir(self.folder)
        reranker = self.build()
        changed = differences(self.description, plain(reranker.describe())) if self.description else []
        if changed:
            listed = "; ".join(f"{key}: expected {old!r}, got {new!r}" for key, old, new in changed)
            raise RuntimeError(
                f"worker {_name()}: its reranker is not that of the others ({listed}); give every machine the same "
                f"model and kind of device"
            )
        return reranker


def _introduction(setup: _WorkerSetup) -> bytes:
    """An answer with the description and the origins of the setup's reranker."""
    records = _kept_log(setup.level)
    try:
        made = setup.made()
        return _Answer((plain(made.describe()), made.origins()), None, _drained(records), _name()).sent()
    except Exception as error:  # noqa: BLE001 - raised again where the user is
        return _Answer(None, error, _drained(records), _name()).sent()


class _Worker:
    """One process with a reranker; Ray Data makes it and calls it with rows."""

    def __init__(self, setup: _WorkerSetup) -> None:
        self._records = _kept_log(setup.level)
        self._fault: Exception | None = None
        try:
            self._reranker = setup.made()
            _drained(self._records)  # the introduction has told it already
        except Exception as error:  # noqa: BLE001 - raised again where the user is; here Ray would try again
            self._fault = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a row's batch."""
        tried, fault = None, self._fault
        if fault is None:
            try:
                tried = try_batch(self._reranker, pickle.loads(row["batch"]))
                failures = (replace(failure, error=_portable(failure.error)) for failure in tried.failures)
                tried = replace(tried, failures=tuple(failures))
            except Exception as error:  # noqa: BLE001 - raised again where the user is
                fault = error
        return {
            "number": row["number"],
            "answer": _Answer(tried, fault, _drained(self._records), _name(), usage()).sent(),
        }


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker says: a result or why there is none, and what it logged on the way."""

    result: Any
    fault: Exception | None
    records: tuple[logging.LogRecord, ...]
    worker: str
    usage: Mapping[str, Any] = field(default_factory=dict)

    def sent(self) -> bytes:
        """Return the answer as it travels; the worker's traceback goes along, for --debug."""
        if self.fault is None:
            return pickle.dumps(self)
        fault = _portable(self.fault)
        fault.add_note("in the worker:\n" + "".join(traceback.format_exception(self.fault)))
        return pickle.dumps(replace(self, fault=fault))

    def result_or_raise(self) -> Any:
        """Log what the worker logged, and return its result.

        Raises:
            Exception: the worker's own.
        """
        for record in self.records:
            logging.getLogger(record.name).handle(record)
        if self.fault is not None:
            if not self.worker.startswith(f"{socket.gethostname()}:"):
                logger.warning("what follows was met by worker %s, on another machine", self.worker)
            raise self.fault
        return self.result


def _portable(error: Exception) -> Exception:
    """Return the error, or one with its words where it would not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an exception class may do anything here
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _kept_log(level: int) -> SimpleQueue[logging.LogRecord]:
    """Keep what the package logs in this process, rather than write it to a file that nobody reads."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    package = logging.getLogger(_PACKAGE)
    package.handlers = [QueueHandler(records)]
    package.propagate = False
    package.setLevel(level)
    return records


def _drained(records: SimpleQueue[logging.LogRecord]) -> tuple[logging.LogRecord, ...]:
    return tuple(records.get() for _ in range(records.qsize()))


def _name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


# ---------------------------------------------------------------------------------------------------------- Ray itself


def _source(batches: Batches, folder: str) -> Any:
    """The batches as a data source of Ray's: one task on this machine, which reads as far ahead as Ray lets it."""
    import pyarrow
    from ray.data import Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask

    def read() -> Iterator[Any]:
        os.chdir(folder)
        for number, batch in batches:
            yield pyarrow.table({"number": [number], "batch": [pickle.dumps(batch)]})

    class Source(Datasource):
        supports_distributed_reads = False

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    return Source()  # type: ignore[no-untyped-call]


def _short_message(error: Exception) -> str:
    """The kind of a Ray error and its last line; what comes before is Ray's own stack."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1].strip()}"


def _gpus_each(resources: Mapping[str, float], count: int, device: str) -> int:
    """Return how many GPUs each worker gets, having looked whether there are enough."""
    gpus, slots = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    wanted = device == "cuda" or (device == "auto" and gpus > 0)
    if wanted and gpus < count:
        raise MissingPrerequisite(
            f"workers {count} with device {device!r}: expected a GPU for each, Ray has {gpus}; take fewer, or "
            f"device 'cpu', or a cluster (docs/scaling.md)"
        )
    if slots < count:
        raise MissingPrerequisite(f"workers {count}: expected a CPU slot for each, Ray has {slots}; take fewer")
    return int(wanted)
