"""``update-agent-image apply`` killed with SIGKILL, at moments that its own work decides.

Either by whoever watches the slot, as soon as so many batches stand in it, while others are being
fetched, decoded and written; or by strace, which lets the process die at its n-th write or flush.
Nothing waits for a time to pass.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import pytest

from tests.disks import loop
from tests.images import BLOCK, MARKER, Releases
from update_agent.core import payload
from update_agent.core.payload import Batch
from update_agent.host import slot
from update_agent.host.device import open_device
from update_agent.publish.payload import Made

PROGRAM = "from update_agent.publish.image import main; raise SystemExit(main())"
KILLS = 15


def apply(*words: str | Path, under: tuple[str | Path, ...] = ()) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*under, sys.executable, "-c", PROGRAM, "apply", *words, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# Killed when the slot shows progress --------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    """Serves a payload with ranges."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]

    def do_GET(self) -> None:
        data = self.files[self.path]
        first, end = 0, len(data)
        if asked := self.headers.get("Range"):
            low, high = asked.removeprefix("bytes=").split("-")
            first, end = int(low), int(high) + 1
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - first))
        self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        self.end_headers()
        try:
            self.wfile.write(data[first:end])
        except OSError:  # its reader was killed
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(made: Made) -> Iterator[str]:
    """Serve a payload; yield the URL of its index."""
    files = {f"/{it.name}": it.read_bytes() for it in (made.index, made.blob)}
    handler = type("Handler", (_Handler,), {"files": files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/{made.index.name}"
        finally:
            server.shutdown()
            thread.join()


class Watch:
    """Sees which batches stand in a slot that was zeros before."""

    def __init__(self, path: Path, releases: Releases) -> None:
        self._path = path
        self._content = releases.v2.content
        self._probes = {
            batch: at
            for batch in payload.plan(releases.v2.index).batches()
            if (at := self._last_block_that_is_not_zeros(batch)) is not None
        }

    def _last_block_that_is_not_zeros(self, batch: Batch) -> int | None:
        for at in range(batch.offset + batch.length - BLOCK, batch.offset, -BLOCK):
            if any(self._content[at : at + BLOCK]):
                return at
        return None

    def seen(self) -> set[Batch]:
        with self._path.open("rb") as file:
            return {
                batch
                for batch, at in self._probes.items()
                if os.pread(file.fileno(), BLOCK, at) == self._content[at : at + BLOCK]
            }

    def __len__(self) -> int:
        return len(self._probes)


@pytest.mark.case(48)
@pytest.mark.parametrize("kind", ["file", "loop-device"])
def test_killed_at_any_moment_of_a_download_it_keeps_what_was_written_and_ends_right(
    kind: str, releases: Releases, tmp_path: Path
) -> None:
    """Installed again and again, until it was killed so many times."""
    chance = Random(48)  # noqa: S311  must repeat, need not be secret
    path = tmp_path / "slot"
    watch = Watch(path, releases)
    assert len(watch) > 4
    killed = 0
    with serving(releases.v2.full) as url:
        while killed < KILLS:
            path.write_bytes(bytes(len(releases.v2.content)))
            with loop(path) if kind == "loop-device" else nullcontext(path) as target:
                while kill_when(watch, chance, apply("--index", url, "--slot", target)):
                    killed += 1
                    hold_kept(watch, releases, target)
            assert path.read_bytes() == releases.v2.content


def kill_when(watch: Watch, chance: Random, process: "subprocess.Popen[str]") -> bool:
    """Kill the process when it wrote so many batches more; say whether it was killed in time."""
    wanted = len(watch.seen()) + chance.randrange(1, 4)
    while process.poll() is None and len(watch.seen()) < wanted:
        pass
    process.kill()
    _, err = process.communicate()
    assert process.returncode in (0, -9), err
    return process.returncode != 0


def hold_kept(watch: Watch, releases: Releases, target: Path) -> None:
    """What stood in the slot when the process died is found by hash, and so will be kept."""
    index = releases.v2.index
    with open_device(target) as device, slot.Workers() as workers:
        held = slot.held(device, index, workers)
        whole = device.read(0, BLOCK) == releases.v2.content[:BLOCK]
    for batch in watch.seen():
        numbers = set(range(batch.first, batch.last + 1))
        assert numbers - held <= (set() if whole else {0})


# Killed by what the disk did ---------------------------------------------------------------------


def die_at(call: str, number: int) -> tuple[str | Path, ...]:
    """Return a command under which a process gets SIGKILL as a thread makes its n-th such call."""
    return (
        "strace", "-f", "-o", os.devnull, "-e", f"trace={call}",
        "-e", f"inject={call}:signal=KILL:when={number}",
    )  # fmt: skip


@pytest.mark.case(48)
@pytest.mark.parametrize(
    ("call", "number"),
    [
        pytest.param("fsync", 1, id="marker-not-flushed"),
        pytest.param("pwritev2", 1, id="at-the-first-write-of-any-thread"),
        pytest.param("pwritev2", 2, id="at-the-second-write-of-any-thread"),
        pytest.param("fsync", 2, id="written-not-flushed"),
        pytest.param("fsync", 3, id="first-block-not-flushed"),
    ],
)
def test_killed_at_any_step_it_ends_right(
    call: str, number: int, releases: Releases, tmp_path: Path
) -> None:
    path = tmp_path / "slot"
    path.write_bytes(releases.v1.content.ljust(len(releases.v2.content), b"\0"))
    words = ("--index", releases.v2.full.index, "--slot", path)

    first = apply(*words, under=die_at(call, number))
    said, _ = first.communicate()
    after = path.read_bytes()
    second = apply(*words)
    out, err = second.communicate()

    assert said == ""  # it died before it could say that all is well
    finished = (call, number) == ("fsync", 3)
    unmarked = (call, number) == ("pwritev2", 1)  # dead before the marker: the old release stands
    expected = releases.v2.content[:4096] if finished else MARKER
    assert after.startswith(releases.v1.content if unmarked else expected)
    assert second.returncode == 0, err
    assert path.read_bytes()[: len(releases.v2.content)] == releases.v2.content
    assert (json.loads(out)["written_bytes"] == 0) is finished


@pytest.mark.case(38)
@pytest.mark.case(39)
@pytest.mark.parametrize(
    ("call", "number"), [("pwritev2", 1), ("pwritev2", 2), ("fsync", 1), ("fsync", 2), ("fsync", 3)]
)
def test_an_error_of_the_real_call_ends_the_program_with_4(
    call: str, number: int, releases: Releases, tmp_path: Path
) -> None:
    path = tmp_path / "slot"
    process = apply(
        "--index", releases.v2.full.index, "--slot", path,
        under=(
            "strace", "-f", "--seccomp-bpf", "-o", os.devnull, "-e", f"trace={call}",
            "-e", f"inject={call}:error=EIO:when={number}",
        ),
    )  # fmt: skip

    _, err = process.communicate()

    assert process.returncode == 4, err
    assert f"{path} failed: Input/output error" in err
    assert "Traceback" not in err
    assert "must not be booted" in err
