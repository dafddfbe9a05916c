"""Bad releases, the whole way: found, installed, booted, given up, remembered, and not tried again.

One host meets them one after the other, each a newer version that its channel offers to everyone;
at the end it takes a good one as if nothing had been.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from conftest import NewMachine
from depot import Depot
from follower import SETTINGS, UNLIMITED, Host, slot_states
from releases import (
    HEALTH,
    LEAN,
    NEVER_COMPLETE,
    NEVER_UP,
    PANICS,
    SICK,
    WITHOUT_PYTHON,
    Files,
    Workshop,
    deadline,
)

from update_agent.core.slot import TRIES

DEADLINE = "was not confirmed by its deadline; rebooting"


@dataclass(frozen=True)
class Bad:
    """A release that fails: with ``files``, saying each of ``says`` in each of its ``boots``."""

    files: Files
    says: Sequence[str] = (DEADLINE,)
    boots: int = 1
    comes_up: bool = False
    """Its deadline is to leave it the time of a boot, however slow this machine is."""


BAD = {
    "1.1.0": Bad(PANICS, ["Kernel panic - not syncing: sysrq triggered crash"], TRIES),
    "1.2.0": Bad(NEVER_UP),
    "1.3.0": Bad(NEVER_COMPLETE, ["FAILED.*check.service", DEADLINE], comes_up=True),
    "1.4.0": Bad(LEAN | {SICK: "yes\n"}, ["this host is sick", DEADLINE], comes_up=True),
    "1.5.0": Bad(WITHOUT_PYTHON, boots=TRIES),
}
NAMES = ["panics", "hangs", "never complete", "unhealthy", "no agent"]
OLD, GOOD = "1.0.0", "1.6.0"


@pytest.fixture(scope="module")
def host(workshop: Workshop, new_machine: NewMachine) -> Iterator[Host]:
    folder = workshop.folder / "depot-bad-releases"
    folder.mkdir()
    depot = Depot(folder=folder)
    disk = workshop.disk(workshop.release(OLD, LEAN))
    machine = new_machine(disk, "victim", credentials=depot.settings(SETTINGS + UNLIMITED))
    with depot.served():
        machine.boot()
        machine.put(HEALTH, "/etc/update-agent/health.d/50-sick", mode="755")
        yield Host(machine, depot)
        machine.cut_power()
    workshop.forget(disk)


def offer(host: Host, workshop: Workshop, version: str, files: Files) -> None:
    """Publish a release to everyone."""
    image = workshop.release(version, files)
    host.depot.add(image, version, level=1)
    workshop.forget(image)
    host.depot.promote(version)


@pytest.mark.case(65)
@pytest.mark.case(68)
@pytest.mark.parametrize(("version", "bad"), BAD.items(), ids=NAMES)
def test_the_old_release_comes_back_and_the_bad_one_is_remembered(
    version: str, bad: Bad, host: Host, workshop: Workshop, figure: Callable[[str], None]
) -> None:
    machine = host.machine

    soon = deadline(machine.patience() if bad.comes_up else 25)
    offer(host, workshop, version, {**bad.files, **soon})
    for _ in range(bad.boots):
        machine.wait_for_serial("gptprio: slot B: kernel verified")
        machine.wait_for_all(bad.says)
    machine.wait_for_serial("gptprio: slot A: kernel verified")
    machine.wait_until_up()
    found = next(it for it in host.statuses() if (it["reason"] or {}).get("code") == "failed-here")

    assert (found["state"], found["running"]) == ("waiting", OLD)
    assert version in found["failed_versions"]
    assert slot_states(found["slots"])["A"] == ("successful", True, True)
    assert not slot_states(found["slots"])["B"][2]
    last = found["history"][0]
    assert (last["to"], last["outcome"]) == (version, "fell-back")
    assert f"{version} was tried on this host and did not come up" in " ".join(
        machine.run("update-agentctl why").split()
    )
    assert [it["to"] for it in found["history"]].count(version) == 1
    figure(f"bad release {version}: given up {last['seconds']} s after it was found")


def test_a_newer_good_release_is_taken(host: Host, workshop: Workshop) -> None:
    offer(host, workshop, GOOD, LEAN)
    found = host.confirmed("B")

    assert (found["running"], found["failed_versions"]) == (GOOD, [*BAD])
    assert found["history"][0]["outcome"] == "confirmed"
