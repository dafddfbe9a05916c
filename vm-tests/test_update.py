"""A host that follows its channel, from power-on to the confirmed release, with nobody's hand."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import NewMachine
from depot import Depot
from follower import SETTINGS, UNLIMITED, Host, slot_states
from releases import Workshop
from test_first_hour import HELLO, busybox_tarball, says_hello, units_that_failed

from update_agent.agent.bus import METHODS
from update_agent.core.lifecycle import State
from update_agent.host import bus, reboot, writer

MIB = 1024
"""In KiB, as /proc counts."""

PEAKS = """\
#!/bin/sh
# The most memory that either process ever had, right before the reboot.
for unit in update-agentd update-agent-writer; do
    pid=$(systemctl show --property MainPID --value $unit)
    echo $unit $(grep VmHWM /proc/$pid/status)
done >/media/state/peaks
"""


@pytest.fixture(scope="module")
def host(workshop: Workshop, new_machine: NewMachine) -> Iterator[Host]:
    """A host that runs 1.0.0 and says hello; its channel offers nothing else yet."""
    folder = workshop.folder / "depot-update"
    folder.mkdir()
    depot = Depot(folder=folder)
    image = workshop.release("1.0.0")
    depot.add(image, "1.0.0", level=3)
    depot.promote("1.0.0")
    disk = workshop.disk(image)
    machine = new_machine(disk, "follower", credentials=depot.settings(SETTINGS + UNLIMITED))
    with depot.served():
        machine.boot()
        machine.put(busybox_tarball(), "/media/state/busybox.tar")
        machine.run("docker import /media/state/busybox.tar busybox", timeout=300)
        machine.put(HELLO, "/media/state/units/hello.service")
        machine.run("sudo systemctl restart local-enable.service")
        machine.put(PEAKS, "/etc/update-agent/pre-reboot.d/90-peaks", mode="755")
        says_hello(machine)
        yield Host(machine, depot)
        machine.cut_power()
    workshop.forget(disk)


def test_before_anything_happens_all_is_said_to_be_well(host: Host) -> None:
    found = host.status()

    assert (found["running"], found["target"], found["failed_versions"]) == ("1.0.0", "1.0.0", [])
    assert slot_states(found["slots"]) == {
        "A": ("successful", True, True),
        "B": ("retired", False, False),
    }
    said = host.machine.run("sudo update-agentctl doctor")
    assert "problem" not in said


@pytest.mark.parametrize(
    ("versions", "slot", "deltas"),
    [(("1.0.0", "1.1.0"), "B", ()), (("1.1.0", "1.2.0"), "A", ("1.1.0",))],
    ids=["full", "delta"],
)
def test_a_release_that_is_promoted_is_found_installed_booted_and_confirmed(
    versions: tuple[str, str],
    slot: str,
    deltas: tuple[str, ...],
    host: Host,
    workshop: Workshop,
    figure: Callable[[str], None],
) -> None:
    old, new = versions
    image = workshop.release(new, {"etc/motd": f"This is {new}.\n", "etc/news": new * 500_000})
    host.depot.add(image, new, *deltas, level=3)
    sent = host.depot.sent(r"\.blob$")
    host.depot.promote(new)
    seen = list(dict.fromkeys(it["state"] for it in host.statuses()))
    found = host.confirmed(slot)

    assert {State.CHECKING, State.INSTALLING, State.REBOOTING} <= set(seen)
    assert (found["running"], found["failed_versions"]) == (new, [])
    other = "AB".replace(slot, "")
    assert slot_states(found["slots"]) == {
        slot: ("successful", True, True),
        other: ("successful", False, False),
    }
    last = found["history"][0]
    assert (last["from"], last["to"], last["outcome"], last["why"]) == (old, new, "confirmed", None)
    fetched = host.depot.sent(r"\.blob$") - sent
    assert last["fetched"] <= fetched < 1.1 * last["fetched"] + 100_000  # headers, and small gaps
    figure(
        f"update {old} -> {new} ({'delta' if deltas else 'full'}): confirmed after"
        f" {last['seconds']} s, fetched {last['fetched'] / 1e6:.2f} MB instead of"
        f" {(last['fetched'] + last['saved']) / 1e6:.1f}"
    )
    carries_on(host, new)


def carries_on(host: Host, version: str) -> None:
    """Hold that what ran before the update runs again."""
    machine = host.machine
    says_hello(machine)
    assert units_that_failed(machine) == ""
    assert machine.run("cat /etc/motd") == f"This is {version}.\n"
    assert machine.run("systemctl is-active docker etcd") == "active\nactive\n"
    attempt = host.status()["history"][0]["attempt"]
    told = machine.run(f"sudo journalctl --no-pager --boot=all --output=cat --grep {attempt}")
    for step in ("installing -> staged", "rebooting -> trial", "trial -> idle", "verified"):
        assert step in told


def test_both_processes_together_take_little_memory(
    host: Host, figure: Callable[[str], None]
) -> None:
    most = peaks(host)
    resident = int(host.machine.run(f"grep VmRSS /proc/{daemon(host)}/status").split()[1])
    figure(
        f"memory: daemon {resident / MIB:.1f} MiB idle; at their peaks in an update "
        + " + ".join(f"{name} {kib / MIB:.1f}" for name, kib in most.items())
        + f" = {sum(most.values()) / MIB:.1f} MiB"
    )

    assert set(most) == {"update-agentd", "update-agent-writer"}
    assert resident <= 48 * MIB
    assert sum(most.values()) <= 192 * MIB


def peaks(host: Host) -> dict[str, int]:
    """Return the most memory that each process had in the last update, in KiB."""
    text = host.machine.run("cat /media/state/peaks")
    return {name: int(kib) for name, kib in re.findall(r"(\S+) VmHWM: (\d+) kB", text)}


def daemon(host: Host) -> str:
    return host.machine.run("systemctl show --property MainPID --value update-agentd").strip()


def cpu(host: Host) -> float:
    """Return the seconds that the daemon and the writer have computed."""
    units = "update-agentd update-agent-writer"
    said = host.machine.run(f"systemctl show --property CPUUsageNSec --value {units}")
    return sum(int(it) for it in said.split() if it.isdecimal()) / 1e9


def test_an_idle_host_computes_next_to_nothing(host: Host, figure: Callable[[str], None]) -> None:
    host.machine.put('update.interval = "45m"\n', "/etc/update-agent/70-idle.toml")
    host.machine.run("sudo systemctl restart update-agentd")
    next(it for it in host.statuses() if it["state"] == State.IDLE)  # it checks as it begins
    begin = cpu(host)
    host.machine.run("sudo update-agentctl check")
    check = cpu(host) - begin
    window = 30
    begin = cpu(host)
    host.machine.run(f"sleep {window}")  # what is measured is that nothing happens
    idle = cpu(host) - begin
    interpreter = median(host, "python3 -I -c pass")
    hour = check * 60 / 45 + idle * 3600 / window
    figure(
        f"CPU of the daemon in an idle hour: {hour:.1f} s (a check {check:.2f} s; {window} s"
        f" without one {idle:.3f} s), where starting Python takes {interpreter / 1000:.2f} s"
    )
    host.machine.run("sudo rm /etc/update-agent/70-idle.toml; sudo systemctl restart update-agentd")

    assert hour < 36  # 1 % of one emulated CPU


def median(host: Host, command: str, count: int = 3) -> int:
    """Return how long a command takes, in milliseconds."""
    script = (
        f"for i in $(seq {count}); do s=$(date +%s%N); {command} >/dev/null;"
        " echo $((($(date +%s%N) - s) / 1000000)); done"
    )
    return sorted(map(int, host.machine.run(script).split()))[count // 2]


def test_status_answers_soon(host: Host, figure: Callable[[str], None]) -> None:
    interpreter = median(host, "python3 -I -c pass")
    imports = "import sys; sys.path.insert(0, '/usr/lib/update-agent/python');"
    imports += "import update_agent.ctl.main, update_agent.ctl.status"
    imported = median(host, f'python3 -I -c "{imports}"')
    whole = median(host, "update-agentctl status")
    figure(
        f"update-agentctl status in a machine: {whole - interpreter} ms beyond the interpreter's"
        f" start of {interpreter} ms: imports {imported - interpreter}, asking and printing"
        f" {whole - imported}"
    )

    assert whole < 60 * interpreter


# Bad callers -------------------------------------------------------------------------------------

DENIED = "Access denied|is for root"
"""As the bus says it, and as the daemon would."""


def call(user: str, method: str) -> str:
    texts = " s because" if METHODS[method].argument else ""
    words = f"busctl --system call {bus.NAME} {bus.PATH} {bus.INTERFACE} {method}{texts}"
    return f"sudo -u {user} {words}"


@pytest.mark.parametrize("method", METHODS)
def test_who_is_nobody_may_change_nothing(method: str, host: Host) -> None:
    said = host.machine.fails(call("nobody", method))

    assert re.search(DENIED, said)


def test_a_member_of_the_group_may_steer_and_not_confirm(host: Host) -> None:
    host.machine.run(call("update-agent", "Pause"))
    assert host.status()["paused"] == "because"
    host.machine.run(call("update-agent", "Resume"))
    assert host.status()["paused"] is None
    assert re.search(DENIED, host.machine.fails(call("update-agent", "Confirmed")))


@pytest.mark.parametrize("path", [writer.PATH, reboot.SOCKET], ids=lambda path: path.name)
def test_nobody_but_the_daemon_s_user_is_let_in(path: Path, host: Host) -> None:
    script = f"import socket; socket.socket(socket.AF_UNIX).connect('{path}')"

    assert "Permission denied" in host.machine.fails(f'sudo -u nobody python3 -c "{script}"')


LIAR = """\
import socket, sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
sys.path.insert(0, "/usr/lib/update-agent/python")
from update_agent.core import wire
from update_agent.core.release import PayloadReference, Release
from update_agent.core.trust import Evidence
from update_agent.core.version import Version
from update_agent.errors import UpdateAgentError
from update_agent.host.wire import GoneError
from update_agent.host.writer import PATH, Writer

class Silent:
    def planned(self, plan): raise SystemExit("it planned")
    def show(self, progress): pass
    def index(self, payload): return b"x" * payload.index_size
    def blob(self, payload): raise SystemExit("it wants the blob")

def refused(what, work):
    try:
        work()
    except UpdateAgentError as error:
        print(f"{what}: {error}")
    else:
        raise SystemExit(f"{what} was done")

forged = Release(
    product="update-agent-os", architecture="x86_64", version=Version("9.0.0"),
    published=datetime.now(UTC), image_size=4096, root_hash="1" * 64,
    payloads=(PayloadReference(index_size=1, index_sha256="a" * 64, blob_size=1, stored_size=1),),
)
evidence = Evidence(roots=(), targets=b"{}", releases=b"{}", release=b"{}", channels=None,
                    channel=None)

def install(release):
    Writer().install(release, evidence, Silent(), attempt="lie", watcher=Silent())

refused("forged", lambda: install(forged))
refused("downgrade", lambda: install(replace(forged, version=Version("0.1.0"))))
refused("other product", lambda: install(replace(forged, product="other")))
refused("arm", lambda: Writer().arm())
for data in (b"GET / HTTP/1.1\\r\\n\\r\\n", b"UAW\\1" + b"\\xff" * 8, bytes(100_000)):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(PATH))
        try:
            sock.sendall(data)
            sock.recv(65536)
        except OSError:
            pass
let_in = 0
for _ in range(10_000):
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(str(PATH))
            let_in += 1
        except OSError:
            pass
print("connected", let_in)
print("next", Writer().state().next)
"""


def test_a_daemon_gone_bad_writes_and_arms_nothing(
    host: Host, figure: Callable[[str], None]
) -> None:
    machine = host.machine
    machine.put(LIAR, "/media/state/liar.py")
    machine.run("sudo update-agent-slots retire other")
    before = machine.run("sudo sha256sum /dev/vda3", timeout=300)

    said = machine.run("sudo -u update-agent python3 -I /media/state/liar.py", timeout=600)

    assert machine.run("sudo sha256sum /dev/vda3", timeout=300) == before
    for lie in ("forged", "downgrade", "other product", "arm"):
        assert re.search(f"^{lie}: ", said, re.MULTILINE)
    assert re.search("^next A$", said, re.MULTILINE)
    assert units_that_failed(machine) == ""
    log = machine.run("sudo journalctl --boot --no-pager -u update-agent-writer --output=cat")
    assert "Traceback" not in log
    (connected,) = re.findall(r"^connected (\d+)$", said, re.MULTILINE)
    figure(f"a liar as user update-agent: 4 lies refused, {connected} of 10,000 connections made")
