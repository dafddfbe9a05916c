"""Who watches hosts from outside, by their serial consoles, and what their lines mean for a group.

A host is *away* from when its agent takes it down for a reboot until its release is confirmed or
the old one is back: all that time it holds a reboot slot. A host whose power somebody cut is not
away, but for one in its trial: that one still is. One thing is only known afterwards: a host that
loses its power in its trial and comes back confirmed had been so before, and may have given its
reboot slot back by then; it was away until its power went, at most.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from machine import UP

NEVER = float("inf")

_BOOTS = re.compile(r"gptprio: slot (.): kernel verified, version (\S+)")
_SLOT = re.compile(r"update-agent-init: slot \S+?(, on trial)?\s*$")
_AGENT = re.compile(r"Started .*Keep this host up to date")
_CONFIRMED = re.compile(r"the booted slot is confirmed")
_LEAVES = re.compile(r"Stopped target multi-user\.target|reboot: Restarting system")
_PANIC = re.compile(r"Kernel panic - not syncing")
_DEADLINE = re.compile(r"was not confirmed by its deadline")
_UP = re.compile(UP)


@dataclass(kw_only=True)
class Away:
    """Once that a host was away, in seconds of time.monotonic()."""

    host: str
    began: float
    ended: float = NEVER
    tried: set[str] = field(default_factory=set)
    """Versions that were on trial."""
    back_with: str = ""
    """The version that it ran in the end."""
    power_went: float | None = None
    """The last time."""


@dataclass(kw_only=True)
class _Host:
    """What is known of a host by its console."""

    away: Away | None = None
    version: str = ""
    """That boots, or runs."""
    on_trial: bool = False
    expected: bool = True
    """That it boots: it was told to, its power was cut, its kernel panicked."""
    up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Something that a host did."""

    at: float
    host: str
    what: str
    """boots, trial, confirmed, back, panic, deadline, or reset: it booted and nobody said why."""
    version: str


class Witness:
    """Hears consoles, in their threads, and remembers what they mean."""

    def __init__(self, names: Iterable[str], tell: Callable[[Seen], None] = lambda _: None) -> None:
        self.aways: list[Away] = []
        self.seen: list[Seen] = []
        self._hosts = {name: _Host() for name in names}
        self._news = threading.Condition()
        self._tell = tell

    # What there is to hear

    def hears(self, host: str, at: float, text: str) -> None:
        """Take note of a line."""
        with self._news:
            known, before = self._hosts[host], len(self.seen)
            if found := _BOOTS.search(text):
                self._boots(host, at, known, found[2])
            elif found := _SLOT.search(text):
                self._started(host, at, known, on_trial=bool(found[1]))
            else:
                self._went_on(host, at, known, text)
            new = self.seen[before:]
            self._news.notify_all()
        for each in new:
            self._tell(each)

    def power_went(self, host: str, at: float) -> None:
        """Take note that somebody cut a host's power."""
        with self._news:
            known = self._hosts[host]
            known.expected, known.up = True, False
            if known.away:
                known.away.power_went = at
            self._news.notify_all()

    def _boots(self, host: str, at: float, known: _Host, version: str) -> None:
        if not known.expected:
            self._note(host, at, "reset", known.version)
        self._note(host, at, "boots", version)
        known.version, known.expected, known.up = version, False, False

    def _started(self, host: str, at: float, known: _Host, *, on_trial: bool) -> None:
        known.on_trial = on_trial
        if on_trial:
            self._note(host, at, "trial", known.version)
            self._leaves(host, at, known).tried.add(known.version)
        elif known.away and known.version in known.away.tried:
            went = known.away.power_went
            self._ends(host, at if went is None else went, known, "confirmed")

    def _went_on(self, host: str, at: float, known: _Host, text: str) -> None:
        if _LEAVES.search(text):
            self._leaves(host, at, known)
            known.expected, known.up = True, False
        elif _PANIC.search(text):
            self._note(host, at, "panic", known.version)
            known.expected = True
        elif _DEADLINE.search(text):
            self._note(host, at, "deadline", known.version)
        elif _CONFIRMED.search(text) and known.on_trial:
            known.on_trial = False
            self._ends(host, at, known, "confirmed")
        elif _AGENT.search(text) or _UP.search(text):
            known.up = known.up or bool(_UP.search(text))
            if known.away and not known.on_trial:
                self._ends(host, at, known, "back")

    def _leaves(self, host: str, at: float, known: _Host) -> Away:
        if known.away is None:
            known.away = Away(host=host, began=at)
            self.aways.append(known.away)
        return known.away

    def _ends(self, host: str, at: float, known: _Host, how: str) -> None:
        if known.away:
            known.away.ended, known.away.back_with = at, known.version
        known.away = None
        self._note(host, at, how, known.version)

    def _note(self, host: str, at: float, what: str, version: str) -> None:
        self.seen.append(Seen(at=at, host=host, what=what, version=version))

    # What became of it

    def wait_until(self, true: Callable[["Witness"], bool], timeout: float) -> bool:
        """Wait until something holds of what was heard; return whether it does in the end."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not (held := true(self)) and (left := deadline - time.monotonic()) > 0:
                self._news.wait(left)
            return held

    @property
    def running(self) -> Mapping[str, str]:
        """By host, the version that it runs, of those that are up and not on trial."""
        return {name: it.version for name, it in self._hosts.items() if it.up and not it.on_trial}

    def fell_back_from(self, version: str) -> list[str]:
        """Return the hosts that tried this version, and are back with another one."""
        return [
            it.host
            for it in self.aways
            if version in it.tried and it.back_with not in ("", version)
        ]

    @property
    def counts(self) -> Counter[str]:
        """How often what was seen."""
        return Counter(it.what for it in self.seen)


def most_at_once(aways: Iterable[Away]) -> list[Away]:
    """Return those that were away at the moment at which most were."""
    known = sorted(aways, key=lambda it: it.began)
    return max(
        ([it for it in known if it.began <= at.began < it.ended] for at in known),
        key=len, default=[],
    )  # fmt: skip
