"""What settings of the alignment are worth, on training lists that were not trained on.

    python benchmarks/alignment_settings.py --model MODEL --data ../shared/data --lists runs/evidence/lists \\
        "learning_rate=5e-4" "learning_rate=1e-3 embedding_factor=0.2"

Each quoted group of settings changes those of benchmarks/evidence.py. Trains once per group on the alignment lists of
seed 0, without stopping early, and prints nDCG@10 before and after: on other lists of the same collections, and on
three collections that it did not learn from (MuSiQue and HotpotQA train, RankZephyr's sample graded by its order).
No test collection is read.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from evidence.data import LEARNED, learned_lists, split_lists
from evidence.settings import ALIGNMENT, setting

from headrank_pipeline.align.lists import GradedList, read_lists, write_lists
from headrank_pipeline.align.schedule import TrainingConfig, configured
from headrank_pipeline.align.scorer import ListScorer, mean_ndcg
from headrank_pipeline.align.selection import SelectionConfig, select_heads
from headrank_pipeline.align.trainer import Trainer, TrainingData
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.recipes import recipe_of

OTHERS = ("musique_train", "hotpotqa_train")
DEPTH = 20  # passages of a held-out list
SHORTEST = 10  # passages of a teacher's list that is graded by its order


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of the frozen model")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--lists", type=Path, required=True, help="where training lists are, or are put")
    options.add_argument("--sizes", type=int, nargs=3, default=(60, 211, 60), metavar=("SELECT", "ALIGN", "DEV"))
    options.add_argument("--held-out", type=int, default=100, help="lists of each learned collection")
    options.add_argument("--other", type=int, default=40, help="lists of each other collection")
    options.add_argument("--words", type=int, default=60, help="of a held-out passage")
    options.add_argument("--training-words", type=int, default=60)
    options.add_argument("--num-heads", type=int, default=6)
    options.add_argument("--threads", type=int, help="of torch")
    options.add_argument("settings", nargs="+", metavar="'NAME=VALUE …'")
    chosen = options.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    sizes = dict(zip(("selection", "alignment", "dev"), chosen.sizes, strict=True))
    split = split_lists(chosen.data, chosen.lists, seed=0, **sizes)
    held_out = _held_out(chosen, {graded.qid for graded in split.alignment})
    reading, training = (
        recipe_of(chosen.model).varied({"passage_words": words}) for words in (chosen.words, chosen.training_words)
    )
    selection = SelectionConfig(num_heads=chosen.num_heads, window=1)
    heads = select_heads(load(chosen.model, "all"), training, split.selection, selection).heads
    print(f"heads {' '.join(f'{layer}-{head}' for layer, head in heads.heads)}; lists "
          + ", ".join(f"{name} {len(lists)}" for name, lists in held_out.items()))  # fmt: skip
    _show("before", ListScorer(AttentionReader(load(chosen.model, heads)), reading), held_out)
    for text in chosen.settings:
        started, loaded = time.monotonic(), load(chosen.model, heads)
        changes = {**ALIGNMENT, **dict(setting(part) for part in text.split())}
        with tempfile.TemporaryDirectory() as folder:
            config = configured(TrainingConfig(), changes)
            Trainer(loaded, training, TrainingData(split.alignment), config, directory=folder).run()
        print(f"{text}: {time.monotonic() - started:.0f} s of training")
        _show("after", ListScorer(AttentionReader(loaded), reading), held_out)


def _held_out(chosen: argparse.Namespace, trained_on: set[str]) -> dict[str, list[GradedList]]:
    found = {}
    for name in LEARNED:
        lists = learned_lists(chosen.data, chosen.lists, name)
        found[name] = _first(chosen.held_out, (graded for qid, graded in lists.items() if qid not in trained_on))
    for name in OTHERS:
        folder, path = chosen.data / name, chosen.lists / f"{name}.lists.jsonl"
        if not path.exists():
            write_lists(folder / "candidates.jsonl.gz", folder / "qrels.txt", path)
        found[name] = _first(chosen.other, read_lists(path))
    with gzip.open(chosen.data / "rankzephyr_sample/candidates.jsonl.gz", "rt", encoding="utf-8") as file:
        records = (record for record in map(json.loads, file) if len(record["teacher_ranking"]) >= SHORTEST)
        found["rankzephyr"] = _first(chosen.other, map(_by_teacher, records))
    return found


def _first(count: int, lists: Iterable[GradedList]) -> list[GradedList]:
    """Return the first lists that order something among their first passages."""
    cut = (replace(one, ranking=one.ranking.cut(DEPTH), grades=one.grades[:DEPTH], teacher=None) for one in lists)
    return list(islice((one for one in cut if len(set(one.grades)) > 1), count))


def _by_teacher(record: Mapping[str, Any]) -> GradedList:
    """Grade 3 for the teacher's first two passages, 2 for its first quarter, 1 for its first half."""
    order = record["teacher_ranking"]
    bounds = (2, 0.25 * len(order), 0.5 * len(order))
    grades = {docid: sum(place < bound for bound in bounds) for place, docid in enumerate(order)}
    entries = sorted(record["candidates"], key=lambda entry: entry["docid"])
    passages = [Candidate(e["docid"], -float(place), e["doc"]["text"]) for place, e in enumerate(entries)]
    query = Query(record["query"]["qid"], record["query"]["text"])
    return GradedList(Ranking(query, tuple(passages)), tuple(grades[entry["docid"]] for entry in entries))


def _show(when: str, scorer: ListScorer, held_out: Mapping[str, Sequence[GradedList]]) -> None:
    values = {name: mean_ndcg(scorer, lists) for name, lists in held_out.items()}
    same = sum(values[name] for name in LEARNED) / len(LEARNED)
    other = sum(value for name, value in values.items() if name not in LEARNED) / (len(values) - len(LEARNED))
    parts = " ".join(f"{name} {value:.4f}" for name, value in values.items())
    print(f"  {when:7} learned collections {same:.4f}, others {other:.4f}  ({parts})", flush=True)


if __name__ == "__main__":
    main()
