"""A disk whose power can be cut: what may be on it afterwards, state by state.

The model: a write goes to the disk's cache, where reads find it. ``flush`` makes all of the cache
durable. When the power goes, any subset of the sectors written since the last flush is on the
medium, each with any of the contents it was given since, in no order. Besides, one of the sectors
may be torn: its first bytes new and the rest old, or the other way round, or unreadable until it is
written again. A sector that was rewritten with what it already held may also end up unreadable.
"""

import errno
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from tests.layout import Image, Sectors
from update_agent.core.gpt import Geometry
from update_agent.host.disk import Disk

WHOLE_LIMIT = 1 << 12
"""So many combinations of whole sectors are all tried; of more, a sample."""

TORN_LIMIT = 1 << 5
"""The same for the other sectors beside a torn one, whose every tear is tried with each."""

SAMPLE = 300

Change = Callable[[Disk], object]
"""What is done to a disk while its power may be cut."""


class PowerCutError(BaseException):
    """The power is gone, or the process was killed. No code can catch and survive that."""


class Fault(Enum):
    """What goes wrong with an operation, or with a read."""

    POWER_CUT = "power cut, or the process is killed, before it"
    EIO = "EIO; of a write or flush, anything may have reached the medium"
    DROPPED = "reported as done, never done"
    SHORT = "a sector less is read than was asked for"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tears:
    """How finely torn sectors are tried."""

    step: int
    """Bytes between two places where a sector is cut."""

    rewritten: bool
    """Whether a sector that was rewritten with what it held is tried as unreadable as well."""

    together: int = 1
    """Sectors that become unreadable together: 8 where the disk's own sectors are of 4096 bytes."""

    def unreadable(self, lba: int) -> Sectors:
        first = lba - lba % self.together
        return dict.fromkeys(range(first, first + self.together))


@dataclass(frozen=True, slots=True)
class _Pending:
    """A sector's contents since the last flush, the durable one first."""

    contents: tuple[bytes | None, ...]

    @property
    def different(self) -> tuple[bytes | None, ...]:
        """Return each content once; of a sector rewritten with the same, only one."""
        return tuple(dict.fromkeys(self.contents))

    def torn(self, tears: Tears) -> Iterator[bytes]:
        """Yield the contents, other than none at all, that no write had asked for."""
        for old, new in itertools.pairwise(self.contents):
            if old is not None and new is not None and old != new:
                for at in range(tears.step, len(new), tears.step):
                    yield new[:at] + old[at:]
                    yield old[:at] + new[at:]


class ModelDisk:
    """A ``Disk`` that begins as ``image``. Operations are its writes and flushes, from 0 on."""

    def __init__(self, image: Image, faults: Mapping[int, Fault] | None = None) -> None:
        self.name = "model disk"
        self.geometry = Geometry(sector_size=image.sector_size, sectors=image.sectors)
        self.faults = faults or {}
        self.bad_reads: Mapping[int, Fault] = {}
        """The same for its reads, which are counted apart."""
        self.operations: list[str] = []
        self.reads = 0
        self.written: set[int] = set()
        """Addresses that were written at any time."""
        self._durable = image
        self._pending: dict[int, _Pending] = {}
        self._doomed: dict[int, _Pending] = {}
        """What was in the cache when a flush failed; no later flush makes it durable."""

    def read(self, lba: int, count: int) -> bytes:
        """See ``Disk``."""
        fault = self.bad_reads.get(self.reads)
        self.reads += 1
        if fault is Fault.SHORT:
            count -= 1
        content = self.running.read(lba, min(count, self.geometry.sectors - lba))
        if content is None or fault is Fault.EIO:
            raise _eio()
        return content

    def write(self, lba: int, data: bytes) -> None:
        """See ``Disk``."""
        fault = self._begin(f"write {lba}")
        if fault is Fault.DROPPED:
            return
        size = self.geometry.sector_size
        assert len(data) % size == 0, "only whole sectors can be written"
        assert lba * size + len(data) <= self.geometry.sectors * size, "write beyond the disk"
        for at in range(0, len(data), size):
            self._write_sector(lba + at // size, data[at : at + size])
        if fault is Fault.EIO:
            raise _eio()

    def _write_sector(self, lba: int, data: bytes) -> None:
        before = self._pending.get(lba) or _Pending((self._durable.sector(lba),))
        if lba in self._doomed and lba not in self._pending:
            before = self._doomed[lba]
        self._pending[lba] = _Pending((*before.contents, data))
        self.written.add(lba)

    def flush(self) -> None:
        """See ``Disk``. After a failed one, the cache still answers reads but is never written."""
        fault = self._begin("flush")
        if fault is Fault.DROPPED:
            return
        pending, self._pending = self._pending, {}
        if fault is Fault.EIO:
            self._doomed |= pending
            raise _eio()
        last = {lba: sector.contents[-1] for lba, sector in pending.items()}
        self._durable = self._durable.with_sectors(last)
        self._doomed = {lba: old for lba, old in self._doomed.items() if lba not in last}

    def _begin(self, operation: str) -> Fault | None:
        fault = self.faults.get(len(self.operations))
        if fault is Fault.POWER_CUT:
            raise PowerCutError
        self.operations.append(operation)
        return fault

    @property
    def running(self) -> Image:
        """What reads find while the power is on."""
        last = {lba: pending.contents[-1] for lba, pending in self._unsafe.items()}
        return self._durable.with_sectors(last) if last else self._durable

    @property
    def _unsafe(self) -> dict[int, _Pending]:
        return self._doomed | self._pending

    def crash_states(self, tears: Tears) -> Iterator[Image]:
        """Yield what may be on the medium when the power goes now."""
        changed = {
            lba: pending.different
            for lba, pending in self._unsafe.items()
            if len(pending.different) > 1
        }
        for sectors in _choices(changed, WHOLE_LIMIT):
            yield self._durable.with_sectors(sectors)
        for lba, pending in self._unsafe.items():
            beside = {other: contents for other, contents in changed.items() if other != lba}
            others = list(_choices(beside, TORN_LIMIT, around=lba))
            torn: list[Sectors] = [{lba: content} for content in pending.torn(tears)]
            if tears.rewritten or lba in changed:
                torn.append(tears.unreadable(lba))
            for bad, sectors in itertools.product(torn, others):
                yield self._durable.with_sectors({**sectors, **bad})


def _eio() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def _choices(
    changed: Mapping[int, tuple[bytes | None, ...]], limit: int, *, around: int | None = None
) -> Iterator[Sectors]:
    """Yield what each sector may hold: every combination, or a sample if these are too many."""
    lbas = sorted(changed)
    if math.prod(len(changed[lba]) for lba in lbas) <= limit:
        for contents in itertools.product(*changed.values()):
            yield dict(zip(changed, contents, strict=True))
        return
    picks = _around(lbas, around) if around is not None else _sample(lbas)
    for new in picks:
        yield {lba: changed[lba][-1 if lba in new else 0] for lba in lbas}


def _around(lbas: list[int], lba: int) -> Iterator[set[int]]:
    """Yield which sectors are new beside a torn one: none, all, those before it or after it."""
    yield set()
    yield set(lbas)
    yield {other for other in lbas if other < lba}
    yield {other for other in lbas if other > lba}


def _sample(lbas: list[int]) -> Iterator[set[int]]:
    for at in range(len(lbas) + 1):
        yield set(lbas[:at])
        yield set(lbas[at:])
    for lba in lbas:
        yield {lba}
        yield set(lbas) - {lba}
    chance = random.Random(len(lbas))  # noqa: S311  # the same sample in every run is the point
    for _ in range(SAMPLE):
        yield {lba for lba in lbas if chance.random() < 0.5}


def crashes(
    start: Image, change: Change, tears: Tears, *, seen: set[object] | None = None
) -> Iterator[Image]:
    """Yield each state once that a power cut during ``change``, or right after it, may leave.

    The change is run as often as it has operations, and dies before another one each time.
    ``seen`` keeps, across calls, what was yielded already.
    """
    yield from crashes_of(lambda faults: ModelDisk(start, faults), change, tears, seen=seen)


def crashes_of(
    make: Callable[[Mapping[int, Fault]], ModelDisk],
    change: Change,
    tears: Tears,
    *,
    seen: set[object] | None = None,
) -> Iterator[Image]:
    """Yield the same for a disk that ``make`` returns, with the faults that it is given."""
    seen = set() if seen is None else seen
    for number in itertools.count():
        disk = make({number: Fault.POWER_CUT})
        done = survives(disk, change)
        for state in disk.crash_states(tears):
            key = frozenset(state.content.items())
            if key not in seen:
                seen.add(key)
                yield state
        if done:
            return


def survives(disk: ModelDisk, change: Change) -> bool:
    """Carry out the change; whether no power cut came in between."""
    try:
        change(disk)
    except PowerCutError:
        return False
    return True
