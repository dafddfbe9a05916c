"""A host that follows a channel: a machine, the depot it follows, and what its daemon says."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from depot import Depot
from machine import Machine

SETTINGS = """\
update.interval = "10s"
reboot.strategy = "immediate"
trial.soak = "3s"
"""
"""Of a host that does not make a test wait."""

UNLIMITED = 'limits.floor = "10G"\n'
"""An emulated host is under pressure by itself, and would write as slowly as it is allowed to."""


@dataclass
class Host:
    """A machine and what it follows."""

    machine: Machine
    depot: Depot

    def statuses(self) -> Iterator[Mapping[str, Any]]:
        """Yield what the daemon says, from now on, until it goes down."""
        for line in self.machine.lines_of("update-agentctl status --watch --json"):
            yield json.loads(line)

    def status(self) -> Mapping[str, Any]:
        """Return what the daemon says now."""
        return dict(self.machine.json("update-agentctl status --json"))

    def confirmed(self, slot: str) -> Mapping[str, Any]:
        """Wait until the release in ``slot`` has booted and is confirmed; return the status."""
        self.machine.wait_for_serial(f"gptprio: slot {slot}: kernel verified")
        self.machine.wait_until_up()
        self.machine.wait_for_serial(r"Finished .*Confirm the booted slot")
        return self.status()


def slot_states(slots: list[dict[str, Any]]) -> dict[str, tuple[str, bool, bool]]:
    """Return of each slot its state, whether it is booted, and whether it boots next."""
    return {it["slot"]: (it["state"], it["booted"], it["next"]) for it in slots}
