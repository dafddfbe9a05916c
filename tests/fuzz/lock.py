"""Hosts that reboot, crash and are forced, over members of etcd that fail; then a look at it all.

At least fifty hosts acquire, confirm and release at random, are silent, begun anew and rebooted in
between, while operators change the rules and force holders out, and members are killed, paused, cut
off and lose their leadership. ``violations`` then reads every value that the group's key ever had:

* no holder was added beyond the slots there were, beside another of its rack, or beside another
  member of etcd;
* no holder's nonce or name was exchanged for another's;
* nobody was removed but by itself or by an operator who named it, and of those who had confirmed
  the last leaves a trace of its return; who had not even taken what it was offered, by anybody.

And hosts that were let through to reboot are counted by themselves, without etcd.

    python -m tests.fuzz.lock --operations 20000 --seed 1
"""

import argparse
import contextlib
import itertools
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.etcd import Cluster, cluster, until
from tests.locks import Host, RealClock, held, rule
from update_agent.core import semaphore
from update_agent.core.semaphore import Semaphore
from update_agent.host.etcd import Etcd, EtcdError, UnclearError
from update_agent.host.group import PREFIX, Group, force

MOST = 10
"""Reboot slots at most."""
_LEASE = 3
"""Seconds after which a host that is silent has left the queue, or lets an offer lapse."""
GROUP = "fuzz"


# The judge ---------------------------------------------------------------------------------------


def violations(
    history: Iterable[Semaphore], *, released: Iterable[str], forced: Iterable[str]
) -> list[str]:
    """Return what is wrong in the values that a group's key had, the oldest first.

    ``released`` and ``forced`` are nonces: of hosts that set out to release, and that operators set
    out to force.
    """
    wrong: list[str] = []
    itself, named = set(released), set(forced)
    values = list(history)
    for at, (before, after) in enumerate(itertools.pairwise(values), 1):
        wrong += [f"value {at}: {it}" for it in _added(before, after)]
        wrong += [f"value {at}: {it}" for it in _removed(before, after, itself, named)]
    return wrong


def _added(before: Semaphore, after: Semaphore) -> Iterable[str]:
    new = set(after.holders) - set(before.holders)
    if new and len(after.holders) > after.slots:
        yield f"{len(after.holders)} holders of {after.slots} slots"
    for host in new:
        mine = after.holders[host]
        others = [it for key, it in after.holders.items() if key != host]
        for label in after.apart:
            if any(it.labels.get(label) == mine.labels.get(label) for it in others):
                yield f"{mine.name} is not the only one with its {label}"
        if mine.member and any(it.member for it in others):
            yield f"{mine.name} is not the only member of etcd"
        if mine.confirmed:
            yield f"{mine.name} was confirmed before it held anything"


def _removed(
    before: Semaphore, after: Semaphore, itself: set[str], named: set[str]
) -> Iterable[str]:
    gone = {it.nonce for host, it in before.holders.items() if host not in after.holders}
    for host, held_before in before.holders.items():
        now, nonce = after.holders.get(host), held_before.nonce
        if now and now.nonce != nonce:
            yield f"{held_before.name} was exchanged for another"
        if now or nonce in named:
            continue
        if nonce not in itself and not semaphore.is_offer(held_before):
            yield f"{held_before.name} was removed by somebody else"
        elif held_before.confirmed and (not after.released or after.released.nonce not in gone):
            yield f"{held_before.name} had confirmed, and left no trace"


def offers(history: Sequence[Semaphore]) -> int:
    """Return how many reboot slots were offered."""
    return sum(
        semaphore.is_offer(it) and host not in before.holders
        for before, after in itertools.pairwise(history)
        for host, it in after.holders.items()
    )


class _Withdrawals(logging.Handler):
    """Counts what hosts say that they withdrew."""

    def __init__(self, run: "Run") -> None:
        super().__init__()
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        self._run.counts["withdrawn"] += record.getMessage().startswith("withdrawn")


def history_of(etcd: Etcd, group: str, first: int) -> list[Semaphore]:
    """Return all values that a group's key had from a revision on."""
    last = Group(etcd, group).look().changed
    values: list[Semaphore] = []
    with contextlib.closing(etcd.watch(f"{PREFIX}{group}/reboot", first, seconds=60)) as events:
        for event in (it for some in events for it in some):
            assert event.value is not None
            values.append(semaphore.decode(event.value, group))
            if event.revision == last:
                return values
    raise AssertionError("the watch ended before the last value")


# The players -------------------------------------------------------------------------------------


@dataclass
class Run:
    """What all players share."""

    cluster: Cluster
    operations: int
    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    released: set[str] = field(default_factory=set)
    forced: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    """Nonces of hosts that operators tried to force, with success or not."""
    away: dict[str, str] = field(default_factory=dict)
    """Nonces of hosts that were let through to reboot, and are not back."""
    most_away: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    errors: list[BaseException] = field(default_factory=list)

    def took(self, what: str) -> bool:
        """Count an operation; return whether there are more to do."""
        with self.lock:
            self.counts[what] += 1
            self.counts["operations"] += 1
            return self.counts["operations"] < self.operations

    def leaves(self, host: Host) -> None:
        """Note that a host was let through. One that was forced out is not counted on."""
        nonce = str(host.lock._book.note.nonce)
        with self.lock:
            assert nonce not in self.released, "it set out to release, and was let through"
            self.away[nonce] = host.id
            here = [it for it in self.away if it not in self.named]
            self.most_away = max(self.most_away, len(here))

    def returns(self, host: Host) -> None:
        nonce = str(host.lock._book.note.nonce)
        with self.lock:
            self.released.add(nonce)
            self.away.pop(nonce, None)


def play(run: Run, host: Host, random: Random) -> None:
    """Be a host until there is no more to do."""
    more, holds = True, False
    while more:
        what = random.choice(_HOLDING if holds else _WANTING)
        more = run.took(what)
        try:
            holds = _step(run, host, what, holds=holds)
            if not holds:
                host.lock.called(random.uniform(0.1, 1.0))
        except UnclearError:
            run.counts["unclear"] += 1
        except EtcdError:
            run.counts["unreachable"] += 1


_WANTING = (*["acquire"] * 20, "confirm", "release", "restart", "reboot", "silence")
_HOLDING = ("acquire", "confirm", "confirm", "confirm", "release", "release", "restart", "reboot")


def _step(run: Run, host: Host, what: str, *, holds: bool) -> bool:
    """Take a step; return whether the host holds something now, as far as it knows."""
    match what:
        case "acquire":
            why = host.acquire()
            run.counts[f"wait: {why}" if why else "grants"] += why is not None or not holds
            return why is None
        case "confirm":
            through = host.confirm() is None
            if through:
                run.counts["confirmed"] += 1
                run.leaves(host)
            return through
        case "release":
            run.returns(host)
            host.release()
            return False
        case "silence":
            run.ended.wait(2 * _LEASE)
        case "restart":
            host.restart()
        case _:
            host.reboot()
    return holds


def operate(run: Run, random: Random) -> None:
    """Be operators: change the rules, and force out whom they looked at."""
    with run.cluster.client(deadline=2.0) as etcd:
        while not run.ended.wait(random.uniform(0.05, 0.2)):
            with contextlib.suppress(EtcdError):
                if random.random() < 0.5:
                    rule(
                        etcd,
                        random.choice((0, *range(1, MOST + 1), *range(1, MOST + 1))),
                        group=GROUP,
                        apart=("rack",),
                    )
                    continue
                view = Group(etcd, GROUP).look()
                if view.semaphore and view.semaphore.holders:
                    host = random.choice(sorted(view.semaphore.holders))
                    _force(run, etcd, host, view.semaphore.holders[host].nonce, view.changed)


def _force(run: Run, etcd: Etcd, host: str, nonce: str, revision: int) -> None:
    """Force a host out. Only what was refused for certain cannot have removed it."""
    with run.lock:
        run.named.add(nonce)
    refused = False
    try:
        refused = force(Group(etcd, GROUP), host, revision) is not None
    finally:
        run.counts["force refused" if refused else "forced"] += 1
        if not refused:
            run.forced.add(nonce)


def disturb(run: Run, random: Random) -> None:
    """Be bad luck: one member at a time is killed, paused, cut off, or loses its leadership."""
    while not run.ended.wait(random.uniform(0.1, 0.5)):
        at = random.randrange(len(run.cluster.members))
        member = run.cluster.members[at]
        what = random.choice(("kill", "pause", "cut", "leader"))
        run.counts[f"fault: {what}"] += 1
        match what:
            case "kill":
                member.kill()
                run.ended.wait(random.uniform(0.1, 1.0))
                member.start()
            case "pause":
                member.pause()
                run.ended.wait(random.uniform(0.1, 2.0))
                member.go_on()
            case "cut":
                run.cluster.cut(at)
                run.ended.wait(random.uniform(0.1, 2.0))
                run.cluster.mend(at)
            case _:
                leader = run.cluster.leader()
                run.cluster.members[leader].pause()
                run.ended.wait(1.0)
                run.cluster.members[leader].go_on()


def _chance(seed: int, of: object) -> Random:
    return Random(f"{seed} {of}")  # noqa: S311


def _guarded(run: Run, work: object, *words: object) -> None:
    assert callable(work)
    try:
        work(run, *words)
    except BaseException as error:  # noqa: BLE001
        run.errors.append(error)


def fuzz(operations: int, seed: int, *, hosts: int = 60) -> tuple[Run, list[str]]:
    """Play, and return what was counted and what was wrong."""
    with (
        cluster(3, tls=True, namespaces=True) as three,
        tempfile.TemporaryDirectory(dir=three.folder) as folder,
        three.client(deadline=30.0) as etcd,
    ):
        run = Run(three, operations, seed)
        handler = _Withdrawals(run)
        logging.getLogger("update_agent").addHandler(handler)
        rule(etcd, 3, group=GROUP, apart=("rack",))
        first = Group(etcd, GROUP).look().changed
        players = [
            Host(
                it, three.access(deadline=2.0), Path(folder), group=GROUP,
                labels={"rack": str(it % 13)}, member=it % 20 == 0, lease=_LEASE,
                monotonic=RealClock(),
            )
            for it in range(hosts)
        ]  # fmt: skip
        threads = [
            threading.Thread(target=_guarded, args=(run, play, it, _chance(seed, it.number)))
            for it in players
        ]
        others = [
            threading.Thread(target=_guarded, args=(run, work, _chance(seed, work.__name__)))
            for work in (operate, disturb)
        ]
        for thread in (*threads, *others):
            thread.start()
        for thread in threads:
            thread.join()
        run.ended.set()
        for thread in others:
            thread.join()
        logging.getLogger("update_agent").removeHandler(handler)
        if run.errors:
            raise run.errors[0]
        three.ready()
        return run, _judged(run, etcd, players, first)


def _judged(run: Run, etcd: Etcd, players: Sequence[Host], first: int) -> list[str]:
    """Let all come back, and return what was wrong."""
    for host in players:
        run.returns(host)
        until(lambda host=host: _came_back(host))
        host.etcd.close()
    history = history_of(etcd, GROUP, first)
    run.counts["values"] = len(history)
    run.counts["offers"] = offers(history)
    wrong = violations(history, released=run.released, forced=run.forced)
    if run.most_away > MOST:
        wrong.append(f"{run.most_away} hosts were away at once, of at most {MOST}")
    if left := held(etcd, GROUP).holders:
        wrong.append(f"{len(left)} holders are left after all came back")
    return wrong


def _came_back(host: Host) -> bool:
    try:
        host.release()
    except EtcdError:
        return False
    return True


def figures(run: Run, wrong: Sequence[str], seconds: float) -> str:
    """Return a line for people."""
    counts = run.counts
    faults = {it.removeprefix("fault: "): n for it, n in counts.items() if it.startswith("fault")}
    return (
        f"lock: {counts['operations']} operations of 60 hosts in {seconds:.0f} s (seed {run.seed}):"
        f" {counts['grants']} granted, {counts['confirmed']} confirmed,"
        f" {counts['offers']} offered, {counts['withdrawn']} offers withdrawn,"
        f" at most {run.most_away} away,"
        f" {counts['forced']} forced, {counts['force refused']} times too late for it,"
        f" {counts['restart'] + counts['reboot']} crashes;"
        f" {sum(faults.values())} faults {faults}; {counts['unclear']} unclear outcomes,"
        f" {counts['unreachable']} times no answer; {counts['values']} values judged,"
        f" violations: {len(wrong)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    began = time.monotonic()
    run, wrong = fuzz(wanted.operations, wanted.seed)
    print(figures(run, wrong, time.monotonic() - began))
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
