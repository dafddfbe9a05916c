"""This host's reboot slot: asked for, confirmed right before the reboot, given back after it.

The rules kept here:

* The nonce of a wish is on this host's disk before anybody else hears of it, and stays there until
  the wish is known to be over. So whoever comes after a crash, a reboot or an answer that was lost
  finds what it holds, and can give it back.
* A wish that was to be given back is not taken up again: what was asked for with its nonce may
  still be done, late, and by others.
* etcd is not believed when it went back: another cluster, or an older revision than this host has
  seen, as after a restore from a backup. What it says about holders may then be old, and this host
  waits until a person has looked (``update-agentctl lock slots`` says so to all hosts).
* Nobody's reboot slot is taken who asked for it, or confirmed. Who does not come back is noticed,
  on this host's own clock, and shown; what was only offered, and never confirmed, is withdrawn.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from update_agent.core import document, semaphore
from update_agent.core.document import DocumentError, Format, Time
from update_agent.core.reason import Reason, Wait
from update_agent.core.semaphore import Ask, Holder, Labels, Nonce, Semaphore
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.host import files
from update_agent.host.etcd import EtcdError
from update_agent.host.group import Edit, Group, View

logger = logging.getLogger(__name__)

_BOOTS = 100
STALE = 3600.0
"""Seconds after which a holder is said to be late."""
_BAD = 50
"""Releases that are remembered to be told."""
_CHANGE_SLOTS = "'update-agentctl lock slots NUMBER', after a look at which hosts reboot now"


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """Who this host is to its group."""

    host: str
    """Its machine id."""
    name: str
    boot_id: str
    labels: Labels
    member: bool = False
    """A member of etcd runs here."""
    drain: int = 0
    """Seconds that it takes at most to get ready for a reboot."""


# What is kept on the disk ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What outlives the daemon and the boot."""

    format: Format = 1
    nonce: Nonce | None = None
    """Of a wish that is not over."""
    group: Annotated[str, Meta(max_length=64)] = ""
    """Whose reboot slot it is for; this host may have another group by now."""
    boots: Annotated[tuple[str, ...], Meta(max_length=_BOOTS)] = ()
    """The boots of this host, and of no copy of it, that had this wish."""
    leaving: bool = False
    """It is over, and to be given back as soon as etcd can be reached."""
    bad: Annotated[tuple[Version, ...], Meta(max_length=_BAD)] = ()
    """Releases that rolled back here; etcd does not know yet."""
    cluster: Annotated[str, Meta(max_length=20)] = ""
    revision: Annotated[int, Meta(ge=0)] = 0
    """Where etcd stood when this host last saw it."""
    accepted: Time | None = None
    """What a person had last accepted by then."""
    doubt: bool = False
    """etcd went back since."""


class Notebook:
    """The note, in a file. Who reads it to change it holds ``turn``."""

    def __init__(self, path: Path) -> None:
        self.turn = threading.RLock()
        self._path = path
        self.note = self._load()

    def write(self, note: Note) -> None:
        """Keep ``note``; durable on return. Raises HostError."""
        if note == self.note:
            return
        try:
            files.replace(self._path, document.encode(note))
        except OSError as error:
            raise HostError(f"cannot write {self._path}: {error.strerror}") from error
        self.note = note

    def _load(self) -> Note:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return Note()
        except OSError as error:
            raise HostError(f"cannot read {self._path}: {error.strerror}") from error
        try:
            return document.decode(data, Note, str(self._path))
        except DocumentError as error:
            logger.warning("%s; what this host holds in the cluster is not known any more", error)
            return Note()


# The lock ----------------------------------------------------------------------------------------


class Lock:
    """This host's part in its group. May be used by several threads; one at a time acts.

    All methods raise EtcdError when etcd does not do its part, and HostError when the disk does
    not.
    """

    def __init__(
        self,
        group: Group,
        me: Me,
        notebook: Notebook,
        *,
        now: Callable[[], datetime],
        new_nonce: Callable[[], str],
        stale: float = STALE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._me = me
        self._book = notebook
        self._now = now
        self._new_nonce = new_nonce
        self._stale = stale
        self._monotonic = monotonic
        self._turn = notebook.turn
        self._revision = notebook.note.revision
        self._stayed = -float(group.lease)
        group.host = me.host
        group.unsure = notebook.note.nonce is not None

    @property
    def group(self) -> str:
        """The name of the group."""
        return self._group.name

    @property
    def wishing(self) -> bool:
        """There is something of this group's to give back."""
        note = self._book.note
        return note.nonce is not None and note.group in ("", self.group)

    def acquire(self, running: Version, target: Version | None) -> Wait | None:
        """Hold a reboot slot, or return why not yet, with a place in the queue."""
        with self._turn:
            if self._book.note.leaving:
                if wait := self._doubt(self._group.look()):
                    return wait
                self.release()
            wish = self._wish(running, target)
            view = self._group.look_briefly()
            if wait := self._doubt(view):
                return wait
            view = self._withdrawn(self._queued(view, wish))
            wait = self._group.change(lambda it: self._acquired(it, wish), view)
            if wait is None:
                self._remember()
            return wait

    def look(self, running: Version, target: Version | None) -> Wait | None:
        """Return why this host could hold no reboot slot now; it asks for none."""
        with self._turn:
            nonce = self._book.note.nonce or self._new_nonce()
            wish = replace(self._holder(nonce), running=running, target=target)
            view = self._group.look()
            if wait := self._doubt(view):
                return wait
            quiet = self._group.quiet(_slots(view))
            after = semaphore.acquire(_slots(view), self._me.host, wish, quiet=quiet)
            return self._explained(after, view, quiet) if isinstance(after, Wait) else None

    def confirm(self) -> Wait | None:
        """Tell that this host reboots now; return why it must not."""
        with self._turn:
            nonce = self._book.note.nonce
            if nonce is None or self._book.note.leaving:
                return Wait(
                    reason=Reason.LOCK_LOST, sentence="this host holds no reboot slot",
                    ends="the next try, which asks for one",
                )  # fmt: skip
            wish = self._holder(nonce)
            ask = Ask(does="confirm", nonce=nonce, boot_id=wish.boot_id, at=wish.since)

            def edit(view: View) -> Edit | Wait:
                if wait := self._doubt(view):
                    return wait
                edited = semaphore.confirm(_slots(view), self._me.host, wish, ask.at)
                if isinstance(edited, Wait):
                    return edited
                return Edit(semaphore=edited, always=True, ask=ask)

            wait = self._group.change(edit, self._newest_for(ask))
            return wait or (self._doubt(self._group.last) if self._group.last else None)

    def release(self) -> None:
        """Hold nothing, wait for nothing. Without a wish, nothing is done."""
        with self._turn:
            nonce = self._book.note.nonce
            if nonce is None or not self.wishing:
                return
            self.leave_later()
            host, now, boots = self._me.host, self._now(), self._book.note.boots
            ask = Ask(does="release", nonce=nonce, boot_id=self._me.boot_id, at=now)

            def edit(view: View) -> Edit | Wait:
                if view.semaphore is None:
                    return _absent(view, self._group.name)
                mine, held = view.mine(host), view.semaphore.holders.get(host)
                leaves = mine if mine and mine.wish.nonce == nonce else None
                always = self._group.unsure or leaves is not None  # or it is offered one just then
                if held is None or held.nonce != nonce or held.boot_id not in boots:
                    return Edit(semaphore=view.semaphore, leaves=leaves, always=always)
                after = semaphore.release(view.semaphore, host, nonce, now)
                helped = None if leaves else replace(ask, boot_id=held.boot_id)
                return Edit(semaphore=after, leaves=leaves, always=always, ask=helped)

            wait = self._group.change(edit, self._newest_for(ask))
            if wait and wait.reason is not Reason.LOCK_MISSING:
                raise EtcdError(wait.sentence, hint=wait.ends)
            if wait:
                self._leave_what_is_missing(nonce)
            over = replace(self._book.note, nonce=None, group="", boots=(), leaving=False)
            self._book.write(over)

    # What is owed to etcd, until it can be reached

    @property
    def owes(self) -> bool:
        """There is something that etcd is to be told."""
        return self._book.note.leaving or bool(self._book.note.bad)

    @property
    def bad(self) -> tuple[Version, ...]:
        """Releases that rolled back here, of which etcd does not know yet."""
        return self._book.note.bad

    def leave_later(self) -> None:
        """Let the next ``leave`` release; durable on return. Without a wish, nothing is done."""
        with self._turn:
            if self.wishing:
                self._book.write(replace(self._book.note, leaving=True))

    def leave(self) -> None:
        """Release what is to be given back, if there is something."""
        with self._turn:
            if self._book.note.leaving:
                self.release()

    def rolled_back(self, version: Version) -> None:
        """Remember that ``version`` rolled back here; durable on return."""
        with self._turn:
            others = tuple(it for it in self.bad if it != version)
            self._book.write(replace(self._book.note, bad=(*others, version)[-_BAD:]))

    def told(self, version: Version) -> None:
        """Forget it: etcd knows."""
        with self._turn:
            others = tuple(it for it in self.bad if it != version)
            self._book.write(replace(self._book.note, bad=others))

    def runs_member(self, *, member: bool) -> None:
        """Take note whether a member of etcd runs here."""
        with self._turn:
            self._me = replace(self._me, member=member)

    def called(self, seconds: float) -> bool:
        """Wait until this host should ask again; False: nothing came for ``seconds``."""
        return self._group.called(self._me.host, self._revision, seconds)

    # Within

    def _wish(self, running: Version, target: Version | None) -> Holder:
        """Return what this host wants; its nonce is on the disk."""
        note, boot = self._book.note, self._me.boot_id
        nonce = note.nonce or self._new_nonce()
        boots = note.boots if boot in note.boots else (*note.boots, boot)[-_BOOTS:]
        group = self._group.name
        self._book.write(replace(note, nonce=nonce, group=group, boots=boots, leaving=False))
        return replace(self._holder(nonce), running=running, target=target)

    def _newest_for(self, ask: Ask) -> View | None:
        """Return what etcd said last, if what is asked for can be done in it."""
        last = self._group.last
        if last is None or last.semaphore is None:
            return None
        after = semaphore.serve(last.semaphore, self._me.host, ask)
        return last if after != last.semaphore else None

    def _holder(self, nonce: str) -> Holder:
        me = self._me
        return Holder(
            nonce=nonce,
            boot_id=me.boot_id,
            name=me.name,
            since=self._now(),
            labels=me.labels,
            member=me.member,
            drain=me.drain,
        )

    def _withdrawn(self, view: View) -> View:
        """Return a view without offers to hosts that are gone."""
        lapsed = self._group.lapsed(view.semaphore) if view.semaphore else []
        if not lapsed:
            return view
        withdrawn = False

        def edit(it: View) -> Edit | Wait:
            nonlocal withdrawn
            withdrawn = False
            if wait := self._doubt(it):
                return wait
            after = semaphore.withdraw(_slots(it), lapsed)
            withdrawn = after != it.semaphore
            return Edit(semaphore=after)

        self._group.change(edit)  # looks again, with the queue, for what becomes free is offered
        if withdrawn:
            logger.warning("withdrawn from hosts that never came for it: %s", ", ".join(lapsed))
        return self._group.look()

    def _leave_what_is_missing(self, nonce: str) -> None:
        """Stand in no queue of a group that has no slots."""
        view = self._group.look()
        mine = view.mine(self._me.host)
        ours = mine if mine and mine.wish.nonce == nonce else None
        if view.semaphore or (ours and not self._group.leave(ours, view)):
            raise EtcdError(f"the reboot slots of {self._group.name} changed just then")

    def _queued(self, view: View, wish: Holder) -> View:
        """Return a view in which this host waits, if it holds nothing."""
        host = self._me.host
        if view.semaphore is None or host in view.semaphore.holders:
            return view
        mine = view.mine(host)
        if mine is None:
            self._stayed = self._monotonic()
            return self._group.join(host, wish)
        if (
            mine.wish.nonce == wish.nonce
            and self._monotonic() - self._stayed > self._group.lease / 4
        ):
            self._group.stay(mine.lease)
            self._stayed = self._monotonic()
        return view

    def _acquired(self, view: View, wish: Holder) -> Edit | Wait:
        if wait := self._doubt(view):
            return wait
        found, host, mine = _slots(view), self._me.host, view.mine(self._me.host)
        held = found.holders.get(host)
        other = held or (mine.wish if mine else None)
        if other and (other.nonce != wish.nonce or other.boot_id not in self._book.note.boots):
            return semaphore.cloned(other, wish)
        quiet = self._group.quiet(found)
        after = semaphore.acquire(found, host, wish, quiet=quiet)
        if isinstance(after, Wait):
            return self._explained(after, view, quiet)
        if held or view.in_turn(host, quiet=quiet):
            return Edit(semaphore=after, leaves=mine)
        return self._explained(
            Wait(
                reason=Reason.LOCK_QUEUE,
                sentence="other hosts came first",
                ends="they take their turn, or leave the queue",
            ),
            view,
            quiet,
        )

    def _explained(self, wait: Wait, view: View, quiet: float) -> Wait:
        """Return ``wait`` with this host's place, when it may end, and who is late."""
        said, found = wait.sentence, _slots(view)
        if at := view.place():
            said += f"; this host is number {at} of {view.waiting} waiting"
        late = [it for it in found.holders.values() if self._group.seen(it.nonce) > self._stale]
        if wait.reason in (Reason.LOCK, Reason.LOCK_LABEL, Reason.QUORUM) and late:
            minutes = max(self._group.seen(it.nonce) for it in late) / 60
            return replace(
                wait,
                reason=Reason.LOCK_STALE,
                sentence=f"{said}; {semaphore.names(late)} did not come back for"
                f" {minutes:.0f} minutes",
                ends="it comes back; or, when it is surely off, 'update-agentctl lock release'",
            )
        left = timedelta(seconds=max(1.0, found.gap - quiet))
        until = self._now() + left if wait.reason is Reason.LOCK_GAP else None
        return replace(wait, sentence=said, until=until)

    def _doubt(self, view: View) -> Wait | None:
        """Return why what etcd says is not to be believed, or says nothing."""
        before, note = self._book.note, self._noted(view)
        self._revision = view.revision
        if note != before:
            self._book.write(replace(note, revision=view.revision))
        if view.semaphore is None:
            return _absent(view, self._group.name)
        if not note.doubt:
            return None
        return Wait(
            reason=Reason.LOCK_RESTORED,
            sentence="etcd went back to an older state, or is another one: who holds a reboot"
            " slot may be forgotten",
            ends=_CHANGE_SLOTS,
        )

    def _noted(self, view: View) -> Note:
        """Return what is to be known of etcd from now on."""
        note = self._book.note
        back = note.cluster not in ("", view.cluster) or view.revision < self._revision
        if back and not note.doubt:
            logger.error(
                "etcd went back: cluster %s at %d, and cluster %s at %d was seen",
                view.cluster, view.revision, note.cluster, self._revision,
            )  # fmt: skip
            note = replace(note, doubt=True)
        accepted = view.semaphore.accepted if view.semaphore else None
        if accepted and accepted.cluster == view.cluster:
            newer = note.accepted is None or accepted.at > note.accepted
            note = replace(note, doubt=note.doubt and not newer)
        if accepted and not note.doubt:
            note = replace(note, accepted=accepted.at)
        return replace(note, cluster=view.cluster)

    def _remember(self) -> None:
        self._book.write(replace(self._book.note, revision=self._revision))


def _slots(view: View) -> Semaphore:
    if view.semaphore is None:
        raise RuntimeError("nobody looked whether there are reboot slots")
    return view.semaphore


def _absent(view: View, group: str) -> Wait:
    if view.broken:
        return Wait(
            reason=Reason.LOCK_BROKEN,
            sentence=view.broken,
            ends=f"etcdctl get /update-agent/groups/{group}/reboot, and mend it",
        )
    return Wait(
        reason=Reason.LOCK_MISSING,
        sentence=f"etcd has no reboot slots for the group {group}",
        ends=_CHANGE_SLOTS,
    )
