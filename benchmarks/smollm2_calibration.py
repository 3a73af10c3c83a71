"""How the calibration that ships with smollm2 is made, and how far off it is on collections it has not seen.

    python benchmarks/smollm2_calibration.py --data ../shared/data --output runs/smollm2_calibration

Run it after every change of what ships in headrank_pipeline/resources/smollm2: a test compares the digests. It draws
lists of the training collections that have judgments (`smollm2.lists`; the same number of each, judged passages only)
and of three unseen ones, and hands them to ``headrank calibrate``: fitted on the first, checked on the others, one
picture. Grades are those of TREC DL, 2 and 3 are relevant: of NovelEval, Cranfield and ANTIQUE (labels less 1) the
grade 2 and higher; of the multi-hop sets, whose passages are relevant or not, the relevant ones. About 165,000 tokens
are read: 8 minutes of one core at 2.9 ms a token (docs/scaling.md), computed, and twice that on a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from evidence.data import retrieve_apart
from smollm2.lists import all_lists

from headrank_pipeline.attention.model_files import SMOLLM2
from headrank_pipeline.files import write_json
from headrank_pipeline.learn.lists import GradedList, read_lists, save_lists, write_lists

TRAINING = ("dl23", "antique_graded", "cranfield", "musique_train", "hotpotqa_train")
TWO_GRADES = ("musique_train", "hotpotqa_train")
RELEVANT = 2
SHIPPED = SMOLLM2.resources / "calibration.json"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, required=True, help="lists, results and the picture")
    options.add_argument("--lists", type=int, default=15, help="of each training collection")
    options.add_argument("--check-lists", type=int, default=20, help="of each unseen collection, the first ones")
    options.add_argument("--list-size", type=int, default=10)
    chosen = options.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    train = chosen.output / "train.jsonl"
    save_lists(train, training_lists(chosen.data, chosen.output, chosen.lists))
    checks = [
        first_of(path, chosen.check_lists)
        for path in (dl19(chosen.data, chosen.output), noveleval(chosen.data, chosen.output), demo(chosen.output))
    ]
    SHIPPED.unlink(missing_ok=True)  # what is fitted is the reranker without it
    command = ["headrank", "calibrate", "--model", "smollm2", "--device", "cpu", "--option", "dtype=float32"]
    command += ["--option", "passage_cache_memory=1", "-l", str(RELEVANT), "--list-size", str(chosen.list_size)]
    command += ["--lists", str(train), "--output", str(chosen.output / "calibration.json")]
    command += ["--figure", str(chosen.output / "reliability.png"), "--json"]
    for check in checks:
        command += ["--check", str(check)]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    write_json(chosen.output / "checked.json", told)
    ship(chosen.output / "calibration.json", chosen.lists)
    for name, parts in told["check"].items():
        for kind, found in parts.items():
            print(f"{name}, {kind}: ECE {found['ece']:.3f} over {found['examples']}, share {found['share']:.2f}")


def training_lists(data: Path, output: Path, count: int) -> list[GradedList]:
    """Return so many lists of each training collection that hold relevant and other passages, drawn with seed 0."""
    lists = []
    for name in TRAINING:
        found = [doubled(one) if name in TWO_GRADES else one for one in all_lists(data, output, name).values()]
        found = sorted((one for one in found if min(one.grades) < RELEVANT <= max(one.grades)), key=lambda x: x.qid)
        random.Random(f"0/{name}").shuffle(found)
        lists += found[:count]
    return lists


def doubled(graded: GradedList) -> GradedList:
    """Return a list whose grades are 0 and 2 instead of 0 and 1."""
    return replace(graded, grades=tuple(2 * grade for grade in graded.grades))


def dl19(data: Path, output: Path) -> Path:
    return judged(data / "dl19/candidates.jsonl.gz", data / "dl19/qrels.txt", output / "dl19.jsonl")


def noveleval(data: Path, output: Path) -> Path:
    place = data / "noveleval"
    return judged(place / "candidates_bm25order.jsonl.gz", place / "qrels.txt", output / "noveleval.jsonl")


def demo(output: Path) -> Path:
    place = Path(str(files("headrank_pipeline") / "resources" / "demo"))
    candidates = output / "demo.candidates.jsonl"
    retrieve_apart(place, place / "corpus.jsonl", place / "qrels.tsv", candidates, 20)
    return judged(candidates, place / "qrels.tsv", output / "demo.jsonl")


def judged(candidates: Path, qrels: Path, path: Path) -> Path:
    write_lists(candidates, qrels, path, unjudged="drop")
    return path


def first_of(path: Path, count: int) -> Path:
    """Keep the first lists of a file that hold relevant and other passages."""
    lists: Sequence[GradedList] = list(read_lists(path))
    save_lists(path, [one for one in lists if min(one.grades) < RELEVANT <= max(one.grades)][:count])
    return path


def ship(fitted: Path, lists: int) -> None:
    """Write a calibration beside the adapter, bound to the files there and not to one machine's weights."""
    record = json.loads(fitted.read_text(encoding="utf-8"))
    record["reading"].update(fingerprint=None, model=SMOLLM2.name)
    names = ("adapter.safetensors", "heads.json", "recipe.json")
    digests = {name: hashlib.sha256((SMOLLM2.resources / name).read_bytes()).hexdigest() for name in names}
    command = " ".join(["python benchmarks/smollm2_calibration.py", *sys.argv[1:]])
    record["fitted"].update({"of_each": lists, "collections": list(TRAINING), "with": digests, "command": command})
    write_json(SHIPPED, record)


if __name__ == "__main__":
    main()
