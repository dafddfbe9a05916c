"""What tests in machines share: releases, machines, and what stays of them when one fails."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Key, Machine
from releases import Workshop

from tests import conftest as shared
from tests.conftest import figure

__all__ = ["figure"]

FAILURES = Path(__file__).parents[1] / ".cache/vm-failures"
"""Serial logs and journals of the machines of failed tests."""

NewMachine = Callable[..., Machine]

_CPUS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
"""Of a machine: emulated ones that want more than there is make each other twice as slow."""

_ORDER = (
    "test_bad_releases.py",
    "test_power_cuts.py",
    "test_update.py",
    "test_readme.py",
    "test_selector.py",
    "test_fallback.py",
    "test_rollback.py",
    "test_first_hour.py",
)
"""The longest first, that neither of two workers has much to do when the other is done."""

_running: list[Machine] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(_ORDER)}
    items.sort(key=lambda it: order.get(it.path.name, len(order)))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not config.pluginmanager.is_registered(shared):
        shared.pytest_terminal_summary(terminalreporter)


def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Keep what the machines said, while they still run."""
    for machine in _running:
        machine.keep_logs(FAILURES / re.sub(r"[^\w.-]+", "-", node.name))


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """Where releases and disks are made; gone afterwards, for they are large."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="update-agent-vm-") as folder:
        made = Workshop(folder=Path(folder))
        made.debian()
        yield made


@pytest.fixture(scope="session")
def key(workshop: Workshop) -> Key:
    return Key.make(workshop.folder)


@pytest.fixture(scope="module")
def new_machine(workshop: Workshop, key: Key) -> Iterator[NewMachine]:
    """Return what makes machines; at the end their power is cut."""
    made: list[Machine] = []

    def make(disk: Path, name: str = "host", **more: Any) -> Machine:  # noqa: ANN401  passed on
        folder = Path(tempfile.mkdtemp(dir=workshop.folder, prefix=f"{name}-"))
        words = {"cpus": _CPUS, **more}
        machine = Machine(disk=disk, folder=folder, key=key, name=name, **words)
        made.append(machine)
        _running.append(machine)
        return machine

    yield make
    for machine in made:
        machine.cut_power()
        _running.remove(machine)
        shutil.rmtree(machine.folder)
