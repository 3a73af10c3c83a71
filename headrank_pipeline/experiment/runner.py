"""The resumable run: candidates in, a TREC run that can be trusted out.

Queries are reranked in batches that depend only on their order and the batch size, and every finished batch is in the
journal before the next one starts. A run that was killed is continued by the same call: finished batches are skipped,
an unfinished one is done again as a whole, so that the final run equals an uninterrupted one byte for byte even where
a result depends on what else was in its batch. Only a passage cache reaches beyond batches (see `_opened_manifest`).
`run.trec` appears only when every query has been tried.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from headrank_pipeline.attention.recipe import prompt_order
from headrank_pipeline.experiment.batches import CandidateSource, Session, Shard, ThisProcess, Workers
from headrank_pipeline.experiment.directory import (
    SCHEMA_VERSION,
    Entry,
    Journal,
    RunDirectory,
    differences,
    environment,
    journal_key,
    now,
    percentile,
    read_journal,
    read_manifest,
)
from headrank_pipeline.experiment.judgement import Judged, Judgement, judge
from headrank_pipeline.files import file_sha256, open_input, plain, write_json
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Ranking, check_id
from headrank_pipeline.trec import read_candidates, run_writer, write_candidates

__all__ = [
    "Effect",
    "Outcome",
    "RunPlan",
    "closed",
    "execute",
    "totals_of",
]

logger = logging.getLogger(__name__)

# Parts of a reranker's origins that may change a score's last digits; they are told where versions are.
_OF_ENVIRONMENT = ("passage_cache", "kernels")
# Candidates with no more text are held in memory; of more, each reading parses the file again (three in all).
_HELD_CHARACTERS = 2**26
# Notes that a user must hear about.
_LOSSES = ("passages_cut", "tokens_dropped", "control_tokens_neutralised", "unknown_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What to do; equal plans give equal runs.

    Args:
        output: run directory; made when missing, continued when it holds a run of an equal plan.
        reranker: gives the candidates their scores, here or in workers; where does not belong to the plan.
        supply: where candidates come from.
        depth: how many candidates are reranked; those below follow in their order, with continuing scores.
        batch_size: queries handed to the reranker at once.
        tag: last column of the run.
        benchmark: name and version of the benchmark, or None.
        judgement: what to evaluate with, or None.
        limit: only the first queries, or None for all.
        shard: only this part of them, or None; `merging.merge` makes one run of all parts, and evaluates it.
    """

    output: Path
    reranker: Reranker | Workers
    supply: CandidateSource
    depth: int = 100
    batch_size: int = 8
    tag: str = "headrank"
    benchmark: Mapping[str, str] | None = None
    judgement: Judgement | None = None
    limit: int | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "batch_size", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: expected at least 1")
        check_id("run tag", self.tag)

    def identity(self) -> dict[str, Any]:
        """Return everything that can change a ranking, as JSON-ready values."""
        part = {"limit": self.limit, "shard": None if self.shard is None else str(self.shard)}
        return {
            "reranker": self.reranker.describe(),
            "candidates": dict(self.supply.identity),
            "depth": self.depth,
            "batch_size": self.batch_size,
            "tag": self.tag,
            "benchmark": dict(self.benchmark) if self.benchmark else None,
            **{name: value for name, value in part.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to.

    Args:
        directory: where its files lie.
        manifest: the manifest as it was written.
        judged: evaluations, where the plan had a judgement.
    """

    directory: RunDirectory
    manifest: Mapping[str, Any]
    judged: Judged | None

    @property
    def failed(self) -> Mapping[str, str]:
        """Qid -> message of every query that failed."""
        failed: Mapping[str, str] = self.manifest["totals"]["failed"]
        return failed


def execute(plan: RunPlan, *, overwrite: bool = False, command: str | None = None) -> Outcome:
    """Run a plan to its end, or continue it, and return what came of it.

    Args:
        plan: what to do.
        overwrite: start anew where the directory holds a run of another plan, or a damaged one. That run goes when
            the new one has scored its first batch; until then it comes back if anything fails.
        command: the command line, for the manifest.

    Raises:
        ValueError: the directory holds a run of another plan; the message names every difference.
        RuntimeError: another process is writing there, or every query failed.
        Terminated: SIGTERM came; the batch that was being reranked is in the journal.
    """
    directory = RunDirectory(plan.output)
    with directory.locked():
        plan, of_shard = _narrowed(plan)
        directory.recover()
        if not overwrite or not directory.work() or _continues(plan, directory):
            return _executed(plan, directory, command, of_shard)
        # What can be read without a trace is read before the old run moves.
        lists = None if plan.supply.retrieves else _checked_lists(plan, plan.supply.rankings)
        directory.set_aside()
        try:
            outcome = _executed(plan, directory, command, of_shard, lists)
        except BaseException:
            if directory.has_aside:
                directory.restore()
                logger.warning("%s: the run that was there before is there again", directory.path)
            raise
        directory.discard()
        return outcome


def _narrowed(plan: RunPlan) -> tuple[RunPlan, dict[str, Any]]:
    """The plan with the candidates of its part only, and what a shard's manifest says so that it can be merged."""
    if plan.limit is not None:
        plan = replace(plan, supply=plan.supply.first(plan.limit))
    if plan.shard is None:
        return plan, {}
    qids = plan.supply.qids()
    if plan.judgement is not None:
        plan.judgement.check(qids)
    start, stop = plan.shard.bounds(len(qids), plan.batch_size)
    logger.info("shard %s: queries %d to %d of %d", plan.shard, start + 1, stop, len(qids))
    part = {"start": start, "stop": stop, "of": len(qids)}
    judged = None if plan.judgement is None else plan.judgement.describe()
    return replace(plan, supply=plan.supply.between(start, stop)), {"shard": {"queries": part, "judgement": judged}}


def _executed(
    plan: RunPlan,
    directory: RunDirectory,
    command: str | None,
    of_shard: Mapping[str, Any],
    lists: _Lists | None = None,
) -> Outcome:
    manifest = {**_opened_manifest(plan, directory, command), **of_shard}
    write_json(directory.manifest, manifest)
    rankings = _candidates(plan, directory, manifest)
    journal = Journal(directory.scores, journal_key(manifest["identity"]))
    lists = _checked_lists(plan, rankings) if lists is None else lists
    if strangers := [qid for qid in journal.scored_qids() if qid not in lists.digests]:
        raise ValueError(
            f"{journal.path}: holds scores of {len(strangers)} queries that are not in the candidates "
            f"({', '.join(strangers[:3])}); start anew with overwrite=True"
        )
    workers = ThisProcess(plan.reranker) if isinstance(plan.reranker, Reranker) else plan.reranker
    session = Session(directory, journal, workers, [*lists.digests], plan.batch_size, plan.depth)
    session.run(lists)
    return _finish(plan, directory, manifest, _Results(lists, journal, plan.depth), session)


# ------------------------------------------------------------------------------------------------------- beginning


def _continues(plan: RunPlan, directory: RunDirectory) -> bool:
    """Whether what lies in the directory is a run of an equal plan, intact so far: nothing of it need be done again."""
    try:
        manifest = read_manifest(directory.manifest)
        if manifest is None:
            return False
        _check_identity(directory, manifest["identity"], plan.identity())
        scored: dict[str, Entry] = {}
        if directory.scores.exists():
            lines = read_journal(directory.scores, journal_key(manifest["identity"]))
            scored = {entry.qid: entry for _, _, entry in lines if entry.error is None}
        if plan.supply.retrieves and not directory.candidates.exists():
            return not scored
        for ranking in _candidates(plan, directory, manifest)():
            entry = scored.pop(ranking.query.qid, None)
            if entry is not None and set(entry.docids) != set(ranking.docids[: plan.depth]):
                return False
        return not scored
    except ValueError as error:
        logger.info("%s: started anew: %s", directory.path, error)
        return False


def _opened_manifest(plan: RunPlan, directory: RunDirectory, command: str | None) -> dict[str, Any]:
    """The manifest of the run to continue, or a new one; either way with a session for this call."""
    # Where a passage cache is used, keys may have been computed beside other passages: the last digits may differ.
    origins = plan.reranker.origins()
    here = environment() | {name: origins.get(name) for name in _OF_ENVIRONMENT}
    # A call that ended before anything was retrieved or scored (bad candidates, say) left nothing to protect.
    work = directory.work()
    manifest = read_manifest(directory.manifest) if work else None
    session: dict[str, Any] = {"started": now(), "finished": None, "command": command, "folder": str(Path.cwd())}
    if manifest is None:
        if work:
            raise ValueError(
                f"{directory.path}: holds {', '.join(work)} but no manifest.json that says what made them; "
                f"choose another output, or start anew with overwrite=True"
            )
        return {
            "schema": SCHEMA_VERSION,
            "status": "running",
            "identity": plain(plan.identity()),
            "origins": _origins(plan),
            "environment": here,
            "sessions": [session],
            "totals": None,
        }
    _check_identity(directory, manifest["identity"], plan.identity())
    changed = differences(manifest["environment"], here)
    if changed:
        session["environment_changes"] = {key: {"before": old, "now": new} for key, old, new in changed}
        logger.warning(
            "%s is continued in another environment, which may change results in their last digits: %s",
            directory.path,
            "; ".join(f"{key} {old} -> {new}" for key, old, new in changed),
        )
    origins = {**manifest["origins"], **_origins(plan)}
    return {**manifest, "status": "running", "origins": origins, "sessions": [*manifest["sessions"], session]}


def _origins(plan: RunPlan) -> dict[str, str]:
    """Where each input came from; judgments that were given as a file name themselves."""
    qrels = {} if plan.judgement is None else {"qrels": str(plan.judgement.qrels)}
    read = {name: place for name, place in plan.reranker.origins().items() if name not in _OF_ENVIRONMENT}
    return {**qrels, **plan.supply.origins, **read}


def _check_identity(directory: RunDirectory, recorded: Any, wanted: Any) -> None:
    changed = differences(recorded, plain(wanted))
    if changed:
        listed = "\n".join(f"  {key}: there {old!r}, now {new!r}" for key, old, new in changed)
        raise ValueError(
            f"{directory.path}: holds a run of another configuration:\n{listed}\n"
            f"choose another output, or start anew with overwrite=True"
        )


def _candidates(plan: RunPlan, directory: RunDirectory, manifest: dict[str, Any]) -> Callable[[], Iterator[Ranking]]:
    """A way to read the candidates as often as needed; runs the first stage unless it has run for this directory.

    The manifest keeps a digest of what the first stage gave, and is written with it.
    """
    if not plan.supply.retrieves:
        return plan.supply.rankings
    if not directory.candidates.exists():
        started = time.perf_counter()
        count = write_candidates(directory.candidates, plan.supply.rankings())
        logger.info("first stage: %d queries in %.1f s", count, time.perf_counter() - started)
    opened = open_input(directory.candidates, "candidates")
    recorded = manifest.setdefault("candidates_sha256", opened.sha256)
    if recorded != opened.sha256:
        raise ValueError(
            f"{directory.candidates}: not what the first stage wrote: expected SHA-256 {str(recorded)[:12]}…, got "
            f"{opened.sha256[:12]}…; put that file back, or start anew with overwrite=True"
        )
    write_json(directory.manifest, manifest)
    return lambda: read_candidates(opened)


@dataclass(frozen=True, slots=True)
class _Lists:
    """The candidates of all queries, each the same at every reading.

    Args:
        rankings: gives them, in topic order.
        digests: qid -> digest of what was read first, in topic order.
        without_candidates: qids.
        held: what was read first, where it is little enough to be held; None: read again each time.
    """

    rankings: Callable[[], Iterator[Ranking]]
    digests: Mapping[str, bytes]
    without_candidates: Sequence[str]
    held: Sequence[Ranking] | None

    def __call__(self) -> Iterator[Ranking]:
        """Yield the candidates of each query.

        Raises:
            ValueError: others than at the first reading, or fewer.
        """
        if self.held is not None:
            yield from self.held
            return
        expected = iter(self.digests.items())
        for ranking in self.rankings():
            if next(expected, None) != (ranking.query.qid, _digest(ranking)):
                raise self._changed(ranking.query.qid)
            yield ranking
        if (missing := next(expected, None)) is not None:
            raise self._changed(missing[0])

    def _changed(self, qid: str) -> ValueError:
        return ValueError(
            f"qid {qid}: its candidates are not those that were read when the run began; they were changed meanwhile: "
            f"run the command again when nobody writes them"
        )


def _checked_lists(plan: RunPlan, rankings: Callable[[], Iterator[Ranking]]) -> _Lists:
    """Read all candidates once, and fail now where that would come after hours of reranking."""
    digests: dict[str, bytes] = {}
    empty: list[str] = []
    held: list[Ranking] | None = []
    characters = 0
    for ranking in rankings():
        qid = ranking.query.qid
        if qid in digests:
            raise ValueError(f"qid {qid}: occurs twice in the candidates; run files need every qid once, merge the two")
        digests[qid] = _digest(ranking)
        if not ranking.candidates:
            empty.append(qid)
        characters += sum(len(candidate.text or "") for candidate in ranking.candidates)
        if held is not None:
            held.append(ranking)
        if characters > _HELD_CHARACTERS:
            held = None
    if not digests:
        raise ValueError("no queries: the candidates are empty, or none of them is judged")
    if plan.judgement is not None and plan.shard is None:
        plan.judgement.check([*digests])
    return _Lists(rankings, digests, empty, held)


def _digest(ranking: Ranking) -> bytes:
    """Digest everything that a reranker sees."""
    found = hashlib.blake2b(repr(ranking.query).encode(), digest_size=16)
    for candidate in ranking.candidates:
        found.update(repr(candidate).encode())
    return found.digest()


# ---------------------------------------------------------------------------------------------------------- ending


@dataclass(frozen=True, slots=True)
class _Results:
    """Everything that was scored, in topic order."""

    lists: _Lists
    journal: Journal
    depth: int

    def write(self, directory: RunDirectory, tag: str, effect: Effect) -> None:
        """Write both runs, and count in `effect` what became of the lists."""
        with run_writer(directory.run, tag) as reranked, run_writer(directory.first_stage_run, "first-stage") as before:
            for ranking in self.lists():
                before(ranking)
                if self.journal.scored(ranking.query.qid):
                    entry = self.journal.read(ranking.query.qid)
                    effect.add(ranking.docids[: self.depth], entry)
                    reranked(self._joined(ranking, entry))

    def _joined(self, ranking: Ranking, entry: Entry) -> Ranking:
        """The reranked candidates, then those below the depth."""
        if set(entry.docids) != set(ranking.docids[: self.depth]):
            raise ValueError(
                f"{self.journal.path}: qid {entry.qid} was scored for other candidates than there are now; "
                f"start anew with overwrite=True"
            )
        scored = zip(entry.docids, entry.scores, strict=True)
        head = Ranking(ranking.query, tuple(Candidate(docid, score) for docid, score in scored))
        return head.continued_by(ranking)

    def totals(self) -> dict[str, Any]:
        return totals_of(self.journal, len(self.lists.digests), self.lists.without_candidates)


def totals_of(journal: Journal, queries: int, without_candidates: Sequence[str]) -> dict[str, Any]:
    """Return the counts and times of a whole run.

    Args:
        journal: journal of every query that was tried.
        queries: how many there are.
        without_candidates: qids.
    """
    notes: dict[str, float] = {}
    counted = 0
    seconds: list[float] = []
    without = set(without_candidates)
    for entry in chain(map(journal.read, journal.scored_qids()), journal.failures.values()):
        counted += bool(entry.notes)
        for name, value in entry.notes.items():
            notes[name] = notes.get(name, 0) + value
        if entry.error is None and entry.qid not in without:
            seconds.append(entry.seconds)
    return {
        "queries": queries,
        "failed": {qid: entry.error for qid, entry in journal.failures.items()},
        "queries_without_candidates": list(without_candidates),
        "notes": notes,
        "queries_counted": counted,
        "seconds": round(sum(seconds), 3),
        "latency_p50_seconds": percentile(seconds, 50),
        "latency_p95_seconds": percentile(seconds, 95),
    }


def _finish(
    plan: RunPlan, directory: RunDirectory, manifest: dict[str, Any], results: _Results, session: Session
) -> Outcome:
    """Write both runs, evaluate them, and close the manifest."""
    effect = Effect(manifest["identity"]["reranker"])
    results.write(directory, plan.tag, effect)
    judged = None
    if plan.judgement is not None and plan.shard is None:
        judged = judge(directory, plan.judgement, [*results.lists.digests], depth=plan.depth)
    if plan.shard is not None:  # for who merges it, perhaps on another machine
        digests = {file.name: file_sha256(file) for file in (directory.first_stage_run, directory.run)}
        manifest = {**manifest, "shard": {**manifest["shard"], "sha256": digests}}
    *earlier, opened = manifest["sessions"]
    sessions = [*earlier, {**opened, **session.record()}]
    manifest = closed({**manifest, "sessions": sessions}, results.totals(), effect)
    write_json(directory.manifest, manifest)
    _tell(manifest["totals"])
    return Outcome(directory, manifest, judged)


def closed(manifest: Mapping[str, Any], totals: Mapping[str, Any], effect: Effect) -> dict[str, Any]:
    """Return the manifest of a run that came to its end, whose sessions are closed."""
    rate = {"queries_per_second": _rate(manifest["sessions"])}
    whole = {**totals, **rate, "effect": effect.counts(), "warnings": effect.warnings()}
    return {**manifest, "status": "partial" if totals["failed"] else "complete", "totals": whole}


def _tell(totals: Mapping[str, Any]) -> None:
    losses = [f"{name} {totals['notes'][name]:g}" for name in _LOSSES if totals["notes"].get(name)]
    if losses:
        logger.warning("what the model read differs from the passages: %s (sums over the run)", ", ".join(losses))
    for warning in totals["warnings"]:
        logger.warning("%s", warning)
    if totals["queries_without_candidates"]:
        logger.warning("%d queries have no candidates", len(totals["queries_without_candidates"]))


def _rate(sessions: Sequence[Mapping[str, Any]]) -> float | None:
    """Queries per second of wall clock, over the calls that came to their end and reranked something."""
    timed = [session for session in sessions if session.get("queries")]
    seconds = sum(session["seconds"] for session in timed)
    return round(sum(session["queries"] for session in timed) / seconds, 4) if seconds else None


# --------------------------------------------------------------------------------------- whether reranking did anything


_ALMOST_ALL = 0.95  # of the lists
_FOLLOWS = 0.6  # mean Kendall's tau; rerankers that read, and first stages worth reranking, agree far less
_PAIRS = 20  # neighbours in all lists together below which an order may be chance


class Effect:
    """Whether reranking did anything: what a run must tell that would otherwise look like any other run.

    Counted over lists of two passages or more, and told where it is the rule: all scores of a list are equal; the order
    is the first stage's; the scores follow the passages' places in the prompt, where each has one place and the scores
    are the reranker's alone.

    Args:
        reranker: its description, as in a manifest's identity.
    """

    def __init__(self, reranker: Mapping[str, Any]) -> None:
        template, rule = reranker.get("template"), reranker.get("rule")
        # Isolated passages have no place, those of a list that is read in both orders have two, and systems without
        # one prompt have none that is known here. Scores into which the first stage's are mixed follow it as asked.
        placed = isinstance(template, Mapping) and template.get("passages", "causal") == "causal"
        twice = isinstance(rule, Mapping) and rule.get("both_orders")
        alone = not (twice or reranker.get("first_stage_weight"))
        self._template: Mapping[str, Any] | None = template if placed and alone else None
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
