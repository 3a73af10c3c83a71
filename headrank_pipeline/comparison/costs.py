"""What a run cost, from its manifest: the one place that takes costs from a reranker's notes.

A reranker counts its work in `Ranking.notes`; the runner sums them over the run into ``totals.notes``. Of all the names
(`rerank.baselines.replies.NOTES`) these are read:

| note               | meaning, per query                                                                     |
|--------------------|----------------------------------------------------------------------------------------|
| `prompt_tokens`    | tokens read, over all prompts                                                          |
| `generated_tokens` | tokens written by the model; systems that decode nothing leave it out                  |
| `forward_passes`   | passes through the model: a prefill counts 1, each generated token 1 more              |
| `replies`          | replies that had to be parsed                                                          |
| `replies_repaired` | those of them that were not exactly what was asked for                                 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrank_pipeline.comparison.finished import FinishedRun

__all__ = ["Cost", "cost_of"]

PROMPT_TOKENS = "prompt_tokens"
GENERATED_TOKENS = "generated_tokens"
FORWARD_PASSES = "forward_passes"
REPLIES = "replies"
REPLIES_REPAIRED = "replies_repaired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run cost; None where its files do not say.

    Args:
        latency_p50: seconds, median over queries (a batch's time divided by its queries).
        latency_p95: seconds, 95th percentile.
        queries_per_second: queries by seconds of wall clock. Failed queries that were read count, and so does the
            loading of workers.
        prompt_tokens: mean per query that was counted: every scored one, and failed ones as far as they came.
        generated_tokens: likewise.
        forward_passes: likewise.
        formatting_success: share of replies that needed no repair.
        peak_memory_bytes: most that the process held, over its sessions.
        gpu_peak_memory_bytes: most that was allocated on the device, likewise.
        gpu: its name.
        batch_size: queries handed to the reranker at once.
        failed: number of queries that failed.
    """

    latency_p50: float | None
    latency_p95: float | None
    queries_per_second: float | None
    prompt_tokens: float | None
    generated_tokens: float | None
    forward_passes: float | None
    formatting_success: float | None
    peak_memory_bytes: int | None
    gpu_peak_memory_bytes: int | None
    gpu: str | None
    batch_size: int
    failed: int


def cost_of(run: FinishedRun) -> Cost:
    """Return what a run cost."""
    totals, sessions = run.totals, run.manifest["sessions"]
    notes: Mapping[str, float] = totals["notes"]
    scored = totals["queries"] - len(totals["failed"]) - len(totals["queries_without_candidates"])
    counted = totals.get("queries_counted", scored)  # runs of earlier builds kept no counts of failed queries

    def per_query(note: str) -> float | None:
        return notes[note] / counted if note in notes and counted else None

    return Cost(
        latency_p50=totals["latency_p50_seconds"],
        latency_p95=totals["latency_p95_seconds"],
        queries_per_second=totals["queries_per_second"],
        prompt_tokens=per_query(PROMPT_TOKENS),
        generated_tokens=per_query(GENERATED_TOKENS),
        forward_passes=per_query(FORWARD_PASSES),
        formatting_success=_formatting_success(notes),
        peak_memory_bytes=_most(sessions, "peak_memory_bytes"),
        gpu_peak_memory_bytes=_most(sessions, "gpu_peak_memory_bytes"),
        gpu=next((session["gpu"] for session in reversed(sessions) if session.get("gpu")), None),
        batch_size=run.identity["batch_size"],
        failed=len(totals["failed"]),
    )


def _formatting_success(notes: Mapping[str, float]) -> float | None:
    replies = notes.get(REPLIES, 0)
    return 1.0 - notes.get(REPLIES_REPAIRED, 0) / replies if replies else None


def _most(sessions: list[dict[str, Any]], name: str) -> int | None:
    known = [session[name] for session in sessions if session.get(name) is not None]
    return max(known) if known else None
