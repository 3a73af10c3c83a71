"""How much memory this process holds, and where a C library can give freed memory back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrank_pipeline.attention import budget

gives_back = pytest.mark.skipif(budget._malloc_trim() is None, reason="this C library gives nothing back")


def held() -> int:
    """Memory of this process [bytes]."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def without_holes() -> int:
    """The same, once what earlier tests left free in the heap is given back: new blocks must not fit into it."""
    budget.give_back_memory()
    return held()
