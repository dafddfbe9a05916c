"""A host to install on: its disk as an image, its writer at a socket, and a repository of releases.

The releases are those of ``images.py``: 1.0.0 is what slot A holds, 1.1.0 comes with a delta from
it, all of them signed with real keys. The writer is a thread here, or the real program.
"""

import contextlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cgroups import Cgroups
from tests.disks import ESP_TYPE, SLOT_TYPE, Entry, flags, healthy
from tests.images import Releases, releases
from update_agent.core import release as documents
from update_agent.core.release import PayloadReference, Release
from update_agent.core.settings import Bytes, Limits
from update_agent.core.slot import Slots, attempts, from_table
from update_agent.core.trust import Evidence
from update_agent.core.version import Version
from update_agent.core.wire import Installed, Planned, Progress, Range, State
from update_agent.host import wire as host_wire
from update_agent.host.disk import open_disk, read_tables
from update_agent.host.identity import architecture
from update_agent.host.systemd import Notifier
from update_agent.host.writer import Writer
from update_agent.publish.keys import Keyring
from update_agent.publish.main import main as publish_main
from update_agent.publish.repository import Repository
from update_agent.writer import memory
from update_agent.writer.host import Host
from update_agent.writer.installation import Terms
from update_agent.writer.server import Patience, Server
from update_agent.writer.slots import HostSlots

__all__ = ["fleet", "releases", "world"]

V1, V2 = Version("1.0.0"), Version("1.1.0")

MIB = 2**20
SLOT_SIZE = 8 * MIB
A_AT, B_AT = MIB, MIB + SLOT_SIZE
"""Where the slots begin on the disk."""

ROOT_A = Entry(number=2, first=A_AT // 512, last=B_AT // 512 - 1, type=SLOT_TYPE, label="ROOT-A")
ROOT_B = Entry(
    number=3, first=B_AT // 512, last=(B_AT + SLOT_SIZE) // 512 - 1, type=SLOT_TYPE, label="ROOT-B"
)
LAYOUT = (
    Entry(number=1, first=256, last=511, type=ESP_TYPE, label="ESP"),
    replace(ROOT_A, attributes=flags(1, 0, ok=True)),
    ROOT_B,
)
SECTORS = (B_AT + SLOT_SIZE + MIB) // 512

ENOUGH = 30.0
"""Seconds after which a test has hung."""


# What is published -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A folder with a repository and its keys."""

    folder: Path
    releases: Releases

    @property
    def root(self) -> Path:
        """The trusted root."""
        return self.folder / "www/metadata/1.root.json"

    def publish(self, *words: str) -> None:
        """Run ``update-publish``."""
        where = ["--repository", str(self.folder / "www"), "--keys", str(self.folder / "keys")]
        with contextlib.redirect_stdout(io.StringIO()):
            assert publish_main([*words, *where, "--json"]) == 0

    def copy(self, folder: Path) -> "Fleet":
        """Return the same, to be edited."""
        return replace(self, folder=Path(shutil.copytree(self.folder, folder)))

    def evidence(self, version: Version = V2, channel: str | None = None) -> Evidence:
        """Return the signed bytes that prove a release, and what a channel says."""
        repository = self.repository()
        named = {it: repository.published(it) or b"" for it in ("targets", "releases", "channels")}
        path = documents.path("os", version)
        release = repository.read_target(repository.targets("releases"), path)
        said = channel and repository.read_target(
            repository.targets("channels"), f"channels/{channel}.json"
        )
        return Evidence(
            roots=repository.roots()[1:],
            targets=named["targets"],
            releases=named["releases"],
            release=release or b"",
            channels=named["channels"] if channel else None,
            channel=said or None,
        )

    def repository(self) -> Repository:
        """Return the repository, with all keys."""
        return Repository(self.folder / "www", Keyring([self.folder / "keys"]))

    def release(self, version: Version = V2) -> Release:
        """Return what the release says."""
        return documents.decode(self.evidence(version).release, "os", version)

    def payloads(self, spoil: "Spoil | None" = None, version: Version = V2) -> "Gifts":
        """Return the release's payloads, as a daemon gives them."""
        return Gifts(self.folder / "www", self.release(version), spoil or _as_they_are)


@pytest.fixture(scope="session")
def fleet(releases: Releases, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A repository of both releases and a channel, made once."""
    return publish(tmp_path_factory.mktemp("fleet"), releases)


def publish(folder: Path, releases: Releases) -> Fleet:
    """Make a repository in ``folder``."""
    folder.mkdir(exist_ok=True)
    made = Fleet(folder=folder, releases=releases)
    made.publish("init")
    for image, version in ((releases.v1.image, "1.0.0"), (releases.v2.image, "1.1.0")):
        made.publish("release", "add", str(image), "--product", "os", "--version", version)
    made.publish("channel", "create", "stable", "--product", "os")
    made.publish("channel", "promote", "stable", "1.1.0")
    return made


# What a daemon gives -----------------------------------------------------------------------------


Spoil = Callable[[bytearray, int, int], None]
"""May change a range's bytes, given its offset and how often it was asked for, from 1."""


def _as_they_are(_data: bytearray, _offset: int, _try: int) -> None:
    pass


@dataclass
class Gifts:
    """Payloads from a repository's folder, as ``Payloads`` and as ``Ranges``."""

    www: Path
    release: Release
    spoil: Spoil
    asked: dict[int, int] = field(default_factory=dict)
    given: list[Range] = field(default_factory=list)
    distrusted: list[Range] = field(default_factory=list)
    indexes: list[PayloadReference] = field(default_factory=list)
    shuffled: bool = False
    threads: int = 1
    data: bytes = b""

    def index(self, payload: PayloadReference) -> bytes:
        self.indexes.append(payload)
        return (self.www / self.release.index_path(payload)).read_bytes()

    def blob(self, payload: PayloadReference) -> "Gifts":
        self.data = (self.www / self.release.blob_path(payload)).read_bytes()
        return self

    def fetch(self, spans: Sequence[Range], deliver: Callable[[Range, bytearray], None]) -> None:
        ordered = list(reversed(spans)) if self.shuffled else list(spans)
        errors: list[Exception] = []

        def give(mine: Sequence[Range]) -> None:
            try:
                for span in mine:
                    self.give(span, deliver)
            except Exception as error:  # noqa: BLE001  raised again below
                errors.append(error)

        parts = [ordered[at :: self.threads] for at in range(self.threads)]
        threads = [threading.Thread(target=give, args=(it,)) for it in parts[1:]]
        for thread in threads:
            thread.start()
        give(parts[0])
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def give(self, span: Range, deliver: Callable[[Range, bytearray], None]) -> None:
        self.asked[span.blob_offset] = self.asked.get(span.blob_offset, 0) + 1
        data = bytearray(self.data[span.blob_offset :][: span.blob_length])
        self.spoil(data, span.blob_offset, self.asked[span.blob_offset])
        self.given.append(span)
        deliver(span, data)

    def distrust(self, spans: Sequence[Range]) -> None:
        self.distrusted.extend(spans)

    @property
    def bytes_given(self) -> int:
        return sum(it.blob_length for it in self.given)


@dataclass
class Watching:
    """Keeps what an installation tells of itself."""

    plans: list[Planned] = field(default_factory=list)
    shown: list[Progress] = field(default_factory=list)

    def planned(self, plan: Planned) -> None:
        self.plans.append(plan)

    def show(self, progress: Progress) -> None:
        self.shown.append(progress)


# A host ------------------------------------------------------------------------------------------


@dataclass
class World:
    """A disk whose slot A was booted with 1.0.0, and its writer."""

    folder: Path
    fleet: Fleet
    host: Host
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    patience: Patience = field(default_factory=Patience)
    limits: Limits = field(default_factory=lambda: Limits(floor=Bytes(10**12)))
    """None, unless they are the subject."""

    def __post_init__(self) -> None:
        self.cgroups = Cgroups(self.folder / "cgroup")

    @property
    def address(self) -> Path:
        return self.folder / "socket"

    @property
    def disk(self) -> Path:
        return self.folder / "disk.img"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    # The disk

    def put_flags(self, a: int, b: int) -> None:
        """Set the attribute words of both slots."""
        self.put_table((LAYOUT[0], replace(ROOT_A, attributes=a), replace(ROOT_B, attributes=b)))

    def put_table(self, entries: Sequence[Entry]) -> None:
        """Write another partition table."""
        disk = healthy(512, entries, sectors=SECTORS)
        with self.disk.open("r+b") as file:
            for lba, sector in disk.sectors.items():
                file.seek(lba * 512)
                file.write(sector)

    def put(self, at: int, content: bytes) -> None:
        """Write bytes to the disk, past everything."""
        with self.disk.open("r+b") as file:
            file.seek(at)
            file.write(content)

    def slot_a(self) -> bytes:
        return self._read(A_AT)

    def slot_b(self) -> bytes:
        return self._read(B_AT)

    def _read(self, at: int) -> bytes:
        with self.disk.open("rb") as file:
            file.seek(at)
            return file.read(SLOT_SIZE)

    def slots(self) -> Slots:
        with open_disk(self.disk) as disk:
            return from_table(read_tables(disk).authoritative)

    def holds(self, content: bytes, image: bytes) -> bool:
        return content[: len(image)] == image

    def want_whole_boot(self) -> None:
        """Hold promise 1: whatever is a candidate is a whole, signed release."""
        v1, v2 = self.fleet.releases.v1.content, self.fleet.releases.v2.content
        slots = self.slots()
        whole = {
            slots.a.name: self.slot_a().startswith(v1),
            slots.b.name: self.slot_b().startswith((v1, v2)),
        }
        candidates = [it for it in attempts(slots) if it.flags.candidate]
        assert candidates, "nothing boots"
        assert all(whole[it.name] for it in candidates), "a slot that is not whole may boot"

    # The writer

    def terms(self, known: memory.Memory) -> Terms:
        return Terms(
            slots=HostSlots(self.host, known),
            trusted=self.fleet.root.read_bytes,
            clock=lambda: self.now,
            limits=lambda: self.limits,
            cgroups=self.cgroups.root,
            gift_seconds=ENOUGH,
        )

    @contextmanager
    def serving(self, *, users: frozenset[int] = frozenset()) -> Iterator[Server]:
        """Run the writer in a thread."""
        with memory.opened(self.state) as known, listening(self.address) as sock:
            server = Server(
                sock, self.terms(known), users=users, notifier=Notifier({}), patience=self.patience
            )
            thread = threading.Thread(target=server.serve)
            thread.start()
            try:
                yield server
            finally:
                server.end()
                thread.join(ENOUGH)
                assert not thread.is_alive()
                wait_until(lambda: not server.callers)

    @contextmanager
    def program(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        """Run the writer as it is installed, without limits, and end it by SIGKILL."""
        self.address.unlink(missing_ok=True)
        settings = self.folder / "settings"
        settings.mkdir(exist_ok=True)
        (settings / "limits.toml").write_text('[limits]\nfloor = "900G"\n')
        process = subprocess.Popen(
            [
                Path(sys.executable).with_name("update-agent-writer"),
                "--listen", self.address, "--disk", self.host.disk, "--booted", "2",
                "--product", "os", "--running", str(self.host.version),
                "--root", self.fleet.root, "--state", self.state, "--user", "nobody",
                "--settings", settings, *words,
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            wait_until(lambda: self.address.exists() or process.poll() is not None)
            yield process
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def forked(self) -> Iterator[Callable[[], None]]:
        """Run the writer in a process without the time it takes to start; yield its killer."""
        with listening(self.address) as sock:
            pid = os.fork()
            if pid == 0:
                try:
                    with memory.opened(self.state) as known:
                        terms = self.terms(known)
                        Server(sock, terms, users=frozenset(), notifier=Notifier({})).serve()
                finally:
                    os._exit(0)
        alive = [pid]

        def kill() -> None:
            while alive:
                os.kill(alive[0], signal.SIGKILL)
                os.waitpid(alive.pop(), 0)

        try:
            yield kill
        finally:
            kill()

    def install(
        self,
        payloads: Gifts | None = None,
        *,
        version: Version = V2,
        channel: str | None = None,
        watching: Watching | None = None,
        attempt: str = "attempt-1",
    ) -> Installed:
        """Install as the daemon does."""
        return Writer(self.address).install(
            self.fleet.release(version),
            self.fleet.evidence(version, channel),
            payloads or self.fleet.payloads(version=version),
            attempt=attempt,
            channel=channel,
            watcher=watching or Watching(),
        )

    def look(self) -> State:
        """Ask the writer how the slots stand."""
        with Writer(self.address) as writer:
            return writer.state()

    def raw(self) -> host_wire.Connection:
        """Return a connection for those who don't use the client."""
        return host_wire.Connection(self.dial())

    def dial(self) -> socket.socket:
        return host_wire.connect(self.address)


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(64)
        yield sock


def wait_until(true: Callable[[], object]) -> None:
    """Wait for something that another process or thread is about to do."""
    deadline = time.monotonic() + ENOUGH
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def make_world(folder: Path, fleet: Fleet) -> World:
    """Return a host of its own in ``folder``."""
    disk = healthy(512, LAYOUT, sectors=SECTORS).save(folder / "disk.img")
    host = Host(disk=disk, booted=2, product="os", version=V1, architecture=architecture())
    made = World(folder=folder, fleet=fleet, host=host)
    made.put(A_AT, fleet.releases.v1.content)
    return made


@pytest.fixture
def world(fleet: Fleet, tmp_path: Path) -> World:
    return make_world(tmp_path, fleet)
