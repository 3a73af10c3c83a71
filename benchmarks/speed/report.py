"""The table and the picture of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import spearmanr

Row = dict[str, Any]

# The ways that others are divided by.
FLOOR, REFERENCE, GENERATION = "plain truncated prefill", "reference: ICR, QRHead", "RankGPT"

COLUMNS = (
    # heading, width, field, format
    ("P", 4, "passages", "d"),
    ("s", 8, "seconds", ".2f"),
    ("min-max", 16, "spread", "s"),
    ("CPU s", 8, "cpu", ".1f"),
    ("/ floor", 8, "to_floor", ".2f"),
    ("ref /", 7, "from_reference", ".1f"),
    ("gpt /", 7, "from_generation", ".1f"),
    ("tok/s", 8, "rate", ",.0f"),
    ("GFLOP/s", 9, "gflops", ",.0f"),
    ("of ceil.", 9, "of_ceiling", ".0%"),
    ("pass MiB", 10, "pass_mebibytes", ",.0f"),
    ("mem /", 7, "to_floor_memory", ".2f"),
    ("differ.", 9, "difference", ".0e"),
    ("rho", 7, "correlation", ".4f"),
)


def summarised(measured: Mapping[str, Any], ceilings: Mapping[str, float]) -> list[Row]:
    """Return one row per way and number of passages, with the ratios between them."""
    rows = [_row(entry, ceilings) for entry in measured.values() if entry["readings"]]
    for row in rows:
        beside = {other["name"]: other for other in rows if other["passages"] == row["passages"]}
        for field, name, inverse in (
            ("to_floor", FLOOR, False),
            ("from_reference", REFERENCE, True),
            ("from_generation", GENERATION, True),
        ):
            if name in beside:
                ratio = row["seconds"] / beside[name]["seconds"]
                row[field] = 1 / ratio if inverse else ratio
        plain = beside.get(FLOOR, {}).get("pass_mebibytes")
        if plain and "pass_mebibytes" in row:
            row["to_floor_memory"] = row["pass_mebibytes"] / plain
        ours = beside.get("ours")
        if row["same_scores"] and ours is not None and row is not ours:
            row["difference"], row["correlation"] = _agreement(row["scores"], ours["scores"])
    return rows


def _row(entry: Mapping[str, Any], ceilings: Mapping[str, float]) -> Row:
    seconds = [reading["seconds"] for reading in entry["readings"]]
    median, last = statistics.median(seconds), entry["readings"][-1]
    row = {name: entry[name] for name in ("letter", "name", "passages", "tokens", "same_scores", "scores")}
    row |= {"seconds": median, "spread": f"{min(seconds):.2f}-{max(seconds):.2f}", "repeats": len(seconds)}
    row["cpu"] = statistics.median(reading["cpu_seconds"] for reading in entry["readings"])
    row["rate"] = entry["tokens"] / median
    if entry["flops"]:
        row["gflops"] = entry["flops"] / median / 1e9
        row["of_ceiling"] = entry["flops"] / median / max(ceilings.values())
    if last["peak"]:
        row["pass_mebibytes"] = (last["peak"] - last["held"]) / 2**20
    return row


def _agreement(scores: Mapping[str, float], ours: Mapping[str, float]) -> tuple[float, float]:
    """Return the largest difference, as a share of the largest score, and the rank correlation."""
    one, other = (np.array([given[docid] for docid in sorted(ours)]) for given in (scores, ours))
    return float(abs(one - other).max() / abs(other).max()), float(spearmanr(one, other).statistic)


def heading() -> str:
    return f"{'':<34}" + "".join(f"{name:>{width}}" for name, width, _, _ in COLUMNS)


def line(row: Row) -> str:
    cells = [
        f"{format(row[field], form) if row.get(field) is not None else '-':>{width}}"
        for _, width, field, form in COLUMNS
    ]
    return f"{row['letter']}  {row['name']:<31}" + "".join(cells)


def fits(rows: Sequence[Row]) -> list[str]:
    """Return a straight line through the seconds of every way that was measured for three numbers of passages."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        points = [(row["passages"], row["seconds"]) for row in rows if row["name"] == name]
        if len(points) < 3:
            continue
        passages, seconds = np.array(points).T
        slope, start = np.polyfit(passages, seconds, 1)
        unexplained = ((seconds - slope * passages - start) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
        lines.append(f"{name}: {start:.2f} s + {1000 * slope:.1f} ms per passage, R^2 {1 - unexplained:.4f}")
    return lines


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write bars for one number of passages, and lines over it where there are three and more."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = sorted({row["passages"] for row in rows})
    if len(counts) >= 3:
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for name in dict.fromkeys(row["name"] for row in rows):
            points = sorted((row["passages"], row["seconds"]) for row in rows if row["name"] == name)
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set(xlabel="passages", ylabel="seconds per query", title=title, ylim=(0, None))
        axes.legend(frameon=False)
    else:
        figure, panels = plt.subplots(
            1, len(counts), figsize=(8, 1 + 0.32 * len(rows)), layout="constrained", squeeze=False
        )
        for axes, count in zip(panels[0], counts, strict=True):
            shown = sorted((row for row in rows if row["passages"] == count), key=lambda row: -row["seconds"])
            colours = ["#c44e52" if row["letter"] == "a" else "#8c9fb5" for row in shown]
            bars = axes.barh(
                [f"{row['letter']}  {row['name']}" for row in shown], [r["seconds"] for r in shown], color=colours
            )
            axes.bar_label(bars, fmt="%.2f", padding=3)
            axes.set(xlabel="seconds per query", title=f"{title}, {count} passages")
            axes.margins(x=0.15)
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=140)
    plt.close(figure)
