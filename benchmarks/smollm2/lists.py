"""The training lists of one seed: for selecting heads, for aligning them, and for choosing BM25's weight."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from evidence.data import learned_lists

from headrank_pipeline.learn.lists import GradedList, read_lists, save_lists, write_lists

__all__ = ["COLLECTIONS", "Lists", "all_lists", "drawn"]

# Queries of each collection for selection, alignment and dev. TREC DL 2023 leads: it is the paper's kind of training
# data. NFCorpus is left out, its text has lost its small words. The alignment lists are 211, as many as the paper's.
COLLECTIONS: Mapping[str, tuple[int, int, int]] = {
    "dl23": (8, 58, 11),
    "antique_graded": (8, 52, 16),
    "cranfield": (8, 26, 16),
    "hotpotqa_train": (8, 25, 12),
    "musique_train": (8, 29, 12),
    "rankzephyr_sample": (8, 21, 12),
}


@dataclass(frozen=True)
class Lists:
    """Graded lists of one seed, no query in two of them, and the files they lie in."""

    selection: list[GradedList]
    alignment: list[GradedList]
    dev: list[GradedList]
    files: tuple[Path, Path, Path]


def drawn(data: Path, output: Path, seed: int) -> Lists:
    """Return the lists of a seed; they are drawn once and then read from their files."""
    places = tuple(output / f"seed-{seed}" / f"{name}.jsonl" for name in ("selection", "alignment", "dev"))
    if not all(place.exists() for place in places):
        parts: tuple[list[GradedList], ...] = ([], [], [])
        for name, shares in COLLECTIONS.items():
            found = all_lists(data, output, name)
            qids = sorted(found)
            random.Random(f"{seed}/{name}").shuffle(qids)
            if len(qids) < sum(shares):
                raise ValueError(f"{name}: {len(qids)} queries with two grades, {sum(shares)} are asked for")
            for part, share in zip(parts, shares, strict=True):
                part += [found[qid] for qid in qids[:share]]
                qids = qids[share:]
        for place, part in zip(places, parts, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            save_lists(place, part)
    first, second, third = (read_lists(place) for place in places)
    return Lists(first, second, third, places)


def all_lists(data: Path, output: Path, name: str) -> dict[str, GradedList]:
    """Return the graded lists of a training collection, qid -> list."""
    if name != "dl23":
        return learned_lists(data, output, name)
    path = output / "dl23.lists.jsonl"
    if not path.exists():
        # Unjudged passages are dropped: most of BM25's hundred are, and graded 0 they would teach what nobody said.
        write_lists(data / name / "candidates.jsonl.gz", data / name / "qrels.txt", path, unjudged="drop")
    found = (_without_copies(graded) for graded in read_lists(path))
    return {f"dl23/{graded.qid}": _renamed(graded) for graded in found if len(set(graded.grades)) > 1}


def _without_copies(graded: GradedList) -> GradedList:
    """Return the list with each text once; a tenth of DL 2023's passages are copies, some with another grade."""
    first: dict[str, int] = {}
    for place, candidate in enumerate(graded.ranking.candidates):
        first.setdefault(candidate.text or "", place)
    kept = first.values()
    ranking = replace(graded.ranking, candidates=tuple(graded.ranking.candidates[place] for place in kept))
    return replace(graded, ranking=ranking, grades=tuple(graded.grades[place] for place in kept))


def _renamed(graded: GradedList) -> GradedList:
    query = replace(graded.ranking.query, qid=f"dl23/{graded.qid}")
    return replace(graded, ranking=replace(graded.ranking, query=query))
