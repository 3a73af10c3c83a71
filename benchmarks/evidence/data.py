"""What the evidence is made from: test collections that are only evaluated, and training lists split by seed."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from headrank_pipeline.first_stage.index import build_index
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.learn.lists import GradedList, read_lists, save_lists, write_lists
from headrank_pipeline.passages import read_corpus
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import Qrels, read_candidates, read_qrels, read_topics, write_candidates

__all__ = [
    "LEARNED",
    "UNSEEN",
    "Judged",
    "Split",
    "judged_collections",
    "learned_lists",
    "retrieve_apart",
    "shortened",
    "split_lists",
]

UNSEEN = ("scifact", "dl19", "noveleval")
GRADED = ("antique_graded", "cranfield", "nfcorpus_preproc")  # lists of what BM25 finds
OWN = ("hotpotqa_train", "musique_train")  # lists that come with the questions, relevant or not
TAUGHT = "rankzephyr_sample"  # lists in a teacher's order
LEARNED = (*GRADED, *OWN, TAUGHT)
TRAINING_HITS = 30
SHORTEST = 10  # passages of a teacher's list that is graded by its order


@dataclass(frozen=True)
class Judged:
    """A collection that systems are evaluated on, never more.

    Args:
        name: of the collection.
        candidates: what the first stage found, with texts.
        qrels: judgments.
        depth: candidates reranked.
    """

    name: str
    candidates: Path
    qrels: Path
    depth: int


@dataclass(frozen=True)
class Split:
    """The training lists of one seed; no query is in two of them.

    Those of `GRADED` are what BM25 found, as at test time. Judged passages that it missed are left out: they have few
    of the query's words, and beside BM25's unjudged hits they would teach that such words speak against a passage.

    Args:
        selection: to choose heads by.
        alignment: to train on.
        dev: to choose the interpolation weight by.
        files: where they lie, in the same order.
    """

    selection: list[GradedList]
    alignment: list[GradedList]
    dev: list[GradedList]
    files: tuple[Path, Path, Path]


def judged_collections(data: Path, output: Path) -> list[Judged]:
    """Return the unseen collections and the demo; BM25 runs where no candidates come with them.

    Args:
        data: folder of the collections.
        output: candidates that BM25 finds are kept here.
    """
    demo = Path(str(files("headrank_pipeline") / "resources" / "demo"))
    table = [
        Judged("scifact", output / "scifact.jsonl", data / "scifact/qrels/test.tsv", 100),
        Judged("dl19", data / "dl19/candidates.jsonl.gz", data / "dl19/qrels.txt", 100),
        Judged("noveleval", data / "noveleval/candidates_bm25order.jsonl.gz", data / "noveleval/qrels.txt", 20),
        Judged("demo", output / "demo.jsonl", demo / "qrels.tsv", 20),
    ]
    retrieve_apart(data / "scifact", data / "scifact/corpus.jsonl.gz", table[0].qrels, table[0].candidates, 100)
    retrieve_apart(demo, demo / "corpus.jsonl", table[3].qrels, table[3].candidates, 20)
    return table


def shortened(collection: Judged, output: Path, queries: int) -> Judged:
    """Return a collection's first judged queries as files of their own in `output`."""
    stem = f"{collection.name}-first-{queries}"
    candidates, qrels = output / f"{stem}.jsonl", output / f"{stem}.qrels"
    if not candidates.exists():
        grades = read_qrels(collection.qrels)
        judged = (ranking for ranking in read_candidates(collection.candidates) if ranking.query.qid in grades)
        kept = list(islice(judged, queries))
        _write_qrels(qrels, {ranking.query.qid: grades[ranking.query.qid] for ranking in kept})
        write_candidates(candidates, kept)
    return replace(collection, candidates=candidates, qrels=qrels)


def split_lists(data: Path, output: Path, *, seed: int, selection: int, alignment: int, dev: int) -> Split:
    """Return the training lists of a seed: equal shares of every training collection, queries drawn at random.

    Args:
        data: folder of the collections.
        output: lists are kept here.
        seed: of the draw.
        selection: lists to choose heads by.
        alignment: lists to train on.
        dev: lists to choose the weight by.

    Raises:
        ValueError: a collection with fewer queries than are asked of it.
    """
    names = ("selection", "alignment", "dev")
    places = tuple(output / f"seed-{seed}" / f"{name}.jsonl" for name in names)
    if not all(place.exists() for place in places):
        parts: tuple[list[GradedList], ...] = ([], [], [])
        for number, name in enumerate(LEARNED):
            found = learned_lists(data, output, name)
            shares = [total // len(LEARNED) + (number < total % len(LEARNED)) for total in (selection, alignment, dev)]
            qids = sorted(found)
            if len(qids) < sum(shares):
                raise ValueError(f"{name}: {len(qids)} queries with two grades, {sum(shares)} are asked for")
            random.Random(f"{seed}/{name}").shuffle(qids)
            for part, share in zip(parts, shares, strict=True):
                part += [found[qid] for qid in qids[:share]]
                qids = qids[share:]
        for place, part in zip(places, parts, strict=True):
            save_lists(place, part)
    first, second, third = (read_lists(place) for place in places)
    return Split(first, second, third, places)


def learned_lists(data: Path, output: Path, name: str) -> dict[str, GradedList]:
    """Return the graded lists of a training collection, qid -> list; a qid starts with the collection's name."""
    if name == TAUGHT:
        with gzip.open(data / name / "candidates.jsonl.gz", "rt", encoding="utf-8") as file:
            records = [record for record in map(json.loads, file) if len(record["teacher_ranking"]) >= SHORTEST]
        found = map(by_teacher, records)
    elif name in OWN:
        path = output / f"{name}.lists.jsonl"
        if not path.exists():
            write_lists(data / name / "candidates.jsonl.gz", data / name / "qrels.txt", path)
        found = iter(read_lists(path))
    else:
        found = iter(_lists_of_bm25(data, output, name))
    return {f"{name}/{graded.qid}": _renamed(graded, f"{name}/{graded.qid}") for graded in found}


def by_teacher(record: Mapping[str, Any]) -> GradedList:
    """Grade 3 for the teacher's first two passages, 2 for its first quarter, 1 for its first half."""
    order = record["teacher_ranking"]
    bounds = (2, 0.25 * len(order), 0.5 * len(order))
    grades = {docid: sum(place < bound for bound in bounds) for place, docid in enumerate(order)}
    entries = sorted(record["candidates"], key=lambda entry: entry["docid"])
    passages = [Candidate(e["docid"], -float(place), e["doc"]["text"]) for place, e in enumerate(entries)]
    query = Query(record["query"]["qid"], record["query"]["text"])
    return GradedList(Ranking(query, tuple(passages)), tuple(grades[entry["docid"]] for entry in entries))


def _lists_of_bm25(data: Path, output: Path, name: str) -> list[GradedList]:
    folder, made = data / name, output / name
    qrels, candidates, lists = (made.with_suffix(ending) for ending in (".qrels", ".jsonl", ".lists.jsonl"))
    corpus = folder / "corpus.jsonl.gz"
    if not lists.exists():
        _write_qrels(qrels, _graded_enough(name, folder, {passage.docid for passage in read_corpus(corpus)}))
        retrieve_apart(folder, corpus, qrels, candidates, TRAINING_HITS)
        write_lists(candidates, qrels, lists)
    return list(read_lists(lists))


def _renamed(graded: GradedList, qid: str) -> GradedList:
    """Return the list under a qid that no other collection has."""
    ranking = graded.ranking
    return replace(graded, ranking=replace(ranking, query=replace(ranking.query, qid=qid)))


def _graded_enough(name: str, folder: Path, docids: set[str]) -> Qrels:
    """Return the judgments of queries that tell relevant passages apart: two grades above 0 at least.

    ANTIQUE's lowest label, 1, means "out of context or nonsense", so its grades are labels less 1 (three labels then
    are two grades above 0, or two and a 0). Judged documents that the pre-processed NFCorpus lacks are left out.
    """
    file = {"antique_graded": "train.tsv", "cranfield": "test.tsv", "nfcorpus_preproc": "train.tsv.gz"}[name]
    less = 1 if name == "antique_graded" else 0
    grades = {
        qid: {docid: grade - less for docid, grade in judged.items() if docid in docids}
        for qid, judged in read_qrels(folder / "qrels" / file).items()
    }
    return {qid: judged for qid, judged in grades.items() if len({*judged.values()} - {0}) >= 2}


def _write_qrels(path: Path, qrels: Qrels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{qid} 0 {docid} {grade}\n" for qid, judged in qrels.items() for docid, grade in judged.items()]
    path.write_text("".join(lines), encoding="utf-8")


def retrieve_apart(folder: Path, corpus: Path, qrels: Path, output: Path, hits: int) -> None:
    """Run BM25 in a process of its own, so that Java's memory is free again when models are read."""
    if output.exists():
        return
    process = multiprocessing.get_context("spawn").Process(target=_retrieve, args=(folder, corpus, qrels, output, hits))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"BM25 over {corpus} ended with exit code {process.exitcode}; its message is above")


def _retrieve(folder: Path, corpus: Path, qrels: Path, output: Path, hits: int) -> None:
    index = output.with_suffix(".index")
    if not index.exists():
        build_index(corpus, index)
    judged = read_qrels(qrels)
    queries = [query for query in read_topics(folder / "queries.jsonl") if query.qid in judged]
    write_candidates(output, bm25(index, hits=hits).retrieve(queries))
