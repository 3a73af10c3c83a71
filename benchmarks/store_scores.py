"""Store a model's scores on the shipped lists, for `headrank doctor --model` to compare with: store_scores.py FOLDER

Run it again for a model that was trained anew; entries of older weights are left to those who still have them.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

from headrank_pipeline.rerank.self_check import scores_of, shipped_lists, stored_under
from headrank_pipeline.rerank.systems import headrank

STORED = Path(__file__).resolve().parents[1] / "headrank_pipeline" / "resources" / "self_check.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a trained model that brings its heads")
    parser.add_argument("--name", help="how it is called [default: the folder's name]")
    chosen = parser.parse_args()
    reranker = headrank(chosen.folder, device="cpu", dtype="float32")
    made_with = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "tokenizers"))
    scores = [[float(f"{score:.7g}") for score in found] for found in scores_of(reranker, shipped_lists())]
    entry = {"name": chosen.name or chosen.folder.resolve().name, "made_with": made_with, "scores": scores}
    known = json.loads(STORED.read_text(encoding="utf-8")) if STORED.is_file() else {}
    known[stored_under(reranker)] = entry
    STORED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
