"""A repository in memory that says whatever a test wants, signed well or not.

A test edits ``sim.root``, ``sim.channels`` ... and calls ``publish`` with the names of what it
edited; versions go up and signatures are made as an honest publisher would. Who wants to lie more
edits ``sim.files`` afterwards, or gives other ``signers``. ``Client`` is the host that looks.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from tests.web import Web
from update_agent.core import channel, document, release
from update_agent.core.channel import Change, Channel
from update_agent.core.release import PayloadReference, Release
from update_agent.core.trust import CHANNELS, DELEGATED, RELEASES, SIGNED_AT
from update_agent.core.version import Version
from update_agent.errors import UpdateAgentError
from update_agent.host.http import Limits, Network
from update_agent.host.trust import TrustedRepository

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
"""When all tests begin."""
DAY = timedelta(days=1)

NAMES = (Root.type, Timestamp.type, Snapshot.type, Targets.type, RELEASES, CHANNELS)
BELOW_ROOT = NAMES[1:]

INDEX = b"an index, as far as trust can see"

Signers = dict[str, list[CryptoSigner]]
Said = Root | Timestamp | Snapshot | Targets

_COMPACT = JSONSerializer(compact=True)


@cache
def key(name: str) -> CryptoSigner:
    """Return the key that tests call ``name``, made once."""
    del name
    return CryptoSigner.generate_ed25519()


def made_release(product: str = "web", version: str = "1.2.0", **fields: Any) -> Release:  # noqa: ANN401
    reference = PayloadReference(
        index_size=len(INDEX),
        index_sha256=hashlib.sha256(INDEX).hexdigest(),
        blob_size=1000,
        stored_size=1000,
    )
    whole = {
        "product": product, "architecture": "x86_64", "version": Version(version),
        "published": NOW - DAY, "image_size": 4096, "root_hash": "ab" * 32,
        "payloads": (reference,),
    }  # fmt: skip
    return Release(**{**whole, **fields})


def made_channel(name: str = "stable", version: str = "1.2.0", product: str = "web") -> Channel:
    change = Change(time=NOW - DAY, author="ann", what="promote")
    return Channel.created(name, product, change).promote(Version(version), change)


class Simulator:
    """An honest repository, until it is edited."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.now = NOW
        self.signers: Signers = {name: [key(name)] for name in NAMES}
        self.root = Root(consistent_snapshot=True, expires=NOW + 730 * DAY)
        self.targets = Targets(expires=NOW + 730 * DAY, delegations=_nobody())
        self.releases = Targets(expires=NOW + 365 * DAY)
        self.channels = Targets(expires=NOW + 90 * DAY)
        self.snapshot = Snapshot(expires=NOW + 30 * DAY)
        self.timestamp = Timestamp(expires=NOW + 7 * DAY)
        for name in NAMES:
            self.delegator(name).add_key(key(name).public_key, name)
        self.add_release(made_release())
        self.add_channel(made_channel())
        for name in NAMES:
            self.said(name).version = 0
        self.publish(*NAMES)

    def said(self, name: str) -> Said:
        found: Said = getattr(self, name)
        return found

    def delegator(self, name: str) -> Root | Targets:
        return self.targets if name in DELEGATED else self.root

    def add_target(self, targets: Targets, path: str, data: bytes) -> None:
        info = TargetFile.from_data(path, data, ["sha256"])
        folder, _, name = path.rpartition("/")
        self.files[f"/targets/{folder}/{info.hashes['sha256']}.{name}"] = data
        targets.targets[path] = info

    def add_release(self, made: Release) -> None:
        path = release.path(made.product, made.version)
        self.add_target(self.releases, path, document.encode(made))
        self.files[f"/{made.index_path(made.full)}"] = INDEX

    def add_channel(self, made: Channel) -> None:
        self.add_target(self.channels, channel.path(made.channel), document.encode(made))

    def target_url(self, targets: Targets, path: str) -> str:
        folder, _, name = path.rpartition("/")
        return f"/targets/{folder}/{targets.targets[path].hashes['sha256']}.{name}"

    def rotate(self, *names: str) -> None:
        """Give new keys to roles; who delegates to them has to be published."""
        for name in names:
            delegator = self.delegator(name)
            for old in list(delegator.get_delegated_role(name).keyids):
                delegator.revoke_key(old, name)
            new = CryptoSigner.generate_ed25519()
            delegator.add_key(new.public_key, name)
            self.signers[name] = [new]

    def publish(self, *names: str) -> None:
        """Make the next version of each role in ``names``, and of snapshot and timestamp."""
        chain = [] if set(names) == {Root.type} else [Snapshot.type, Timestamp.type]
        for name in (*(it for it in names if it not in chain), *chain):
            self.said(name).version += 1
        self.write(*names)

    def write(self, *names: str) -> None:
        """Sign and show roles as they are, and what vouches for them."""
        for name in names:
            if name not in (Snapshot.type, Timestamp.type):
                self.show(name)
        if set(names) != {Root.type}:
            self.show(Snapshot.type)
            self.show(Timestamp.type)

    def show(self, name: str) -> None:
        """Sign and show one role, named right by what vouches for it."""
        if name == Timestamp.type:
            self.timestamp.unrecognized_fields.setdefault(SIGNED_AT, _text(self.now))
        self.put(name, self.signed(name))

    def put(self, name: str, data: bytes) -> None:
        """Show these bytes as a role, and let what vouches for it name them."""
        said = self.said(name)
        self.files[self.path(name)] = data
        meta = MetaFile(said.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})
        if name == Snapshot.type:
            self.timestamp.snapshot_meta = meta
        elif name not in (Root.type, Timestamp.type):
            self.snapshot.meta[f"{name}.json"] = meta

    def put_plain(self, name: str, plain: dict[str, Any]) -> None:
        """Show what ``plain`` says as a role, well signed, however odd it is."""
        self.put(name, sign_plain(plain, self.signers[name]))
        if name not in (Snapshot.type, Timestamp.type, Root.type):
            self.show(Snapshot.type)
        if name not in (Timestamp.type, Root.type):
            self.show(Timestamp.type)

    def plain(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = copy.deepcopy(self.said(name).to_dict())
        return found

    def signed(self, name: str) -> bytes:
        metadata: Metadata[Any] = Metadata(self.said(name))
        for signer in self.signers[name]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes(_COMPACT)

    def path(self, name: str) -> str:
        version = "" if name == Timestamp.type else f"{self.said(name).version}."
        return f"/metadata/{version}{name}.json"

    def bytes_of(self, name: str) -> bytes:
        return self.files[self.path(name)]


def _nobody() -> Delegations:
    roles = {
        name: DelegatedRole(name, [], 1, terminating=True, paths=[pattern])
        for name, pattern in DELEGATED.items()
    }
    return Delegations(keys={}, roles=roles)


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def sign_plain(plain: dict[str, Any], signers: list[CryptoSigner]) -> bytes:
    """Sign JSON that no library would make; who cannot be made canonical is signed badly."""
    from securesystemslib.formats import encode_canonical  # noqa: PLC0415

    try:
        message = str(encode_canonical(plain)).encode()
    except (ValueError, TypeError, RecursionError, Exception):  # noqa: BLE001  odd is the point
        message = b""
    signatures = [signer.sign(message).to_dict() for signer in signers]
    return json.dumps({"signatures": signatures, "signed": plain}).encode()


# The host ----------------------------------------------------------------------------------------


@dataclass
class Client:
    """A host that looks at ``urls``, and remembers in ``folder``."""

    folder: Path
    urls: list[str]
    root: bytes
    now: datetime = NOW
    network: Network = field(default_factory=lambda: Network(Limits(silence=5, deadline=600)))

    def __post_init__(self) -> None:
        self.root_file.write_bytes(self.root)

    @property
    def root_file(self) -> Path:
        return self.folder / "root.json"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @contextmanager
    def opened(self) -> Iterator[TrustedRepository]:
        with TrustedRepository(
            self.urls,
            trusted_root=self.root_file,
            state=self.state,
            network=self.network,
            now=self.now,
        ) as repository:
            yield repository

    def look(self) -> Channel | None:
        """Learn what is new; return what the channel says."""
        with self.opened() as repository:
            repository.refresh()
            return repository.channel("stable")

    def offers(self) -> str | None:
        found = self.look()
        return str(found.version) if found else None

    def kept(self) -> dict[str, bytes]:
        """Return every file that is kept."""
        return {
            str(path.relative_to(self.state)): path.read_bytes()
            for path in sorted(self.state.rglob("*"))
            if path.is_file() and path.name != "lock"
        }

    def refuses(
        self, error: type[UpdateAgentError], match: str, do: Callable[[], object] | None = None
    ) -> None:
        """Look, be told why not, and keep nothing of it."""
        before = self.kept()
        with pytest.raises(error, match=match) as caught:
            (do or self.look)()
        assert type(caught.value) is error
        assert self.kept() == before


@contextmanager
def memory() -> Iterator[Path]:
    """Yield a folder where flushing costs nothing, and make it the one for temporary files."""
    shared = Path("/dev/shm")  # noqa: S108  only if it is there, and under a name of its own
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before


@contextmanager
def served(sim: Simulator) -> Iterator[Web]:
    """Serve what the simulator shows, as it changes."""
    with Web({}) as web:
        web.files = sim.files
        yield web
