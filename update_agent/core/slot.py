"""Slots, their boot flags, and the rule by which the selector picks one.

A slot is a partition of the type ``SLOT_TYPE`` labelled ``ROOT-A`` or ``ROOT-B``. Its flags live
in the attribute word of its GPT entry, where ChromeOS and CoreOS have them:

    bits 48-51  priority     0 means never boot
    bits 52-55  tries        boots left before an unconfirmed slot is given up
    bit  56     successful   this slot was confirmed

``choose`` is the boot rule of the selector (``partition-layout/selector``). A slot's life, seen
from the other slot A, which is successful:

                 priority tries successful
    retire  B       0       0      no         before its first byte is overwritten
    arm     B       2       3      no         after its last byte is verified; A has priority 1
    (boot)  B       2       2      no         the selector counts down before it starts the slot
    confirm B       2       0      yes        after the new system proved healthy

Beside ``cgpt prioritize -i B``, which ranks ChromeOS's kernel partitions and none of ours:

    ours                              cgpt
    arm puts B at 2, A at 1           the same numbers
    arm sets tries to 3               leaves tries and successful alone; 'cgpt add -T 3 -S 0'
    retire clears all three           has no such verb; 'cgpt add -P 0 -T 0 -S 0'
    rollback puts B at 2, A at 1      the same numbers
    rollback to the slot that boots   renumbers 9 and 3 to 2 and 1
      next anyway changes nothing
    priority 0 stays 0                the same, but for -f (friends), which lifts equals together

The rule kept here: no operation leaves a disk without a successful slot that may boot. Whether the
slot's *content* deserves its flags (verified before arm, healthy before confirm) is for the caller.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self
from uuid import UUID

from update_agent.core.gpt import Partition, Table
from update_agent.errors import HostError

SLOT_TYPE = UUID("14df45bd-ad68-4deb-ae12-8e00afdd62f4")
"""Our partition type, which makes bits 48-63 of the attribute word ours (UEFI 2.10, 5.3.3)."""

TRIES = 3
"""Boots an armed slot gets to prove itself."""

_PRIORITY_SHIFT = 48
_TRIES_SHIFT = 52
_SUCCESSFUL = 1 << 56
_NIBBLE = 0xF
_OURS = _NIBBLE << _PRIORITY_SHIFT | _NIBBLE << _TRIES_SHIFT | _SUCCESSFUL


class SlotName(StrEnum):
    """The two slots of a host."""

    A = "A"
    B = "B"

    @property
    def label(self) -> str:
        """The label of the slot's partition."""
        return f"ROOT-{self}"

    @property
    def other(self) -> "SlotName":
        """The name of the other slot."""
        return SlotName.B if self is SlotName.A else SlotName.A


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFlags:
    """What the selector knows about a slot. The default is a retired slot."""

    priority: int = 0
    tries: int = 0
    successful: bool = False

    def __post_init__(self) -> None:
        for name in ("priority", "tries"):
            if not 0 <= getattr(self, name) <= _NIBBLE:
                raise ValueError(f"{name} must fit in 4 bits, got {getattr(self, name)}")

    @classmethod
    def from_word(cls, word: int) -> Self:
        """Return the flags in an attribute ``word``."""
        return cls(
            priority=word >> _PRIORITY_SHIFT & _NIBBLE,
            tries=word >> _TRIES_SHIFT & _NIBBLE,
            successful=bool(word & _SUCCESSFUL),
        )

    def merged_into(self, word: int) -> int:
        """Return ``word`` with our three fields replaced and every other bit kept."""
        ours = self.priority << _PRIORITY_SHIFT | self.tries << _TRIES_SHIFT
        return word & ~_OURS | ours | (_SUCCESSFUL if self.successful else 0)

    @property
    def candidate(self) -> bool:
        """Whether the boot rule considers the slot at all."""
        return self.priority > 0 and (self.successful or self.tries > 0)

    def __str__(self) -> str:
        confirmed = "successful" if self.successful else "not successful"
        return f"priority {self.priority}, tries {self.tries}, {confirmed}"


RETIRED = BootFlags()


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot of a disk: its name, the number of its partition, and its flags."""

    name: SlotName
    number: int
    flags: BootFlags = RETIRED

    @property
    def state(self) -> str:
        """What the flags mean, in one or two words."""
        if self.flags.successful:
            return "successful" if self.flags.priority else "successful, but of priority 0"
        if self.flags.candidate:
            return "on trial"
        return "retired" if self.flags == RETIRED else "given up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The two slots of a disk."""

    a: Slot
    b: Slot

    def __iter__(self) -> Iterator[Slot]:
        yield self.a
        yield self.b

    def __getitem__(self, name: SlotName) -> Slot:
        return self.a if name is SlotName.A else self.b

    def with_flags(self, flags: dict[SlotName, BootFlags]) -> "Slots":
        """Return the slots with the flags of the named ones replaced."""
        return Slots(
            a=replace(self.a, flags=flags.get(SlotName.A, self.a.flags)),
            b=replace(self.b, flags=flags.get(SlotName.B, self.b.flags)),
        )


class SlotStateError(HostError):
    """The slots' flags do not allow what was asked for."""


# On a disk ---------------------------------------------------------------------------------------


def from_table(table: Table) -> Slots:
    """Return the two slots of a disk, found by type and label. Raises HostError."""
    return Slots(a=_find(table, SlotName.A), b=_find(table, SlotName.B))


def words(table: Table, slots: Slots) -> dict[int, int]:
    """Return the attribute word of each slot's partition as it must stand in ``table``."""
    found = {part.number: part.attributes for part in table.partitions}
    return {slot.number: slot.flags.merged_into(found[slot.number]) for slot in slots}


def _find(table: Table, name: SlotName) -> Slot:
    found = [
        part
        for part in table.partitions
        if part.type_guid == SLOT_TYPE and part.label == name.label
    ]
    if len(found) != 1:
        others = ", ".join(f"{part.number} {_named(part)}" for part in table.partitions)
        raise HostError(
            f"{len(found)} partitions are labelled {name.label} and of type {SLOT_TYPE}, wanted 1",
            hint=f"the disk has {'partitions ' + others if others else 'no partition'}",
        )
    flags = BootFlags.from_word(found[0].attributes)
    return Slot(name=name, number=found[0].number, flags=flags)


def _named(part: Partition) -> str:
    is_slot = part.type_guid == SLOT_TYPE
    looks_like_one = part.label in {name.label for name in SlotName}
    return f"'{part.label}'{' (of another type)' if looks_like_one and not is_slot else ''}"


# The boot rule -----------------------------------------------------------------------------------


def choose(slots: Slots) -> Slot | None:
    """Return the slot that boots next, or None when no slot is a candidate.

    The highest priority wins; a tie goes to the lowest partition number.
    """
    return min((slot for slot in slots if slot.flags.candidate), key=_rank, default=None)


def attempts(slots: Slots) -> tuple[Slot, ...]:
    """Return the slots in the order in which the selector tries to load them.

    Candidates first. What comes after them is the last resort: a slot that the flags have given
    up but whose kernel still verifies is better than a host that stands still.
    """
    return tuple(sorted(slots, key=lambda slot: (not slot.flags.candidate, *_last_rank(slot))))


def boot(slots: Slots) -> tuple[Slot | None, Slots]:
    """Return the slot that the selector starts, and the slots as it leaves them on the disk."""
    slot = choose(slots)
    if slot is None or slot.flags.successful:
        return slot, slots
    counted = replace(slot.flags, tries=slot.flags.tries - 1)
    left = slots.with_flags({slot.name: counted})
    return left[slot.name], left


def explain(slots: Slots) -> str:
    """Return in one sentence which slot boots next and why."""
    slot = choose(slots)
    if slot is None:
        first = attempts(slots)[0].name
        return f"no slot may boot by its flags; as a last resort slot {first} is tried first"
    other = slots[slot.name.other]
    if not other.flags.candidate:
        why = f"slot {other.name} is {other.state} and may not boot"
    elif other.flags.priority == slot.flags.priority:
        why = f"both slots have priority {slot.flags.priority} and its partition comes first"
    else:
        why = f"its priority {slot.flags.priority} is above {other.flags.priority}"
    if slot.flags.successful:
        return f"slot {slot.name} boots next: {why}"
    return f"slot {slot.name} boots next, on trial with {_tries(slot.flags.tries)} left: {why}"


def _rank(slot: Slot) -> tuple[int, int]:
    return (-slot.flags.priority, slot.number)


def _last_rank(slot: Slot) -> tuple[int, int, int]:
    """Among candidates only the boot rule counts, among the others also what was confirmed once."""
    given_up = not slot.flags.candidate and not slot.flags.successful
    return (given_up, *_rank(slot))


def _tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


# Operations --------------------------------------------------------------------------------------


def retire(slots: Slots, name: SlotName) -> Slots:
    """Make slot ``name`` unbootable; must be on the disk before its content is overwritten.

    Refused unless the other slot may boot and was confirmed: it is the only fallback meanwhile.
    """
    _must_carry_the_host(slots[name.other], f"slot {name} is its only fallback")
    return slots.with_flags({name: RETIRED})


def arm(slots: Slots, name: SlotName) -> Slots:
    """Make the retired slot ``name`` the next to boot, on trial; the other slot stays behind it.

    To be called only after every byte of the slot was verified. Arming again changes nothing.
    """
    keeper = slots[name.other]
    armed = slots.with_flags(
        {
            keeper.name: replace(keeper.flags, priority=1),
            name: BootFlags(priority=2, tries=TRIES),
        }
    )
    _must_carry_the_host(keeper, f"slot {name} would have no slot to fall back to")
    if slots == armed:
        return slots
    if slots[name].flags != RETIRED:
        raise SlotStateError(
            f"slot {name} cannot be armed: it has {slots[name].flags}, wanted a retired slot",
            hint=f"retire slot {name}, write it again and verify it",
        )
    return armed


def confirm(slots: Slots, name: SlotName) -> Slots:
    """Make slot ``name`` one that boots without a try, from now on.

    To be called only for the slot that the running, healthy system was started from. One that was
    started although its priority was 0 (by hand, or as a last resort) gets the lowest one, so that
    the boot rule knows it again. Confirming again changes nothing.
    """
    priority = max(slots[name].flags.priority, 1)
    return slots.with_flags({name: BootFlags(priority=priority, successful=True)})


def rollback(slots: Slots, name: SlotName) -> Slots:
    """Make the successful slot ``name`` the next to boot, before the other one.

    The other slot stays as a fallback when it is successful, and is retired when it is not: a
    rollback during a trial ends the trial. Rolling back to the slot that boots next anyway changes
    nothing, and rolling back to the other one undoes it.
    """
    target, left = slots[name], slots[name.other]
    if not target.flags.successful:
        raise SlotStateError(
            f"cannot roll back to slot {name}: it is {target.state} ({target.flags}),"
            " wanted a successful slot",
            hint="only a slot that was confirmed, and not overwritten since, can be rolled back to",
        )
    if not left.flags.successful:
        return slots.with_flags(
            {
                name: replace(target.flags, priority=max(target.flags.priority, 1)),
                left.name: RETIRED,
            }
        )
    if choose(slots) == target:
        return slots
    return slots.with_flags(
        {
            name: replace(target.flags, priority=2),
            left.name: replace(left.flags, priority=min(left.flags.priority, 1)),
        }
    )


def _must_carry_the_host(slot: Slot, because: str) -> None:
    if slot.flags.successful and slot.flags.candidate:
        return
    raise SlotStateError(
        f"slot {slot.name} is {slot.state} ({slot.flags}), wanted a successful slot: {because}",
        hint=f"confirm slot {slot.name} once the system in it is known to work",
    )
