"""How long each page takes with 100,000 hosts, and how large it is.

python -m tests.bench.pages [--hosts N]
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import requests

from tests.server import scene
from tests.server.process import PATIENCE, Server, host_named, serving

_TIMES = 9


def measure(server: Server) -> None:
    """Print how long and how large each page is."""
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
        began = time.perf_counter()
        scene.prepare(folder, options.hosts)
        size = (folder / "state/server.sqlite").stat().st_size
        print(
            f"{options.hosts:,} hosts, written in {time.perf_counter() - began:.0f} s,"
            f" {size / 1e6:.0f} MB"
        )
        with serving(folder) as server:
            measure(server)
    return 0


if __name__ == "__main__":
    sys.exit(main())
