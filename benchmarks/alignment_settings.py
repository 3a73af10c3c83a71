"""What settings of the alignment are worth, on training lists that were not trained on.

    python benchmarks/alignment_settings.py --model MODEL --data ../shared/data --lists runs/evidence/lists \\
        "learning_rate=5e-4" "learning_rate=1e-3 embedding_factor=0.2"

Each quoted group of settings changes those of benchmarks/evidence.py. Trains once per group on the alignment lists of
one seed, and prints nDCG@10 before and after on other lists of the same collections. No test collection is read.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from evidence.data import LEARNED, learned_lists, split_lists
from evidence.settings import ALIGNMENT, setting

from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.model_files import recipe_of
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.learn.lists import GradedList
from headrank_pipeline.learn.schedule import TrainingConfig, configured
from headrank_pipeline.learn.scorer import ListScorer, mean_ndcg
from headrank_pipeline.learn.selection import select_heads
from headrank_pipeline.learn.settings import SelectionConfig
from headrank_pipeline.learn.trainer import Trainer, TrainingData

DEPTH = 20  # passages of a held-out list


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of the frozen model")
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--lists", type=Path, required=True, help="where training lists are, or are put")
    options.add_argument("--sizes", type=int, nargs=3, default=(60, 211, 120), metavar=("SELECT", "ALIGN", "DEV"))
    options.add_argument("--held-out", type=int, default=100, help="lists of each collection, at most")
    options.add_argument("--seed", type=int, default=0, help="of the lists that are drawn, and of the training")
    options.add_argument("--words", type=int, default=60, help="of a held-out passage")
    options.add_argument("--training-words", type=int, default=60)
    options.add_argument("--num-heads", type=int, default=6)
    options.add_argument("--threads", type=int, help="of torch")
    options.add_argument("settings", nargs="+", metavar="'NAME=VALUE …'")
    chosen = options.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    sizes = dict(zip(("selection", "alignment", "dev"), chosen.sizes, strict=True))
    split = split_lists(chosen.data, chosen.lists, seed=chosen.seed, **sizes)
    trained_on = {graded.qid for graded in split.alignment}
    held_out = held_out_lists(chosen.data, chosen.lists, trained_on, count=chosen.held_out)
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
        changes = {**ALIGNMENT, "seed": chosen.seed, **dict(setting(part) for part in text.split())}
        with tempfile.TemporaryDirectory() as folder:
            config = configured(TrainingConfig(), changes)
            Trainer(loaded, training, TrainingData(split.alignment), config, directory=folder).run()
        print(f"{text}: {time.monotonic() - started:.0f} s of training")
        _show("after", ListScorer(AttentionReader(loaded), reading), held_out)


def held_out_lists(data: Path, kept: Path, without: set[str], *, count: int) -> dict[str, list[GradedList]]:
    """Return training collection -> lists of at most 20 passages.

    Args:
        data: folder of the collections.
        kept: where lists are, or are put.
        without: qids to leave out, those that were trained on.
        count: lists of each collection, at most.
    """
    found = {}
    for name in LEARNED:
        lists = (graded for qid, graded in learned_lists(data, kept, name).items() if qid not in without)
        cut = (replace(one, ranking=one.ranking.cut(DEPTH), grades=one.grades[:DEPTH], teacher=None) for one in lists)
        found[name] = list(islice((one for one in cut if len(set(one.grades)) > 1), count))
    return found


def _show(when: str, scorer: ListScorer, held_out: Mapping[str, Sequence[GradedList]]) -> None:
    values = {name: mean_ndcg(scorer, lists) for name, lists in held_out.items()}
    parts = " ".join(f"{name} {value:.4f}" for name, value in values.items())
    print(f"  {when:7} mean of collections {sum(values.values()) / len(values):.4f}  ({parts})", flush=True)


if __name__ == "__main__":
    main()
