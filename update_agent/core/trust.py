r"""Who may say what: from a trusted root to a release, by signatures over bytes alone.

TUF's roles, as this project uses them (who signs what is in the root and in ``targets``):

    root -> targets -> releases  -> releases/PRODUCT/VERSION/release.json -> index -> chunks
                   \-> channels  -> channels/NAME.json
    root -> timestamp -> snapshot: how new all this is

The rules kept here: nothing is decoded before its signatures were checked, but for what says who
signed; no public key counts twice towards a threshold, whatever it is called and however it is
written; ``targets`` alone delegates, and says nothing but who speaks for releases and for channels,
and each of them speaks only in its own folder.
How new things are is for ``host/trust.py``, which has a clock and a memory; the writer, which has
neither network nor trust in those who call it, lives by ``prove`` alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Key,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from update_agent.core import channel, document, release, shape
from update_agent.core.channel import Channel
from update_agent.core.document import ForeignError
from update_agent.core.release import Release
from update_agent.core.version import Version

RELEASES = "releases"
CHANNELS = "channels"
DELEGATED = {RELEASES: "releases/*/*/release.json", CHANNELS: "channels/*.json"}
"""The roles that ``targets`` delegates to, and the paths that each speaks for."""

MAX_SIZES: Mapping[str, int] = {
    Root.type: 512_000,
    Timestamp.type: 16_384,
    Snapshot.type: 256_000,
    Targets.type: 256_000,
    RELEASES: 16_000_000,
    CHANNELS: 1_000_000,
}
"""Bytes of a role's metadata."""

MAX_ROTATIONS = 256
"""Roots that a host goes through at once."""

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""Of time, for who remembers nothing."""

SIGNED_AT = "x-signed-at"
"""The field of ``timestamp`` that moves the clocks of hosts whose own is behind."""

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
Delegator = Root | Targets


class UntrustedError(ForeignError):
    """Something is not signed by those who have to sign it, or not what was signed."""


class ExpiredError(ForeignError):
    """Signed well, but not meant to be used any longer."""


class RollbackError(ForeignError):
    """Older than what was trusted before, or another content under the same version."""


# One role ----------------------------------------------------------------------------------------


def metadata(data: bytes) -> Metadata[Any]:
    """Return metadata as it is: nothing is verified here. Raises UntrustedError."""
    try:
        return Metadata.from_bytes(data)
    except DeserializationError as error:
        raise UntrustedError(f"this is no TUF metadata: {error.__cause__ or error}") from error


def trusted_root(data: bytes) -> Root:
    """Return the root that everything begins with. Raises UntrustedError, DocumentError."""
    if not data.strip():
        raise UntrustedError(
            "the trusted root is empty", hint="put the repository's root.json there; see README"
        )
    root = _read(Root, data, Root.type)
    _want_signatures(root.signed, Root.type, root)
    return root.signed


def next_root(root: Root, data: bytes) -> Root:
    """Return the root that follows ``root``, signed by its keys and by its own.

    Raises UntrustedError, DocumentError.
    """
    following = _read(Root, data, Root.type)
    if following.signed.version != root.version + 1:
        raise UntrustedError(
            f"root {following.signed.version} is offered, wanted root {root.version + 1}"
        )
    _want_signatures(root, Root.type, following)
    _want_signatures(following.signed, Root.type, following)
    return following.signed


def role(delegator: Delegator, kind: type[S], name: str, data: bytes) -> S:
    """Return what role ``name`` says, signed by those whom ``delegator`` names.

    Raises UntrustedError, DocumentError.
    """
    found = _read(kind, data, name)
    _want_signatures(delegator, name, found)
    return found.signed


def delegated(targets: Targets, name: str, data: bytes) -> Targets:
    """Return what a role of ``DELEGATED`` says, if it says nothing but what it may.

    Raises UntrustedError, DocumentError.
    """
    found = role(targets, Targets, name, data)
    for path in found.targets:
        if not fnmatchcase(path, DELEGATED[name]) or path.count("/") != DELEGATED[name].count("/"):
            raise UntrustedError(f"{name} speaks about {path!a}, which is not its to say")
    return found


def want_current(signed: Signed, name: str, now: datetime) -> None:
    """Raise ExpiredError when ``signed`` is over at ``now``."""
    if signed.is_expired(now):
        raise ExpiredError(
            f"{name} {signed.version} expired at {signed.expires:%Y-%m-%d %H:%M} UTC, and it is"
            f" {now:%Y-%m-%d %H:%M} UTC now",
            hint="whoever publishes has to sign anew (update-publish refresh);"
            " or is the clock of this host wrong?",
        )


def target(targets: Targets, path: str, data: bytes) -> None:
    """Raise UntrustedError unless ``data`` is what ``targets`` says is at ``path``."""
    info = targets.targets.get(path)
    if info is None:
        raise UntrustedError(f"{path} is not in what the release team signed")
    wanted = info.hashes.get("sha256")
    if len(data) != info.length or hashlib.sha256(data).hexdigest() != wanted:
        raise UntrustedError(
            f"{path} is not what was signed: {len(data)} bytes with the SHA-256"
            f" {hashlib.sha256(data).hexdigest()}, wanted {info.length} with {wanted}"
        )


def key_ids(delegator: Delegator, name: str) -> list[str]:
    """Return who speaks for the role ``name``, sorted."""
    return sorted(delegator.get_delegated_role(name).keyids)


def check(data: bytes, name: str) -> Metadata[Any]:
    """Return metadata of role ``name`` that is well formed; what it says is not trusted yet.

    Raises UntrustedError, DocumentError.
    """
    shape.check(data, name, max_size=MAX_SIZES[name])
    found = metadata(data)
    wanted = Targets.type if name in DELEGATED else name
    if found.signed.type != wanted:
        raise UntrustedError(f"{name} is metadata of type {found.signed.type}, wanted {wanted}")
    if isinstance(found.signed, Root):
        _want_distinct_keys(found.signed.keys, name)
    if isinstance(found.signed, Targets):
        _check_delegations(found.signed, name)
    return found


def _check_delegations(targets: Targets, name: str) -> None:
    if targets.delegations is None:
        return
    if name != Targets.type:
        raise UntrustedError(f"{name} delegates, which is for {Targets.type} alone")
    _want_distinct_keys(targets.delegations.keys, name)


def _read(kind: type[S], data: bytes, name: str) -> Metadata[S]:
    found = check(data, name)
    if not isinstance(found.signed, kind):
        raise TypeError(f"{name} is no {kind.__name__}")
    return found


def _want_signatures(delegator: Delegator, name: str, found: Metadata[S]) -> None:
    try:
        result = delegator.get_verification_result(name, found.signed_bytes, found.signatures)
    except (ValueError, RepositoryError) as error:
        raise UntrustedError(f"nobody can say who signed {name}: {error}") from error
    if not result.verified:
        raise UntrustedError(
            f"{name} {found.signed.version} has {len(result.signed)} good signatures by the keys in"
            f" {delegator.type} {delegator.version}, wanted {result.threshold}"
        )


def _want_distinct_keys(keys: Mapping[str, Key], name: str) -> None:
    seen: dict[str, str] = {}
    for key_id, key in keys.items():
        public = _public(key, name)
        if public in seen:
            raise UntrustedError(f"{name} names one key twice: as {seen[public]} and as {key_id}")
        seen[public] = key_id


def _public(key: Key, name: str) -> str:
    """Return a public key as it is written by everyone: hex has two cases, PEM has many forms."""
    value = key.keyval.get("public")
    if not isinstance(value, str):
        return str(value)
    try:
        if key.keytype == "ed25519":
            return bytes.fromhex(value).hex()
        found = load_pem_public_key(value.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UntrustedError(f"{name} names the key {key.keyid}, which is none: {error}") from error
    return found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).hex()


# All roles ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sayings:
    """What a repository says at one time, each role vouched for by the ones before."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    delegated: Mapping[str, Targets]

    @property
    def signed_at(self) -> datetime | None:
        """When the timestamp was signed, where it says so and all the others were current then.

        Whoever stole its key alone can't set clocks past the end of what offline keys signed.
        """
        text = self.timestamp.unrecognized_fields.get(SIGNED_AT)
        try:
            time = datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            return None
        parts = (self.root, self.timestamp, self.snapshot, self.targets, *self.delegated.values())
        return time if all(time < it.expires for it in parts) else None

    def want_current(self, now: datetime) -> None:
        """Raise ExpiredError when some of it is over at ``now``."""
        want_current(self.root, Root.type, now)
        want_current(self.timestamp, Timestamp.type, now)
        want_current(self.snapshot, Snapshot.type, now)
        want_current(self.targets, Targets.type, now)
        for name, targets in self.delegated.items():
            want_current(targets, name, now)


def sayings(root: Root, data: Mapping[str, bytes]) -> Sayings:
    """Return what the roles in ``data``, by name, say under ``root``.

    Raises UntrustedError, DocumentError; RollbackError when a role is not of the version that the
    others speak of.
    """
    for name in (Timestamp.type, Snapshot.type, Targets.type, *DELEGATED):
        if name not in data:
            raise UntrustedError(f"{name} is missing")
    timestamp = role(root, Timestamp, Timestamp.type, data[Timestamp.type])
    snapshot = role(root, Snapshot, Snapshot.type, data[Snapshot.type])
    _want_vouched(timestamp.snapshot_meta, Snapshot.type, snapshot.version, data)
    targets = role(root, Targets, Targets.type, data[Targets.type])
    _want_vouched(snapshot.meta.get("targets.json"), Targets.type, targets.version, data)
    found = {name: delegated(targets, name, data[name]) for name in DELEGATED}
    for name, says in found.items():
        _want_vouched(snapshot.meta.get(f"{name}.json"), name, says.version, data)
    return Sayings(
        root=root, timestamp=timestamp, snapshot=snapshot, targets=targets, delegated=found
    )


def _want_vouched(
    meta: MetaFile | None, name: str, version: int, data: Mapping[str, bytes]
) -> None:
    if meta is None:
        raise UntrustedError(f"nothing vouches for {name}")
    if version != meta.version:
        raise RollbackError(f"{name} {version} is there, wanted {name} {meta.version}")
    try:
        meta.verify_length_and_hashes(data[name])
    except RepositoryError as error:
        raise UntrustedError(f"{name} {version} is not what was vouched for: {error}") from error


# How high it was ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The highest version of a role that was ever trusted, and whose word made it so."""

    version: document.Count
    content: document.Sha256
    """Of what was signed; signatures may differ."""
    keys: document.Sha256
    """Of the ids of the keys that vouch for the version. Who counted up with stolen keys is
    forgotten with these keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HighWater:
    """What a host remembers of all it ever trusted."""

    time: document.Time = BEGINNING
    """The newest that was ever known for certain; no clock is right that runs behind."""
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def floor(self, root: Root) -> datetime:
        """Return the earliest time that it can be now, by the word of keys that still count."""
        old = self.marks.get(Timestamp.type)
        return self.time if old and old.keys == _keys(root, Timestamp.type) else BEGINNING

    def raised(self, marks: Mapping[str, Mark], time: datetime = BEGINNING) -> "HighWater":
        """Return this with ``marks``, each of them as high as or higher than what it replaces.

        The time is raised to ``time``, or begins anew there when other keys vouch for it now: who
        set clocks forward with stolen keys is forgotten too. Raises RollbackError.
        """
        for name, mark in marks.items():
            self._want_not_below(name, mark)
        old, new = self.marks.get(Timestamp.type), marks.get(Timestamp.type)
        if not (old and new) or old.keys == new.keys:
            time = max(self.time, time)
        return HighWater(time=time, marks={**self.marks, **marks})

    def _want_not_below(self, name: str, mark: Mark) -> None:
        old = self.marks.get(name)
        if old is None or old.keys != mark.keys:
            return
        if mark.version < old.version:
            raise rolled_back(name, mark.version, old.version)
        if mark.version == old.version and mark.content != old.content:
            raise RollbackError(f"{name} {mark.version} says something else than it did before")


def mark(root: Root, name: str, data: bytes) -> Mark:
    """Return the mark of a role whose metadata, ``data``, was verified under ``root``."""
    found = metadata(data)
    return Mark(
        version=found.signed.version,
        content=hashlib.sha256(found.signed_bytes).hexdigest(),
        keys=_keys(root, name),
    )


def _keys(root: Root, name: str) -> document.Sha256:
    """Return what stands for the keys that vouch for the versions of a role."""
    voucher = {Root.type: "", Timestamp.type: Timestamp.type}.get(name, Snapshot.type)
    ids = key_ids(root, voucher) if voucher else []
    return hashlib.sha256(" ".join(ids).encode()).hexdigest()


def rolled_back(name: str, offered: int, before: int) -> RollbackError:
    """Return the error for a version that is lower than one before."""
    return RollbackError(
        f"{name} {offered} is offered, version {before} was trusted before",
        hint="a server that is behind, or somebody who wants this host to stay behind",
    )


def versions(data: Mapping[str, bytes]) -> dict[str, int]:
    """Return the versions of roles that metadata tells, by role; nothing is verified here."""
    found: dict[str, int] = {}
    for name, text in data.items():
        signed = metadata(text).signed
        found[name] = signed.version
        if isinstance(signed, Timestamp):
            found[Snapshot.type] = signed.snapshot_meta.version
        if isinstance(signed, Snapshot):
            found |= {it.removesuffix(".json"): meta.version for it, meta in signed.meta.items()}
    return found


# The whole way -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The signed bytes that lead from a trusted root to a release."""

    roots: Sequence[bytes] = ()
    """What follows the trusted root, in order."""
    targets: bytes
    releases: bytes
    release: bytes
    channels: bytes | None = None
    channel: bytes | None = None
    """Needed when the release is older than what runs: the channel that allows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """What follows from evidence."""

    release: Release
    channel: Channel | None
    root_version: int
    releases_version: int
    """To be remembered: no older ``releases`` should be believed later."""


def prove(
    trusted: bytes,
    evidence: Evidence,
    *,
    product: str,
    version: Version,
    now: datetime,
    channel_name: str | None = None,
) -> Proven:
    """Return the release ``version`` of ``product`` if ``evidence`` proves that it was released.

    ``trusted`` is the root that came with the system. Whether it is for a host is another question.
    Raises UntrustedError, ExpiredError, DocumentError, IdentityError.
    """
    root = root_at_the_end(trusted, evidence.roots)
    want_current(root, Root.type, now)
    targets = role(root, Targets, Targets.type, evidence.targets)
    want_current(targets, Targets.type, now)
    releases = delegated(targets, RELEASES, evidence.releases)
    want_current(releases, RELEASES, now)
    target(releases, release.path(product, version), evidence.release)
    return Proven(
        release=release.decode(evidence.release, product, version),
        channel=_channel(targets, evidence, channel_name, now) if channel_name else None,
        root_version=root.version,
        releases_version=releases.version,
    )


def _channel(targets: Targets, evidence: Evidence, name: str, now: datetime) -> Channel:
    if evidence.channels is None or evidence.channel is None:
        raise UntrustedError(f"nothing proves what channel {name} says")
    channels = delegated(targets, CHANNELS, evidence.channels)
    want_current(channels, CHANNELS, now)
    target(channels, channel.path(name), evidence.channel)
    return channel.decode(evidence.channel, name)


def root_at_the_end(trusted: bytes, following: Iterable[bytes]) -> Root:
    """Return the last root of a chain that begins with the trusted one.

    Raises UntrustedError, DocumentError.
    """
    root = trusted_root(trusted)
    for count, data in enumerate(following):
        if count >= MAX_ROTATIONS:
            raise UntrustedError(f"more than {MAX_ROTATIONS} roots at once")
        root = next_root(root, data)
    return root


def index(data: bytes, reference: release.PayloadReference) -> None:
    """Raise UntrustedError unless ``data`` is the index that a release names."""
    found = hashlib.sha256(data).hexdigest()
    if (len(data), found) != (reference.index_size, reference.index_sha256):
        raise UntrustedError(
            f"the index has {len(data)} bytes and the SHA-256 {found}, wanted"
            f" {reference.index_size} and {reference.index_sha256}"
        )
