"""Faults put into everything that can be faulty, and what came of each: equal, refused by name, or as documented.

    python benchmarks/faults.py                        # every kind; prints a table and N/N held
    python benchmarks/faults.py --kinds journal,crash --cases 50
    python benchmarks/faults.py --only journal:17      # one case again

A case is a kind and a seed; nothing else decides what is done. Injections that change nothing, or whose right outcome
is not known, are not counted, and another seed takes their place.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # tiny models, encoders and servers

from faults import running
from faults.judging import Case, Fault, Result, run_case

# Kinds whose libraries take seconds to load are imported when they are asked for.
_LATER = {
    "endpoint": "serving", "secrets": "serving",
    "ids": "reading", "qrels": "reading", "runs": "reading", "topics": "reading", "yaml": "reading", "pages": "reading",
    "heads": "models", "models": "models", "cache": "models", "checkpoints": "models", "indexes": "models",
    "lucene": "first_stages", "impacts": "first_stages",
}  # fmt: skip
SHARES = {
    "crash": 110, "disk": 70, "journal": 160, "manifest": 120, "inputs": 90, "ids": 80, "qrels": 70, "runs": 70,
    "topics": 70, "yaml": 50, "pages": 20, "endpoint": 70, "secrets": 30, "heads": 40, "models": 30, "cache": 30,
    "checkpoints": 12, "indexes": 18, "lucene": 40, "impacts": 30,
}  # fmt: skip


def fault_of(kind: str) -> Fault:
    """Return what injects a kind's faults."""
    if kind in running.FAULTS:
        return running.FAULTS[kind]
    from importlib import import_module

    found: Fault = import_module(f"faults.{_LATER[kind]}").FAULTS[kind]
    return found


def judged(kind: str, count: int, first: int, home: Path) -> Iterator[Result]:
    """Yield the results of so many cases of a kind that could be judged."""
    fault, seed, left = fault_of(kind), first, count
    while left and seed < first + 20 * count:
        result = run_case(Case(kind, seed), fault, home)
        seed += 1
        if result.outcome is not None:
            left -= 1
            yield result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and return 0 where all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(SHARES), help="comma-separated; default: all")
    parser.add_argument("--cases", type=int, help="of each kind; default: its share of 1,000 and more")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    parser.add_argument("--only", help="KIND:SEED, one case")
    parser.add_argument("--json", type=Path, help="write the table there, too")
    chosen = parser.parse_args(arguments)
    kinds = chosen.kinds.split(",")
    if unknown := sorted(set(kinds) - set(SHARES)):
        parser.error(f"no kinds {', '.join(unknown)}; there are {', '.join(SHARES)}")
    fast = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=fast if os.access(fast, os.W_OK) else None) as folder:
        tempfile.tempdir = folder
        try:
            return _one(chosen.only, Path(folder)) if chosen.only else _all(kinds, chosen, Path(folder))
        finally:
            tempfile.tempdir = None


def _one(name: str, home: Path) -> int:
    kind, _, seed = name.partition(":")
    result = run_case(Case(kind, int(seed)), fault_of(kind), home)
    print(f"{result.case}: {result.outcome or 'not judged'}\n{result.told}")
    return int(result.outcome == "failed")


def _all(kinds: Sequence[str], chosen: argparse.Namespace, home: Path) -> int:
    rows, started = [], time.perf_counter()
    print(f"{'kind':12} {'cases':>6} {'equal':>6} {'refused':>8} {'documented':>11} {'failed':>7}")
    for kind in kinds:
        found = Counter()
        for result in judged(kind, chosen.cases or SHARES[kind], chosen.seed, home):
            found[result.outcome] += 1
            if result.outcome == "failed":
                told = result.told.strip().splitlines() or ["no message"]
                print(f"  {result.case}: {told[-1][:300]}\n    again: python benchmarks/faults.py --only {result.case}")
        row = {"kind": kind, "cases": found.total()}
        row |= {name: found[name] for name in ("equal", "refused", "documented", "failed")}
        rows.append(row)
        print("{kind:12} {cases:6} {equal:6} {refused:8} {documented:11} {failed:7}".format(**row), flush=True)
    cases, failed = sum(row["cases"] for row in rows), sum(row["failed"] for row in rows)
    print(f"{cases - failed}/{cases} held, {time.perf_counter() - started:.0f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps({"kinds": rows, "cases": cases, "held": cases - failed}, indent=1) + "\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
