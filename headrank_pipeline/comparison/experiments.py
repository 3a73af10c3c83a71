"""Pipelines against each other without run directories: retrieve, rerank, evaluate and test in one call."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from headrank_pipeline.comparison.compare import mean_rows, paired_rows, per_query_rows
from headrank_pipeline.experiment.batches import Progress
from headrank_pipeline.experiment.directory import environment, read_json
from headrank_pipeline.experiment.evaluate import DEFAULT_MEASURES, Evaluation, Qrels, evaluate
from headrank_pipeline.files import locked_folder, made_folder, plain, write_json
from headrank_pipeline.pipeline import Queries, Source, as_queries
from headrank_pipeline.records import Query, Ranking
from headrank_pipeline.trec import candidate_line, read_candidates, read_run

__all__ = ["Experiment", "run_experiment"]

System = Source | str | os.PathLike[str] | Sequence[Ranking]

_CHUNK = 8  # queries handed to a pipeline at once; what is done is on the disk after each


@dataclass(frozen=True)
class Experiment:
    """What `run_experiment` found; a notebook shows it as a table.

    Args:
        summary: one row per system: ``system``; for each measure its mean, and its 95 % interval (``MEASURE low``,
            ``MEASURE high``, bootstrap); ``MEASURE p`` of the paired randomisation test, corrected by Holm over the
            systems; ``seconds`` that a pipeline took, in this call or earlier ones.
        tests: one row per measure and system but the baseline, as in `compare.Comparison`.
        per_query: one row per system and query of the qrels, with a value per measure.
        baseline: the system that the others are tested against.
        evaluations: system -> what `evaluate` found; its ``missing`` are queries that count 0.
    """

    summary: pd.DataFrame
    tests: pd.DataFrame
    per_query: pd.DataFrame
    baseline: str
    evaluations: Mapping[str, Evaluation]

    def _repr_html_(self) -> str:
        caption = f"{next(iter(self.evaluations.values())).queries} queries; p against {self.baseline}"
        styled = self.summary.to_html(index=False, float_format=lambda value: f"{value:.4f}", na_rep="", border=0)
        return f"{styled}<p>{caption}</p>"

    def __str__(self) -> str:
        return str(self.summary.to_string(index=False, float_format=lambda value: f"{value:.4f}", na_rep=""))


def run_experiment(
    systems: Mapping[str, System],
    topics: Queries,
    qrels: Qrels,
    measures: str | Sequence[str] = DEFAULT_MEASURES,
    *,
    baseline: str | None = None,
    output: str | os.PathLike[str] | None = None,
    relevance_level: int = 1,
    seed: int = 0,
) -> Experiment:
    """Return how systems compare on the same topics, with paired tests.

    Args:
        systems: name -> a pipeline (``bm25(index) % 100 >> headrank(model)``), a TREC run file's path, or rankings.
        topics: queries, ``{qid: text}``, or whatever a pipeline's ``retrieve`` takes.
        qrels: the same as in `evaluate`. A judged query that a system did not answer counts 0.
        measures: the same as in `evaluate`.
        baseline: the system that the others are tested against; None for the first.
        output: folder that keeps each pipeline's rankings (``NAME.jsonl``). The same call goes on where it was stopped,
            query by query. None keeps nothing.
        relevance_level: lowest relevant grade for binary measures.
        seed: seed of the bootstrap and the randomisation test.

    Raises:
        ValueError: no systems, an unknown baseline, a name that makes no file name, topics or a pipeline that are not
            those which the output was made with, a pipeline that returns other queries than it was given.
        TypeError: a system of another kind.
    """
    names = list(systems)
    if not names:
        raise ValueError("systems: none given; expected at least one, for example {'bm25': bm25('index') % 100}")
    chosen = names[0] if baseline is None else baseline
    if chosen not in systems:
        raise ValueError(f"baseline {chosen!r}: no such system; systems: {', '.join(names)}")
    for name, system in systems.items():
        if not isinstance(system, str | os.PathLike | Source | Iterable):
            raise _other_kind(name, system)
    queries = list(as_queries(topics))
    wanted = [measures] if isinstance(measures, str) else list(measures)
    # What is wrong with the judgments or the measures is told before anything is retrieved.
    evaluate([Ranking(query) for query in queries], qrels, wanted, relevance_level=relevance_level)
    folder = None if output is None else made_folder(Path(output))
    evaluations, seconds = {}, {}
    for name, system in systems.items():
        found, seconds[name] = _answered(name, system, queries, folder)
        evaluations[name] = evaluate(found, qrels, wanted, relevance_level=relevance_level)
    tests = paired_rows(evaluations, chosen, wanted, seed)
    summary = mean_rows(evaluations, wanted, seed)
    for measure in wanted:
        corrected = {row["system"]: row["randomisation_holm"] for row in tests if row["measure"] == measure}
        for row in summary:
            row[f"{measure} p"] = corrected.get(row["system"])
    for row in summary:
        row["seconds"] = seconds[row["system"]]
    return Experiment(pd.DataFrame(summary), pd.DataFrame(tests), per_query_rows(evaluations), chosen, evaluations)


def _answered(
    name: str, system: System, queries: Sequence[Query], folder: Path | None
) -> tuple[Sequence[Ranking] | dict[str, dict[str, float]], float | None]:
    """What a system answers, in a form that `evaluate` takes, and the seconds it took."""
    if isinstance(system, str | os.PathLike):
        run = read_run(system)
        asked = {query.qid for query in queries}
        return {qid: {c.docid: c.score for c in found} for qid, found in run.items() if qid in asked}, None
    if isinstance(system, Source):
        return _kept(name, system, queries, folder) if folder else _retrieved(name, system, queries)
    rankings = list(system)
    if not all(isinstance(ranking, Ranking) for ranking in rankings):
        raise _other_kind(name, system)
    return rankings, None


def _other_kind(name: str, system: object) -> TypeError:
    return TypeError(f"system {name!r}: expected a pipeline, the path of a run file, or rankings, got {system!r:.80}")


def _retrieved(name: str, source: Source, queries: Sequence[Query]) -> tuple[list[Ranking], float]:
    began = time.perf_counter()
    with Progress(len(queries), 0, what=name) as progress:
        rankings = [ranking for chunk in _chunks(name, source, queries, progress) for ranking in chunk]
    return rankings, time.perf_counter() - began


def _chunks(name: str, source: Source, queries: Sequence[Query], progress: Progress) -> Iterator[list[Ranking]]:
    left = iter(queries)
    while chunk := list(islice(left, _CHUNK)):
        rankings = list(source.retrieve(chunk))
        if [ranking.query.qid for ranking in rankings] != [query.qid for query in chunk]:
            got = [ranking.query.qid for ranking in rankings]
            raise ValueError(f"system {name!r}: expected answers to {[query.qid for query in chunk]}, got {got}")
        progress.advance(len(chunk))
        yield rankings


def _kept(name: str, source: Source, queries: Sequence[Query], folder: Path) -> tuple[list[Ranking], float]:
    """Retrieve what the folder does not hold yet, and keep it there chunk by chunk."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"system {name!r}: with output, a name must be letters, digits and . _ + - (it names a file)")
    path, about = folder / f"{name}.jsonl", folder / f"{name}.json"
    digest = sha256("\n".join(f"{query.qid}\t{query.text}" for query in queries).encode()).hexdigest()
    identity = {"system": plain(source.describe()), "topics_sha256": digest}
    with locked_folder(folder, "experiment"):
        new: dict[str, Any] = {"seconds": 0.0, "identity": identity, "made_by": environment()}
        record: dict[str, Any] = read_json(about) if about.exists() else new
        if record["identity"] != identity:
            raise ValueError(
                f"{about}: {name!r} was made by another pipeline or with other topics; take another output"
            )
        write_json(about, record)
        done = list(_whole_lines(path))
        began = time.perf_counter()
        with Progress(len(queries), len(done), what=name) as progress, path.open("a", encoding="utf-8") as file:
            for rankings in _chunks(name, source, queries[len(done) :], progress):
                file.write("".join(f"{candidate_line(ranking)}\n" for ranking in rankings))
                file.flush()
                done += rankings
                write_json(about, {**record, "seconds": record["seconds"] + time.perf_counter() - began})
    return done, read_json(about)["seconds"]


def _whole_lines(path: Path) -> Iterator[Ranking]:
    """Rankings that are whole in the file; a last line that a kill tore is cut off."""
    if not path.exists():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    if end:
        yield from read_candidates(path)
