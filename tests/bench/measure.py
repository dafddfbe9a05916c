"""How the benchmarks measure: processes, a loop device to install to, a web server that counts.

Seconds are wall time from the first process started to the last one ended. Peak memory comes from
GNU time, one for each process, because ``ru_maxrss`` of a direct child begins at the size of
*this* process; of a program that forks, it is the largest of its processes. Bytes fetched are what
nginx says it sent, headers included, also to a client that was killed.

Whatever is started here is stopped by the context manager that started it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 60.0
"""Seconds to wait for something that should answer at once."""
STEP = 0.005
MEBI = 1 << 20


class BenchError(Exception):
    """The benchmark cannot go on; the message says what is missing or what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What became of one or several processes that all ended well."""

    seconds: float
    peak: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One thing done once. ``peak`` is bytes of memory, over all processes that took part."""

    seconds: float
    peak: int
    fetched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NotRun:
    """A thing that could not be measured here."""

    reason: str


Outcome = Measured | NotRun


def wait_until(what: str, ready: Callable[[], bool], *, patience: float = PATIENCE) -> None:
    """Ask ``ready`` until it says yes; looking often is cheap and says nothing about time."""
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not happen within {patience:.0f} s")
        time.sleep(STEP)


class Process:
    """A process under GNU time, in a process group of its own."""

    def __init__(
        self,
        command: Sequence[str],
        work: Path,
        *,
        stdin: Any = subprocess.DEVNULL,  # noqa: ANN401  # what Popen takes
        piped: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self._peak = Path(tempfile.mkstemp(prefix="peak-", dir=work)[1])
        self._said = self._peak.with_name(self._peak.name + ".said")
        self._complained = self._peak.with_name(self._peak.name + ".err")
        with ExitStack() as files:
            said = subprocess.PIPE if piped else files.enter_context(self._said.open("wb"))
            complained = files.enter_context(self._complained.open("wb"))
            self.popen = subprocess.Popen(
                [
                    "/usr/bin/time",
                    "--quiet",
                    "--format=%M",
                    f"--output={self._peak}",
                    *self.command,
                ],
                stdin=stdin,
                stdout=said,
                stderr=complained,
                env=None if env is None else {**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )

    def wait(self, *, accept: Sequence[int] = (0,)) -> None:
        code = self.popen.wait()
        if code not in accept:
            raise BenchError(f"{' '.join(self.command)} ended with {code}: {self.words()[-2000:]}")

    def ended_within(self, seconds: float) -> bool:
        try:
            self.popen.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        """Ask the program (not its GNU time, which reports afterwards) to end, and wait for it."""
        if self.popen.poll() is None:
            for child in psutil.Process(self.popen.pid).children():
                with suppress(psutil.NoSuchProcess):
                    child.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout=PATIENCE)
        self.kill()

    def kill(self) -> None:
        """End the process and all it started, at once."""
        if self.popen.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def peak(self) -> int:
        """Bytes of the largest resident set; 0 if it was killed together with its GNU time."""
        lines = self._peak.read_text().split()
        return int(lines[-1]) * 1024 if lines and lines[-1].isdigit() else 0

    def output(self) -> str:
        return self._said.read_text(errors="replace") if self._said.exists() else ""

    def words(self) -> str:
        return self.output() + self._complained.read_text(errors="replace")

    def forget(self) -> None:
        for path in (self._peak, self._said, self._complained):
            path.unlink(missing_ok=True)


@contextmanager
def running(command: Sequence[str], work: Path, **options: Any) -> Iterator[Process]:  # noqa: ANN401
    """Hold a process for the length of a block; it does not outlive it."""
    process = Process(command, work, **options)
    try:
        yield process
        process.stop()
    finally:
        process.kill()
        process.forget()


def run(command: Sequence[str], work: Path, **options: Any) -> Ended:  # noqa: ANN401
    """Run one command to its end."""
    return pipeline([command], work, **options)


def pipeline(commands: Sequence[Sequence[str]], work: Path, **options: Any) -> Ended:  # noqa: ANN401
    """Run ``commands``, each reading what the one before writes, and wait for all."""
    processes: list[Process] = []
    began = time.monotonic()
    try:
        stdin: Any = subprocess.DEVNULL
        for number, command in enumerate(commands):
            last = number == len(commands) - 1
            processes.append(Process(command, work, stdin=stdin, piped=not last, **options))
            if stdin is not subprocess.DEVNULL:
                stdin.close()
            stdin = processes[-1].popen.stdout
        for process in processes:
            process.wait()
        seconds = time.monotonic() - began
        peak = sum(process.peak() for process in processes)
        return Ended(seconds=seconds, peak=peak, output=processes[-1].output())
    finally:
        for process in processes:
            process.kill()
            process.forget()


class Slot:
    """A loop device over a file, as the place to install to."""

    def __init__(self, file: Path, device: Path) -> None:
        self.file = file
        self.device = device

    def fill(self, content: Path | None = None) -> None:
        """Fill the slot with noise, or with ``content``, and leave it clean and uncached."""
        size = self.file.stat().st_size
        noise = os.urandom(MEBI)
        with self.device.open("r+b", buffering=0) as target:
            if content is None:
                for start in range(0, size, MEBI):
                    _write(target.fileno(), noise[: size - start])
            else:
                with content.open("rb") as source:
                    while block := source.read(MEBI):
                        _write(target.fileno(), block)
            os.fsync(target.fileno())
        self.forget_cache()

    def forget_cache(self) -> None:
        """Write everything out and drop this device and its file from the page cache."""
        os.sync()
        for path in (self.device, self.file):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def sha256(self, length: int) -> str:
        """Hash the first ``length`` bytes as they are on the disk."""
        self.forget_cache()
        return sha256(self.device, length)


def _write(target: int, block: bytes) -> None:
    done = 0
    while done < len(block):
        done += os.write(target, block[done:])


@contextmanager
def slot(folder: Path, size: int) -> Iterator[Slot]:
    """Lend a loop device of ``size`` bytes over a fully written file in ``folder``."""
    file = folder / "slot.disk"
    with file.open("wb") as made:
        os.posix_fallocate(made.fileno(), 0, size)
    shown = subprocess.run(
        ["losetup", "--find", "--show", str(file)],
        check=True,
        capture_output=True,
        text=True,
    )
    device = Path(shown.stdout.strip())
    try:
        yield Slot(file, device)
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=False)
        file.unlink(missing_ok=True)


def sha256(path: Path, length: int | None = None) -> str:
    digest = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with path.open("rb") as file:
        while left and (block := file.read(min(MEBI, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


_NGINX = """\
daemon off;
user root;
worker_processes 1;
pid {work}/nginx.pid;
error_log {work}/nginx.error warn;
events {{ worker_connections 512; }}
http {{
    log_format sent '$bytes_sent $status $request_method $uri';
    access_log {work}/nginx.access sent;
    client_body_temp_path {work}/nginx.body;
    proxy_temp_path {work}/nginx.proxy;
    fastcgi_temp_path {work}/nginx.fastcgi;
    uwsgi_temp_path {work}/nginx.uwsgi;
    scgi_temp_path {work}/nginx.scgi;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location = /-/status {{ stub_status; access_log off; }}
    }}
}}
"""


class Server:
    """nginx over one folder, and what it has sent."""

    def __init__(self, folder: Path, work: Path, port: int) -> None:
        self.folder = folder
        self._log = work / "nginx.access"
        self._base = f"http://127.0.0.1:{port}"

    def url(self, path: Path) -> str:
        return f"{self._base}/{path.relative_to(self.folder)}"

    def sent(self) -> int:
        """Return all bytes sent so far, once no client is connected any more."""
        wait_until("the last client's connection closed", self._idle)
        with self._log.open() as log:
            return sum(int(line.split(" ", 1)[0]) for line in log)

    def answers(self) -> bool:
        try:
            return self._active() > 0
        except (urllib.error.URLError, OSError):
            return False

    def _idle(self) -> bool:
        return self._active() == 1

    def _active(self) -> int:
        with urllib.request.urlopen(f"{self._base}/-/status", timeout=PATIENCE) as answer:  # noqa: S310
            return int(answer.read().split()[2])


@contextmanager
def serve(folder: Path, work: Path) -> Iterator[Server]:
    """Serve ``folder`` on a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (work / "nginx.access").write_bytes(b"")
    config = work / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, work=work, port=port))
    server = Server(folder, work, port)
    with running(["nginx", "-p", str(work), "-c", str(config)], work) as nginx:
        wait_until("nginx answering", lambda: server.answers() or nginx.popen.poll() is not None)
        if nginx.popen.poll() is not None:
            raise BenchError(f"nginx ended: {nginx.words()}")
        yield server


def warm(path: Path) -> None:
    """Read ``path`` so that it is in the page cache."""
    with path.open("rb") as file:
        while file.read(MEBI):
            pass


@contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """Lend a folder on the disk of the cache, and remove it."""
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
