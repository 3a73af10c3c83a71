"""A short seeded part of the fault suite (benchmarks/faults.py), and that the suite can find something at all."""

import sys
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from faults import running
from faults.judging import Case, run_case

from headrank_pipeline.experiment import directory

KINDS = {
    "crash": 6, "disk": 4, "journal": 12, "manifest": 10, "inputs": 6, "ids": 8, "qrels": 8, "runs": 8, "topics": 8,
    "yaml": 5, "pages": 3, "endpoint": 4, "secrets": 4,
}  # fmt: skip


def fault_of(kind):
    from faults import reading, serving

    return {**running.FAULTS, **reading.FAULTS, **serving.FAULTS}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_cases_of_each_kind_hold(kind, tmp_path):
    results = [run_case(Case(kind, seed), fault_of(kind), tmp_path) for seed in range(KINDS[kind])]
    assert [f"{result.case}: {result.told}" for result in results if result.outcome == "failed"] == []
    assert sum(result.outcome is not None for result in results) > len(results) / 2
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_comes_to_something_wrong_is_found_and_can_be_repeated(tmp_path, monkeypatch):
    """The same cases without the digests of journal lines: changed scores would pass for the run's."""
    monkeypatch.setattr(directory, "_digest", lambda body, key: "0" * 16)
    monkeypatch.setattr(running, "_run", cache(running._run.__wrapped__))  # runs of such lines
    monkeypatch.setattr(running, "_home", cache(running._home.__wrapped__))
    found = []
    for _ in range(2):
        results = [run_case(Case("journal", seed), running.journal, tmp_path) for seed in range(20)]
        found.append([(str(result.case), result.outcome) for result in results])
    assert any(result.outcome == "failed" and "silently different" in result.told for result in results)
    assert found[0] == found[1]
