"""Progress of a long job: a bar on a terminal, otherwise a log line every half minute."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

__all__ = ["Progress"]

logger = logging.getLogger(__name__)

_LOG_EVERY_SECONDS = 30.0


class Progress:
    """Counts queries, or whatever a job is made of; use as a context manager.

    Args:
        total: queries in the whole run.
        done: queries that an earlier session finished; they count in the total but not in the rate.
        log_every: seconds between log lines where standard error is no terminal.
        unit: what is counted, singular and plural.
        what: the job's name on the bar.
    """

    def __init__(
        self,
        total: int,
        done: int,
        *,
        log_every: float = _LOG_EVERY_SECONDS,
        unit: tuple[str, str] = ("query", "queries"),
        what: str = "rerank",
    ) -> None:
        self.total = total
        self.done = done
        self.log_every = log_every
        self.unit, self.units = unit
        self.what = what
        self._new = 0
        self._bar: Any = None
        self._started = self._logged = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = self._logged = time.monotonic()
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, initial=self.done, unit=self.unit, desc=self.what, file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, queries: int) -> None:
        """Count queries as done."""
        self.done += queries
        self._new += queries
        if self._bar is not None:
            self._bar.update(queries)
        elif time.monotonic() - self._logged >= self.log_every:
            self._logged = time.monotonic()
            logger.info("%s", self.line())

    def line(self) -> str:
        """Return one line with done, total, rate and the time still to go."""
        rate = self._new / max(time.monotonic() - self._started, 1e-9)
        left = f"{_duration((self.total - self.done) / rate)} to go" if rate else "time to go unknown"
        return f"{self.done}/{self.total} {self.units}, {rate:.2f} {self.units}/s, {left}"


def _duration(seconds: float) -> str:
    """Return hours:minutes:seconds.

    Examples:
        >>> _duration(3725.4)
        '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
