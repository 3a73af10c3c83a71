"""What lost machines cost: the model of docs/scaling.md beside a simulation of it, and beside processes really killed.

    python benchmarks/losses.py simulate --data ../shared/data
    python benchmarks/losses.py kill --data ../shared/data --output runs/losses --kills 6

The model: a loss costs every core of the machine half a batch, and a start. `simulate` lets machines of 16 cores go at
random moments (exponential times between losses) and counts what is computed in vain, batch by batch: lists as long as
those of TREC DL 2019, in random order, at 2.9 ms a token with smollm2. With *shards* every core has queries of its own
and goes on with them when the machine is back, five minutes later; with a *queue* others take its batches at once.

`kill` runs one ``headrank rerank`` (embedded model, one thread) undisturbed, then again, killed by SIGKILL at random
moments and started by the same command until it is done. Seconds are those of the processor, of killed processes, too,
so that a busy machine does not matter. The run must be the same to the byte.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import random
import shutil
import subprocess
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from headrank_pipeline.trec import read_candidates

TOKEN_SECONDS = 2.9e-3  # smollm2, one core, float32: docs/scaling.md
LIST_TOKENS = 9_400  # the mean of 100 passages
START = 7.0  # seconds of a process until its first list
BATCH = 8  # queries
MACHINE = 16  # cores
AWAY = 300.0  # seconds until a lost machine is back


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=("simulate", "kill"))
    options.add_argument("--data", type=Path, required=True, help="folder of the collections")
    options.add_argument("--output", type=Path, default=Path("runs/losses"), help="runs of kill")
    options.add_argument("--kills", type=int, default=6)
    options.add_argument("--depth", type=int, default=50, help="passages of each list of kill")
    options.add_argument("--seeds", type=int, default=5, help="of simulate")
    chosen = options.parse_args()
    candidates = chosen.data / "dl19" / "candidates.jsonl.gz"
    if chosen.what == "simulate":
        print(simulations(list_seconds(candidates), chosen.seeds))
    else:
        print(killed(candidates, chosen.output, chosen.kills, chosen.depth, random.Random(0)))


# ------------------------------------------------------------------------------------------------------------ simulated


def list_seconds(candidates: Path) -> list[float]:
    """Return the seconds of lists by their words, with the mean that is measured."""
    words = [sum(len((c.text or "").split()) for c in one.candidates) for one in read_candidates(candidates)]
    return [LIST_TOKENS * TOKEN_SECONDS * count / fmean(words) for count in words]


def simulations(lists: Sequence[float], seeds: int) -> str:
    """Return a table: extra core time and hours on the clock, by the model and simulated; means over the seeds."""
    rows = [
        "| pairs | cores | losses of a machine | lost machines | extra core time, model | simulated "
        "| hours without losses | with losses, shards | with losses, queue |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for pairs, cores in ((10**6, 96), (10**8, 992)):
        batches = drawn(lists, pairs // 100 // BATCH, random.Random(0))
        free, _, calm = simulated(batches, cores, None, random.Random(0), shared=False)
        for told, between in (("one a day", 86400.0), ("one an hour", 3600.0)):
            ways = {
                shared: [
                    simulated(batches, cores, between, random.Random(seed), shared=shared) for seed in range(seeds)
                ]
                for shared in (False, True)
            }
            extra = fmean(paid / free - 1 for paid, _, _ in ways[False])
            lost = fmean(lost for _, lost, _ in ways[False])
            shards, queue = (fmean(end for *_, end in ways[shared]) / 3600 for shared in (False, True))
            # What a core that is there loses on average of each of its seconds.
            model = (BATCH * fmean(lists) / 2 + START) / between
            rows.append(
                f"| {pairs:,} | {cores} | {told} | {lost:,.1f} | {model:.2%} | {extra:.2%} | {calm / 3600:.2f} | "
                f"{shards:.2f} | {queue:.2f} |"
            )
    return "\n".join(rows)


def drawn(lists: Sequence[float], count: int, chance: random.Random) -> list[float]:
    """Return the seconds of so many batches of lists drawn at random."""
    return [sum(chance.choices(lists, k=BATCH)) for _ in range(count)]


def simulated(
    batches: Sequence[float], cores: int, between: float | None, chance: random.Random, *, shared: bool
) -> tuple[float, int, float]:
    """Return the core seconds that are paid, how many machines were lost, and the seconds on the clock.

    Args:
        batches: seconds of each.
        cores: of all machines.
        between: mean seconds between losses of one machine that is there; None loses none.
        chance: decides when.
        shared: all cores take from one queue; else each has its share.
    """
    queues = [list(reversed(batches))] if shared else [list(batches[core::cores]) for core in range(cores)]
    losses = [Losses(between, chance) for _ in range(cores // MACHINE)]
    since: dict[int, float] = {}  # when a core's process had started
    idle: set[int] = set()
    events: list[tuple[float, int, float]] = [(0.0, core, 0.0) for core in range(cores)]  # time, core, batch given back
    paid = end = 0.0
    while events:
        now, core, given_back = heapq.heappop(events)
        queue, lost = queues[0 if shared else core], losses[core // MACHINE]
        if given_back:
            queue.append(given_back)
            if idle:
                heapq.heappush(events, (now, idle.pop(), 0.0))
            continue
        if core in since and (gone := lost.next(since[core])) < now:  # while it was idle
            del since[core]
            heapq.heappush(events, (max(now, gone + AWAY), core, 0.0))
            continue
        if not queue:
            idle.add(core)
            continue
        seconds = queue.pop() if core in since else START
        moment = lost.next(now)
        if now + seconds <= moment:
            paid += seconds
            end = now + seconds
            since.setdefault(core, end)
            heapq.heappush(events, (end, core, 0.0))
            continue
        paid += moment - now
        if since.pop(core, None) is not None:
            heapq.heappush(events, (moment, core, seconds))
        heapq.heappush(events, (moment + AWAY, core, 0.0))
    return paid, sum(lost.until(end) for lost in losses), end


class Losses:
    """When one machine is lost; it is back `AWAY` seconds later."""

    def __init__(self, between: float | None, chance: random.Random) -> None:
        self.between, self.chance, self.times = between, chance, list[float]()

    def next(self, now: float) -> float:
        """Return the first loss after a moment."""
        if self.between is None:
            return math.inf
        while not self.times or self.times[-1] <= now:
            back = self.times[-1] + AWAY if self.times else 0.0
            self.times.append(back + self.chance.expovariate(1 / self.between))
        return self.times[bisect_right(self.times, now)]

    def until(self, end: float) -> int:
        return bisect_right(self.times, end)


# --------------------------------------------------------------------------------------------------------------- killed


def killed(candidates: Path, output: Path, kills: int, depth: int, chance: random.Random) -> str:
    """Return what each kill cost in seconds of the processor, by the model and measured."""
    shutil.rmtree(output, ignore_errors=True)
    command = ["headrank", "rerank", "--candidates", str(candidates), "--model", "embedded", "--device", "cpu"]
    command += ["--depth", str(depth), "--batch-size", str(BATCH), "--output"]
    calm, marks = life([*command, str(output / "calm")], output / "calm")
    batch = (marks[-1] - marks[0]) / (len(marks) - 1)
    start = marks[0] - batch
    paid, done = 0.0, 0
    for _ in range(kills):
        spent, _ = life([*command, str(output / "killed")], output / "killed", start + chance.uniform(0, 2 * batch))
        paid += spent
        if (output / "killed" / "run.trec").exists():
            break
        done += 1
    else:
        paid += life([*command, str(output / "killed")], output / "killed")[0]
    same = (output / "calm/run.trec").read_bytes() == (output / "killed/run.trec").read_bytes()
    return (
        f"undisturbed {calm:.1f} s, start {start:.1f}, a batch {batch:.1f}; {done} kills: {paid:.1f} s, "
        f"{(paid - calm) / done:.1f} a kill, model {start + batch / 2:.1f}; the same bytes: {same}"
    )


def life(command: Sequence[str], folder: Path, kill_after: float = math.inf) -> tuple[float, list[float]]:
    """Run a command, killed after so many CPU seconds; return those it took, and those at which batches were done."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marks: list[float] = []
    journal, size = folder / "scores.jsonl", 0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = cpu_seconds(process.pid)
        if journal.exists() and journal.stat().st_size > size:
            size = journal.stat().st_size
            marks.append(now)
        if now > kill_after:
            process.kill()
        time.sleep(0.02)
    _, status, used = os.wait4(process.pid, 0)
    if math.isinf(kill_after) and status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return used.ru_utime + used.ru_stime, marks


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
