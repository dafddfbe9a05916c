"""What is done on every host, all the time or in an instant: small things, each many times.

    flip      the boot choice changes, on a loop device
    decide    where a host stands in a rollout, and whether it is open
    plan      what is to be done for each chunk of a large image
    start     how long programs take to begin, beside a Python that does nothing
    idle      the daemon between two checks: memory, processor time, how often it wakes up

Daemon and writer are the real programs, on a bus of their own, with a small repository.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests import hosts, images
from tests.bench import figures
from tests.bench.figures import Against, Figure, Found
from tests.bench.measure import MEBI, BenchError, serve, wait_until
from tests.bus import ROOT, private_bus
from tests.disks import healthy, loop
from update_agent.core import payload, plan, slot
from update_agent.core.chunking import MAX_CHUNK
from update_agent.core.payload import Chunk, Index, Operation
from update_agent.core.rollout import Rollout, place
from update_agent.core.slot import SlotName, Slots
from update_agent.core.version import Version
from update_agent.host.disk import change_slots, open_disk

PARTS = ("flip", "decide", "plan", "start", "idle")
BIN = Path(sys.executable).parent
CHUNKS = 100_000
"""Of an image of 7 GB."""
_NOTHING = (sys.executable, "-c", "pass")
_SETTINGS = """\
[update]
repository = ["{url}"]
root = "{root}"
automatic = false
"""


# The boot choice ---------------------------------------------------------------------------------


def flip(times: int) -> Iterator[Found]:
    """Arm slot B and retire it again, on a loop device."""

    def arm(slots: Slots) -> Slots:
        return slot.arm(slots, SlotName.B)

    def retire(slots: Slots) -> Slots:
        return slot.retire(slots, SlotName.B)

    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        image = healthy(512).save(Path(name) / "disk.img")
        with loop(image) as device:
            took = []
            for edit in [arm, retire] * (times // 2):
                began = time.perf_counter()
                with open_disk(device, writable=True) as disk:
                    change_slots(disk, edit)
                took.append(1000 * (time.perf_counter() - began))
    yield Figure.of("flip of the boot choice on a loop device", took, "ms")


# Decisions ---------------------------------------------------------------------------------------


def decide(times: int) -> Iterator[Found]:
    """Ask whether a host is offered a release."""
    began = datetime(2026, 11, 23, 8, tzinfo=UTC)
    rollout = Rollout(started=began, waves=plan.read("1%:1h 10%:4h 50%:8h 100%:12h"))
    now, version = began + timedelta(hours=9), Version("1.1.0")

    def asked() -> None:
        for number in range(1000):
            rollout.is_open(place(f"{number:032x}", "os", version), now)

    yield Figure.of("one host's rollout decided", [1e3 * it for it in _times(asked, times)], "us")


def make_index(chunks: int) -> tuple[bytes, dict[bytes, int]]:
    """Return a large index, and where in the booted slot nine in ten of its chunks stand."""
    length, stored = MAX_CHUNK // 16, MAX_CHUNK // 40
    digests = [number.to_bytes(32) for number in range(chunks)]
    index = Index.of(
        (
            Chunk(
                Operation.ZSTD, length, number * length, digest,
                blob_offset=number * stored, stored_length=stored,
            )
            for number, digest in enumerate(digests)
        ),
        image_size=chunks * length, blob_size=chunks * stored, root_hash=bytes(32),
    )  # fmt: skip
    return index.encode(), {it: at * length for at, it in enumerate(digests) if at % 10}


def planned(chunks: int, times: int) -> Iterator[Found]:
    """Plan an update of a large image, in the steps that a host takes."""
    data, booted = make_index(chunks)
    index = payload.decode(data)
    made = payload.plan(index, booted=booted)
    for what, work in (
        ("index read and checked", lambda: payload.decode(data)),
        ("planned", lambda: payload.plan(index, booted=booted)),
        ("totals", made.totals),
        ("batches", lambda: list(made.batches())),
    ):
        took = [1000 * it for it in _times(work, times)]
        yield Figure.of(f"{chunks:,} chunks: {what}", took, "ms")


def _times(work: Callable[[], object], times: int) -> list[float]:
    """Return the seconds that ``work`` takes each time."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return took


# Programs ----------------------------------------------------------------------------------------


def start(times: int, environment: dict[str, str]) -> Iterator[Found]:
    """Start programs in turn with a Python that does nothing."""
    ctl = str(BIN / "update-agentctl")
    commands: dict[str, Sequence[str]] = {
        "update-agentctl status": (ctl, "status"),
        "update-agentctl --help": (ctl, "--help"),
        "update-agentctl --version": (ctl, "--version"),
        "import of the daemon": (sys.executable, "-c", "import update_agent.agent.main"),
        "import of the writer": (sys.executable, "-c", "import update_agent.writer.main"),
    }
    took: dict[str, list[float]] = {name: [] for name in ("", *commands)}
    for number in range(times + 1):
        for name, words in {"": _NOTHING, **commands}.items():
            began = time.perf_counter()
            subprocess.run(words, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
            if number:  # the first one warms the caches
                took[name].append(1000 * (time.perf_counter() - began))
    nothing = Figure.of("python3 -c pass", took.pop(""), "ms")
    yield nothing
    for name, each in took.items():
        yield Figure.of(name, each, "ms", Against(name=nothing.name, value=nothing.value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A daemon and its writer, and how to reach them."""

    daemon: int
    writer: int
    environment: dict[str, str]


@contextmanager
def pair() -> Iterator[Pair]:
    """Run a daemon that has asked the repository once, and its writer."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        folder.chmod(0o755)
        bus = stack.enter_context(private_bus())
        fleet = hosts.publish(folder / "fleet", images.make_releases(folder))
        server = stack.enter_context(serve(fleet.folder / "www", folder))
        made = hosts.make_world(folder, fleet)
        settings = folder / "of-the-daemon"
        settings.mkdir()
        url = server.url(fleet.folder / "www")
        (settings / "a.toml").write_text(_SETTINGS.format(url=url, root=fleet.root))
        environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
        writer = stack.enter_context(made.program())
        daemon = subprocess.Popen(
            [
                sys.executable, "-m", "tests.bench.idle",
                settings, folder / "of-the-daemon", made.address,
            ],
            cwd=ROOT, env=environment, stderr=(folder / "log").open("w"),
        )  # fmt: skip
        try:
            found = Pair(daemon=daemon.pid, writer=writer.pid, environment=environment)
            wait_until("the daemon on the bus", lambda: _ctl(found, "why") or bool(daemon.poll()))
            if not _ctl(found, "check"):
                raise BenchError(f"the daemon cannot check: {(folder / 'log').read_text()}")
            yield found
        finally:
            daemon.kill()
            daemon.wait()


def _ctl(it: Pair, verb: str) -> bool:
    done = subprocess.run(
        [BIN / "update-agentctl", verb], cwd=ROOT, env=it.environment, capture_output=True,
        check=False,
    )  # fmt: skip
    return done.returncode == 0


def idle(it: Pair, seconds: float) -> Iterator[Found]:
    """Watch the daemon while nothing happens; a writer that nobody asks ends by itself."""
    for name, pid in (("daemon", it.daemon), ("writer, until it ends", it.writer)):
        yield Figure(name=f"idle {name}: memory", value=_memory(pid) / MEBI, unit="MiB")
    time.sleep(1)  # what the check left behind is done
    used, woken = _used(it.daemon), _woken(it.daemon)
    time.sleep(seconds)
    hours = seconds / 3600
    used, woken = _used(it.daemon) - used, _woken(it.daemon) - woken
    yield Figure(name="idle daemon: processor time in an hour", value=used / hours, unit="s")
    yield Figure(name="idle daemon: wakes up in an hour", value=woken / hours, unit="times")


def _memory(pid: int) -> int:
    """Return the bytes that are resident."""
    return _status(Path(f"/proc/{pid}"), r"VmRSS:\s*(\d+) kB") * 1024


def _used(pid: int) -> float:
    """Return the seconds of a processor that all threads have used."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((it / "schedstat").read_text().split()[0]) for it in threads) / 1e9


def _woken(pid: int) -> int:
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(_status(it, r"\nvoluntary_ctxt_switches:\s*(\d+)") for it in threads)


def _status(process: Path, pattern: str) -> int:
    found = re.search(pattern, (process / "status").read_text())
    return int(found[1]) if found else 0


# The command -------------------------------------------------------------------------------------


def command() -> argparse.ArgumentParser:
    """Return what the benchmark can be told."""
    made = argparse.ArgumentParser(
        prog="python -m tests.bench.host",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all unless named")
    made.add_argument("--times", type=int, default=20, help="of each small thing (20)")
    made.add_argument("--chunks", type=int, default=CHUNKS, help=f"of an index ({CHUNKS})")
    made.add_argument("--seconds", type=float, default=60, help="to watch who is idle (60)")
    return made


def measured(options: argparse.Namespace) -> Iterator[Found]:
    """Yield what the wanted parts find."""
    wanted = options.parts or PARTS
    if "flip" in wanted:
        yield from flip(options.times)
    if "decide" in wanted:
        yield from decide(options.times)
    if "plan" in wanted:
        yield from planned(options.chunks, max(3, options.times // 4))
    if {"start", "idle"} & set(wanted):
        with pair() as both:
            if "start" in wanted:
                yield from start(options.times, both.environment)
            if "idle" in wanted:
                yield from idle(both, options.seconds)


if __name__ == "__main__":
    sys.exit(figures.main(command(), measured))
