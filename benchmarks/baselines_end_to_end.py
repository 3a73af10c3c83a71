"""Every system on real candidates, end to end through the command line, and compared: one command.

    python benchmarks/baselines_end_to_end.py --data ../shared/data --output runs/baselines
    python benchmarks/baselines_end_to_end.py --data ../shared/data --output runs/look --queries 3     # a quick look
    python benchmarks/baselines_end_to_end.py --data ../shared/data --output runs/real --model smollm2 --depth 20

DL19 (43 queries, BM25 top 100) and NovelEval (21 queries, 20 passages in BM25 order).

**With a model**, all systems read or ask its plain weights; qwen3-reranker takes Qwen3 only, and runs where --systems
names it. qrhead (16 heads), core (8) and headrank (6) get heads that their own criterion selects on lists of TREC DL
2023, under their own prompt and rule; qrranker reads qrhead's. smollm2 is one more row: HeadRank with the weights and
heads that ship.

**Without one**, the attention systems read the
embedded model, with isolated passages as it was trained; all but icr with the heads that HeadRank uses. RankGPT,
first-token and Qwen3-Reranker get a chat model of random weights with Qwen3's tokenizer, whose head prefers
identifiers: **its quality means nothing**. RankGPT's replies repeat a few identifiers, so that repairs leave most of
the first stage's order; the other two order at random. Shown of them is that every candidate comes back once, what they
cost, and how many replies had to be repaired. The same command continues an interrupted run.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers import logging as transformers_logging

from headrank_pipeline.attention.model_files import embedded_model
from headrank_pipeline.experiment.directory import RunDirectory, read_json
from headrank_pipeline.trec import read_candidates, read_qrels, read_run

COLLECTIONS = {"dl19": "candidates.jsonl.gz", "noveleval": "candidates_bm25order.jsonl.gz"}
FAMILY = ("headrank", "icr", "qrhead", "core", "qrranker")
GENERATIVE = ("rankgpt", "first-token", "qwen3-reranker")
SYSTEMS = (*FAMILY, *GENERATIVE)
ONLY_QWEN3 = "qwen3-reranker"
WINDOW = 20  # passages that RankGPT's prompt numbers
# Criterion and number of heads by the systems that select theirs.
SELECTED = {"headrank": ("entropy-regularised", 6), "qrhead": ("qrscore", 16), "core": ("core", 8)}
SHIPPED = "smollm2"
COLUMNS = ("nDCG@10", "s/query", "passes/query", "read/query", "written/query", "formatting", "failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of dl19, dl23, noveleval, qwen3_tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="run directories and reports, one per collection")
    parser.add_argument("--queries", type=int, help="only the first so many of each collection")
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS), choices=list(COLLECTIONS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all that take the model")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--model", help="a language model that all systems share, such as smollm2")
    parser.add_argument("--dtype", default="float32", help="type of the model's weights")
    parser.add_argument("--depth", type=int, default=100, help="candidates that are reranked")
    arguments = parser.parse_args()
    if arguments.systems is None:
        arguments.systems = [system for system in SYSTEMS if not (arguments.model and system == ONLY_QWEN3)]
    commands = with_model(arguments) if arguments.model else without_model(arguments)
    for name in arguments.collections:
        output = arguments.output / name
        candidates = first(arguments.data / name / COLLECTIONS[name], output, arguments.queries)
        qrels = judgments(arguments.data / name / "qrels.txt", candidates, output)
        common = ["--candidates", candidates, "--qrels", qrels, "--depth", arguments.depth]
        common += ["--batch-size", arguments.batch_size, "--device", "cpu"]
        runs = [rerank([*common, *command], output / system) for system, command in commands.items()]
        print(table(name, compared(runs, output / "report")), flush=True)


def without_model(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Return what each system's command adds: the embedded model, or the random one that writes."""
    chat = save_chat_model(arguments.output / "random-chat-model", arguments.data / "qwen3_tokenizer")
    commands = {}
    for system in arguments.systems:
        model = chat if system in GENERATIVE else embedded_model()
        heads = ["--heads", embedded_model() / "heads.json"] if system in ("qrhead", "core", "qrranker") else []
        commands[system] = ["--system", system, "--model", model, *heads]
    return commands


def with_model(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Return what each system's command adds: one model for all, heads by each system's own criterion."""
    lists = arguments.output / "dl23.lists.jsonl"
    if not lists.exists():
        source = arguments.data / "dl23"
        headrank(["lists", "--candidates", source / "candidates.jsonl.gz", "--qrels", source / "qrels.txt",
                  "--unjudged", "drop", "--output", lists], allowed=(0,))  # fmt: skip
    model = ["--model", arguments.model]
    typed = ["--option", f"dtype={arguments.dtype}"]
    commands: dict[str, list[Any]] = {}
    for system in arguments.systems:
        chooser = "qrhead" if system == "qrranker" else system
        heads = (
            ["--heads", selected(chooser, [*model, "--dtype", arguments.dtype], lists, arguments.output)]
            if chooser in SELECTED
            else []
        )
        commands[system] = ["--system", system, *model, *typed, *heads]
    if arguments.model == SHIPPED:
        commands[SHIPPED] = [*model, *typed, "--tag", SHIPPED]
    return commands


def selected(system: str, model: list[Any], lists: Path, output: Path) -> Path:
    """Return the head set that a system's criterion chooses on 24 lists, unless it is there."""
    criterion, number = SELECTED[system]
    heads = output / f"{system}.heads.json"
    if not heads.exists():
        headrank(["select-heads", *model, "--device", "cpu", "--lists", lists, "--system", system, "--max-lists", 24,
                  "--list-size", 12, "-l", 2, "--criterion", criterion, "--num-heads", number, "--output", heads,
                  "--no-figure"], allowed=(0,))  # fmt: skip
    return heads


def save_chat_model(folder: Path, tokenizer: Path) -> Path:
    """Save two layers of random weights that write identifiers more often than anything else, unless they are there."""
    if (folder / "tokenizer.json").is_file():
        return folder
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
    )
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.chat_template = (tokenizer / "chat_template_qwen3.jinja").read_text(encoding="utf-8")
    identifiers = [f"[{rank}]" for rank in range(1, WINDOW + 1)]
    words.add_tokens(identifiers)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[words.convert_tokens_to_ids(identifiers)] *= 20
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def first(candidates: Path, output: Path, queries: int | None) -> Path:
    """Return the candidates, or a file with those of the first queries."""
    if queries is None:
        return candidates
    output.mkdir(parents=True, exist_ok=True)
    shortened = output / f"candidates-{queries}.jsonl"
    with gzip.open(candidates, "rt", encoding="utf-8") as lines:
        shortened.write_text("".join(islice(lines, queries)), encoding="utf-8")
    return shortened


def judgments(qrels: Path, candidates: Path, output: Path) -> Path:
    """Return the judgments of the queries that are run: means go over all queries of a qrels file."""
    qids = {ranking.query.qid for ranking in read_candidates(candidates)}
    grades = read_qrels(qrels)
    if grades.keys() == qids:
        return qrels
    output.mkdir(parents=True, exist_ok=True)
    kept = output / f"qrels-{len(qids)}.txt"
    lines = (f"{q} 0 {d} {grade}\n" for q, judged in grades.items() if q in qids for d, grade in judged.items())
    kept.write_text("".join(lines), encoding="utf-8")
    return kept


def rerank(command: list[Any], run: Path) -> Path:
    """Run one system with `headrank rerank` and return its run directory, checked."""
    headrank(["rerank", *command, "--output", run], allowed=(0, 7))  # 7: some queries failed, which the table says
    candidates = command[command.index("--candidates") + 1]
    for expected, found in lists(candidates, run):
        if sorted(expected) != sorted(found):
            raise SystemExit(f"{run}: {len(found)} docids for {len(expected)} candidates, or others")
    return run


def lists(candidates: Path, run: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Yield the docids given and returned of every query that did not fail."""
    returned = read_run(RunDirectory(run).run)
    failed = read_json(RunDirectory(run).manifest)["totals"]["failed"]
    for ranking in read_candidates(candidates):
        if ranking.query.qid not in failed:
            yield list(ranking.docids), [candidate.docid for candidate in returned[ranking.query.qid]]


def compared(runs: list[Path], report: Path) -> list[dict[str, Any]]:
    """Return the rows of `headrank compare`, whose report stays in a folder."""
    done = headrank(["compare", *runs, "--output", report, "--measure", "nDCG@10", "--json"], allowed=(0,))
    rows: list[dict[str, Any]] = json.loads(done)["systems"]
    return rows


def headrank(arguments: list[Any], allowed: tuple[int, ...]) -> str:
    """Run the command and return what it printed."""
    words = [str(argument) for argument in arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "headrank_pipeline", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    if done.returncode not in allowed:
        raise SystemExit(f"headrank {' '.join(words)}: ended with status {done.returncode}")
    return done.stdout


def table(collection: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"| {collection} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        rate = row["queries_per_second"]
        cells = [
            shown(row["nDCG@10"], ".4f"),
            shown(1 / rate if rate else None, ".2f"),
            shown(row["forward_passes"], ",.0f"),
            shown(row["prompt_tokens"], ",.0f"),
            shown(row["generated_tokens"], ",.0f"),
            shown(row["formatting_success"], ".0%"),
            shown(row["failed"], "g"),
        ]
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
