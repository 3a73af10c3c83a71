"""The figures of comparison and analysis, each from a frame that was computed from finished runs.

Every function takes `origin`, the sentence that says what made the figure, and returns a `Picture`. With many systems
the figures grow longer, never denser: one row or one panel per system.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, Literal

import numpy as np
import pandas as pd

from headrank_pipeline.comparison.canvas import BLUE, GREEN, GREY, ORANGE, Picture, columns_of, draw, shortened, wrapped
from headrank_pipeline.comparison.significance import SAME

__all__ = [
    "cost_figure",
    "difference_figure",
    "length_bias_figure",
    "middle_zone_figure",
    "order_figure",
    "place_figure",
    "position_figure",
    "scatter_figure",
    "spread_figure",
]

Style = Literal["-", "--", ":", "-."]
Legend = tuple[str, str, Style, str]  # name, colour, line, mark

_WIDTH = 7.0  # inches, a page's text width
_SIGNIFICANT = 0.05
_DASHES: tuple[Style, ...] = ("--", ":", "-.")


# ------------------------------------------------------------------------------------------------------ comparison


def difference_figure(tests: pd.DataFrame, *, measure: str, baseline: str, origin: str) -> Picture:
    """Draw each system's mean difference from the baseline with its bootstrap interval.

    Args:
        tests: `Comparison.tests`.
        measure: which one.
        baseline: its name.
        origin: what made it.
    """
    rows = tests[tests["measure"] == measure].sort_values("difference", kind="stable")

    def content(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvline(0.0, color=GREY, linewidth=1.0)
        for place, row in enumerate(rows.itertuples()):
            clear = row.randomisation_holm < _SIGNIFICANT
            axes.plot([row.low, row.high], [place, place], color=BLUE, linewidth=1.5)
            axes.plot(row.difference, place, "o", color=BLUE, markerfacecolor=BLUE if clear else "white", markersize=6)
        _system_rows(axes, rows["system"])
        axes.set_xlabel(f"{measure}, difference from {shortened(baseline)}")
        marks = [
            _mark("o", BLUE, "p < 0.05"),
            _mark("o", BLUE, "p ≥ 0.05", face="white"),
            _line(BLUE, "95% interval"),
        ]
        _legend_above(axes, marks)

    caption = (
        f"Mean difference in {measure} from {baseline} over the same queries, with 95% bootstrap intervals. Filled: "
        f"paired randomisation test, p < 0.05 after Holm's correction over the systems shown. {origin}"
    )
    return draw("difference", f"{measure}: difference from {baseline}", caption, _row_size(len(rows)), content)


def scatter_figure(values: pd.DataFrame, *, measure: str, baseline: str, origin: str) -> Picture:
    """Draw every query's value against the baseline's, one panel per system.

    Args:
        values: `Comparison.values`: one row per query, one column per system.
        measure: what the values are.
        baseline: a column.
        origin: what made it.
    """
    systems = [system for system in values.columns if system != baseline]
    base = values[baseline].to_numpy()
    low = min(0.0, float(values.to_numpy().min()))
    high = max(1.0, float(values.to_numpy().max()))

    def panel(axes: Any, system: str) -> None:
        found = values[system].to_numpy()
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.8)
        above, below = found - base > SAME, base - found > SAME
        level = ~above & ~below
        for chosen, colour, mark in ((above, BLUE, "^"), (below, ORANGE, "v"), (level, GREY, "o")):
            axes.plot(base[chosen], found[chosen], mark, color=colour, markersize=3.5, alpha=0.75, markeredgewidth=0)
        counts = f"{above.sum()} better, {level.sum()} equal, {below.sum()} worse"
        axes.set_title(f"{wrapped(system)}\n{counts}", fontsize=8)
        axes.set_aspect("equal")
        axes.set_xlim(low - 0.04, high + 0.04)
        axes.set_ylim(low - 0.04, high + 0.04)

    caption = (
        f"{measure} of every query against {baseline}, one point per query: triangles up are better than the baseline, "
        f"triangles down worse, circles equal. {origin}"
    )
    content = _panels(systems, panel, x=f"{measure}, {shortened(baseline)}", y=f"{measure}, system")
    size = _panel_size(len(systems), 2.15)
    return draw("per-query", f"{measure} per query against {baseline}", caption, size, content)


def cost_figure(summary: pd.DataFrame, *, measure: str, origin: str) -> Picture | None:
    """Draw quality against latency, or return None where no system has a latency.

    Args:
        summary: `Comparison.summary`.
        measure: the quality.
        origin: what made it.
    """
    rows = summary[summary["latency_p50"].notna() & (summary["latency_p50"].astype(float) > 0)]
    if rows.empty:
        return None
    free = summary[summary["latency_p50"].isna()]

    def content(figure: Any) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        handles = []
        for name, value, style in zip(free["system"], free[measure], cycle(_DASHES), strict=False):
            axes.axhline(value, color=GREY, linewidth=1.0, linestyle=style)
            handles.append(_line(GREY, wrapped(name), style))
        for number, index in enumerate(rows.index, start=1):
            x, y = rows.loc[index, "latency_p50"], rows.loc[index, measure]
            axes.plot(x, y, "o", color=BLUE, markersize=12, alpha=0.85, markeredgecolor="white")
            axes.annotate(str(number), (x, y), color="white", ha="center", va="center", fontsize=7, fontweight="bold")
            handles.append(_mark("", BLUE, f"{number}   {shortened(rows.loc[index, 'system'], 40)}"))
        axes.margins(0.12)
        _decimal_ticks(axes)
        axes.set_xlabel("seconds per query, median (log scale)")
        axes.set_ylabel(measure)
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=2.4)

    caption = (
        f"{measure} against the median time per query; a batch's time is divided by its queries. Numbers are named on "
        f"the right, a grey line is a system whose time is not known, such as the first stage. {origin}"
    )
    height = max(3.0, 0.5 + 0.2 * (len(rows) + len(free)))
    return draw("quality-cost", f"{measure} and time per query", caption, (_WIDTH, height), content)


# -------------------------------------------------------------------------------------------------------- analysis


def middle_zone_figure(frame: pd.DataFrame, *, zone: str, top: str, chance: float, origin: str) -> Picture:
    """Draw how many passages of the middle of the prompt reach the top.

    Args:
        frame: `analysis.middle_zone`'s.
        zone: the positions, in words.
        top: the final ranks that count as success, in words.
        chance: share that a random order would promote.
        origin: what made it.
    """
    rows = frame.iloc[::-1].reset_index(drop=True)

    def content(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvline(100 * chance, color=GREY, linestyle="--", linewidth=1.0)
        for place, row in rows.iterrows():
            axes.plot(
                [100 * row["irrelevant_rate"], 100 * row["relevant_rate"]], [place, place], color="#BBBBBB", linewidth=1
            )
            for name, colour, mark, offset in (("relevant", BLUE, "o", 0.12), ("irrelevant", ORANGE, "s", -0.12)):
                bounds = [100 * row[f"{name}_low"], 100 * row[f"{name}_high"]]
                axes.plot(bounds, [place + offset] * 2, color=colour, linewidth=1.2)
                axes.plot(100 * row[f"{name}_rate"], place + offset, mark, color=colour, markersize=5.5)
        _system_rows(axes, rows["system"])
        axes.set_xlim(-2, 102)
        axes.set_xlabel(f"share promoted to {top}, %")
        marks = [
            _mark("o", BLUE, "relevant passages"),
            _mark("s", ORANGE, "irrelevant passages"),
            _line(GREY, "random order", "--"),
        ]
        _legend_above(axes, marks)

    caption = (
        f"Passages at {zone} that end in {top} after reranking, relevant and irrelevant (unjudged ones are irrelevant "
        f"unless left out), pooled over queries; lines are 95% bootstrap intervals over queries. {origin}"
    )
    return draw("middle-zone", "Middle-zone promotion", caption, _row_size(len(rows)), content)


def spread_figure(frame: pd.DataFrame, *, origin: str) -> Picture:
    """Draw the spread of scores within each part of the prompt, before and after reranking.

    Args:
        frame: `analysis.score_positions`'s.
        origin: what made it.
    """

    def panel(axes: Any, system: str) -> None:
        rows = frame[frame["system"] == system]
        places = rows["centre"] * 100
        axes.plot(places, rows["spread_before"], color=GREY, linestyle="--", marker="s", markersize=3)
        axes.plot(places, rows["spread_after"], color=BLUE, marker="o", markersize=3)
        axes.set_title(wrapped(system), fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1.08 * max(frame["spread_before"].max(), frame["spread_after"].max(), 1e-9))

    scale = ", ".join(sorted(set(frame["scale"])))
    caption = (
        f"Standard deviation of the scores of neighbouring passages, by their place in the prompt, mean over queries. "
        f"Scores ({scale} after reranking) are standardised within each list, so 1 is the spread of the whole list; "
        f"a low value after reranking means that passages there are hard to tell apart. {origin}"
    )
    systems = list(dict.fromkeys(frame["system"]))
    legend: list[Legend] = [("first stage", GREY, "--", "s"), ("after reranking", BLUE, "-", "o")]
    content = _panels(systems, panel, x="place in the prompt, % of the list", y="spread of scores", legend=legend)
    return draw("score-spread", "Spread of scores by place in the prompt", caption, _panel_size(len(systems)), content)


def position_figure(frame: pd.DataFrame, *, origin: str) -> Picture:
    """Draw the mean final rank by place in the prompt, of relevant and of other passages.

    Args:
        frame: `analysis.score_positions`'s.
        origin: what made it.
    """

    def panel(axes: Any, system: str) -> None:
        rows = frame[frame["system"] == system]
        places = rows["centre"] * 100
        axes.axhline(50, color=GREY, linewidth=0.8, linestyle="--")
        axes.plot(places, 100 * rows["rank_irrelevant"], color=ORANGE, marker="s", markersize=3)
        axes.plot(places, 100 * rows["rank_relevant"], color=BLUE, marker="o", markersize=3)
        axes.set_title(wrapped(system), fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_ylim(100, 0)

    caption = (
        f"Mean final rank of passages by their place in the prompt (0 is the best rank, 100 the worst). Where the "
        f"prompt follows the first stage, place and quality go together; only shuffled candidates show a position bias "
        f"alone. {origin}"
    )
    systems = list(dict.fromkeys(frame["system"]))
    legend: list[Legend] = [
        ("relevant", BLUE, "-", "o"),
        ("other passages", ORANGE, "-", "s"),
        ("the middle", GREY, "--", ""),
    ]
    content = _panels(
        systems, panel, x="place in the prompt, % of the list", y="mean final rank, % of the list", legend=legend
    )
    return draw("position", "Final rank by place in the prompt", caption, _panel_size(len(systems)), content)


def place_figure(frame: pd.DataFrame, *, origin: str) -> Picture:
    """Draw the mean share of a list's scores by place with its curve; of several runs the first one's in every panel.

    Args:
        frame: `analysis.place_shares`'s, of runs that have shares.
        origin: what made it.
    """
    systems = list(dict.fromkeys(frame["system"]))
    before = frame[frame["system"] == systems[0]]

    def panel(axes: Any, system: str) -> None:
        rows = frame[frame["system"] == system]
        axes.axhline(1.0, color=GREY, linewidth=0.8)
        if system != systems[0]:
            axes.plot(before["centre"] * 100, before["fitted"], color=ORANGE, linestyle="--")
        places, share, error = rows["centre"] * 100, rows["share"], rows["error"]
        axes.fill_between(places, share - 2 * error, share + 2 * error, color=BLUE, alpha=0.15, linewidth=0)
        axes.plot(places, share, "o", color=BLUE, markersize=2.5)
        axes.plot(places, rows["fitted"], color=BLUE)
        ratio = rows["fitted"].max() / rows["fitted"].min()
        axes.set_title(f"{wrapped(system)}\nlargest / smallest: {ratio:.2f}", fontsize=8)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 1.08 * float((frame["share"] + 2 * frame["error"]).max()))

    several = len(systems) > 1
    first = f" Dashes: {systems[0]}, the first run given." if several else ""
    caption = (
        f"Mean share of a list's scores by place in the prompt, 1 being even, with twice the standard error over "
        f"queries, and a smooth curve through them, of which largest and smallest are.{first} "
        f"Only over shuffled prompts (shuffle_seed) is the curve the reranker's alone. {origin}"
    )
    legend: list[Legend] = [("this run", BLUE, "-", "o"), ("even", GREY, "-", "")]
    if several:
        legend.insert(1, ("first run", ORANGE, "--", ""))
    content = _panels(systems, panel, x="place in the prompt, % of the list", y="share of scores", legend=legend)
    return draw("place-shares", "Share of scores by place in the prompt", caption, _panel_size(len(systems)), content)


def order_figure(per_query: pd.DataFrame, *, measure: str, origin: str) -> Picture:
    """Draw how far rankings of the same candidates, given in different orders, agree.

    Args:
        per_query: `biases.order_sensitivity`'s second frame.
        measure: whose spread is shown.
        origin: what made it.
    """
    systems = list(dict.fromkeys(per_query["system"]))[::-1]

    def boxes(axes: Any, column: str) -> None:
        values = [per_query.loc[per_query["system"] == system, column].to_numpy() for system in systems]
        shown = axes.boxplot(values, positions=range(len(systems)), orientation="horizontal", widths=0.5, **_BOX)
        for box in shown["boxes"]:
            box.set_facecolor("#CFE3F2")

    def content(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        boxes(left, "kendall_tau")
        boxes(right, "spread")
        _system_rows(left, systems)
        left.set_xlabel("Kendall's τ between orders")
        right.set_xlabel(f"{measure}, best minus worst order")
        left.set_xlim(min(0.0, float(per_query["kendall_tau"].min())) - 0.03, 1.03)
        right.set_xlim(left=-0.02)
        right.grid(False, axis="y")

    caption = (
        f"Agreement of one system's rankings of the same candidates given in different orders, per query (box: "
        f"quartiles, line: median, whiskers: 1.5 interquartile ranges). Left: mean Kendall's τ over pairs of orders. "
        f"Right: largest minus smallest {measure}. {origin}"
    )
    return draw("order", "Sensitivity to the order of the candidates", caption, _row_size(len(systems)), content)


_BOX: dict[str, Any] = {
    "patch_artist": True,
    "medianprops": {"color": BLUE, "linewidth": 1.8},
    "boxprops": {"edgecolor": BLUE},
    "whiskerprops": {"color": BLUE},
    "capprops": {"color": BLUE},
    "flierprops": {"marker": ".", "markersize": 3, "markeredgecolor": GREY},
}


def length_bias_figure(frame: pd.DataFrame, *, measure: str, ratio: float, origin: str) -> Picture:
    """Draw CoRe's length-bias test, and how rank goes with length.

    Args:
        frame: `biases.length_bias`'s.
        measure: the quality that is shown on the kept queries.
        ratio: which queries were kept.
        origin: what made it.
    """
    rows = frame.iloc[::-1].reset_index(drop=True)
    kept = int(frame["queries"].max())

    def content(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        places = np.arange(len(rows))
        if not kept:
            left.text(0.5, 0.5, "no query is like that", transform=left.transAxes, ha="center", color=GREY)
        left.plot(100 * rows["gold_above_longest"], places, "o", color=BLUE, markersize=6)
        left.plot(100 * rows[measure], places, "D", color=ORANGE, markersize=5)
        left.set_xlim(-3, 103)
        left.set_xlabel("tested queries:\nshort relevant, long irrelevant passages, %")
        _legend_above(left, [_mark("o", BLUE, "gold above longest"), _mark("D", ORANGE, measure)], columns=1)
        right.axvline(0, color=GREY, linewidth=0.8, linestyle="--")
        right.hlines(places, rows["length_low"], rows["length_high"], color=GREEN, linewidth=1.5)
        right.plot(rows["length_correlation"], places, "s", color=GREEN, markersize=5)
        right.grid(False, axis="y")
        limit = 1.1 * max(0.1, float(rows[["length_low", "length_high"]].abs().max().max()))
        right.set_xlim(-limit, limit)
        right.set_xlabel("correlation of length and rank\n(above 0: long passages first)")
        _system_rows(left, rows["system"])

    caption = (
        f"Left: queries whose longest relevant passage has at most {ratio:g} times the words of the longest "
        f"irrelevant one ({kept} queries): how often a relevant passage ends above that longest one, and "
        f"{measure} on these queries. Right: Spearman's correlation of passage length and final rank, mean over all "
        f"queries, with 95% bootstrap intervals. {origin}"
    )
    width, height = _row_size(len(rows))
    return draw("length-bias", "Length bias", caption, (width, height + 0.35), content)


# ----------------------------------------------------------------------------------------------------------- parts


def _row_size(rows: int) -> tuple[float, float]:
    return _WIDTH, 1.15 + 0.3 * max(rows, 2)


def _panel_size(panels: int, each: float = 1.75) -> tuple[float, float]:
    wide = columns_of(panels)
    scale = {1: 1.75, 2: 1.35}.get(wide, 1.0)
    return (4.2 if wide == 1 else _WIDTH), 0.6 + scale * each * -(-panels // wide)


def _system_rows(axes: Any, systems: Sequence[str]) -> None:
    axes.set_yticks(range(len(systems)), [shortened(system) for system in systems])
    axes.set_ylim(-0.6, len(systems) - 0.4)
    axes.grid(False, axis="y")


def _panels(
    systems: Sequence[str],
    panel: Callable[[Any, str], None],
    *,
    x: str,
    y: str,
    legend: Sequence[Legend] = (),
) -> Callable[[Any], None]:
    """Return a function that draws one panel per system, with the axes named once."""

    def content(figure: Any) -> None:
        wide = columns_of(len(systems))
        high = -(-len(systems) // wide)
        grid = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, system in zip(grid, systems, strict=False):
            panel(axes, system)
        if grid[0].get_xlim() == (0.0, 100.0):
            grid[0].set_xticks([0, 25, 50, 75], [0, 25, 50, 75])  # 100 would touch the next panel's 0
        for axes in grid[len(systems) :]:
            axes.set_axis_off()
        for axes in grid[max(0, len(systems) - wide) : len(systems)]:
            axes.tick_params(labelbottom=True)  # above an empty place too
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
        handles = [_line(colour, name, style, mark) for name, colour, style, mark in legend]
        if handles:
            figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))

    return content


def _legend_above(axes: Any, handles: Sequence[Any], columns: int | None = None) -> None:
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns or len(handles))


def _mark(mark: str, colour: str, name: str, *, face: str | None = None) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=mark, linestyle="", markerfacecolor=face or colour, label=name)


def _line(colour: str, name: str, style: Style = "-", mark: str = "") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, marker=mark, markersize=4, label=name)


def _decimal_ticks(axes: Any) -> None:
    """Seconds as people write them, 0.02 and 5 rather than powers of ten, and neither too few nor too many of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.get_xlim()
    decades = np.log10(high / low)
    locator = LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)) if decades > 0.8 else MaxNLocator(4)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
