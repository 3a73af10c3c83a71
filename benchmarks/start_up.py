"""Where the CPU seconds go between a command and its first list: each stage in a new process, in turns.

    python benchmarks/start_up.py --model smollm2 --repeats 3

Every row runs all that stands above it and one thing more. "transformers alone" is what any program pays that reads
one short text with the same folder through AutoTokenizer and AutoModel, and "the command" is a whole ``headrank
rerank`` of one query and two passages. The least of the repeats counts: a busy machine only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from headrank_pipeline.attention.model_files import load_config, named_model

LIST = {
    "query": {"qid": "1", "text": "what do cats eat"},
    "candidates": [
        {"docid": docid, "score": score, "doc": {"title": "", "text": text}}
        for docid, score, text in (("a", 2.0, "Cats eat mice and birds."), ("b", 1.0, "Stones lie still."))
    ],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="smollm2")
    options.add_argument("--repeats", type=int, default=3)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        candidates = Path(folder) / "candidates.jsonl"
        candidates.write_text(json.dumps(LIST) + "\n", encoding="utf-8")
        commands = {
            **{name: [sys.executable, "-c", code] for name, code in stages(chosen.model).items()},
            "the command": [
                *(sys.executable, "-m", "headrank_pipeline", "rerank", "--model", chosen.model, "--device", "cpu"),
                *("--candidates", str(candidates), "--output", str(Path(folder) / "run"), "--overwrite"),
            ],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(chosen.repeats):
            for name, command in commands.items():
                seconds[name].append(cpu_seconds(command))
    print("| up to and with | CPU s | more than the row above |\n|---|---:|---:|")
    before = 0.0
    for name, measured in seconds.items():
        least, apart = min(measured), name in ("transformers alone", "the command")
        print(f"| {name} | {least:.2f} | {'' if apart else f'{least - before:.2f}'} |")
        before = before if apart else least


def stages(model: str) -> dict[str, str]:
    """Return what each stage runs, by its name."""
    folder = named_model(model, trained=True)
    layers = load_config(str(folder), None).num_hidden_layers
    torch = "import torch\n"
    top = torch + "import transformers\nfrom transformers import AutoModel, AutoTokenizer\n"
    code = top + "import transformers.modeling_utils\n"
    ours = code + "import headrank_pipeline.rerank.attention_reranker\n"
    loaded = ours + (
        "from headrank_pipeline.rerank.systems import headrank\n"
        f"reranker = headrank({model!r}, device='cpu', dtype='float32')\n"
    )
    first = loaded + (
        "from headrank_pipeline.records import Candidate, Query, Ranking\n"
        f"found = {LIST!r}\n"
        "candidates = tuple(Candidate(c['docid'], c['score'], c['doc']['text']) for c in found['candidates'])\n"
        "reranker.rerank(Ranking(Query('1', found['query']['text']), candidates))\n"
    )
    alone = code + (
        f"tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})\n"
        f"model = AutoModel.from_pretrained({str(folder)!r}, dtype=torch.float32)\n"
        "with torch.inference_mode(): model(**tokenizer('what do cats eat', return_tensors='pt'))\n"
    )
    return {
        "Python": "pass",
        "torch": torch,
        "transformers, its lists of what it has": top,
        "transformers' modelling code": code,
        "this package": ours,
        f"the model ({layers} layers), checked": loaded,
        "the first list": first,
        "transformers alone": alone,
    }


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
