"""Reports and polls a second that update-server takes, on loopback; and kill -9 under load.

python -m tests.bench.server [--seconds N] [--callers N] [--times N] [--postgres]

Callers are hosts that post one report after the other, each waiting for its receipt; polls of the
timestamp come from wrk (Debian's package). The server and its callers share this machine. Then the
server is killed without warning and started again, twice, while hosts go on making reports and keep
what is not acknowledged; at the end what they made is held against what the database has.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import sqlalchemy as sql

from tests.bench import figures
from tests.bench.figures import Figure, Found
from tests.bench.measure import BenchError
from tests.server.postgres import postgres
from tests.server.process import Server, host_named, report, serving
from update_agent.core import document
from update_agent.core.report import Batch, Waits
from update_agent.server import tables

_STATES = ("idle", "checking", "waiting", "installing", "waiting-to-reboot", "rebooting", "trial")
_PLACE = 10**15
"""A number that stands for a report's own."""
_TIMESTAMP = 525
"""Bytes of a real one."""
_AGAIN = 0.1
"""Seconds after which a caller that found nobody comes again."""
_HOSTS = 1000
"""That each caller is, one after the other."""


def _bodies() -> list[bytes]:
    """Return a batch for each state, with placeholders; encoding each anew would cost us more."""
    wait = Waits(reason="wave", sentence="wave 3 opens this host's place at 14:05")
    made = (report(0, _PLACE, state=state, wait=wait) for state in _STATES)
    return [document.encode(Batch(reports=(it,))) for it in made]


_BODIES = _bodies()
_NOBODY, _NOTHING = host_named(0).encode(), str(_PLACE).encode()


def _body(number: int, sequence: int) -> bytes:
    """Return the batch with one report of a host."""
    body = _BODIES[sequence % len(_BODIES)].replace(_NOBODY, host_named(number).encode())
    return body.replace(_NOTHING, b"%d" % sequence)


@dataclass
class Caller:
    """Some hosts, one after the other, on one connection; what is not acknowledged is kept."""

    port: int
    token: str
    first: int
    """Host; the others follow."""
    seconds: list[float] = field(default_factory=list)
    """That each acknowledged report took."""
    made: int = 0
    queue: deque[bytes] = field(default_factory=deque)

    async def run(self, until: float) -> None:
        """Make reports and post them, and in the end post what waits."""
        while time.monotonic() < until or self.queue:
            try:
                await self._connected(until)
            except (OSError, asyncio.IncompleteReadError):
                if time.monotonic() < until:
                    self._make()
                await asyncio.sleep(_AGAIN)

    async def _connected(self, until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            "POST /v1/reports HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            f"{self.token}\r\nContent-Length: "
        ).encode()
        try:
            while time.monotonic() < until or self.queue:
                if not self.queue:
                    self._make()
                began, body = time.monotonic(), self.queue[0]
                writer.write(b"%s%d\r\n\r\n%s" % (head, len(body), body))
                answer = await reader.readuntil(b"\n}\n")
                assert answer.startswith(b"HTTP/1.1 200"), answer
                self.seconds.append(time.monotonic() - began)
                self.queue.popleft()
        finally:
            writer.close()

    def _make(self) -> None:
        sequence, number = divmod(self.made, _HOSTS)
        self.queue.append(_body(self.first + number, sequence + 1))
        self.made += 1


def _callers(server: Server, count: int, first: int) -> list[Caller]:
    port = int(server.url.rpartition(":")[2])
    return [
        Caller(port, server.tokens["hosts"], first + it * _HOSTS) for it in range(count)
    ]  # fmt: skip


Amounts = dict[tuple[str, str], float]
"""What was found, by name and unit."""


def load(server: Server, callers: int, seconds: float) -> Amounts:
    """Return how many reports ``callers`` get acknowledged."""
    made = _callers(server, callers, first=1)

    async def run() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(it.run(until) for it in made))

    used = _processor_time(server)
    asyncio.run(run())
    used = _processor_time(server) - used
    taken = sorted(took for it in made for took in it.seconds)
    return {
        ("reports", "/s"): len(taken) / seconds,
        ("a report is acknowledged, median", "ms"): 1000 * taken[len(taken) // 2],
        ("a report is acknowledged, p99", "ms"): 1000 * taken[len(taken) * 99 // 100],
        ("processor time of a report", "us"): 1e6 * used / len(taken),
    }


def polls(server: Server, connections: int, seconds: float) -> Amounts:
    """Return how many polls of the timestamp are answered."""
    url = f"{server.url}/metadata/timestamp.json"
    tag = server.ask("HEAD", "/metadata/timestamp.json").headers["etag"]
    found: Amounts = {}
    for what, more in (("whole", []), ("not changed", ["-H", f"If-None-Match: {tag}"])):
        said = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", *more, url],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        rate = re.search(r"Requests/sec: *(\S+)", said)
        if not rate:
            raise BenchError(f"wrk said nothing of a rate: {said}")
        found[f"polls of the timestamp, {what}", "/s"] = float(rate[1])
    return found


def kills(
    folder: Path, words: list[str], tokens: dict[str, str], url: str, callers: int, seconds: float
) -> int:
    """Kill the server twice under load; return how many reports are lost."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(folder, *words, tokens=tokens))
        made = _callers(server, callers, first=1_000_000)
        words = [*words, "--port", str(made[0].port)]
        began = time.monotonic()

        async def run() -> None:
            tasks = [asyncio.create_task(it.run(began + seconds)) for it in made]
            killed = server
            for part in (1, 2):
                await asyncio.sleep(max(0.0, began + seconds * part / 3 - time.monotonic()))
                os.kill(killed.popen.pid, signal.SIGKILL)
                await asyncio.to_thread(killed.popen.wait)
                started = serving(folder, *words, tokens=tokens)
                killed = await asyncio.to_thread(stack.enter_context, started)
            await asyncio.gather(*tasks)

        asyncio.run(run())
    made_ones = sum(it.made for it in made)
    kept = _kept(url, first=1_000_000)
    print(
        f"    killed twice in {time.monotonic() - began:.0f} s: hosts made {made_ones} reports,"
        f" the database has {kept}",
        file=sys.stderr,
    )
    return made_ones - kept


def _processor_time(server: Server) -> float:
    """Return the seconds that the server has used."""
    used = psutil.Process(server.popen.pid).cpu_times()
    return used.user + used.system


def _kept(url: str, first: int) -> int:
    """Return how many reports of hosts from ``first`` on the database has."""
    database = tables.opened(url)
    with database.read() as connection:
        count = connection.scalar(
            sql.select(sql.func.count())
            .select_from(tables.events)
            .where(tables.events.c.host >= host_named(first))
        )
    database.close()
    return count or 0


@contextmanager
def _database(folder: Path, *, real_one: bool) -> Iterator[tuple[list[str], str]]:
    """Yield the server's words for a database, and its URL."""
    if not real_one:
        yield [], f"sqlite:///{folder / 'state/server.sqlite'}"
        return
    with postgres(folder, durable=True) as url:
        yield ["--database", url], url


def command() -> argparse.ArgumentParser:
    """Return what the benchmark can be told."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench.server", description=__doc__.partition("\n")[0]
    )
    made.add_argument("--seconds", type=float, default=10)
    made.add_argument("--callers", type=int, default=256)
    made.add_argument("--times", type=int, default=3)
    made.add_argument("--postgres", action="store_true", help="in place of SQLite")
    return made


def measured(options: argparse.Namespace) -> Iterator[Found]:
    """Yield the figures, of all times together."""
    runs: list[Amounts] = []
    lost = 0
    for _ in range(options.times):
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
            folder = Path(name)
            folder.chmod(0o755)  # PostgreSQL runs as a user of its own
            stamp = folder / "www/metadata/timestamp.json"
            stamp.parent.mkdir(parents=True)
            stamp.write_bytes(b" " * _TIMESTAMP)
            with _database(folder, real_one=options.postgres) as (words, url):
                words += ["--report-rate", "0"]
                with serving(folder, *words) as server:
                    runs.append(
                        load(server, options.callers, options.seconds)
                        | polls(server, options.callers // 4, options.seconds / 2)
                    )
                lost += kills(folder, words, server.tokens, url, options.callers, options.seconds)
    for name, unit in runs[0]:
        yield Figure.of(name, [run[name, unit] for run in runs], unit)
    yield Figure(name=f"reports lost, killed {2 * options.times} times", value=lost)
    if lost:
        raise BenchError(f"{lost} reports are lost")


if __name__ == "__main__":
    sys.exit(figures.main(command(), measured))
