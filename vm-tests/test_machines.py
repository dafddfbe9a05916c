"""The machines themselves: a private network, snapshots, throttled disks, power that is cut."""

from collections.abc import Iterator

import pytest
from conftest import NewMachine
from machine import Machine, Network, Throttle, free_port
from releases import LEAN, Workshop

RATE = 20 * 2**20


@pytest.fixture(scope="module")
def pair(workshop: Workshop, new_machine: NewMachine) -> Iterator[tuple[Machine, Machine]]:
    """Two machines that share a network; the second one has a slow disk."""
    disk = workshop.disk(workshop.release("1.0.0", LEAN))
    network = Network(port=free_port())
    one = new_machine(disk, "one", number=1, network=network)
    two = new_machine(
        disk, "two", number=2, network=network, throttle=Throttle(bytes_per_second=RATE)
    )
    for machine in (one, two):
        machine.power_on()
    for machine in (one, two):
        machine.wait_until_up()
        machine.join_network()
    yield one, two
    one.cut_power()
    two.cut_power()


def test_machines_reach_one_another(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    two.run("sudo systemd-run --unit=web python3 -m http.server --directory /etc 8000")
    two.run("timeout 60 sh -c 'until ss -ltn | grep -q :8000; do :; done'")

    read = "import urllib.request as u; print(u.urlopen('http://10.77.0.2:8000/hostname').read())"

    assert one.run(f'python3 -c "{read}"') == "b'two\\n'\n"


def test_a_slow_disk_is_slow(pair: tuple[Machine, Machine]) -> None:
    _, slow = pair

    said = slow.run("sudo dd if=/dev/vda2 of=/dev/null bs=1M count=100 iflag=direct 2>&1")

    assert float(said.split("copied, ")[1].split()[0]) > 0.9 * 100 * 2**20 / RATE


def test_a_snapshot_brings_back_memory_and_disk(pair: tuple[Machine, Machine]) -> None:
    one, _ = pair
    one.run("echo before | sudo tee /var/lib/mark /run/mark; sync")
    one.save("before")
    one.run("echo after | sudo tee /var/lib/mark /run/mark; sync")

    one.load("before")

    assert one.run("cat /var/lib/mark /run/mark") == "before\nbefore\n"


def test_after_its_power_was_cut_a_machine_has_what_was_flushed(
    pair: tuple[Machine, Machine],
) -> None:
    one, _ = pair
    one.put("kept", "/var/lib/flushed")
    one.run("sync")

    one.cut_power()
    one.boot()

    assert one.get("/var/lib/flushed") == b"kept"
