"""Releases: what a signed ``release.json`` says, and whether one of them is for this host, now.

The answer is a release's version, or a Wait that says why not. Nothing here fetches: ``wanted``
decides by the channel alone which version it would be, ``held_back`` by that version's release
whether this host can go there; in between, the caller gets the release.

Whatever a host's owner forces: never past a signature, a quarantine or a pause, never to another
product or architecture.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from msgspec import Meta

from update_agent.core import document
from update_agent.core.channel import Channel
from update_agent.core.document import Format, Name, Sha256, Size, Time
from update_agent.core.reason import Reason, Wait
from update_agent.core.rollout import percent, place
from update_agent.core.version import Version
from update_agent.errors import ReleaseError

MAX_SIZE = 64 * 1024
"""Bytes of a ``release.json``."""

MAX_INDEX = 64 * 2**20
"""Bytes of an index: of an image of some forty gigabytes."""


class IdentityError(ReleaseError):
    """What is signed well is meant for others: another product, architecture or version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The image that hosts of a delta payload have in their booted slot."""

    version: Version
    root_hash: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadReference:
    """Where a payload is, by what it must be: files are named after the hash of the index."""

    index_size: Annotated[int, Meta(ge=1, le=MAX_INDEX)]
    index_sha256: Sha256
    blob_size: Size
    stored_size: Size
    """Bytes that a host fetches which has nothing of it."""
    source: Source | None = None
    """None for the full payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What ``release.json`` says."""

    format: Format = 1
    product: Name
    architecture: Name
    version: Version
    published: Time
    image_size: Size
    root_hash: Sha256
    minimum_version: Version | None = None
    """Below this, a host takes another release first."""
    payloads: Annotated[tuple[PayloadReference, ...], Meta(min_length=1, max_length=64)]

    def __post_init__(self) -> None:
        if sum(payload.source is None for payload in self.payloads) != 1:
            raise ValueError("wanted exactly one payload without source, the full one")

    @property
    def full(self) -> PayloadReference:
        """The payload that every host can use."""
        return next(payload for payload in self.payloads if payload.source is None)

    def payloads_for(self, version: Version) -> list[PayloadReference]:
        """Return what a host with ``version`` can use: its delta payload first, then the full."""
        deltas = [it for it in self.payloads if it.source and it.source.version == version]
        return [*deltas, self.full]

    def index_path(self, payload: PayloadReference) -> str:
        """Return where the payload's index is in the repository."""
        return f"{payload_folder(self.product, self.version)}/{payload.index_sha256}.index"

    def blob_path(self, payload: PayloadReference) -> str:
        """Return where the payload's blob is in the repository."""
        return self.index_path(payload).removesuffix(".index") + ".blob"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the answer depends on."""

    product: str
    architecture: str
    version: Version
    machine_id: str
    failed: frozenset[Version] = frozenset()
    """Releases that were tried here and did not come up."""
    forced: bool = False
    """Somebody on the host wants it now: past waves and what failed."""


def path(product: str, version: Version) -> str:
    """Return the path of a release's document in the repository."""
    return f"releases/{product}/{version}/release.json"


def payload_folder(product: str, version: Version) -> str:
    """Return where the payloads of a release are in the repository."""
    return f"payloads/{product}/{version}"


def decode(data: bytes, product: str, version: Version) -> Release:
    """Return the release that ``data`` describes. Raises DocumentError, IdentityError."""
    what = f"release {product} {version}"
    found = document.decode(data, Release, what, max_size=MAX_SIZE)
    if (found.product, found.version) != (product, version):
        raise IdentityError(f"{what}: the document is that of {found.product} {found.version}")
    return found


# The answer --------------------------------------------------------------------------------------


def wanted(host: Host, channel: Channel, now: datetime) -> Version | Wait:
    """Return the version that ``host`` should install now, or why none. Raises IdentityError."""
    if channel.product != host.product:
        raise IdentityError(
            f"channel {channel.channel} is for product {channel.product},"
            f" this host's is {host.product}",
            hint="choose a channel of this host's product",
        )
    target = channel.next_stop(host.version)
    if target is None:
        return _wait(
            Reason.UP_TO_DATE, f"channel {channel.channel} offers nothing yet", "a first promotion"
        )
    if target == host.version:
        return _wait(Reason.UP_TO_DATE, f"{target} is what channel {channel.channel} offers",
                     "a newer release")  # fmt: skip
    return _forbidden(host, channel, target) or _not_yet(host, channel, now) or target


def held_back(host: Host, release: Release) -> Wait | None:
    """Return why ``host`` cannot go to ``release``, if so. Raises IdentityError."""
    if release.architecture != host.architecture:
        raise IdentityError(
            f"release {release.product} {release.version} is for {release.architecture},"
            f" this host is {host.architecture}",
            hint="choose a channel for this host's architecture",
        )
    minimum = release.minimum_version
    if minimum and host.version < minimum:
        return _wait(
            Reason.TOO_OLD,
            f"{release.version} can be installed from {minimum} or later, this host has"
            f" {host.version}",
            f"a floor at {minimum} or later in the channel",
        )
    return None


def withdrawn(channel: Channel, version: Version) -> Wait:
    """Return the answer when the repository has no release ``version``."""
    return _wait(
        Reason.WITHDRAWN,
        f"channel {channel.channel} offers {version}, which the repository does not have any more",
        "a promotion of another release",
    )


def _forbidden(host: Host, channel: Channel, target: Version) -> Wait | None:
    if target < host.version and host.version not in channel.downgrade_from:
        return _wait(
            Reason.DOWNGRADE,
            f"channel {channel.channel} offers {target}, this host has the newer {host.version}",
            "a newer release, or a channel that allows this downgrade",
        )
    if target in channel.quarantined:
        return _wait(Reason.QUARANTINED, f"{target} is quarantined in channel {channel.channel}",
                     "another release")  # fmt: skip
    if target in host.failed and not host.forced:
        return _wait(
            Reason.FAILED_HERE,
            f"{target} was tried on this host and did not come up",
            "a newer release, or update-agentctl force",
        )
    return None


def _not_yet(host: Host, channel: Channel, now: datetime) -> Wait | None:
    rollout = channel.rollout
    if rollout is None:
        raise ValueError("a channel with a next stop has a rollout")
    if channel.version is None:
        raise ValueError("a channel with a rollout has a version")
    where = place(host.machine_id, host.product, channel.version)
    if rollout.is_open(where, now) or (host.forced and not rollout.paused):
        return None
    if rollout.paused:
        return _wait(
            Reason.PAUSED,
            f"the rollout of {channel.version} is paused by {rollout.paused.author}:"
            f" {rollout.paused.reason or 'no reason given'}",
            "an operator who resumes it",
        )
    until = rollout.opens_at(where)
    if until is None:
        return _wait(
            Reason.NO_WAVE,
            f"the rollout of {channel.version} ends at {percent(rollout.waves[-1].share)} of the"
            f" hosts, this one stands at {percent(where)}",
            "a further wave",
        )
    return Wait(
        reason=Reason.WAVE,
        sentence=f"this host stands at {percent(where)} in the rollout of {channel.version}",
        ends=f"its wave, at {until:%Y-%m-%d %H:%M} UTC",
        until=until,
    )


def _wait(reason: Reason, sentence: str, ends: str) -> Wait:
    return Wait(reason=reason, sentence=sentence, ends=ends)
