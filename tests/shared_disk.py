"""A small model of a disk that the host's work and an update share; time is a number in it.

The disk serves one request after the other, in the order in which they come: each takes its bytes
over the bandwidth, and a little. ``Work`` appends and syncs like a database's log, at most so many
times a second, one at a time; a sync costs more than its bytes, and not always the same. The update
writes one piece after the other, as soon as the pace lets it. No scheduler takes the host's side:
real disks are kinder.
"""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from update_agent.core.bucket import Bucket
from update_agent.core.governor import Pace

TICK = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The host's own: syncs a second, and seconds of the disk that each takes on average."""

    rate: float
    cost: float = 0.002
    size: int = 8192


NONE = Work(rate=0)
When = Callable[[float], Work]
"""What the host does from a time on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What happened in one tick: bytes a second, shares of the time."""

    at: float
    rate: float
    moved: float
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that happened: ticks, and when each sync ended and how long it took."""

    ticks: list[Tick]
    syncs: list[tuple[float, float]]

    def between(self, since: float, until: float = math.inf) -> list[Tick]:
        return [it for it in self.ticks if since <= it.at < until]

    def moved(self, since: float = 0.0, until: float = math.inf) -> float:
        """Bytes a second of the update."""
        found = [it.moved for it in self.between(since, until)]
        return sum(found) / len(found)

    def p99(self, since: float = 0.0, until: float = math.inf) -> float:
        """Seconds that 99 of 100 syncs took at most."""
        found = sorted(took for at, took in self.syncs if since <= at < until)
        return found[int(0.99 * len(found))]


class SharedDisk:
    """The disk, the host's work on it, and the update when there is a pace."""

    def __init__(self, *, bandwidth: float = 50e6, overhead: float = 0.0001, seed: int = 1) -> None:
        self._bandwidth, self._overhead = bandwidth, overhead
        self._chance = random.Random(seed)  # noqa: S311 - must repeat
        self._free_at = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._waits: list[tuple[float, float]] = []
        self._syncs: list[tuple[float, float]] = []
        self._work = NONE
        self._working = False
        self._moved = 0
        self._pace: Pace | None = None
        self._bucket: Bucket | None = None

    def run(
        self,
        seconds: float,
        work: When = lambda _: NONE,
        *,
        pace: Pace | None = None,
        governed: bool = True,
    ) -> Run:
        """Let ``seconds`` pass. A pace that is not ``governed`` goes as fast as the disk."""
        ticks = []
        self._pace = pace
        if pace:
            if governed:
                self._bucket = Bucket(rate=pace.rate, burst=pace.piece, level=0, since=0)
            self._at(0.0, self._write)
        for number in range(round(seconds / TICK)):
            begin, end = number * TICK, (number + 1) * TICK
            self._work, self._moved = work(begin), 0
            if not self._working and self._work.rate:
                self._working = True
                self._at(begin, self._sync)
            while self._events and self._events[0][0] < end:
                at, _, act = heapq.heappop(self._events)
                act(at)
            rate = self._pace.rate if self._pace else 0.0
            moved, waited = self._moved / TICK, self._waited(begin, end)
            ticks.append(Tick(at=begin, rate=rate, moved=moved, waited=waited))
            if self._pace and self._bucket:
                self._pace = self._pace.step(waited, moved=moved, seconds=TICK)
                self._bucket = replace(self._bucket, rate=self._pace.rate, burst=self._pace.piece)
        return Run(ticks=ticks, syncs=self._syncs)

    def _at(self, when: float, act: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, act))

    def _serve(self, now: float, seconds: float) -> float:
        """Return when a request is done that comes ``now``."""
        self._free_at = max(self._free_at, now) + self._overhead + seconds
        return self._free_at

    def _sync(self, now: float) -> None:
        if not self._work.rate:
            self._working = False
            return
        cost = self._work.cost * (0.75 + self._chance.expovariate(4))
        done = self._serve(now, cost + self._work.size / self._bandwidth)
        self._waits.append((now, done))
        self._syncs.append((done, done - now))
        self._at(max(done, now + 1 / self._work.rate), self._sync)

    def _write(self, now: float) -> None:
        assert self._pace
        size = self._pace.piece if self._bucket else 2**20
        wait = 0.0
        if self._bucket:
            self._bucket, wait = self._bucket.take(size, now)
        if wait:
            self._at(now + wait, lambda at: self._start(at, size))
        else:
            self._start(now, size)

    def _start(self, now: float, size: int) -> None:
        self._moved += size
        self._at(self._serve(now, size / self._bandwidth), self._write)

    def _waited(self, begin: float, end: float) -> float:
        """Share of the time in which a sync waited; those that are over are forgotten."""
        time = sum(min(till, end) - max(since, begin) for since, till in self._waits)
        self._waits = [(max(since, end), till) for since, till in self._waits if till > end]
        return min(1.0, max(0.0, time / (end - begin)))
