"""A fleet in the middle of a rollout, with all that a page can show; written by few statements.

Most hosts follow ``stable``, which is 15 hours into a rollout in three waves; some follow ``beta``,
and a few ``canary``, which was halted. The same numbers come out each time.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from tests import publisher
from tests.publisher import Team
from tests.server.process import report
from tests.server.town import NEW, OLD, Town, town
from update_agent.core.report import Ended, Report, Waits, Works
from update_agent.core.rollout import RING, Rollout, place
from update_agent.server import desk, figures, intake, tables

STORY = 7
"""A host with a long timeline."""
PLAN = "1%:1h 10%:4h@+3h 100%:12h@+9h"
_CAUSES = (
    "not healthy: nginx.service failed", "not healthy: health.d/20-database exited with 1",
    "the trial was not confirmed in time", "not healthy: no default route",
)  # fmt: skip
_REFUSED = "the slot has 4294967296 bytes, the image 4294971392"
_LOG = """\
11:42:07 systemd[1]: nginx.service: Main process exited, code=exited, status=1/FAILURE
11:42:07 systemd[1]: Failed to start A high performance web server and a reverse proxy server.
11:42:12 update-agent-confirm[812]: health.d/10-web exited with 1: no answer at port 443
11:47:12 update-agent-confirm[812]: not healthy within 5m: rolling back"""
_HELD = "all 2 reboot slots are held by web-6 and web-9"
_OTHERS = (
    (0.0006, "waiting-to-reboot", Waits(reason="window", sentence="no reboot window is open; the"
                                        " next opens on Saturday at 02:00")),
    (0.0003, "waiting", Waits(reason="paused-here", sentence="updates are paused on this host: end"
                              " of quarter")),
    (0.0002, "waiting", Waits(reason="unreachable", sentence="https://updates.example.com sent"
                              " nothing for too long")),
)  # fmt: skip


def prepare(folder: Path, count: int) -> Team:
    """Make a repository and a database in ``folder``, as ``serving`` looks for them."""
    team = Team(folder)
    team.do("init", "--online-keys", team.online, keys=[team.offline])
    for number, version in ((1, "1.0.0"), (2, "1.1.0")):
        team.do(*team.release(publisher.image(folder, number), version))
    for name in ("stable", "beta", "canary"):
        team.do("channel", "create", name, "--product", "os")
        team.do("channel", "promote", name, "1.0.0", "--reason", "the first")
    state = folder / "state"
    state.mkdir()
    with town(team, state) as here:
        paint(here, count)
    return team


def paint(here: Town, count: int) -> None:
    """Let so many hosts stand in the middle of a rollout."""
    end = datetime.now(UTC).replace(microsecond=0)
    _promote(here, "beta", end - timedelta(days=4), "10%:1h 100%:2h@+2h", "a week's fixes")
    _promote(here, "canary", end - timedelta(days=4, hours=6), "", "for those who asked for it")
    _promote(here, "stable", end - timedelta(hours=15), PLAN, "the fixes of November, from beta")
    here.now = end - timedelta(days=4, hours=3)
    halted = (
        "31 of 240 hosts that tried 1.1.0 failed (12.9%; 2 % are allowed): 31 did not come back"
    )
    desk.act(here.site, "canary", desk.Halt(reason=halted), "update-server: budget")
    here.now = end
    rollout = here.channel.rollout
    assert rollout
    hosts = list(_hosts(rollout, count, end))
    with here.site.database.begin() as connection:
        received = int(end.timestamp())
        connection.execute(sql.insert(tables.hosts), [_row(it, end) for it in hosts])
        ended = [intake._ended(it, received - n % 40_000) for n, it in enumerate(hosts) if it.ended]
        connection.execute(sql.insert(tables.attempts), ended)
        connection.execute(sql.insert(tables.samples), list(_samples(rollout, count, end)))
    _story(here, end)


def _promote(here: Town, name: str, when: datetime, waves: str, reason: str) -> None:
    here.now = when
    desk.act(here.site, name, desk.Promote(version=NEW, waves=waves, reason=reason), "ann")


def _row(it: Report, end: datetime) -> dict[str, Any]:
    seen = int(end.timestamp()) - int(it.host[-3:], 16) % 600
    return intake._host(it, seen) | {"changed": int(it.since.timestamp())}


def _hosts(rollout: Rollout, count: int, end: datetime) -> Iterator[Report]:
    chance, clock = random.Random(1), rollout.clock(end)  # noqa: S311  the same each time
    for number in range(1, count + 1):
        it = report(
            number, 1, time=end, since=end - timedelta(seconds=chance.randrange(9 * 86400)),
            name=f"{('web', 'db', 'cache', 'worker')[number % 4]}-{number:05}.fra{number % 3 + 1}",
            slot="AB"[number % 2], group=f"rack-{number % 480}", agent="0.1.0",
        )  # fmt: skip
        if number == STORY:
            yield it
        elif number % 50 == 1:
            yield replace(it, channel="beta", version=NEW)
        elif number % 400 == 2:
            yield replace(it, channel="canary")
        else:
            at = rollout.opening(place(str(number), "os", NEW)) or 0.0
            yield _one(
                replace(it, place=place(str(number), "os", NEW)), rollout, at - clock, chance
            )


def _one(it: Report, rollout: Rollout, opens: float, chance: random.Random) -> Report:
    """Return a host of ``stable``, whose place opens in so many seconds, or did before."""
    drawn = chance.random()
    for share, state, wait in _OTHERS:
        if drawn < share:
            return replace(it, version=OLD, state=state, wait=wait, target=NEW)
        drawn -= share
    if opens > 0:
        until = rollout.opens_at(it.place or 0)
        said = f"this host stands at {(it.place or 0) * 100 / RING:g} % in the rollout of 1.1.0"
        return replace(it, state="waiting", wait=Waits(reason="wave", sentence=said, until=until))
    if opens < -3600:
        return _tried(it, chance)
    under_way = replace(it, target=NEW, attempt=it.host, since=it.time - timedelta(minutes=6))
    if drawn < 0.05:
        works = Works(
            step="writing", done=chance.randrange(600) * 10**6, size=731 * 10**6, rate=9**8
        )
        return replace(under_way, state="installing", progress=works)
    if drawn < 0.0562:
        return replace(
            under_way, state="waiting-to-reboot", wait=Waits(reason="lock", sentence=_HELD)
        )
    return replace(under_way, state="rebooting") if drawn < 0.07 else _tried(it, chance)


def _tried(it: Report, chance: random.Random) -> Report:
    drawn, began = chance.random(), it.time - timedelta(minutes=chance.randrange(30, 800))
    past = Ended(
        attempt=it.host, running=OLD, version=NEW, began=began, outcome="confirmed",
        ended=began + timedelta(seconds=chance.randrange(200, 900)),
        fetched=chance.randrange(25, 120) * 10**6, saved=chance.randrange(500, 700) * 10**6,
    )  # fmt: skip
    if drawn < 0.003:
        why = _CAUSES[int(drawn * 1e6) % 4]
        wait = Waits(reason="failed-here", sentence="1.1.0 did not come up on this host")
        return replace(
            it, state="waiting", wait=wait,
            ended=replace(past, outcome="fell-back", why=why, log=_LOG),
        )  # fmt: skip
    if drawn < 0.0033:
        return replace(it, ended=replace(past, outcome="refused", why=_REFUSED))
    wait = Waits(reason="up-to-date", sentence="1.1.0 is the newest release of channel stable")
    return replace(it, version=NEW, ended=past, wait=wait)


def _samples(rollout: Rollout, count: int, end: datetime) -> Iterator[dict[str, object]]:
    now = int(end.timestamp())
    for past in range(now - 7 * 86400, now, figures.SAMPLED):
        time = past - past % figures.SAMPLED
        late = datetime.fromtimestamp(time - 2000, UTC)
        ran = int(count * rollout.share(late) / RING * 0.996) if late > rollout.started else 0
        for version, hosts in ((OLD, count - ran), (NEW, ran)):
            yield {"channel": "stable", "time": time, "version": version.text, "hosts": hosts}
        yield {"channel": "beta", "time": time, "version": NEW.text, "hosts": count // 50}


def _story(here: Town, end: datetime) -> None:
    """Let one host tell two updates, the second with a rollback before it."""
    name: dict[str, Any] = {"name": f"worker-{STORY:05}.fra2", "group": "rack-7", "agent": "0.1.0"}
    here.now, here.sequence = end - timedelta(days=12), 100

    def steps(*states: str) -> None:
        for state in states:
            here.now += timedelta(minutes=2, seconds=11)
            runs = (NEW, "B") if state == "trial" else (OLD, "A")
            here.hosts(
                [STORY], state=state, since=here.now, version=runs[0], slot=runs[1], target=NEW,
                attempt=f"{here.now.day:032x}", **name,
            )  # fmt: skip

    steps("installing", "waiting-to-reboot", "rebooting", "trial")
    here.now += timedelta(minutes=5)
    wait = Waits(reason="failed-here", sentence="1.1.0 did not come up on this host")
    here.ended(
        [STORY], "fell-back", _CAUSES[0], log=_LOG, took=17, slot="A", state="waiting", wait=wait,
        since=here.now, **name,
    )  # fmt: skip
    here.now = end - timedelta(hours=2)
    steps("installing", "waiting-to-reboot", "rebooting", "trial")
    here.now += timedelta(minutes=1)
    here.ended([STORY], "confirmed", took=12, slot="B", since=here.now, **name)
    here.now = end
