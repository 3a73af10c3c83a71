"""Whether reranking did anything: what a run must tell that would otherwise look like any other run.

Three things are counted over the lists of a run, and told where they are the rule: all scores of a list are equal; the
order is the first stage's; the scores follow the passages' places in the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrank_pipeline.attention.recipe import prompt_order
from headrank_pipeline.experiment.journal import Entry

__all__ = ["Effect"]

_ALMOST_ALL = 0.95  # of the lists
_FOLLOWS = 0.6  # mean Kendall's tau; rerankers that read, and first stages worth reranking, agree far less
_PAIRS = 20  # neighbours in all lists together below which an order may be chance


class Effect:
    """Counts over the lists of a run, of two passages or more.

    Args:
        reranker: its description, as in a manifest's identity.
    """

    def __init__(self, reranker: Mapping[str, Any]) -> None:
        template = reranker.get("template")
        # Isolated passages have no place, and systems without one prompt have none that is known here.
        placed = isinstance(template, Mapping) and template.get("passages", "causal") == "causal"
        self._template: Mapping[str, Any] | None = template if placed else None
        self.lists = self.unchanged = self.equal = 0
        self._neighbours = 0
        self._taus: list[float] = []

    def add(self, candidates: Sequence[str], entry: Entry) -> None:
        """Count a list.

        Args:
            candidates: docids in first-stage order, as far as they were reranked.
            entry: journal entry of the same docids.
        """
        if len(candidates) < 2:
            return
        self.lists += 1
        self._neighbours += len(candidates) - 1
        self.unchanged += list(candidates) == list(entry.docids)
        if min(entry.scores) == max(entry.scores):
            self.equal += 1
        # Passages of a list that was read in several prompts have no one place.
        elif self._template is not None and not entry.notes.keys() & {"windows", "lists_refined"}:
            self._taus.append(self._tau(candidates, entry, self._template))

    def _tau(self, candidates: Sequence[str], entry: Entry, template: Mapping[str, Any]) -> float:
        reverse, seed = bool(template.get("reverse")), template.get("shuffle_seed")
        order = prompt_order(entry.qid, list(candidates), reverse=reverse, shuffle_seed=seed)
        scores = dict(zip(entry.docids, entry.scores, strict=True))
        read = [scores[candidates[index]] for index in order]
        from scipy.stats import kendalltau  # takes longer to load than a short run

        return float(kendalltau(range(len(read)), read).statistic)

    @property
    def place_correlation(self) -> float | None:
        """Mean over the lists of Kendall's tau between score and place in the prompt, from -1 to 1, where known."""
        return round(sum(self._taus) / len(self._taus), 4) if self._taus else None

    def counts(self) -> dict[str, Any]:
        """Return the counts, for the manifest."""
        return {
            "lists": self.lists,
            "lists_in_first_stage_order": self.unchanged,
            "lists_of_equal_scores": self.equal,
            "place_correlation": self.place_correlation,
        }

    def warnings(self) -> list[str]:
        """Return what must be told, one sentence or none."""
        if not self.lists:
            return []
        if self.equal >= _ALMOST_ALL * self.lists:
            return [
                f"reranking told nothing apart: all scores of a list are equal in {self.equal} of {self.lists} lists, "
                f"whose order is therefore the first stage's"
            ]
        if self._neighbours < _PAIRS:
            return []
        if self.unchanged >= _ALMOST_ALL * self.lists:
            return [
                f"reranking changed nothing: {self.unchanged} of {self.lists} lists are in the order of the first stage"
            ]
        tau = self.place_correlation
        if tau is None or abs(tau) < _FOLLOWS:
            return []
        return [f"scores {'rise' if tau > 0 else 'fall'} with the place in the prompt: {self._meaning(tau)}"]

    def _meaning(self, tau: float) -> str:
        assert self._template is not None
        told = f"Kendall's tau {tau:+.2f} in the mean over {len(self._taus)} lists (0: unrelated, ±1: nothing else)"
        if self._template.get("shuffle_seed") is not None:
            return f"{told}; the prompt's order was drawn by chance, so this is not what the passages say"
        turned = ", turned round" if self._template.get("reverse") else ""
        return (
            f"{told}; the prompt's order is the first stage's{turned}, and a run with option shuffle_seed=1 tells "
            f"whether the place or the first stage is followed"
        )
