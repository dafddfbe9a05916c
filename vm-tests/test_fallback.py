"""What fails below user space: rotten blocks, hangs that only a watchdog ends, a lost STATE.

Disks are made with such a release in slot B, on its last try; ``test_bad_releases.py`` has those
that a host finds by itself.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import NewMachine
from machine import Machine
from releases import LEAN, PID_1_HANGS, Workshop

from update_agent.core.chunking import BLOCK
from update_agent.host.disk import open_disk, read_tables

STARTS_TRIAL = "gptprio: slot B: kernel verified"
STARTS_OLD = "gptprio: slot A: kernel verified"

WATCHDOG = 60
"""Seconds after which a hang ends, as init.c and system.conf.d say."""

BUSY = 30
"""Seconds that a busy machine may take for what comes before and after."""


@contextmanager
def trial(
    new_machine: NewMachine,
    workshop: Workshop,
    bad: Path,
    *,
    spoil: Callable[[Path], object] = lambda _: None,
) -> Iterator[Machine]:
    """A machine with a good release in slot A, about to try ``bad``, which has one try.

    ``spoil`` changes the disk before it is used: no disk is made of an image that is damaged.
    """
    disk = workshop.disk(workshop.release("1.0.0", LEAN), bad)
    spoil(disk)
    machine = new_machine(disk, bad.stem[:20])
    machine.power_on()
    machine.wait_for_serial(STARTS_TRIAL)
    yield machine
    machine.cut_power()
    workshop.forget(disk)
    workshop.forget(bad)


def ends_in_the_old_slot(machine: Machine) -> None:
    """Wait until slot A is up, and hold that slot B is given up."""
    machine.wait_for_serial(STARTS_OLD)
    machine.wait_until_up()
    known = machine.json("sudo update-agentctl slots --json")
    (_, given_up) = known["slots"]
    assert known["booted"] == "A"
    assert known["next"] == "A"
    assert (given_up["tries"], given_up["successful"]) == (0, False)


def seconds_between(machine: Machine, first: str, then: str) -> float:
    return machine.said_at(then) - machine.said_at(first)


@pytest.mark.case(71)
def test_a_flipped_byte_in_the_root_ends_in_the_other_slot(
    workshop: Workshop, new_machine: NewMachine, figure: Callable[[str], None]
) -> None:
    bad = workshop.release("1.1.0-rotten", LEAN)
    program = workshop.debian() / "usr/lib/systemd/systemd"

    def rot(disk: Path) -> None:
        flip_a_byte_of_init(disk, program)

    with trial(new_machine, workshop, bad, spoil=rot) as machine:
        machine.wait_for_serial("device-mapper: verity: .*is corrupted")
        ends_in_the_old_slot(machine)
        took = seconds_between(machine, "is corrupted", STARTS_OLD)
        figure(f"fallback: {took:.0f} s from a flipped byte to the other slot's kernel")


def flip_a_byte_of_init(disk: Path, program: Path) -> None:
    """Change a byte of the program that PID 1 is, where it stands in slot B."""
    begins = program.read_bytes()[:BLOCK]
    first, last = place_of("ROOT-B", disk)
    with disk.open("r+b") as file:
        file.seek(first)
        at = first + file.read(last - first).index(begins)
        file.seek(at + 100)
        (byte,) = file.read(1)
        file.seek(at + 100)
        file.write(bytes([byte ^ 1]))


def place_of(label: str, disk: Path) -> tuple[int, int]:
    """Return where a partition begins and ends, in bytes."""
    with open_disk(disk) as opened:
        table = read_tables(opened).authoritative
    (found,) = (it for it in table.partitions if it.label == label)
    return found.first_lba * 512, (found.last_lba + 1) * 512


@pytest.mark.case(65)
def test_a_hang_of_the_initramfs_ends_in_the_old_slot(
    workshop: Workshop, new_machine: NewMachine, figure: Callable[[str], None]
) -> None:
    bad = workshop.release("1.1.0-initramfs-hangs", define="HANG")
    with trial(new_machine, workshop, bad) as machine:
        machine.wait_for_serial("hanging, as built")
        ends_in_the_old_slot(machine)
        took = seconds_between(machine, "hanging, as built", STARTS_OLD)
        figure(f"fallback: {took:.0f} s from an initramfs that hangs to the old slot's kernel")
        assert took < WATCHDOG + BUSY


@pytest.mark.case(65)
def test_a_hang_of_pid_1_ends_in_the_old_slot(
    workshop: Workshop, new_machine: NewMachine, figure: Callable[[str], None]
) -> None:
    bad = workshop.release("1.1.0-init-hangs", PID_1_HANGS)
    with trial(new_machine, workshop, bad) as machine:
        machine.wait_for_serial("PID 1 hangs")
        ends_in_the_old_slot(machine)
        took = seconds_between(machine, "PID 1 hangs", STARTS_OLD)
        figure(f"fallback: {took:.0f} s from a PID 1 that hangs to the old slot's kernel")
        assert took < WATCHDOG + BUSY


def test_a_host_whose_state_is_lost_comes_up_with_a_volatile_one(
    workshop: Workshop, new_machine: NewMachine
) -> None:
    disk = workshop.disk(workshop.release("1.0.0", LEAN), size_mib=5 * 1024)
    lose_state(disk)
    machine = new_machine(disk, "lost")

    machine.power_on()
    machine.wait_for_serial("STATE IS VOLATILE")
    machine.wait_until_up()

    assert machine.run("hostname") == "lost\n"
    assert machine.run("findmnt -no FSTYPE /media/state") == "tmpfs\n"
    machine.run("test -e /run/update-agent/state-is-volatile")
    machine.cut_power()
    workshop.forget(disk)


def lose_state(disk: Path) -> None:
    """Fill STATE with zeros: its file system and every spare copy of its superblock."""
    first, last = place_of("STATE", disk)
    subprocess.run(
        ["fallocate", "-p", "-o", str(first), "-l", str(last - first), str(disk)], check=True
    )
