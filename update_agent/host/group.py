"""A group's reboot slots in etcd, and the one way in which they are changed.

``change`` is a compare-and-swap: read, edit (a pure function), write unless somebody else wrote
after what was read; compared is the revision at which the key was last written, which never comes
again. After an unclear outcome it reads and decides anew, and ``unsure`` stays set until something
was written for certain: whatever is still under way compares an older revision, and comes to
nothing, or only asks for what was asked for before.

Many who want to write one key at once lose most of their races. So a holder that loses one leaves,
in the same transaction, a key that says what it asks for: to confirm, or to release. Where others
ask already it does not race at all, and only asks. Whoever writes next does that as well, and the
holder sees it done; only who asked first goes on at once.

A host that wants a reboot slot queues up first, with a key of its own whose lease ends when the
host is gone; no safety hangs on that. Whoever changes the slots offers, in the same transaction,
what is free to those whose turn it is: they become holders, and their keys go. So each host watches
its own key alone, and an event wakes one host, however many wait; it then holds what the others
would only have raced for. An event that is lost costs the time to the next look.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from update_agent.core import semaphore
from update_agent.core.document import DocumentError
from update_agent.core.reason import Reason, Wait
from update_agent.core.semaphore import Ask, Holder, Released, Semaphore, Waiting
from update_agent.errors import HostError
from update_agent.host.etcd import (
    Absent,
    Answer,
    CompactedError,
    Compare,
    Created,
    Delete,
    Either,
    Entry,
    Etcd,
    EtcdError,
    Found,
    Get,
    Operation,
    Put,
    Unchanged,
    UnclearError,
)

PREFIX = "/update-agent/groups/"
_RACES = 200
"""Attempts of one change against those of others."""
_PAUSE = 1.0
"""Seconds between two tries of a change, at most."""
_AT_ONCE = 3
"""Races lost after which a change waits a little before the next."""
_SPREAD = 8
"""Times the duration of a swap over which those who lose races spread, at most."""
_HEAD = 16
"""Hosts of the queue that are looked at, and may be offered a reboot slot."""
_HELPS = 4
"""Changes that are made for others after one's own."""
_ASKS = 32
"""Hosts whose asks are served with one change."""
_NOBODY = Found()
_UNCLEAR = 3
"""Unclear outcomes of one change after which it is given up."""
LEASE = 180
"""Seconds after which a host that does not ask again has left the queue."""


class LostRacesError(EtcdError):
    """Others always were faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a holder asks for, and where it stands in etcd."""

    entry: Entry
    host: str
    ask: Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A group as it stood at one moment."""

    semaphore: Semaphore | None
    """None: the key does not exist, or ``broken`` says why it cannot be understood."""
    broken: str | None = None
    changed: int
    """The revision at which the slots were last changed."""
    head: tuple[Entry, ...] = ()
    """The first of those who wait, as they stand in etcd; nobody, where it was a brief look."""
    own: Entry | None = None
    """This host, if it waits."""
    waiting: int = 0
    """How many wait."""
    asks: tuple[Entry, ...] = ()
    """What holders ask for, as it stands in etcd; this host's too."""
    asked: tuple[Asked, ...] = ()
    """As much of it as says something sensible."""
    cluster: str
    revision: int
    """Where etcd stood."""

    @property
    def queue(self) -> tuple[Waiting, ...]:
        """The first of those who wait."""
        return tuple(_understood(self.head))

    def mine(self, host: str) -> Waiting | None:
        """Return the place of ``host``, if it waits and was looked for."""
        found = (it for it in (self.own, *self.head) if it and it.key.endswith(f"/{host}"))
        return next(_understood(found), None)

    def place(self) -> str | None:
        """Return the place of this host in the queue, from 1, or what it is above."""
        if self.own is None:
            return None
        if self.own not in self.head:
            return f"above {len(self.head)}"
        return str(self.head.index(self.own) + 1)

    def in_turn(self, host: str, *, quiet: float) -> bool:
        """Return whether ``host`` may take a reboot slot now.

        From behind the head of the queue only when nobody in it may.
        """
        if self.semaphore is None:
            return False
        behind = [self.own] if self.own and self.own not in self.head else []
        queue = _understood((*self.head, *behind))
        turn = [it.host for it in semaphore.offer(self.semaphore, queue, quiet=quiet)[1]]
        return turn == [host] if behind else host in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What becomes of a group: its slots, and who queues no more."""

    semaphore: Semaphore
    leaves: Waiting | None = None
    always: bool = False
    """Write it even if it says the same."""
    ask: Ask | None = None
    """What others may do for this host if it loses a race; then that is all of the edit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """What whoever lost a race knows."""

    changed: int
    """The revision at which the slots were last changed."""
    first: str | None
    """The key that asks first."""
    view: View | None = None
    """The group as it stood then, if nobody else asked for something: the loser goes first."""


class Group:
    """The reboot slots of the group ``name``. Used by one thread at a time."""

    def __init__(
        self,
        etcd: Etcd,
        name: str,
        *,
        host: str | None = None,
        lease: int = LEASE,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.unsure = False
        """A write may still be under way."""
        self.races = 0
        """Races lost."""
        self.writes = 0
        """Changes made to the slots."""
        self.last: View | None = None
        """What etcd said last."""
        self.lease = lease
        self._etcd = etcd
        self.host = host
        """Whose place in the queue is looked for."""
        self._chance = chance
        self._monotonic = monotonic
        self._key = f"{PREFIX}{name}/reboot"
        self._queue = f"{PREFIX}{name}/waiting/"
        self._asks = f"{PREFIX}{name}/asks/"
        self._first_seen: dict[str, float] = {}

    def look(self) -> View:
        """Return the group as it stands, and the head of its queue. Raises EtcdError."""
        return self._view(self._etcd.txn((), self._reads()))

    def look_briefly(self) -> View:
        """Return the group as it stands, and its queue only if this host is in it.

        To sort a long one costs etcd most of what a look does. Raises EtcdError.
        """
        if self.host is None:
            return self.look()
        return self._look_without(self._queue + self.host)

    def change(self, edit: Callable[[View], Edit | Wait], view: View | None = None) -> Wait | None:
        """Change the slots by ``edit``, or return why it would not. Raises EtcdError.

        ``edit`` sees the slots as they will be after what holders ask for. After an error it is not
        known whether the change was made, or still will be.
        """
        view = view or self.look()
        unclear = 0
        for race in range(_RACES):
            after = _after_asks(view)
            edited = edit(after)
            if isinstance(edited, Wait):
                return edited
            if edited.semaphore == after.semaphore and not (
                edited.always or self._asks_itself(view)
            ):
                return None
            began = self._monotonic()
            try:
                done = self._attempt(view, edited)
            except UnclearError:
                self.unsure = True
                unclear += 1
                if unclear == _UNCLEAR:
                    raise
                view = self.look()
                continue
            if isinstance(done, View):
                self.unsure = False
                self._help(done)
                return None
            took = self._monotonic() - began
            view = self._after_lost_race(done, edited.ask, race, took)
            if self._served(view, edited.ask):
                self.unsure = False
                return None
        raise LostRacesError(
            f"lost {_RACES} races for the reboot slots of {self.name}",
            hint="the next try may win; 'update-agentctl lock status' shows who changes them",
        )

    def join(self, host: str, wish: Holder) -> View:
        """Queue up, and return how the group stands then. Raises EtcdError."""
        key = self._queue + host
        put = Put(key, semaphore.encode_waiting(wish), lease=self._etcd.grant(self.lease))
        reads = self._reads()
        return self._view(self._etcd.txn((Created(key, 0),), (put, *reads), reads, again=True))

    def leave(self, mine: Waiting, view: View) -> bool:
        """Queue up no more; False: the slots changed since ``view``. Raises EtcdError."""
        compare = Unchanged(self._key, view.changed)
        return self._etcd.txn((compare,), (Delete(self._queue + mine.host),), again=True).succeeded

    def stay(self, lease: int) -> None:
        """Keep the place in the queue. Raises EtcdError."""
        self._etcd.keep_alive(lease)

    def called(self, host: str, since: int, seconds: float) -> bool:
        """Wait until ``host`` leaves the queue, for whatever reason. Raises EtcdError.

        ``since`` is the revision of the last look. False: nothing came for ``seconds``.
        """
        watch = self._etcd.watch(self._queue + host, since + 1, seconds=seconds)
        try:
            with closing(watch):
                return any(watch)
        except CompactedError:  # what came since is forgotten
            return True

    def seen(self, nonce: str) -> float:
        """Return for how many seconds this observer has seen ``nonce``, by its own clock."""
        now = self._monotonic()
        return now - self._first_seen.get(nonce, now)

    def quiet(self, found: Semaphore) -> float:
        """Return for how many seconds nobody came back, as far as this observer has seen."""
        return self.seen(_return_of(found.released)) if found.released else 0.0

    def lapsed(self, found: Semaphore) -> list[str]:
        """Return the hosts that did not confirm what they were offered in their time.

        To that, the time is added in which a host that is gone leaves the queue.
        """
        return [
            host
            for host, it in found.holders.items()
            if semaphore.is_offer(it) and self.seen(it.nonce) > it.drain + self.lease
        ]

    # Within

    def _look_without(self, key: str) -> View:
        """Return the group as it stands, and its queue only if there is ``key``."""
        absent = Created(key, 0)
        return self._view(self._etcd.txn((absent,), self._reads(queue=False), self._reads()))

    @property
    def _own_ask(self) -> str | None:
        """The key by which this host asks for something."""
        return self._asks + self.host if self.host else None

    def _reads(self, *, slots: bool = True, queue: bool = True) -> tuple[Get, ...]:
        """Return what is read to see the group, with its slots and the head of its queue or not."""
        reads = [Get(self._key)] if slots else []
        reads.append(Get(self._asks, prefix=True, limit=_ASKS))
        if self._own_ask:
            reads += [Get(self._own_ask), Get(f"{self._queue}{self.host}")]
        if queue:
            reads.append(Get(self._queue, prefix=True, limit=_HEAD))
        return tuple(reads)

    def _reads_after_race(self) -> tuple[Get, ...]:
        """Return what whoever lost wants to know: when the slots changed, and who asked first."""
        return (Get(self._key, values=False), Get(self._asks, prefix=True, limit=1, values=False))

    def _reads_of_loser(self) -> Either:
        """Return the same, but all of the group where nobody asks: the loser is next."""
        return Either(Absent(self._asks), self._reads(), self._reads_after_race())

    def _attempt(self, view: View, edit: Edit) -> View | _Lost:
        """Change the slots; or, where others ask already, ask as well: the race would be lost."""
        others = any(it.entry.key != self._own_ask for it in view.asked)
        if others and (ask := self._asking(view, edit.ask)):
            return self._lost(self._etcd.txn((), (*ask, self._reads_of_loser())))
        return self._swap(view, edit)

    def _swap(self, view: View, edit: Edit, *, helps: bool = False) -> View | _Lost:
        """Change the slots if they are as in ``view``. Who ``helps`` need not know who won."""
        leaves = edit.leaves
        waiting = _understood(view.head)  # no more of them than are needed
        others = (it for it in waiting if not leaves or it.host != leaves.host)
        after, data, turn = self._offered(edit.semaphore, others)
        gone = [self._queue + it.host for it in (*turn, *([leaves] if leaves else []))]
        queue = _behind(view, gone)
        full = len(after.holders) >= after.slots
        known = full and bool(queue.entries)  # and in its order: who comes now stands behind them
        compares: list[Compare] = [Unchanged(self._key, view.changed)]
        compares += [Created(self._queue + it.host, it.created) for it in turn]
        compares += [Unchanged(it.entry.key, it.entry.changed) for it in view.asked]
        writes: list[Operation] = [Put(self._key, data)]
        writes += [Delete(it) for it in (*gone, *(it.key for it in view.asks))]
        reads = self._reads_after_race() if helps else (self._reads_of_loser(),)
        lost: list[Operation] = [*self._asking(view, edit.ask), *reads]
        won = (*writes, *self._reads(slots=False, queue=not known))
        answer = self._etcd.txn(compares, won, lost)
        self.writes += answer.succeeded
        self.races += not answer.succeeded
        if not answer.succeeded:
            return self._lost(answer)
        return self._view(answer, written=after, queue=queue)

    def _lost(self, answer: Answer) -> _Lost:
        if answer.either:
            view = self._view(answer)
            return _Lost(changed=view.changed, first=None, view=view)
        slots, asks = (it.entry for it in answer.found)
        return _Lost(changed=slots.changed if slots else 0, first=asks.key if asks else None)

    def _offered(
        self, found: Semaphore, queue: Iterable[Waiting]
    ) -> tuple[Semaphore, bytes, Sequence[Waiting]]:
        """Return the slots with what is free offered, what to write for them, and whose turn it is.

        Where there is no room for more holders, nothing is offered.
        """
        after, turn = semaphore.offer(found, queue, quiet=self.quiet(found))
        try:
            return after, semaphore.encode(after), turn
        except HostError:
            return found, semaphore.encode(found), ()

    def _help(self, view: View) -> None:
        """Do what others came to ask and wait for since the last change read it. It can wait.

        What becomes of it need not be known: nothing of this host's own is in it.
        """
        for _ in range(_HELPS):
            found = _after_asks(view).semaphore
            if found is None:
                return
            queue, quiet = _understood(view.head), self.quiet(found)
            turn = semaphore.offer(found, queue, quiet=quiet)[1]
            if found == view.semaphore and not turn:
                return
            with suppress(HostError):
                done = self._swap(view, Edit(semaphore=found), helps=True)
                if isinstance(done, View):
                    view = done
                    continue
                if done.changed == view.changed:  # who was offered one left the queue
                    view = self.look()
                    continue
            return  # who won goes on

    def _after_lost_race(self, lost: _Lost, ask: Ask | None, race: int, took: float) -> View:
        """Return the group as it stands when others had their time, if they are to have it.

        ``took`` is for how many seconds the race was run.
        """
        others_first = ask is not None and lost.first not in (None, self._own_ask)
        if others_first or race >= _AT_ONCE:
            share = self._chance() + (1 if others_first else 0)
            time.sleep(min(share * took * min(2**race, _SPREAD), _PAUSE))
        elif lost.view:
            return lost.view
        if others_first and self._own_ask:
            view = self._look_without(self._own_ask)
            if self._served(view, ask) or self._asks_itself(view):
                return view
        return self.look()  # with the queue: who changes the slots offers what is free

    def _asks_itself(self, view: View) -> bool:
        return any(it.key == self._own_ask for it in view.asks)

    def _served(self, view: View, ask: Ask | None) -> bool:
        """Return whether what this host asks for was done, by whoever."""
        if ask is None or view.semaphore is None or self.host is None:
            return False
        return semaphore.served(view.semaphore, self.host, ask)

    def _asking(self, view: View, ask: Ask | None) -> list[Put]:
        """Return what leaves an ask for others; nothing if it is there."""
        if ask is None or self._own_ask is None:
            return []
        put = Put(self._own_ask, semaphore.encode_ask(ask))
        there = any((it.key, it.value) == (put.key, put.value) for it in view.asks)
        return [] if there else [put]

    def _view(
        self, answer: Answer, *, written: Semaphore | None = None, queue: Found = _NOBODY
    ) -> View:
        """Return what ``answer`` shows.

        ``written`` are the slots where it wrote them and did not read them, ``queue`` what is known
        of the queue where it was not read.
        """
        parts = iter(answer.found)
        found, broken, changed = written, None, answer.revision
        if written is None:
            found, broken, changed = self._decoded(next(parts).entry)
        first = next(parts)
        own_ask, own = (next(parts), next(parts)) if self.host else (_NOBODY, _NOBODY)
        queue = next(parts, queue)
        asking = {it.key: it for it in (*first.entries, *own_ask.entries)}.values()
        asks = _directly_below(self._asks, asking)
        if found:
            self._note(found)
        self.last = View(
            semaphore=found,
            broken=broken,
            changed=changed,
            head=_directly_below(self._queue, queue.entries),
            own=own.entry,
            waiting=queue.count,
            asks=asks,
            asked=tuple(_asked(asks)),
            cluster=answer.cluster,
            revision=answer.revision,
        )
        return self.last

    def _decoded(self, slots: Entry | None) -> tuple[Semaphore | None, str | None, int]:
        """Return the slots, or why they cannot be understood, and when they were changed."""
        if slots is None:
            return None, None, 0
        try:
            return semaphore.decode(slots.value, self.name), None, slots.changed
        except DocumentError as error:
            return None, str(error), slots.changed

    def _note(self, found: Semaphore) -> None:
        """Remember when what is there now was first seen."""
        nonces = {it.nonce for it in found.holders.values()}
        if found.released:
            nonces.add(_return_of(found.released))
        now = self._monotonic()
        self._first_seen = {it: self._first_seen.get(it, now) for it in nonces}


def _behind(view: View, gone: Sequence[str]) -> Found:
    """Return the head of the queue without the keys ``gone``."""
    entries = tuple(it for it in view.head if it.key not in gone)
    return Found(entries=entries, count=view.waiting - len(view.head) + len(entries))


def _return_of(released: Released) -> str:
    """Return by what a return is remembered: its nonce was seen before, with the holder."""
    return f"return {released.nonce}"


def _directly_below(prefix: str, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the entries whose keys can be those of hosts; what is further below is not ours."""
    return tuple(it for it in entries if "/" not in it.key.removeprefix(prefix))


def _understood(entries: Iterable[Entry]) -> Iterator[Waiting]:
    """Yield the hosts that wait; a key that says nothing sensible waits for nothing."""
    for it in entries:
        host = it.key.rpartition("/")[2]
        with suppress(DocumentError):
            yield semaphore.decode_waiting(it.value, host, created=it.created, lease=it.lease)


def _after_asks(view: View) -> View:
    """Return the view with the slots as they will be after what holders ask for."""
    found = view.semaphore
    if found is None:
        return view
    for it in view.asked:
        found = semaphore.serve(found, it.host, it.ask)
    return replace(view, semaphore=found)


def _asked(asks: Iterable[Entry]) -> Iterator[Asked]:
    """Yield what holders ask for; a key that says nothing sensible asks for nothing."""
    for it in asks:
        host = it.key.rpartition("/")[2]
        with suppress(DocumentError):
            yield Asked(entry=it, host=host, ask=semaphore.decode_ask(it.value, host))


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
        if host not in view.semaphore.holders:
            if view.asks:  # it asked for that itself, and nobody came to do it
                return Edit(semaphore=view.semaphore, always=True)
            return Wait(
                reason=Reason.LOCK_LOST,
                sentence=f"{host} holds no reboot slot of {group.name}",
                ends="update-agentctl lock status, and decide again",
            )
        return Edit(semaphore=semaphore.force(view.semaphore, host))

    return group.change(edit)


def bad_key(version: str, host: str = "") -> str:
    """Return where it is written that a release rolled back on a host, or on any."""
    return f"/update-agent/bad/{version}/{host}"


def tell_bad(etcd: Etcd, version: str, host: str, name: str) -> None:
    """Write that a release rolled back on ``host``. Raises EtcdError."""
    etcd.txn((), (Put(bad_key(version, host), name.encode()),), again=True)


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
    etcd.txn((), (Delete(bad_key(version), prefix=True),), again=True)
