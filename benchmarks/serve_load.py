"""headrank serve under load: its capacity, then Poisson arrivals below and above it; every answer checked.

    python benchmarks/serve_load.py                                  # 20 s of capacity, 150 s at 70 %, 60 s at 300 %
    python benchmarks/serve_load.py --steady 600 --overload 120 --output load.json

Requests are the demo collection's queries with 2, 5 or 10 of its passages, in all three shapes. The Python reranker
ranks each of them beforehand, alone; an answer is right if every document is there once, with that score, in order.
Arrivals are an open loop: they do not wait for answers, and latency counts from when a request was due. A request is
lost if it gets no answer at all. Memory is the server's resident set, read once a second. Needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.systems import open_system

SIZES = (2, 5, 10)
CLOSED_LOOP = 16  # clients that measure capacity, each with one request at a time
TOLERANCE = 1e-4  # relative: requests share passes, which changes last digits
MEMORY_GROWTH = 0.05  # between the first and the last tenth at 70 %
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """One request and its known scores."""

    path: str
    body: dict[str, Any]
    scores: list[float]

    def fault(self, reply: Any) -> str | None:
        """Return what is wrong with an answer."""
        results, name = (reply, "score") if self.path == "/rerank" else (reply["results"], "relevance_score")
        order = [result["index"] for result in results]
        if sorted(order) != list(range(len(self.scores))):
            return f"documents {sorted(order)}"
        got = np.array([result[name] for result in results])
        known = np.array([self.scores[index] for index in order])
        if not np.allclose(got, known, rtol=TOLERANCE, atol=1e-7):
            return f"scores {got.tolist()} for {known.tolist()}"
        return "order" if (np.diff(known) > TOLERANCE * known[:-1]).any() else None


@dataclass
class Phase:
    """What became of the requests of one phase."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of answers with 200
    refused: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    cpu: float = 0.0  # seconds of the server

    def report(self, offered: float, duration: float) -> dict[str, Any]:
        """Return the figures of a table's row."""
        p50, p95, p99 = np.percentile(self.seconds, [50, 95, 99]).round(3).tolist()
        tenth = max(1, len(self.memory) // 10)
        return {
            "offered_per_s": round(offered, 1),
            "seconds": round(duration),
            "statuses": dict(self.statuses),
            "wrong": len(self.wrong),
            "answered_per_s": round(len(self.seconds) / duration, 1),
            "server_cpu_s_per_answer": round(self.cpu / len(self.seconds), 3),
            "p50_s": p50,
            "p95_s": p95,
            "p99_s": p99,
            "p99_of_429_s": round(float(np.percentile(self.refused, 99)), 3) if self.refused else None,
            "memory_mib_first_tenth": round(float(np.mean(self.memory[:tenth])) / MIB, 1),
            "memory_mib_last_tenth": round(float(np.mean(self.memory[-tenth:])) / MIB, 1),
        }


def make_cases(model: str, seed: int) -> list[Case]:
    """Return requests about the demo collection, ranked one by one in this process."""
    demo = files("headrank_pipeline") / "resources" / "demo"
    read = lambda name: [json.loads(line) for line in (demo / name).read_text("utf-8").splitlines()]  # noqa: E731
    corpus, draw, reranker = [document["text"] for document in read("corpus.jsonl")], random.Random(seed), None
    reranker = open_system("headrank", model)
    cases = []
    for number, query in enumerate(read("queries.jsonl")):
        texts = draw.sample(corpus, SIZES[number % len(SIZES)])
        candidates = tuple(Candidate(str(index), 0.0, text) for index, text in enumerate(texts))
        ranking = reranker.rerank(Ranking(Query("q", query["text"]), candidates))
        known = {int(candidate.docid): candidate.score for candidate in ranking.candidates}
        path = ("/v1/rerank", "/v2/rerank", "/rerank")[number // len(SIZES) % 3]
        body = {"query": query["text"], ("texts" if path == "/rerank" else "documents"): texts}
        cases.append(Case(path, body, [known[index] for index in range(len(texts))]))
    return cases


@contextmanager
def server(model: str) -> Iterator[tuple[int, str]]:
    """Start headrank serve on a free port; give its process and its URL."""
    command = [sys.executable, "-m", "headrank_pipeline", "serve", "--model", model, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        urls = (found[0] for line in process.stderr if (found := re.search(r"http://[\d.:]+", line)))
        yield process.pid, next(urls)
    finally:
        process.terminate()
        print(f"the server ended with {process.wait(60)}", process.stderr.read().strip(), sep="\n")


@asynccontextmanager
async def watched(pid: int, phase: Phase) -> AsyncIterator[None]:
    """Note the server's memory once a second, and its CPU time."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")

    def cpu() -> float:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])) / tick

    async def watch() -> None:
        while True:
            phase.memory.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page)
            await asyncio.sleep(1)

    watching, before = asyncio.create_task(watch()), cpu()
    try:
        yield
    finally:
        watching.cancel()
        phase.cpu = cpu() - before


async def ask(client: httpx.AsyncClient, case: Case, phase: Phase, due: float) -> None:
    """Send one request; note what came of it."""
    try:
        reply = await client.post(case.path, json=case.body)
    except httpx.HTTPError as error:
        phase.statuses[f"lost: {type(error).__name__}"] += 1
        return
    phase.statuses[str(reply.status_code)] += 1
    if reply.status_code == 200:
        phase.seconds.append(time.monotonic() - due)
        if fault := case.fault(reply.json()):
            phase.wrong.append(f"{case.body['query']}: {fault}")
    elif reply.status_code == 429:
        phase.refused.append(time.monotonic() - due)


async def closed_loop(client: httpx.AsyncClient, cases: list[Case], phase: Phase, duration: float) -> None:
    """Keep some requests under way all the time."""
    end, draw = time.monotonic() + duration, random.Random(1)

    async def keep_asking() -> None:
        while time.monotonic() < end:
            await ask(client, draw.choice(cases), phase, time.monotonic())

    await asyncio.gather(*(keep_asking() for _ in range(CLOSED_LOOP)))


async def open_loop(client: httpx.AsyncClient, cases: list[Case], phase: Phase, rate: float, duration: float) -> None:
    """Send requests at Poisson's times, answered or not."""
    draw, begin, due = random.Random(2), time.monotonic(), 0.0
    asked = []
    while (due := due + draw.expovariate(rate)) < duration:
        await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
        asked.append(asyncio.create_task(ask(client, draw.choice(cases), phase, begin + due)))
    await asyncio.gather(*asked)


async def measure(pid: int, url: str, cases: list[Case], given: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all phases."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        await closed_loop(client, cases, Phase(), 5)  # warm
        phases = {"capacity": Phase(), "70 %": Phase(), "300 %": Phase()}
        async with watched(pid, phases["capacity"]):
            await closed_loop(client, cases, phases["capacity"], given.capacity)
        capacity = len(phases["capacity"].seconds) / given.capacity
        report = {"capacity": phases["capacity"].report(capacity, given.capacity)}
        print(f"capacity: {capacity:.1f} requests/s", flush=True)
        for name, part, duration in (("70 %", 0.7, given.steady), ("300 %", 3.0, given.overload)):
            async with watched(pid, phases[name]):
                await open_loop(client, cases, phases[name], part * capacity, duration)
            report[name] = phases[name].report(part * capacity, duration)
            print(name, json.dumps(report[name]), *phases[name].wrong[:3], sep="\n", flush=True)
        report["metrics"] = [line for line in (await client.get("/metrics")).text.splitlines() if "_total" in line]
        return report


def main() -> None:
    """Run all phases; exit with 1 if a request was lost, refused below capacity or answered wrongly, or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--capacity", type=float, default=20, help="seconds")
    parser.add_argument("--steady", type=float, default=150, help="seconds at 70 %%")
    parser.add_argument("--overload", type=float, default=60, help="seconds at 300 %%")
    parser.add_argument("--output", type=Path, help="JSON with all figures")
    given = parser.parse_args()
    cases = make_cases(given.model, seed=0)
    with server(given.model) as (pid, url):
        report = asyncio.run(measure(pid, url, cases, given))
    if given.output:
        given.output.write_text(json.dumps(report, indent=1) + "\n")
    rows = [row for name, row in report.items() if name != "metrics"]
    counts = [(status, count) for row in rows for status, count in row["statuses"].items()]
    bad = [f"{count} replies with status {status}" for status, count in counts if status not in ("200", "429")]
    bad += [f"{row['wrong']} wrong answers" for row in rows if row["wrong"]]
    steady = report["70 %"]
    if "429" in steady["statuses"]:
        bad.append("429 at 70 %: the machine was busier than when its capacity was measured")
    if steady["memory_mib_last_tenth"] > (1 + MEMORY_GROWTH) * steady["memory_mib_first_tenth"]:
        bad.append(f"memory grew by more than {MEMORY_GROWTH:.0%} at 70 %")
    if bad:
        sys.exit(f"not all is well: {'; '.join(bad)}")


if __name__ == "__main__":
    main()
