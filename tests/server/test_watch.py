"""What the server does by itself: halts, holds, freshness; and that people learn of it."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import sqlalchemy as sql

from tests import publisher
from tests.publisher import Team, seen_by_us
from tests.server.process import host_named
from tests.server.town import NEW, OLD, Town, town
from update_agent.core.budget import Budget, Tally
from update_agent.core.channel import Change
from update_agent.core.report import Waits
from update_agent.core.version import Version
from update_agent.errors import HostError
from update_agent.publish import channels
from update_agent.server import desk, figures, tables, watch
from update_agent.server.gauges import Gauges
from update_agent.server.watch import BY_BUDGET, News, webhook

FIX = Version("1.2.0")
HOSTS = range(1, 1001)
WAVE = Waits(reason="wave", sentence="this host stands at 99.9999 %")
BY_HAND = Waits(reason="by-hand", sentence="this host installs only what somebody asks for")
NO_SLOT = Waits(reason="slots", sentence="it is not known from which slot this host runs")
SLOWLY = "10%:1h 100%:1h@+3h"
LAB = desk.SetBudget(reason="a lab", budget=Budget(failures=500_000, sample=10))


@pytest.fixture
def here(team: Team, tmp_path: Path) -> Iterator[Town]:
    with town(team, tmp_path) as made:
        made.hosts(HOSTS, version=OLD)
        yield made


def test_a_rollout_that_fails_is_halted_for_hosts_and_people(
    here: Town, team: Team, tmp_path: Path
) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 98), "confirmed")
    here.ended(range(98, 100), "fell-back", "not healthy: nginx.service failed")
    here.look()
    assert here.paused() == ""

    here.ended(range(100, 101), "fell-back", "not healthy: nginx.service failed")
    here.look()
    here.look()

    paused = here.channel.paused
    assert paused
    assert paused.author == "update-server: budget"
    assert paused.reason == (
        "3 of 100 hosts that tried 1.1.0 failed (3.0%; 2 % are allowed): 3 fell back"
    )
    assert here.channel.quarantined == (NEW,)
    assert here.halts() == 1
    assert seen_by_us(team, tmp_path / "host").channel == ("1.1.0", True, 4)
    assert [(it.action, it.version) for it in here.news] == [("halted", "1.1.0")]
    with here.site.database.read() as connection:
        deed = figures.deeds(connection, "stable")[0]
    assert (deed.author, deed.action, deed.reason) == (paused.author, "halt", paused.reason)


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(
            desk.Promote(version=FIX, waves=SLOWLY, reason="the fix"), id="another-release"
        ),
        pytest.param(desk.Promote(version=NEW, waves="1%", reason="slower"), id="another-rollout"),
        pytest.param(desk.Pause(reason="lunch"), id="a-pause"),
    ],
)
def test_what_people_did_since_a_rollout_was_judged_is_not_overruled(
    here: Town, team: Team, meanwhile: desk.Deed
) -> None:
    team.do(*team.release(publisher.image(team.folder, 3), FIX.text))
    here.promote(SLOWLY)
    judged = here.channel

    after = here.act(meanwhile)
    edited = desk.act(here.site, "stable", desk.Halt(reason="it fails"), BY_BUDGET, judged=judged)

    assert (edited.changed, edited.channel) == (False, after)
    assert here.channel == after
    assert here.done()[0] == (type(meanwhile).__name__.lower(), meanwhile.what)


def test_a_halt_is_counted_and_told_by_the_server_that_did_it(
    here: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "fell-back")
    seen = here.channel
    here.act(desk.Halt(reason="the other server"), BY_BUDGET)

    monkeypatch.setattr(channels, "listed", lambda _: [seen])
    here.look()

    assert here.halts() == 0
    assert here.news == []
    assert here.done()[0] == ("halt", "halted")


def test_a_host_on_which_it_fails_again_and_again_is_one_host(here: Town) -> None:
    here.promote(SLOWLY)
    for _ in range(5):
        here.now += timedelta(minutes=20)
        here.ended(range(1, 2), "fell-back", "not healthy: nginx.service failed")
    here.ended(range(2, 3), "fell-back", "not healthy: nginx.service failed")
    here.look()
    assert here.paused() == ""
    with here.site.database.read() as connection:
        assert [it.hosts for it in figures.failures(connection, "stable", 0)] == [2]

    for outcome in ("confirmed", "dropped"):
        here.now += timedelta(minutes=20)
        here.ended(range(1, 2), outcome)
    here.ended(range(3, 4), "fell-back", "not healthy: nginx.service failed")
    tally = desk.tally(here.site, here.channel, desk.account(here.site, "stable"))

    assert tally
    assert (tally.confirmed, tally.fell_back) == (1, 2)
    here.away(range(3, 4))
    here.passes(minutes=31)
    tally = desk.tally(here.site, here.channel, desk.account(here.site, "stable"))
    assert tally
    assert (tally.confirmed, tally.failed) == (1, 2)


def test_hosts_that_do_not_come_back_halt_a_rollout(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "confirmed")
    here.away(range(101, 104))
    here.passes(minutes=29)
    assert here.paused() == ""

    here.passes(minutes=1)

    assert "3 did not come back" in here.paused()


def test_hosts_that_never_come_back_count_as_long_as_the_rollout_runs(here: Town) -> None:
    here.promote(SLOWLY)
    here.away(range(101, 104))
    here.now += timedelta(hours=25)
    here.ended(range(1, 98), "confirmed")
    here.look()

    assert "3 of 100 hosts that tried 1.1.0 failed" in here.paused()


def test_a_server_that_was_off_takes_nobody_for_lost_before_it_has_listened(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "confirmed")
    here.away(range(101, 104))
    here.now += timedelta(hours=2)
    here.site = replace(here.site, began=here.now)

    here.passes(minutes=44)
    assert here.paused() == ""
    here.passes(minutes=1)

    assert "3 did not come back" in here.paused()


def test_a_cut_cable_takes_no_host_with_it(here: Town) -> None:
    here.promote("100%")
    here.ended(range(1, 101), "confirmed")
    here.away(range(101, 191))
    here.hosts(range(191, 201), state="trial", version=NEW, target=NEW)
    for _ in range(41):
        here.now += timedelta(minutes=1)
        here.look()
    assert here.paused() == ""

    here.passes(minutes=1)
    here.passes(minutes=43)
    assert here.paused() == ""
    here.passes(minutes=1)

    assert "90 did not come back, 10 came back and were not confirmed" in here.paused()


def test_a_wave_does_not_open_while_nobody_is_heard(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 51), "confirmed")
    here.now += timedelta(minutes=178)
    here.look()
    assert here.paused() == (
        "too few hosts are heard to know how 1.1.0 does; the wave after 10 % of all opens when"
        " they are, or when somebody resumes it"
    )
    here.now += timedelta(hours=25)
    here.look()
    assert here.paused()

    here.passes(minutes=1)
    here.passes(minutes=43)
    assert here.paused()
    here.passes(minutes=1)

    assert here.paused() == ""
    assert [it.action for it in here.news] == ["paused", "opened for the next wave"]


def seldom(here: Town, hours: float) -> None:
    """Let time pass in which each host is heard once in two hours, by its place."""
    for _ in range(round(hours * 4)):
        here.now += timedelta(minutes=15)
        turn = int(here.now.timestamp()) // 900 % 8
        with here.site.database.begin() as connection:
            connection.execute(
                sql.update(tables.hosts)
                .where(tables.hosts.c.state != "rebooting", tables.hosts.c.place % 8 == turn)
                .values(seen=int(here.now.timestamp()))
            )
        here.look()


def test_hosts_that_report_seldom_are_counted_after_some_hours(here: Town) -> None:
    for turn in range(8):
        here.hosts(HOSTS[turn::8], version=OLD, place=turn)
    seldom(here, hours=1)
    here.promote("10%:1h 100%:1h@+9h")
    here.ended(range(1, 51), "confirmed", place=2)
    here.hosts(range(101, 104), state="rebooting", target=NEW)
    seldom(here, hours=5)
    assert here.paused() == ""

    seldom(here, hours=1.25)

    assert "3 did not come back" in here.paused()
    assert [it.action for it in here.news] == ["goes on", "halted"]


def test_a_fleet_that_is_off_at_night_is_no_news_once_all_are_offered_it(here: Town) -> None:
    here.promote()
    here.ended(HOSTS, "confirmed")

    for _ in range(20):
        here.now += timedelta(minutes=30)
        here.look()

    assert desk.account(here.site, "stable").is_used_to_it
    assert here.news == []


def test_a_wave_opens_to_hosts_that_report_seldom(here: Town) -> None:
    for turn in range(8):
        here.hosts(HOSTS[turn::8], version=OLD, place=turn)
    here.promote("10%:1h 100%:1h@+181m")
    here.ended(range(1, 51), "confirmed", place=2)
    seldom(here, hours=3.25)
    assert "too few hosts are heard" in here.paused()

    seldom(here, hours=3.5)

    assert here.paused() == ""
    assert [it.action for it in here.news] == ["paused", "goes on", "opened for the next wave"]


def test_who_resumes_what_too_few_are_heard_for_is_not_overruled(here: Town) -> None:
    def until_next_wave() -> None:
        for _ in range(4):
            here.now += timedelta(minutes=15)
            here.look()

    here.promote("1%:1h 10%:30m@+3h 50%:30m@+4h 100%:30m@+5h")
    here.ended(range(1, 50), "confirmed")
    here.now += timedelta(minutes=178)
    here.look()
    assert "too few hosts are heard" in here.paused()

    here.act(desk.Resume(reason="the network is rebuilt tonight"))
    until_next_wave()
    assert here.paused().startswith("49 hosts run 1.1.0")
    here.ended(range(50, 301), "confirmed")
    here.look()
    assert here.paused() == ""
    until_next_wave()

    assert here.paused() == ""


def test_hosts_that_came_back_and_are_never_confirmed_halt_a_rollout(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "confirmed")
    here.hosts(range(101, 104), state="trial", version=NEW, target=NEW)
    here.passes(minutes=20)
    here.sequence -= 1  # a sign of life
    here.hosts(range(101, 104), state="trial", version=NEW, target=NEW)

    here.passes(minutes=10)

    assert "3 came back and were not confirmed" in here.paused()


def test_a_reboot_by_a_wrong_clock_is_measured_by_the_servers(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "confirmed")
    here.sequence += 1
    here.hosts(range(101, 104), state="rebooting", target=NEW, since=here.now - timedelta(days=9))

    here.passes(minutes=29)

    assert here.paused() == ""


def test_who_resumes_after_a_halt_is_not_halted_again_for_the_same(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "fell-back")
    here.look()
    assert here.paused()

    here.act(desk.Resume(reason="a switch was broken"))
    here.passes(minutes=1)
    here.passes(minutes=1)
    assert here.paused() == ""
    assert here.channel.quarantined == ()

    here.ended(range(101, 201), "fell-back")
    here.passes(minutes=1)
    assert here.paused()


def test_hosts_that_cannot_try_it_are_not_waited_for(here: Town) -> None:
    desk.set_budget(here.site, "stable", LAB, author="ann")
    here.promote()
    kept, said = range(5, 1001), "paused on this host: end of quarter"
    here.hosts(kept, state="waiting", wait=Waits(reason="paused-here", sentence=said))
    failed = Waits(reason="failed-here", sentence="1.1.0 did not come up on this host")
    here.ended(range(1, 3), "fell-back", state="waiting", wait=failed)
    here.look()
    assert here.paused() == ""

    here.ended(range(3, 4), "fell-back", state="waiting", wait=failed)
    here.look()

    assert "3 of 3 hosts that tried 1.1.0 failed" in here.paused()


def test_one_of_the_last_hosts_halts_nothing_that_was_proved_before_a_resume(here: Town) -> None:
    here.promote()
    here.ended(range(1, 981), "confirmed")
    here.passes(minutes=1)
    here.act(desk.Pause(reason="lunch"))
    here.act(desk.Resume(reason="back"))
    here.look()

    here.ended(range(981, 983), "fell-back")
    here.look()
    assert here.paused() == ""
    here.ended(range(983, 984), "fell-back")
    here.look()

    assert "3 of 3 hosts that tried 1.1.0 failed" in here.paused()


def test_who_resumes_what_a_person_halted_is_not_halted_for_what_failed_before(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 56), "confirmed")
    here.ended(range(56, 61), "fell-back")
    here.act(desk.Halt(reason="too many for my taste"))
    here.passes(minutes=1)
    here.ended(range(61, 102), "confirmed")

    here.act(desk.Resume(reason="a switch was broken"))
    here.passes(minutes=1)

    assert here.paused() == ""
    tally = desk.tally(here.site, here.channel, desk.account(here.site, "stable"))
    assert tally
    assert tally.failed == 0


@pytest.mark.parametrize("minutes", [-10, 60])
def test_whoever_resumes_may_have_a_wrong_clock(here: Town, minutes: int) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "fell-back")
    here.look()
    ours, here.now = here.now, here.now + timedelta(minutes=minutes)
    here.act(desk.Resume(reason="a switch was broken"))
    here.now = ours

    here.passes(minutes=1)
    here.passes(minutes=1)
    assert here.paused() == ""
    here.ended(range(101, 201), "fell-back")
    here.passes(minutes=1)

    assert here.paused()


def test_the_next_wave_waits_for_hosts_and_opens_by_itself(here: Town) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 50), "confirmed")
    here.passes(minutes=177)
    assert here.paused() == ""

    here.passes(minutes=1)
    assert here.paused() == "49 hosts run 1.1.0; the wave after 10 % of all opens when 50 do"
    here.passes(minutes=30)
    here.ended(range(50, 51), "confirmed")
    here.passes(minutes=10)

    rollout = here.channel.rollout
    assert rollout
    assert (rollout.paused, rollout.held) == (None, 40 * 60)
    assert [it.action for it in here.news] == ["paused", "opened for the next wave"]


@pytest.mark.parametrize(
    ("places", "wait", "why"),
    [
        pytest.param((10_000, 999_999), None, "", id="reaches-nobody"),
        pytest.param((9_999, 999_999), None, "0 hosts run 1.1.0", id="reaches-one"),
        pytest.param((9_999, 999_999), BY_HAND, "", id="reaches-one-that-is-updated-by-hand"),
        pytest.param((9_999, 999_999), NO_SLOT, "", id="reaches-one-that-does-not-know-its-slot"),
    ],
)
def test_a_wave_waits_for_no_more_hosts_than_it_reaches(
    here: Town, places: tuple[int, int], wait: Waits | None, why: str
) -> None:
    here.promote("1%:1h 100%:1h@+3h")
    here.now += timedelta(minutes=3)
    for place, hosts in zip(places, (range(1, 2), HOSTS[1:]), strict=True):
        waits = WAVE if place >= 10_000 else wait
        here.hosts(hosts, place=place, state="waiting", since=here.now, wait=waits)

    here.passes(minutes=175)

    assert here.paused().startswith(why)
    assert bool(here.paused()) == bool(why)


def test_a_place_in_an_older_rollout_tells_nothing_of_this_one(here: Town) -> None:
    here.hosts(HOSTS, place=999_999, state="waiting", since=here.now, wait=WAVE)
    here.promote("1%:1h 100%:1h@+3h")
    here.now += timedelta(minutes=3)
    late = Waits(reason="unreachable", sentence="the repository does not answer")
    here.hosts(HOSTS[1:3], place=999_999, state="waiting", since=here.now, wait=late)
    here.hosts(HOSTS[3:], place=999_999, state="waiting", since=here.now, wait=WAVE)

    here.passes(minutes=175)
    assert here.paused().startswith("0 hosts run 1.1.0; the wave after 1 % of all opens when 3 do")
    here.hosts(HOSTS[:3], place=999_999, state="waiting", since=here.now, wait=WAVE)
    here.passes(minutes=1)

    assert here.paused() == ""


def test_a_person_who_pauses_meanwhile_is_not_overruled(here: Town) -> None:
    here.promote(SLOWLY)
    here.passes(minutes=178)
    assert here.paused()

    here.act(desk.Pause(reason="lunch"))
    here.ended(range(1, 101), "confirmed")
    here.passes(minutes=10)

    assert here.paused() == "lunch"


def test_what_fails_while_people_pause_is_halted_in_their_pause(here: Town) -> None:
    here.promote("100%")
    here.act(desk.Pause(reason="lunch"))
    here.ended(range(1, 501), "fell-back")

    here.look()

    assert "500 of 500 hosts that tried 1.1.0 failed" in here.paused()
    assert here.channel.quarantined == (NEW,)
    assert [it.action for it in here.news] == ["halted"]
    here.passes(minutes=1)
    assert len(here.news) == 1


def test_hosts_that_are_lost_after_a_resume_were_forgiven_by_nobody(here: Town) -> None:
    here.promote("100%")
    here.ended(range(1, 101), "confirmed")
    here.away(range(101, 201))
    here.act(desk.Pause(reason="lunch"))
    here.passes(minutes=20)

    here.act(desk.Resume(reason="back"))
    here.passes(minutes=1)
    assert here.paused() == ""
    here.passes(minutes=9)

    assert "100 did not come back" in here.paused()
    here.act(desk.Resume(reason="a switch was broken"))
    here.passes(minutes=1)
    here.passes(minutes=1)
    assert here.paused() == ""


def test_each_channel_has_its_own_budget(here: Town) -> None:
    desk.set_budget(here.site, "stable", LAB, author="ann")
    here.promote(SLOWLY)
    here.ended(range(1, 6), "confirmed")
    here.ended(range(6, 11), "fell-back")
    here.look()
    assert here.paused() == ""

    here.ended(range(11, 12), "refused")
    here.look()

    assert "(54.5%; 50 % are allowed): 5 fell back, 1 refused it" in here.paused()


def test_a_budget_set_while_the_server_looks_is_kept(here: Town) -> None:
    here.promote(SLOWLY)
    seen_before = desk.current(here.site, here.channel)

    desk.set_budget(here.site, "stable", LAB, author="ann")
    desk.keep_count(here.site, "stable", seen_before)

    assert desk.account(here.site, "stable") == replace(seen_before, budget=LAB.budget)


def test_what_the_server_sees_stays_when_a_budget_is_set(here: Town) -> None:
    here.promote(SLOWLY)
    here.look()
    seen = desk.account(here.site, "stable")

    desk.set_budget(here.site, "stable", LAB, author="ann")

    assert desk.account(here.site, "stable") == replace(seen, budget=LAB.budget)


def test_a_budget_that_makes_no_sense_can_be_set_anew(here: Town) -> None:
    desk.set_budget(here.site, "stable", LAB, author="ann")
    with here.site.database.begin() as connection:
        connection.execute(sql.update(tables.rollouts).values(budget='{"format": 2}'))
    with pytest.raises(HostError, match="budget of stable") as raised:
        desk.account(here.site, "stable")
    assert raised.value.hint == "set the budget anew"

    desk.set_budget(here.site, "stable", LAB, author="ann")

    assert desk.account(here.site, "stable").budget == LAB.budget


def test_a_new_release_begins_with_a_new_account(here: Town) -> None:
    here.promote()
    here.ended(range(1, 101), "fell-back")
    here.look()
    here.now += timedelta(hours=1)
    here.live()
    now = Change(time=here.now, author="ann", what="promoted 1.0.0")
    promoted = here.channel.promote(OLD, now, downgrade_from=[NEW])

    after = desk.current(here.site, promoted)

    assert (after.version, after.counted_from) == ("1.0.0", int(now.time.timestamp()))
    assert desk.tally(here.site, promoted, after) == Tally(hosts=1000, running=1000)


@pytest.mark.case(101)
def test_the_timestamp_is_signed_anew_when_it_is_some_hours_old(here: Town, team: Team) -> None:
    stamp = team.www / "metadata/timestamp.json"
    here.look()
    first = stamp.read_bytes()

    here.passes(hours=5)
    assert stamp.read_bytes() == first
    here.passes(hours=2)

    assert stamp.read_bytes() != first


def test_a_halt_that_cannot_be_signed_is_told_once_and_tried_again(here: Town, team: Team) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "fell-back")
    key = team.online / "online.pem"
    kept = key.rename(team.folder / "kept.pem")

    here.look()
    here.ended(range(101, 201), "fell-back")
    here.look()

    assert here.channel.paused is None
    why = "channels wants 1 signatures, and 0 of its keys are at hand"
    assert [it.text for it in here.news] == [f"channel stable: 1.1.0 could not be halted: {why}"]
    assert here.done()[:2] == [("halt", why), ("promote", "promoted 1.1.0")]
    with pytest.raises(HostError, match=why):
        here.act(desk.Pause(reason="then I do it"))
    kept.rename(key)
    here.look()
    assert here.channel.quarantined == (NEW,)
    assert here.news[-1].action == "halted"


def test_a_wave_that_cannot_be_opened_is_told_once_and_tried_again(here: Town, team: Team) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 50), "confirmed")
    here.passes(minutes=178)
    key = team.online / "online.pem"
    kept = key.rename(team.folder / "kept.pem")

    here.ended(range(50, 51), "confirmed")
    here.passes(minutes=1)
    here.passes(minutes=1)
    kept.rename(key)
    here.look()

    assert [it.action for it in here.news] == [
        "paused", "could not be opened for the next wave", "opened for the next wave"
    ]  # fmt: skip


def test_a_channel_that_cannot_be_read_keeps_no_other_from_being_judged(
    here: Town, team: Team, caplog: pytest.LogCaptureFixture
) -> None:
    here.promote(SLOWLY)
    here.ended(range(1, 101), "fell-back")
    team.do("channel", "create", "bad", "--product", "os")
    [document] = (team.www / "targets/channels").glob("*.bad.json")
    document.unlink()

    here.look()

    assert here.channel.quarantined == (NEW,)
    assert "cannot judge the rollout of channel bad:" in caplog.text


def test_a_timestamp_that_cannot_be_signed_keeps_nobody_from_being_judged(
    here: Town, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object) -> None:
        raise HostError("no space left")

    here.promote(SLOWLY)
    here.ended(range(1, 101), "fell-back")
    monkeypatch.setattr(watch, "refresh", full)

    here.look()

    assert here.channel.quarantined == (NEW,)
    assert "cannot sign the timestamp anew: no space left" in caplog.text


def test_once_an_hour_what_is_months_old_is_forgotten(here: Town) -> None:
    def remembered() -> int:
        with here.site.database.read() as connection:
            return len(figures.timeline(connection, host_named(1)))

    here.now = here.now.replace(minute=5) + timedelta(days=90, hours=1)
    here.hosts(HOSTS, version=OLD)
    here.look()
    assert remembered() == 2

    here.passes(minutes=54)
    assert remembered() == 2
    here.passes(minutes=1)

    assert remembered() == 1


def test_what_is_old_is_forgotten_also_where_no_host_is_left(here: Town) -> None:
    here.now = here.now.replace(minute=0) + timedelta(days=90, hours=1)
    with here.site.database.begin() as connection:
        connection.execute(sql.delete(tables.hosts))

    here.look()

    with here.site.database.read() as connection:
        assert figures.timeline(connection, host_named(1)) == []


def test_hosts_that_are_gone_are_counted_apart(here: Town) -> None:
    here.now += timedelta(hours=25)
    here.hosts(range(1, 901), version=OLD)

    gauges = {
        (it.name, *it.labels.values()): it.value
        for family in Gauges(here.site).collect() for it in family.samples
    }  # fmt: skip

    assert gauges["update_server_hosts", "stable", "idle"] == 900
    assert gauges["update_server_hosts_unheard", "stable"] == 100
    now = int(here.now.timestamp())
    with here.site.database.read() as connection:
        assert [it.hosts for it in figures.versions(connection, "stable", now)] == [900]
        assert [it.hosts for it in figures.waiting(connection, "stable", now)] == [900]
        listed: dict[Literal["yes", "no"] | None, int] = {None: 1000, "yes": 900, "no": 100}
        for heard, hosts in listed.items():
            for channel in (None, "stable"):
                asked = figures.Wanted(heard=heard, channel=channel)
                assert figures.page(connection, asked, now).total == hosts


def test_a_chart_falls_no_more_than_its_figures_while_nobody_is_heard(here: Town) -> None:
    here.now += timedelta(hours=25)
    here.look()

    now = int(here.now.timestamp())
    with here.site.database.read() as connection:
        assert [it.hosts for it in figures.versions(connection, "stable", now)] == [1000]
        [(_, version, hosts)] = figures.history(connection, "stable", 0)
    assert (version, hosts) == (OLD.text, 1000)


def test_without_keys_it_looks_on_and_says_what_it_lacks(here: Town) -> None:
    object.__setattr__(here.site, "keys", ())
    here.look()

    with pytest.raises(Exception, match="this server has no keys"):
        here.act(desk.Pause(reason="lunch"))


# Telling people ----------------------------------------------------------------------------------


class Chat(BaseHTTPRequestHandler):
    """Takes what it is told, after as many failures as it has left."""

    fails = 1
    heard: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Chat.fails:
            Chat.fails -= 1
            self.send_error(503)
            return
        Chat.heard.append(json.loads(body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


NEWS = News(channel="stable", version="1.1.0", action="halted", reason="3 of 100 hosts failed")


def test_a_webhook_gets_a_sentence_and_its_parts_also_at_the_second_try() -> None:
    with HTTPServer(("127.0.0.1", 0), Chat) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        webhook(f"http://127.0.0.1:{server.server_port}/hook")(NEWS)
        server.shutdown()
        thread.join()

    assert Chat.heard == [
        {
            "text": "channel stable: 1.1.0 halted: 3 of 100 hosts failed", "channel": "stable",
            "version": "1.1.0", "action": "halted", "reason": "3 of 100 hosts failed",
        }
    ]  # fmt: skip


def test_a_webhook_that_does_not_answer_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    webhook("http://127.0.0.1:1/hook")(NEWS)
    webhook(None)(NEWS)

    assert [it.levelname for it in caplog.records] == ["WARNING", "WARNING", "ERROR"]
