"""What the embedded model is distilled on: passages, and queries made of them, all without a judgment.

Passages come from the training collections, from a few Wikipedia articles that the package gensim carries for its own
tests, and from WordNet's definitions. Queries are the collections' training queries, and pieces of the passages
themselves: a sentence, a run of words, some of the rarer words, a title.
"""

from __future__ import annotations

import bz2
import importlib.util
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headrank_pipeline.passages import read_corpus
from headrank_pipeline.trec import read_candidates, read_qrels, read_topics

__all__ = ["COLLECTIONS", "Passage", "Texts", "TrainingQuery", "asked_of", "gather"]

# SciFact is left out although it has training queries: it stays a collection that the model has not seen.
COLLECTIONS = ("antique_graded", "cranfield", "musique_train", "hotpotqa_train", "nfcorpus_preproc")
TEACHER_ORDERS = "rankzephyr_sample"
TITLED = ("hotpotqa_train", "musique_train", "cranfield", "wikipedia")
DEFINITIONS = 40_000
WORDS = 110  # of a passage; longer texts are split
WORDNET = Path("/usr/share/wordnet")
_WIKIPEDIA = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

_COMMON = frozenset(
    re.findall(
        r"\w+",
        "the a an of and to in is for on with as by at from that this it be are was were or not has have had "
        "its which can will they their he she his her you your i we our do does if but so than then there "
        "these those what when where who how why into about also may more most such other some any one two "
        "been no all",
    )
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A text of about a hundred words at most."""

    source: str
    title: str
    text: str

    @property
    def shown(self) -> str:
        """The passage as it stands in a prompt; a defined word is not shown, so that it can be asked for."""
        return f"{self.title}\n{self.text}" if self.title and self.source != "wordnet" else self.text


@dataclass(frozen=True, slots=True)
class TrainingQuery:
    """A query, and the index of the passage that it was made of (None: a query of a collection)."""

    text: str
    passage: int | None


@dataclass(frozen=True, slots=True)
class Texts:
    """Passages (definitions last) and queries."""

    passages: list[Passage]
    queries: list[TrainingQuery]

    @property
    def definitions_from(self) -> int:
        """Index of the first definition."""
        return next((i for i, passage in enumerate(self.passages) if passage.source == "wordnet"), len(self.passages))

    def save(self, path: Path) -> None:
        """Write what was gathered, for a look at it and for the next time."""
        record = {
            "passages": [[passage.source, passage.title, passage.text] for passage in self.passages],
            "queries": [[query.text, query.passage] for query in self.queries],
        }
        path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Texts:
        """Read what `save` wrote."""
        record = json.loads(path.read_text(encoding="utf-8"))
        passages = [Passage(*fields) for fields in record["passages"]]
        return cls(passages, [TrainingQuery(*fields) for fields in record["queries"]])


def gather(data: Path, *, wordnet: Path = WORDNET, seed: int, definitions: int = DEFINITIONS) -> Texts:
    """Return all passages and queries.

    Args:
        data: the folder of the collections.
        wordnet: folder with WordNet's ``data.noun`` and its siblings (Debian: ``apt-get install wordnet-base``).
        seed: of the draws.
        definitions: of WordNet, at most.

    Raises:
        FileNotFoundError: no WordNet there.
        ModuleNotFoundError: gensim is not installed.
    """
    chance = random.Random(seed)
    passages = [part for name in COLLECTIONS for part in _collection(data, name, chance)]
    passages += _without_title(data)
    passages += [part for title, text in _wikipedia() for part in _split("wikipedia", title, text, chance)]
    defined = list(_definitions(wordnet))
    chance.shuffle(defined)
    passages += defined[:definitions]
    queries = [query for index, passage in enumerate(passages) for query in asked_of(index, passage, chance)]
    queries += [TrainingQuery(text, None) for text in _collection_queries(data)]
    return Texts(passages, queries)


def _collection(data: Path, name: str, chance: random.Random) -> Iterator[Passage]:
    for passage in read_corpus(data / name / "corpus.jsonl.gz"):
        if name == "nfcorpus_preproc":  # pre-processed beyond reading: one piece of each is enough
            yield Passage(name, "", " ".join(passage.text.split()[: WORDS - 10]))
        else:
            yield from _split(name, passage.title or "", passage.text, chance)


def _without_title(data: Path) -> list[Passage]:
    rankings = read_candidates(data / TEACHER_ORDERS / "candidates.jsonl.gz")
    texts = dict.fromkeys(candidate.text or "" for ranking in rankings for candidate in ranking.candidates)
    return [Passage(TEACHER_ORDERS, "", text) for text in texts if len(text.split()) > 5]


def _split(source: str, title: str, text: str, chance: random.Random) -> Iterator[Passage]:
    words = text.split()
    if len(words) < 6:
        return
    if len(words) <= 1.5 * WORDS:
        yield Passage(source, title, text)
        return
    for start in range(0, len(words) - WORDS // 2, WORDS):
        titled = start == 0 or chance.random() < 0.5
        yield Passage(source, title if titled else "", " ".join(words[start : start + WORDS]))


def _wikipedia() -> Iterator[tuple[str, str]]:
    """Yield title and text of the sections of 200 articles, wiki markup taken off."""
    found = importlib.util.find_spec("gensim")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("the Wikipedia articles come with gensim: pip install --no-deps gensim")
    markup = bz2.decompress((Path(found.submodule_search_locations[0]) / _WIKIPEDIA).read_bytes()).decode("utf-8")
    for page in re.findall(r"<page>.*?</page>", markup, re.S):
        title, body = re.search(r"<title>(.*?)</title>", page), re.search(r"<text[^>]*>(.*?)</text>", page, re.S)
        if not title or not body:
            continue
        for section in re.split(r"\n=+[^=\n]+=+\n", _plain(body[1])):
            gathered: list[str] = []
            for paragraph in section.split("\n"):
                if len(paragraph.split()) > 25 and paragraph[0] not in "*#|:{!;":
                    gathered += paragraph.split()
                if len(gathered) > 70:
                    yield title[1], " ".join(gathered)
                    gathered = []
            if len(gathered) > 20:
                yield title[1], " ".join(gathered)


def _plain(text: str) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&"), ("&nbsp;", " ")):
        text = text.replace(entity, character)
    text = text.replace("&nbsp;", " ")
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<[^>]+>", " ", text, flags=re.S)
    for _ in range(4):  # templates stand inside each other
        text = re.sub(r"\{\{[^{}]*\}\}", " ", text)
    text = re.sub(r"\{\|.*?\|\}", " ", text, flags=re.S)
    text = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", " ", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]", r"\1", text)
    return re.sub(r"'{2,}", "", re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text))


def _definitions(wordnet: Path) -> Iterator[Passage]:
    for kind in ("noun", "verb", "adj", "adv"):
        path = wordnet / f"data.{kind}"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: apt-get install wordnet-base, or name --wordnet FOLDER")
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):  # the licence
                continue
            head, _, gloss = line.partition(" | ")
            entry = head.split()
            words = [entry[4 + 2 * place].replace("_", " ") for place in range(int(entry[3], 16))]
            if len(gloss.split()) >= 7:
                yield Passage("wordnet", ", ".join(words[:3]), gloss.strip())


def asked_of(index: int, passage: Passage, chance: random.Random) -> Iterator[TrainingQuery]:
    """Yield queries made of a passage: a sentence, a run of words, some rarer words, its title."""
    words = passage.text.split()
    if passage.source == "wordnet":
        yield TrainingQuery(chance.choice(passage.title.split(", ")), index)
        yield TrainingQuery(_run(words, chance.randint(4, 9), chance), index)
        return
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", passage.text) if 4 <= len(part.split()) <= 30]
    if sentences:
        yield TrainingQuery(chance.choice(sentences), index)
    yield TrainingQuery(_run(words, chance.randint(4, 12), chance), index)
    bare = [re.sub(r"[^A-Za-z0-9-]", "", word) for word in words]
    telling = [word for word in bare if len(word) > 3 and word.lower() not in _COMMON]
    if len(telling) >= 4:
        yield TrainingQuery(" ".join(chance.sample(telling, chance.randint(2, 4))).lower(), index)
    if passage.title and passage.source in TITLED:
        yield TrainingQuery(passage.title, index)


def _run(words: list[str], length: int, chance: random.Random) -> str:
    length = min(len(words), length)
    start = chance.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _collection_queries(data: Path) -> Iterator[str]:
    for name in COLLECTIONS:
        held_out = set()
        if name == "nfcorpus_preproc":
            held_out = {qid for part in ("test", "dev") for qid in read_qrels(data / name / f"qrels/{part}.tsv")}
        yield from (query.text for query in read_topics(data / name / "queries.jsonl") if query.qid not in held_out)
    yield from (ranking.query.text for ranking in read_candidates(data / TEACHER_ORDERS / "candidates.jsonl.gz"))
