"""What the model learns from: short candidate lists with a share of attention that each passage should get."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from embedded_model.lists import Collection
from headrank_pipeline.first_stage.lexical import bm25
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.trec import read_candidates, read_corpus, write_candidates

__all__ = ["TITLED", "Lesson", "graded_lessons", "sampled", "title_lessons"]

TITLED = ("scifact", "cranfield", "musique_train", "hotpotqa_train")
NEIGHBOURS = 24


@dataclass(frozen=True)
class Lesson:
    """A query, passages that answer it with their grades, and passages that do not."""

    query: Query
    positives: tuple[tuple[Candidate, int], ...]
    negatives: tuple[Candidate, ...]


def graded_lessons(collection: Collection) -> list[Lesson]:
    """Return a lesson for every query of which BM25 found at least one relevant passage."""
    lessons = []
    for ranking in collection.rankings:
        graded = list(zip(ranking.candidates, collection.grades(ranking), strict=True))
        positives = tuple((candidate, grade) for candidate, grade in graded if grade > 0)
        negatives = tuple(candidate for candidate, grade in graded if grade == 0)
        if positives and len(negatives) >= 4:
            lessons.append(Lesson(ranking.query, positives, negatives))
    return lessons


def title_lessons(data: Path, name: str, cache: Path) -> list[Lesson]:
    """Return lessons whose query is a document's title and whose answer is its text without the title."""
    path = cache / f"{name}-titles.jsonl"
    if not path.exists():
        titles = {passage.docid: passage.title for passage in read_corpus(data / name / "corpus.jsonl.gz")}
        queries = [Query(docid, title) for docid, title in titles.items() if title and len(title.split()) > 1]
        write_candidates(path, bm25(cache / f"{name}-index", hits=NEIGHBOURS).retrieve(queries))
    lessons = []
    for ranking in read_candidates(path):
        own = [candidate for candidate in ranking.candidates if candidate.docid == ranking.query.qid]
        others = tuple(c for c in ranking.candidates if c.docid != ranking.query.qid and c.title != ranking.query.text)
        if own and own[0].text and len(others) >= 4:
            lessons.append(Lesson(ranking.query, ((replace(own[0], title=None), 1),), others))
    return lessons


def sampled(lesson: Lesson, chance: random.Random, *, passages: int, words: int) -> tuple[Ranking, np.ndarray]:
    """Return a short list in random order and the share of each passage, summing to 1.

    One to three positives (never more than a third of the list), the rest negatives, hard ones preferred; every text
    is cut to `words` words.
    """
    count = min(len(lesson.positives), chance.choice((1, 1, 2, 3)), passages // 3)
    chosen = chance.sample(lesson.positives, count)
    missing = min(passages - count, len(lesson.negatives))
    pool = lesson.negatives[: max(missing, chance.choice((missing, 2 * passages, 100)))]
    listed = [*chosen, *((candidate, 0) for candidate in chance.sample(pool, missing))]
    chance.shuffle(listed)
    untitled = len(lesson.positives) == 1 and lesson.positives[0][0].title is None
    shown = [_cut(candidate, words, untitled) for candidate, _ in listed]
    shares = np.array([float(grade) for _, grade in listed])
    return Ranking(lesson.query, tuple(shown)), shares / shares.sum()


def _cut(candidate: Candidate, words: int, untitled: bool) -> Candidate:
    text = " ".join((candidate.text or "").split()[:words])
    return replace(candidate, text=text, score=0.0, title=None if untitled else candidate.title)
