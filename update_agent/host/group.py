"""A group's reboot slots in etcd, and the one way in which they are changed.

``change`` is a compare-and-swap: read, edit (a pure function), write unless somebody else wrote
after what was read; compared is the revision at which the key was last written, which never comes
again. After an unclear outcome it reads and decides anew, and ``unsure`` stays set until something
was written for certain: whatever is still under way compares an older revision, and comes to
nothing.

A host that wants a reboot slot queues up first, with a key of its own whose lease ends when the
host is gone; no safety hangs on that. Whoever changes the slots calls, in the same transaction,
those whose turn it is then, by writing to their keys. So each host watches its own key alone, and
an event wakes one host, however many wait. A call that is lost costs the time to the next look.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from update_agent.core import semaphore
from update_agent.core.document import DocumentError
from update_agent.core.reason import Reason, Wait
from update_agent.core.semaphore import Semaphore, Waiting
from update_agent.errors import HostError
from update_agent.host.etcd import (
    Answer,
    Compare,
    Created,
    Delete,
    Entry,
    Etcd,
    Get,
    Operation,
    Put,
    Unchanged,
    UnclearError,
)

PREFIX = "/update-agent/groups/"
_RACES = 200
"""Attempts of one change against those of others."""
_PAUSE = 0.002, 0.2
"""Seconds after a lost race, at most: the first, and any."""
_HEAD = 32
"""Hosts of the queue that are looked at."""
LEASE = 180
"""Seconds after which a host that does not ask again has left the queue."""


class LostRacesError(HostError):
    """Others always were faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A group as it stood at one moment."""

    semaphore: Semaphore | None
    """None: the key does not exist, or ``broken`` says why it cannot be understood."""
    broken: str | None = None
    changed: int
    """The revision at which the slots were last changed."""
    queue: tuple[Waiting, ...] = ()
    """The first of those who wait."""
    waiting: int = 0
    """How many wait."""
    leases: dict[str, int]
    cluster: str
    revision: int
    """Where etcd stood."""

    def mine(self, host: str) -> Waiting | None:
        """Return the wish of ``host``, if it waits and was looked for."""
        return next((it for it in self.queue if it.host == host), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What becomes of a group: its slots, and who needs to queue no more."""

    semaphore: Semaphore
    leaves: Waiting | None = None
    always: bool = False
    """Write it even if it says the same."""


class Group:
    """The reboot slots of the group ``name``. Used by one thread at a time."""

    def __init__(
        self,
        etcd: Etcd,
        name: str,
        *,
        host: str | None = None,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.unsure = False
        """A write may still be under way."""
        self.races = 0
        """Races lost."""
        self.writes = 0
        """Transactions that were to change the slots."""
        self._etcd = etcd
        self._host = host
        self._chance = chance
        self._monotonic = monotonic
        self._key = f"{PREFIX}{name}/reboot"
        self._queue = f"{PREFIX}{name}/waiting/"
        self._first_seen: dict[str, float] = {}

    def look(self) -> View:
        """Return the group as it stands. Raises EtcdError."""
        return self._view(self._etcd.txn((), self._reads()))

    def place(self, mine: Waiting) -> int:
        """Return the place in the queue, from 1. Raises EtcdError."""
        count = Get(self._queue, prefix=True, count_only=True, created_until=mine.created)
        return self._etcd.get(count).found[0].count

    def change(self, edit: Callable[[View], Edit | Wait], view: View | None = None) -> Wait | None:
        """Change the slots by ``edit``, or return why it would not. Raises EtcdError.

        After an error it is not known whether the change was made, or still will be.
        """
        view = view or self.look()
        for race in range(_RACES):
            edited = edit(view)
            if isinstance(edited, Wait):
                return edited
            if edited.semaphore == view.semaphore and not edited.always:
                return None
            try:
                answer = self._swap(view, edited)
            except UnclearError:
                self.unsure = True
                view = self.look()
                continue
            if answer.succeeded:
                self.unsure = False
                return None
            self.races += 1
            time.sleep(self._chance() * min(_PAUSE[0] * 2**race, _PAUSE[1]))
            view = self._view(answer)
        raise LostRacesError(
            f"lost {_RACES} races for the reboot slots of {self.name}",
            hint="the next try may win; 'update-agentctl lock status' shows who changes them",
        )

    def join(self, wish: Waiting) -> View:
        """Queue up, and return how the group stands then. Raises EtcdError."""
        lease = self._etcd.grant(LEASE)
        key = self._queue + wish.host
        put = Put(key, semaphore.encode_waiting(wish), lease=lease)
        reads = self._reads()
        return self._view(self._etcd.txn((Created(key, 0),), (put, *reads), reads))

    def leave(self, mine: Waiting) -> None:
        """Queue up no more. Raises EtcdError."""
        key = self._queue + mine.host
        self._etcd.txn((Created(key, mine.created),), (Delete(key),))

    def stay(self, lease: int) -> None:
        """Keep the place in the queue. Raises EtcdError."""
        self._etcd.keep_alive(lease)

    def called(self, host: str, since: int, seconds: float) -> bool:
        """Wait until ``host`` is called, or leaves the queue. Raises EtcdError.

        ``since`` is the revision of the last look. False: nothing came for ``seconds``.
        """
        return any(self._etcd.watch(self._queue + host, since + 1, seconds=seconds))

    def seen(self, nonce: str) -> float:
        """Return for how many seconds this observer has seen ``nonce``, by its own clock."""
        now = self._monotonic()
        return now - self._first_seen.get(nonce, now)

    def quiet(self, found: Semaphore) -> float:
        """Return for how many seconds nobody came back, as far as this observer has seen."""
        return self.seen(found.released.nonce) if found.released else 0.0

    # Within

    def _reads(self) -> tuple[Get, ...]:
        head = Get(self._queue, prefix=True, limit=_HEAD)
        mine = (Get(self._queue + self._host),) if self._host else ()
        return (Get(self._key), head, *mine)

    def _swap(self, view: View, edit: Edit) -> Answer:
        compares: list[Compare] = [Unchanged(self._key, view.changed)]
        writes: list[Operation] = [Put(self._key, semaphore.encode(edit.semaphore))]
        leaves = edit.leaves
        queue = [it for it in view.queue if not leaves or it.host != leaves.host]
        turn = semaphore.in_turn(edit.semaphore, queue, quiet=self.quiet(edit.semaphore))
        for it in turn:
            if not it.called and it.host != self._host:
                key = self._queue + it.host
                compares.append(Created(key, it.created))
                called = semaphore.encode_waiting(replace(it, called=True))
                writes.append(Put(key, called, keep_lease=True))
        if leaves:
            writes.append(Delete(self._queue + leaves.host))
        self.writes += 1
        return self._etcd.txn(compares, writes, self._reads())

    def _view(self, answer: Answer) -> View:
        slots, *queues = answer.found
        found, broken = None, None
        if slots.entry:
            try:
                found = semaphore.decode(slots.entry.value, self.name)
            except DocumentError as error:
                broken = str(error)
        entries = {it.key: it for queue in queues for it in queue.entries}
        known = list(self._waiting(list(entries.values())))
        if found:
            self._note(found)
        return View(
            semaphore=found,
            broken=broken,
            changed=slots.entry.changed if slots.entry else 0,
            queue=tuple(sorted(known, key=lambda it: it.created)),
            waiting=queues[0].count,
            leases={it.key.removeprefix(self._queue): it.lease for it in entries.values()},
            cluster=answer.cluster,
            revision=answer.revision,
        )

    def _waiting(self, entries: Sequence[Entry]) -> Iterator[Waiting]:
        """Yield the hosts that wait; a key that says nothing sensible waits for nothing."""
        for it in entries:
            with suppress(DocumentError):
                host = it.key.removeprefix(self._queue)
                yield semaphore.decode_waiting(it.value, host, it.created)

    def _note(self, found: Semaphore) -> None:
        """Remember when what is there now was first seen."""
        nonces = {it.nonce for it in found.holders.values()}
        if found.released:
            nonces.add(found.released.nonce)
        now = self._monotonic()
        self._first_seen = {it: self._first_seen.get(it, now) for it in nonces}


# What operators do -------------------------------------------------------------------------------


def force(group: Group, host: str, revision: int) -> Wait | None:
    """Take the reboot slot from ``host``, if the slots still stand as at ``revision``.

    Raises EtcdError.
    """

    def edit(view: View) -> Edit | Wait:
        if view.changed != revision or not view.semaphore:
            return Wait(
                reason=Reason.LOCK_LOST,
                sentence=f"the reboot slots of {group.name} changed: they are at revision"
                f" {view.changed}, and revision {revision} was looked at",
                ends="update-agentctl lock status, and decide again",
            )
        return Edit(semaphore=semaphore.force(view.semaphore, host))

    return group.change(edit)


def bad_key(version: str, host: str = "") -> str:
    """Return where it is written that a release rolled back on a host, or on any."""
    return f"/update-agent/bad/{version}/{host}"


def tell_bad(etcd: Etcd, version: str, host: str, name: str) -> None:
    """Write that a release rolled back on ``host``. Raises EtcdError."""
    with suppress(UnclearError):  # to do it again changes nothing
        etcd.txn((), (Put(bad_key(version, host), name.encode()),))
        return
    etcd.txn((), (Put(bad_key(version, host), name.encode()),))


def bad_hosts(etcd: Etcd, version: str) -> list[str]:
    """Return the names of hosts on which a release rolled back. Raises EtcdError."""
    found = etcd.get(Get(bad_key(version), prefix=True, limit=1000)).found[0]
    return [it.value.decode(errors="replace")[:100] for it in found.entries]


def bad_releases(etcd: Etcd) -> dict[str, list[str]]:
    """Return all releases that rolled back, and where. Raises EtcdError."""
    known: dict[str, list[str]] = {}
    for it in etcd.get(Get("/update-agent/bad/", prefix=True, limit=1000)).found[0].entries:
        version = it.key.split("/")[3]
        known.setdefault(version, []).append(it.value.decode(errors="replace")[:100])
    return known


def forgive(etcd: Etcd, version: str) -> None:
    """Forget that a release rolled back. Raises EtcdError."""
    etcd.txn((), (Delete(bad_key(version), prefix=True),))
