"""The repository, as the daemon asks it: one visit for one question.

What is remembered of it lies in a folder that one process uses at a time; so nothing is kept open
between two questions, and ``update-agentctl offer`` can ask meanwhile.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from update_agent.core.release import Host
from update_agent.core.settings import Settings
from update_agent.errors import HostError
from update_agent.host.http import Limits, Network, Way
from update_agent.host.offer import Offer, ask
from update_agent.host.trust import TrustedRepository

STATE = Path("/var/lib/update-agent/trust")

_DEADLINE = 300.0
"""Seconds for everything together; it is a few kilobytes."""


class Repository:
    """The servers that the settings name, ``ports.Releases``; remembered in ``state``."""

    def __init__(
        self, settings: Settings, now: Callable[[], datetime], state: Path = STATE
    ) -> None:
        self._settings = settings
        self._now = now
        self._state = state

    def ask(self, host: Host) -> Offer:
        """Return what there is for ``host``, verified. Raises ReleaseError, HostError."""
        update, network = self._settings.update, self._settings.network
        if not update.repository:
            raise HostError(
                "no repository is set for this host",
                hint="set update.repository in /etc/update-agent/*.toml",
            )
        with TrustedRepository(
            update.repository,
            trusted_root=Path(update.root),
            state=self._state,
            network=Network(
                Limits(deadline=_DEADLINE), Way(proxy=network.proxy, ca_file=network.ca)
            ),
            now=self._now(),
        ) as repository:
            repository.refresh()
            return ask(repository, host, update.channel)
