"""What the selector must do, by ``update_agent``'s own rules: the twin that C is held against."""

import contextlib
import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tests.selector.native import Refusal
from update_agent.core import slot
from update_agent.core.gpt import Copy, Geometry, TableError
from update_agent.core.slot import SlotName, Slots
from update_agent.errors import HostError
from update_agent.host.disk import Disk, change_slots, read_tables

LOADING, STARTING = False, True
"""What is attempted, as C says it."""


class StartedError(BaseException):
    """A slot was started and runs: the selector is over."""


class NoSuchTrialError(HostError):
    """The slot has no try to lose."""


FAULTS = ("fails", "is lost")
"""What may become of a write or a flush; of one that is lost, nobody is told."""


@dataclass
class Recorded:
    """A disk that remembers what is done to it, in order, some of which may fail."""

    disk: Disk
    faults: Mapping[int, str | None] = field(default_factory=dict)
    operations: list[tuple[int, bytes] | str] = field(default_factory=list)
    name: str = "recorded"
    geometry: Geometry = field(init=False)

    def __post_init__(self) -> None:
        self.geometry = self.disk.geometry

    def read(self, lba: int, count: int) -> bytes:
        return self.disk.read(lba, count)

    def write(self, lba: int, data: bytes) -> None:
        if self._next((lba, data)):
            self.disk.write(lba, data)

    def flush(self) -> None:
        if self._next("flush"):
            self.disk.flush()

    def _next(self, operation: tuple[int, bytes] | str) -> bool:
        """Return whether the operation is done."""
        fault = self.faults.get(len(self.operations))
        self.operations.append(operation)
        if fault == "fails":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fault is None


def count_down(name: SlotName) -> Callable[[Slots], Slots]:
    def edit(slots: Slots) -> Slots:
        flags = slots[name].flags
        if not flags.candidate or flags.successful:
            raise NoSuchTrialError(f"slot {name} is not on trial")
        return slots.with_flags({name: replace(flags, tries=flags.tries - 1)})

    return edit


def give_up(name: SlotName) -> Callable[[Slots], Slots]:
    return lambda slots: slots.with_flags({name: replace(slots[name].flags, tries=0)})


def refusal_of(error: HostError) -> Refusal:
    """Return how the selector calls what the Python side raised."""
    message = str(error)
    if isinstance(error, NoSuchTrialError):
        return Refusal.NO_SUCH_TRIAL
    if isinstance(error, TableError):
        return Refusal.PRIMARY_REFUSED if error.copy is Copy.PRIMARY else Refusal.BACKUP_REFUSED
    beginnings = {
        "both copies of the partition table are unusable": Refusal.BOTH_DAMAGED,
        "the MBR does not speak of a GPT": Refusal.NO_MBR,
        "no room for the partition table": Refusal.NO_ROOM,
        "cannot write the partition table": Refusal.DISK_FAILED,
    }
    for beginning, refusal in beginnings.items():
        if message.startswith(beginning):
            return refusal
    if "partitions are labelled" in message:
        return Refusal.NO_SLOTS
    assert "does not hold at LBA" in message or "was changed by another" in message, message
    return Refusal.NOT_HELD


def change(disk: Disk, edit: Callable[[Slots], Slots]) -> Refusal:
    try:
        change_slots(disk, edit)
    except HostError as error:
        return refusal_of(error)
    return Refusal.NO_REFUSAL


def slots_of(disk: Disk) -> Slots | Refusal:
    try:
        return slot.from_table(read_tables(disk).authoritative)
    except HostError as error:
        return refusal_of(error)


def boot(disk: Disk, attempt: Callable[[bool, SlotName], bool]) -> None:
    """Do what ``Selector.boot`` must do."""
    with contextlib.suppress(OSError):  # every change begins with a flush as well
        disk.flush()
    slots = slots_of(disk)
    if isinstance(slots, Refusal):
        return
    for it in slot.attempts(slots):
        on_trial = it.flags.candidate and not it.flags.successful
        if on_trial and change(disk, count_down(it.name)):
            continue
        if attempt(LOADING, it.name):
            attempt(STARTING, it.name)
        if it.flags.candidate:
            change(disk, give_up(it.name))
