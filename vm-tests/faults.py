"""What goes wrong in a campaign: which fault comes when and where, and how it is made.

``plan`` is pure: the same chance makes the same faults, in the same order. Faults that last do not
take more than a minority of etcd's members at a time, but for the one that is about just that. Each
fault is a context: it begins, lasts, and is undone. What can only be done in a host is undone there
by a timer, for by then nobody may be able to reach it; a reboot undoes it as well.
"""

import random
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from threading import Lock
from typing import Any

from cluster import Fleet
from machine import Machine, MachineError
from middlebox import Manner, Middlebox
from witness import Witness

from tests.server.process import Server

# When and where -----------------------------------------------------------------------------------


class Kind(StrEnum):
    """What goes wrong."""

    POWER_CUT = "power cut"
    AGENT_KILLED = "update-agentd killed"
    WRITER_KILLED = "update-agent-writer killed"
    PRIVATE_CUT = "network between hosts cut"
    OUTSIDE_CUT = "network to the server cut"
    ETCD_STOPPED = "etcd stopped"
    ETCD_KILLED = "etcd killed"
    ETCD_FROZEN = "etcd frozen"
    QUORUM_LOST = "etcd's quorum lost"
    DISK_FULL = "disk full"
    CLOCK_AHEAD = "clock a day ahead"
    CLOCK_BEHIND = "clock a day behind"
    FLIPS = "downloads with flipped bits"
    CUTS = "downloads cut short"
    SILENCE = "server silent"
    PORTAL = "answers of a captive portal"
    SERVER_KILLED = "update server killed"


class Where(StrEnum):
    """What is hit."""

    HOST = "a host"
    MAJORITY = "most hosts"
    SERVER = "the server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sort:
    """What a plan knows of a kind."""

    share: int
    """Of a deck of cards; each deck is played to its end."""
    lasts: tuple[float, float] = (0, 0)
    """Seconds."""
    where: Where = Where.HOST
    member: float | None = None
    """It costs etcd a member, until so many seconds after it ended."""
    alone: str = ""
    """No two of this name at a time, wherever."""


SORTS: Mapping[Kind, Sort] = {
    Kind.POWER_CUT: Sort(share=3, lasts=(2, 40), member=180),
    Kind.AGENT_KILLED: Sort(share=3),
    Kind.WRITER_KILLED: Sort(share=3),
    Kind.PRIVATE_CUT: Sort(share=2, lasts=(5, 90), member=20),
    Kind.OUTSIDE_CUT: Sort(share=2, lasts=(5, 120)),
    Kind.ETCD_STOPPED: Sort(share=1, lasts=(10, 120), member=30),
    Kind.ETCD_KILLED: Sort(share=1, member=30),
    Kind.ETCD_FROZEN: Sort(share=1, lasts=(5, 90), member=20),
    Kind.QUORUM_LOST: Sort(share=1, lasts=(20, 90), where=Where.MAJORITY, member=30),
    Kind.DISK_FULL: Sort(share=2, lasts=(20, 120), member=30),
    Kind.CLOCK_AHEAD: Sort(share=1, lasts=(20, 180)),
    Kind.CLOCK_BEHIND: Sort(share=1, lasts=(20, 180)),
    Kind.FLIPS: Sort(share=2, lasts=(30, 120), where=Where.SERVER, alone="middlebox"),
    Kind.CUTS: Sort(share=2, lasts=(30, 120), where=Where.SERVER, alone="middlebox"),
    Kind.SILENCE: Sort(share=1, lasts=(10, 90), where=Where.SERVER, alone="middlebox"),
    Kind.PORTAL: Sort(share=1, lasts=(10, 90), where=Where.SERVER, alone="middlebox"),
    Kind.SERVER_KILLED: Sort(share=2, lasts=(5, 90), where=Where.SERVER, alone="server"),
}

GAP = (10.0, 70.0)
"""Seconds from one fault to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A fault that is to come."""

    at: float
    """Seconds from the first moment."""
    kind: Kind
    hosts: tuple[int, ...] = ()
    """Places in the fleet."""
    seconds: float = 0

    @property
    def sort(self) -> Sort:
        return SORTS[self.kind]

    def costs(self, at: float) -> Collection[int]:
        """Return the hosts whose member of etcd is lost by it at a moment."""
        after = self.sort.member
        return () if after is None or at >= self.at + self.seconds + after else self.hosts


def plan(chance: random.Random, length: float, hosts: int) -> list[Planned]:
    """Return the faults of ``length`` seconds for so many hosts, in their order."""
    found: list[Planned] = []
    deck: list[Kind] = []
    at = chance.uniform(*GAP)
    while at < length:
        if not deck:
            deck = [kind for kind, sort in SORTS.items() for _ in range(sort.share)]
            chance.shuffle(deck)
        for place, kind in enumerate(deck):
            drawn = _drawn(chance, at, kind, hosts)
            if not _too_much(drawn, found, hosts):
                found.append(drawn)
                del deck[place]
                break
        at += chance.uniform(*GAP)
    return found


def _drawn(chance: random.Random, at: float, kind: Kind, hosts: int) -> Planned:
    sort = SORTS[kind]
    count = {Where.HOST: 1, Where.MAJORITY: hosts // 2 + 1, Where.SERVER: 0}[sort.where]
    hit = tuple(sorted(chance.sample(range(hosts), count)))
    return Planned(at=at, kind=kind, hosts=hit, seconds=round(chance.uniform(*sort.lasts)))


def _too_much(drawn: Planned, before: Sequence[Planned], hosts: int) -> bool:
    """Return whether a fault would be one too many beside those that last."""
    last = [it for it in before if it.at + it.seconds >= drawn.at]
    if any(it.kind is drawn.kind and {*it.hosts} & {*drawn.hosts} for it in last):
        return True
    if drawn.sort.alone and any(it.sort.alone == drawn.sort.alone for it in last):
        return True
    if drawn.sort.member is None:
        return False
    lost = {host for it in before for host in it.costs(drawn.at)}
    if drawn.sort.where is Where.MAJORITY:
        return bool(lost)
    return len(lost | {*drawn.hosts}) > (hosts - 1) // 2


# How ----------------------------------------------------------------------------------------------

REACHED = 120.0
"""Seconds after which a host that cannot be reached is spared."""
UNDONE = 1800.0
"""Seconds after which a fault that cannot be undone is a failure of the campaign."""

FULL = "/media/state/full"


class NotUndoneError(AssertionError):
    """A fault is still there, and nothing can be judged."""


@dataclass
class ServerProcess:
    """The update server, which can be killed and started again."""

    fleet: Fleet
    now: Server | None = None
    _context: Any = None

    def start(self) -> Server:
        self._context = self.fleet.server()
        self.now = self._context.__enter__()
        self.fleet.tokens |= self.now.tokens
        return self.now

    def kill(self) -> None:
        if self.now:
            self.now.end(signal.SIGKILL)
            self._context.__exit__(None, None, None)
            self.now = None


@dataclass
class Scene:
    """All that faults happen to."""

    fleet: Fleet
    middlebox: Middlebox
    server: ServerProcess
    witness: Witness
    power: Mapping[int, Lock] = field(init=False)
    """One power cut at a time, for each host."""

    def __post_init__(self) -> None:
        self.power = {at: Lock() for at, _ in enumerate(self.fleet.hosts)}

    def machines(self, it: Planned) -> list[Machine]:
        return [self.fleet.hosts[at].machine for at in it.hosts]


Fault = Callable[[Scene, Planned], AbstractContextManager[None]]


@contextmanager
def power_cut(scene: Scene, it: Planned) -> Iterator[None]:
    (at,), (machine,) = it.hosts, scene.machines(it)
    with scene.power[at]:
        machine.cut_power()  # when this returns, all that it said was heard
        scene.witness.power_went(machine.name, time.monotonic())
        try:
            yield
        finally:
            machine.power_on()


@contextmanager
def killed(unit: str, scene: Scene, it: Planned) -> Iterator[None]:
    """Kill a unit's processes as soon as there are some."""
    wait = f"timeout 90 sh -c 'until systemctl --quiet is-active {unit}; do sleep 0.2; done'"
    shell(scene.machines(it)[0], f"{wait} && sudo systemctl kill --signal=KILL {unit}")
    yield


@contextmanager
def unplugged(link: str, scene: Scene, it: Planned) -> Iterator[None]:
    (machine,) = scene.machines(it)
    machine.unplug(link)
    try:
        yield
    finally:
        machine.plug(link)


@contextmanager
def stopped(scene: Scene, it: Planned) -> Iterator[None]:
    for machine in scene.machines(it):
        _later(machine, it, "systemctl start etcd", "systemctl stop --no-block etcd")
    yield


@contextmanager
def frozen(scene: Scene, it: Planned) -> Iterator[None]:
    for machine in scene.machines(it):
        _later(
            machine, it,
            "systemctl kill --signal=CONT etcd", "systemctl kill --signal=STOP etcd",
        )  # fmt: skip
    yield


@contextmanager
def clock_off(days: int, scene: Scene, it: Planned) -> Iterator[None]:
    """Set the clock, and set it back by as much: a machine that boots meanwhile asks its RTC."""
    undo, do = (f"date --set '{number:+} day'" for number in (-days, days))
    _later(scene.machines(it)[0], it, undo, do)
    yield


@contextmanager
def disk_full(scene: Scene, it: Planned) -> Iterator[None]:
    """Take every block of STATE, those that are kept for root as well. It outlives a reboot."""
    (machine,) = scene.machines(it)
    most = f"fallocate --length $(($(stat -f -c %f*%S /media/state) - (8 << 20))) {FULL}"
    rest = f"dd if=/dev/zero of={FULL} bs=4k oflag=append conv=notrunc,fsync status=none"
    try:
        shell(machine, f"sudo sh -c '{most} && ! {rest} 2>/dev/null'")
        yield
    finally:
        make_room(machine)


def make_room(machine: Machine) -> None:
    """Undo ``disk_full``, as soon as the host can be reached. Raises NotUndoneError."""
    try:
        shell(machine, f"sudo rm -f {FULL}", UNDONE)
    except MachineError as error:
        raise NotUndoneError(f"{machine.name} cannot be given back its disk: {error}") from error


@contextmanager
def spoilt(manner: Manner, scene: Scene, _: Planned) -> Iterator[None]:
    with scene.middlebox.behaving(manner):
        yield


@contextmanager
def server_killed(scene: Scene, _: Planned) -> Iterator[None]:
    scene.server.kill()
    try:
        yield
    finally:
        scene.server.start()


FAULTS: Mapping[Kind, Fault] = {
    Kind.POWER_CUT: power_cut,
    Kind.AGENT_KILLED: partial(killed, "update-agentd"),
    Kind.WRITER_KILLED: partial(killed, "update-agent-writer"),
    Kind.PRIVATE_CUT: partial(unplugged, "private"),
    Kind.OUTSIDE_CUT: partial(unplugged, "outside"),
    Kind.ETCD_STOPPED: stopped,
    Kind.ETCD_KILLED: partial(killed, "etcd"),
    Kind.ETCD_FROZEN: frozen,
    Kind.QUORUM_LOST: stopped,
    Kind.DISK_FULL: disk_full,
    Kind.CLOCK_AHEAD: partial(clock_off, 1),
    Kind.CLOCK_BEHIND: partial(clock_off, -1),
    Kind.FLIPS: partial(spoilt, Manner.FLIPS),
    Kind.CUTS: partial(spoilt, Manner.CUTS),
    Kind.SILENCE: partial(spoilt, Manner.SILENT),
    Kind.PORTAL: partial(spoilt, Manner.PORTAL),
    Kind.SERVER_KILLED: server_killed,
}


def shell(machine: Machine, command: str, patience: float = REACHED) -> str:
    """Run a command as soon as the host can be reached. Raises MachineError when it never can."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return machine.run(command)
        except MachineError:
            if time.monotonic() > deadline:
                raise


def _later(machine: Machine, it: Planned, undo: str, do: str) -> None:
    """Do something in a host, and let the host itself undo it when it lasted long enough."""
    timer = f"systemd-run --quiet --on-active={it.seconds:.0f} --timer-property=AccuracySec=1s"
    shell(machine, f"sudo {timer} {undo} && sudo {do}")
