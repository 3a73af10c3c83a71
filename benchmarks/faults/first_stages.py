"""Faults of Lucene indexes, those of words and those of weights: files cut off or lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from tiny_encoder import tiny_impact_index

from faults.judging import Fault, NotJudged, equal_or_refused
from headrank_pipeline.first_stage.index import build_index
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.first_stage.sparse import impact

__all__ = ["FAULTS"]

_QUERIES = {"q1": "flea", "q2": "the dog"}
_TEXTS = ("a flea can live", "the dog sleeps", "spies and one flea", "a cat without any flea")


@cache
def _lexical() -> Path:
    home = Path(mkdtemp(prefix="faults-lucene-"))
    corpus = home / "corpus.jsonl"
    lines = ({"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(_TEXTS))
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return build_index(corpus, home / "index").path


@cache
def _impact() -> Path:
    return tiny_impact_index(Path(mkdtemp(prefix="faults-impact-")))


def _found(source: Any) -> list[tuple[str, ...]]:
    return [tuple(f"{c.docid} {c.score} {c.text}" for c in ranking.candidates) for ranking in source.retrieve(_QUERIES)]


def _damaged(chance: Random, room: Path, index: Path) -> Path:
    """A copy with one file or two cut off or lost."""
    folder = Path(shutil.copytree(index, room / "index", ignore=shutil.ignore_patterns("write.lock")))
    for path in chance.sample(sorted(folder.iterdir()), chance.choice((1, 1, 2))):
        if chance.random() < 0.3:
            path.unlink()
        elif size := path.stat().st_size:
            path.write_bytes(path.read_bytes()[: chance.randrange(size)])
        else:
            raise NotJudged
    return folder


@cache
def _expected(open_source: Callable[[Path], Any], index: Path) -> list[tuple[str, ...]]:
    return _found(open_source(index))


def lucene(chance: Random, room: Path) -> str:
    """An index of words with files cut off or lost."""
    folder = _damaged(chance, room, _lexical())
    return equal_or_refused(lambda: _found(bm25(folder)), _expected(bm25, _lexical()), str(folder))


def impacts(chance: Random, room: Path) -> str:
    """An index of weights with files cut off or lost."""
    folder = _damaged(chance, room, _impact())
    return equal_or_refused(lambda: _found(impact(folder)), _expected(impact, _impact()), str(folder))


FAULTS: dict[str, Fault] = {"lucene": lucene, "impacts": impacts}
