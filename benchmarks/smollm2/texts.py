"""What SmolLM2's heads are distilled on: passages, and queries with or without candidates, all without a judgment."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from embedded_model.texts import Passage, asked_of, gather

from headrank_pipeline.records import Ranking
from headrank_pipeline.trec import read_candidates
from smollm2.lists import COLLECTIONS, all_lists

__all__ = ["Question", "Texts", "gathered"]

# Test collections are not among them, not even their passages.
_WITH_CANDIDATES = ("dl23", "rankzephyr_sample")  # whole candidate files; of the others the graded lists
_NFCORPUS_QUERIES = 300
_FEWEST_CANDIDATES = 6
_WORDS = 120


@dataclass(frozen=True, slots=True)
class Question:
    """A query: made of a passage, or of a collection and then with the candidates of its first stage."""

    text: str
    passage: int | None
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Texts:
    """Passages and questions; `sources` says where each passage is from."""

    passages: list[str]
    sources: list[str]
    questions: list[Question]


def gathered(data: Path, output: Path, *, seed: int) -> Texts:
    """Return passages of the training collections, of Wikipedia and of WordNet, and questions about them."""
    chance = random.Random(seed)
    base = gather(data, seed=seed, definitions=4_000)
    texts = Texts(
        [passage.shown for passage in base.passages],
        [passage.source for passage in base.passages],
        [Question(query.text, query.passage) for query in base.queries if query.passage is not None],
    )
    index: dict[str, int] = {}
    for place, shown in enumerate(texts.passages):
        index.setdefault(shown, place)
    for name in _WITH_CANDIDATES:
        for ranking in read_candidates(data / name / "candidates.jsonl.gz"):
            _add(texts, index, name, ranking, chance)
    for name in (name for name in COLLECTIONS if name not in _WITH_CANDIDATES):
        for graded in all_lists(data, output, name).values():
            _add(texts, index, name, graded.ranking, chance)
    few = list(all_lists(data, output, "nfcorpus_preproc").values())
    chance.shuffle(few)
    for graded in few[:_NFCORPUS_QUERIES]:
        _add(texts, index, "nfcorpus", graded.ranking, chance)
    return texts


def _add(texts: Texts, index: dict[str, int], name: str, ranking: Ranking, chance: random.Random) -> None:
    """Add a collection's query with its candidates, and questions made of passages that are new."""
    places = []
    for candidate in ranking.candidates:
        body = " ".join((candidate.text or "").split()[:_WORDS])
        shown = f"{candidate.title}\n{body}" if candidate.title else body
        if shown not in index:
            index[shown] = len(texts.passages)
            texts.passages.append(shown)
            texts.sources.append(name)
            made = asked_of(index[shown], Passage(name, "", shown), chance)
            texts.questions.extend(Question(query.text, query.passage) for query in made)
        places.append(index[shown])
    distinct = tuple(dict.fromkeys(places))
    if len(distinct) >= _FEWEST_CANDIDATES:
        texts.questions.append(Question(ranking.query.text, None, distinct))
