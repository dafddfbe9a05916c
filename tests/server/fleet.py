"""A hundred thousand hosts that follow a channel through a simulated day, some minutes at a time.

Each host has its real place in the rollout, asks for updates every 45 minutes, give or take a
third, and reports through the server's own tables when it reboots and how that ended. What only
says that a host lives is written by one statement for all. The same numbers come out each time.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tests.server.process import report
from tests.server.town import NEW, OLD, Town
from update_agent.core.rollout import RING, place
from update_agent.server import tables
from update_agent.server.intake import store

INSTALLS, BOOTS, FALLS_BACK = 3, 5, 9
"""Minutes from the offer to the reboot, and from there to the end, good or bad."""
_ALIVE = 15
"""Minutes between two signs of life, if anybody looks; in truth ten."""
_BATCH = 5000

Fate = Callable[[int], str | None]
"""Returns the outcome of a host's attempt; None for one that never comes back."""


def fill(database: tables.Database, count: int, now: datetime) -> None:
    """Let so many hosts run the old release."""
    with database.begin() as connection:
        for begin in range(1, count + 1, _BATCH):
            numbers = range(begin, min(begin + _BATCH, count + 1))
            store(database, connection, [report(it, version=OLD, time=now) for it in numbers], now)


@dataclass
class Fleet:
    """Hosts 1 to ``count``, which were told of in ``here`` already."""

    here: Town
    count: int
    fate: Fate
    step: int = 1
    """Minutes that pass at a time."""
    running: int = 0
    hurt: int = 0
    """Fell back, or went away and never came back."""
    minute: int = 0
    lived: int = 0
    _line: list[tuple[float, int]] = field(default_factory=list)
    """(When it is offered, on the rollout's clock; the host), the last first."""
    _due: dict[int, list[tuple[Callable[[Sequence[int]], None], int]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def __post_init__(self) -> None:
        self._chance = random.Random(1)  # noqa: S311  a simulation's

    def promote(self, waves: str) -> None:
        """Begin the rollout."""
        self.here.promote(waves)
        rollout = self.here.channel.rollout
        assert rollout
        opens = ((rollout.opening(place(str(it), "os", NEW)), it) for it in self._numbers())
        self._line = sorted(((at, it) for at, it in opens if at is not None), reverse=True)

    def until(self, end: datetime, *, looks: Callable[[int], bool] = lambda _: True) -> None:
        """Let time pass, at most until people are told of something.

        The server looks in those minutes of which ``looks`` says so.
        """
        while self.here.now < end and not self.here.news:
            self.minute += self.step
            self.here.now += timedelta(minutes=self.step)
            self._open()
            self._act()
            if looks(self.minute):
                if self.minute >= self.lived + _ALIVE:
                    self.here.live()
                    self.lived = self.minute
                self.here.look()

    def _numbers(self) -> range:
        return range(1, self.count + 1)

    def _open(self) -> None:
        """Let those whose place is open ask within their interval."""
        channel = self.here.channel
        assert channel.rollout
        clock = channel.rollout.clock(self.here.now)
        while self._line and self._line[-1][0] <= clock:
            _, host = self._line.pop()
            asks = self._chance.randrange(round(45 * self._chance.uniform(2 / 3, 4 / 3)))
            self._later(asks + INSTALLS, self._reboots, host)

    def _later(self, minutes: int, act: Callable[[Sequence[int]], None], host: int) -> None:
        steps = -(-minutes // self.step)
        self._due[self.minute + steps * self.step].append((act, host))

    def _act(self) -> None:
        together: dict[Callable[[Sequence[int]], None], list[int]] = defaultdict(list)
        for act, host in self._due.pop(self.minute, []):
            together[act].append(host)
        for act, hosts in together.items():
            act(hosts)

    def _reboots(self, hosts: Sequence[int]) -> None:
        if NEW in self.here.channel.quarantined:
            return  # they drop it
        self.here.away(hosts)
        for host in hosts:
            match self.fate(host):
                case "confirmed":
                    self._later(BOOTS, self._confirmed, host)
                case "fell-back":
                    self._later(FALLS_BACK, self._fell_back, host)
                case _:
                    self.hurt += 1

    def _confirmed(self, hosts: Sequence[int]) -> None:
        self.here.ended(hosts, "confirmed")
        self.running += len(hosts)

    def _fell_back(self, hosts: Sequence[int]) -> None:
        self.here.ended(hosts, "fell-back", "not healthy: nginx.service failed")
        self.hurt += len(hosts)

    def share(self) -> float:
        """Return how many of the hosts run the release."""
        return self.running / self.count

    def offered(self) -> float:
        """Return how many places are open."""
        rollout = self.here.channel.rollout
        assert rollout
        return rollout.share(self.here.now) / RING
