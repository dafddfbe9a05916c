"""PostgreSQL in place of SQLite, and several servers side by side on it."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from tests.publisher import Team
from tests.server.postgres import postgres
from tests.server.process import NOON, host_named, report, serving
from tests.server.test_api import WAVE
from tests.server.town import NEW, OLD
from update_agent.core.budget import Budget, Tally
from update_agent.core.report import Ended
from update_agent.server import figures, tables
from update_agent.server.intake import store


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as name,
    ):
        Path(name).chmod(0o755)
        with postgres(Path(name)) as made:
            yield made


def test_two_servers_side_by_side_share_hosts_tokens_and_channels(url: str, team: Team) -> None:
    with (
        serving(team.folder, "--database", url) as one,
        serving(team.folder, "--database", url, tokens=one.tokens) as other,
    ):
        mixed = [(one, other)[it % 2] for it in range(40)]
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda it: mixed[it].post(
                        *(report(number, it + 1) for number in range(40, 0, -1))
                    ),
                    range(40),
                )
            )
        assert one.api("/v1/hosts")["total"] == 40
        assert {it["time"] for it in other.api("/v1/hosts")["hosts"]} == {int(NOON.timestamp())}

        other.act("/v1/channels/stable/promote", version="1.1.0", reason="fix")
        one.act("/v1/channels/stable/pause", reason="lunch")
        changes = other.api("/v1/channels/stable")["channel"]["changes"]
        assert [it["reason"] for it in changes[-2:]] == ["fix", "lunch"]


def test_every_question_is_understood_by_both(url: str, tmp_path: Path) -> None:
    past = Ended(
        attempt="d" * 32, running=OLD, version=NEW, began=NOON, ended=NOON, outcome="fell-back",
        why="not healthy",
    )  # fmt: skip
    reports = [
        *(report(it, channel="lab", wait=WAVE, state="waiting") for it in range(1001, 1004)),
        report(1004, channel="lab", ended=past),
        report(1005, channel="lab", state="rebooting", target=NEW),
        report(1006, channel="lab", version=NEW, name="100%_db"),
    ]
    noon, later = int(NOON.timestamp()), NOON + timedelta(hours=1)
    said: list[list[object]] = []
    tallies: list[Tally] = []
    for each in (url, f"sqlite:///{tmp_path / 'x.sqlite'}"):
        database = tables.opened(each)
        with database.begin() as connection:
            store(database, connection, reports, NOON)
            store(database, connection, reports, NOON)
            figures.sample(connection, database.insert(tables.samples), noon)
            tallies.append(
                figures.tally(
                    connection, "lab", NEW.text, Budget(), since=noon, now=int(later.timestamp())
                )
            )
            said.append(
                [
                    figures.page(connection, figures.Wanted(channel="lab", limit=2), noon),
                    figures.page(connection, figures.Wanted(search="%_"), noon),
                    figures.page(connection, figures.Wanted(heard="yes", search="100%"), noon),
                    figures.page(connection, figures.Wanted(heard="no", channel="lab"), noon),
                    figures.page(
                        connection,
                        figures.Wanted(channel="lab", after=f"web-1003 {host_named(1003)}"),
                        noon,
                    ),
                    figures.waiting(connection, "lab", noon),
                    figures.placed(connection, "lab", 10_000, 0, noon),
                    figures.hears(connection, "lab", noon, noon),
                    figures.versions(connection, "lab", noon),
                    figures.failures(connection, "lab", noon),
                    figures.timeline(connection, host_named(1004)),
                    figures.attempts_of(connection, host_named(1004)),
                    figures.history(connection, "lab", 0),
                    tables.forget(connection, 0, 10),
                ]
            )  # fmt: skip
        database.close()

    assert said[0] == said[1]
    assert tallies == [Tally(hosts=6, running=1, fell_back=1, silent=1)] * 2
