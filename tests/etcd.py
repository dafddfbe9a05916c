"""Real etcd: clusters of members in folders of their own, in network namespaces where it matters.

A cluster can lose members (``kill``), have them stopped (``pause``), cut them off from one another
(``cut``, by blackhole routes in a member's namespace), and be restored from a snapshot.
"""

import contextlib
import datetime as dt
import ipaddress
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from update_agent.host.etcd import Access, AuthError, Etcd, EtcdError, Get

ENOUGH = 60.0
"""Seconds after which a test has hung."""

_NETWORKS = itertools.count(os.getpid())


def until(true: object, seconds: float = ENOUGH) -> None:
    """Wait for something that another process or thread is about to do."""
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at now."""
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def _network() -> str:
    """Return three numbers of an address that nobody here uses yet."""
    known = subprocess.run(["ip", "-4", "addr"], check=True, capture_output=True, text=True).stdout
    return next(
        net
        for it in _NETWORKS
        if f" {(net := f'10.{64 + it // 250 % 60}.{it % 250}')}." not in known
    )


# Certificates ------------------------------------------------------------------------------------


@dataclass
class Ca:
    """A certificate authority in a folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        made = self._builder(self.name, 30).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        made = made.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False
        )
        self.path.write_bytes(_pem(made.public_key(self.key.public_key()).sign(
            self.key, hashes.SHA256()
        )))  # fmt: skip

    @property
    def path(self) -> Path:
        return self.folder / "ca.pem"

    def issue(
        self, name: str, addresses: Sequence[str] = (), *, days: float = 1
    ) -> tuple[Path, Path]:
        """Return files with a certificate and its key; ``days`` below 0: expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_address(it)) for it in addresses
        ]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        made = (
            self._builder(subject, days)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost"), *names]), critical=False
            )
        )
        cert, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(_pem(made.sign(self.key, hashes.SHA256())))
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return cert, private

    def _builder(self, subject: x509.Name, days: float) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=2))
            .not_valid_after(now + dt.timedelta(days=days))
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


# Members -----------------------------------------------------------------------------------------


@dataclass
class Member:
    """A member: where it listens, what it keeps, its process."""

    name: str
    folder: Path
    client: str
    peer: str
    words: list[str]
    namespace: str | None = None
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self, *more: str) -> None:
        """Begin, or go on from the disk."""
        assert self.process is None
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*inside, "etcd", "--data-dir", str(self.data), *self.words, *more],
                stdout=log, stderr=log, env={"PATH": os.environ["PATH"]},
            )  # fmt: skip

    def kill(self) -> None:
        """End by SIGKILL, as the power does."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)


@dataclass
class Cluster:
    """Members that belong together."""

    folder: Path
    members: list[Member]
    ca: Ca | None = None
    token: str = ""
    network: str | None = None

    def access(self, *members: int, deadline: float = 5.0) -> Access:
        """Return the way to some members, or to all."""
        chosen = [self.members[at] for at in members] or self.members
        where = tuple(it.client for it in chosen)
        if not self.ca:
            return Access(endpoints=where, deadline=deadline)
        return Access(
            endpoints=where, deadline=deadline, ca=str(self.ca.path),
            cert=str(self.ca.folder / "client.pem"), key=str(self.ca.folder / "client.key"),
        )  # fmt: skip

    @contextlib.contextmanager
    def client(self, *members: int, deadline: float = 5.0) -> Iterator[Etcd]:
        """Yield a client that begins with the first of ``members``."""
        made = Etcd(self.access(*members, deadline=deadline), chance=lambda: 0.0)
        with contextlib.closing(made):
            yield made

    def start(self) -> None:
        for member in self.members:
            if member.process is None:
                member.start()
        self.ready()

    def ready(self) -> None:
        """Wait until every member that runs answers a linearizable read."""
        for at, member in enumerate(self.members):
            if member.process:
                until(lambda at=at: self.answers(at))

    def answers(self, at: int) -> bool:
        with self.client(at, deadline=1.0) as etcd:
            try:
                etcd.get(Get("/"))
            except AuthError:
                return True
            except EtcdError:
                return False
            return True

    def leader(self) -> int:
        """Return which member leads, waiting until there is one."""
        found: list[int] = []

        def leads() -> bool:
            for at, member in enumerate(self.members):
                if member.process and not found:
                    with self.client(at, deadline=1.0) as etcd, contextlib.suppress(EtcdError):
                        said = etcd._authorized(member.client, "/v3/maintenance/status", {}, 1.0)
                        if said.get("leader") and said["leader"] == said["header"]["member_id"]:
                            found.append(at)
            return bool(found)

        until(leads)
        return found[0]

    def cut(self, at: int, *others: int, clients: bool = False) -> None:
        """Cut a member off from others (default: all), and from clients if wanted."""
        member = self.members[at]
        assert member.namespace
        assert self.network
        away = others or [it for it in range(len(self.members)) if it != at]
        hosts = [it + 2 for it in away] + ([1] if clients else [])
        for host in hosts:
            _ip("-n", member.namespace, "route", "add", "blackhole", f"{self.network}.{host}/32")

    def mend(self, at: int) -> None:
        """Undo ``cut``."""
        member = self.members[at]
        assert member.namespace
        _ip("-n", member.namespace, "route", "flush", "type", "blackhole")

    def end(self) -> None:
        for member in self.members:
            with contextlib.suppress(ProcessLookupError):
                if member.process:
                    member.go_on()
            member.kill()

    def ctl(self, *words: str, at: int = 0) -> str:
        """Run etcdctl."""
        where = ["--endpoints", self.members[at].client]
        if self.ca:
            cert, key = self.ca.folder / "client.pem", self.ca.folder / "client.key"
            where += ["--cacert", str(self.ca.path), "--cert", str(cert), "--key", str(key)]
        done = subprocess.run(
            ["etcdctl", *where, *words], capture_output=True, text=True, check=True,
            env={"ETCDCTL_API": "3", "PATH": os.environ["PATH"]},
        )  # fmt: skip
        return done.stdout

    def restore(self, snapshot: Path, *, token: str | None = None) -> None:
        """Begin anew from a snapshot; another ``token`` makes another cluster id."""
        self.end()
        initial = ",".join(f"{it.name}={it.peer}" for it in self.members)
        for member in self.members:
            shutil.rmtree(member.data)
            subprocess.run(
                [
                    "etcdctl", "snapshot", "restore", str(snapshot), "--data-dir", str(member.data),
                    "--name", member.name, "--initial-cluster", initial,
                    "--initial-cluster-token", token or self.token,
                    "--initial-advertise-peer-urls", member.peer,
                ],
                check=True, capture_output=True,
                env={"ETCDCTL_API": "3", "PATH": os.environ["PATH"]},
            )  # fmt: skip
        self.start()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def cluster(
    count: int = 3,
    *,
    tls: bool = False,
    namespaces: bool = False,
    folder: Path | None = None,
    more: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Yield a running cluster; what it keeps lies in memory, unless in ``folder``."""
    shared = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # noqa: S108
    with tempfile.TemporaryDirectory(dir=shared) as temporary:
        home = folder or Path(temporary)
        net = _network() if namespaces else None
        bridge = f"ua{secrets.token_hex(4)}"
        made = _cluster(home, count, net, bridge, tls=tls, more=more)
        try:
            if net:
                _connect(made, net, bridge)
            made.start()
            yield made
        finally:
            made.end()
            if net:
                _disconnect(made, bridge)


def _cluster(
    home: Path, count: int, net: str | None, bridge: str, *, tls: bool, more: Sequence[str]
) -> Cluster:
    scheme = "https" if tls else "http"
    ports = free_ports(2 * count)
    hosts = [f"{net}.{at + 2}" if net else "127.0.0.1" for at in range(count)]
    ca = Ca(home / "ca") if tls else None
    if ca:
        ca.issue("client")
        ca.issue("member", [*hosts, "127.0.0.1"])
    peers = [f"{scheme}://{hosts[at]}:{ports[2 * at + 1]}" for at in range(count)]
    initial = ",".join(f"m{at}={peer}" for at, peer in enumerate(peers))
    token = secrets.token_hex(4)
    members = []
    for at in range(count):
        client = f"{scheme}://{hosts[at]}:{ports[2 * at]}"
        (home / f"m{at}").mkdir(exist_ok=True)
        words = [
            "--name", f"m{at}", "--logger", "zap",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peers[at], "--initial-advertise-peer-urls", peers[at],
            "--initial-cluster", initial, "--initial-cluster-token", token,
            "--heartbeat-interval", "50", "--election-timeout", "500", *more,
        ]  # fmt: skip
        if ca:
            cert, key = str(ca.folder / "member.pem"), str(ca.folder / "member.key")
            for kind in ("", "peer-"):
                words += [
                    f"--{kind}cert-file", cert, f"--{kind}key-file", key,
                    f"--{kind}trusted-ca-file", str(ca.path), f"--{kind}client-cert-auth",
                ]  # fmt: skip
        space = f"{bridge}-{at}" if net else None
        members.append(Member(f"m{at}", home / f"m{at}", client, peers[at], words, space))
    return Cluster(home, members, ca, token, net)


def _connect(made: Cluster, net: str, bridge: str) -> None:
    """Give each member a namespace on a bridge that clients are at, too."""
    _ip("link", "add", bridge, "type", "bridge")
    _ip("addr", "add", f"{net}.1/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    for at, member in enumerate(made.members):
        space = str(member.namespace)
        _ip("netns", "add", space)
        _ip("link", "add", space, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("link", "set", space, "master", bridge, "up")
        _ip("-n", space, "addr", "add", f"{net}.{at + 2}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")


def _disconnect(made: Cluster, bridge: str) -> None:
    for member in made.members:
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "del", str(member.namespace))
    with contextlib.suppress(subprocess.CalledProcessError):
        _ip("link", "del", bridge)


@pytest.fixture(scope="session")
def etcd3() -> Iterator[Cluster]:
    """Three members with namespaces and TLS that tests leave as they found it."""
    with cluster(tls=True, namespaces=True) as made:
        yield made


@pytest.fixture(scope="session")
def etcd1() -> Iterator[Cluster]:
    """One member, for tests that need no more."""
    with cluster(1) as made:
        yield made
