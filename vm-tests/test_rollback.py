"""A person goes back to the release before: who is held back changes nothing, then it reboots."""

from collections.abc import Iterator

import pytest
from conftest import NewMachine
from follower import slot_states
from machine import Machine
from releases import LEAN, Workshop

from update_agent.core.slot import BootFlags

OLD, NEW = "1.0.0", "1.1.0"
CONFIRMED_LATER = BootFlags(priority=2, successful=True)


@pytest.fixture(scope="module")
def host(workshop: Workshop, new_machine: NewMachine) -> Iterator[Machine]:
    """A host that runs the release in slot B; the one in slot A was confirmed before."""
    old, new = workshop.release(OLD, LEAN), workshop.release(NEW, LEAN)
    disk = workshop.disk(old, new, flags=CONFIRMED_LATER)
    machine = new_machine(disk, "goes-back")
    machine.boot()
    yield machine
    machine.cut_power()
    workshop.forget(disk)


def stands(host: Machine) -> tuple[str, list[str], dict[str, tuple[str, bool, bool]]]:
    """Return what runs, what is avoided, and of each slot its state, if it is booted, and next."""
    found = host.json("update-agentctl status --json")
    return found["running"], found["failed_versions"], slot_states(found["slots"])


def test_a_rollback_that_somebody_holds_back_changes_nothing(host: Machine) -> None:
    host.run(
        "sudo systemd-run --unit=backup systemd-inhibit --what=shutdown --mode=block"
        " --who=backup --why=nightly sh -c 'echo backs up >/dev/console; exec sleep infinity'"
    )
    host.wait_for_serial("backs up")

    said = host.run("sudo update-agentctl rollback 2>&1 || echo ended with $?")

    assert "a reboot is blocked by backup: nightly" in said
    assert "ended with 4" in said
    assert stands(host) == (
        NEW, [], {"A": ("successful", False, False), "B": ("successful", True, True)},
    )  # fmt: skip
    host.run("sudo systemctl stop backup")


def test_a_rollback_boots_the_release_before_and_avoids_the_one_that_ran(host: Machine) -> None:
    host.run("sudo systemd-run --on-active=1 update-agentctl rollback")
    host.wait_for_serial("gptprio: slot A: kernel verified")
    host.wait_until_up()

    assert stands(host) == (
        OLD, [NEW], {"A": ("successful", True, True), "B": ("successful", False, False)},
    )  # fmt: skip
