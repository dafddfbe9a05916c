"""The repository, as the daemon asks it: one visit for one question.

What is remembered of it lies in a folder that one process uses at a time; so nothing is kept open
between two questions, and ``update-agentctl offer`` can ask meanwhile.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from update_agent.core.release import Host
from update_agent.core.settings import Settings
from update_agent.errors import HostError
from update_agent.host.http import Limits, Network, Way
from update_agent.host.offer import Offer, ask
from update_agent.host.trust import TrustedRepository

_DEADLINE = 300.0
"""Seconds for everything together; it is a few kilobytes."""


class Repository:
    """The servers that the settings name, ``ports.Releases``; remembered in ``state``."""

    def __init__(self, settings: Settings, now: Callable[[], datetime], state: Path) -> None:
        self._settings = settings
        self._now = now
        self._state = state

    def ask(self, host: Host) -> Offer:
        """Return what there is for ``host``, verified. Raises ReleaseError, HostError."""
        with visit(self._settings, self._state, self._now()) as repository:
            return ask(repository, host, self._settings.update.channel)


@contextmanager
def visit(settings: Settings, state: Path, now: datetime) -> Iterator[TrustedRepository]:
    """Yield the repository, refreshed. Raises ReleaseError, HostError."""
    if not settings.update.repository:
        raise HostError(
            "no repository is set for this host",
            hint="set update.repository in /etc/update-agent/*.toml",
        )
    with TrustedRepository(
        settings.update.repository,
        trusted_root=Path(settings.update.root),
        state=state,
        network=network_of(settings),
        now=now,
    ) as repository:
        repository.refresh()
        yield repository


def network_of(settings: Settings, *, whole: bool = False) -> Network:
    """Return the way to the servers, with time for metadata or for a ``whole`` payload."""
    network = settings.network
    limits = Limits(deadline=_DEADLINE)
    if whole:
        limits = Limits(rate=network.rate, deadline=network.deadline.total_seconds())
    return Network(limits, Way(proxy=network.proxy, ca_file=network.ca))
