"""Machines to try a disk in: QEMU with UEFI firmware, watched by its serial line and over ssh.

Whoever waits, waits for an event: a line on the serial console, a command that returns, the end of
the process. Cutting the power is killing QEMU. A machine never writes to the disk it is given: it
gets a qcow2 layer above it, which is also what a snapshot is.

When the host resets, its QEMU ends and a new one goes on: in one that is emulated and has booted
before, all that is written where code was is slow, and a kernel may take 50 s instead of 5.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

from update_agent.publish.cache import CACHE

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

UP = r"Reached target.*multi-user\.target"
"""What the console says when a host is up, sshd and all."""

BOOT = 600.0
"""Seconds that a boot may take, on a busy machine without hardware acceleration."""

HOST = "10.0.2.2"
"""Where a machine finds the loopback of the machine that runs it."""

_PATIENCE = 30.0
"""Seconds that QEMU may take to begin."""

_SHORT = 200
"""Bytes of a setting that goes into SMBIOS."""

_ESCAPE = re.compile(r"\x1b[\[\]()][0-9;?]*[A-Za-z]?|[\r\x00]")


class MachineError(AssertionError):
    """What was waited for did not happen; the message has the console's last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line of the serial console, and when it came, in seconds since power-on."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """How slow a disk is: QEMU's ``throttling.*``, 0 for no limit."""

    bytes_per_second: int = 0
    operations_per_second: int = 0

    def options(self) -> str:
        """Return what is appended to a -drive."""
        return "".join(
            f",throttling.{name}={value}"
            for name, value in (
                ("bps-total", self.bytes_per_second),
                ("iops-total", self.operations_per_second),
            )
            if value
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A private network that several machines share, without the machine that runs them.

    ``port`` keeps one such network from another. Machines are 10.77.0.NUMBER on it.
    """

    port: int

    def options(self, number: int) -> list[str]:
        """Return QEMU's options for the machine with this number."""
        return [
            "-netdev", f"socket,id=private,mcast=230.77.0.1:{self.port},localaddr=127.0.0.1",
            "-device", f"virtio-net-pci,netdev=private,mac={_private_mac(number)}",
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Key:
    """The ssh key of one run."""

    private: Path

    @property
    def public(self) -> str:
        """The line for authorized_keys."""
        return self.private.with_suffix(".pub").read_text().strip()

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make a key in ``folder``, or take the one that is there."""
        private = folder / "id_ed25519"
        if not private.exists():
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "vm-tests", "-f"]
            subprocess.run([*words, str(private)], check=True)
        return cls(private)


@dataclass(kw_only=True)
class Machine:
    """One machine. ``folder`` keeps its layer, firmware variables, sockets and serial log."""

    disk: Path
    folder: Path
    key: Key
    name: str = "host"
    number: int = 1
    ssh_port: int = 0
    """Port on the loopback for ssh; 0 takes a free one."""
    memory: int = 1024
    cpus: int = 2
    credentials: Mapping[str, str | bytes] = field(default_factory=dict)
    """Settings by their name (``hostname``); the ssh key is added."""
    throttle: Throttle = field(default_factory=Throttle)
    network: Network | None = None
    forwards: Mapping[int, int] = field(default_factory=dict)
    """Ports of the loopback that lead to ports of the machine."""
    hears: Callable[[float, str], None] | None = field(default=None, repr=False)
    """Is told each line of the console, with its time.monotonic(), over all power-ons."""
    lines: list[Line] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ssh_port = self.ssh_port or free_port()
        self._news = threading.Condition()
        self._power = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._life: threading.Thread | None = None
        self._unplugged: set[str] = set()
        self._began = 0.0
        self._seen = 0
        self._cut = False
        self._over = True
        self.booted_at = 0.0
        """When the last boot began, in seconds since power-on."""
        if not self._variables.exists():
            _image("convert", "-q", "-O", "qcow2", VARIABLES, self._variables)
        if not self.layer.exists():
            _image(
                "create", "-q", "-f", "qcow2", "-b", self.disk.resolve(), "-F", _format(self.disk),
                self.layer,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    @property
    def address(self) -> str:
        """Its address on the private network."""
        return _private_address(self.number)

    @property
    def layer(self) -> Path:
        """What this machine wrote, above its disk."""
        return self.folder / "disk.qcow2"

    @property
    def serial_log(self) -> Path:
        """Everything the console said, over all boots."""
        return self.folder / "serial.log"

    @property
    def console(self) -> str:
        """What the console said since power-on."""
        return "\n".join(line.text for line in self.lines)

    # Power ---------------------------------------------------------------------------------------

    def power_on(self, *, load: str | None = None) -> None:
        """Start the machine; with ``load``, from a snapshot of the running machine."""
        assert self._life is None, f"{self.name} is on"
        self.lines.clear()
        self._seen = 0
        self._cut = self._over = False
        self.booted_at = 0.0
        self._began = time.monotonic()
        with self._power:
            lines = self._start(load)
        self._life = threading.Thread(target=self._live, args=[*lines], daemon=True)
        self._life.start()

    def cut_power(self) -> None:
        """Take the power away, whatever the machine is doing."""
        if self._life is not None:
            with self._power:
                self._cut = True
                if self._process is not None:
                    self._process.kill()
            self._ended(self._life)

    def wait_until_off(self, timeout: float = BOOT) -> None:
        """Wait until the machine has switched itself off."""
        assert self._life is not None
        self._life.join(timeout)
        if self._life.is_alive():
            raise self._error(f"{self.name} is still on after {timeout:.0f} s")
        self._ended(self._life)

    def leave(self) -> None:
        """Let it live without this process, resets and all."""
        self.qmp("set-action", {"reboot": "reset"})

    def boot(self) -> None:
        """Power on, and wait until the host is up."""
        self.power_on()
        self.wait_until_up()

    def wait_until_up(self, timeout: float = BOOT) -> None:
        """Wait until the host says that it is up, from now on."""
        self.wait_for_serial(UP, timeout)

    def patience(self) -> int:
        """Return the seconds after which a boot here has come as far as it ever will."""
        return round(3 * (self.said_at(UP) - self.said_at("gptprio: slot A: kernel verified")))

    def join_network(self) -> None:
        """Take the address on the private network, for this boot and all others."""
        self.put(private_network(self.number), "/etc/systemd/network/10-private.network")
        self.run("sudo networkctl reload")

    def reboot(self) -> None:
        """Reboot the host from inside, and wait until it is up again."""
        self.run("sudo systemctl --no-block reboot")
        self.wait_for_serial("reboot: Restarting system")
        self.booted_at = self.lines[self._seen - 1].at
        self.wait_until_up()

    def unplug(self, link: str) -> None:
        """Pull a network cable, ``private`` or ``outside``; it stays out whatever is reset."""
        with self._power:
            self._unplugged.add(link)
            self._set_link(link, up=False)

    def plug(self, link: str) -> None:
        """Put a network cable back."""
        with self._power:
            self._unplugged.discard(link)
            self._set_link(link, up=True)

    def _set_link(self, link: str, *, up: bool) -> None:
        with suppress(MachineError, OSError):  # of a machine that is off, it is when it starts
            self.qmp("set_link", _link(link, up=up))

    def _start(self, load: str | None = None) -> tuple[socket.socket, socket.socket]:
        """Start QEMU; return its serial line, and what tells its events."""
        (self.folder / "qmp").unlink(missing_ok=True)
        with _listener(self.folder / "console") as console, _listener(self.folder / "news") as news:
            command = self._command(console.fileno(), news.fileno())
            with (self.folder / "qemu.log").open("ab") as errors:
                self._process = subprocess.Popen(
                    [*command, *(["-loadvm", load] if load else [])],
                    stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                    pass_fds=[console.fileno(), news.fileno()], start_new_session=True,
                )  # fmt: skip
        (self.folder / "pid").write_text(str(self._process.pid))
        events = _connected(self.folder / "news")
        events.sendall(b'{"execute": "qmp_capabilities"}')
        for link in self._unplugged:
            pulled = {"execute": "set_link", "arguments": _link(link, up=False)}
            events.sendall(json.dumps(pulled).encode())
        return _connected(self.folder / "console"), events

    def _live(self, console: socket.socket, events: socket.socket) -> None:
        """Read what the console says until the machine is off; a reset only begins a new QEMU."""
        while True:
            self._read(console)
            was_reset = _tells_reset(events)
            with self._power:
                if self._process is not None:
                    self._process.wait()
                if self._cut or not was_reset:
                    break
                console, events = self._start()
        with self._news:
            self._over = True
            self._news.notify_all()

    def _command(self, console: int, news: int) -> list[str]:
        return [
            "qemu-system-x86_64",
            "-name", self.name,
            "-machine", "q35",
            *accelerator(),
            "-smp", str(self.cpus),
            "-m", str(self.memory),
            "-display", "none",
            "-monitor", "none",
            "-chardev", ",".join((
                "socket", "id=console", f"fd={console}", "server=on", "wait=on",
                f"logfile={self.serial_log}", "logappend=on",
            )),
            "-serial", "chardev:console",
            "-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off",
            "-chardev", f"socket,id=news,fd={news},server=on,wait=on",
            "-mon", "chardev=news,mode=control",
            "-action", "reboot=shutdown",
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}",
            "-drive", f"if=pflash,unit=1,format=qcow2,file={self._variables}",
            "-drive", f"if=none,id=disk,format=qcow2,file={self.layer}{self.throttle.options()}",
            "-device", "virtio-blk-pci,drive=disk,bootindex=1",  # and firmware tries no network
            "-netdev", "user,id=outside" + "".join(
                f",hostfwd=tcp:127.0.0.1:{ours}-:{its}"
                for ours, its in ({self.ssh_port: 22} | dict(self.forwards)).items()
            ),
            "-device", f"virtio-net-pci,netdev=outside,mac=52:54:00:78:00:{self.number:02x}",
            *(self.network.options(self.number) if self.network else []),
            *self._credentials(),
        ]  # fmt: skip

    def _credentials(self) -> Iterator[str]:
        """Yield how QEMU is told the settings: of SMBIOS strings, systemd reads one page in all."""
        given = {"ssh-keys": self.key.public, "hostname": self.name} | dict(self.credentials)
        for name, value in given.items():
            data = value.encode() if isinstance(value, str) else value
            if len(data) <= _SHORT:
                content = b64encode(data).decode()
                yield "-smbios"
                yield f"type=11,value=io.systemd.credential.binary:update-agent.{name}={content}"
            else:
                path = self.folder / f"credential.{name}"
                path.write_bytes(data)
                yield "-fw_cfg"
                yield f"name=opt/io.systemd.credentials/update-agent.{name},file={path}"

    @property
    def _variables(self) -> Path:
        return self.folder / "variables.qcow2"

    def _ended(self, life: threading.Thread) -> None:
        life.join()
        self.forget_ssh()
        self._life = self._process = None

    # The serial console --------------------------------------------------------------------------

    def wait_for_serial(self, pattern: str, timeout: float = BOOT) -> re.Match[str]:
        """Wait for a line like ``pattern``, behind the last one waited for; return the match."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for line in self.lines[self._seen :]:
                    self._seen += 1
                    if found := re.search(pattern, line.text):
                        return found
                left = deadline - time.monotonic()
                if left <= 0 or self._over:
                    raise self._error(f"{self.name} did not say {pattern!r} in {timeout:.0f} s")
                self._news.wait(left)

    def wait_for_all(self, patterns: Iterable[str], timeout: float = BOOT) -> None:
        """Wait until each of ``patterns`` was said, in whatever order, from now on."""
        missing = list(patterns)
        while missing:
            found = self.wait_for_serial("|".join(f"(?:{it})" for it in missing), timeout)
            missing = [it for it in missing if not re.search(it, found.string)]

    def at(self, seconds: float) -> float:
        """Return the time.monotonic() of what came ``seconds`` after power-on."""
        return self._began + seconds

    def said_at(self, pattern: str, since: float = 0.0) -> float:
        """Return when the console said ``pattern`` first, in seconds since power-on."""
        for line in list(self.lines):
            if line.at >= since and re.search(pattern, line.text):
                return line.at
        raise self._error(f"{self.name} never said {pattern!r}")

    def _read(self, console: socket.socket) -> None:
        rest = ""
        with console:
            while piece := _received(console):
                *whole, rest = (rest + piece.decode(errors="replace")).split("\n")
                now = time.monotonic()
                said = [_ESCAPE.sub("", text) for text in whole]
                with self._news:
                    self.lines += [Line(at=now - self._began, text=text) for text in said]
                    self._news.notify_all()
                if self.hears:
                    for text in said:
                        self.hears(now, text)

    def _error(self, what: str) -> MachineError:
        tail = "\n".join(line.text for line in self.lines[-30:])
        return MachineError(f"{what}; its console ({self.serial_log}) ends with\n{tail}")

    # ssh -----------------------------------------------------------------------------------------

    def run(self, command: str, *, timeout: float = 120, check: bool = True) -> str:
        """Run a shell command as user ``core``; return what it printed."""
        done = self._ssh(command, timeout)
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}".strip()
            raise MachineError(f"{self.name}: {command!r} failed ({done.returncode}): {said}")
        return done.stdout

    def lines_of(self, command: str) -> Generator[str]:
        """Yield the lines that a command prints, until it ends or the connection does."""
        with subprocess.Popen(
            [*self.ssh_command(), command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                yield from process.stdout
            finally:
                process.terminate()

    def fails(self, command: str, *, timeout: float = 120) -> str:
        """Run a command that must fail; return what it said of it."""
        done = self._ssh(command, timeout)
        if done.returncode == 0:
            raise MachineError(f"{self.name}: {command!r} succeeded: {done.stdout}")
        return done.stderr

    def json(self, command: str) -> Any:  # noqa: ANN401  whatever the command prints
        """Run a command that prints JSON; return what it says."""
        return json.loads(self.run(command))

    def put(self, content: str | bytes | Path, remote: str, *, mode: str = "644") -> None:
        """Write a file as root on the host."""
        data = (
            content.read_bytes() if isinstance(content, Path)
            else content.encode() if isinstance(content, str)
            else content
        )  # fmt: skip
        folder = str(Path(remote).parent)
        script = (
            f"sudo mkdir -p {folder} && sudo tee {remote} >/dev/null && sudo chmod {mode} {remote}"
        )
        done = self._ssh(script, 600, data=data)
        if done.returncode != 0:
            raise MachineError(f"{self.name}: cannot write {remote}: {done.stderr}")

    def get(self, remote: str) -> bytes:
        """Read a file as root on the host."""
        command = [*self.ssh_command(), f"sudo cat {remote}"]
        return subprocess.run(command, capture_output=True, check=True, timeout=600).stdout

    def ssh_command(self) -> list[str]:
        """Return the words that begin an ssh command to this machine."""
        return [
            "ssh",
            "-F", "none",
            "-i", str(self.key.private),
            "-p", str(self.ssh_port),
            "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR",
            "-o", "BatchMode=yes",
            "-o", "ConnectTimeout=30",
            "-o", "ConnectionAttempts=3",
            "-o", "ServerAliveInterval=15",
            "-o", "ControlMaster=auto",
            "-o", f"ControlPath={self._control}",
            "-o", "ControlPersist=60",
            "core@127.0.0.1",
        ]  # fmt: skip

    @property
    def _control(self) -> Path:
        """A short path: sockets' paths are limited to 108 bytes."""
        return Path(f"/tmp/ua-vm-{os.getpid()}-{self.ssh_port}")  # noqa: S108  ssh checks its owner

    def _ssh(
        self, command: str, timeout: float, data: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                [*self.ssh_command(), command],
                input=data,
                stdin=subprocess.DEVNULL if data is None else None,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._error(f"{self.name}: {command!r} took over {timeout:.0f} s") from None
        return subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def forget_ssh(self) -> None:
        """End the shared connection, which leads to a machine that is no more."""
        if self._control.exists():
            command = [*self.ssh_command()[:-1], "-O", "exit", "core@127.0.0.1"]
            subprocess.run(command, capture_output=True, check=False, timeout=30)

    # Snapshots -----------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Keep the whole running machine under ``name``, inside its layer."""
        self._monitor(f"savevm {name}")

    def load(self, name: str) -> None:
        """Go back to what was kept: disk, memory and all. A second or two instead of a boot."""
        self._monitor(f"loadvm {name}")
        self.forget_ssh()

    def keep(self, folder: Path, name: str) -> Path:
        """Keep the whole running machine in ``folder``, and return it; it stands still meanwhile.

        A machine in a copy of that folder goes on from there: ``power_on(load=name)``.
        """
        self.qmp("stop")
        self.save(name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path in (self.layer, self._variables):
            shutil.copy(path, folder)
        self._monitor(f"delvm {name}")
        self.qmp("cont")
        return folder

    def _monitor(self, command: str) -> None:
        said = self.qmp("human-monitor-command", {"command-line": command})
        if said:
            raise MachineError(f"{self.name}: {command}: {said}")

    def qmp(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:  # noqa: ANN401
        """Ask QEMU's monitor; return its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(120)
            self._connect(connection)
            with connection.makefile("rw") as stream:
                stream.readline()
                answer: dict[str, Any] = {}
                for request in (
                    {"execute": "qmp_capabilities"},
                    {"execute": command, "arguments": dict(arguments or {})},
                ):
                    stream.write(json.dumps(request))
                    stream.flush()
                    answer = _answer(stream.readline, request)
        return answer["return"]

    def _connect(self, monitor: socket.socket) -> None:
        """Connect with QEMU's monitor, which is there soon after QEMU was started."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                monitor.connect(str(self.folder / "qmp"))
            except OSError:
                if self._over or time.monotonic() > deadline:
                    raise self._error(f"{self.name}: QEMU has no monitor") from None
                time.sleep(0.02)
            else:
                return

    # What is left behind -------------------------------------------------------------------------

    def keep_logs(self, folder: Path) -> None:
        """Keep the serial log, and the journal if the host still answers."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.serial_log.exists():
            shutil.copy(self.serial_log, folder / f"{self.name}.serial.log")
        if self._process is not None:
            with suppress(MachineError):
                journal = self.run("sudo journalctl --no-pager --boot=all", timeout=60, check=False)
                (folder / f"{self.name}.journal").write_text(journal)


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _tells_reset(events: socket.socket) -> bool:
    """Return whether QEMU, which has ended, did so because the machine was to begin anew."""
    said = b""
    with events:
        while piece := _received(events):
            said += piece
    told = [json.loads(line) for line in said.splitlines()]
    return any(it.get("data", {}).get("reason") == "guest-reset" for it in told)


def _received(console: socket.socket) -> bytes:
    """Return what came; nothing when QEMU ended, however it ended."""
    try:
        return console.recv(65536)
    except ConnectionResetError:
        return b""


def _answer(readline: Any, request: object) -> dict[str, Any]:  # noqa: ANN401  a bound method
    """Return the answer to a request, past the events that come between."""
    while line := readline():
        message: dict[str, Any] = json.loads(line)
        if "return" in message:
            return message
        if "error" in message:
            raise MachineError(f"{request}: {message['error']['desc']}")
    raise MachineError(f"{request}: no answer")


def _link(name: str, *, up: bool) -> dict[str, object]:
    """Return what QEMU's set_link is told."""
    return {"name": name, "up": up}


def private_network(number: int) -> str:
    """Return the file for systemd-networkd by which a machine has its private address."""
    return (
        f"[Match]\nMACAddress={_private_mac(number)}\n"
        f"[Network]\nAddress={_private_address(number)}/24\nLinkLocalAddressing=no\n"
    )


def _private_address(number: int) -> str:
    return f"10.77.0.{number}"


def _private_mac(number: int) -> str:
    return f"52:54:00:77:00:{number:02x}"


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _image(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True)


def _format(disk: Path) -> str:
    with disk.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


# The accelerator ---------------------------------------------------------------------------------

KVM = ("-accel", "kvm", "-cpu", "host")
TCG = ("-accel", "tcg,thread=multi", "-cpu", "qemu64")
"""A plain processor: with ``max`` a boot takes a sixth longer, for all it has is emulated."""

PROBE = 15.0
"""Seconds in which a kernel under KVM has come to its end; it takes about one."""


@cache
def accelerator() -> Sequence[str]:
    """Return QEMU's options for the fastest way that works here.

    A /dev/kvm that opens is no promise: where virtual machines are nested, a kernel may hang in it.
    So one is started, once for each machine; UPDATE_AGENT_ACCEL=kvm or tcg decides without.
    """
    wanted = os.environ.get("UPDATE_AGENT_ACCEL")
    if wanted not in (None, "", "kvm", "tcg"):
        raise MachineError(f"UPDATE_AGENT_ACCEL is {wanted!r}, wanted kvm or tcg")
    if wanted:
        return KVM if wanted == "kvm" else TCG
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    known = CACHE / f"kvm-works-{os.uname().release}-{_boot_id()}"
    if not known.exists():
        kernel = _any_kernel()
        if kernel is None:
            return TCG
        known.write_text("yes" if _kernel_ends(kernel) else "no")
    return KVM if known.read_text() == "yes" else TCG


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]


def _any_kernel() -> Path | None:
    places = (*CACHE.glob("debian-*/boot/vmlinuz-*"), *Path("/boot").glob("vmlinuz-*"))
    return next(iter(places), None)


def _kernel_ends(kernel: Path) -> bool:
    """Whether a kernel without a root comes as far as to panic about it."""
    command = [
        "qemu-system-x86_64",
        "-machine", "q35",
        *KVM,
        "-m", "256",
        "-display", "none",
        "-monitor", "none",
        "-serial", "none",
        "-no-reboot",
        "-kernel", str(kernel),
        "-append", "panic=-1",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=PROBE)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
