"""Rollouts: when the hosts of a channel are offered its release, a few before the many.

Each host has a place on a ring, from a hash of machine id, product and version: always the same for
one release, and another for the next, so that it is not always the same hosts that go first. A wave
opens the places up to its share, evenly over its length.

A rollout has a clock of its own, in seconds since it was started. A pause stops that clock: places
that are open stay open, no other opens, and after it everything happens later by the length of the
pause. The deadline is a time of the day: from then on every place is open, except during a pause.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from math import ceil
from typing import Annotated

from msgspec import Meta

from update_agent.core.document import Text, Time
from update_agent.core.version import Version

RING = 1_000_000
"""Places; a place reads as ten-thousandths of a percent."""

MAX_WAVES = 64
MAX_SECONDS = 10 * 366 * 86400

_FIRST_YEAR, _LAST_YEAR = 1970, 2500
"""Of all times here; what is added to them stays a time."""

Seconds = Annotated[int, Meta(ge=0, le=MAX_SECONDS)]


def place(machine_id: str, product: str, version: Version) -> int:
    """Return where a host stands in the rollout of ``version``: 0 to ``RING`` - 1."""
    name = f"{machine_id}\0{product}\0{version}".encode()
    return int.from_bytes(sha256(name).digest()[:8]) * RING >> 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """The places below ``share`` that no earlier wave covers, opened evenly over ``length``."""

    share: Annotated[int, Meta(ge=1, le=RING)]
    opens: Seconds = 0
    """On the rollout's clock."""
    length: Seconds = 0


EVERYONE_NOW = (Wave(share=RING),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Why and since when no further host is offered the release."""

    since: Time
    reason: Text
    author: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Waves from ``started`` on, and what came between."""

    started: Time
    waves: Annotated[tuple[Wave, ...], Meta(min_length=1, max_length=MAX_WAVES)] = EVERYONE_NOW
    held: Seconds = 0
    """Length of all pauses that are over."""
    paused: Pause | None = None
    deadline: Time | None = None

    def __post_init__(self) -> None:
        for time in (self.started, self.deadline, self.paused and self.paused.since):
            if time and not _FIRST_YEAR <= time.year <= _LAST_YEAR:
                raise ValueError(
                    f"the year {time.year} is not one of {_FIRST_YEAR} to {_LAST_YEAR}"
                )
        for before, wave in zip(self.waves, self.waves[1:], strict=False):
            if wave.share <= before.share:
                raise ValueError(
                    f"a wave up to {percent(wave.share)} follows one up to {percent(before.share)}"
                )
            if wave.opens < before.opens:
                raise ValueError(f"the wave up to {percent(wave.share)} opens before the earlier")

    def clock(self, now: datetime) -> float:
        """Return the seconds that the rollout has run."""
        return (self._until(now) - self.started).total_seconds() - self.held

    def zero(self, now: datetime) -> datetime:
        """Return from when the waves are counted: it was started then, had it never been paused.

        As if a pause ended ``now``.
        """
        return self.started + timedelta(seconds=self.held) + (now - self._until(now))

    def opening(self, place: int) -> float | None:
        """Return when ``place`` opens on the rollout's clock, or None when no wave covers it."""
        first = 0
        for wave in self.waves:
            if place < wave.share:
                return wave.opens + wave.length * (place - first) / (wave.share - first)
            first = wave.share
        return None

    def is_open(self, place: int, now: datetime) -> bool:
        """Return whether the host at ``place`` is offered the release."""
        if self.deadline and self._until(now) >= self.deadline:
            return True
        opening = self.opening(place)
        return opening is not None and self.clock(now) >= opening

    def opens_at(self, place: int) -> datetime | None:
        """Return when ``place`` opens if no further pause comes; None if nothing is planned."""
        if self.paused:
            return None
        opening = self.opening(place)
        if opening is None:
            return self.deadline
        time = self.started + timedelta(seconds=self.held + opening)
        return min(time, self.deadline) if self.deadline else time

    def share(self, now: datetime) -> int:
        """Return how many of the ``RING`` places are open."""
        if self.deadline and self._until(now) >= self.deadline:
            return RING
        clock, first, opened = self.clock(now), 0, 0
        for wave in self.waves:
            run = clock - wave.opens
            if run >= 0:
                whole = wave.share - first
                part = whole if run >= wave.length else int(whole * run / wave.length) + 1
                opened += min(whole, part)
            first = wave.share
        return opened

    def begun(self, now: datetime) -> int:
        """Return up to which place waves have begun to open."""
        clock = self.clock(now)
        return max((wave.share for wave in self.waves if wave.opens <= clock), default=0)

    def pause(self, pause: Pause) -> "Rollout":
        """Stop the clock; a rollout that is paused stays as it is."""
        return self if self.paused else replace(self, paused=pause)

    def resume(self, now: datetime) -> "Rollout":
        """Let the clock go on from where it stopped; one that runs stays as it is."""
        if self.paused is None:
            return self
        seconds = ceil((now - self.paused.since).total_seconds())
        held = min(MAX_SECONDS, self.held + max(0, seconds))
        return replace(self, paused=None, held=held)

    def _until(self, now: datetime) -> datetime:
        return min(now, self.paused.since) if self.paused else now


def percent(share: int) -> str:
    """Return ``share`` places for people."""
    return f"{share * 100 / RING:g} %"
