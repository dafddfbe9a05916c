"""What a repository has for a host: a release with what proves it, or why there is none."""

from dataclasses import dataclass
from datetime import datetime

from update_agent.core import release
from update_agent.core.reason import Wait
from update_agent.core.release import Host, Release
from update_agent.core.rollout import place
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.host.trust import TrustedRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The answer: a release, or why there is none; and how new what it follows from is."""

    release: Release | None
    wait: Wait | None
    place: int | None
    time: datetime
    version: Version | None = None
    """What the channel offers to whoever's turn it is."""


def ask(repository: TrustedRepository, host: Host, channel_name: str) -> Offer:
    """Return what a refreshed ``repository`` has for ``host``. Raises ReleaseError, HostError."""
    channel = repository.channel(channel_name)
    if channel is None:
        raise HostError(
            f"the repository has no channel {channel_name}", hint="name another with --channel"
        )
    where = place(host.machine_id, host.product, channel.version) if channel.version else None
    found, wait = None, None
    answer = release.wanted(host, channel, repository.now)
    if isinstance(answer, Wait):
        wait = answer
    else:
        found = repository.release(host.product, answer)
        wait = release.held_back(host, found) if found else release.withdrawn(channel, answer)
    return Offer(
        release=None if wait else found,
        wait=wait,
        place=where,
        time=repository.now,
        version=channel.version,
    )
