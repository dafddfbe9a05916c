"""The reboot slots of one group of hosts: who holds one, who may take one, and who is next.

One JSON value holds all of it, so that one compare-and-swap changes it:

    {"format": 1, "slots": 2, "gap": 0, "apart": ["rack"],
     "holders": {"MACHINE-ID": {"nonce": ..., "boot_id": ..., "name": "web-1", "since": ...,
                                "from": "1.0.0", "to": "1.1.0", "labels": {"rack": "7"},
                                "drain": 300, "offered": false, "confirmed": null}},
     "released": {"nonce": ..., "name": "web-2", "at": ...}, "accepted": null}

The rules kept here:

* Nothing expires. A host that does not come back keeps its reboot slot, which stops a bad release.
* Who frees a reboot slot offers it to the next in the queue, in the same change. An offer is not
  kept for ever: a host that did not confirm it in the time that it wanted is gone, and did not
  reboot. Withdrawing it is safe, for confirming it then fails.
* Asking again, and releasing what is not held, change nothing.
* What a holder asks for (``Ask``) may be done by anybody, again, and late. It names the boot that
  holds, and to release is the last that is ever asked for with a nonce.
* Times are for people to read and decide nothing: the clocks of two hosts may be a day apart. What
  takes time (``gap``) is measured by whoever waits, on its own clock, and comes in as seconds.
* Fields of a newer version are kept as they are found.

Who stores the value, and the hosts that wait, is ``host/group.py``; what one host wants of it is in
``host/lock.py``.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from update_agent.core import document
from update_agent.core.document import DocumentError, Format, Id, Name, Text, Time
from update_agent.core.reason import Reason, Wait
from update_agent.core.version import Version
from update_agent.errors import HostError

MAX_SIZE = 1_000_000
"""Bytes; etcd takes 1.5 MB in one request."""
MAX_SLOTS = 10_000
_MAX_WISH = 100_000
"""Bytes."""

HostId = Id
"""A machine id."""
Nonce = Id
"""Made by a host for one wish to reboot, and on its disk before anybody else hears of it."""
Labels = Annotated[Mapping[Name, Text], Meta(max_length=20)]
Rest = Mapping[str, Any]
"""Fields that this version does not know."""

_IN_JSON = {"running": "from", "target": "to"}
"""Names that Python keeps to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A host that holds a reboot slot, or wants one."""

    nonce: Nonce
    boot_id: Annotated[str, Meta(max_length=64)]
    name: Text
    """The host's name, for people."""
    since: Time
    """By its own clock."""
    running: Version | None = None
    target: Version | None = None
    labels: Labels = field(default_factory=dict)
    member: bool = False
    """A member of etcd runs on it; no two such hosts reboot at a time."""
    drain: Annotated[int, Meta(ge=0, le=7 * 86400)] = 0
    """Seconds, at most, from its turn to when it confirms."""
    offered: bool = False
    """Others gave it the reboot slot when its turn came; it may be gone."""
    confirmed: Time | None = None
    """When it was about to reboot."""
    rest: Rest = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The last host that gave its reboot slot back after a reboot."""

    nonce: Nonce
    name: Text
    at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A person said that what this cluster holds is right."""

    at: Time
    cluster: Annotated[str, Meta(max_length=20)]
    """Its id; a copy that was restored elsewhere was not looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Semaphore:
    """The reboot slots of a group."""

    format: Format = 1
    slots: Annotated[int, Meta(ge=0, le=MAX_SLOTS)]
    """How many hosts may hold one at a time; 0: nobody begins."""
    gap: Annotated[int, Meta(ge=0, le=7 * 86400)] = 0
    """Seconds from one host's return to the next grant."""
    apart: Annotated[tuple[Name, ...], Meta(max_length=10)] = ()
    """Labels of which no two holders may have the same value."""
    holders: Mapping[HostId, Holder] = field(default_factory=dict)
    released: Released | None = None
    accepted: Accepted | None = None
    """After etcd was restored, hosts wait for a newer one."""
    rest: Rest = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A host in the queue."""

    host: HostId
    wish: Holder
    created: int = 0
    """The revision at which it came; what the queue is sorted by."""
    lease: int = 0
    """What keeps its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a holder wants done to its reboot slot, by itself or whoever changes the slots next."""

    does: Literal["confirm", "release"]
    nonce: Nonce
    boot_id: Annotated[str, Meta(max_length=64)]
    """Of the boot that holds it."""
    at: Time
    """By its own clock."""


# From and to JSON --------------------------------------------------------------------------------

T = TypeVar("T", Holder, Semaphore)

_NAMES: Mapping[type, Mapping[str, str]] = {
    kind: {_IN_JSON.get(it.name, it.name): it.name for it in fields(kind) if it.name != "rest"}
    for kind in (Holder, Semaphore)
}
"""Their fields, by what they are called in JSON."""


def decode(data: bytes, group: str) -> Semaphore:
    """Return the semaphore in ``data``. Raises DocumentError."""
    what = f"the reboot slots of group {group}"
    whole = _object(document.parse(data, what, max_size=MAX_SIZE), what)
    holders = _object(whole.pop("holders", {}), f"{what}: holders")
    document.shaped(list(holders), list[HostId], f"{what}: holders")
    found = _shaped(whole, Semaphore, what)
    named = {
        host: _shaped(_object(it, f"{what}: {host}"), Holder, f"{what}: {host}")
        for host, it in holders.items()
    }
    return replace(found, holders=named)


def encode(found: Semaphore) -> bytes:
    """Return ``found`` as JSON. Raises HostError when it is larger than etcd takes."""
    plain = _plain(found)
    plain["holders"] = {host: _plain(holder) for host, holder in found.holders.items()}
    data = _bytes(plain)
    if len(data) > MAX_SIZE:
        raise HostError(
            f"the reboot slots need {len(data)} bytes, at most {MAX_SIZE} are kept",
            hint="fewer reboot slots, or more groups",
        )
    return data


def decode_waiting(data: bytes, host: str, *, created: int, lease: int) -> Waiting:
    """Return a host's place in the queue. Raises DocumentError."""
    what = f"the wish of {host}"
    whole = _object(document.parse(data, what, max_size=_MAX_WISH), what)
    document.shaped(host, HostId, what)
    wish = _shaped(whole, Holder, what)
    return Waiting(host=host, wish=wish, created=created, lease=lease)


def encode_waiting(wish: Holder) -> bytes:
    """Return what a host writes into the queue, as JSON."""
    return _bytes(_plain(wish))


def decode_ask(data: bytes, host: str) -> Ask:
    """Return what a host asks for. Raises DocumentError."""
    what = f"what {host} asks for"
    document.shaped(host, HostId, what)
    return document.decode(data, Ask, what, max_size=_MAX_WISH)


def encode_ask(ask: Ask) -> bytes:
    """Return what a host writes of what it asks for, as JSON."""
    return document.encode(ask)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DocumentError(f"{what}: wanted an object, found {str(value)[:50]}")
    return dict(value)


def _shaped(whole: Mapping[str, Any], kind: type[T], what: str) -> T:
    names = _NAMES[kind]
    known = {names[key]: value for key, value in whole.items() if key in names}
    found = document.shaped(known, kind, what)
    rest = {key: it for key, it in whole.items() if key not in names}
    return replace(found, rest=rest) if rest else found


def _plain(found: Holder | Semaphore) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, name in _NAMES[type(found)].items():
        if name != "holders":
            value = getattr(found, name)
            plain[key] = value.text if isinstance(value, Version) else msgspec.to_builtins(value)
    return {**found.rest, **plain}


def _bytes(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


# What a host asks for ----------------------------------------------------------------------------


def acquire(
    found: Semaphore, host: str, wish: Holder, *, quiet: float | None = None
) -> Semaphore | Wait:
    """Return the semaphore held by ``host`` too, or why it may not hold it.

    ``quiet`` is for how many seconds whoever asks has seen nobody else come back; None: nobody
    ever did.
    """
    held = found.holders.get(host)
    if held and held.nonce != wish.nonce:
        return cloned(held, wish)
    if held and held.boot_id == wish.boot_id:
        return found
    if held:  # what another boot confirmed, this one did not
        mine = replace(held, boot_id=wish.boot_id, offered=False, confirmed=None)
        return _with(found, host, mine)
    for wait in (
        _frozen(found), _full(found), _near(found, wish), _members(found, wish),
        _too_early(found, quiet),
    ):  # fmt: skip
        if wait:
            return wait
    return _with(found, host, wish)


def confirm(found: Semaphore, host: str, wish: Holder, now: datetime) -> Semaphore | Wait:
    """Return the semaphore in which ``host`` is about to reboot, or why it must not.

    Once reboots are frozen nobody begins, not even who holds a reboot slot.
    """
    held = found.holders.get(host)
    if held is None:
        return Wait(
            reason=Reason.LOCK_LOST,
            sentence="this host's reboot slot was taken from it",
            ends="the next try, which asks for one again",
        )
    if (held.nonce, held.boot_id) != (wish.nonce, wish.boot_id):
        return cloned(held, wish)
    return _frozen(found) or _with(found, host, replace(held, offered=False, confirmed=now))


def release(found: Semaphore, host: str, nonce: str, now: datetime) -> Semaphore:
    """Return the semaphore without ``host``, if it holds it by ``nonce``.

    Only who was about to reboot makes others wait for the gap.
    """
    held = found.holders.get(host)
    if held is None or held.nonce != nonce:
        return found
    return _without(found, host, now if held.confirmed else None)


def serve(found: Semaphore, host: str, ask: Ask) -> Semaphore:
    """Return the semaphore after what ``host`` asks for; unchanged when that may not be."""
    held = found.holders.get(host)
    if held is None or (held.nonce, held.boot_id) != (ask.nonce, ask.boot_id):
        return found
    if ask.does == "release":
        return release(found, host, ask.nonce, ask.at)
    after = confirm(found, host, held, ask.at)
    return found if isinstance(after, Wait) else after


def served(found: Semaphore, host: str, ask: Ask) -> bool:
    """Return whether what ``host`` asks for was done, by whoever."""
    held = found.holders.get(host)
    mine = held if held and held.nonce == ask.nonce else None
    if ask.does == "release":
        return mine is None
    return mine is not None and (mine.boot_id, mine.confirmed) == (ask.boot_id, ask.at)


def cloned(held: Holder, wish: Holder) -> Wait:
    """Return why a host may not use what is held, or waited for, in its name by another."""
    return Wait(
        reason=Reason.LOCK_CLONED,
        sentence=f"a machine with this host's machine id asks for reboot slots too: {held.name}"
        f" (boot {held.boot_id[:8]}, nonce {held.nonce[:8]}), and this is {wish.name}"
        f" (boot {wish.boot_id[:8]}, nonce {wish.nonce[:8]})",
        ends="a machine id of its own for each (rm /etc/machine-id and reboot), or, if this host"
        " lost its state, 'update-agentctl lock release'",
    )


# What operators do -------------------------------------------------------------------------------


def force(found: Semaphore, host: str) -> Semaphore:
    """Return the semaphore without ``host``, whoever it is. Raises KeyError."""
    return _without(found, host, None)


def change(
    found: Semaphore | None,
    *,
    slots: int,
    gap: int | None = None,
    apart: Sequence[str] | None = None,
    accepted: Accepted | None = None,
) -> Semaphore:
    """Return the semaphore with other rules; holders stay, also those above a lowered number.

    Raises DocumentError when a rule is none.
    """
    before = found or Semaphore(slots=slots)
    after = replace(
        before,
        slots=slots,
        gap=before.gap if gap is None else gap,
        apart=before.apart if apart is None else tuple(apart),
        accepted=_later(before.accepted, accepted),
    )
    decode(encode(after), "that is wanted")
    return after


def _later(before: Accepted | None, now: Accepted | None) -> Accepted | None:
    """Return ``now``, and after ``before`` by the slowest of clocks."""
    if before is None or now is None:
        return now or before
    return replace(now, at=max(now.at, before.at + timedelta(microseconds=1)))


# The queue ---------------------------------------------------------------------------------------


def offer(
    found: Semaphore, queue: Iterable[Waiting], *, quiet: float | None = None
) -> tuple[Semaphore, list[Waiting]]:
    """Return the semaphore in which those whose turn it is hold a reboot slot, and who they are.

    Nobody in ``queue``, sorted, overtakes, but past those who could take none themselves: their
    rack is busy. No more of it is taken than is needed.
    """
    turn = []
    for it in queue:
        after = acquire(found, it.host, replace(it.wish, offered=True), quiet=quiet)
        if isinstance(after, Semaphore):
            turn.append(it)
            found = after
        elif after.reason not in (Reason.LOCK_LABEL, Reason.QUORUM):
            break
    return found, turn


def withdraw(found: Semaphore, hosts: Iterable[str]) -> Semaphore:
    """Return the semaphore without what was offered to ``hosts`` and is not confirmed."""
    for host in hosts:
        held = found.holders.get(host)
        if held and is_offer(held):
            found = _without(found, host, None)
    return found


def is_offer(held: Holder) -> bool:
    """Return whether it is not known that this holder is still there."""
    return held.offered and held.confirmed is None


# Within ------------------------------------------------------------------------------------------


def _with(found: Semaphore, host: str, holder: Holder) -> Semaphore:
    return replace(found, holders={**found.holders, host: holder})


def _without(found: Semaphore, host: str, now: datetime | None) -> Semaphore:
    holders = dict(found.holders)
    gone = holders.pop(host)
    released = Released(nonce=gone.nonce, name=gone.name, at=now) if now else found.released
    return replace(found, holders=holders, released=released)


def _frozen(found: Semaphore) -> Wait | None:
    if found.slots:
        return None
    return Wait(
        reason=Reason.FROZEN,
        sentence="the group has no reboot slots: reboots are frozen",
        ends="update-agentctl lock slots NUMBER",
    )


def _full(found: Semaphore) -> Wait | None:
    if len(found.holders) < found.slots:
        return None
    return Wait(
        reason=Reason.LOCK,
        sentence=f"{_all_of(found.slots)} held by {names(found.holders.values())}",
        ends="a holder comes back; see 'update-agentctl lock status'",
    )


def _near(found: Semaphore, wish: Holder) -> Wait | None:
    """Return why a host must not reboot beside those that do, such as in its rack."""
    for label in found.apart:
        mine = wish.labels.get(label)
        beside = [it for it in found.holders.values() if it.labels.get(label) == mine]
        if beside:
            where = f"{label}={mine}" if mine else f"no label {label}"
            return Wait(
                reason=Reason.LOCK_LABEL,
                sentence=f"{names(beside)} with {where}, as this host, holds a reboot slot",
                ends="it comes back; see 'update-agentctl lock status'",
            )
    return None


def _members(found: Semaphore, wish: Holder) -> Wait | None:
    """Return why a member of etcd must not reboot beside another, which still answers now."""
    beside = [it for it in found.holders.values() if it.member and wish.member]
    if not beside:
        return None
    return Wait(
        reason=Reason.QUORUM,
        sentence=f"{names(beside)} holds a reboot slot, and is a member of etcd, as this host",
        ends="it comes back; see 'update-agentctl lock status'",
    )


def _too_early(found: Semaphore, quiet: float | None) -> Wait | None:
    if not found.gap or found.released is None:
        return None
    left = found.gap - (quiet or 0)
    if left <= 0:
        return None
    return Wait(
        reason=Reason.LOCK_GAP,
        sentence=f"{found.released.name} came back a moment ago, and the group wants"
        f" {found.gap} s between two hosts; {left:.0f} s are left",
        ends="time",
    )


def names(holders: Iterable[Holder]) -> str:
    """Return the names of ``holders``, the first few of many."""
    known = sorted(it.name for it in holders)
    more = len(known) - _FEW
    return ", ".join(known[:_FEW]) + (f" and {more} more" if more > 0 else "")


_FEW = 3


def _all_of(slots: int) -> str:
    return "the reboot slot is" if slots == 1 else f"all {slots} reboot slots are"
