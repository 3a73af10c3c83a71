"""How much memory this process holds, and where a C library can give freed memory back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrank_pipeline.attention import model as model_module

gives_back = pytest.mark.skipif(model_module._malloc_trim() is None, reason="this C library gives nothing back")


def held() -> int:
    """Memory of this process [bytes]."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def without_holes() -> int:
    """The same, once what earlier tests left free in the heap is given back: new blocks must not fit into it."""
    model_module.give_back_memory()
    return held()
