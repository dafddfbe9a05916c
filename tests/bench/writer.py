"""An installation through the writer's socket against ``update-agent-image apply`` from files.

The same payload, the same images, a file as disk; each several times in turn: the best times, and
the memory of both ends.

    python -m tests.bench.writer --size 300 --folder /var/tmp
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests import hosts, images
from tests.bench import figures
from tests.bench.figures import Against, Figure, Found
from tests.bench.images import trees
from tests.disks import Entry, flags, healthy
from tests.hosts import MIB, World
from update_agent.core.release import PayloadReference
from update_agent.core.wire import Range
from update_agent.host.identity import architecture
from update_agent.host.writer import Writer
from update_agent.writer.host import Host

TIMES = 3


def make(folder: Path, size: int) -> hosts.Fleet:
    """Publish two releases of ``size`` MB."""
    first, second = trees(size)
    old = images.release(folder, "v1", first, images.noise(MIB, "kernel 1"))
    new = images.release(folder, "v2", second, images.noise(MIB, "kernel 2"))
    releases = images.Releases(v1=old, v2=new, delta=new.full)
    return hosts.publish(folder / "fleet", releases)


def world(folder: Path, fleet: hosts.Fleet) -> World:
    """Return a host whose slots are large enough."""
    size = max(it.image.stat().st_size for it in (fleet.releases.v1, fleet.releases.v2))
    sectors = -(-size // MIB) * 2048
    a = replace(hosts.ROOT_A, first=2048, last=2048 + sectors - 1, attributes=flags(1, 0, ok=True))
    b = replace(hosts.ROOT_B, first=2048 + sectors, last=2048 + 2 * sectors - 1)
    esp = Entry(number=1, first=256, last=511)
    disk = healthy(512, (esp, a, b), sectors=4096 + 2 * sectors)
    path = disk.save(folder / "disk.img")
    host = Host(disk=path, booted=2, product="os", version=hosts.V1, architecture=architecture())
    made = World(folder=folder, fleet=fleet, host=host)
    made.put(MIB, fleet.releases.v1.content)
    return made


class Files(hosts.Gifts):
    """Payloads read range by range, as a daemon's memory bounds it."""

    def blob(self, payload: PayloadReference) -> "Files":
        self.file = (self.www / self.release.blob_path(payload)).open("rb")
        return self

    def give(self, span: Range, deliver: object) -> None:
        self.file.seek(span.blob_offset)
        deliver(span, bytearray(self.file.read(span.blob_length)))  # type: ignore[operator]


def through_the_writer(made: World, *, delta: bool) -> tuple[float, int, dict[str, int]]:
    """Install; return seconds, the writer's peak memory, and milliseconds by step."""
    gifts = made.fleet.payloads()
    files = Files(gifts.www, gifts.release, gifts.spoil)
    if not delta:
        made.put(MIB + 600, b"x")
    with made.program() as process:
        with Writer(made.address) as writer:
            writer.state()
        idle = _memory(process.pid)
        began = time.monotonic()
        done = made.install(files)
        took = time.monotonic() - began
        peak = _memory(process.pid)
    print(f"    writer before: {idle / 2**20:.0f} MiB", file=sys.stderr)
    return took, peak, dict(done.milliseconds)


def _memory(pid: int) -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def by_hand(made: World, folder: Path, *, delta: bool) -> tuple[float, int, dict[str, int]]:
    """Apply from files; return the same."""
    release = made.fleet.release()
    www = made.fleet.folder / "www"
    reference = next(it for it in release.payloads if bool(it.source) == delta)
    target = folder / "slot.img"
    target.unlink(missing_ok=True)
    words = ["--source", str(made.fleet.releases.v1.image)] if delta else []
    done = subprocess.run(
        [
            Path(sys.executable).with_name("update-agent-image"), "apply",
            "--index", www / release.index_path(reference), "--slot", target, "--json", *words,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    steps = {name: round(took * 1000) for name, took in said["seconds_by_step"].items()}
    return said["seconds"], said["peak_memory_bytes"], steps


def command() -> argparse.ArgumentParser:
    """Return what the benchmark can be told."""
    made = argparse.ArgumentParser(prog="python -m tests.bench.writer", description=__doc__)
    made.add_argument("--size", type=int, default=200, help="MB of an image (default 200)")
    made.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    return made


def measured(options: argparse.Namespace) -> Iterator[Found]:
    """Install both kinds of payload in both ways, and yield the best of each."""
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        fleet = make(folder, options.size)
        size = fleet.releases.v2.image.stat().st_size
        for kind in ("delta", "full"):
            ours, theirs = [], []
            for number in range(TIMES):
                place = folder / f"{kind}{number}"
                place.mkdir()
                made = world(place, fleet)
                theirs.append(by_hand(made, place, delta=kind == "delta"))
                ours.append(through_the_writer(made, delta=kind == "delta"))
                made.disk.unlink()
                (place / "slot.img").unlink()
            yield from _told(kind, size, min(ours, key=_seconds), min(theirs, key=_seconds))


Measured = tuple[float, int, dict[str, int]]


def _seconds(it: Measured) -> float:
    return it[0]


def _told(kind: str, size: int, ours: Measured, theirs: Measured) -> Iterator[Found]:
    for name, (_, _, steps) in (("writer", ours), ("apply", theirs)):
        said = ", ".join(f"{step} {ms} ms" for step, ms in steps.items())
        print(f"    {kind}, {name}: {said}", file=sys.stderr)
    yield Figure(
        name=f"{kind} payload through the writer, best of {TIMES}",
        value=size / ours[0] / 1e6,
        unit="MB/s",
        against=(Against(name="update-agent-image apply", value=size / theirs[0] / 1e6),),
    )
    yield Figure(
        name=f"{kind} payload, peak memory of the writer",
        value=ours[1] / MIB,
        unit="MiB",
        against=(Against(name="update-agent-image apply", value=theirs[1] / MIB),),
    )


if __name__ == "__main__":
    sys.exit(figures.main(command(), measured))
