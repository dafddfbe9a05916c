"""What the host's work notices of an update: a disk of 50 MB/s, and a log that syncs as etcd's."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import NewMachine
from depot import Depot
from follower import UNLIMITED
from machine import Machine, Throttle
from releases import LEAN, Workshop

DISK = 50_000_000
"""Bytes a second."""

SECONDS = 10
"""That each way is watched."""

LATENCY = Path(__file__).parents[1] / "tests/bench/latency.py"
LOG = "/media/state/latency.log"

SETTINGS = """\
update.interval = "1d"
reboot.strategy = "off"
"""

STATIC = '[limits]\nfloor = "20M"\nceiling = "20M"\n'
GOVERNED = ""

DD = "sudo dd if=/dev/vda2 of=/dev/vda3 bs=1M count=330 iflag=direct oflag=direct conv=fsync"


@dataclass
class Host:
    """A machine that updates only when it is told."""

    machine: Machine

    def limit(self, settings: str) -> None:
        """Set what an update may take, and begin with a slot in which nothing can be kept."""
        self.machine.put(settings, "/etc/update-agent/90-limits.toml")
        self.machine.run("sudo dd if=/dev/zero of=/dev/vda3 bs=1M count=1 conv=fsync")

    def p99(self) -> float:
        """Return the 99th percentile of the time that a sync takes, in milliseconds."""
        said = self.machine.run(
            f"sudo python3 -I /media/state/latency.py --seconds {SECONDS} {LOG}",
            timeout=600,
        )
        return float(json.loads(said)["p99_ms"])

    def install(self) -> float:
        """Install what is offered; return how many seconds the writer took for it."""
        begin = self._uptime()
        self.machine.run("sudo update-agentctl install", timeout=900)
        took = self._uptime() - begin
        self.machine.run("sudo update-agentctl cancel")
        return took

    @contextmanager
    def installing(self) -> Iterator[None]:
        """Have an installation under way meanwhile; it is cancelled at the end."""
        self.machine.run("sudo update-agentctl install --no-wait")
        self.machine.run(
            "update-agentctl status --watch --json | grep --max-count=1 '\"step\"'", timeout=300
        )
        try:
            yield
        finally:
            self.machine.run("sudo update-agentctl cancel", timeout=300)

    def moved(self) -> int:
        """Return how many bytes of the disk updates have read and written."""
        said = self.machine.run(
            "grep $(cat /sys/block/vda/dev) /sys/fs/cgroup/updateagent.slice/io.stat"
        )
        found = dict(word.split("=") for word in said.split()[1:])
        return int(found["rbytes"]) + int(found["wbytes"])

    def _uptime(self) -> float:
        return float(self.machine.run("cat /proc/uptime").split()[0])


@pytest.fixture(scope="module")
def host(workshop: Workshop, new_machine: NewMachine) -> Iterator[Host]:
    folder = workshop.folder / "depot-limits"
    folder.mkdir()
    depot = Depot(folder=folder)
    old, new = workshop.release("1.0.0", LEAN), workshop.release("1.1.0", LEAN)
    depot.add(new, "1.1.0", level=3)
    depot.promote("1.1.0")
    disk = workshop.disk(old)
    machine = new_machine(
        disk,
        "limited",
        credentials=depot.settings(SETTINGS),
        throttle=Throttle(bytes_per_second=DISK),
    )
    with depot.served():
        machine.boot()
        machine.put(LATENCY, "/media/state/latency.py")
        yield Host(machine)
        machine.cut_power()
    workshop.forget(disk)


def test_the_slice_has_its_limits_and_the_writer_may_move_one_of_them(host: Host) -> None:
    run = host.machine.run
    assert run("cat /sys/fs/cgroup/updateagent.slice/io.weight") == "default 10\n"
    assert run("cat /sys/fs/cgroup/updateagent.slice/cpu.weight") == "10\n"
    assert int(run("cat /sys/fs/cgroup/updateagent.slice/memory.max")) == 512 * 2**20
    host.limit(STATIC)

    with host.installing():
        assert "wbps=25000000" in run("cat /sys/fs/cgroup/updateagent.slice/io.max")
        said = host.machine.json("update-agentctl status --json")
        log = run("sudo journalctl -b --no-pager -u update-agent-writer --output=cat")

    assert said["progress"]["throttled_by"] in {"limits.ceiling", None}
    assert "without io.max" not in log


def test_on_an_idle_host_an_update_has_the_disk(host: Host, figure: Callable[[str], None]) -> None:
    took = []
    for settings in (UNLIMITED, GOVERNED, UNLIMITED):  # the machine's own speed changes meanwhile
        host.limit(settings)
        took.append(host.install())
    before, governed, after = took
    share = (before + after) / 2 / governed
    figure(
        f"limits: an idle disk of {DISK / 1e6:.0f} MB/s: installed in {governed:.1f} s with the"
        f" governor, {before:.1f} and {after:.1f} s without any limit: {share:.0%} of its speed"
        " (goal 90 %)"
    )

    assert share > 0.5  # emulated, it is the processor that is short
    assert "bps" not in host.machine.run("cat /sys/fs/cgroup/updateagent.slice/io.max")


def test_the_host_s_work_notices_little(host: Host, figure: Callable[[str], None]) -> None:
    alone = host.p99()
    figure(f"limits: p99 of fdatasync alone on a disk of {DISK / 1e6:.0f} MB/s: {alone:.1f} ms")
    found = {"dd": _beside_dd(host)}
    figure(_line("beside dd of an image", found["dd"], alone))
    for name, settings in (("unlimited", UNLIMITED), ("static", STATIC), ("governed", GOVERNED)):
        host.limit(settings)
        with host.installing():
            before, began = host.moved(), host._uptime()
            found[name] = host.p99()
            rate = (host.moved() - before) / (host._uptime() - began)
        figure(
            _line(f"beside our update, {name}", found[name], alone)
            + f", the update moves {rate / 1e6:.1f} MB/s"
        )
    again = host.p99()
    figure(_line("alone again", again, alone))

    assert found["governed"] < found["dd"] / 2
    assert found["governed"] < 3 * max(alone, again)


def _line(what: str, p99: float, alone: float) -> str:
    return f"limits: p99 {what}: {p99:.1f} ms, {p99 / alone:.2f} times alone"


def _beside_dd(host: Host) -> float:
    """Return the p99 while a ``dd`` writes the image again and again."""
    over = threading.Event()

    def copy() -> None:
        while not over.is_set():
            host.machine.run(DD, timeout=600)

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        return host.p99()
    finally:
        over.set()
        thread.join()
