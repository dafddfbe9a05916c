"""The selector in C against the Python side, on random partition tables.

Tables come from ``tests/fuzz/gpt.py``, their slots' flags are random too, and disks fail now and
then. Held for each: both say the same of either copy (sound, or which field of which partition is
wrong, and what that means), find the same slots, take the same one first, and do the same to the
disk: the same bytes to the same addresses, flushed at the same moments, in the same order, up to
the same end.

    python -m tests.fuzz.selector --count 1000000 --seed 1
    python -m tests.fuzz.selector --count 100000 --asan
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from tests.disks import MemoryDisk
from tests.fuzz import gpt as tables
from tests.fuzz import search
from tests.selector import model, native
from tests.selector.model import FAULTS, Recorded, StartedError
from tests.selector.native import Fault, Refusal, Selector
from update_agent.core import slot
from update_agent.core.gpt import Copy, TableError
from update_agent.core.slot import BootFlags, SlotName, Slots
from update_agent.host.disk import read_tables

PART = 500
"""Disks that a worker tries before it tells."""

_OF_PARTITION = re.compile(r"partition (\d+) (\w+)")

Attempt = Callable[[bool, SlotName], bool]


class MismatchError(AssertionError):
    """C and Python differ."""


def one(random: Random) -> str:
    """Try one random disk; return how it ended."""
    disk = tables.fresh(random)
    _randomize_flags(disk, random)
    if random.random() < 0.9:
        tables.mutate(disk, random)
    if random.random() < 0.1:
        _change_mbr(disk, random)
    fault = random.choice((*FAULTS, None, None, None))
    at = random.randrange(14)
    _hold("what is wrong", Selector(disk).look(), faults(disk))
    ours, theirs = (Recorded(_twin(disk), {at: fault}) for _ in range(2))
    outcome = random.choice((_hold_slots, _hold_flags, _hold_count, _hold_give_up, _hold_boot))(
        ours, theirs, random
    )
    _hold("operations", ours.operations, theirs.operations)
    return outcome


def _change_mbr(disk: MemoryDisk, random: Random) -> None:
    """Make LBA 0 unreadable, another's, a hybrid, or no MBR."""
    at = random.choice((None, 446 + 4, 446 + 16 + 4, 510, 511))
    if at is None:
        disk.bad.add(0)
    else:
        disk.poke(at, bytes([random.choice((0, 0x83, 0xEE, 0x55, 0xAA))]))


def faults(disk: MemoryDisk) -> dict[Copy, Fault | None]:
    """Return what Python says is wrong with the copies."""
    found = read_tables(disk)
    return {copy: _fault(getattr(found, copy)) for copy in Copy}


def _fault(copy: object) -> Fault | None:
    if not isinstance(copy, TableError):
        return None
    of_partition = _OF_PARTITION.fullmatch(copy.field)
    if of_partition:
        return Fault(copy.damage, of_partition[2], int(of_partition[1]))
    return Fault(copy.damage, copy.field, 0)


def _randomize_flags(disk: MemoryDisk, random: Random) -> None:
    words = [_flags(random).merged_into(random.getrandbits(64)) for _ in SlotName]
    for copy in Copy:
        for number, word in zip((2, 3), words, strict=True):
            disk.patch_entry(copy, number, Attributes=word)


def _flags(random: Random) -> BootFlags:
    return BootFlags(
        priority=random.choice((0, 1, 1, 2, 2, random.randrange(16))),
        tries=random.choice((0, 0, 1, 3, random.randrange(16))),
        successful=random.random() < 0.5,
    )


def _twin(disk: MemoryDisk) -> MemoryDisk:
    return replace(disk, sectors=dict(disk.sectors), writes=[], bad=set(disk.bad))


def _hold(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise MismatchError(f"{what}: C {found!r}, Python {wanted!r}")


def _hold_slots(ours: Recorded, theirs: Recorded, _random: Random) -> str:
    selector = Selector(ours)
    selector.look()
    found, wanted = selector.slots(), model.slots_of(theirs)
    _hold("slots", found, wanted)
    if not isinstance(wanted, Slots):
        return f"slots: {wanted.name}"
    _hold("first", native.first(wanted), slot.attempts(wanted)[0].name)
    return "slots: found"


def _hold_flags(ours: Recorded, theirs: Recorded, random: Random) -> str:
    flags = dict(zip(SlotName, (_flags(random), _flags(random)), strict=True))
    found = Selector(ours).set_flags(*flags.values())
    return _held("flags", found, model.change(theirs, lambda slots: slots.with_flags(flags)))


def _hold_count(ours: Recorded, theirs: Recorded, random: Random) -> str:
    name = random.choice(tuple(SlotName))
    found = Selector(ours).count_down(name)
    return _held("count down", found, model.change(theirs, model.count_down(name)))


def _hold_give_up(ours: Recorded, theirs: Recorded, random: Random) -> str:
    name = random.choice(tuple(SlotName))
    found = Selector(ours).give_up(name)
    return _held("give up", found, model.change(theirs, model.give_up(name)))


def _held(what: str, found: Refusal, wanted: Refusal) -> str:
    _hold(what, found, wanted)
    return f"{what}: {wanted.name}"


def _hold_boot(ours: Recorded, theirs: Recorded, random: Random) -> str:
    ends = {name: random.choice(("broken", "returns", "runs")) for name in SlotName}
    found, wanted = (_boot(start, ends) for start in (_c_boot(ours), _python_boot(theirs)))
    _hold("boot", found, wanted)
    return f"boot: {len(wanted)} attempts"


def _c_boot(disk: Recorded) -> Callable[[Attempt], object]:
    return Selector(disk).boot


def _python_boot(disk: Recorded) -> Callable[[Attempt], object]:
    return lambda attempt: model.boot(disk, attempt)


def _boot(start: Callable[[Attempt], object], ends: dict[SlotName, str]) -> list[str]:
    """Boot slots that end as they do; return what was loaded and started."""
    done: list[str] = []

    def attempt(starting: bool, name: SlotName) -> bool:  # noqa: FBT001  as C calls it
        done.append(f"{'start' if starting else 'load'} {name}")
        if starting and ends[name] == "runs":
            raise StartedError
        return ends[name] != "broken"

    try:
        start(attempt)
    except StartedError:
        done.append("runs")
    return done


# The program -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    about = "Hold the selector in C against Python on random tables; fails on a mismatch."
    parser = search.parser("tests.fuzz.selector", about, "disks", count=100_000)
    parser.add_argument("--asan", action="store_true", help="watch the C side with ASan as well")
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(words)
    if options.asan and "LD_PRELOAD" not in os.environ:
        command = [sys.executable, "-m", "tests.fuzz.selector", *words]
        os.execve(sys.executable, command, dict(native.under_asan()))  # noqa: S606  itself again
    if options.repeat:
        print(search.repeated(one, options.repeat))
        return 0
    native.library()
    outcomes = search.searched(one, options, part=PART)
    search.tell(outcomes, f"{outcomes.total():,} disks, 0 mismatches between C and Python")
    return 0


if __name__ == "__main__":
    sys.exit(main())
