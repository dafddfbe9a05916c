"""``update-publish`` killed before every single file operation; and the power cut there.

A child process counts what it is about to do with files: open for writing, flush, rename, link,
remove, make a folder. Before the n-th it dies, for every n. A power cut is harder: names that were
not flushed are undone, and files that were not flushed are empty. Then hosts look, fresh ones and
those that were here before, and must find the old state or the new one; the same command again must
reach the new one, and ``verify`` must find nothing wrong.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.publisher import Stock, Team, View, seen_by_tuf, seen_by_us
from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository

DEAD = 77
"""Exit code of a process that was killed."""


# Death -------------------------------------------------------------------------------------------


@dataclass
class Undo:
    """Something that is not durable yet: it lies in ``folder``, and how to take it back."""

    folder: Path
    back: Callable[[], object]


@dataclass
class Death:
    """Counts operations below ``folder``, and dies before the ``number``-th."""

    folder: Path
    number: int
    power: bool
    count: int = 0
    names: list[Undo] = field(default_factory=list)
    written: set[Path] = field(default_factory=set)
    _busy: bool = False

    def listen(self) -> None:
        flush = os.fsync

        def fsync(fd: int) -> None:
            path = Path(f"/proc/self/fd/{fd}").readlink()
            self.step()
            flush(fd)
            self.written.discard(path)
            self.names = [it for it in self.names if it.folder != path]

        os.fsync = fsync  # type: ignore[assignment]  # ours are all numbers
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._busy or event not in _TAKEN_BACK or not self._is_ours(event, args):
            return
        self.step()
        if self.power:
            self._busy = True
            _TAKEN_BACK[event](self, *args)
            self._busy = False

    def _is_ours(self, event: str, args: tuple[Any, ...]) -> bool:
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return False
        return not isinstance(args[0], int) and str(args[0]).startswith(str(self.folder))

    def step(self) -> None:
        self.count += 1
        if self.count < self.number:
            return
        self._busy = True
        if self.power:
            for path in self.written & {it for it in self.written if it.exists()}:
                os.truncate(path, 0)
            for name in reversed(self.names):
                name.back()
        os._exit(DEAD)

    # What a power cut takes back ---------------------------------------------------------------

    def opened(self, path: str, _mode: object, _flags: int) -> None:
        file = Path(path)
        if not file.exists():
            self.names.append(Undo(file.parent, lambda: file.unlink(missing_ok=True)))
        if file.name != ".lock":
            self.written.add(file)

    def renamed(self, source: str, target: str, *_: object) -> None:
        old, new = Path(source), Path(target)
        before = new.read_bytes() if new.exists() else None
        if old in self.written:
            self.written.add(new)

        def back() -> None:
            new.rename(old)
            if before is not None:
                new.write_bytes(before)

        self.names.append(Undo(new.parent, back))

    def linked(self, _source: str, target: str, *_: object) -> None:
        self.names.append(Undo(Path(target).parent, Path(target).unlink))

    def removed(self, path: str, *_: object) -> None:
        file = Path(path)
        if file.exists():
            before, mode = file.read_bytes(), file.stat().st_mode

            def back() -> None:
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(before)
                file.chmod(mode)

            self.names.append(Undo(file.parent, back))

    def made(self, path: str, *_: object) -> None:
        folder = Path(path)
        if not folder.exists():
            back: Callable[[], object] = lambda: shutil.rmtree(folder, ignore_errors=True)  # noqa: E731
            self.names.append(Undo(folder.parent, back))

    def nothing(self, *_: object) -> None:
        pass


_TAKEN_BACK: dict[str, Callable[..., None]] = {
    "open": Death.opened,
    "os.rename": Death.renamed,
    "os.link": Death.linked,
    "os.remove": Death.removed,
    "os.mkdir": Death.made,
    "os.rmdir": Death.nothing,
    "os.truncate": Death.nothing,
}


def dies(team: Team, words: tuple[str | Path, ...], number: int, *, power: bool) -> bool:
    """Run a command in a child that dies before its n-th operation; say whether it did."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            Death(team.folder, number, power).listen()
            code = team.run(*words).code
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, DEAD), f"{words} ended with {code} before operation {number}"
    return code == DEAD


# Every command, every operation ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hosts:
    """Two hosts that looked at a repository before, and two that did not."""

    folder: Path

    def remember(self, team: Team) -> View:
        (self.folder / "tuf").mkdir(parents=True)
        assert seen_by_tuf(team, self.folder / "tuf") == seen_by_us(team, self.folder / "us")
        return seen_by_us(team, self.folder / "us")

    def look(self, team: Team) -> set[View]:
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as made:
            work = Path(made)
            if self.folder.exists():
                shutil.copytree(self.folder, work / "old")
            views = set()
            for state in ("old", "new"):
                (work / state / "tuf").mkdir(parents=True, exist_ok=True)
                views |= {
                    seen_by_tuf(team, work / state / "tuf"),
                    seen_by_us(team, work / state / "us"),
                }
            return views


def nothing(_: Team) -> None:
    pass


def first_stick(team: Team) -> None:
    """Root was edited where only one of its keys was."""
    stick = team.folder / "stick"
    stick.mkdir()
    for name in ("root-2.pem", "root-3.pem"):
        (team.offline / name).rename(stick / name)
    team.do("keys", "add", "root-4", "--role", "root")
    for name in ("root-2.pem", "root-3.pem"):
        (stick / name).rename(team.offline / name)


def signed_days_ago(team: Team) -> None:
    """Root and targets were signed anew three days ago."""
    now = datetime.now(UTC) - timedelta(days=3)
    repository = Repository(team.www, Keyring([team.offline, team.online]), now)
    for role in ("root", "targets"):
        repository.stage(role, repository.delegator("root" if role == "root" else "releases"))
    repository.commit()


def pause(team: Team) -> None:
    team.do("channel", "pause", "stable", "--reason", "smoke")


COMMANDS = {
    "release add": (nothing, ("release", "add", "IMAGE", "--product", "os", "--version", "1.2.0")),
    "release withdraw": (
        nothing,
        ("release", "withdraw", "--product", "os", "--version", "1.1.0", "--reason", "bad"),
    ),
    "channel create": (nothing, ("channel", "create", "beta", "--product", "os")),
    "channel promote": (
        nothing,
        ("channel", "promote", "stable", "1.1.0", "--wave", "1%:1h", "--deadline", "3d"),
    ),
    "channel pause": (nothing, ("channel", "pause", "stable", "--reason", "smoke")),
    "channel resume": (pause, ("channel", "resume", "stable")),
    "keys add": (nothing, ("keys", "add", "root-4", "--role", "root")),
    "keys rotate online": (nothing, ("keys", "rotate", "online", "online-2")),
    "keys rotate root": (nothing, ("keys", "rotate", "root-1", "root-4")),
    "keys rotate targets": (nothing, ("keys", "rotate", "targets", "targets-2")),
    "keys rotate releases": (nothing, ("keys", "rotate", "releases", "releases-2")),
    "keys revoke": (nothing, ("keys", "revoke", "root-3")),
    "sign": (first_stick, ("sign",)),
    "sign --renew": (signed_days_ago, ("sign", "--renew", "root", "--renew", "targets")),
    "refresh": (nothing, ("refresh",)),
}


@pytest.mark.case(94)
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power-cut"])
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_before_any_file_operation_the_repository_is_the_old_or_the_new(
    command: str, *, power: bool, stock: Stock, memory: Path, figure: Callable[[str], None]
) -> None:
    prepare, words = COMMANDS[command]
    words = tuple(str(stock.images[2]) if word == "IMAGE" else word for word in words)
    with tempfile.TemporaryDirectory(dir=memory) as made:
        start = stock.team.copy(Path(made) / "start")
        prepare(start)
        hosts = Hosts(Path(made) / "hosts")
        old = hosts.remember(start)
        new = after(start, words, Path(made) / "whole")
        number, looked_at = 1, served(start)
        while True:
            team = start.copy(Path(made) / "team")
            died = dies(team, words, number, power=power)
            if served(team) != looked_at:
                looked_at = served(team)
                assert hosts.look(team) <= {old, new}, f"before operation {number}"
            team.do(*words)
            assert hosts.look(team) == {new}, f"repeated after death at operation {number}"
            assert team.run("verify", "--json", keys=[]).json["problems"] == []
            shutil.rmtree(team.folder)
            if not died:
                break
            number += 1
    assert number > 5
    ends = "power cuts" if power else "kills"
    figure(f"update-publish {command}: {number - 1} {ends} at file operations, 0 broken")


def served(team: Team) -> set[tuple[str, int]]:
    """Return what is there for hosts: files that are written once, by name, and the timestamp."""
    parts = (team.www / part for part in ("metadata", "targets", "payloads"))
    files = [it for part in parts for it in part.rglob("[!.]*") if it.is_file()]
    stamp = hash((team.www / "metadata" / "timestamp.json").read_bytes())
    return {(str(it.relative_to(team.www)), it.stat().st_size) for it in files} | {("", stamp)}


def after(start: Team, words: tuple[str | Path, ...], to: Path) -> View:
    """Return what hosts see when a command ends well."""
    team = start.copy(to)
    team.do(*words)
    return seen_by_us(team, to / "us")
