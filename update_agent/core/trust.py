r"""Who may say what: from a trusted root to a release, by signatures over bytes alone.

TUF's roles, as this project uses them (who signs what is in the root and in ``targets``):

    root -> targets -> releases  -> releases/PRODUCT/VERSION/release.json -> index -> chunks
                   \-> channels  -> channels/NAME.json
    root -> timestamp -> snapshot: how new all this is

The rules kept here: nothing is decoded before its signatures were checked, but for what says who
signed; no public key counts twice towards a threshold, whatever it is called; ``targets`` says
nothing but who speaks for releases and for channels, and each of them only in its own folder.
How new things are is for ``host/trust.py``, which has a clock and a memory; the writer, which has
neither network nor trust in those who call it, lives by ``verify`` alone.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from tuf.api.metadata import Key, Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from update_agent.core import channel, document, release
from update_agent.core.channel import Channel
from update_agent.core.release import Release
from update_agent.core.version import Version
from update_agent.errors import ReleaseError

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

MAX_VERSION = 2**53
"""Of metadata. Whoever counts to the end of 64 bits does so to lock everyone else out."""

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
"""Of time, for who remembers nothing."""

SIGNED_AT = "x-signed-at"
"""The field of ``timestamp`` that moves the clocks of hosts whose own is behind."""

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
Delegator = Root | Targets


class UntrustedError(ReleaseError):
    """Something is not signed by those who have to sign it, or not what was signed."""


class ExpiredError(ReleaseError):
    """Signed well, but not meant to be used any longer."""


class RollbackError(ReleaseError):
    """Older than what was trusted before, or another content under the same version."""


# One role ----------------------------------------------------------------------------------------


def metadata(data: bytes) -> Metadata[Any]:
    """Return metadata that was verified before, or is about to be. Raises UntrustedError."""
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
    """Return the root that follows ``root``, signed by its keys and by its own."""
    following = _read(Root, data, Root.type)
    if following.signed.version != root.version + 1:
        raise UntrustedError(
            f"root {following.signed.version} is offered, wanted root {root.version + 1}"
        )
    _want_signatures(root, Root.type, following)
    _want_signatures(following.signed, Root.type, following)
    return following.signed


def role(delegator: Delegator, kind: type[S], name: str, data: bytes) -> S:
    """Return what role ``name`` says, signed by those whom ``delegator`` names."""
    found = _read(kind, data, name)
    _want_signatures(delegator, name, found)
    return found.signed


def delegated(targets: Targets, name: str, data: bytes) -> Targets:
    """Return what a role of ``DELEGATED`` says, if it says nothing but what it may."""
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


def _read(kind: type[S], data: bytes, name: str) -> Metadata[S]:
    """Return metadata that is well formed; what it says is not trusted yet."""
    document.check_metadata(data, name, max_size=MAX_SIZES[name])
    found = metadata(data)
    if not isinstance(found.signed, kind):
        raise UntrustedError(f"{name} is metadata of type {found.signed.type}, wanted {kind.type}")
    if found.signed.version > MAX_VERSION:
        raise UntrustedError(
            f"{name} has version {found.signed.version}, wanted at most {MAX_VERSION}"
        )
    _want_distinct_keys(found.signed, name)
    return found


def _want_signatures(delegator: Delegator, name: str, found: Metadata[S]) -> None:
    try:
        result = delegator.get_verification_result(name, found.signed_bytes, found.signatures)
    except ValueError as error:
        raise UntrustedError(f"nobody is named to sign {name}: {error}") from error
    if not result.verified:
        raise UntrustedError(
            f"{name} {found.signed.version} has {len(result.signed)} good signatures by the keys in"
            f" {delegator.type} {delegator.version}, wanted {result.threshold}"
        )


def _want_distinct_keys(signed: Signed, name: str) -> None:
    seen: dict[str, str] = {}
    for key_id, key in _keys_in(signed).items():
        public = str(sorted(key.keyval.items()))
        if public in seen:
            raise UntrustedError(f"{name} names one key twice: as {seen[public]} and as {key_id}")
        seen[public] = key_id


def _keys_in(signed: Signed) -> Mapping[str, Key]:
    if isinstance(signed, Root):
        return signed.keys
    if isinstance(signed, Targets) and signed.delegations:
        return signed.delegations.keys
    return {}


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

    def raised(self, marks: Mapping[str, Mark], time: datetime) -> "HighWater":
        """Return this with ``marks``, each of them as high as or higher than what it replaces.

        Raises RollbackError.
        """
        for name, mark in marks.items():
            self._want_not_below(name, mark)
        return HighWater(time=max(self.time, time), marks={**self.marks, **marks})

    def _want_not_below(self, name: str, mark: Mark) -> None:
        old = self.marks.get(name)
        if old is None or old.keys != mark.keys:
            return
        if mark.version < old.version:
            raise RollbackError(
                f"{name} {mark.version} is offered, {name} {old.version} was trusted before",
                hint="a server that is behind, or somebody who wants this host to stay behind",
            )
        if mark.version == old.version and mark.content != old.content:
            raise RollbackError(f"{name} {mark.version} says something else than it did before")


def mark(root: Root, name: str, data: bytes) -> Mark:
    """Return the mark of a role whose metadata, ``data``, was verified under ``root``."""
    found = metadata(data)
    voucher = {Root.type: "", Timestamp.type: Timestamp.type}.get(name, Snapshot.type)
    keys = key_ids(root, voucher) if voucher else []
    return Mark(
        version=found.signed.version,
        content=hashlib.sha256(found.signed_bytes).hexdigest(),
        keys=hashlib.sha256(" ".join(keys).encode()).hexdigest(),
    )


def signed_at(timestamp: Timestamp) -> datetime | None:
    """Return when ``timestamp`` was signed, where it says so."""
    text = timestamp.unrecognized_fields.get(SIGNED_AT)
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return time if time and time.tzinfo and time < timestamp.expires else None


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


def verify(
    trusted: bytes,
    evidence: Evidence,
    *,
    product: str,
    version: Version,
    now: datetime,
    channel_name: str | None = None,
) -> Proven:
    """Return the release ``version`` of ``product`` if ``evidence`` proves it.

    ``trusted`` is the root that came with the system. Raises UntrustedError, ExpiredError,
    DocumentError, IdentityError.
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
    """Return the last root of a chain that begins with the trusted one."""
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
