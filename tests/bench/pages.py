"""How long each page takes with 100,000 hosts, and how large it is.

python -m tests.bench.pages [--hosts N]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.bench import figures
from tests.bench.figures import Figure, Found
from tests.server import scene
from tests.server.process import PATIENCE, Server, host_named, serving

_TIMES = 9


def pages(server: Server) -> Iterator[Found]:
    """Yield how long each page takes and how large it is."""
    browser = requests.Session()
    browser.post(
        f"{server.url}/login", {"token": server.tokens["operators"]}, timeout=PATIENCE
    ).raise_for_status()
    for path in (
        "/", "/channels/stable", "/hosts", "/hosts?search=web-77&state=waiting",
        "/hosts?channel=stable&version=1.1.0", f"/hosts/{host_named(scene.STORY)}", "/audit",
        "/metrics",
    ):  # fmt: skip
        took, size = [], 0
        for _ in range(_TIMES):
            began = time.perf_counter()
            answer = browser.get(server.url + path, timeout=PATIENCE)
            took.append(1000 * (time.perf_counter() - began))
            answer.raise_for_status()
            size = len(answer.content)
        yield Figure.of(f"{path}, {size / 1000:.0f} kB", took, "ms")


def command() -> argparse.ArgumentParser:
    """Return what the benchmark can be told."""
    made = argparse.ArgumentParser(prog="python -m tests.bench.pages", description=__doc__)
    made.add_argument("--hosts", type=int, default=100_000)
    return made


def measured(options: argparse.Namespace) -> Iterator[Found]:
    """Write a fleet, and look at its pages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        scene.prepare(folder, options.hosts)
        took = time.perf_counter() - began
        print(f"    {options.hosts:,} hosts, written in {took:.0f} s", file=sys.stderr)
        size = (folder / "state/server.sqlite").stat().st_size
        yield Figure(name=f"database of {options.hosts:,} hosts", value=size / 1e6, unit="MB")
        with serving(folder) as server:
            yield from pages(server)


if __name__ == "__main__":
    sys.exit(figures.main(command(), measured))
