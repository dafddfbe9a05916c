"""The power goes at any moment of an update: afterwards a whole signed release boots, always.

An update is run once, and a snapshot of the machine is kept every few seconds. From one of them the
machine goes on for a random time, and its QEMU is killed: what the guest has not flushed is partly
lost, for QEMU keeps the map of its layer to itself until then. The disk is judged, byte by byte,
against the two images that were signed, and booted.
"""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import NewMachine
from depot import Depot
from follower import SETTINGS, UNLIMITED, Host
from judge import judged
from machine import UP, Machine
from releases import LEAN, Workshop

from update_agent.core.slot import Slot
from update_agent.core.window import DAYS

OLD, NEW = "1.0.0", "1.1.0"

CUTS = {"write": 12, "flip": 14, "trial": 8, "confirm": 6}
"""By phase: the write of slot B; the flip, the way down and the selector; the boot on trial; its
end."""

STEP = 8.0
"""Seconds between two snapshots."""

SEED = 20261124


@dataclass
class Story:
    """A host in the middle of an update, again and again."""

    host: Host
    images: dict[str, Path]
    moments: dict[str, list[str]] = field(default_factory=dict)
    """The snapshots of each phase."""

    @property
    def machine(self) -> Machine:
        return self.host.machine


def closed_window() -> str:
    """Return the setting by which a host reboots only in three days."""
    day = DAYS[(datetime.now(UTC) + timedelta(days=3)).weekday()]
    return f'reboot.windows = ["{day} 00:00 +1m Europe/Berlin"]\n'


@pytest.fixture(scope="module")
def story(workshop: Workshop, new_machine: NewMachine) -> Iterator[Story]:
    folder = workshop.folder / "depot-power-cuts"
    folder.mkdir()
    depot = Depot(folder=folder)
    images = {OLD: workshop.release(OLD, LEAN)}
    images[NEW] = workshop.release(NEW, LEAN | {"etc/news": "new " * 500_000})
    depot.add(images[NEW], NEW, level=1)
    disk = workshop.disk(images[OLD], size_mib=5 * 1024)
    settings = depot.settings(SETTINGS + UNLIMITED)
    machine = new_machine(disk, "cut", memory=640, credentials=settings)
    with depot.served():
        machine.boot()
        machine.put(closed_window(), "/etc/update-agent/70-window.toml")
        machine.put(KILLER, "/media/state/killer", mode="755")
        machine.run("sudo systemctl restart update-agentd")
        told = Story(Host(machine, depot), images)
        run_once(told)
        yield told
        machine.cut_power()
    workshop.forget(disk)


def run_once(story: Story) -> None:
    """Let the update happen, and keep moments of each phase."""
    host, machine = story.host, story.machine
    host.depot.promote(NEW)
    next(it for it in host.statuses() if (it["progress"] or {}).get("done"))
    with filmed(story, "write"):
        next(it for it in host.statuses() if it["state"] == "waiting-to-reboot")
    machine.run("sudo systemd-run --on-active=1 update-agentctl reboot")
    with filmed(story, "flip"):
        machine.wait_for_serial("gptprio: slot B: kernel verified")
    with filmed(story, "trial"):
        machine.wait_for_serial(UP)
    with filmed(story, "confirm"):
        machine.wait_for_serial(r"Finished .*Confirm the booted slot")
    machine.cut_power()


@contextmanager
def filmed(story: Story, phase: str) -> Iterator[None]:
    """Keep a snapshot at the begin, and then one every few seconds, to the end."""
    moments = story.moments.setdefault(phase, [])
    over = threading.Event()

    def take() -> None:
        moments.append(f"{phase}{len(moments)}")
        story.machine.save(moments[-1])

    def go_on() -> None:
        while not over.wait(STEP):
            take()

    take()
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def goes_on(story: Story, moment: str, seconds: float) -> None:
    """Let the machine live from a snapshot on for a while, and take its power away."""
    story.machine.power_on(load=moment)
    story.machine.qmp("query-status")  # answered as soon as it lives
    time.sleep(seconds)  # the moment of the cut is the subject
    story.machine.cut_power()


def boots(story: Story, slot: Slot, version: str) -> None:
    """Hold that a machine that gets its power back boots ``version`` from ``slot``."""
    machine = story.machine
    machine.power_on()
    (started,) = machine.wait_for_serial("gptprio: slot (.): kernel verified").groups()
    (welcomed,) = machine.wait_for_serial(r"Welcome to \S+ ([0-9.]+)").groups()
    assert (started, welcomed) == (slot.name, version)
    machine.cut_power()


def ends_well(story: Story) -> None:
    """Wait until the update is over, as if nothing had been."""
    machine = story.machine
    machine.wait_until_up()
    machine.run("sudo rm /etc/update-agent/70-window.toml; sudo systemctl restart update-agentd")
    while True:
        for it in story.host.statuses():
            if (it["running"], it["state"]) == (NEW, "idle"):
                assert it["failed_versions"] == []
                return
        machine.wait_until_up()  # it went down for its trial


@pytest.mark.case(47)
@pytest.mark.case(69)
@pytest.mark.parametrize("phase", CUTS)
def test_after_a_power_cut_a_whole_signed_release_boots(
    phase: str, story: Story, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    chance = random.Random(f"{SEED} {phase}")  # noqa: S311  repeatable
    booted: Counter[str] = Counter()
    for _ in range(CUTS[phase]):
        goes_on(story, chance.choice(story.moments[phase]), chance.uniform(0, STEP))
        slot, version = judged(story.machine.layer, story.images, tmp_path)
        boots(story, slot, version)
        booted[f"{version} from {slot.name}"] += 1
    figure(
        f"power cuts in {phase}: {booted.total()}, all came back: "
        + ", ".join(f"{count} with {what}" for what, count in sorted(booted.items()))
    )


@pytest.mark.case(69)
@pytest.mark.parametrize("phase", ["write", "trial"])
def test_after_a_power_cut_the_update_goes_on_and_is_confirmed(phase: str, story: Story) -> None:
    goes_on(story, story.moments[phase][-1], STEP / 2)
    story.machine.power_on()
    ends_well(story)
    story.machine.cut_power()


KILLS = 3

KILLER = """\
#!/bin/bash
for i in $(seq $1); do
    sleep 0.$((RANDOM % 10))
    for unit in update-agentd update-agent-writer; do
        sudo systemctl kill --signal=KILL $unit && echo killed $unit
        timeout 180 sudo systemctl start update-agentd # or wait until it is
    done
done
"""
"""In the shell of the machine: ssh would be too slow to hit anything."""


def test_an_update_survives_that_its_daemons_are_killed(
    story: Story, figure: Callable[[str], None]
) -> None:
    machine = story.machine
    machine.power_on(load="write0")
    said = machine.run(f"/media/state/killer {KILLS}", timeout=600)
    machine.run("sudo rm /etc/update-agent/70-window.toml; sudo systemctl restart update-agentd")
    found = story.host.confirmed("B")

    killed = {
        name: len(re.findall(f"killed {name}", said))
        for name in ("update-agentd", "update-agent-writer")
    }
    assert killed["update-agentd"] == KILLS
    assert killed["update-agent-writer"] > 0
    assert (found["running"], found["failed_versions"]) == (NEW, [])
    figure(
        "killed during an update that then was confirmed: "
        + ", ".join(f"{name} {count} times" for name, count in killed.items())
    )
