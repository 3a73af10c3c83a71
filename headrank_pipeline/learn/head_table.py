"""One pass over graded lists measures every head of every layer at once, keeping running sums and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import Recipe
from headrank_pipeline.attention.scoring import check_finite
from headrank_pipeline.files import atomic_writer
from headrank_pipeline.learn import measures
from headrank_pipeline.learn.lists import GradedList, arranged
from headrank_pipeline.learn.place_curves import PlaceSums, PlaceTable
from headrank_pipeline.learn.scorer import ListScorer, ndcg
from headrank_pipeline.learn.settings import SelectionConfig

__all__ = ["BINARY_MEASURES", "HeadTable", "has_places", "measure_heads"]

# Measures that look at grades only as relevant or not; lists without both kinds do not count for them.
BINARY_MEASURES = ("qrscore", "core")
GRADED_MEASURES = ("discrimination", "entropy", "ndcg")


@dataclass(frozen=True, slots=True)
class HeadTable:
    """What one pass over graded lists found out about every head.

    Attributes:
        heads: (layer, head), layer by layer.
        layers: number of layers of the whole model.
        values: measure -> [H] float64, its mean over the lists it is defined on; NaN where there was none.
        layer_ndcg: [L] float64, nDCG@10 of the sum of each layer's heads.
        constant: [H], on how many lists a head gave all passages the same score.
        counts: lists ``used``, and those left out: ``one_grade``; ``no_positive`` and ``no_negative`` (they count for
            the graded measures only); ``prompt_tokens`` (mean, rounded).
        calibrated: whether a content-free query was subtracted, which leaves nothing that has an entropy.
        places: how attention goes by place, which only random orders of causal passages show, without calibration;
            otherwise None. Its flatness is a measure, too, NaN where it is None.
    """

    heads: tuple[tuple[int, int], ...]
    layers: int
    values: Mapping[str, np.ndarray]
    layer_ndcg: np.ndarray
    constant: np.ndarray
    counts: Mapping[str, int]
    calibrated: bool = False
    places: PlaceTable | None = None

    def usable(self) -> np.ndarray:
        """Return [H] bool: heads that are not constant on every list."""
        usable: np.ndarray = self.constant < self.counts["used"]
        return usable

    def save(self, path: str | Path, *, scores: np.ndarray | None = None, chosen: HeadSet | None = None) -> None:
        """Write one row per head as TSV: measures, the criterion's score, and whether it was chosen."""
        picked = set(chosen.heads) if chosen else set()
        names = [*self.values]
        with atomic_writer(path) as file:
            file.write("\t".join(["layer", "head", *names, "constant_lists", "score", "chosen"]) + "\n")
            for index, (layer, head) in enumerate(self.heads):
                numbers = [self.values[name][index] for name in names]
                score = np.nan if scores is None else scores[index]
                cells = [str(layer), str(head), *(f"{n:.6f}" for n in numbers), str(self.constant[index])]
                file.write("\t".join([*cells, f"{score:.6f}", str(int((layer, head) in picked))]) + "\n")


def has_places(reading: Recipe, config: SelectionConfig) -> bool:
    """Return whether lists that are read so show how attention goes by place."""
    return config.order == "random" and reading.template.passages == "causal" and reading.rule.content_free is None


def measure_heads(
    scorer: ListScorer,
    lists: Iterable[GradedList],
    config: SelectionConfig | None = None,
    *,
    on_list: Callable[[int], None] | None = None,
) -> HeadTable:
    """Return the measures of every head that the scorer's reader reads, in one forward pass per list.

    Args:
        scorer: scorer whose reader reads all heads (``load(model, "all")``).
        lists: graded lists; those that order nothing are counted and left out.
        config: order, list size, temperature, relevance level.
        on_list: called with the number of lists done.

    Raises:
        ValueError: no list with two grades, or attention that is not finite, naming the list and the head.
    """
    config = config or SelectionConfig()
    sums = _Sums.empty(scorer.reader.heads.heads)
    if has_places(scorer.reading, config):
        sums.places = PlaceSums(len(sums.heads))
    for done, graded in enumerate(lists, start=1):
        if config.max_lists is not None and done > config.max_lists:
            break
        if len(set(graded.grades)) < 2:
            sums.counts["one_grade"] += 1
        else:
            part = arranged(graded, config.list_size, config.order, seed=config.seed)
            sums.add(part, scorer, config)
        if on_list is not None:
            on_list(done)
    if not sums.counts["used"]:
        raise ValueError(
            f"none of the {sums.counts['one_grade']} lists has passages of two grades: no head can be told from another"
        )
    return sums.table(scorer)


@dataclass
class _Sums:
    """Running sums over lists; nothing else of a list is kept."""

    heads: tuple[tuple[int, int], ...]
    layer_of: Tensor
    sums: dict[str, Tensor]
    layer_ndcg: Tensor
    constant: Tensor
    counts: Counter[str] = field(default_factory=Counter)
    places: PlaceSums | None = None

    @classmethod
    def empty(cls, heads: tuple[tuple[int, int], ...]) -> _Sums:
        layer_of = torch.tensor([layer for layer, _ in heads])
        zeros = {name: torch.zeros(len(heads), dtype=torch.float64) for name in (*GRADED_MEASURES, *BINARY_MEASURES)}
        per_layer = torch.zeros(int(layer_of.max()) + 1, dtype=torch.float64)
        return cls(heads, layer_of, zeros, per_layer, torch.zeros(len(heads), dtype=torch.int64))

    def add(self, graded: GradedList, scorer: ListScorer, config: SelectionConfig) -> None:
        (prompt,) = scorer.prompts([graded])
        mass = scorer.masses([prompt])[0].cpu()
        check_finite(mass, self.heads, graded.qid)
        grades = torch.tensor(graded.grades)
        self.counts["used"] += 1
        self.counts["passages"] += len(graded)
        self.counts["prompt_tokens"] += len(prompt)
        if self.places is not None:
            self.places.add(mass.numpy(), prompt.places)
        self.constant += measures.constant_heads(mass)
        self.sums["discrimination"] += measures.discrimination(mass, grades)
        self.sums["entropy"] += measures.normalised_entropy(mass)
        self.sums["ndcg"] += ndcg(mass, grades)
        layers = mass.new_zeros(len(self.layer_ndcg), mass.shape[1]).index_add(0, self.layer_of, mass)
        self.layer_ndcg += ndcg(layers, grades)
        self._add_binary(mass, grades, config)

    def _add_binary(self, mass: Tensor, grades: Tensor, config: SelectionConfig) -> None:
        relevant = grades >= config.relevance_level
        if not relevant.any():
            self.counts["no_positive"] += 1
        elif relevant.all():
            self.counts["no_negative"] += 1
        else:
            self.counts["binary"] += 1
            level = config.relevance_level
            self.sums["qrscore"] += measures.qr_score(mass, grades, relevance_level=level)
            self.sums["core"] += measures.contrastive_score(
                mass, grades, temperature=config.temperature, relevance_level=level
            )

    def table(self, scorer: ListScorer) -> HeadTable:
        used, binary = self.counts["used"], self.counts["binary"]
        share = {name: used for name in GRADED_MEASURES} | {name: binary for name in BINARY_MEASURES}
        values = {name: total.numpy() / share[name] if share[name] else np.full(len(self.heads), np.nan)
                  for name, total in self.sums.items()}  # fmt: skip
        places = None if self.places is None else self.places.table(scorer.rule.support)
        values["flatness"] = np.full(len(self.heads), np.nan) if places is None else places.flatness
        return HeadTable(
            heads=self.heads,
            layers=scorer.reader.source.layers,
            values=values,
            layer_ndcg=self.layer_ndcg.numpy() / used,
            constant=self.constant.numpy(),
            counts={
                "used": used,
                "one_grade": self.counts["one_grade"],
                "no_positive": self.counts["no_positive"],
                "no_negative": self.counts["no_negative"],
                "passages": self.counts["passages"],
                "prompt_tokens": round(self.counts["prompt_tokens"] / used),
            },
            calibrated=scorer.rule.content_free is not None,
            places=places,
        )
