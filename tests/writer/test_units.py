"""The writer's units: what systemd makes of them, and how much of the host they leave open."""

import subprocess
from collections.abc import Callable
from configparser import RawConfigParser
from pathlib import Path

import pytest

from tests.units import exposure
from update_agent.host import cgroup
from update_agent.host.writer import PATH

UNITS = Path(__file__).parents[2] / "systemd/system"


def unit(name: str) -> RawConfigParser:
    """Return a unit's settings, the last of each."""
    found = RawConfigParser(strict=False)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(UNITS / name)
    return found


def test_the_daemon_asks_where_the_writer_listens_and_nobody_else_may() -> None:
    socket = unit("update-agent-writer.socket")["Socket"]

    assert socket["ListenStream"] == str(PATH)
    assert (socket["SocketUser"], socket["SocketMode"]) == ("update-agent", "0600")
    assert PATH.parent == Path("/run")  # which only root can write to


def test_little_of_the_host_is_open_to_the_writer(figure: Callable[[str], None]) -> None:
    found = exposure(UNITS / "update-agent-writer.service")

    assert found <= 1.5
    figure(f"update-agent-writer.service: exposure level {found} of 10 (systemd-analyze)")


def test_the_writer_has_no_network_and_no_capability() -> None:
    service = unit("update-agent-writer.service")["Service"]

    assert service["PrivateNetwork"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["DeviceAllow"] == "block-* rw"
    assert service["Slice"] == "updateagent.slice"
    assert service["ProtectControlGroups"] == "yes"
    assert service["ReadWritePaths"] == f"-{cgroup.ROOT / cgroup.SLICE}"


def test_the_slice_has_what_the_governor_needs_and_the_walls_of_all_in_it() -> None:
    assert "-" not in cgroup.SLICE  # systemd would put it into another one
    ours = unit(cgroup.SLICE)["Slice"]
    services = [unit(f"update-agent{it}.service")["Service"] for it in ("d", "-writer")]

    assert {it["Slice"] for it in services} == {cgroup.SLICE}
    assert 1 <= int(ours["IOWeight"]) < 100  # any weight turns the io controller on
    assert 1 <= int(ours["CPUWeight"]) < 100
    assert ours["MemoryHigh"] == "192M"
    for wall in ("MemoryMax", "TasksMax"):
        assert number(ours[wall]) == sum(number(it[wall]) for it in services)


def number(text: str) -> int:
    return int(text.removesuffix("M"))


@pytest.mark.parametrize(
    "name", ["updateagent.slice", "update-agent-writer.service", "update-agentd.service"]
)
def test_systemd_understands_every_line(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", UNITS / name],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    ours = [line for line in done.stderr.splitlines() if name in line]
    assert [it for it in ours if "is not executable" not in it] == []
