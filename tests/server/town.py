"""A server's parts without its process: a repository, a database, hosts that report, a clock."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from tests.publisher import Team
from tests.server.process import host_named, report
from update_agent.core.channel import Channel
from update_agent.core.report import Ended, Report
from update_agent.core.version import Version
from update_agent.publish import channels
from update_agent.server import desk, figures, tables, watch
from update_agent.server.intake import Intake, store
from update_agent.server.site import Site
from update_agent.server.tokens import Tokens
from update_agent.server.watch import News

OLD, NEW = Version("1.0.0"), Version("1.1.0")


@dataclass
class Town:
    """A channel ``stable`` that offers 1.0.0, and whoever follows it."""

    site: Site
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    news: list[News] = field(default_factory=list)
    sequence: int = 0

    @property
    def channel(self) -> Channel:
        return channels.find(self.site.repository(), "stable")

    def paused(self) -> str:
        """Return why the rollout is paused; nothing while it is not."""
        pause = self.channel.paused
        return pause.reason if pause else ""

    def done(self) -> list[tuple[str, str]]:
        """Return what was done to the channel and what came of it, the newest first."""
        with self.site.database.read() as connection:
            return [(it.action, it.result) for it in figures.deeds(connection, "stable")]

    def halts(self) -> float | None:
        """Return how many halts this server counts."""
        return self.site.meters.registry.get_sample_value("update_server_halts_total")

    def act(self, deed: desk.Deed, author: str = "ann") -> Channel:
        return desk.act(self.site, "stable", deed, author).channel

    def promote(self, waves: str = "") -> None:
        self.act(desk.Promote(version=NEW, waves=waves, reason="it is good"))

    def passes(self, **time: float) -> None:
        """Let time pass, hosts that are not away live, and the server look."""
        self.now += timedelta(**time)
        self.live()
        self.look()

    def live(self) -> None:
        """Let all say that they live who do."""
        alive = tables.hosts.c.state != "rebooting"
        with self.site.database.begin() as connection:
            connection.execute(
                sql.update(tables.hosts).where(alive).values(seen=int(self.now.timestamp()))
            )

    def look(self) -> None:
        watch.look(self.site, self.news.append)

    def says(self, *reports: Report) -> None:
        """Let hosts report."""
        with self.site.database.begin() as connection:
            store(self.site.database, connection, reports, self.now)

    def hosts(self, numbers: Sequence[int], **fields: Any) -> None:  # noqa: ANN401  of a report
        """Let hosts report a change."""
        self.sequence += 1
        self.says(*(report(it, self.sequence, time=self.now, **fields) for it in numbers))

    def ended(
        self,
        numbers: Sequence[int],
        outcome: str,
        why: str = "",
        *,
        log: str = "",
        took: int = 0,
        **fields: Any,  # noqa: ANN401
    ) -> None:
        """Let hosts report how their attempt at the new release ended, after so many minutes."""
        self.sequence += 1
        version = NEW if outcome == "confirmed" else OLD
        past = Ended(
            attempt=f"{self.sequence:032x}", running=OLD, version=NEW,
            began=self.now - timedelta(minutes=took), ended=self.now, outcome=outcome, why=why,
            log=log, fetched=10_000_000, saved=90_000_000,
        )  # fmt: skip
        self.says(
            *(
                report(it, self.sequence, version=version, ended=past, time=self.now, **fields)
                for it in numbers
            )
        )

    def away(self, numbers: Sequence[int]) -> None:
        """Let hosts say that they reboot into the new release."""
        self.hosts(numbers, state="rebooting", target=NEW, attempt=host_named(numbers[0]))


@contextmanager
def town(team: Team, folder: Path) -> Iterator[Town]:
    """Open a server's parts on the repository of ``team``, with its online keys."""
    database = tables.opened(f"sqlite:///{folder / 'server.sqlite'}")
    site = Site(
        folder=team.www, keys=(team.online,), database=database, tokens=Tokens(database),
        intake=Intake(database, lambda: datetime.now(UTC)),
    )  # fmt: skip
    made = Town(site)
    made.site = replace(site, now=lambda: made.now)
    try:
        yield made
    finally:
        site.intake.close()
        database.close()
