"""Put the aligned model of an evidence run into the package: half precision, whole passages, weight beside BM25.

    python benchmarks/embedded_model.py --data ../shared/data --output models/embedded-base --work work
    python benchmarks/evidence.py --model models/embedded-base --data ../shared/data --output runs/evidence
    python benchmarks/package_embedded_model.py --evidence runs/evidence --output headrank_pipeline/resources/model

Seed 0's model is taken, whatever the others came to. Its weight beside BM25 is the one chosen on its dev lists.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from evidence.experiment import file_name
from evidence.learned import FULL
from safetensors.torch import load_file, save_file

SEED = 0
PASSAGE_WORDS = 160  # of a passage wherever the model is used; training read shorter ones


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--evidence", type=Path, required=True, help="output of benchmarks/evidence.py")
    options.add_argument("--output", type=Path, required=True, help="the package's model folder")
    chosen = options.parse_args()
    source = chosen.evidence / "models" / f"seed-{SEED}" / file_name(FULL)
    evidence = _json(chosen.evidence / "evidence.json")
    weights = {name: weight.half() for name, weight in load_file(source / "model.safetensors").items()}
    if unfit := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
        raise SystemExit(f"{source}: not finite in half precision: {', '.join(unfit)}")
    save_file(weights, chosen.output / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, chosen.output / name)
    _write(chosen.output / "config.json", _config(source, evidence))
    recipe = _json(source / "recipe.json")
    recipe["template"]["passage_words"] = PASSAGE_WORDS
    _write(chosen.output / "recipe.json", recipe)
    heads = _json(source / "heads.json")
    heads["model"] = chosen.output.name
    _write(chosen.output / "heads.json", heads)


def _config(source: Path, evidence: dict[str, Any]) -> dict[str, Any]:
    config = _json(source / "config.json")
    learned = next(found for found in evidence["learned"] if found["seed"] == SEED)
    config["dtype"] = "float16"
    config["headrank"] |= {
        "trained": True,
        "alignment": {**_json(source / "alignment.json"), "settings": evidence["settings"]["training"]},
        "bm25_interpolation": {
            "weight": round(1.0 - learned["first_stage_weight"], 2),  # of the model
            "normalisation": "min-max within the list, of the logarithm of the model's scores",
            "dev_ndcg_cut_10_by_first_stage_weight": learned["dev_by_weight"],
        },
    }
    return config


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _write(path: Path, record: dict[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
