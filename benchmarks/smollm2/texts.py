"""What SmolLM2's heads are distilled on: passages, and queries with or without candidates, all without a judgment.

Beside the collections stand texts that Debian carries: two dictionaries (`dict-foldoc`, of computing, and
`dict-gcide`), and the descriptions of its packages. A description has a synopsis that a person wrote: a query in other
words.
"""

from __future__ import annotations

import gzip
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from embedded_model.texts import Passage, asked_of, gather

from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.records import Candidate, Ranking
from headrank_pipeline.trec import read_candidates
from smollm2.lists import COLLECTIONS, all_lists

__all__ = ["Question", "Texts", "drawn", "gathered", "longer", "shown", "with_judged"]

# Test collections are not among them, not even their passages.
_WITH_CANDIDATES = ("dl23", "rankzephyr_sample")  # whole candidate files; of the others the graded lists
_FEWEST_CANDIDATES = 6
_WORDS = 220
_DICTIONARIES = Path("/usr/share/dictd")
_OF_DICTIONARIES = {"foldoc": 5_000, "gcide": 3_000}
_PACKAGES = 6_000
_FEWEST_WORDS = 18
# What one distillation on two cores gets through. NFCorpus is left out: its text has lost its small words.
_MOST = {"antique_graded": 3_500, "cranfield": 1_200, "wikipedia": 3_200, "packages": 3_200, "foldoc": 2_500,
         "gcide": 800, "wordnet": 600, "nfcorpus_preproc": 0}  # fmt: skip
_ASKED = 2


@dataclass(frozen=True, slots=True)
class Question:
    """A query: made of a passage, or of a collection and then with candidates and, if it is judged, their grades."""

    text: str
    passage: int | None
    candidates: tuple[int, ...] = ()
    grades: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Texts:
    """Passages and questions; `sources` says where each passage is from."""

    passages: list[str]
    sources: list[str]
    questions: list[Question]


def gathered(data: Path, output: Path, *, seed: int) -> Texts:
    """Return passages of the training collections, Wikipedia, dictionaries and Debian, and questions about them.

    Raises:
        FileNotFoundError: a dictionary, or the descriptions of the packages, are not there; it says how to get them.
    """
    chance = random.Random(seed)
    base = gather(data, seed=seed, definitions=4_000)
    texts = Texts(
        [passage.shown for passage in longer(base.passages, chance)],
        [passage.source for passage in base.passages],
        [Question(query.text, query.passage) for query in base.queries if query.passage is not None],
    )
    index: dict[str, int] = {}
    for place, text in enumerate(texts.passages):
        index.setdefault(text, place)
    for name in _WITH_CANDIDATES:
        for ranking in read_candidates(data / name / "candidates.jsonl.gz"):
            _add(texts, index, name, ranking, chance)
    for name in (name for name in COLLECTIONS if name not in _WITH_CANDIDATES):
        for graded in all_lists(data, output, name).values():
            _add(texts, index, name, graded.ranking, chance)
    for passage, asked in _of_debian(chance):
        place = len(texts.passages)
        texts.passages.append(passage.shown)
        texts.sources.append(passage.source)
        texts.questions.extend(Question(text, place) for text in asked)
        texts.questions.extend(Question(query.text, place) for query in asked_of(place, passage, chance))
    return texts


def longer(passages: Sequence[Passage], chance: random.Random) -> Iterator[Passage]:
    """Yield the passages, half of Wikipedia's pieces with as much of the next one of their article as makes them long.

    Without them nothing but Cranfield's abstracts would be as long as what is searched often is.
    """
    for passage, following in zip_longest(passages, passages[1:]):
        goes_on = following is not None and following.source == "wikipedia" and following.title in ("", passage.title)
        if passage.source == "wikipedia" and goes_on and chance.random() < 0.5:
            words = f"{passage.text} {following.text}".split()
            yield replace(passage, text=" ".join(words[: chance.randint(130, _WORDS)]))
        else:
            yield passage


def drawn(texts: Texts, *, seed: int) -> Texts:
    """Return as much of the texts as a distillation sees: whole collection queries first, two questions a passage."""
    chance = random.Random(seed)
    free = [question for question in texts.questions if question.passage is None]
    chance.shuffle(free)
    room, kept, taken = dict(_MOST), set[int](), []
    for question in free:
        name = texts.sources[question.candidates[0]]
        if room.get(name, 1) <= 0:
            continue
        if name in room:
            room[name] -= len(set(question.candidates) - kept)
        kept.update(question.candidates)
        taken.append(question)
    others: dict[str, list[int]] = {}
    for place, name in enumerate(texts.sources):
        if place not in kept and _MOST.get(name) != 0:
            others.setdefault(name, []).append(place)
    for name, places in others.items():
        kept.update(chance.sample(places, max(0, min(room.get(name, len(places)), len(places)))))
    order = sorted(kept)
    index = {place: number for number, place in enumerate(order)}
    asked: dict[int, list[Question]] = {}
    for question in texts.questions:
        if question.passage in index:
            asked.setdefault(question.passage, []).append(question)
    questions = [Question(one.text, None, tuple(index[place] for place in one.candidates)) for one in taken]
    for place, made in asked.items():
        some = made if len(made) <= _ASKED else chance.sample(made, _ASKED)
        questions += [Question(question.text, index[place]) for question in some]
    return Texts([texts.passages[place] for place in order], [texts.sources[place] for place in order], questions)


def with_judged(texts: Texts, lists: Sequence[GradedList]) -> Texts:
    """Return the texts with grades for the collections' queries that are judged, as far as all passages are there."""
    index: dict[str, int] = {}
    for place, text in enumerate(texts.passages):
        index.setdefault(text, place)
    grades: dict[str, dict[int, int]] = {}
    for graded in lists:
        found: dict[int, int] = {}
        for candidate, grade in zip(graded.ranking.candidates, graded.grades, strict=True):
            found.setdefault(index.get(shown(candidate), -1), grade)
        if -1 not in found and len(set(found.values())) > 1:
            grades[graded.ranking.query.text] = found
    questions = [
        replace(question, candidates=tuple(known), grades=tuple(known.values()))
        if question.passage is None and (known := grades.get(question.text))
        else question
        for question in texts.questions
    ]
    return replace(texts, questions=questions)


def _of_debian(chance: random.Random) -> Iterator[tuple[Passage, list[str]]]:
    """Yield passages, each with what it can be asked for by: its headword, or its synopsis."""
    for name, wanted in _OF_DICTIONARIES.items():
        entries = list(_entries(name))
        for head, text in chance.sample(entries, min(wanted, len(entries))):
            # A headword that is not shown has to be found by its meaning.
            yield Passage(name, head if chance.random() < 0.5 else "", text), [head]
    described = list(_descriptions())
    for synopsis, text in chance.sample(described, min(_PACKAGES, len(described))):
        yield Passage("packages", "", text), [synopsis]


def _entries(name: str) -> Iterator[tuple[str, str]]:
    """Yield headword and definition of the entries of a dictionary that are long enough to be passages."""
    path = _DICTIONARIES / f"{name}.dict.dz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: apt-get install dict-{name}")
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        for entry in re.split(r"\n(?=\S)", lines.read()):
            head, _, body = entry.partition("\n")
            head = head.split(" \\")[0].strip()
            for _ in range(3):  # notes on where a word comes from stand inside each other
                body = re.sub(r"\[[^\[\]]*\]", "", body)
            body = re.sub(r"--[A-Z][\w. ]*\.|\(\d{4}-\d\d-\d\d\)|[{}]", "", body)
            words = body.split()
            if len(words) >= _FEWEST_WORDS and len(head) > 2:
                yield head, " ".join(words[:_WORDS])


def _descriptions() -> Iterator[tuple[str, str]]:
    """Yield synopsis and description of Debian's packages; parts of one program often share theirs, and count once."""
    files = sorted(Path("/var/lib/apt/lists").glob("*_i18n_Translation-en*"))
    if not files:
        raise FileNotFoundError("no descriptions of packages: apt-get -o Acquire::Languages=en update")
    known: set[str] = set()
    for path in files:
        found = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", path], capture_output=True, check=True)
        for part in found.stdout.decode("utf-8", "replace").split("\n\n"):
            synopsis, _, text = part.partition("Description-en: ")[2].partition("\n")
            paragraphs = re.split(r"\n \.\n", text)
            words = " ".join(paragraphs).split()
            about_itself = text.lstrip().startswith(("This package", "This metapackage"))
            if len(words) >= _FEWEST_WORDS and paragraphs[0] not in known and not about_itself:
                known.add(paragraphs[0])
                yield re.sub(r" \([^)]*\)$", "", synopsis), " ".join(words[:_WORDS])


def _add(texts: Texts, index: dict[str, int], name: str, ranking: Ranking, chance: random.Random) -> None:
    """Add a collection's query with its candidates, and questions made of passages that are new."""
    places = []
    for candidate in ranking.candidates:
        text = shown(candidate)
        if text not in index:
            index[text] = len(texts.passages)
            texts.passages.append(text)
            texts.sources.append(name)
            made = asked_of(index[text], Passage(name, "", text), chance)
            texts.questions.extend(Question(query.text, query.passage) for query in made)
        places.append(index[text])
    distinct = tuple(dict.fromkeys(places))
    if len(distinct) >= _FEWEST_CANDIDATES:
        texts.questions.append(Question(ranking.query.text, None, distinct))


def shown(candidate: Candidate) -> str:
    """Return a candidate as a passage of the training stands in a prompt."""
    body = " ".join((candidate.text or "").split()[:_WORDS])
    return f"{candidate.title}\n{body}" if candidate.title else body
