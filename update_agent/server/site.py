"""The parts that every page and every answer is made from."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram

from update_agent.publish.keys import Keyring
from update_agent.publish.repository import Repository
from update_agent.server.guard import Rates
from update_agent.server.intake import Intake
from update_agent.server.tables import Database
from update_agent.server.tokens import Tokens

REPORT_RATE = 200.0
"""Reports a second from one address; behind a proxy, from that proxy."""


class Meters:
    """What is counted while the server runs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reports = Counter(
            "update_server_reports", "Reports by what became of them", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.requests = Histogram(
            "update_server_request_seconds", "Requests by what was asked for",
            ["what"], registry=self.registry, buckets=(0.005, 0.025, 0.1, 0.3, 1, 5),
        )  # fmt: skip
        self.halts = Counter(
            "update_server_halts", "Rollouts that this server halted", registry=self.registry
        )


LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One server."""

    folder: Path
    """The repository."""
    keys: tuple[Path, ...]
    """Key rings, with online keys."""
    database: Database
    tokens: Tokens
    intake: Intake
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    began: datetime = LONG_AGO
    """When it began to listen to hosts."""
    rates: Rates = field(default_factory=lambda: Rates(REPORT_RATE))
    meters: Meters = field(default_factory=Meters)

    def repository(self) -> Repository:
        """Return the repository, with the online keys, as of now."""
        return Repository(self.folder, Keyring(list(self.keys)), self.now())
