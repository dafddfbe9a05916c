"""The writer's units: what systemd makes of them, and how much of the host they leave open."""

import re
import subprocess
from collections.abc import Callable
from configparser import RawConfigParser
from pathlib import Path

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
    path = UNITS / "update-agent-writer.service"
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)

    assert found, done.stderr
    assert float(found[1]) <= 1.5
    figure(f"update-agent-writer.service: exposure level {found[1]} of 10 (systemd-analyze)")


def test_the_writer_has_no_network_and_no_capability() -> None:
    service = unit("update-agent-writer.service")["Service"]

    assert service["PrivateNetwork"] == "yes"
    assert service["CapabilityBoundingSet"] == ""
    assert service["DeviceAllow"] == "block-* rw"
    assert service["Slice"] == "update-agent.slice"
    assert "ReadWritePaths" not in service
