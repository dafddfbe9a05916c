"""Channels in a repository: one edit, under the lock, signed and published at once.

What an edit means is in ``core/channel.py``. An edit that changes nothing publishes nothing, so a
command can be repeated; of two operators at once, the second edits what the first left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from update_agent.core import channel, document, release, trust
from update_agent.core.channel import Change, Channel
from update_agent.core.rollout import percent
from update_agent.core.trust import CHANNELS, RELEASES
from update_agent.core.version import Version
from update_agent.publish.releases import withdrawals
from update_agent.publish.repository import Committed, Repository, RepositoryError


def find(repository: Repository, name: str) -> Channel:
    """Return a channel. Raises RepositoryError when there is none of this name."""
    targets = repository.targets(CHANNELS)
    data = repository.read_target(targets, channel.path(name))
    if data is None:
        known = ", ".join(it.channel for it in listed(repository)) or "none"
        raise RepositoryError(f"there is no channel {name}", hint=f"known: {known}")
    return channel.decode(data, name)


def listed(repository: Repository) -> list[Channel]:
    """Return all channels, sorted by name."""
    return [find(repository, name) for name in names(repository)]


def names(repository: Repository) -> list[str]:
    """Return the names of all channels, sorted."""
    paths = repository.targets(CHANNELS).targets
    return sorted(path.removeprefix("channels/").removesuffix(".json") for path in paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A channel after an edit, and what became of it."""

    channel: Channel
    changed: bool
    public: bool
    """Whether hosts see it; or else it waits for signatures."""
    committed: Committed


def create(repository: Repository, name: str, product: str, change: Change) -> Edited:
    """Make a channel that offers nothing yet; one that is there stays."""
    made = Channel.created(name, product, change)
    channel.decode(document.encode(made), name)
    with repository.locked():
        repository.want()
        known = channel.path(name) in repository.targets(CHANNELS).targets
        if known:
            made = find(repository, name)
        else:
            _write(repository, made)
        if made.product != product:
            raise RepositoryError(f"channel {name} exists, for product {made.product}")
        return _commit(repository, made, changed=not known)


def edit(repository: Repository, name: str, change: Callable[[Channel], Channel]) -> Edited:
    """Change a channel and publish it."""
    with repository.locked():
        repository.want()
        before = find(repository, name)
        after = change(before)
        # What hosts would refuse is refused here.
        channel.decode(document.encode(after), name)
        if after != before:
            _write(repository, after)
        return _commit(repository, after, changed=after != before)


def offerable(repository: Repository, product: str) -> list[Version]:
    """Return the versions of ``product`` that hosts can get, the newest first."""
    public = repository.published(RELEASES)
    paths = trust.metadata(public).signed.targets if public else {}
    parts = (path.split("/") for path in paths)
    return sorted((Version(it[2]) for it in parts if it[1] == product), reverse=True)


def want_release(repository: Repository, product: str, version: Version) -> None:
    """Raise RepositoryError unless hosts can get ``version``."""
    path = release.path(product, version)
    if path not in repository.targets(RELEASES).targets:
        raise RepositoryError(
            f"there is no release {product} {version}", hint="see update-publish release list"
        )
    public = repository.published(RELEASES)
    if public is None or path not in trust.metadata(public).signed.targets:
        raise RepositoryError(
            f"release {product} {version} waits for signatures", hint="see update-publish status"
        )


def want_known(repository: Repository, product: str, version: Version) -> None:
    """Raise RepositoryError unless ``version`` is or was a release."""
    targets, path = repository.targets(RELEASES), release.path(product, version)
    if path not in targets.targets and path not in withdrawals(targets):
        raise RepositoryError(
            f"there is no release {product} {version}",
            hint="see update-publish release list; or say --anyway",
        )


def sentence(made: Channel, now: datetime) -> str:
    """Return what a channel does, for people."""
    if made.rollout is None:
        return f"channel {made.channel} ({made.product}) offers nothing yet"
    paused = f", paused: {made.rollout.paused.reason}" if made.rollout.paused else ""
    return (
        f"channel {made.channel} ({made.product}) offers {made.version} to"
        f" {percent(made.rollout.share(now))} of the hosts{paused}"
    )


def _write(repository: Repository, made: Channel) -> None:
    targets = repository.targets(CHANNELS)
    repository.write_target(targets, channel.path(made.channel), document.encode(made))
    repository.stage(CHANNELS, targets)


def _commit(repository: Repository, made: Channel, *, changed: bool) -> Edited:
    committed, path = repository.commit(), channel.path(made.channel)
    data = repository.published(CHANNELS)
    seen = trust.metadata(data).signed.targets.get(path) if data else None
    public = bool(seen == repository.targets(CHANNELS).targets[path])
    return Edited(channel=made, changed=changed, public=public, committed=committed)
