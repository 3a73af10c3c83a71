"""From finished runs to means, spreads, planned tests, a Markdown page and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from evidence.data import UNSEEN, Judged
from evidence.experiment import MEASURE
from headrank_pipeline.comparison.analysis import middle_zone
from headrank_pipeline.comparison.canvas import BLUE, GREY, ORANGE, Picture, draw
from headrank_pipeline.comparison.finished import FinishedRun
from headrank_pipeline.comparison.significance import holm, paired_tests
from headrank_pipeline.comparison.tables import Column, Table
from headrank_pipeline.trec import read_qrels

__all__ = ["Comparison", "Results", "middle_zones", "picture", "planned_tests", "tables", "zones_table"]

PerQuery = Mapping[str, float]
NAMES = {"unseen": "mean of these", "scifact": "SciFact", "dl19": "DL19", "noveleval": "NovelEval"}


@dataclass(frozen=True)
class Comparison:
    """A difference that was planned before any test collection was read.

    Args:
        claim: in words.
        system: expected to be better.
        baseline: than this one.
    """

    claim: str
    system: str
    baseline: str


@dataclass(frozen=True)
class Results:
    """Values of one measure.

    Args:
        values: system -> collection -> one mapping per seed (a single one for systems that no seed changes).
        averaged: collections whose mean is the main figure, each counting the same.
    """

    values: Mapping[str, Mapping[str, Sequence[PerQuery]]]
    averaged: Sequence[str] = UNSEEN

    @property
    def places(self) -> list[str]:
        """Return the collections of every table: those averaged, and the demo."""
        return list(dict.fromkeys((*self.averaged, "demo")))

    def seeds(self, system: str) -> int:
        """Return how many seeds a system was made with; 1 for those that no seed changes."""
        return max(len(runs) for runs in self.values[system].values())

    def mean(self, system: str, collection: str, seed: int) -> float:
        """Return the mean over the queries of a collection."""
        runs = self.values[system][collection]
        return float(np.mean(list(runs[seed if len(runs) > 1 else 0].values())))

    def unseen(self, system: str, seed: int) -> float:
        """Return the mean over the averaged collections."""
        return float(np.mean([self.mean(system, collection, seed) for collection in self.averaged]))

    def over_seeds(self, system: str, place: str) -> list[float]:
        """Return a system's value per seed: on a collection, or for ``unseen`` the mean over the averaged ones."""
        of = self.unseen if place == "unseen" else lambda name, seed: self.mean(name, place, seed)
        return [of(system, seed) for seed in range(self.seeds(system))]

    def differences(self, pair: Comparison, place: str) -> list[float]:
        """Return system minus baseline per seed; a baseline that no seed changes is the same in each."""
        first, second = self.over_seeds(pair.system, place), self.over_seeds(pair.baseline, place)
        longest = max(len(first), len(second))
        first, second = (each * longest if len(each) == 1 else each for each in (first, second))
        return [one - other for one, other in zip(first, second, strict=True)]

    def per_query(self, system: str, collection: str) -> np.ndarray:
        """Return [Q] means over seeds, in the order of the first run's queries."""
        runs = self.values[system][collection]
        return np.mean([[run[qid] for qid in runs[0]] for run in runs], axis=0)


def planned_tests(results: Results, pairs: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return one record per planned comparison: differences, their spread over seeds, and paired tests.

    The test on the averaged collections takes all their queries, each weighted so that collections count the same: the
    mean of the weighted differences is the mean over collections, and flipping the sign of a query's difference stays
    what it is. p-values are Holm's over the planned comparisons.
    """
    places, averaged = results.places, results.averaged
    sizes = {place: len(results.per_query(pairs[0].system, place)) for place in places}
    whole = sum(sizes[place] for place in averaged)
    records: list[dict[str, Any]] = []
    for pair in pairs:
        differences = {p: results.per_query(pair.system, p) - results.per_query(pair.baseline, p) for p in places}
        weighted = np.concatenate([differences[p] * whole / (len(averaged) * sizes[p]) for p in averaged])
        found = {"unseen": weighted, **differences}
        tests = {place: paired_tests(values[:, None], np.zeros(len(values)))[0] for place, values in found.items()}
        seeds = {place: results.differences(pair, place) for place in found}
        records.append(
            {**asdict(pair), "by_seed": seeds, "spread": {place: _spread(each) for place, each in seeds.items()},
             "tests": {place: asdict(test) for place, test in tests.items()}}
        )  # fmt: skip
    for place in ("unseen", *places):
        corrected = holm([record["tests"][place]["randomisation"] for record in records])
        for record, p in zip(records, corrected, strict=True):
            record["tests"][place]["randomisation_holm"] = p
    return records


def tables(results: Results, records: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return the table of systems and the table of planned comparisons."""
    places = ["unseen", *results.places]
    shown = [NAMES.get(place, place) for place in results.averaged]
    rows = []
    for system in results.values:
        cells = [results.over_seeds(system, place) for place in places]
        rows.append([system, *(_with_spread(each) for each in cells)])
    first = Table(
        f"{MEASURE}, mean over seeds ± standard deviation over seeds",
        [Column("system"), *(Column(NAMES.get(place, place)) for place in places)],
        rows,
    )
    second = Table(
        f"Planned comparisons on {', '.join(shown)}",
        [Column("comparison"), Column("difference", "+.4f"), Column("spread over seeds", ".4f"),
         *(Column(name, "+.4f") for name in shown), Column("p (Holm)", "p")],
        [[record["claim"], record["tests"]["unseen"]["difference"], record["spread"]["unseen"],
          *(record["tests"][place]["difference"] for place in results.averaged),
          record["tests"]["unseen"]["randomisation_holm"]] for record in records],
    )  # fmt: skip
    return [first, second]


def picture(results: Results, baseline: str, origin: str) -> Picture:
    """Draw every system's value on every collection, one dot per seed; the baseline is a line."""
    systems = [system for system in results.values if system != baseline]
    places = ["unseen", *results.places]

    def content(figure: Any) -> None:
        panels = figure.subplots(1, len(places), sharey=True)
        for axes, place in zip(panels, places, strict=True):
            axes.axvline(results.over_seeds(baseline, place)[0], color=GREY, linestyle="--", linewidth=1.0)
            for row, system in enumerate(reversed(systems)):
                values = results.over_seeds(system, place)
                colour = ORANGE if "interpolated" in system or "fusion" in system else BLUE
                axes.plot([min(values), max(values)], [row, row], color=colour, linewidth=1.0, alpha=0.5)
                axes.plot(values, [row] * len(values), "o", color=colour, markersize=4, alpha=0.8, markeredgewidth=0)
            axes.set_title(NAMES.get(place, place))
            axes.grid(False, axis="y")
            axes.locator_params(axis="x", nbins=3)
        panels[0].set_yticks(range(len(systems)), reversed(systems))
        panels[0].set_ylim(-0.6, len(systems) - 0.4)
        figure.supxlabel(MEASURE, fontsize=9)

    caption = (
        f"{MEASURE} of each system, one dot per seed; the dashed line is {baseline}, orange dots are mixed with it. "
        f"Systems without a seed have one dot. {origin}"
    )
    return draw("evidence", f"{MEASURE} per seed", caption, (9.0, 0.9 + 0.24 * len(systems)), content)


def middle_zones(
    runs: Mapping[str, Mapping[str, Sequence[FinishedRun]]], collections: Sequence[Judged], systems: Sequence[str]
) -> list[dict[str, Any]]:
    """Return middle-zone promotion, one record per system and collection: means over seeds, and each seed's own."""
    records = []
    for system in systems:
        for collection in collections:
            frame = middle_zone(runs[system][collection.name], read_qrels(collection.qrels))
            records.append({"system": system, "collection": collection.name,
                            **frame[["relevant_rate", "irrelevant_rate", "gap"]].mean().to_dict(),
                            "by_seed": frame.to_dict("records")})  # fmt: skip
    return records


def zones_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return what `middle_zones` found as a table."""
    return Table(
        "Middle zone: passages at places 25% to 75% that reach the top quarter, mean over seeds",
        [Column("system"), Column("collection"), *(Column(name, ".1%") for name in ("relevant", "irrelevant", "gap"))],
        [[r["system"], r["collection"], r["relevant_rate"], r["irrelevant_rate"], r["gap"]] for r in records],
    )


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation over seeds; 0 where there is one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _with_spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {_spread(values):.4f}" if len(values) > 1 else mean
