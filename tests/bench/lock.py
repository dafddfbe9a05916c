"""The reboot lock and etcd under it: how long a fleet takes that all wants to reboot at once.

    python -m tests.bench.lock              # everything
    python -m tests.bench.lock queue --hosts 1000 --slots 10 --hold 0.1
    python -m tests.bench.lock writes       # HTTP+JSON and TLS, one member, many clients
    python -m tests.bench.lock recovery     # kill -9 under load, and start again

The hosts stand in the queue of a frozen group, which then gets its slots. They are threads in some
processes, each with its own connections and notebook, as on machines of their own; here they share
the processors with etcd.
"""

import argparse
import asyncio
import base64
import contextlib
import datetime as dt
import json
import multiprocessing
import re
import secrets
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.bench import figures
from tests.bench.figures import Against, Figure, Found
from tests.bench.measure import BenchError
from tests.etcd import Cluster, cluster, until
from update_agent.core import semaphore
from update_agent.core.version import Version
from update_agent.host.etcd import Access, Etcd, Get
from update_agent.host.group import Edit, Group
from update_agent.host.lock import Lock, Me, Notebook

PROCESSES = 25
"""Of hosts: hundreds of threads that want one interpreter at once get nothing done."""
PATIENCE = 60.0
"""Seconds between two looks of a host that nobody calls."""


@dataclass(frozen=True)
class Turn:
    """What one host's turn took."""

    granted: float
    back: float
    requests: int
    writes: int
    races: int
    asked: int


# A fleet that wants to reboot --------------------------------------------------------------------


def _host(access: Access, folder: Path, number: int, hold: float) -> Turn:
    etcd = Etcd(access)
    group = Group(etcd, "bench")
    me = Me(host=f"{number:032x}", name=f"host-{number}", boot_id="boot", labels={})
    lock = Lock(
        group, me, Notebook(folder / f"{number}"),
        now=lambda: dt.datetime.now(dt.UTC), new_nonce=lambda: secrets.token_hex(16),
    )  # fmt: skip
    asked = 1
    while lock.acquire(Version("1.0.0"), Version("1.1.0")):
        lock.called(PATIENCE)
        asked += 1
    granted = time.monotonic()
    assert lock.confirm() is None
    time.sleep(max(0.0, granted + hold - time.monotonic()))
    back = time.monotonic()
    lock.release()
    etcd.close()
    return Turn(granted, back, etcd.sent, group.writes, group.races, asked)


def _in_process(
    numbers: range,
    work: Callable[[int], Turn],
    results: "multiprocessing.Queue[list[Turn]]",
) -> None:
    found: list[Turn] = []
    threading.stack_size(256 * 1024)
    threads = [threading.Thread(target=lambda at=at: found.append(work(at))) for at in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(found)


def spread(count: int, work: Callable[[int], Turn]) -> Callable[[], list[Turn]]:
    """Begin ``work`` for each number below ``count``, in threads of some processes.

    Returns what waits for them.
    """
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    each = -(-count // PROCESSES)
    parts = [range(at, min(at + each, count)) for at in range(0, count, each)]
    made = [context.Process(target=_in_process, args=(part, work, results)) for part in parts]
    for process in made:
        process.start()

    def ended() -> list[Turn]:
        found = [it for _ in made for it in results.get()]
        for process in made:
            process.join()
        assert len(found) == count, "a host failed: see above"
        return found

    return ended


def _open(group: Group, hosts: int, slots: int) -> None:
    """Thaw the group when all hosts stand in its queue."""
    until(lambda: group.look().waiting == hosts, 120)
    group.change(lambda it: Edit(semaphore=semaphore.change(it.semaphore, slots=slots)))


def queue(
    hosts: int, slots: int, hold: float, *, members: int = 1, tls: bool = False
) -> Iterator[Found]:
    """Let ``hosts`` reboot, ``slots`` at a time; yield the time against the ideal."""
    with (
        cluster(members, tls=tls) as etcds,
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
    ):
        with etcds.client(deadline=30.0) as etcd:
            Group(etcd, "bench").change(lambda _: Edit(semaphore=semaphore.Semaphore(slots=0)))
        access = etcds.access(deadline=30.0)
        work = spread(hosts, lambda at: _host(access, Path(folder), at, hold))
        with etcds.client(deadline=30.0) as etcd:
            _open(Group(etcd, "bench"), hosts, slots)
        turns = work()
        _most_at_once(turns, slots)
    grants = sorted(it.granted for it in turns)
    yield Figure(
        name=f"{hosts} hosts reboot, {slots} at a time, {hold:g} s each; {members} member(s)"
        f"{', TLS' * tls}: from the first grant to the last",
        value=grants[-1] - grants[0],
        unit="s",
        against=(Against(name="ideal", value=hosts / slots * hold),),
    )
    for name, values in (
        ("changes made to the slots", [it.writes for it in turns]),
        ("transactions that lost a race", [it.races for it in turns]),
        ("requests", [it.requests for it in turns]),
        ("watches", [it.asked - 1 for it in turns]),
    ):
        yield Figure(
            name=f"for each grant: {name}",
            value=statistics.mean(values),
            spread=(min(values), max(values)),
        )


def _most_at_once(turns: list[Turn], slots: int) -> None:
    """Hold that never more than ``slots`` hosts were away, by the one clock that they share."""
    away = 0
    for _, change in sorted([(it.granted, 1) for it in turns] + [(it.back, -1) for it in turns]):
        away += change
        assert away <= slots, f"{away} hosts at once"


# etcd by itself ----------------------------------------------------------------------------------


@dataclass
class Load:
    """Connections that write one key after the other, each waiting for its answer."""

    etcds: Cluster
    until: float
    acknowledged: set[str] = field(default_factory=set)

    async def client(self, number: int) -> None:
        member = urlsplit(self.etcds.members[0].client)
        reader, writer = await asyncio.open_connection(
            member.hostname, member.port, ssl=self._tls() if self.etcds.ca else None
        )
        count = 0
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while time.monotonic() < self.until:
                key = f"/bench/{number}/{count}"
                writer.write(_put(key))
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                assert length, head
                await reader.readexactly(int(length[1]))
                assert head.startswith(b"HTTP/1.1 200"), head
                self.acknowledged.add(key)
                count += 1
        writer.close()

    def _tls(self) -> ssl.SSLContext:
        access = self.etcds.access()
        context = ssl.create_default_context(cafile=access.ca)
        context.load_cert_chain(str(access.cert), access.key)
        return context

    async def run(self, clients: int) -> None:
        await asyncio.gather(*(self.client(it) for it in range(clients)))


def _put(key: str) -> bytes:
    body = json.dumps({
        "key": base64.b64encode(key.encode()).decode(),
        "value": base64.b64encode(b"x" * 100).decode(),
    }).encode()  # fmt: skip
    return b"POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def writes(seconds: float, clients: int = 64) -> Iterator[Found]:
    """Yield how many writes a second one member takes over HTTP+JSON, without TLS and with it."""
    plain: tuple[Against, ...] = ()
    for tls in (False, True):
        with cluster(1, tls=tls) as one:
            load = Load(one, time.monotonic() + seconds)
            asyncio.run(load.run(clients))
        rate = len(load.acknowledged) / seconds
        yield Figure(
            name=f"writes of 100 bytes as JSON over HTTP{'S' * tls}, {clients} connections",
            value=rate,
            unit="/s",
            against=plain,
        )
        plain = (Against(name="HTTP", value=rate),)


def recovery(seconds: float, clients: int = 64) -> Iterator[Found]:
    """Kill a member in the middle of writes, start it again, and look for what it acknowledged."""
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp") as folder,
        cluster(1, folder=Path(folder)) as one,
    ):
        load = Load(one, time.monotonic() + 10 * seconds)
        thread = threading.Thread(target=lambda: asyncio.run(load.run(clients)))
        thread.start()
        time.sleep(seconds)
        one.members[0].kill()
        thread.join()
        began = time.monotonic()
        one.start()
        took = time.monotonic() - began
        with one.client(deadline=30.0) as etcd:
            lost = sum(not etcd.get(Get(it)).found[0].count for it in load.acknowledged)
    killed = f"killed after {len(load.acknowledged):,} acknowledged writes on disk"
    yield Figure(name=f"{killed}: answers again after", value=took, unit="s")
    yield Figure(name=f"{killed}: lost", value=lost)
    if lost:
        raise BenchError(f"{lost} acknowledged writes are lost")


def command() -> argparse.ArgumentParser:
    """Return what the benchmark can be told."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench.lock", description=__doc__.partition("\n")[0]
    )
    made.add_argument("part", nargs="?", choices=("queue", "writes", "recovery"))
    made.add_argument("--hosts", type=int, default=1000)
    made.add_argument("--slots", type=int, default=10)
    made.add_argument("--hold", type=float, default=0.1)
    made.add_argument("--seconds", type=float, default=5.0)
    made.add_argument("--members", type=int, default=1)
    made.add_argument("--tls", action="store_true")
    return made


def measured(wanted: argparse.Namespace) -> Iterator[Found]:
    """Yield what the wanted parts find."""
    if wanted.part in (None, "queue"):
        yield from queue(
            wanted.hosts, wanted.slots, wanted.hold, members=wanted.members, tls=wanted.tls
        )
    if wanted.part in (None, "writes"):
        yield from writes(wanted.seconds)
    if wanted.part in (None, "recovery"):
        yield from recovery(wanted.seconds)


if __name__ == "__main__":
    sys.exit(figures.main(command(), measured))
