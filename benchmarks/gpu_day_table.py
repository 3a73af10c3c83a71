"""The table of what `benchmarks/gpu_day.sh` measured: OUTPUT/table.md, also printed.

python benchmarks/gpu_day_table.py build/gpu_day
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPLY = 136  # tokens of a reply about 20 passages (speed/ways.py); random weights do not end one themselves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder that gpu_day.sh wrote")
    output = parser.parse_args().output
    text = "\n".join([*steps(output), "", *speed(output), "", *compiled(output), "", *training(output)])
    (output / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def steps(output: Path) -> Iterator[str]:
    """Yield a line for each step: the seconds that it took, or how it failed."""
    yield "| step | took | |\n|---|---:|---|"
    for log in sorted(output.glob("*.log")):
        done, failed = log.with_suffix(".done"), log.with_suffix(".failed")
        took = f"{done.read_text().strip()} s" if done.exists() else "failed"
        said = failed.read_text().strip() if failed.exists() else last_line(log) if log.stem == "tests" else ""
        yield f"| {log.stem} | {took} | {said.replace('|', '/')[:200]} |"


def speed(output: Path) -> Iterator[str]:
    """Yield a row for each way, shape and length; ratios are to ours."""
    yield (
        f"RankGPT through transformers; every reply has {REPLY} tokens for a window of 20.\n\n| shape | layers "
        "| device, dtype | passages | tokens | way | seconds | against ours | of the ceiling | MiB of the pass |\n"
        "|---|---:|---|---:|---:|---|---:|---:|---:|---:|"
    )
    for file in sorted(output.glob("speed-*/speed.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        kept, rows = record["settings"], record["rows"]
        ours = {row["passages"]: row["seconds"] for row in rows if row["name"] == "ours"}
        shape = kept["shape"]
        for row in rows:
            cells = [shape["name"], f"{shape['depth']} of {shape['layers']}", f"{kept['device']}, {kept['dtype'][6:]}"]
            cells += [f"{row['passages']}", f"{row['tokens']:,}", row["name"], f"{row['seconds']:.3f}"]
            cells.append(number(row["seconds"] / ours[row["passages"]] if row["passages"] in ours else None, ".2f"))
            cells += [number(row.get("of_ceiling"), ".0%"), number(row.get("pass_mebibytes"), ",.0f")]
            yield "| " + " | ".join(cells) + " |"


def compiled(output: Path) -> Iterator[str]:
    """Yield a row for each way of `benchmarks/compiled.py`, or the error that it ended in."""
    yield (
        "| shape | layers run | tokens | seconds | against as they are | first call, s | of the ceiling "
        "| difference |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|"
    )
    for file in sorted(output.glob("compiled-*.json")):
        rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        plain = {row["tokens"]: row["seconds"] for row in rows if row["way"] == "as they are" and "seconds" in row}
        for row in rows:
            cells = [row["shape"], row["way"], number(row.get("tokens"), ",d")]
            if "failed" in row:
                yield "| " + " | ".join([*cells, row["failed"].replace("|", "/"), "", "", "", ""]) + " |"
                continue
            cells += [f"{row['seconds']:.4f}", f"{row['seconds'] / plain[row['tokens']]:.2f}"]
            cells += [f"{row['first_seconds']:.1f}", f"{row['of_ceiling']:.0%}", f"{row['difference']:.0e}"]
            yield "| " + " | ".join(cells) + " |"


def training(output: Path) -> Iterator[str]:
    """Yield what `benchmarks/learning_cost.py` printed."""
    log = output / "lora.log"
    if log.with_suffix(".done").exists():
        yield f"Training with LoRA, lists of 20 passages:\n\n```\n{log.read_text(encoding='utf-8').strip()}\n```"


def last_line(log: Path) -> str:
    return (log.read_text(encoding="utf-8").strip().splitlines() or [""])[-1]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    main()
