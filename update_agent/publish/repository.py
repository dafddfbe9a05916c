"""The repository as its publishers see it: a tree of files, and the order in which they change.

    metadata/N.root.json, N.targets.json, N.releases.json, N.channels.json, N.snapshot.json,
             timestamp.json
    targets/releases/PRODUCT/VERSION/SHA256.release.json, targets/channels/SHA256.NAME.json
    payloads/PRODUCT/VERSION/SHA256.index, SHA256.blob
    .staged/ROLE.json    edits that wait for signatures; nobody else reads them

Everything but ``timestamp.json`` is written once and never changed. An edit is staged first, with
the signatures that the keys at hand give; ``commit`` publishes what is signed by enough: roles,
then the snapshot that names them, then the timestamp that names the snapshot, by one rename. A root
that names other keys comes last, and what it asks for is signed for it beforehand, by the old keys
and by the new. So hosts find the old state or the new one, and the next command ends what a killed
one began.
"""

import fcntl
import hashlib
import os
import sys
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from update_agent.core import trust
from update_agent.core.trust import CHANNELS, DELEGATED, RELEASES, SIGNED_AT
from update_agent.errors import HostError, ReleaseError
from update_agent.host import files
from update_agent.publish.keys import Keyring

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)

ONLINE = (CHANNELS, Snapshot.type, Timestamp.type)
"""Roles whose keys are at hand whenever something is published."""
OFFLINE = (Root.type, Targets.type, RELEASES)
ROLES = (*OFFLINE, *ONLINE)

EXPIRES_DAYS: Mapping[str, int] = {
    Root.type: 730,
    Targets.type: 730,
    RELEASES: 365,
    CHANNELS: 90,
    Snapshot.type: 30,
    Timestamp.type: 7,
}
"""Days for which a role is valid after it was signed, when nothing else was said."""

_DAYS = "x-expires-days"
_TOP = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
_COMPACT = JSONSerializer(compact=True)


class RepositoryError(HostError):
    """The repository cannot be used, or what was asked for does not fit it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a new repository is made: keys, thresholds and days of each role."""

    keys: Mapping[str, list[Key]]
    thresholds: Mapping[str, int] = field(default_factory=dict)
    days: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A staged role that has not enough signatures."""

    role: str
    version: int
    signed: int
    threshold: int
    missing: tuple[str, ...]
    """Ids of the keys that have not signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a commit did."""

    published: tuple[str, ...] = ()
    """Roles with a new version, as ``ROLE N``."""
    waiting: tuple[Waiting, ...] = ()


class Repository:
    """The repository in ``folder``. Edit and commit while ``locked``."""

    def __init__(self, folder: Path, keyring: Keyring, now: datetime | None = None) -> None:
        self.folder = folder
        self.keyring = keyring
        self.now = (now or datetime.now(UTC)).replace(microsecond=0)
        self._metadata = folder / "metadata"
        self._staging = folder / ".staged"

    # The tree ------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether hosts can learn something here."""
        return (self._metadata / "timestamp.json").exists()

    def want(self) -> None:
        """Raise RepositoryError where there is no repository."""
        if not self.exists:
            hint = "update-publish init makes one"
            if self._staging.exists():
                hint = "it waits for signatures: update-publish status"
            raise RepositoryError(f"{self.folder} is no repository", hint=hint)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let one publisher after the other work; whoever comes second waits."""
        with _translated(self.folder):
            files.make_folders(self.folder)
            lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another publisher...", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            self._sweep()
            yield
        finally:
            os.close(lock)

    def _sweep(self) -> None:
        """Remove what killed publishers were writing; everybody who writes here holds the lock."""
        with _translated(self.folder):
            for folder in (self._metadata, self.folder / "targets", self._staging):
                for left in folder.rglob(".*"):
                    left.unlink()

    def metadata_path(self, name: str, version: int) -> Path:
        """Return the file of a version of a role."""
        stem = name if name == Timestamp.type else f"{version}.{name}"
        return self._metadata / f"{stem}.json"

    def target_path(self, path: str, sha256: str) -> Path:
        """Return the file of a target, which has its hash before its name."""
        folder, _, name = path.rpartition("/")
        return self.folder / "targets" / folder / f"{sha256}.{name}"

    def read_target(self, targets: Targets, path: str) -> bytes | None:
        """Return what ``targets`` lists at ``path``, or None. Raises when it is not that."""
        info = targets.targets.get(path)
        if info is None:
            return None
        file = self.target_path(path, info.hashes["sha256"])
        data = self._read(file)
        if data is None:
            raise ReleaseError(f"{file} is missing", hint="restore it, or publish it again")
        trust.target(targets, path, data)
        return data

    # What is published ---------------------------------------------------------------------------

    def roots(self) -> list[bytes]:
        """Return all roots, the first first."""
        found: list[bytes] = []
        while data := self._read(self.metadata_path(Root.type, len(found) + 1)):
            found.append(data)
        return found

    def root(self) -> Root:
        """Return the newest root."""
        roots = self.roots()
        if not roots:
            raise RepositoryError(f"{self.folder} has no root")
        return _signed(Root, roots[-1])

    def published(self, name: str) -> bytes | None:
        """Return the metadata that hosts see: what the timestamp leads to."""
        if name == Root.type:
            return next(reversed(self.roots()), None)
        timestamp = self._read(self.metadata_path(Timestamp.type, 0))
        if name == Timestamp.type or timestamp is None:
            return timestamp
        version = _signed(Timestamp, timestamp).snapshot_meta.version
        snapshot = self._must_read(self.metadata_path(Snapshot.type, version))
        if name == Snapshot.type:
            return snapshot
        meta = _signed(Snapshot, snapshot).meta.get(f"{name}.json")
        return self._must_read(self.metadata_path(name, meta.version)) if meta else None

    def staged(self, name: str) -> bytes | None:
        """Return an edit that is not published yet."""
        return self._read(self._staging / f"{name}.json")

    def newest(self, kind: type[S], name: str) -> S:
        """Return what a role says, unpublished edits included."""
        data = self.staged(name) or self.published(name)
        if data is None:
            raise RepositoryError(f"{self.folder} has no {name}")
        return _signed(kind, data)

    def targets(self, name: str) -> Targets:
        """Return the newest ``targets``, ``releases`` or ``channels``."""
        return self.newest(Targets, name)

    # Edits ---------------------------------------------------------------------------------------

    def create(self, plan: Plan) -> None:
        """Stage the first version of every role; nothing is published before ``commit``."""
        for name in ROLES:
            if not plan.keys.get(name):
                raise RepositoryError(f"nobody is named to sign {name}")
        root = Root(consistent_snapshot=True, roles={name: Role([], 1) for name in _TOP})
        top = Targets(
            delegations=Delegations(
                keys={},
                roles={
                    name: DelegatedRole(name, [], 1, terminating=True, paths=[pattern])
                    for name, pattern in DELEGATED.items()
                },
            )
        )
        for name in ROLES:
            delegator: Root | Targets = top if name in DELEGATED else root
            for key in plan.keys[name]:
                delegator.add_key(key, name)
            delegator.get_delegated_role(name).threshold = plan.thresholds.get(name, 1)
            check_threshold(delegator, name)
        for name, signed in (
            (Root.type, root), (Targets.type, top), (RELEASES, Targets()), (CHANNELS, Targets()),
            (Snapshot.type, Snapshot(meta={})), (Timestamp.type, Timestamp()),
        ):  # fmt: skip
            signed.unrecognized_fields[_DAYS] = plan.days.get(name, EXPIRES_DAYS[name])
            self.stage(name, signed)

    def stage(self, name: str, signed: Root | Targets | Snapshot | Timestamp) -> None:
        """Keep an edit of a role as its next version, signed by the keys at hand."""
        published = self.published(name)
        signed.version = _version(published) + 1 if published else 1
        self._date(name, signed)
        self._write_staged(name, Metadata(signed))

    def write_target(self, targets: Targets, path: str, data: bytes) -> None:
        """Write a target's file and list it in ``targets``, which the caller stages."""
        info = TargetFile.from_data(path, data, ["sha256"])
        self.write(self.target_path(path, info.hashes["sha256"]), data)
        targets.targets[path] = info

    def write(self, path: Path, data: bytes) -> None:
        """Write a file of the tree, durably; one with these bytes stays."""
        if self._read(path) == data:
            return
        with _translated(path):
            files.make_folders(path.parent)
            files.replace(path, data)

    def sign(self) -> None:
        """Add the signatures of the keys at hand to everything that is staged."""
        for name in ROLES:
            if data := self.staged(name):
                found = trust.metadata(data)
                self._write_staged(name, found)

    def waiting(self) -> list[Waiting]:
        """Return the staged roles that cannot be published yet, and who could help."""
        root, found = self._next_root(), list[Waiting]()
        for name in ROLES:
            data = self.staged(name)
            if data is None:
                continue
            judges = self._root_judges(data) if name == Root.type else [
                self._delegator(name, root, {it.role for it in found})
            ]  # fmt: skip
            lacks = (_lack(judge, name, data) for judge in judges)
            found.extend(list(filter(None, lacks))[:1])
        return found

    # Publishing ----------------------------------------------------------------------------------

    def commit(self, *, refresh: bool = False) -> Committed:
        """Publish what has enough signatures.

        ``refresh`` signs a new timestamp in any case, and anew what is past half of its time, as
        far as the keys are online. Raises RepositoryError when keys are missing without which
        nothing can be published.
        """
        waiting = tuple(self.waiting())
        held = {it.role for it in waiting}
        if not self.exists and held:
            return Committed(waiting=waiting)
        root = self._next_root()
        data = {
            name: self._role(name, root, held, renew=refresh) for name in (Targets.type, *DELEGATED)
        }
        data[Snapshot.type] = self._snapshot(root, data, renew=refresh)
        timestamp = self._timestamp(root, data[Snapshot.type], renew=refresh)
        new_root = None if Root.type in held else self.staged(Root.type)
        published = self._write(new_root, data, timestamp)
        for name in ROLES:
            if name not in held:
                self._unstage(name)
        return Committed(published=published, waiting=waiting)

    def _write(
        self, new_root: bytes | None, roles: Mapping[str, bytes], timestamp: bytes
    ) -> tuple[str, ...]:
        """Write what is new, in the order in which nobody ever sees half of it."""
        last = [(Timestamp.type, timestamp)]
        if new_root is not None:
            last.append((Root.type, new_root))
            roots = self.roots()
            if not roots or not _accepts(_signed(Root, roots[-1]), Timestamp.type, timestamp):
                last.reverse()  # the old keys are not at hand: until both are there, nobody learns
        done = []
        for name, data in (*roles.items(), *last):
            version = _version(data)
            path = self.metadata_path(name, version)
            if self._read(path) != data:
                self.write(path, data)
                done.append(f"{name} {version}")
        return tuple(done)

    def _role(self, name: str, root: Root, held: Container[str], *, renew: bool) -> bytes:
        """Return the metadata of a role below ``root``, staged or as it is, signed well."""
        staged = None if name in held else self.staged(name)
        data = staged or self.published(name)
        if data is None:
            raise RepositoryError(f"{self.folder} has no {name}")
        signed = _signed(Targets, data)
        late = renew and name in ONLINE and self._is_past_half(signed, name)
        if not late and _accepts(self._delegator(name, root, held), name, data):
            return data
        try:
            return self._signed_anew(name, signed, self._delegator(name, root, held))
        except RepositoryError:
            if not self.staged(name):
                self.stage(name, signed)  # so that those who can sign find it
            raise

    def _snapshot(self, root: Root, roles: Mapping[str, bytes], *, renew: bool) -> bytes:
        meta = {f"{name}.json": _meta(data) for name, data in roles.items()}
        data = self.published(Snapshot.type)
        if data is not None:
            old = _signed(Snapshot, data)
            fresh = not (renew and self._is_past_half(old, Snapshot.type))
            if old.meta == meta and fresh and _accepts(root, Snapshot.type, data):
                return data
        signed = self.newest(Snapshot, Snapshot.type)
        signed.meta = meta
        return self._signed_anew(Snapshot.type, signed, root)

    def _timestamp(self, root: Root, snapshot: bytes, *, renew: bool) -> bytes:
        meta = _meta(snapshot)
        data = self.published(Timestamp.type)
        if data is not None:
            old = _signed(Timestamp, data)
            if old.snapshot_meta == meta and not renew and _accepts(root, Timestamp.type, data):
                return data
        signed = self.newest(Timestamp, Timestamp.type)
        signed.snapshot_meta = meta
        signed.unrecognized_fields[SIGNED_AT] = f"{self.now:%Y-%m-%dT%H:%M:%SZ}"
        return self._signed_anew(Timestamp.type, signed, root)

    def _signed_anew(self, name: str, signed: S, delegator: Root | Targets) -> bytes:
        """Return the next version of a role, signed as ``delegator`` wants it."""
        published = self.published(name)
        signed.version = _version(published) + 1 if published else 1
        self._date(name, signed)
        metadata = Metadata(signed)
        self._sign(name, metadata)
        data = metadata.to_bytes(_COMPACT)
        if lacks := _lack(delegator, name, data):
            names = ", ".join(self.keyring.name(it) or it[:12] for it in lacks.missing)
            raise RepositoryError(
                f"{name} has to be signed anew by {lacks.threshold - lacks.signed} more of its"
                f" keys: {names}",
                hint="add --keys FOLDER with them and repeat; what is staged stays",
            )
        return data

    # Who signs -----------------------------------------------------------------------------------

    def _next_root(self) -> Root:
        """Return the staged root if it can be published, or else the published one."""
        data = self.staged(Root.type)
        if data and all(_accepts(judge, Root.type, data) for judge in self._root_judges(data)):
            return _signed(Root, data)
        return self.newest(Root, Root.type) if data and not self.roots() else self.root()

    def _delegator(self, name: str, root: Root, held: Container[str]) -> Root | Targets:
        """Return who will say who signs the role ``name``."""
        if name not in DELEGATED:
            return root
        staged = None if Targets.type in held else self.staged(Targets.type)
        return _signed(Targets, staged or self.published(Targets.type) or b"")

    def _root_judges(self, data: bytes) -> list[Root]:
        """Return the roots that must find a staged root signed well: the last one, and itself."""
        return [_signed(Root, it) for it in (*self.roots()[-1:], data)]

    def _sign(self, name: str, metadata: Metadata[Any]) -> None:
        """Add a signature of each key at hand that speaks for the role, now or next."""
        ids: dict[str, None] = {}
        for source in (self.staged, self.published):
            for holder in (Root.type, Targets.type):
                data = source(holder)
                if data is None:
                    continue
                ids.update(dict.fromkeys(_key_ids(trust.metadata(data).signed, name)))
        if name in (Root.type, Targets.type) and isinstance(metadata.signed, Root | Targets):
            ids.update(dict.fromkeys(_key_ids(metadata.signed, name)))
        for signer in self.keyring.signers(ids):
            if signer.public_key.keyid not in metadata.signatures:
                metadata.sign(signer, append=True)

    def _write_staged(self, name: str, metadata: Metadata[Any]) -> None:
        self._sign(name, metadata)
        self.write(self._staging / f"{name}.json", metadata.to_bytes(_COMPACT))

    def _unstage(self, name: str) -> None:
        with _translated(self._staging):
            (self._staging / f"{name}.json").unlink(missing_ok=True)

    # Time ----------------------------------------------------------------------------------------

    def _date(self, name: str, signed: Signed) -> None:
        days = signed.unrecognized_fields.get(_DAYS, EXPIRES_DAYS[name])
        signed.expires = self.now + timedelta(days=days)

    def _is_past_half(self, signed: Signed, name: str) -> bool:
        days = signed.unrecognized_fields.get(_DAYS, EXPIRES_DAYS[name])
        return signed.expires - self.now < timedelta(days=days) / 2

    # Reading -------------------------------------------------------------------------------------

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RepositoryError(f"cannot read {path}: {error.strerror}") from error

    def _must_read(self, path: Path) -> bytes:
        data = self._read(path)
        if data is None:
            raise RepositoryError(f"{path} is missing", hint="restore it from a copy")
        return data


def check_threshold(delegator: Root | Targets, name: str) -> None:
    """Raise RepositoryError when a role wants more signatures than it has keys."""
    role = delegator.get_delegated_role(name)
    if not 1 <= role.threshold <= len(role.keyids):
        raise RepositoryError(
            f"{name} wants {role.threshold} signatures, and has {len(role.keyids)} keys"
        )


def _signed(kind: type[S], data: bytes) -> S:
    """Read metadata of our own making."""
    signed = trust.metadata(data).signed
    if not isinstance(signed, kind):
        raise RepositoryError(f"a file holds {signed.type}, wanted {kind.type}")
    return signed


def _version(data: bytes) -> int:
    version: int = trust.metadata(data).signed.version
    return version


def _key_ids(delegator: Root | Targets, name: str) -> list[str]:
    try:
        return trust.key_ids(delegator, name)
    except ValueError:
        return []


def _lack(delegator: Root | Targets, name: str, data: bytes) -> Waiting | None:
    """Return what is missing for ``delegator`` to accept a role."""
    found = trust.metadata(data)
    result = delegator.get_verification_result(name, found.signed_bytes, found.signatures)
    if result.verified:
        return None
    return Waiting(
        role=name,
        version=found.signed.version,
        signed=len(result.signed),
        threshold=result.threshold,
        missing=tuple(result.unsigned),
    )


def _accepts(delegator: Root | Targets, name: str, data: bytes) -> bool:
    return _lack(delegator, name, data) is None


def _meta(data: bytes) -> MetaFile:
    """Return how a role is named in what vouches for it."""
    digest = hashlib.sha256(data).hexdigest()
    return MetaFile(_version(data), len(data), {"sha256": digest})


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"cannot write {error.filename or path}: {error.strerror}") from error
