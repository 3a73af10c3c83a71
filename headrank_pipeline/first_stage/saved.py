"""First stages that were saved: a run file or a candidates file, read again without Java."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from headrank_pipeline.files import Input, open_input
from headrank_pipeline.first_stage.texts import Lookup, is_stream, passage_lookup, with_texts
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.pipeline import Queries, Source, as_queries
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, read_run, read_topics

__all__ = ["SavedSource", "saved_candidates", "saved_run"]

_log = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def saved_run(
    path: PathLike, topics: PathLike | Sequence[Query], corpus: PathLike | None = None, *, allow_missing: bool = False
) -> SavedSource:
    """Return a first stage that answers from a TREC run file.

    Args:
        path: the run, ``qid Q0 docid rank score tag``; files and pipes are opened here, once.
        topics: the queries: a topics file, or the records.
        corpus: where the passages' text comes from: a corpus file, of which only the run's passages are kept, or what
            `passage_lookup` takes (a Lucene index, ``ir_datasets:ID``); without it candidates have no text.
        allow_missing: give a query that the run lacks an empty ranking instead of an error.

    Raises:
        FileNotFoundError: no such file; when made, not when first read.
        ValueError: a folder as corpus that holds no Lucene index; when first read, what `read_run` refuses.
    """
    run_file = open_input(path, "run")
    asked = open_input(topics, "topics") if isinstance(topics, str | os.PathLike) else topics
    lookup = None if corpus is None or is_stream(corpus) else _lookup(corpus)
    passages = None if corpus is None or lookup is not None else open_input(corpus, "corpus")

    @lru_cache(maxsize=2)
    def load(hits: int | None) -> dict[str, Ranking]:
        queries = read_topics(asked) if isinstance(asked, Input) else list(as_queries(asked))
        run = {qid: candidates[:hits] for qid, candidates in read_run(run_file).items()}
        kept = {query.qid: query for query in queries if query.qid in run}
        if not kept:
            raise ValueError(f"{path}: none of its qids ({', '.join(list(run)[:3])}, …) is among the topics")
        if len(kept) < len(run):
            _log.warning("%s: %d of its %d queries are not among the topics", path, len(run) - len(kept), len(run))
        if lookup is not None:
            return {qid: Ranking(q, with_texts(run[qid], lookup, f"{path}: qid {qid}")) for qid, q in kept.items()}
        if passages is not None:
            _add_text({qid: run[qid] for qid in kept}, passages, path)
        return {qid: Ranking(query, tuple(run[qid])) for qid, query in kept.items()}

    description = {"stage": "saved_run", "path": str(path), "corpus": None if corpus is None else str(corpus)}
    return SavedSource(run_file, load, description, passages, allow_missing)


def _lookup(corpus: PathLike) -> Lookup:
    try:
        return passage_lookup(corpus)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{corpus}: no such corpus file or index ({error})") from error


def saved_candidates(path: PathLike, *, allow_missing: bool = False) -> SavedSource:
    """Return a first stage that answers from a candidates file (JSONL of Pyserini's REST server or of rank_llm).

    Args:
        path: the candidates file (see `read_candidates`); it holds queries and, as a rule, texts.
        allow_missing: give a query that the file lacks an empty ranking instead of an error.

    Raises:
        FileNotFoundError: no such file; when made, not when first read.
    """
    opened = open_input(path, "candidates")

    @lru_cache(maxsize=2)
    def load(hits: int | None) -> dict[str, Ranking]:
        found = {ranking.query.qid: ranking.cut(hits) if hits else ranking for ranking in read_candidates(opened)}
        if not found:
            raise ValueError(f"{path}: no requests in it; expected one JSON object with query and candidates a line")
        return found

    return SavedSource(opened, load, {"stage": "saved_candidates", "path": str(path)}, None, allow_missing)


@dataclass(frozen=True)
class SavedSource(Source):
    """A saved first stage; made by `saved_run` and `saved_candidates`, and read when first asked."""

    path: Input
    load: Callable[[int | None], dict[str, Ranking]]
    description: dict[str, Any]
    corpus: Input | None
    allow_missing: bool
    hits: int | None = None

    def queries(self) -> list[Query]:
        """Return the queries that it can answer: in the order of the topics, or of the candidates file."""
        return [ranking.query for ranking in self.load(self.hits).values()]

    def retrieve(self, queries: Queries) -> Iterator[Ranking]:
        """Yield one ranking per query; the query's text is the one asked with, the file's may differ.

        Raises:
            ValueError: a qid that the file lacks, unless made with allow_missing.
        """
        known = self.load(self.hits)
        for query in as_queries(queries):
            if query.qid in known:
                yield replace(known[query.qid], query=query)
            elif self.allow_missing:
                yield Ranking(query)
            else:
                raise ValueError(
                    f"{self.path}: no candidates for qid {query.qid} among its {len(known)} queries; retrieve it, or "
                    f"pass allow_missing=True to give it an empty ranking"
                )

    def limited(self, hits: int) -> Source:
        """Return the same source with at most `hits` candidates per query."""
        return replace(self, hits=hits if self.hits is None else min(hits, self.hits))

    def most(self) -> int | None:
        """Return the number of candidates kept per query, or None where it is the file's."""
        return self.hits

    def describe(self) -> dict[str, Any]:
        """Return the file's path and checksum, the queries' checksum, the corpus' and the cutoff."""
        texts = json.dumps([[query.qid, query.text] for query in self.queries()])
        return {
            **self.description,
            "sha256": self.path.sha256,
            "queries_sha256": hashlib.sha256(texts.encode()).hexdigest(),
            "corpus_sha256": None if self.corpus is None else self.corpus.sha256,
            "hits": self.hits,
            "allow_missing": self.allow_missing,
        }


def _add_text(run: dict[str, list[Candidate]], corpus: PathLike, path: PathLike) -> None:
    """Give every candidate its title and text, reading the corpus once and keeping only what the run needs."""
    needed = {candidate.docid for candidates in run.values() for candidate in candidates}
    passages = {passage.docid: passage for passage in read_corpus(corpus) if passage.docid in needed}
    for qid, candidates in run.items():
        for place, candidate in enumerate(candidates):
            passage = passages.get(candidate.docid)
            if passage is None:
                raise ValueError(f"{path}: qid {qid} docid {candidate.docid} is not in {corpus}; is it another corpus?")
            candidates[place] = replace(candidate, text=passage.text, title=passage.title)
