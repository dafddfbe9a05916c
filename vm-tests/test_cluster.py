"""Three hosts with an etcd of their own, that reboot in turn: updated while they serve, by a good
release, by a bad one, and by one whose first host never comes back.

The machines stay the same for all of it: each test goes on where the one before ended.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from threading import Event, Thread
from typing import Any, Self

import pytest
import requests
from cluster import NUMBERS, Fleet, assembled, reason, serves, together
from conftest import NewMachine
from depot import Depot
from follower import Host
from machine import MachineError
from releases import NEVER_UP, Files, Workshop, deadline

from tests.etcd import until
from tests.server.process import Server
from update_agent.core.report import host_id

ENOUGH = 1800.0
"""Seconds after which something that was waited for does not come any more."""

SERVES = serves()


@dataclass
class Caller:
    """Calls the service all the time: the next host, when one does not answer."""

    ports: Sequence[int]
    served: int = 0
    passed_over: int = 0
    failed: list[float] = field(default_factory=list)
    ended: Event = field(default_factory=Event)

    def run(self) -> None:
        first = 0
        while not self.ended.wait(0.1):
            first += 1
            if not any(self._answers(first + at) for at in range(len(self.ports))):
                self.failed.append(time.monotonic())

    def _answers(self, at: int) -> bool:
        url = f"http://127.0.0.1:{self.ports[at % len(self.ports)]}/"
        try:
            good = requests.get(url, timeout=3).text == "It works.\n"
        except requests.RequestException:
            good = False
        self.served += good
        self.passed_over += not good
        return good

    def __enter__(self) -> Self:
        self._thread = Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self._thread.join()


@pytest.fixture(scope="module")
def fleet(workshop: Workshop, new_machine: NewMachine) -> Iterator[Fleet]:
    folder = workshop.folder / "depot-cluster"
    folder.mkdir()
    depot = Depot(folder=folder)
    disk = workshop.disk(workshop.release("1.0.0", SERVES))
    made = assembled(disk, depot, workshop, new_machine, settings={"update.interval": "30m"})
    with depot.served(), made.up():
        yield made
    workshop.forget(disk)


def offer(fleet: Fleet, version: str, files: Files) -> None:
    """Publish a release; nobody is offered it yet."""
    image = fleet.workshop.release(version, files)
    fleet.depot.add(image, version, level=1)
    fleet.workshop.forget(image)


def promote(fleet: Fleet, version: str) -> None:
    """Offer a release to every host, and let them ask for it now."""
    fleet.depot.promote(version)
    together(fleet, lambda it: it.machine.run("sudo update-agentctl check --no-wait"))


def watch(
    host: Host, true: Callable[[Mapping[str, Any]], bool], *, boots: bool = False
) -> Mapping[str, Any]:
    """Wait until the daemon says something of which ``true`` holds; ``boots``: over reboots."""
    deadline, last = time.monotonic() + ENOUGH, None
    while time.monotonic() < deadline:
        with suppress(MachineError):
            for last in host.statuses():
                if true(last):
                    return last
        assert boots, f"{host.machine.name} went down: {last}"
    raise AssertionError(f"{host.machine.name} says at last: {last}")


# Stories -----------------------------------------------------------------------------------------


def test_three_hosts_with_certificates_are_a_cluster(fleet: Fleet) -> None:
    assert "has 1 reboot slot" in fleet.ctl("lock slots 1")

    machine = fleet.hosts[0].machine
    found = [it for it in machine.json("sudo update-agentctl doctor --json || true")
             if it["check"] == "cluster"]  # fmt: skip
    assert "problem" not in {it["level"] for it in found}, found
    assert found[-1]["text"] == "reboot slots of the group default: 1, held: 0"
    keys = "/etc/etcd/key.pem /etc/update-agent/etcd-key.pem"
    assert machine.run(f"sudo stat -c '%a %U:%G' {keys}") == (
        "640 root:etcd\n640 root:update-agent\n"
    )
    assert "etcd-key.pem" in machine.fails("sudo -u nobody update-agentctl lock status")


def test_an_update_goes_through_the_hosts_one_at_a_time_while_they_serve(
    fleet: Fleet, figure: Callable[[str], None]
) -> None:
    marks = [len(host.machine.lines) for host in fleet.hosts]
    with ExitStack() as ended, ThreadPoolExecutor(3) as pool:
        server = ended.enter_context(fleet.server())
        fleet.tokens |= server.tokens
        together(fleet, fleet.let_report)
        until(lambda: len(server.api("/v1/hosts")["hosts"]) == len(NUMBERS), ENOUGH)
        offer(fleet, "1.1.0", SERVES | {"etc/motd": "This is 1.1.0.\n"})
        caller = ended.enter_context(Caller(fleet.ports))
        began = time.monotonic()
        promote(fleet, "1.1.0")
        work: set[Future[Mapping[str, Any]]] = {pool.submit(updated, host) for host in fleet.hosts}
        done, work = wait(work, return_when=FIRST_COMPLETED)
        server.end()  # and it is away while the second host is updated
        more, work = wait(work, return_when=FIRST_COMPLETED)
        ended.enter_context(fleet.server())
        last, _ = wait(work)
        assert {it.result()["running"] for it in (*done, *more, *last)} == {"1.1.0"}
        for host in fleet.hosts:
            watch(host, lambda it: it["state"] == "idle")
        calls = caller.served + caller.passed_over

    away = sorted(away_times(host, mark) for host, mark in zip(fleet.hosts, marks, strict=True))
    for before, after in pairwise(away):
        assert before.confirmed < after.down, "two hosts were away at the same time"
    assert caller.failed == []
    assert fleet.lock()["holders"] == []
    for it in away:
        figure(
            f"cluster, {it.name}: down {it.down - began:.0f} s after the promotion, up at"
            f" {it.up - began:.0f} s, confirmed at {it.confirmed - began:.0f} s"
        )
    figure(
        f"cluster: {calls} calls of the service during the update, {caller.passed_over} passed on"
        f" to the next host, {len(caller.failed)} failed"
    )


def updated(host: Host) -> Mapping[str, Any]:
    """Wait until slot B was booted and is confirmed; the last host waits for all others."""
    host.machine.wait_for_serial("gptprio: slot B: kernel verified", 3 * ENOUGH)
    host.machine.wait_until_up()
    host.machine.wait_for_serial(r"Finished .*Confirm the booted slot")
    return host.status()


@dataclass(frozen=True, order=True)
class Away:
    """When a host went down, came up, and was confirmed."""

    down: float
    up: float
    confirmed: float
    name: str


def away_times(host: Host, mark: int) -> Away:
    """Return when a host went down, came up, and was confirmed."""
    lines = host.machine.lines[mark:]

    def first(text: str, since: float = 0) -> float:
        return next(it.at for it in lines if it.at >= since and text in it.text)

    down = first("reboot: Restarting system")
    up = first("multi-user.target", down)
    confirmed = first("Confirm the booted slot", down)
    at = host.machine.at
    return Away(at(down), at(up), at(confirmed), host.machine.name)


def is_stopped(status: Mapping[str, Any]) -> bool:
    """Return whether a host fell back, or does not take what fell back elsewhere."""
    return status["state"] == "failed" or reason(status) == "bad-release"


@pytest.mark.case(68)
def test_a_bad_release_is_stopped_by_its_first_host(
    fleet: Fleet, figure: Callable[[str], None]
) -> None:
    marks = [len(host.machine.lines) for host in fleet.hosts]
    began = time.monotonic()
    offer(fleet, "1.2.0", NEVER_UP | deadline(25))
    promote(fleet, "1.2.0")

    found = together(fleet, lambda host: watch(host, is_stopped, boots=True))

    assert {it["running"] for it in found} == {"1.1.0"}
    (first,) = [at for at, it in enumerate(found) if it["state"] == "failed"]
    assert found[first]["history"][0]["outcome"] == "fell-back"
    name = fleet.hosts[first].machine.name
    for at, (host, status) in enumerate(zip(fleet.hosts, found, strict=True)):
        assert boots_a(host, marks[at]) is (at == first)
        if at != first:
            assert reason(status) == "bad-release"
            assert status["reason"]["sentence"] == f"1.2.0 rolled back on {name}"
            assert "lock forgive 1.2.0" in status["reason"]["ends"]
            assert not any(it["next"] for it in status["slots"] if it["slot"] == "A")
    until(lambda: fleet.lock()["holders"] == [], ENOUGH)
    assert fleet.lock()["bad_releases"] == {"1.2.0": [name]}
    figure(f"cluster: a bad release was stopped by 1 of 3 hosts, {time.monotonic() - began:.0f} s"
           " after it was built")  # fmt: skip


@pytest.mark.case(78)
@pytest.mark.case(92)
def test_a_host_that_never_comes_back_stops_the_others_until_people_act(
    fleet: Fleet, figure: Callable[[str], None]
) -> None:
    marks = [len(host.machine.lines) for host in fleet.hosts]
    began = time.monotonic()
    offer(fleet, "1.3.0", SERVES | {"etc/motd": "This is 1.3.0.\n"})
    promote(fleet, "1.3.0")
    assert "may be installed again" in fleet.ctl("lock forgive 1.2.0")
    assert fleet.lock()["bad_releases"] == {}

    first = boots_first(fleet.hosts, marks)
    gone = fleet.hosts[first]
    gone.machine.cut_power()
    second, third = (at for at in range(len(NUMBERS)) if at != first)
    others = [fleet.hosts[second], fleet.hosts[third]]

    for host in others:
        held = watch(host, lambda it: reason(it) in {"lock", "lock-stale"})
        assert f"the reboot slot is held by {gone.machine.name}" in held["reason"]["sentence"]
    for host in others:
        late = watch(host, lambda it: reason(it) == "lock-stale")
        assert f"{gone.machine.name} did not come back" in late["reason"]["sentence"]
        assert late["running"] == "1.1.0"
    figure(f"cluster: with a host gone for good the others wait, lock-stale"
           f" {time.monotonic() - began:.0f} s after the release was built")  # fmt: skip

    revision = fleet.lock(second)["revision"]
    said = fleet.ctl(f"lock release {gone.machine.name} --revision {revision}", second)
    assert "is free; it was 1.1.0 -> 1.3.0" in said
    for host in others:  # two of three members are left
        said = host.machine.fails("sudo update-agentctl reboot")
        assert "without this host 1 would be left" in " ".join(said.split())
        assert reason(host.status()) == "quorum"

    marks = [len(host.machine.lines) for host in others]
    gone.machine.power_on()
    gone.machine.wait_until_up()
    watch(gone, lambda it: it["running"] == "1.3.0" and it["state"] == "idle", boots=True)
    following = boots_first(others, marks)
    last = 1 - following
    assert "reboots are frozen" in fleet.ctl("lock slots 0", (second, third)[last])
    done = watch(others[following], lambda it: it["state"] == "idle", boots=True)
    assert done["running"] == "1.3.0"
    assert "reboots are frozen" in others[last].machine.fails("sudo update-agentctl reboot")
    figure(f"cluster: when it was back all went on; the second ran 1.3.0"
           f" {time.monotonic() - began:.0f} s after it was built")  # fmt: skip


def boots_first(hosts: Sequence[Host], marks: Sequence[int]) -> int:
    """Return which of the hosts boots slot A first, while it does."""
    found: list[int] = []

    def booted() -> bool:
        pairs = enumerate(zip(hosts, marks, strict=True))
        found.extend(at for at, (host, mark) in pairs if boots_a(host, mark))
        return bool(found)

    until(booted, ENOUGH)
    assert len(found) == 1
    return found[0]


def boots_a(host: Host, mark: int) -> bool:
    """Return whether a host has booted slot A since its console had ``mark`` lines."""
    lines = list(host.machine.lines)[mark:]
    return any("gptprio: slot A: kernel verified" in it.text for it in lines)


def test_what_the_update_server_shows_is_what_happened(fleet: Fleet) -> None:
    with fleet.server() as server:
        for host in fleet.hosts:
            host.machine.run("sudo systemctl restart update-agentd")  # it need not wait so long
        for host in fleet.hosts:
            machine = host.machine
            happened = {
                it["attempt"]: (it["from"], it["to"], it["outcome"], it["why"] or "")
                for it in machine.json("update-agentctl history --json")
            }
            name = host_id(machine.run("cat /etc/machine-id").strip())
            until(partial(shows, server, name, happened), ENOUGH)
            found = server.api(f"/v1/hosts/{name}")["host"]
            assert (found["name"], found["group"]) == (machine.name, "default")
            assert found["version"] == host.status()["running"]


def shows(server: Server, name: str, happened: Mapping[str, tuple[str, ...]]) -> bool:
    """Return whether the update server shows the attempts of a host as they were."""
    return happened == {
        it["attempt"]: (it["running"], it["version"], it["outcome"], it["why"])
        for it in server.api(f"/v1/hosts/{name}")["attempts"]
    }
