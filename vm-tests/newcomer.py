"""``vm-tests/try``: a machine that updates itself, told on one page while it happens.

What takes long is kept in .cache/vm for the next time, as long as this checkout stays the same: two
images, the repository, the disk, and the machine as it was when it had booted and knew of nothing.
It is ``host1`` of ``vm-tests/vm`` and stays there, as does the web server, so that one can look
around.
"""

import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import people
from depot import PRODUCT, Depot
from machine import Machine, MachineError, accelerator
from releases import Workshop

from update_agent import cli
from update_agent.errors import HostError
from update_agent.publish import recipe
from update_agent.publish.progress import silent
from update_agent.run import run as run_program

PORT = 2280
"""Of the web server, on the loopback."""

OLD, NEW = "1.0.0", "1.1.0"

_FILES = {
    OLD: {"etc/motd": "This host runs update-agent-os 1.0.0.\n"},
    NEW: {
        "etc/motd": "This host runs update-agent-os 1.1.0, to which it updated itself.\n",
        "usr/share/update-agent/news": "Nothing but this file and the motd are new in 1.1.0.\n",
    },
}

_SETTINGS = """\
update.interval = "1m"
reboot.strategy = "immediate"
trial.soak = "2s"
"""

_LEVEL = 3
"""zstd's: the repository is made for one look, and then thrown away."""

_MB = 1e6

_BOOTED = "booted"
"""What the machine is kept as, when it has booted the old release."""

_OURS = "made-by-try"
"""A file beside a machine that may be thrown away."""


@dataclass
class Page:
    """What is printed: a heading for each part, and the time of each line since it all began."""

    began: float
    _heading: str = ""
    _shown: str = field(default="", repr=False)

    def say(self, heading: str, line: str) -> None:
        """Print a line under ``heading``, which is printed once."""
        if line == self._shown and heading == self._heading:
            return
        shown = "" if heading == self._heading else heading
        print(f"{self.seconds:5.0f} s  {shown:8} {line}", flush=True)
        self._heading, self._shown = heading, line

    @property
    def seconds(self) -> float:
        """How long it took until now."""
        return time.monotonic() - self.began


def run(seconds: float) -> int:
    """Show it all; the set-up took ``seconds`` before. Raises HostError when it goes wrong."""
    page = Page(began=time.monotonic() - seconds)
    page.say("set up", "all that is needed is installed")
    people.stop_server()  # whose folder may be one that is removed
    kept = _kept_folder()
    kept.mkdir(parents=True, exist_ok=True)
    try:
        workshop = Workshop(folder=kept)
        images = _images(kept, workshop, page)
        depot = _published(kept, images, page)
        disk = people.kept(kept / "disk", lambda: workshop.disk(images[OLD]))
        _want_ours(people.HOME / "host1")
        people.forget("host1")
        machine = _booted(kept, disk, depot, page)
        depot.start()
        page.say("serve", f"nginx serves the repository; the machine finds it at {depot.url}")
        machine.run("sudo update-agentctl check --no-wait", check=False)  # it may have begun
        _watch_update(machine, page)
    except (MachineError, AssertionError) as error:
        raise HostError(str(error), hint=f"look into {people.HOME}") from error
    print(_END.format(seconds=page.seconds), end="")
    return 0


_END = """\

The machine updated itself in {seconds:.0f} s, all told. Look inside, while it runs:

  vm-tests/vm ssh                       then: update-agentctl status | history | why | doctor
                                              sudo docker ps; etcdctl is not there, etcd is
  vm-tests/vm status                    what runs; the console is in .cache/vm/host1/serial.log
  vm-tests/vm down --remove             ends it
"""


# Before the machine -------------------------------------------------------------------------------


def _kept_folder() -> Path:
    """Return the folder for what is made of this checkout; what was made of others is removed."""
    mine = people.HOME / f"try-{_digest()}"
    for folder in people.HOME.glob("try-*"):
        if folder != mine:
            shutil.rmtree(folder)
    return mine


def _digest() -> str:
    """Return what tells one state of the checkout from another, as far as images go."""
    digest = hashlib.sha256(repr((_FILES, _SETTINGS, _LEVEL)).encode())
    here = Path(__file__).resolve().parents[1]
    for folder in (here / "update_agent", recipe.data("systemd"), recipe.data("partition-layout")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(here)} {path.stat().st_mode}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _images(kept: Path, workshop: Workshop, page: Page) -> Mapping[str, Path]:
    images = {version: kept / f"{version}.img" for version in _FILES}
    made = not all(path.exists() for path in images.values())
    workshop.tell = (lambda line: page.say("build", line)) if made else silent
    for version, path in images.items():
        people.kept(path, lambda version=version: workshop.release(version, _FILES[version]))  # type: ignore[misc]
    size = images[NEW].stat().st_size / _MB
    page.say(
        "build",
        f"update-agent-os {OLD} and {NEW}, {size:.0f} MB each: kernel, systemd, Docker, etcd"
        + ("" if made else " (made before)"),
    )
    return images


def _published(kept: Path, images: Mapping[str, Path], page: Page) -> Depot:
    folder = kept / "depot"
    done = kept / "published"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    depot = Depot(folder=folder, port=PORT)
    if done.exists():
        depot.publish("refresh")  # what was signed for some days may be older
    else:
        depot.add(images[OLD], OLD, level=_LEVEL)
        depot.add(images[NEW], NEW, OLD, level=_LEVEL)
        depot.promote(NEW, "--reason", "to see it work")
        done.touch()
    found = json.loads(depot.ask("release", "show", "--product", PRODUCT, "--version", NEW))
    sizes = [it["stored_size"] / _MB for it in found["payloads"]]
    page.say(
        "publish",
        f"channel stable offers {NEW}: {max(sizes):.1f} MB whole, {min(sizes):.1f} MB from {OLD}",
    )
    return depot


def _want_ours(folder: Path) -> None:
    """Refuse to take away a machine that somebody else works with."""
    if folder.exists() and not (folder / _OURS).exists():
        raise HostError(
            "host1 is a machine that 'vm-tests/vm up' made",
            hint="vm-tests/vm down --remove, if it is not needed any more",
        )


# The machine -------------------------------------------------------------------------------------


def _booted(kept: Path, disk: Path, depot: Depot, page: Page) -> Machine:
    """Return host1, which runs the old release: booted, or going on where it was kept then."""
    folder = people.HOME / "host1"
    kept /= f"booted-{_emulator()}"
    if kept.exists():
        shutil.copytree(kept, folder)
    machine = people.machine(1, disk, credentials=depot.settings(_SETTINGS))
    (folder / _OURS).touch()
    if kept.exists():
        machine.power_on(load=_BOOTED)
        machine.run(f"sudo date --set=@{time.time():.0f}")
        page.say("boot", f"{machine.name} goes on where it was kept, when it had booted slot A")
        return machine
    machine.power_on()
    machine.wait_for_serial(r"gptprio: slot A: kernel verified")
    page.say("boot", f"{machine.name}: the selector starts slot A")
    _wait_for_daemon(machine)
    people.kept(kept, lambda: machine.keep(kept.with_name("keeps"), _BOOTED))
    return machine


def _emulator() -> str:
    """Return what tells one QEMU from another, that may not go on where the other was."""
    words = (*accelerator(), run_program(["qemu-system-x86_64", "--version"]))
    return hashlib.sha256(repr(words).encode()).hexdigest()[:12]


def _watch_update(machine: Machine, page: Page) -> None:
    """Tell what happens, from the first look at the repository to the confirmed release."""
    _tell(machine, page)
    machine.wait_for_serial(r"gptprio: slot B: kernel verified")
    page.say("reboot", "the selector starts slot B, on trial: one of 3 tries is used")
    machine.leave()
    _wait_for_daemon(machine)
    end = _tell(machine, page)
    if end["running"] != NEW:
        raise MachineError(f"{machine.name} runs {end['running']}, not {NEW}")
    past = end["history"][0]
    whole = (past["fetched"] + past["saved"]) / _MB
    page.say(
        "done",
        f"{past['from']} -> {past['to']}, {past['outcome']} after {past['seconds']} s:"
        f" fetched {past['fetched'] / _MB:.1f} MB instead of {whole:.1f}",
    )


def _wait_for_daemon(machine: Machine) -> None:
    machine.wait_for_serial(r"Started .*ssh\.service")
    machine.run("sudo systemctl start update-agentd")  # returns when it runs


def _tell(machine: Machine, page: Page) -> Mapping[str, Any]:
    """Tell what the daemon does in this boot; return what it said last."""
    said: Mapping[str, Any] = {}
    tell = _Teller(page)
    for said in _statuses(machine):
        tell.status(said)
        if said["running"] == NEW and said["history"] and said["state"] != "trial":
            break
    if not said:
        raise MachineError(f"{machine.name}: the daemon says nothing; {machine.serial_log}")
    return said


def _statuses(machine: Machine) -> Iterator[Mapping[str, Any]]:
    """Yield what the daemon says, until the host goes down."""
    with contextlib.closing(machine.lines_of("update-agentctl status --watch --json")) as lines:
        for line in lines:
            yield json.loads(line)


@dataclass
class _Teller:
    """Puts what a daemon says into words, once."""

    page: Page
    _last: tuple[object, ...] = ()

    def status(self, said: Mapping[str, Any]) -> None:
        """Tell what is new in it."""
        progress = said["progress"]
        step = progress["step"] if progress else None
        now = (said["state"], step)
        if now == self._last or (said["state"] == "installing" and not progress):
            return
        self._last = now
        if words := _WORDS.get(said["state"]):
            heading, line = words
            self.page.say(heading, line(said))


def _slots(said: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{it['slot']} {it['state']}{' and booted' if it['booted'] else ''}" for it in said["slots"]
    )


def _installing(said: Mapping[str, Any]) -> str:
    progress = said["progress"]
    return f"installs {said['target']}: {progress['step']}, {progress['size'] / _MB:.1f} MB"


_WORDS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "idle": ("runs", lambda said: f"{said['product']} {said['running']}; slots: {_slots(said)}"),
    "checking": ("update", lambda _: "asks the repository"),
    "waiting": ("update", lambda said: f"waits: {said['reason']['sentence']}"),
    "installing": ("update", _installing),
    "staged": ("update", lambda said: f"{said['target']} is in slot B, read back and verified"),
    "rebooting": ("update", lambda _: "flips the boot flags, and reboots"),
    "trial": ("trial", lambda said: f"runs {said['running']}, not confirmed yet: soaking"),
}


def main(argv: Sequence[str]) -> int:
    """Run the program and return its exit code."""
    command = cli.parser("vm-tests/try", "Show a machine that updates itself.")
    command.add_argument("seconds", type=float, help="how long the set-up took")
    command.set_defaults(run=lambda options: run(options.seconds))
    return cli.run(command, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
