"""Building a BM25 index of a corpus with Anserini's own indexer.

The indexer runs in a Java process of its own: it needs no JVM in this one, its log does not mix with our results, and
when it fails its last lines come back in the error. An index appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from headrank_pipeline.files import open_input
from headrank_pipeline.first_stage.jvm import anserini_jar, find_java, versions
from headrank_pipeline.options import nearest
from headrank_pipeline.passages import Passage, located_passages

__all__ = [
    "ENGLISH",
    "IndexSummary",
    "build_index",
    "check_language",
    "index_identity",
    "index_language",
    "is_index",
    "publish",
    "refuse_strangers",
    "refuse_unknown",
    "refuse_vectors",
    "run_indexer",
]

IDENTITY_FILE = "headrank-index.json"
ENGLISH = "en"
# ISO 639-1 codes for which Anserini has an analyzer. Any other would be read as English without a word.
_LANGUAGES = frozenset(
    "ar bn da de en es fa fi fr hi hu id it ja ko nl no pl pt ru sv te th tr uk zh".split()  # noqa: SIM905
)
# Files of Lucene, of FAISS indexes as Pyserini reads them, and ours beside them.
_OF_AN_INDEX = re.compile(
    r"_\w+\.\w+|segments_\w+|write\.lock|docid|index|passages\.jsonl|passages\.offsets\.npy|headrank-index\.json"
)
_COUNTER = re.compile(r"- (indexed|unindexable|empty|skipped|errors): +([\d,]+)")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """What was built.

    Args:
        path: the index folder.
        docs: documents in the index.
        empty_docs: passages of the corpus with neither title nor text; Lucene holds nothing for them.
        seconds: wall time of the whole build.
        corpus_sha256: SHA-256 of the corpus file as it lies on the disk.
    """

    path: Path
    docs: int
    empty_docs: int
    seconds: float
    corpus_sha256: str


def build_index(
    corpus: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    threads: int = 1,
    multifield: bool = False,
    language: str = ENGLISH,
    overwrite: bool = False,
) -> IndexSummary:
    """Build a Lucene index of a corpus file and return what is in it.

    Title and text are indexed as Pyserini's prebuilt BEIR indexes have them: joined in one field ("flat"), or with
    `multifield` the text as ``contents`` and the title as ``title``. Positions, document vectors and the passage itself
    (``raw``, as BEIR JSON) are stored. A file ``headrank-index.json`` in the folder says what the index was made of.

    Args:
        corpus: BEIR or ``{id, contents}`` JSONL, or TSV; plain or gzip, a file, a pipe or ``-``.
        output: the folder to make.
        threads: threads of the indexer; with 1 the documents are numbered in the order of the corpus.
        multifield: keep the title in a field of its own.
        language: whose words the analyzer splits and stems ("de", "zh"); `bm25` searches the index with the same one.
        overwrite: replace an index that is there already.

    Raises:
        FileNotFoundError: no such corpus.
        FileExistsError: `output` is there already.
        MissingPrerequisite: no Java 21, or no pyserini.
        ValueError: a malformed line, or a docid that occurs twice, with file and line; a language without analyzer.
        RuntimeError: the indexer failed; ends with the last lines of its log.
    """
    if threads < 1:
        raise ValueError(f"threads {threads}: expected at least 1")
    check_language(language)
    started = time.perf_counter()
    target = Path(output)
    _check_output(target, overwrite)
    opened = open_input(corpus, "corpus")
    runtime = find_java()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".building", dir=target.parent) as scratch:
        shards, draft = Path(scratch) / "corpus", Path(scratch) / "index"
        shards.mkdir()
        docs, empty = _write_shards(opened, shards, threads)
        collection, options = _layout(multifield, language)
        command = [str(runtime.home / "bin" / "java"), "-cp", str(anserini_jar()), "io.anserini.index.IndexCollection"]
        command += ["-collection", collection, "-generator", "DefaultLuceneDocumentGenerator"]
        command += ["-threads", str(threads), "-input", str(shards), "-index", str(draft), *options]
        run_indexer(command, docs - empty)
        identity = {"corpus": Path(corpus).name, "corpus_sha256": opened.sha256, "docs": docs - empty}
        identity |= {"empty_docs": empty, "collection": collection, "options": options, **versions()}
        if language != ENGLISH:
            identity["language"] = language
        (draft / IDENTITY_FILE).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        publish(draft, target, Path(scratch) / "replaced")
    summary = IndexSummary(target, docs - empty, empty, time.perf_counter() - started, opened.sha256)
    _log.info("%s: %d documents indexed in %.1f s", target, summary.docs, summary.seconds)
    return summary


def _layout(multifield: bool, language: str) -> tuple[str, list[str]]:
    """Return Anserini's name of the layout, and the options that say what is stored and how words are split."""
    options = ["-storePositions", "-storeDocvectors", "-storeRaw", *(["-fields", "title"] if multifield else [])]
    if language != ENGLISH:
        options += ["-language", language]
    return "BeirMultifieldCollection" if multifield else "BeirFlatCollection", options


def check_language(language: str) -> None:
    """Raise ValueError for a language that Anserini has no analyzer for."""
    if language not in _LANGUAGES:
        raise ValueError(
            f"language {language!r}: Anserini has no analyzer for it; expected one of {sorted(_LANGUAGES)}"
        )


def is_index(folder: str | os.PathLike[str]) -> bool:
    """Return whether `folder` holds a Lucene index that was committed."""
    return any(Path(folder).glob("segments_*"))


def index_identity(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what `build_index` wrote about an index, or None where someone else built it."""
    file = Path(folder) / IDENTITY_FILE
    if not file.is_file():
        return None
    try:
        identity = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not valid JSON ({error}); it was cut off: copy or build the index again") from error
    if not isinstance(identity, dict):
        raise ValueError(f"{file}: expected an object that says what the index was made of, got {identity!r}")
    return identity


def index_language(folder: str | os.PathLike[str]) -> str | None:
    """Return the language an index was built for, or None where someone else built it."""
    identity = index_identity(folder)
    return None if identity is None else str(identity.get("language", ENGLISH))


def refuse_vectors(folder: Path) -> None:
    """Raise ValueError for an index of vectors: by words one of Lucene's finds nothing, and says nothing."""
    if kind := (index_identity(folder) or {}).get("kind"):
        raise ValueError(
            f"{folder}: an index of vectors ({kind}), which hold no words; search it with dense, or as "
            f"first stage dense"
        )


def refuse_unknown(name: str, known: Collection[str], kind: str) -> None:
    """Raise FileNotFoundError for a name that is not among those of Pyserini's prebuilt indexes of a kind."""
    if name not in known:
        hint = nearest(name, known, otherwise="see pyserini's prebuilt-indexes.md for the names", most=3)
        raise FileNotFoundError(
            f"{name!r}: neither a folder nor {kind} that Pyserini {versions()['pyserini']} knows; {hint}"
        )


def run_indexer(command: list[str], expected: int) -> None:
    """Run one of Anserini's indexers and check its own count; it returns 0 after a wrong option or a failed thread.

    Args:
        command: command of a Java process.
        expected: documents that must be in the index afterwards.

    Raises:
        RuntimeError: it failed; ends with the last lines of its log.
    """
    tail: deque[str] = deque(maxlen=15)
    counted: dict[str, int] = {}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None  # we asked for the pipe
        try:
            for line in process.stdout:
                tail.append(line.rstrip())
                _log.debug("%s", tail[-1])
                if counter := _COUNTER.search(line):
                    counted[counter[1]] = int(counter[2].replace(",", ""))
        except BaseException:
            process.kill()
            raise
    lost = {name: counted.get(name) for name in ("unindexable", "skipped", "errors") if counted.get(name)}
    if process.returncode or counted.get("indexed") != expected or lost:
        raise RuntimeError(
            f"Anserini's indexer failed: exit status {process.returncode}, {counted.get('indexed')} of {expected} "
            f"documents indexed{f', {lost}' if lost else ''}. The end of its log:\n" + "\n".join(tail)
        )


def _check_output(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not is_index(target):
        raise FileExistsError(
            f"{target}: exists and is not a Lucene index, so it is never replaced; name another folder"
        )
    if not overwrite:
        raise FileExistsError(f"{target}: holds an index already; pass overwrite=True to replace it")
    refuse_strangers(target)


def refuse_strangers(folder: Path) -> None:
    """Raise FileExistsError where an index folder holds what no index has: replacing it would delete that, too."""
    strangers = sorted(found.name for found in folder.iterdir() if not _OF_AN_INDEX.fullmatch(found.name))
    if strangers:
        raise FileExistsError(
            f"{folder}: beside the index lies {', '.join(strangers[:3])}{', …' if len(strangers) > 3 else ''}, which "
            f"replacing it would delete; move that away or name another folder"
        )


def _write_shards(corpus: str | os.PathLike[str], folder: Path, shards: int) -> tuple[int, int]:
    """Write the corpus as BEIR JSONL, one file per indexing thread, and return (passages, empty passages)."""
    docs = empty = 0
    with ExitStack() as stack:
        names = [folder / f"part-{number:03d}.jsonl" for number in range(shards)]
        files = [stack.enter_context(name.open("w", encoding="utf-8")) for name in names]
        for file, passage in zip(cycle(files), _unique(corpus)):
            # Anserini's BEIR collections need a title; a corpus without titles gets empty ones.
            record = {"_id": passage.docid, "title": passage.title or "", "text": passage.text}
            file.write(json.dumps(record) + "\n")
            docs += 1
            if not (passage.text.strip() or record["title"].strip()):
                empty += 1
                _log.warning("%s: docid %s has neither title nor text; it can never be found", corpus, passage.docid)
    if docs == empty:
        raise ValueError(f"{corpus}: no passages to index; expected BEIR JSONL, {{id, contents}} JSONL or TSV")
    return docs, empty


def _unique(corpus: str | os.PathLike[str]) -> Iterator[Passage]:
    seen: set[str] = set()
    for where, passage in located_passages(corpus):
        if passage.docid in seen:
            first = next(place for place, other in located_passages(corpus) if other.docid == passage.docid)
            raise ValueError(f"{where}: docid {passage.docid} was given before at {first}; delete one of the two")
        seen.add(passage.docid)
        yield passage


def publish(draft: Path, target: Path, replaced: Path) -> None:
    """Put a finished index under its name; one that is there moves to `replaced`, and back where that fails."""
    if not target.exists():
        draft.rename(target)
        return
    target.rename(replaced)
    try:
        draft.rename(target)
    except OSError:
        replaced.rename(target)
        raise
