"""What a fault may come to, and how cases are drawn, run and counted.

A case holds where its outcome is one of three: the result is equal, byte for byte; it is refused by an error that names
what is wrong; or it is what the documentation says. Everything else does not hold, a traceback of another kind too.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

__all__ = [
    "Case",
    "Fault",
    "NotHeld",
    "NotJudged",
    "Result",
    "equal_or_refused",
    "mutated",
    "refusal",
    "run_case",
    "set_somewhere",
]

EQUAL, REFUSED, DOCUMENTED = "equal", "refused", "documented"

# What the command line turns into one line and a status, less those that only a mistake in the code raises.
_REFUSALS = (OSError, ValueError, RuntimeError, MemoryError)

Fault = Callable[[Random, Path], str]


class NotHeld(Exception):
    """A fault that came to something wrong."""


class NotJudged(Exception):
    """An injection that changed nothing, or whose right outcome is not known; it is not counted."""


@dataclass(frozen=True, slots=True)
class Case:
    """One injection: a kind and a seed decide it wholly."""

    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.seed}"


@dataclass(frozen=True, slots=True)
class Result:
    """What a case came to.

    Args:
        outcome: ``equal``, ``refused``, ``documented``, ``failed``, or None where it was not judged.
        told: why it failed.
    """

    case: Case
    outcome: str | None
    told: str = ""


def run_case(case: Case, fault: Fault, home: Path) -> Result:
    """Run one case in a folder of its own, which is removed afterwards."""
    room = Path(tempfile.mkdtemp(prefix=f"{case.kind}-{case.seed}-", dir=home))
    package = logging.getLogger("headrank_pipeline")
    before, package.disabled = package.disabled, True
    logging.disable(logging.CRITICAL)
    try:
        return Result(case, fault(Random(str(case)), room))
    except NotJudged:
        return Result(case, None)
    except NotHeld as error:
        return Result(case, "failed", str(error))
    except Exception:  # noqa: BLE001 - a traceback is what the suite looks for
        return Result(case, "failed", "".join(traceback.format_exc(limit=-4)))
    finally:
        logging.disable(logging.NOTSET)
        package.disabled = before
        shutil.rmtree(room, ignore_errors=True)


def refusal(error: BaseException, names: Iterable[str]) -> bool:
    """Whether an error refuses in words of ours: of a kind that users see as one line, and naming what is wrong."""
    return isinstance(error, _REFUSALS) and any(name in str(error) for name in names)


def equal_or_refused(action: Callable[[], Any], expected: Any, *names: str) -> str:
    """Return the outcome of an action that must give what is expected or be refused by one of the names.

    Raises:
        NotHeld: another value, or another error.
    """
    try:
        found = action()
    except Exception as error:
        if refusal(error, names):
            return REFUSED
        raise NotHeld(f"not by name: {type(error).__name__}: {str(error)[:300]}") from error
    if found != expected:
        raise NotHeld(f"silently different: expected {str(expected)[:200]}, got {str(found)[:200]}")
    return EQUAL


def mutated(chance: Random, data: bytes) -> bytes:
    """Return bytes with one accident in them: of a bit, a piece or a line.

    Raises:
        NotJudged: the accident changed nothing.
    """
    changed = chance.choice(_ACCIDENTS)(chance, data)
    if changed == data:
        raise NotJudged
    return changed


def _flip(chance: Random, data: bytes) -> bytes:
    place = chance.randrange(len(data)) if data else 0
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :] if data else data


def _cut(chance: Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _piece_lost(chance: Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    return data[:start] + data[start + chance.randrange(1, 40) :]


def _piece_doubled(chance: Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    end = start + chance.randrange(1, 40)
    return data[:end] + data[start:end] + data[end:]


def _noise(chance: Random, data: bytes) -> bytes:
    place = chance.randrange(len(data) + 1)
    return data[:place] + chance.randbytes(chance.randrange(1, 20)) + data[place:]


def _zeros(chance: Random, data: bytes) -> bytes:
    start = chance.randrange(len(data) + 1)
    size = min(len(data) - start, chance.choice((1, 16, 512)))
    return data[:start] + bytes(size) + data[start + size :]


def _lines(change: Callable[[Random, list[bytes]], None]) -> Callable[[Random, bytes], bytes]:
    def changed(chance: Random, data: bytes) -> bytes:
        lines = data.splitlines(keepends=True)
        if len(lines) > 1:
            change(chance, lines)
        return b"".join(lines)

    return changed


def _line_lost(chance: Random, lines: list[bytes]) -> None:
    del lines[chance.randrange(len(lines))]


def _line_doubled(chance: Random, lines: list[bytes]) -> None:
    lines.insert(chance.randrange(len(lines)), chance.choice(lines))


def _lines_swapped(chance: Random, lines: list[bytes]) -> None:
    one, other = chance.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


def _digit(chance: Random, data: bytes) -> bytes:
    places = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    if not places:
        return data
    place = chance.choice(places)
    return data[:place] + str(chance.randrange(10)).encode() + data[place + 1 :]


_ACCIDENTS = (
    _flip, _flip, _cut, _cut, _piece_lost, _piece_doubled, _noise, _zeros, _digit, _digit,
    _lines(_line_lost), _lines(_line_doubled), _lines(_lines_swapped),
    lambda _, data: data.replace(b"\n", b"\r\n"), lambda _, data: b"\xef\xbb\xbf" + data, lambda *_: b"",
)  # fmt: skip


def set_somewhere(chance: Random, record: Any, odd: Sequence[Any], *, deeper: float) -> None:
    """Set a value to an odd one or delete it, at any depth; `deeper` is the chance to go on into a container."""
    while True:
        key = chance.choice(list(record) if isinstance(record, dict) else list(range(len(record))))
        if isinstance(record[key], dict | list) and record[key] and chance.random() < deeper:
            record = record[key]
            continue
        if chance.random() < 0.25:
            del record[key]
        else:
            record[key] = chance.choice(odd)
        return
