"""Channels in a repository: one edit, under the lock, signed and published at once.

What an edit means is in ``core/channel.py``. An edit that changes nothing publishes nothing, so a
command can be repeated; of two operators at once, the second edits what the first left.
"""

from collections.abc import Callable

from update_agent.core import channel, document, release
from update_agent.core.channel import Change, Channel
from update_agent.core.trust import CHANNELS, RELEASES
from update_agent.core.version import Version
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
    targets = repository.targets(CHANNELS)
    names = [path.removeprefix("channels/").removesuffix(".json") for path in targets.targets]
    return [find(repository, name) for name in sorted(names)]


def create(repository: Repository, name: str, product: str, change: Change) -> Committed:
    """Make a channel that offers nothing yet; one that is there stays."""
    made = Channel.created(name, product, change)
    document.decode(document.encode(made), Channel, f"channel {name}")
    with repository.locked():
        repository.want()
        targets = repository.targets(CHANNELS)
        if channel.path(name) not in targets.targets:
            _write(repository, made)
        elif (old := find(repository, name)).product != product:
            raise RepositoryError(f"channel {name} exists, for product {old.product}")
        return repository.commit()


def edit(
    repository: Repository, name: str, change: Callable[[Channel], Channel]
) -> tuple[Channel, Channel, Committed]:
    """Change a channel and publish it. Returns it as it was and as it is."""
    with repository.locked():
        repository.want()
        before = find(repository, name)
        after = change(before)
        # What hosts would refuse is refused here.
        channel.decode(document.encode(after), name)
        if after != before:
            _write(repository, after)
        return before, after, repository.commit()


def want_release(repository: Repository, product: str, version: Version) -> None:
    """Raise RepositoryError unless hosts can get ``version``."""
    published = repository.published(RELEASES)
    targets = repository.targets(RELEASES)
    path = release.path(product, version)
    if path not in targets.targets:
        raise RepositoryError(
            f"there is no release {product} {version}", hint="see update-publish release list"
        )
    if published and f'"{path}"'.encode() not in published:
        raise RepositoryError(
            f"release {product} {version} waits for signatures", hint="see update-publish status"
        )


def _write(repository: Repository, made: Channel) -> None:
    targets = repository.targets(CHANNELS)
    repository.write_target(targets, channel.path(made.channel), document.encode(made))
    repository.stage(CHANNELS, targets)
