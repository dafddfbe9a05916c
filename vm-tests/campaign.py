"""``vm-tests/campaign``: random faults on a cluster of machines, and what must hold after them.

Three things happen side by side: releases are offered one after the other, good ones and bad ones;
faults come at the moments that were planned; and a witness hears every console. All that is chosen
comes from the seed: the faults, their moments and places, and the releases. What they meet does
not, for machines take the time that they need.
"""

import random
import signal
import sys
import tempfile
import threading
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import requests
from cluster import assembled, together
from depot import Depot
from faults import FAULTS, Planned, Scene, ServerProcess, make_room, plan, shell
from follower import Host
from machine import Key, Machine, MachineError
from middlebox import Middlebox
from press import Issue, Press, issues
from reckoning import ENOUGH, Book, Reckoning
from releases import HEALTH, Workshop
from witness import Witness

from tests.etcd import until
from update_agent import cli

LOGS = Path(__file__).parents[1] / ".cache/campaigns"
SLOTS = 1
"""Reboot slots of the group."""
END = 45 * 60.0
"""Seconds in which all hosts must confirm the last release, once nothing goes wrong any more."""
LOOK = 20.0
"""Seconds between two looks of the people at why hosts wait."""

SETTINGS = {"update.interval": "2m", "network.rate": "80K"}
"""Hosts find releases by themselves; downloads last long enough to be hit."""

PEOPLE_ACT = ("lock-restored", "lock-missing")
"""Reasons that only a person ends: a look, and ``lock slots``."""

_EPILOG = """\
It builds releases, starts machines with an etcd of their own, an update server, and a middlebox
between them. Then releases are offered, two of three good, while power is cut, daemons are killed,
networks are cut, members of etcd are lost, disks run full, clocks jump, downloads are corrupted and
the server is killed. When the time is over nothing goes wrong any more, a last good release is
offered, and all hosts must confirm it. Held then:

  every host runs the last release, and its slots hold signed images, byte by byte
  its boot flags are sane, and cgpt reads the same
  the update server and the hosts tell the same history
  no bad release was confirmed anywhere, and none that was signed was refused
  never were more hosts away at once than there are reboot slots
  no host reset by itself, and no program of ours met a bug
  nobody holds or waits for a reboot slot

A promise that is broken is printed with what breaks it, and the exit code is 1. What machines and
server said is kept in .cache/campaigns/. Emulated on two cores, the beginning takes about ten
minutes more and the end up to half an hour. Ctrl-C ends it, machines and all.

examples:
  sudo vm-tests/campaign                             an hour, with a seed of its own
  sudo vm-tests/campaign --minutes 10 --seed 4711    the first ten minutes of that one's faults"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    command = cli.parser(
        "vm-tests/campaign", "Let everything go wrong on a cluster of machines.", _EPILOG
    )
    command.add_argument("--minutes", type=_number(1, 24 * 60), default=60, metavar="N",
                         help="how long faults happen (default: %(default)s)")  # fmt: skip
    command.add_argument("--seed", type=_number(0, 10**9), metavar="N",
                         help="what all that is chosen comes from (default: another one "
                         "each time, which is printed)")  # fmt: skip
    command.add_argument("--machines", type=_number(3, 9), default=3, metavar="N",
                         help="how many; fewer than 3 cannot lose a member of etcd "
                         "(default: %(default)s)")  # fmt: skip
    command.set_defaults(run=run)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # machines are not left behind
    return cli.run(command, argv)


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return number


def run(options: Namespace) -> int:
    """Carry out a campaign; return 1 when a promise was broken."""
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    logs = LOGS / f"{datetime.now():%Y-%m-%d-%H%M}-seed-{seed}"  # noqa: DTZ005  for who started it
    book = Book()
    book.say("", f"seed {seed}: {options.minutes} minutes of faults on {options.machines} machines")
    with ExitStack() as ended:
        folder = Path(ended.enter_context(
            tempfile.TemporaryDirectory(dir="/var/tmp", prefix="update-agent-campaign-",
                                        ignore_cleanup_errors=True)
        ))  # fmt: skip
        campaign = _begun(ended, folder, book, seed, options.machines)
        reckoning = Reckoning(
            scene=campaign.scene, press=campaign.press, slots=SLOTS, folder=folder, logs=logs
        )  # fmt: skip
        try:
            campaign.happen(60.0 * options.minutes)
        except Exception:
            for host in campaign.hosts:
                with suppress(MachineError):
                    reckoning.keep_log(host)
            raise
        verdicts = reckoning.verdicts()
    print("\n".join(["", *reckoning.table(book), ""]))
    print("\n".join(line for it in verdicts for line in it.lines()))
    broken = sum(bool(it.complaints) for it in verdicts)
    if broken:
        print(f"\nwith the seed {seed}, {broken} of {len(verdicts)} promises were broken")
    print(f"\nwhat machines and server said is in {logs}")
    return 1 if broken else 0


# The campaign -------------------------------------------------------------------------------------


def _begun(ended: ExitStack, folder: Path, book: Book, seed: int, count: int) -> "Campaign":
    """Return a campaign whose machines are up, and follow a server that serves."""
    numbers = range(1, count + 1)
    workshop = Workshop(folder=folder)
    workshop.debian()
    (folder / "depot").mkdir()
    witness = Witness([f"web-{it}" for it in numbers], book.seen)
    middlebox = Middlebox(server=0, chance=_chance(seed, "middlebox"))
    depot = Depot(folder=folder / "depot", port=middlebox.port)
    press = Press(workshop=workshop, depot=depot, numbers=numbers, seed=seed)
    book.say("", "builds the first release")
    disk = workshop.disk(press.first())
    key = Key.make(folder)

    def new_machine(disk: Path, name: str, **more: Any) -> Machine:  # noqa: ANN401  passed on
        hears = partial(witness.hears, name)
        return Machine(disk=disk, folder=folder / name, key=key, name=name, hears=hears, **more)

    fleet = assembled(
        disk, depot, workshop, new_machine, settings=SETTINGS, numbers=numbers, way=middlebox.port
    )
    middlebox.server = fleet.reports
    scene = Scene(fleet, middlebox, ServerProcess(fleet), witness)
    ended.enter_context(middlebox.listening())
    scene.server.start()
    ended.callback(scene.server.kill)
    book.say("", f"starts {count} machines")
    ended.enter_context(fleet.up())
    press.boot = max(it.machine.patience() for it in fleet.hosts)
    campaign = Campaign(scene=scene, press=press, book=book, seed=seed)
    campaign.prepare()
    return campaign


def _chance(seed: int, of: str) -> random.Random:
    """Return a chance of its own for each part: none depends on how often another one asks."""
    return random.Random(f"{seed} {of}")  # noqa: S311  repeatable


@dataclass(kw_only=True)
class Campaign:
    """Faults and releases, and what became of them."""

    scene: Scene
    press: Press
    book: Book
    seed: int
    over: threading.Event = field(default_factory=threading.Event)
    """The time of faults."""

    @property
    def hosts(self) -> list[Host]:
        return self.scene.fleet.hosts

    def prepare(self) -> None:
        """Let hosts report and have a check of health; let the group have a reboot slot."""
        fleet = self.scene.fleet

        def given(host: Host) -> None:
            fleet.let_report(host)
            host.machine.put(HEALTH, "/etc/update-agent/health.d/50-sick", mode="755")

        together(fleet, given)
        fleet.ctl(f"lock slots {SLOTS}")
        until(lambda: len(self.standing()) == len(self.hosts), ENOUGH)

    # While it lasts

    def happen(self, length: float) -> None:
        """Let faults happen for so many seconds, while releases are offered."""
        planned = plan(_chance(self.seed, "faults"), length, len(self.hosts))
        self.book.say("", f"{len(planned)} faults are to come")
        releases = issues(_chance(self.seed, "releases"))
        work = [_thread(self._survived, self._publish, releases)]
        began = time.monotonic()
        for it in planned:
            time.sleep(max(0.0, began + it.at - time.monotonic()))  # the moment is what was chosen
            work.append(_thread(self._survived, self._commit, it))
        time.sleep(max(0.0, began + length - time.monotonic()))
        self.over.set()
        self.book.say("", "nothing goes wrong any more")
        for thread in work:
            thread.join()
        if self.book.errors:
            raise self.book.errors[0]
        self._end_well(next(releases))

    def _survived(self, work: Callable[[Any], None], it: Any) -> None:  # noqa: ANN401  passed on
        """Note that the campaign itself failed; it ends with that."""
        try:
            work(it)
        except Exception as error:  # noqa: BLE001  whatever it is
            self.book.say("", f"the campaign fails: {error}")
            self.book.errors.append(error)

    def _commit(self, it: Planned) -> None:
        """Let a fault begin, last, and end."""
        names = [self.hosts[at].machine.name for at in it.hosts]
        lasts = f" for {it.seconds:.0f} s" if it.seconds else ""
        self.book.say(", ".join(names) or "server", f"* {it.kind}{lasts}")
        fault = FAULTS[it.kind](self.scene, it)
        try:
            fault.__enter__()
        except MachineError:
            self.book.missed[it.kind] += 1
            self.book.say(", ".join(names), f"* {it.kind}: missed")
            return
        self.book.faults[it.kind] += 1
        time.sleep(it.seconds)  # how long it lasts is what was chosen
        fault.__exit__(None, None, None)

    def _publish(self, releases: Iterator[Issue]) -> None:
        """Offer a release after the other, each when the one before came to its end, or is late."""
        for issue in releases:
            self.press.make(issue)  # while hosts still have to do with the one before
            if self.press.made:
                self._wait_for(self.press.made[-1])
            if self.over.is_set():
                return
            self.book.say("server", f"offers {issue}")
            self.press.offer(issue)

    def _wait_for(self, issue: Issue) -> None:
        deadline = time.monotonic() + issue.patience
        while not self.over.is_set() and time.monotonic() < deadline:
            if self.scene.witness.wait_until(partial(_came_to_its_end, issue, self.names), LOOK):
                return
            self.attend()

    def attend(self) -> None:
        """Do what people do about what only they can end, as README's "The cluster" says."""
        for name, it in self.standing().items():
            if it["reason"] in PEOPLE_ACT:
                self.book.say(name, f"waits: {it['sentence']}; people look, and set the slots")
                self.book.people[it["reason"]] += 1
                with suppress(MachineError):
                    self.scene.fleet.ctl(f"lock slots {SLOTS}")
                return

    def standing(self) -> Mapping[str, Mapping[str, Any]]:
        """Return how hosts stand, as far as the update server knows and is there."""
        server = self.scene.server.now
        if server is None:
            return {}
        try:
            return {it["name"]: it for it in server.api("/v1/hosts")["hosts"]}
        except (requests.RequestException, AssertionError):
            return {}

    @property
    def names(self) -> list[str]:
        return [it.machine.name for it in self.hosts]

    # When it is over

    def _end_well(self, last: Issue) -> None:
        """Undo what is left of faults, offer a last good release, and wait until all have it."""
        together(self.scene.fleet, self._mend)
        good = Issue(version=last.version)
        self.press.make(good)
        self.book.say("server", f"offers {good}, the last one")
        self.press.offer(good)
        deadline = time.monotonic() + END
        ended = partial(_came_to_its_end, good, self.names)
        while time.monotonic() < deadline:
            if self.scene.witness.wait_until(ended, LOOK):
                break
            self.attend()

    def _mend(self, host: Host) -> None:
        make_room(host.machine)
        shell(host.machine, f"sudo date --set @{time.time():.0f}", ENOUGH)


def _came_to_its_end(issue: Issue, names: Sequence[str], witness: Witness) -> bool:
    """Return whether all hosts run a release, or one fell back from it."""
    running = witness.running
    everywhere = all(running.get(name) == issue.version for name in names)
    return everywhere or bool(witness.fell_back_from(issue.version))


def _thread(work: Callable[..., None], *words: object) -> threading.Thread:
    """Return a thread that works, and that dies with the program."""
    thread = threading.Thread(target=work, args=words, daemon=True)
    thread.start()
    return thread


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
