"""Reboots that the cluster permits: a reboot slot of this host's group, asked of etcd.

The rules kept here:

* This host's own reasons come first: nobody holds a reboot slot, or stands in the queue for one,
  while he waits for a window, or while etcd would not stand his reboot. What is shown of etcd is
  first that others hold all reboot slots: who does not come back is why etcd lacks a member.
* The last word before the reboot is a transaction that confirms the reboot slot, when the host is
  drained. Without it there is no reboot.
* What etcd has to know is on this host's disk first, and is told until it is taken, however long
  that takes. That a release rolled back is told before the reboot slot is given back, so that
  whoever comes next knows it.
"""

import logging
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from update_agent.agent.ports import NotPermittedError
from update_agent.agent.reboots import LocalReboots, nothing
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Attempt
from update_agent.core.release import Host
from update_agent.core.settings import Cluster
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.host import cluster, group, identity, reboot
from update_agent.host.etcd import Etcd, EtcdError
from update_agent.host.group import Group
from update_agent.host.lock import Lock, Me, Notebook
from update_agent.host.quorum import quorum_wait

logger = logging.getLogger(__name__)

NOTE = "cluster.json"
"""Within the daemon's folder."""
_PAUSES = 1.0, 60.0
"""Seconds between two tries to tell etcd something: the first, and the longest."""


def lock_of(settings: Cluster, me: Me, etcd: Etcd, book: Notebook, name: str) -> Lock:
    """Return this host's part in the group ``name``, as it stands in its notebook."""
    return Lock(
        Group(etcd, name, host=me.host), me, book,
        now=identity.clock, new_nonce=lambda: uuid.uuid4().hex,
        stale=settings.stale.total_seconds(),
    )  # fmt: skip


def holds(folder: Path) -> bool:
    """Return whether a reboot slot may be held since the settings were others. Raises HostError."""
    return Notebook(folder / NOTE).note.nonce is not None


class ClusterReboots:
    """Reboots that a group of hosts permits one another, ``ports.Reboots``."""

    def __init__(
        self,
        local: LocalReboots,
        settings: Cluster,
        host: Host,
        folder: Path,
        *,
        me: Me | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._local = local
        self._settings = settings
        self._me = me or cluster.me(settings, host.machine_id, local.drain)
        self._running = host.version
        self._etcd = cluster.connected(settings)
        book = Notebook(folder / NOTE)
        self._lock = lock_of(settings, self._me, self._etcd, book, settings.group)
        self._former = self._lock
        """In the group that the settings named when this host asked for a slot; mostly the same."""
        if book.note.group not in ("", settings.group):
            self._former = lock_of(settings, self._me, self._etcd, book, book.note.group)
        self._queued = False
        self._courier = Courier(self._deliver, chance)

    def ask(
        self,
        now: datetime,
        attempt: Attempt | None,
        *,
        hurry: bool,
        without_lock: bool,
        keep: bool = False,
    ) -> Wait | None:
        """Return why the host may not reboot now, or hold a reboot slot. Raises HostError."""
        self._queued = False
        target = attempt.version if attempt else None
        give_back = nothing if keep else self.give_back
        try:
            wait = self._local.ask(now, attempt, hurry=hurry)
        except HostError:
            give_back()
            raise
        if wait:
            give_back()
            return wait
        if without_lock:
            return None
        with _reached():
            if wait := self._quorum():
                give_back()
                return self._lock.look(self._running, target) or wait
            held = self._lock.wishing
            if self._former.wishing and not held:  # in another group
                if keep:
                    return _held_before(self._former.group)
                self._former.leave_later()
            self._deliver()
            wait = self._lock.acquire(self._running, target)
            if wait and keep and not held:
                self.give_back()  # and stand in no queue
        self._queued = wait is not None
        if self._lock.owes:
            self._courier.wake()
        return wait

    def called(self, seconds: float) -> bool:
        """Wait until this host's turn may have come, if it waits for one. Raises HostError."""
        if not self._queued:
            return False
        with _reached():
            return self._lock.called(seconds)

    def known_bad(self, version: Version) -> Wait | None:
        """Return on which hosts ``version`` rolled back, if on too many. Raises HostError."""
        with _reached():
            hosts = group.bad_hosts(self._etcd, version.text)
        if len(hosts) < self._settings.bad_limit:
            return None
        more = f" and {len(hosts) - _NAMED} more" if len(hosts) > _NAMED else ""
        return Wait(
            reason=Reason.BAD_RELEASE,
            sentence=f"{version} rolled back on {', '.join(sorted(hosts)[:_NAMED])}{more}",
            ends=f"a newer release, or 'update-agentctl lock forgive {version}'",
        )

    def rolled_back(self, version: Version) -> None:
        """Let etcd know. Raises HostError when the disk does not keep it."""
        self._lock.rolled_back(version)
        self._courier.wake()

    def give_back(self) -> None:
        """Hold nothing and wait for nothing. Raises HostError when the disk does not keep it."""
        for it in (self._former, self._lock):
            it.leave_later()
        if self._lock.owes:
            self._courier.wake()

    def reboot(
        self, attempt: Attempt | None, *, without_lock: bool, ready: Callable[[], None] = reboot.go
    ) -> None:
        """Drain the host, have the reboot slot confirmed, and reboot. Raises HostError."""

        def last_word() -> None:
            with _reached():
                bad = self.known_bad(attempt.version) if attempt else None
                wait = bad or self._quorum() or self._lock.confirm()
            if wait:
                raise NotPermittedError(wait)
            ready()

        self._local.reboot(ready=ready if without_lock else last_word)

    def _quorum(self) -> Wait | None:
        """Return why etcd does not stand the reboot of its members here. Raises EtcdError."""
        members = self._etcd.members()
        own = cluster.own(self._settings, members)
        self._lock.runs_member(member=bool(own))
        return quorum_wait(self._etcd, members, own)

    def _deliver(self) -> bool:
        """Tell etcd what it is owed; return whether there was something. Raises HostError."""
        if not self._lock.owes:
            return False
        for version in self._lock.bad:
            group.tell_bad(self._etcd, version.text, self._me.host, self._me.name)
            self._lock.told(version)
            logger.info("the cluster knows that %s rolled back here", version)
        for it in (self._former, self._lock):
            it.leave()
        return True


def _held_before(group: str) -> Wait:
    return Wait(
        reason=Reason.LOCK,
        sentence=f"this host still holds a reboot slot of the group {group}, of which it was",
        ends="its trial ends; or 'update-agentctl rollback --without-lock'",
    )


_NAMED = 3
"""Hosts that a sentence names."""


@contextmanager
def _reached() -> Iterator[None]:
    """Turn what etcd does not do into a reason to wait."""
    try:
        yield
    except EtcdError as error:
        raise NotPermittedError(
            Wait(
                reason=Reason.LOCK_UNREACHABLE,
                sentence=f"the cluster cannot be asked: {error}",
                ends=error.hint or "the next try",
            )
        ) from error


class Courier:
    """Delivers, in a thread of its own, with pauses that grow, until it is taken."""

    def __init__(
        self, deliver: Callable[[], bool], chance: Callable[[], float] = random.random
    ) -> None:
        self._deliver = deliver
        self._chance = chance
        self._news = threading.Event()
        self._begun = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something to deliver."""
        self._news.set()
        with self._begun:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        failures = 0
        while True:
            self._news.wait(self._pause(failures) if failures else None)
            self._news.clear()
            try:
                delivered = self._deliver()
            except HostError as error:
                failures += 1
                if failures == 1:
                    logger.warning("cannot tell the cluster: %s; trying until it works", error)
            else:
                if failures and delivered:
                    logger.info("the cluster was told, after %d tries in vain", failures)
                failures = 0

    def _pause(self, failures: int) -> float:
        first, longest = _PAUSES
        return min(first * 2.0 ** (failures - 1), longest) * (0.5 + self._chance())
