"""Reports a second that update-server keeps, from one process on loopback; and kill -9 under it.

python -m tests.bench.server [--seconds N] [--callers N] [--database URL]

Callers are hosts that post one report after the other, each waiting for its receipt. The server and
its callers share this machine. At the end the server is killed without warning, and what it has
is held against what it acknowledged.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sql

from tests.server.process import Server, host_named, report, serving
from update_agent.core import document
from update_agent.core.report import Batch, Waits
from update_agent.server import tables

_STATES = ("idle", "checking", "waiting", "installing", "waiting-to-reboot", "rebooting", "trial")
_PLACE = 10**15
"""A number that stands for a report's own."""


@dataclass
class Count:
    """What callers saw."""

    kept: dict[int, int] = field(default_factory=dict)
    """The newest acknowledged number of each host."""
    seconds: list[float] = field(default_factory=list)
    acknowledged: int = 0


def _bodies() -> list[bytes]:
    """Return a batch for each state, with placeholders; encoding each anew would cost us more."""
    wait = Waits(reason="wave", sentence="wave 3 opens this host's place at 14:05")
    made = (report(0, _PLACE, state=state, wait=wait) for state in _STATES)
    return [document.encode(Batch(reports=(it,))) for it in made]


async def call(server: Server, numbers: list[int], count: Count, until: float) -> None:
    """Be some hosts, one after the other, on one connection."""
    port = int(server.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/reports HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.tokens['hosts']}"
        "\r\nContent-Length: "
    ).encode()
    nobody, nothing = host_named(0).encode(), str(_PLACE).encode()
    sequence, bodies = 0, _bodies()
    while time.monotonic() < until:
        sequence += 1
        for number in numbers:
            began = time.monotonic()
            body = bodies[sequence % len(bodies)].replace(nobody, host_named(number).encode())
            body = body.replace(nothing, b"%d" % sequence)
            try:
                writer.write(b"%s%d\r\n\r\n%s" % (head, len(body), body))
                answer = await reader.readuntil(b"\n}\n")
            except (OSError, asyncio.IncompleteReadError):
                return
            assert answer.startswith(b"HTTP/1.1 200"), answer
            count.seconds.append(time.monotonic() - began)
            count.kept[number] = sequence
            count.acknowledged += 1
            if time.monotonic() >= until:
                break
    writer.close()


async def load(server: Server, callers: int, seconds: float, *, kill: bool) -> Count:
    """Let ``callers`` post for so long, and kill the server in the middle of it if wanted."""
    count, until = Count(), time.monotonic() + seconds
    tasks = [
        asyncio.create_task(
            call(server, list(range(it, it + 1000 * callers, callers)), count, until + kill * 30)
        )
        for it in range(callers)
    ]
    if kill:
        await asyncio.sleep(seconds)
        os.kill(server.popen.pid, signal.SIGKILL)
    await asyncio.gather(*tasks)
    return count


def processor_time(server: Server) -> float:
    """Return the seconds that the server has used, proc(5)."""
    parts = Path(f"/proc/{server.popen.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def lost(database: tables.Database, count: Count) -> int:
    """Return how many hosts' acknowledged reports the database does not have."""
    with database.read() as connection:
        rows = connection.execute(sql.select(tables.hosts.c.host, tables.hosts.c.sequence)).all()
    known: dict[str, int] = {row.host: row.sequence for row in rows}
    return sum(known.get(host_named(it), 0) < wanted for it, wanted in count.kept.items())


def main() -> int:
    """Print the figures."""
    command = argparse.ArgumentParser()
    command.add_argument("--seconds", type=float, default=10)
    command.add_argument("--callers", type=int, default=256)
    command.add_argument("--database")
    options = command.parse_args()
    words = ["--report-rate", "0"]
    words += ["--database", options.database] if options.database else []
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        folder = Path(name)
        with serving(folder, *words) as server:
            used = processor_time(server)
            count = asyncio.run(load(server, options.callers, options.seconds, kill=False))
            used = processor_time(server) - used
            _print("reports", count, options.seconds)
            print(f"the server's processor time: {used / count.acknowledged * 1e6:.0f} us a report")
            began = time.monotonic()
            count = asyncio.run(load(server, options.callers, options.seconds / 2, kill=True))
            took = time.monotonic() - began
        url = options.database or f"sqlite:///{folder / 'state/server.sqlite'}"
        missing = lost(tables.opened(url), count)
        print(f"killed after {took:.1f} s: {count.acknowledged} acknowledged, {missing} lost")
    return 1 if missing else 0


def _print(what: str, count: Count, seconds: float) -> None:
    taken = sorted(count.seconds)
    print(
        f"{datetime.now(UTC):%Y-%m-%d} {what}: {count.acknowledged / seconds:.0f}/s,"
        f" median {taken[len(taken) // 2] * 1000:.0f} ms, p99"
        f" {taken[len(taken) * 99 // 100] * 1000:.0f} ms, {len(count.kept)} hosts"
    )


if __name__ == "__main__":
    sys.exit(main())
