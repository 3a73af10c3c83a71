"""The figures of learning, drawn from the files that selection and training leave behind."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrank_pipeline.comparison.canvas import BLUE, GREEN, GREY, ORANGE, Picture, draw, shortened
from headrank_pipeline.files import json_object_lines, open_text

__all__ = ["head_map", "reliability_diagram", "training_curves"]

_SMOOTH = 9  # steps of the running mean in training curves


def head_map(table: str | Path, *, measure: str = "score", origin: str = "") -> Picture:
    """Return a layer x head map of one measure of a head table, chosen heads outlined.

    Args:
        table: TSV that `select-heads` writes.
        measure: a column of the table.
        origin: the sentence that says what made it.

    Raises:
        FileNotFoundError: no such table.
        ValueError: not a head table, or a measure that it lacks.
    """
    rows = _head_rows(table, measure)
    layers, heads = (1 + max(int(row[name]) for row in rows) for name in ("layer", "head"))
    grid = [[math.nan] * heads for _ in range(layers)]
    for row in rows:
        value = float(row[measure])
        grid[int(row["layer"])][int(row["head"])] = value if math.isfinite(value) else math.nan
    chosen = [(int(row["layer"]), int(row["head"])) for row in rows if row["chosen"] == "1"]

    def content(figure: Any) -> None:
        _draw_map(figure, grid, chosen, measure)

    caption = (
        f"{measure} of every query head, from {Path(table).name}; the {len(chosen)} chosen heads are outlined, heads "
        f"that are constant on every list are blank. {origin}"
    )
    size = (max(4.0, 1.6 + 0.22 * heads), max(3.0, 1.0 + 0.16 * layers))
    return draw("head-map", f"{measure} by layer and head", caption, size, content)


def training_curves(log: str | Path, *, origin: str = "") -> Picture:
    """Return loss, share of violated pairs, learning rate and dev nDCG@10 against the step.

    Args:
        log: ``log.jsonl`` of a training directory.
        origin: the sentence that says what made it.

    Raises:
        FileNotFoundError: no such log.
        ValueError: a log without steps.
    """
    events = [event for _, event in json_object_lines(log, "training log")]
    steps = [event for event in events if event["event"] == "step"]
    if not steps:
        raise ValueError(f"{log}: no steps in it; was the training stopped before the first one?")
    dev = [event for event in events if event["event"] == "dev"]

    def content(figure: Any) -> None:
        _draw_curves(figure, steps, dev)

    caption = (
        f"Training, step by step, from {Path(log).name}; heavy lines are running means of {_SMOOTH} steps, the filled "
        f"mark is the evaluation whose weights were kept. {origin}"
    )
    return draw("training-curves", "Training", caption, (7.0, 4.4), content)


def reliability_diagram(checked: Mapping[str, Mapping[str, Any]], *, origin: str = "") -> Picture:
    """Return how often what had a probability came true: a column for each file of lists, a row for each probability.

    Args:
        checked: file -> kind of probability -> what ``headrank calibrate --json`` says: ece, examples and bins.
        origin: the sentence that says what made it.
    """
    kinds = list(dict.fromkeys(kind for parts in checked.values() for kind in parts))

    def content(figure: Any) -> None:
        panels = figure.subplots(len(kinds), len(checked), squeeze=False, sharex=True, sharey=True)
        for row, kind in zip(panels, kinds, strict=True):
            row[0].set_ylabel(f"share that came true\n({kind})")
            for axes, (file, parts) in zip(row, checked.items(), strict=True):
                _draw_reliability(axes, parts[kind])
                axes.set_title(f"{shortened(file)}\nECE {parts[kind]['ece']:.3f}, {parts[kind]['examples']} examples")
        for axes in panels[-1]:
            axes.set_xlabel("mean probability")

    caption = (
        "Share of the examples that came true, by their mean probability, in ten bins of equal width. On the dashed "
        "line probabilities are right; below it they are too high. The area of a mark is the share of the examples in "
        f"its bin, the line through it a 95 % interval (Wilson). {origin}"
    )
    size = (max(4.0, 2.5 * len(checked)), 2.5 * len(kinds))
    return draw("reliability", "Probabilities and what came true", caption, size, content)


def _draw_reliability(axes: Any, told: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=0.8)
    for part in told["bins"]:
        low, high = _wilson(part["share"], part["count"])
        axes.plot([part["probability"]] * 2, [low, high], color=BLUE, linewidth=0.8)
        area = 12 + 240 * part["count"] / told["examples"]
        axes.scatter(part["probability"], part["share"], s=area, color=BLUE, alpha=0.6, linewidths=0)
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_aspect("equal")


def _wilson(share: float, count: int) -> tuple[float, float]:
    """Return the interval (95%) of a share by Wilson's score, which stays within 0 and 1 for few examples, too.

    Examples:
        >>> [round(bound, 3) for bound in _wilson(0.5, 10)]
        [0.237, 0.763]
    """
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return middle - half, middle + half


def _head_rows(table: str | Path, measure: str) -> list[dict[str, str]]:
    with open_text(table, "head table") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    if not rows or not {"layer", "head", "chosen"} <= rows[0].keys():
        raise ValueError(f"{table}: expected the head table that select-heads writes, with layer, head and chosen")
    if measure not in rows[0]:
        raise ValueError(f"{table}: no measure {measure!r}; it has {', '.join(rows[0])}")
    return rows


def _draw_map(figure: Any, grid: Sequence[Sequence[float]], chosen: Sequence[tuple[int, int]], measure: str) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    axes = figure.subplots()
    axes.grid(False)
    image = axes.imshow(grid, aspect="auto", cmap="cividis", origin="lower", interpolation="nearest")
    for layer, head in chosen:
        axes.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.6))
    for axis, name in ((axes.xaxis, "head"), (axes.yaxis, "layer")):
        axis.set_major_locator(MaxNLocator(integer=True))
        axis.set_label_text(name)
    figure.colorbar(image, ax=axes, label=measure)


def _draw_curves(figure: Any, steps: Sequence[Mapping[str, Any]], dev: Sequence[Mapping[str, Any]]) -> None:
    (loss, quality), (pairs, rate) = figure.subplots(2, 2, sharex=True)
    at = [event["step"] for event in steps]
    _curve(loss, at, [event["loss"] for event in steps], "loss", BLUE)
    violated = [event["violations"] / event["pairs"] if event["pairs"] else math.nan for event in steps]
    _curve(pairs, at, violated, "share of the pairs that are violated", ORANGE)
    rate.plot(at, [event["lr"] for event in steps], color=GREY)
    rate.set_title("learning rate")
    quality.plot([e["step"] for e in dev], [e["ndcg"] for e in dev], color=GREEN, marker="o", markerfacecolor="white")
    if kept := [event for event in dev if event["best"]]:
        quality.plot(kept[-1]["step"], kept[-1]["ndcg"], color=GREEN, marker="o")
    quality.set_title("nDCG@10 on the dev lists")
    for axes in (pairs, rate):
        axes.set_xlabel("step")


def _curve(axes: Any, at: Sequence[int], values: Sequence[float], title: str, color: str) -> None:
    axes.plot(at, values, color=color, alpha=0.35, linewidth=0.8)
    if len(values) >= _SMOOTH:
        means = [sum(values[end - _SMOOTH : end]) / _SMOOTH for end in range(_SMOOTH, len(values) + 1)]
        axes.plot(at[_SMOOTH - 1 :], means, color=color)
    axes.set_title(title)
