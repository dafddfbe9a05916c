"""When a host may reboot: windows, who inhibits it, what drains it; against a logind of our own."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.agent.fakes import IMMEDIATE
from tests.bus import ROOT, Bus, bus
from tests.logind import BACKUP, LATER, LID, Logind, on_bus
from update_agent.agent.reboots import LocalReboots
from update_agent.core.reason import Reason
from update_agent.core.settings import Duration, Reboot, Settings, Strategy
from update_agent.core.window import Window
from update_agent.ctl import reboot as program
from update_agent.errors import HostError
from update_agent.host import programs, reboot
from update_agent.host.programs import ProgramError

__all__ = ["bus"]

MONDAY = datetime(2026, 11, 23, 8, tzinfo=UTC)
AT_NIGHT = Settings(
    reboot=Reboot(strategy=Strategy.IMMEDIATE, windows=(Window("Mon..Fri 02:00 +2h"),))
)


@pytest.fixture
def logind(bus: Bus) -> Iterator[Logind]:
    with on_bus(bus.address) as played:
        yield played


def test_a_host_that_nobody_minds_reboots_in_the_time_that_is_set(logind: Logind) -> None:
    del logind
    limits: list[float] = []
    reboots = LocalReboots(IMMEDIATE, carry_out=lambda limit, _: limits.append(limit))

    assert reboots.ask(MONDAY, None, hurry=False) is None
    reboots.reboot()

    assert limits == [300.0]


def test_outside_of_the_window_it_waits_until_that_opens(logind: Logind) -> None:
    del logind
    wait = LocalReboots(AT_NIGHT).ask(MONDAY, None, hurry=False)

    assert wait
    assert wait.reason is Reason.WINDOW
    assert wait.until == MONDAY + timedelta(hours=18)
    assert wait.sentence == ("no reboot window is open; the next opens on Tue 2026-11-24 02:00 UTC")


@pytest.mark.usefixtures("logind")
def test_an_open_window_and_a_hurry_let_it_go() -> None:
    reboots = LocalReboots(AT_NIGHT)

    assert reboots.ask(MONDAY.replace(hour=3), None, hurry=False) is None
    assert reboots.ask(MONDAY, None, hurry=True) is None


@pytest.mark.parametrize("hurry", [False, True])
def test_who_blocks_a_shutdown_is_respected_and_named(hurry: bool, logind: Logind) -> None:  # noqa: FBT001
    logind.inhibitors = [LATER, BACKUP, LID]
    limits: list[float] = []
    reboots = LocalReboots(IMMEDIATE, carry_out=lambda limit, _: limits.append(limit))

    wait = reboots.ask(MONDAY, None, hurry=hurry)

    assert wait
    assert wait.reason is Reason.INHIBITED
    assert wait.sentence == "a reboot is blocked by backup: nightly dump (pid 4711)"
    with pytest.raises(HostError, match="blocked by backup: nightly dump"):
        reboots.reboot()
    assert limits == []


def test_who_only_delays_a_shutdown_is_logind_s_to_wait_for(logind: Logind) -> None:
    logind.inhibitors = [LATER, LID]

    assert LocalReboots(IMMEDIATE).ask(MONDAY, None, hurry=False) is None


@pytest.mark.usefixtures("bus")
def test_without_a_logind_nothing_is_rebooted() -> None:
    with pytest.raises(HostError, match=r"org\.freedesktop\.login1 is not on the system bus"):
        LocalReboots(IMMEDIATE).ask(MONDAY, None, hurry=False)


@pytest.mark.parametrize(("drain", "limit"), [(0, 1.0), (60, 60.0), (2 * 86400, 86400.0)])
def test_a_drain_is_as_long_as_root_takes(drain: float, limit: float, logind: Logind) -> None:
    del logind
    limits: list[float] = []
    settings = replace(IMMEDIATE, reboot=Reboot(drain=Duration(seconds=drain)))

    LocalReboots(settings, carry_out=lambda seconds, _: limits.append(seconds)).reboot()

    assert limits == [limit]
    assert reboot.read_limit(f"{limit:.3f}\n".encode()) == limit


# By root ----------------------------------------------------------------------------------------


def put(folder: Path, name: str, script: str, mode: int = 0o755) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return path


@dataclass
class Systemd:
    """Starts root's program for a connection, as systemd does."""

    path: Path
    folder: Path
    ended: list[int] = field(default_factory=list)

    def accept_one(self) -> threading.Thread:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as connection:
                done = subprocess.run(
                    [sys.executable, "-c",
                     "import sys; from update_agent.ctl.reboot import main; sys.exit(main())",
                     "--folder", str(self.folder)],
                    stdin=connection.fileno(), stdout=connection.fileno(),
                    stderr=subprocess.DEVNULL, check=False,
                    cwd=ROOT, text=True,
                )  # fmt: skip
                self.ended.append(done.returncode)

        thread = threading.Thread(target=serve)
        thread.start()
        return thread


@pytest.fixture
def systemd(tmp_path: Path) -> Systemd:
    return Systemd(tmp_path / "reboot.sock", tmp_path / "pre-reboot.d")


@pytest.mark.parametrize("names", [(), ("20-second", "10-first", ".hidden", "30-old~")])
def test_a_host_is_drained_in_order_those_logged_in_are_told_and_it_reboots(
    names: tuple[str, ...], systemd: Systemd, logind: Logind, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    log.touch()
    for name in names:
        put(systemd.folder, name, f"echo {name} >> {log}")
    thread = systemd.accept_one()

    reboot.by_root(30, address=systemd.path)

    thread.join()
    assert log.read_text().split() == (["10-first", "20-second"] if names else [])
    assert logind.said == [
        ("SetWallMessage", "An update of the operating system reboots this host now.", True),
        ("Reboot", False),
    ]


def test_who_blocks_a_shutdown_while_the_host_is_drained_is_respected(
    systemd: Systemd, logind: Logind
) -> None:
    logind.inhibitors = [BACKUP]
    thread = systemd.accept_one()

    with pytest.raises(HostError, match="blocked by backup: nightly dump"):
        reboot.by_root(30, address=systemd.path)

    thread.join()
    assert logind.said == []


def test_a_reboot_that_logind_refuses_is_an_error(systemd: Systemd, logind: Logind) -> None:
    logind.may_reboot = False
    thread = systemd.accept_one()

    with pytest.raises(HostError, match="Permission denied"):
        reboot.by_root(30, address=systemd.path)

    thread.join()


def test_a_program_that_fails_holds_the_reboot_back_with_what_it_said(
    systemd: Systemd, logind: Logind, tmp_path: Path
) -> None:
    put(systemd.folder, "10-containers", "echo 'web-1 does not stop' >&2; exit 3")
    put(systemd.folder, "20-never", f"touch {tmp_path / 'never'}")
    thread = systemd.accept_one()

    with pytest.raises(HostError, match=r"10-containers failed \(3\): web-1 does not stop"):
        reboot.by_root(30, address=systemd.path)

    thread.join()
    assert not (tmp_path / "never").exists()
    assert logind.said == []


def test_a_host_where_nobody_listens_is_not_rebooted(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot have this host rebooted: .*: No such file"):
        reboot.by_root(30, address=tmp_path / "nobody.sock")


def test_all_programs_together_have_one_limit(tmp_path: Path) -> None:
    put(tmp_path / "d", "10-quick", "true")
    put(tmp_path / "d", "20-late", "true")
    times = iter([0.0, 1.0, 11.0])

    with pytest.raises(ProgramError, match=r"no time left for .*20-late: all together may take 10"):
        programs.run_all(tmp_path / "d", 10, lambda: next(times))


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    put(tmp_path / "d", "10-hangs", "exec sleep 60")

    with pytest.raises(ProgramError, match="10-hangs took longer than"):
        programs.run_all(tmp_path / "d", 0.1)


def test_what_a_good_program_says_need_be_no_text(tmp_path: Path) -> None:
    good = put(tmp_path / "d", "10-latin", r"printf '\351t\351'")

    assert programs.run_all(tmp_path / "d", 10) == [good]


def test_a_program_that_cannot_be_run_fails_by_name(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/10-none").write_bytes(b"\x7fELF and nothing more")
    (tmp_path / "d/10-none").chmod(0o755)

    with pytest.raises(ProgramError, match=r"cannot run .*10-none: Exec format error"):
        programs.run_all(tmp_path / "d", 10)


def test_what_is_not_executable_is_told_apart(tmp_path: Path) -> None:
    good = put(tmp_path / "d", "10-good", "true")
    bad = put(tmp_path / "d", "20-bad", "true", mode=0o644)

    assert (programs.listed(tmp_path / "d"), programs.left_out(tmp_path / "d")) == ([good], [bad])


@pytest.mark.parametrize(
    "line", [b"", b"60", b"0\n", b"-1\n", b"1e9\n", b"999999\n", b"60;reboot\n", b"nan\n"]
)
def test_it_takes_nothing_but_a_time(
    line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = put(tmp_path / "d", "10-ran", f"touch {tmp_path / 'ran'}")
    (tmp_path / "stdin").write_bytes(line)
    with (tmp_path / "stdin").open("rb") as stdin, (tmp_path / "stdout").open("wb") as stdout:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)

        assert program.main(["--folder", str(ran.parent)]) == 4

    assert "is no time limit" in json.loads((tmp_path / "stdout").read_bytes())["error"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", b'{"error": null}', b"x" * 100_000])
def test_a_program_that_ends_without_an_answer_holds_the_reboot_back(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=lambda: _say(theirs, said))
        thread.start()
        with pytest.raises(HostError, match="ended without an answer"):
            reboot.ask(ours, 5)
        ours.close()
        thread.join()


@pytest.mark.case(90)
@pytest.mark.parametrize("said", [b"", b'{"error": ', b"[]\n"])
def test_a_reboot_that_takes_along_who_would_answer_is_on_its_way(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(reboot.answer([], None))
        thread = threading.Thread(target=lambda: _hear_go_and_say(theirs, said))
        thread.start()
        assert reboot.ask(ours, 5) == []
        thread.join()


@pytest.mark.case(90)
def test_a_shutdown_that_ends_root_s_program_first_is_no_refusal(
    systemd: Systemd, logind: Logind, tmp_path: Path
) -> None:
    put(systemd.folder, "10-who", f"echo $PPID > {tmp_path / 'pid'}")
    logind.rebooting = lambda: os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    thread = systemd.accept_one()

    reboot.by_root(30, address=systemd.path)

    thread.join()
    assert systemd.ended == [0]
    assert logind.said[-1] == ("Reboot", False)


@pytest.mark.parametrize("word", [b"", b"no\n", b"reboot", b"reboot now\n", b"r" * 99])
def test_without_the_daemon_s_last_word_a_drained_host_is_not_rebooted(
    word: bytes, systemd: Systemd, logind: Logind
) -> None:
    thread = systemd.accept_one()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(systemd.path))
        connection.sendall(b"60\n")
        assert json.loads(connection.recv(1000)) == {"ran": [], "error": None, "hint": None}
        connection.sendall(word)
        connection.shutdown(socket.SHUT_WR)
        answer = json.loads(connection.recv(1000))
    thread.join()

    assert answer["error"] == "update-agentd does not want the reboot any more"
    assert logind.said == []


@pytest.mark.case(90)
def test_a_daemon_that_is_forbidden_the_reboot_meanwhile_says_so_when_the_host_is_drained(
    systemd: Systemd, logind: Logind, tmp_path: Path
) -> None:
    drained = put(systemd.folder, "10-drain", f"touch {tmp_path / 'drained'}")
    thread = systemd.accept_one()

    def forbidden() -> None:
        assert (tmp_path / "drained").exists(), f"{drained} has not run"
        raise HostError("the reboot slot was taken")

    with pytest.raises(HostError, match="the reboot slot was taken"):
        reboot.by_root(30, forbidden, systemd.path)

    thread.join()
    assert logind.said == []


def _hear_go_and_say(connection: socket.socket, said: bytes) -> None:
    heard = b""
    while not heard.endswith(reboot.GO):
        heard += connection.recv(64)
    connection.sendall(said)
    connection.close()


def _say(connection: socket.socket, said: bytes) -> None:
    connection.recv(64)
    with suppress(OSError):
        connection.sendall(said)
    connection.close()
