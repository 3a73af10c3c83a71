"""Published reranking code beside ours, on the same weights and lists, in turns; benchmarks/peers.md says how.

    python benchmarks/peers.py convert MODEL FOLDER           # a model folder that transformers 4.44 reads, too
    python benchmarks/peers.py turns --peer icr --code CODE --model FOLDER --python PEERS/bin/python --candidates FILE

Only the imports of a side are made in its process, so that theirs may have other versions. On a CPU their code is run
as it is, but for what needs a GPU: flash attention's call goes to PyTorch's fused attention, float16 becomes float32
(or `--their-dtype`).
Both sides are loaded first; then each list is read by one and by the other. Seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

Score = Callable[[str, list[str]], list[float]]

USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"  # ChatML, as ours writes it
PEERS = ("icr", "qrhead", "core", "rankgpt")
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("convert")
    made.add_argument("source", type=Path)
    made.add_argument("target", type=Path)
    for name in ("turns", "serve"):
        made = commands.add_parser(name)
        made.add_argument("--peer", choices=PEERS, required=True)
        made.add_argument("--code", type=Path, required=True, help="their repository, checked out")
        made.add_argument("--model", required=True, help="folder; its name says llama-3 where theirs looks for that")
        made.add_argument("--heads", type=Path, help="JSON file of a head set; default: all heads")
        made.add_argument("--ours", default="", help="system that stands against the peer; default: of the same name")
        made.add_argument("--prune", type=float, default=0.0, help="CoRe's share of layers left out")
        made.add_argument(
            "--reply", type=int, default=0, help="RankGPT: tokens that a reply is forced to; 0: as written"
        )
        made.add_argument("--threads", type=int, default=1)
        made.add_argument("--dtype", choices=DTYPES, default="float32", help="of our weights")
        made.add_argument("--their-dtype", choices=DTYPES, default="float32", help="of the peer's weights")
        made.add_argument("--side", choices=["theirs", "ours"])
        made.add_argument("--python", default=sys.executable, help="interpreter that has what theirs needs")
        made.add_argument("--candidates", type=Path, required=True)
        made.add_argument("--queries", type=int, default=5)
        made.add_argument("--passages", type=int, default=20)
    chosen = parser.parse_args()
    {"convert": convert, "serve": serve, "turns": turns}[chosen.command](chosen)


def convert(chosen: argparse.Namespace) -> None:
    """Link a folder that transformers 5 wrote, with the fields and the merges that transformers 4.44 reads."""
    chosen.target.mkdir(parents=True)
    changed = {}
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        changed[name] = json.loads((chosen.source / name).read_text(encoding="utf-8"))
    config, merges = changed["config.json"], changed["tokenizer.json"]["model"]["merges"]
    config |= {"rope_theta": config["rope_parameters"]["rope_theta"], "torch_dtype": config["dtype"]}
    changed["tokenizer_config.json"]["tokenizer_class"] = "PreTrainedTokenizerFast"
    changed["tokenizer.json"]["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in merges]
    for file in chosen.source.iterdir():
        if file.name not in changed:
            (chosen.target / file.name).symlink_to(file.resolve())
    for name, content in changed.items():
        (chosen.target / name).write_text(json.dumps(content), encoding="utf-8")


def turns(chosen: argparse.Namespace) -> None:
    """Have each list read by either side in turns, and print ratios and agreement."""
    from scipy.stats import kendalltau

    forwarded = ["serve", *sys.argv[2:]]
    sides = {}
    for side, python in (("theirs", chosen.python), ("ours", sys.executable)):
        command = [python, __file__, *forwarded, "--side", side]
        sides[side] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ratios = []
    opened = gzip.open if chosen.candidates.suffix == ".gz" else open
    with opened(chosen.candidates, "rt", encoding="utf-8") as lists:
        for _, line in zip(range(chosen.queries), lists, strict=False):
            one = json.loads(line)
            texts = [candidate["doc"]["text"] for candidate in one["candidates"][: chosen.passages]]
            found = {}
            for side, process in sides.items():
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write(json.dumps([one["query"]["text"], texts]) + "\n")
                process.stdin.flush()
                while not (said := process.stdout.readline()).startswith("{"):  # their prints
                    if not said:
                        raise SystemExit(f"{side} ended; see its message above")
                found[side] = json.loads(said)
            theirs, ours = found["theirs"], found["ours"]
            ratios.append(theirs["seconds"] / ours["seconds"])
            apart = max(abs(a - b) for a, b in zip(theirs["scores"], ours["scores"], strict=True))
            tau = kendalltau(theirs["scores"], ours["scores"]).statistic
            told = {side: f"{found[side]['seconds']:.2f} s, {found[side]['mebibytes']:,.0f} MiB" for side in found}
            print(
                f"{one['query']['qid']}: {told}, ratio {ratios[-1]:.2f}, tau {tau:.3f}, apart {apart:.1e}", flush=True
            )
    for process in sides.values():
        process.kill()
    print(f"{chosen.peer}: theirs takes {median(ratios):.2f} times ours ({min(ratios):.2f} to {max(ratios):.2f})")


def serve(chosen: argparse.Namespace) -> None:
    """Score lists from standard input until it ends."""
    import resource

    import torch

    torch.set_num_threads(chosen.threads)
    score = ours(chosen) if chosen.side == "ours" else THEIRS[chosen.peer](chosen)
    for line in sys.stdin:
        query, texts = json.loads(line)
        started = time.process_time()
        scores = score(query, texts)
        row: dict[str, Any] = {"seconds": time.process_time() - started, "scores": scores}
        row["mebibytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(row), flush=True)


def ours(chosen: argparse.Namespace) -> Score:
    from headrank_pipeline.records import Candidate, Query, Ranking
    from headrank_pipeline.rerank.systems import SystemSpec

    system = chosen.ours or chosen.peer
    heads = str(chosen.heads) if chosen.heads else "all"
    options = {"device": "cpu", "dtype": chosen.dtype, "passage_words": 10_000}
    made = SystemSpec(system, chosen.model, heads, options).open()

    def score(query: str, texts: list[str]) -> list[float]:
        passages = tuple(Candidate(str(i), -float(i), text) for i, text in enumerate(texts))
        found = made.rerank(Ranking(Query("q", query), passages))
        scores = dict(zip(found.docids, found.scores, strict=True))
        return [scores[str(i)] for i in range(len(texts))]

    return score


# --------------------------------------------------------------------------------------------------------------- theirs


def on_a_cpu(dtype: str) -> None:
    """Let code that was written for a GPU run without one, its weights in a dtype."""
    import torch
    from transformers import modeling_flash_attention_utils as flash
    from transformers.modeling_utils import PreTrainedModel

    def fused(query: Any, key: Any, value: Any, *given: Any, **named: Any) -> Any:
        """[B, T, H, D]: causal, the last query at the last key."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        rows, seen = query.shape[2], key.shape[2]
        mask = None if rows == seen else torch.ones(rows, seen, dtype=torch.bool).tril(seen - rows)
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, attn_mask=mask, is_causal=rows == seen, enable_gqa=True).transpose(1, 2)

    def chosen(cls: Any, config: Any, *given: Any, **named: Any) -> Any:
        config._attn_implementation = "flash_attention_2"
        return config

    load, move = PreTrainedModel.from_pretrained.__func__, torch.Tensor.to

    def loaded(cls: Any, *given: Any, **named: Any) -> Any:
        return load(cls, *given, **(named | {"torch_dtype": getattr(torch, dtype), "device_map": None}))

    def moved(tensor: Any, *given: Any, **named: Any) -> Any:
        return move(tensor, *("cpu" if str(place).startswith("cuda") else place for place in given), **named)

    flash._flash_attention_forward = fused
    PreTrainedModel._check_and_enable_flash_attn_2 = classmethod(chosen)
    PreTrainedModel.from_pretrained = classmethod(loaded)
    torch.Tensor.to = moved


def icr(chosen: argparse.Namespace) -> Score:
    on_a_cpu(chosen.their_dtype)
    sys.path.insert(0, str(chosen.code))
    from src.in_context_reranker import InContextReranker

    made = InContextReranker(
        chosen.model,
        scoring_strategy="masked_NA_calibration",
        retrieval_type="IE",
        sliding_window_size=-1,
        reverse_doc_order=True,
    )
    made.prompt_prefix, made.prompt_suffix = USER, ASSISTANT
    made.prompt_bos_length = len(made.tokenizer("").input_ids)

    def score(query: str, texts: list[str]) -> list[float]:
        order, scores = made.rerank(query, texts)[0]
        return in_order(order, scores)

    return score


def qrhead(chosen: argparse.Namespace) -> Score:
    on_a_cpu(chosen.their_dtype)
    sys.path.insert(0, str(chosen.code / "src"))
    from qrretriever.attn_retriever import AttnBasedRetriever

    heads = ",".join(f"{layer}-{head}" for layer, head in read_heads(chosen.heads)) if chosen.heads else "full_heads"
    known = {"attn_head_set": heads, "model_base_class": "Llama-3.2-1B-Instruct", "model_name_or_path": chosen.model}
    made = AttnBasedRetriever(known)
    made.model_base_class = "qwen2.5-7b-instruct"  # from here on it says only how a prompt is written: ChatML

    def score(query: str, texts: list[str]) -> list[float]:
        passages = [{"idx": i, "paragraph_text": text} for i, text in enumerate(texts)]
        scores = made.score_docs(query, passages[::-1])  # the best last, as their experiments have it
        return [scores[i] for i in range(len(texts))]

    return score


def core(chosen: argparse.Namespace) -> Score:
    on_a_cpu(chosen.their_dtype)
    sys.path.insert(0, str(chosen.code / "experiments"))
    from src.reranker_calib import Reranker

    made = Reranker(chosen.model, head_set=read_heads(chosen.heads) if chosen.heads else None, prune=chosen.prune)
    made.prompt_prefix, made.prompt_suffix = USER, ASSISTANT
    return lambda query, texts: in_order(*made.rerank(query, texts))


def rankgpt(chosen: argparse.Namespace) -> Score:
    """Their prompt and their reading of replies, about one window; a reply is written by transformers on this CPU."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("openai", "tiktoken"):  # imported at the top of theirs, and not needed without a hosted model
        sys.modules.setdefault(name, ModuleType(name))
    sys.path.insert(0, str(chosen.code))
    import rank_gpt

    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    model = AutoModelForCausalLM.from_pretrained(chosen.model, torch_dtype=getattr(torch, chosen.their_dtype))

    def run_llm(messages: Sequence[dict[str, str]], **named: Any) -> str:
        turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
        ids = tokenizer(turns + "<|im_start|>assistant\n", return_tensors="pt").input_ids
        limits = {"max_new_tokens": chosen.reply or 300, "min_new_tokens": chosen.reply or None}
        reply = model.generate(ids, do_sample=False, pad_token_id=tokenizer.eos_token_id, **limits)[0, ids.shape[1] :]
        print(f"a reply of {len(reply)} tokens", file=sys.stderr, flush=True)
        return tokenizer.decode(reply, skip_special_tokens=True)

    rank_gpt.run_llm, rank_gpt.num_tokens_from_messages = run_llm, lambda messages, model: 0

    def score(query: str, texts: list[str]) -> list[float]:
        item = {"query": query, "hits": [{"content": text, "place": i} for i, text in enumerate(texts)]}
        found = rank_gpt.permutation_pipeline(item, rank_start=0, rank_end=len(texts))
        order = [hit["place"] for hit in found["hits"]]
        return in_order(order, [float(-rank) for rank in range(len(order))])

    return score


THEIRS = {"icr": icr, "qrhead": qrhead, "core": core, "rankgpt": rankgpt}


def read_heads(file: Path) -> list[list[int]]:
    return [list(head) for head in json.loads(file.read_text(encoding="utf-8"))["heads"]]


def in_order(order: Sequence[int], scores: Sequence[float]) -> list[float]:
    """Return the scores by the passages' places in the list, of scores in another order."""
    found = dict(zip(order, scores, strict=True))
    return [float(found[place]) for place in range(len(order))]


if __name__ == "__main__":
    main()
