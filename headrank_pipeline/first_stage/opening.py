"""Indexes by folder or by one of Pyserini's names: found without opening them, and opened by Pyserini."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrank_pipeline.first_stage.index import ENGLISH, is_index, refuse_unknown, refuse_vectors
from headrank_pipeline.first_stage.jvm import reading_index, start_jvm

__all__ = ["LuceneIndex", "found_index", "found_words", "open_prebuilt"]

_MOST_WORDS = 2**16

_log = logging.getLogger(__name__)


def found_index(index: str | os.PathLike[str], advice: str) -> Path | str:
    """Return a folder that is there, or the name of a prebuilt index, which is not checked yet.

    Raises:
        FileNotFoundError: a path that does not exist; ends with `advice` on how to come to such a folder.
    """
    path, name = Path(index), os.fspath(index)
    if path.is_dir():
        return path
    if isinstance(index, Path) or os.sep in name or name.startswith((".", "~")):
        raise FileNotFoundError(f"{path}: no such index folder; {advice}, or give the name of a Pyserini index")
    return name


def found_words(index: str | os.PathLike[str], advice: str) -> Path | str:
    """Return as `found_index` the folder of a Lucene index of words, or a name.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without a Lucene index, or with one of vectors.
    """
    place = found_index(index, advice)
    if isinstance(place, Path):
        refuse_vectors(place)
        if not is_index(place):
            raise ValueError(f"{place}: holds no Lucene index (no file segments_*); {advice}")
    return place


def open_prebuilt(name: str, known: Collection[str], kind: str, fetch: Callable[[str], Any]) -> Any:
    """Return what `fetch` gives for the name of one of Pyserini's prebuilt indexes, which it downloads on first use.

    Raises:
        FileNotFoundError: a name that is not `known`, or a download that failed.
    """
    refuse_unknown(name, known, kind)
    told = "its message is above"
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints, download errors included, and may then return None
            opened = fetch(name)
    except (OSError, ValueError) as error:
        opened, told = None, str(error)
    if opened is None:
        raise FileNotFoundError(
            f"prebuilt index {name!r}: Pyserini could not download it ({told}); on a machine without network give the "
            f"folder of an index; `headrank index` builds one from a corpus"
        )
    return opened


@dataclass
class LuceneIndex:
    """A Lucene index of words; the searcher is opened once, for every source and lookup that shares this."""

    index: Path | str
    language: str = ENGLISH
    _opened: Any = field(default=None, init=False, compare=False, repr=False)

    def open(self) -> Any:
        """Return the searcher; the first call starts Java, and every call checks that this is no forked child."""
        start_jvm()
        if self._opened is None:
            import jnius
            from pyserini.prebuilt_index_info import TF_INDEX_INFO
            from pyserini.search.lucene import LuceneSearcher

            if isinstance(self.index, str):
                fetch = LuceneSearcher.from_prebuilt_index
                self._opened = open_prebuilt(self.index, TF_INDEX_INFO, "a BM25 index", fetch)
            else:
                with reading_index(self.index):
                    self._opened = LuceneSearcher(str(self.index))
            if self.language != ENGLISH:
                self._opened.set_language(self.language)
            # Lucene refuses queries of more than 1024 different words; a long question as a query has more.
            jnius.autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_MOST_WORDS)
            _log.info("opened %s: %d documents", self.index, self._opened.num_docs)
        return self._opened
