"""update-agentd as a process: how it begins, what it tells systemd and the log, how it ends."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_bus import ask, look
from tests.bus import ROOT, Bus, bus
from tests.disks import tool
from tests.logind import on_bus
from tests.web import Altered, Web
from update_agent.agent.main import main
from update_agent.ctl.agent import Agent

__all__ = ["bus"]

PATIENCE = 30


@dataclass
class Process:
    """A daemon, and what systemd hears of it."""

    popen: "subprocess.Popen[str]"
    systemd: socket.socket

    def hears(self, wanted: str) -> str:
        """Return the next message to systemd that contains ``wanted``."""
        while True:
            text = self.systemd.recv(4096).decode()
            if wanted in text:
                return text

    def ends(self) -> tuple[int, str]:
        """Return the exit code and the log."""
        _, log = self.popen.communicate(timeout=PATIENCE)
        return self.popen.returncode, log


@pytest.fixture
def begin(bus: Bus, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begun(*words: str, folder: Path = tmp_path / "state") -> Process:
        path = tmp_path / f"notify{len(started)}"
        systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        systemd.settimeout(PATIENCE)
        systemd.bind(str(path))
        environment = {
            "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000", "PATH": "/usr/bin",
            "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
        }  # fmt: skip
        popen = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.process", str(folder), *words],
            env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(Process(popen, systemd))
        return started[-1]

    yield begun
    for it in started:
        it.systemd.close()
        it.popen.kill()
        it.popen.communicate()


async def until(state: str) -> dict[str, Any]:
    async with Agent() as agent:
        async for found in agent.changes():
            if found["State"] == state:
                return found
    raise AssertionError


def test_it_begins_lives_and_ends_as_systemd_wants_it(
    begin: Callable[..., Process], tmp_path: Path
) -> None:
    process = begin()

    assert process.hears("READY=1") == "READY=1\nSTATUS=idle"
    process.hears("WATCHDOG=1")
    process.hears("WATCHDOG=1")
    assert asyncio.run(look())["State"] == "idle"
    process.popen.send_signal(signal.SIGTERM)
    process.hears("STOPPING=1")
    code, log = process.ends()
    assert code == 0
    assert "<6>ending: SIGTERM" in log
    prometheus = (tmp_path / "state/update-agent.prom").read_text()
    assert 'update_agent_state{state="idle"} 1\n' in prometheus


def test_an_update_is_logged_line_by_line_with_priority_and_attempt(
    begin: Callable[..., Process], bus: Bus, tmp_path: Path
) -> None:
    process = begin("OFFER")
    process.hears("READY=1")
    with on_bus(bus.address) as logind:
        asyncio.run(ask("Install"))
        asyncio.run(until("rebooting"))
        process.hears("STATUS=rebooting 1.1.0")
        attempt = asyncio.run(look())["AttemptId"]
        while not logind.said:  # it is on its way
            asyncio.run(look())
        process.popen.send_signal(signal.SIGTERM)
        _, log = process.ends()

    assert re.fullmatch("[0-9a-f]{32}", attempt)
    lines = log.splitlines()
    assert all(re.match("<[0-7]>", line) for line in lines), log
    assert f"<6>verified: installing -> staged [{attempt}]" in lines
    assert "<6>Install, asked for by root" in lines
    kept = json.loads((tmp_path / "state/record.json").read_text())
    assert (kept["state"], kept["attempt"]["id"]) == ("rebooting", attempt)


def test_a_defect_ends_it_at_once_with_its_traceback(begin: Callable[..., Process]) -> None:
    process = begin("DEFECT")
    process.hears("READY=1")

    asyncio.run(ask("Check"))

    code, log = process.ends()
    assert code == 1
    assert "<2>a defect of the daemon" in log
    assert "<2>ZeroDivisionError" in log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    tool("mount", "-t", "tmpfs", "-o", "size=100k", "none", folder)
    yield folder
    tool("umount", "--lazy", folder)


@pytest.mark.case(38)
def test_a_full_disk_ends_it_with_the_reason_and_is_no_defect(
    begin: Callable[..., Process], small_disk: Path
) -> None:
    process = begin("FULL", folder=small_disk)
    process.hears("READY=1")

    asyncio.run(ask("Check"))

    code, log = process.ends()
    assert code == 4  # systemd begins it anew
    assert f"<3>cannot write {small_disk}/record.json: No space left on device" in log
    assert "defect" not in log
    assert "Traceback" not in log


def test_it_ends_when_it_is_told_though_a_server_keeps_it_waiting(
    begin: Callable[..., Process],
) -> None:
    process = begin("HANG")
    process.hears("READY=1")
    asyncio.run(ask("Check"))
    assert process.popen.stdout
    assert process.popen.stdout.readline() == "hanging\n"

    process.popen.send_signal(signal.SIGTERM)

    assert process.ends()[0] == 0


def test_a_host_that_reboots_in_turn_waits_for_etcd_and_ends_when_it_is_told(
    begin: Callable[..., Process], bus: Bus
) -> None:
    process = begin("OFFER", "IN-TURN")
    process.hears("READY=1")

    with on_bus(bus.address):
        asyncio.run(ask("Install"))
        found = asyncio.run(until("waiting-to-reboot"))
    process.popen.send_signal(signal.SIGTERM)

    assert found["Reason"] == "lock-unreachable"
    assert "http://127.0.0.1:9 cannot be reached" in found["ReasonText"]
    assert process.ends()[0] == 0


@pytest.mark.case(49)
def test_a_second_one_says_that_there_is_a_first(
    begin: Callable[..., Process], tmp_path: Path
) -> None:
    begin().hears("READY=1")

    code, log = begin().ends()
    assert (code, "another update-agentd uses" in log) == (4, True)

    code, log = begin(folder=tmp_path / "elsewhere").ends()
    assert (code, "another update-agentd has the name org.updateagent.Agent1" in log) == (4, True)


@contextmanager
def quiet_logging() -> Iterator[None]:
    import logging  # noqa: PLC0415

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_settings_that_cannot_be_used_end_it_with_the_file_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "50.toml").write_text("[update]\nintervall = '1h'\n")

    with quiet_logging():
        assert main(["--settings", str(tmp_path), "--state", str(tmp_path / "state")]) == 4

    said = capsys.readouterr().err
    assert "50.toml: there is no update.intervall" in said
    assert "did you mean interval?" in said


_ASKS = """
import sys, requests
from update_agent.agent.main import log_to_stderr
log_to_stderr()
print(requests.get(sys.argv[1], timeout=30).status_code)
"""


def test_garbled_headers_leave_no_traceback_in_the_log() -> None:
    with Web({"/blob": b"x"}) as web:
        web.always = Altered(headers={"X-Before": "1\r\nand this is no header"})
        done = subprocess.run(
            [sys.executable, "-c", _ASKS, web.url()],
            capture_output=True, text=True, check=True, timeout=PATIENCE,
        )  # fmt: skip

    assert (done.stdout, done.stderr) == ("200\n", "")
