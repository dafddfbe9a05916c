"""How fast an update may use the disk: a control law, driven by how long the host's work stalls.

What drives it is the share of the time in which some task of the host's own work waited for a disk
(0 to 1; the ``some`` line of io.pressure), and what the update itself moved. The rules kept here:

* it begins at the floor: nobody knows yet what the host can bear;
* while nobody waits the rate is four times as much with each quarter of a second, the less so the
  more others wait; it stays where they wait as much as they may, and falls beyond that, all the
  faster the longer they wait. From full speed to the floor it is one step;
* whoever could not use the rate gets no higher one: it is never more than four times what was
  moved, so it is never far when it has to bite.

There is no memory of the host but a second's average: what comes and goes is met as it is now.
Whose stalls count is left to ``host/cgroup.py``, how a rate is enforced to ``host/governor.py``.
"""

import math
from dataclasses import dataclass, replace

_GROWTH = 256.0
"""How much faster a second makes it in which nobody waits: four times in a quarter of it."""

_RECENT = 1.0
"""Seconds over which waiting is averaged: work of few operations waits in some ticks only."""

_HEADROOM = 4.0
"""How much more than what was moved the rate may be."""

_USED = 0.75
"""Share of the rate from where on it is the rate that holds the update back."""

_SMALLEST, _LARGEST = 32 * 1024, 1024 * 1024
_PIECE_SECONDS = 1 / 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Between what the rate may move (bytes a second), and the share of time others may wait."""

    floor: float
    ceiling: float = math.inf
    pressure: float = 0.03

    def __post_init__(self) -> None:
        if not 0 < self.floor < math.inf or not self.floor <= self.ceiling:
            raise ValueError(f"wanted 0 < floor <= ceiling, got {self.floor} and {self.ceiling}")
        if not 0 < self.pressure <= 1:
            raise ValueError(f"pressure is a share of the time, got {self.pressure}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast to go now, and what that follows from. Bytes a second; shares of the time."""

    bounds: Bounds
    rate: float
    moved: float = 0.0
    """What the update moved in the last tick."""
    waited: float = 0.0
    """How much others waited lately."""

    @classmethod
    def begin(cls, bounds: Bounds) -> "Pace":
        """Return the pace to begin with."""
        return cls(bounds=bounds, rate=bounds.floor)

    def step(self, waited: float, *, moved: float, seconds: float) -> "Pace":
        """Return the pace after a tick of ``seconds``.

        In it others waited for the share ``waited`` of the time, and we moved ``moved`` bytes a
        second.
        """
        if not (seconds > 0 and 0 <= waited <= 1 and 0 <= moved < math.inf):
            raise ValueError(f"no tick: waited {waited}, moved {moved}, {seconds} seconds")
        weight = min(1.0, seconds / _RECENT)
        lately = self.waited + (waited - self.waited) * weight
        room = 1 - lately / self.bounds.pressure
        did = max(moved, self.bounds.floor)
        most = did * _HEADROOM if room > 0 else did
        rate = min(self.rate * _GROWTH ** (room * weight), most, self.bounds.ceiling)
        return replace(self, rate=max(rate, self.bounds.floor), moved=moved, waited=lately)

    @property
    def throttled_by(self) -> str | None:
        """What keeps the update from being faster, or None when it is no limit of ours."""
        if self.moved < _USED * self.rate:
            return None
        return "limits.ceiling" if self.rate == self.bounds.ceiling else "the host's work"

    @property
    def piece(self) -> int:
        """How many bytes to give a disk at once, in whole blocks.

        Whoever syncs meanwhile waits behind them, 4 ms where the rate is four times what the disk
        does; 32 KiB take 0.7 ms of a disk of 50 MB/s.
        """
        wanted = int(self.rate * _PIECE_SECONDS) // 4096 * 4096
        return min(max(wanted, _SMALLEST), _LARGEST)
