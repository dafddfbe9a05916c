"""Hosts that take part in a group's reboot lock: boots, restarts, clones, each with its disk."""

import datetime as dt
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.etcd import Cluster
from update_agent.core import semaphore
from update_agent.core.reason import Reason, Wait
from update_agent.core.semaphore import Accepted, Semaphore
from update_agent.core.version import Version
from update_agent.host.etcd import Access, Delete, Etcd
from update_agent.host.group import LEASE, Edit, Group, View
from update_agent.host.lock import Lock, Me, Notebook

OLD, NEW = Version("1.0.0"), Version("1.1.0")
KEY = "/update-agent/groups/web/reboot"


@pytest.fixture
def etcd(etcd1: Cluster) -> Iterator[Etcd]:
    """A client of one member, in which nobody ever used the lock."""
    with etcd1.client(deadline=30.0) as made:
        made.txn((), (Delete("/update-agent/", prefix=True),))
        yield made


@dataclass
class Clock:
    """Time as a test wants it."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class RealClock(Clock):
    """Time as it is."""

    def __call__(self) -> float:
        return time.monotonic()


@dataclass
class Host:
    """A machine; ``lock`` is what its daemon holds in memory."""

    number: int
    access: Access
    folder: Path
    group: str = "web"
    labels: dict[str, str] = field(default_factory=dict)
    member: bool = False
    skew: dt.timedelta = dt.timedelta(0)
    lease: int = LEASE
    boots: int = 0
    monotonic: Clock = field(default_factory=Clock)
    etcd: Etcd = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    @property
    def id(self) -> str:
        return f"{self.number:032x}"

    def restart(self) -> None:
        """Begin the daemon anew: it knows what is on the disk."""
        if self.boots:
            self.etcd.close()
        self.boots = self.boots or 1
        self.etcd = Etcd(self.access)
        name = f"{self.folder.name}-{self.number}"
        boot = f"boot-{self.boots}-of-{name}"
        me = Me(
            host=self.id, name=f"web-{self.number}", boot_id=boot,
            labels=self.labels, member=self.member,
        )  # fmt: skip
        self.view = Group(self.etcd, self.group, lease=self.lease, monotonic=self.monotonic)
        self.lock = Lock(
            self.view, me, Notebook(self.folder / f"note-{self.number}"),
            now=lambda: dt.datetime.now(dt.UTC) + self.skew,
            new_nonce=lambda: secrets.token_hex(16), monotonic=self.monotonic,
        )  # fmt: skip

    def reboot(self) -> None:
        self.boots += 1
        self.monotonic = type(self.monotonic)()
        self.restart()

    def acquire(self) -> Reason | None:
        return reason(self.lock.acquire(OLD, NEW))

    def release(self) -> None:
        self.lock.release()

    def confirm(self) -> Reason | None:
        return reason(self.lock.confirm())


def reason(wait: Wait | None) -> Reason | None:
    return wait.reason if wait else None


def rule(
    etcd: Etcd, slots: int, *, group: str = "web", gap: int = 0, apart: tuple[str, ...] = ()
) -> None:
    """Do what ``update-agentctl lock slots`` does."""

    def edit(view: View) -> Edit:
        accepted = Accepted(at=dt.datetime.now(dt.UTC), cluster=view.cluster)
        found = semaphore.change(
            view.semaphore, slots=slots, gap=gap, apart=apart, accepted=accepted
        )
        return Edit(semaphore=found)

    assert Group(etcd, group).change(edit) is None


def held(etcd: Etcd, group: str = "web") -> Semaphore:
    """Return the reboot slots as they stand."""
    found = Group(etcd, group).look().semaphore
    assert found
    return found
