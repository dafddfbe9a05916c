"""The host's two slots: how they stand, and every change that is made to them.

No caller names a slot. What is written, armed and rolled back to is the other slot, what is
confirmed is the booted one; which is which was found when the writer started. The rules kept here:

* The other slot is retired on the disk before the record of what it holds is removed, and that
  before its first byte is overwritten. So whatever boots is whole, and was verified. And no sooner:
  until there is something to write it is the host's way back.
* A slot is armed only when the record says it was verified, and it still is what the record says:
  header, verity tree and kernel are read again. The rest of it dm-verity reads when it is used.
* Changes come one after the other; who comes while another is at it is told so. Who disarms waits
  for an arm under way, and has the last word; who arms and leaves is not armed for.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from update_agent.core import slot as flags
from update_agent.core import wire
from update_agent.core.chunking import BLOCK
from update_agent.core.slot import Slot, SlotName, Slots
from update_agent.core.slot_image import ImageError
from update_agent.core.wire import BusyError, SlotState, State, UnverifiedError, Verified
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host import slot, udev
from update_agent.host.device import Device
from update_agent.host.partition import open_partition
from update_agent.host.wire import GoneError
from update_agent.writer.host import Host
from update_agent.writer.memory import Memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The slots, by what they are now."""

    slots: Slots
    booted: Slot

    @property
    def other(self) -> Slot:
        """The slot that is not booted."""
        return self.slots[self.booted.name.other]


class HostSlots:
    """The slots of ``host``, and what ``memory`` knows of them."""

    def __init__(self, host: Host, memory: Memory) -> None:
        self.host = host
        self.memory = memory
        self._changing = threading.Lock()
        self._arming = threading.Lock()

    # Looking -------------------------------------------------------------------------------------

    def state(self) -> State:
        """Return how the slots stand. Raises HostError."""
        return self._described(self._slots())

    def _described(self, slots: Slots) -> State:
        """Return how ``slots`` stand; a change that was made is not undone by who cannot look."""
        chosen = flags.choose(slots)
        return State(
            a=self._slot_state(slots.a),
            b=self._slot_state(slots.b),
            next=chosen.name if chosen else None,
            why=flags.explain(slots),
            verified=self.memory.verified(),
        )

    def pair(self) -> Pair:
        """Return the slots. Raises HostError when the host runs from neither."""
        return self._pair(self._slots())

    def _slots(self) -> Slots:
        with disks.open_disk(self.host.disk) as disk:
            return flags.from_table(disks.read_tables(disk).authoritative)

    def _pair(self, slots: Slots) -> Pair:
        for it in slots:
            if it.number == self.host.booted:
                return Pair(slots=slots, booted=it)
        raise HostError(
            f"this host runs from partition {self.host.booted} of {self.host.disk}, which is none"
            f" of its slots ({slots.a.number} and {slots.b.number})",
            hint="boot it from a slot; until then no slot is changed",
        )

    def _slot_state(self, it: Slot) -> SlotState:
        image = self._image(it)
        return SlotState(
            slot=it.name,
            partition=it.number,
            size=image.room,
            booted=it.number == self.host.booted,
            priority=it.flags.priority,
            tries=it.flags.tries,
            successful=it.flags.successful,
            state=it.state,
            unfinished=image.unfinished,
            root_hash=image.root_hash,
            image_size=image.size,
            unknown=image.unknown,
        )

    def _image(self, it: Slot) -> "_Image":
        try:
            with self.open(it) as device:
                return _image_on(device)
        except HostError as error:
            logger.warning("what slot %s holds is not known: %s", it.name, error)
            return _Image(unknown=wire.sentence(str(error)))

    @contextmanager
    def open(self, it: Slot, *, writable: bool = False) -> Iterator[Device]:
        """Open the partition of a slot. Raises HostError."""
        with open_partition(self.host.disk, it.number, writable=writable) as device:
            yield device

    # Changing ------------------------------------------------------------------------------------

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep everybody else from changing slots. Raises BusyError."""
        if not self._changing.acquire(blocking=False):
            raise BusyError(
                "the writer is at another installation, or about to arm what it wrote",
                hint="wait until it is done, or cancel it",
            )
        try:
            yield
        finally:
            self._changing.release()

    @contextmanager
    def opened_other(self, image_size: int) -> Iterator[tuple[Pair, Device]]:
        """Yield the slots and the other one to write to, in nobody's use.

        It stays what it is, but not the next to boot on trial; ``give_up_other`` must come before
        the first byte. Raises HostError when it is in use or too small, or when the booted one was
        not confirmed.
        """
        pair = self.pair()
        flags.retire(pair.slots, pair.other.name)  # refused now, not when all was fetched
        with (
            udev.unused(self.host.disk, pair.other.number),
            self.open(pair.other, writable=True) as device,
        ):
            if image_size > device.size:
                raise HostError(
                    f"the image has {image_size} bytes, slot {pair.other.name} only {device.size}",
                    hint="the slot is too small for this release",
                )
            if not pair.other.flags.successful and flags.choose(pair.slots) == pair.other:
                self._change(lambda it: flags.rollback(it.slots, it.booted.name))
            yield pair, device

    def give_up_other(self) -> None:
        """Retire the other slot, then forget what it held; durable on return. Raises HostError."""
        self._change(lambda it: flags.retire(it.slots, it.other.name))
        self.memory.forget()

    def arm(self, left: Callable[[], bool]) -> State:
        """Let the other slot boot next, on trial, if it is verified. Raises HostError.

        To verify it takes seconds: ``left`` is asked after that whether nobody waits any more.
        """
        with self.changing(), self._arming:
            pair = self.pair()
            verified = self.memory.verified()
            if verified is None or verified.slot is not pair.other.name:
                raise UnverifiedError(
                    f"slot {pair.other.name} is not verified, so it cannot be armed",
                    hint="install a release first",
                )
            with (
                udev.unused(self.host.disk, pair.other.number),
                self.open(pair.other) as device,
            ):
                _want_still(verified, device)
                changed = self._change(lambda it: _armed(it.slots, verified.slot, left))
        return self._described(changed)

    def disarm(self) -> State:
        """Let the booted slot boot next, whatever was being armed. Raises HostError."""
        with self._arming:
            changed = self._change(lambda it: flags.rollback(it.slots, it.booted.name))
        return self._described(changed)

    def confirm(self) -> State:
        """Let the booted slot boot without a try. Raises HostError."""
        return self._described(self._change(lambda it: flags.confirm(it.slots, it.booted.name)))

    def rollback(self) -> State:
        """Let the other slot boot next, if it was confirmed once. Raises BusyError, HostError."""
        with self.changing():  # an installation is about to give that slot up
            changed = self._change(lambda it: flags.rollback(it.slots, it.other.name))
        return self._described(changed)

    def _change(self, edit: Callable[[Pair], Slots]) -> Slots:
        with disks.open_disk(self.host.disk, writable=True) as disk:
            return disks.change_slots(disk, lambda slots: edit(self._pair(slots)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """What stands in a slot, and how many bytes there is room for."""

    room: int | None = None
    unfinished: bool = False
    root_hash: str | None = None
    size: int | None = None
    unknown: str | None = None


def _image_on(device: Device) -> _Image:
    try:
        if slot.unfinished(device):
            return _Image(room=device.size, unfinished=True)
        size, root_hash = slot.layout(device).image_size, slot.root_hash(device).hex()
    except OSError as error:
        return _Image(room=device.size, unknown=wire.sentence(f"{device.path}: {error.strerror}"))
    except ImageError:
        return _Image(room=device.size)
    return _Image(room=device.size, root_hash=root_hash, size=size)


def _armed(slots: Slots, name: SlotName, left: Callable[[], bool]) -> Slots:
    """Return the slots armed; whoever left may have told his user that nothing will reboot."""
    if left():
        raise GoneError(f"the caller left before slot {name} was armed", hint="arm it again")
    return flags.arm(slots, name)


def _want_still(verified: Verified, device: Device) -> None:
    try:
        slot.judge(
            device,
            device.read(0, BLOCK),
            image_size=verified.image_size,
            root_hash=bytes.fromhex(verified.root_hash),
        )
    except (ImageError, OSError) as error:
        raise UnverifiedError(
            f"slot {verified.slot} does not hold {verified.version} any more as it was verified:"
            f" {error}",
            hint="install it again",
        ) from error
