"""How long each page takes with 100,000 hosts, and how large it is.

python -m tests.bench.pages [--hosts N]
"""

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import requests

from tests import publisher
from tests.publisher import Team
from tests.server.process import PATIENCE, Server, host_named, serving
from tests.server.town import NEW, OLD, Town, town
from update_agent.core.report import Waits
from update_agent.server import figures, tables

_TIMES = 9
_BATCH = 5000


def fill(here: Town, count: int) -> None:
    """Let so many hosts be in the middle of a rollout: a third has it, some failed, most wait."""
    end = datetime.now(UTC).replace(microsecond=0)
    here.now = end - timedelta(days=1)
    here.promote("1%:1h 10%:4h@+3h 100%:1d@+9h")
    for begin in range(1, count, _BATCH):
        here.hosts(range(begin, min(begin + _BATCH, count + 1)), version=OLD)
    wait = Waits(reason="wave", sentence="the wave up to 100 % opens this host's place at 14:05")
    third = count // 3
    for begin in range(1, third, _BATCH):
        here.now += timedelta(days=1) / (third / _BATCH + 1)
        here.ended(range(begin, min(begin + _BATCH, third)), "confirmed")
    here.now = end
    for cause in range(40):
        here.ended(range(third + cause * 5, third + cause * 5 + 5), "fell-back", f"cause {cause}")
    for begin in range(third + 200, count, _BATCH):
        here.hosts(
            range(begin, min(begin + _BATCH, count + 1)), version=OLD, state="waiting", wait=wait
        )
    with here.site.database.begin() as connection:
        insert = here.site.database.insert(tables.samples)
        now = int(end.timestamp())
        for past in range(now - 7 * 86400, now, figures.SAMPLED):
            time = past - past % figures.SAMPLED
            share = max(0, past - now + 86400) / 86400 / 3
            rows = [(OLD, 1 - share), (NEW, share)]
            connection.execute(
                insert.on_conflict_do_nothing(),
                [
                    {"channel": "stable", "time": time, "version": v.text, "hosts": int(count * s)}
                    for v, s in rows
                ],
            )


def measure(server: Server) -> None:
    """Print how long and how large each page is."""
    browser = requests.Session()
    browser.post(
        f"{server.url}/login", {"token": server.tokens["operators"]}, timeout=PATIENCE
    ).raise_for_status()
    for path in (
        "/", "/channels/stable", "/hosts", "/hosts?search=web-77&state=waiting",
        "/hosts?channel=stable&version=1.1.0", f"/hosts/{host_named(7)}", "/audit", "/metrics",
    ):  # fmt: skip
        took, size = [], 0
        for _ in range(_TIMES):
            began = time.perf_counter()
            answer = browser.get(server.url + path, timeout=PATIENCE)
            took.append(time.perf_counter() - began)
            answer.raise_for_status()
            size = len(answer.content)
        middle = sorted(took)[_TIMES // 2]
        print(f"{path:40} {middle * 1000:5.0f} ms  {size / 1000:6.1f} kB")


def main() -> int:
    """Print the figures."""
    command = argparse.ArgumentParser()
    command.add_argument("--hosts", type=int, default=100_000)
    options = command.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        team = Team(folder)
        team.do("init", "--online-keys", team.online, keys=[team.offline])
        for number, version in ((1, "1.0.0"), (2, "1.1.0")):
            team.do(*team.release(publisher.image(folder, number), version))
        team.do("channel", "create", "stable", "--product", "os")
        team.do("channel", "promote", "stable", "1.0.0")
        state = folder / "state"
        state.mkdir()
        began = time.perf_counter()
        with town(team, state) as here:
            fill(here, options.hosts)
        size = (state / "server.sqlite").stat().st_size
        print(
            f"{options.hosts:,} hosts, written in {time.perf_counter() - began:.0f} s,"
            f" {size / 1e6:.0f} MB"
        )
        with serving(folder) as server:
            measure(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
