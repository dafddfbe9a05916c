"""Hosts with an etcd of their own that reboot in turn: how they are made, and how to ask them."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depot import Depot
from follower import Host
from machine import HOST, Machine, Network, free_port, private_network
from releases import LEAN, Workshop, deadline

from tests.etcd import Ca
from tests.server.process import serving

NUMBERS = (1, 2, 3)
PORT = 80

Settings = Mapping[str, object]
"""Values by the name of a setting."""

SETTINGS: Settings = {
    "limits.floor": "10G",
    "reboot.strategy": "lock",
    "trial.soak": "3s",
    "reports.interval": "1m",
    "cluster.stale": "10s",
}
"""Of hosts that do not make a test wait; an emulated one is under pressure by itself."""

ETCD = """\
ETCD_NAME=web-{number}
ETCD_LISTEN_PEER_URLS=https://0.0.0.0:2380
ETCD_LISTEN_CLIENT_URLS=https://0.0.0.0:2379
ETCD_INITIAL_ADVERTISE_PEER_URLS=https://10.77.0.{number}:2380
ETCD_ADVERTISE_CLIENT_URLS=https://10.77.0.{number}:2379
ETCD_INITIAL_CLUSTER={members}
ETCD_INITIAL_CLUSTER_STATE=new
ETCD_HEARTBEAT_INTERVAL=500
ETCD_ELECTION_TIMEOUT=5000
"""

WEB = """\
[Unit]
Description=What the hosts are for
After=network.target

[Service]
ExecStart=/usr/bin/python3 -I -m http.server 80 --directory /usr/share/web
"""

PATIENT = {
    f"usr/lib/systemd/system/{unit}.service.d/patient.conf": (
        f"[Service]\nTimeoutStartSec=15min\nTimeoutStopSec=5min\n{more}"
    )
    for unit, more in (
        ("etcd", ""), ("update-agent-writer", ""), ("update-agentd", "WatchdogSec=10min\n"),
    )
}  # fmt: skip
"""For three emulated machines on processors that others want as well."""

WITH_ETCD = {name: text for name, text in LEAN.items() if "etcd" not in name}


def serves(numbers: Iterable[int] = NUMBERS) -> dict[str, str]:
    """Return the files of a release that serves, with a member of etcd, on any of these hosts."""
    networks = {
        f"etc/systemd/network/10-private-{it}.network": private_network(it) for it in numbers
    }
    return PATIENT | deadline(1800) | networks | WITH_ETCD | {
        "usr/lib/systemd/system/web.service": WEB,
        "usr/lib/systemd/system/multi-user.target.d/web.conf": "[Unit]\nWants=web.service\n",
        "usr/share/web/index.html": "It works.\n",
    }  # fmt: skip


@dataclass
class Fleet:
    """Hosts, what they follow, and whom they report to."""

    hosts: list[Host]
    depot: Depot
    workshop: Workshop
    ports: list[int]
    """Of the loopback, that lead to what the hosts serve."""
    reports: int
    """The update server's port."""
    tokens: dict[str, str] = field(default_factory=dict)

    def ctl(self, words: str, at: int = 0) -> str:
        return self.hosts[at].machine.run(f"sudo update-agentctl {words}")

    def lock(self, at: int = 0) -> Any:  # noqa: ANN401  what JSON holds
        return self.hosts[at].machine.json("sudo update-agentctl lock status --json")

    def server(self) -> Any:  # noqa: ANN401  a context manager
        return serving(
            self.depot.folder, "--port", str(self.reports), tokens=self.tokens,
            log=self.depot.folder / "server.log",
        )  # fmt: skip

    def let_report(self, host: Host) -> None:
        """Give a host its token, as people do who run one."""
        host.machine.put(self.tokens["hosts"], "/media/state/config/report-token", mode="600")
        host.machine.run("sudo update-agent-firstboot")
        assert host.machine.run("stat -c '%a %U:%G' /etc/update-agent/report-token") == (
            "640 root:update-agent\n"
        )

    @contextmanager
    def up(self) -> Iterator[None]:
        """Let all hosts be up, until the end."""
        machines = [it.machine for it in self.hosts]
        try:
            for machine in machines:
                machine.power_on()
            for machine in machines:
                machine.wait_until_up()
            yield
        finally:
            for machine in machines:
                machine.cut_power()


def assembled(
    disk: Path,
    depot: Depot,
    workshop: Workshop,
    new_machine: Callable[..., Machine],
    *,
    settings: Settings,
    numbers: Sequence[int] = NUMBERS,
    way: int = 0,
) -> Fleet:
    """Return hosts that are not switched on yet.

    They report to the update server by the port ``way``, by its own unless there is one between.
    """
    reports = free_port()
    ca = Ca(depot.folder / "ca")
    network, ports = Network(port=free_port()), [free_port() for _ in numbers]
    members = ",".join(f"web-{it}=https://10.77.0.{it}:2380" for it in numbers)
    known = {
        **SETTINGS,
        "reports.url": f"http://{HOST}:{way or reports}",
        "cluster.endpoints": [f"https://10.77.0.{it}:2379" for it in numbers],
        **settings,
    }
    follows = depot.settings(
        "".join(f"{name} = {json.dumps(value)}\n" for name, value in known.items())
    )
    machines = []
    for number, port in zip(numbers, ports, strict=True):
        cert, key = ca.issue(f"web-{number}", [f"10.77.0.{number}", "127.0.0.1"], days=30)
        credentials = {
            "etcd": ETCD.format(number=number, members=members), "etcd-ca": ca.path.read_text(),
            "etcd-cert": cert.read_text(), "etcd-key": key.read_text(),
        }  # fmt: skip
        machines.append(
            new_machine(
                disk, f"web-{number}", number=number, cpus=1, memory=1024, network=network,
                forwards={port: PORT}, credentials={**follows, **credentials},
            )
        )  # fmt: skip
    return Fleet([Host(it, depot) for it in machines], depot, workshop, ports, reports)


def together(fleet: Fleet, work: Callable[[Host], Any]) -> list[Any]:
    """Do something with all hosts at once; return what came of it, in their order."""
    with ThreadPoolExecutor(len(fleet.hosts)) as pool:
        return list(pool.map(work, fleet.hosts))


def reason(status: Mapping[str, Any]) -> str:
    """Return why a host waits, or nothing."""
    return str((status["reason"] or {}).get("code", ""))
