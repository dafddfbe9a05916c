"""A day of 100,000 hosts: a good release goes by its plan, a bad one is stopped among the first."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.publisher import Team
from tests.server.fleet import Fate, Fleet, fill
from tests.server.town import town
from update_agent.server import tables

HOSTS = 100_000
PLAN = "1%:1h 10%:4h@+3h 100%:12h@+9h"
MORNING = datetime(2026, 11, 24, 6, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def filled(memory: Path) -> Path:
    """A database of hosts that run the old release."""
    folder = memory / "filled"
    folder.mkdir()
    database = tables.opened(f"sqlite:///{folder / 'server.sqlite'}")
    fill(database, HOSTS, MORNING)
    database.close()
    return folder


@pytest.fixture
def begin(team: Team, filled: Path) -> Iterator[Callable[..., Fleet]]:
    state = team.folder / "state"
    shutil.copytree(filled, state)
    with town(team, state) as here:
        here.now, here.sequence = MORNING, 1

        def begun(fate: Fate, step: int = 1) -> Fleet:
            fleet = Fleet(here, HOSTS, fate, step)
            fleet.promote(PLAN)
            return fleet

        yield begun


def in_time(minute: int) -> bool:
    """Return whether the server looks: now and then, and always before waves open."""
    return minute % 30 == 0 or any(0 <= wave * 60 - minute <= 5 for wave in (3, 9))


def test_a_good_release_reaches_everyone_by_its_plan(begin: Callable[..., Fleet]) -> None:
    fleet = begin(lambda host: "fell-back" if host % 500 == 0 else "confirmed", step=5)

    for hours, wanted in ((2, 0.01), (8, 0.10), (16, 0.55), (23, 1.0)):
        fleet.until(MORNING + hours * HOUR, looks=in_time)
        assert wanted * 0.99 <= fleet.share() <= fleet.offered()

    assert fleet.here.news == []
    assert fleet.running == HOSTS - HOSTS // 500


@pytest.mark.parametrize(
    ("fate", "cause"),
    [
        pytest.param(
            lambda host: "fell-back" if host % 20 == 0 else "confirmed",
            "fell back",
            id="fails-on-5%",
        ),
        pytest.param(lambda _: None, "did not come back", id="never-comes-back"),
        pytest.param(
            lambda host: None if host % 20 == 0 else "confirmed", "did not come back", id="loses-5%"
        ),
    ],
)
def test_a_bad_release_is_halted_before_a_hundredth_of_the_fleet_has_failed(
    begin: Callable[..., Fleet], figure: Callable[[str], None], fate: Fate, cause: str
) -> None:
    fleet = begin(fate)

    fleet.until(MORNING + 3 * HOUR)

    [halted] = fleet.here.news
    assert halted.action == "halted"
    assert cause in halted.reason
    assert 0 < fleet.hurt < HOSTS // 100
    assert fleet.offered() <= 0.01
    figure(f"a bad release hurt {fleet.hurt} of {HOSTS:,} hosts: {halted.reason}")
