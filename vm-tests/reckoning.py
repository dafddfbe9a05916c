"""The end of a campaign: what was counted, what is asked of hosts and server, and what holds."""

import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import judge
from faults import Kind, Scene
from follower import Host
from judge import Story
from machine import MachineError
from press import Press
from witness import Seen

from tests.etcd import until
from update_agent.core.report import host_id

ENOUGH = 900.0
"""Seconds after which something that was waited for does not come any more."""

_JOURNAL = "sudo journalctl --no-pager --output=short-precise -u 'update-agent*' -u etcd"
_PATIENCE = 300.0
"""Seconds in which a host must have said what is in its journal."""

_BUG = re.compile(r"^.*(?:a defect|Traceback \(most recent call last\)).*$", re.MULTILINE)
"""What our programs say when it is their own fault."""

# What is written down while it happens ------------------------------------------------------------


@dataclass
class Book:
    """What happened, told while it does, and how often."""

    out: TextIO = field(default_factory=lambda: sys.stdout)
    """Kept from the begin: whoever publishes catches what is printed meanwhile."""
    began: float = field(default_factory=time.monotonic)
    faults: Counter[Kind] = field(default_factory=Counter)
    missed: Counter[Kind] = field(default_factory=Counter)
    """Hosts that could not be reached, or had nothing to kill."""
    people: Counter[str] = field(default_factory=Counter)
    """What only a person ended, by its reason."""
    errors: list[Exception] = field(default_factory=list)
    """Of the campaign itself."""

    def say(self, who: str, what: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self.began:6.0f} s  {who:7} {what}", file=self.out, flush=True)

    def seen(self, it: Seen) -> None:
        """Tell what a host did."""
        if it.what in _SEEN:
            self.say(it.host, f"{_SEEN[it.what]} {it.version}")


_SEEN = {
    "trial": "tries", "confirmed": "has confirmed", "back": "is back with",
    "panic": "panics with", "deadline": "comes to the deadline of", "reset": "resets with",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """A promise, and what breaks it."""

    promise: str
    complaints: Sequence[str]

    def lines(self) -> Iterator[str]:
        """Yield it for people."""
        yield f"{'BROKEN' if self.complaints else 'held':7} {self.promise}"
        yield from (f"        {it}" for it in self.complaints)


# What holds ---------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Reckoning:
    """Asks everyone; in the end the machines have no power, and their disks are judged."""

    scene: Scene
    press: Press
    slots: int
    """Reboot slots of the group."""
    folder: Path
    """For what is large, and gone in the end."""
    logs: Path
    """Where what machines and server said is kept."""
    stories: dict[str, Story] = field(default_factory=dict)
    """What each host tells."""

    def verdicts(self) -> list[Verdict]:
        """Return what holds, and what does not."""
        last, bad = self.press.made[-1].version, self.press.bad
        witness = self.scene.witness
        runs = self._each(partial(self._run_complaints, last))
        same = self._each(self._story_complaints)
        lock = list(self._lock_complaints())
        bugs = self.bugs()
        for host in self.scene.fleet.hosts:
            host.machine.cut_power()
        flags, content = self._disk_complaints(last)
        return [
            Verdict(f"every host runs {last}, the last release, and is idle", runs),
            Verdict("what may boot is a signed image, byte by byte", content),
            Verdict("boot flags are sane, and cgpt reads the same", flags),
            Verdict("the update server and the hosts tell the same history", same),
            Verdict("no host refused a release that was signed",
                    list(judge.refused_complaints(self.stories.values()))),
            Verdict("no bad release was confirmed anywhere",
                    list(judge.bad_complaints(self.stories.values(), witness.seen, bad))),
            Verdict(f"never more than {self.slots} host was away at once for a reboot",
                    list(judge.away_complaints(witness.aways, self.slots))),
            Verdict("nobody holds or waits for a reboot slot", lock),
            Verdict("no host reset or panicked with a good release",
                    list(judge.reset_complaints(witness.seen, bad))),
            Verdict("no program of ours met a bug", bugs),
        ]  # fmt: skip

    def _each(self, ask: Callable[[Host], list[str]]) -> list[str]:
        """Ask every host; a host that cannot be asked is a complaint."""
        complaints = []
        for host in self.scene.fleet.hosts:
            try:
                complaints += [f"{host.machine.name}: {it}" for it in ask(host)]
            except MachineError as error:
                complaints.append(str(error))
        return complaints

    def _run_complaints(self, last: str, host: Host) -> list[str]:
        found: list[Mapping[str, Any]] = []

        def idle() -> bool:
            found.append(host.status())
            return (found[-1]["state"], found[-1]["running"]) == ("idle", last)

        if _comes_true(idle):
            return []
        said = found[-1] if found else {}
        shown = {name: said.get(name) for name in ("state", "running", "target", "reason")}
        return [f"it is not idle with {last}, but {shown}"]

    def _story_complaints(self, host: Host) -> list[str]:
        """Let a host report at once, and hold the server's story against its own."""
        machine, server = host.machine, self.scene.server.now
        assert server
        machine.run("sudo systemctl restart update-agentd")  # it need not wait so long
        story = judge.told_by_host(machine.json("update-agentctl history --json"))
        self.stories[machine.name] = story
        name = host_id(machine.run("cat /etc/machine-id").strip())

        def told() -> Story:
            return judge.told_by_server(server.api(f"/v1/hosts/{name}")["attempts"])

        _comes_true(lambda: told() == story)
        return list(judge.story_complaints(story, told()))

    def _lock_complaints(self) -> Iterator[str]:
        found: list[Mapping[str, Any]] = []

        def free() -> bool:
            found.append(self.scene.fleet.lock())
            return not found[-1]["holders"] and not found[-1]["waiting"]

        if not _comes_true(free):
            yield f"lock status says {found[-1:]}"

    def bugs(self) -> list[str]:
        """Return what hosts and the update server said that is their own fault, and keep it all."""
        hosts = self._each(lambda host: _BUG.findall(self.keep_log(host)))
        said = self._server_log.read_text(errors="replace")
        return [*hosts, *(f"update server: {it}" for it in _BUG.findall(said))]

    @property
    def _server_log(self) -> Path:
        return self.press.depot.folder / "server.log"

    def keep_log(self, host: Host) -> str:
        """Keep what a machine and the server said; return the journal of our programs.

        Raises MachineError when the machine does not tell it.
        """
        machine = host.machine
        self.logs.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._server_log, self.logs)
        shutil.copy(machine.serial_log, self.logs / f"{machine.name}.serial.log")
        said = machine.run(_JOURNAL, timeout=_PATIENCE)
        (self.logs / f"{machine.name}.journal").write_text(said)
        return said

    def _disk_complaints(self, last: str) -> tuple[list[str], list[str]]:
        flags, content = [], []
        for host in self.scene.fleet.hosts:
            name = host.machine.name
            with judge.raw(host.machine.layer, self.folder) as disk:
                flags += [f"{name}: {it}" for it in judge.flag_complaints(disk)]
                found = judge.content_complaints(disk, last, self.press.images)
                content += [f"{name}: {it}" for it in found]
        return flags, content

    # What was counted

    def table(self, book: Book) -> Iterator[str]:
        """Yield how often what happened."""
        seen, bad = self.scene.witness.counts, len(self.press.bad)
        outcomes = Counter(it[2] for story in self.stories.values() for it in story.values())
        yield f"{'fault':32} happened  missed"
        for kind in Kind:
            yield f"  {kind:30} {book.faults[kind]:8}  {book.missed[kind]:6}"
        yield f"  {'all':30} {book.faults.total():8}  {book.missed.total():6}"
        yield _row("answers spoilt", self.scene.middlebox.spoilt)
        yield _row("releases", {"good": len(self.press.made) - bad, "bad": bad})
        yield _row("updates", outcomes)
        yield _row("reboots", {
            "permitted": len(self.scene.witness.aways), "boots in all": seen["boots"],
            "on trial": seen["trial"], "ended by the deadline": seen["deadline"],
            "panics": seen["panic"], "unasked": seen["reset"],
        })  # fmt: skip
        yield _row("people acted", book.people)


def _row(name: str, counts: Mapping[Any, int]) -> str:
    return f"{name:15} " + (", ".join(f"{what}: {count}" for what, count in counts.items()) or "0")


def _comes_true(true: Callable[[], bool]) -> bool:
    """Wait for something; return whether it came. Who cannot be asked just then is asked again."""

    def asked() -> bool:
        with suppress(MachineError):
            return true()
        return False

    try:
        until(asked, ENOUGH)
    except AssertionError:
        return False
    return True
