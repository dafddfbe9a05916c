"""Channels: what each edit leaves, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from update_agent.core import channel as channels
from update_agent.core import document
from update_agent.core.channel import Change, Channel
from update_agent.core.document import DocumentError
from update_agent.core.rollout import RING, Rollout, Wave
from update_agent.core.version import Version
from update_agent.errors import HostError

V = Version
START = datetime(2026, 11, 23, 8, tzinfo=UTC)


def change(what: str, minutes: float = 0, reason: str = "") -> Change:
    return Change(time=START + timedelta(minutes=minutes), author="ann", what=what, reason=reason)


CREATED = Channel.created("stable", "os", change("created"))
OFFERED = CREATED.promote(V("1.2.0"), change("promoted 1.2.0"))
SLOW = (Wave(share=RING, length=3600),)


def test_a_promotion_starts_a_rollout_and_says_who_did_it() -> None:
    promoted = CREATED.promote(V("1.2.0"), change("promoted 1.2.0", 5), waves=SLOW)

    assert promoted.version == V("1.2.0")
    assert promoted.rollout == Rollout(started=START + timedelta(minutes=5), waves=SLOW)
    assert promoted.changes == (change("created"), change("promoted 1.2.0", 5))


@pytest.mark.case(95)
def test_promoting_twice_is_promoting_once() -> None:
    promoted = CREATED.promote(V("1.2.0"), change("promoted", 0), waves=SLOW)

    assert promoted.promote(V("1.2.0"), change("promoted", 9), waves=SLOW) is promoted


@pytest.mark.case(95)
def test_promoting_again_after_a_pause_does_not_resume() -> None:
    paused = OFFERED.pause(change("paused", 1, "they fail"))

    assert paused.promote(V("1.2.0"), change("promoted", 2)) is paused


def test_a_lower_version_is_refused_unless_its_hosts_go_down() -> None:
    with pytest.raises(HostError, match=r"offers 1\.2\.0, which is newer than 1\.1\.0") as refused:
        OFFERED.promote(V("1.1.0"), change("promoted 1.1.0"))

    assert refused.value.hint == "add --downgrade-from 1.2.0 if its hosts are to go down"
    down = OFFERED.promote(V("1.1.0"), change("back"), downgrade_from=[V("1.2.0")])
    assert down.version == V("1.1.0")
    assert down.promote(V("1.3.0"), change("on")).downgrade_from == ()


def test_a_quarantined_version_is_not_promoted() -> None:
    channel = CREATED.quarantine(V("1.2.0"), change("quarantined"))

    with pytest.raises(HostError, match=r"1\.2\.0 is quarantined in channel stable"):
        channel.promote(V("1.2.0"), change("promoted"))
    freed = channel.release_from_quarantine(V("1.2.0"), change("released"))
    assert freed.promote(V("1.2.0"), change("promoted")).version == V("1.2.0")


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda it: it.pause(change("paused")), id="pause"),
        pytest.param(lambda it: it.resume(change("resumed")), id="resume"),
        pytest.param(
            lambda it: it.reschedule(change("waves"), waves=SLOW, deadline=None), id="rollout"
        ),
    ],
)
def test_nothing_can_be_done_to_a_rollout_before_there_is_one(
    edit: Callable[[Channel], Channel],
) -> None:
    with pytest.raises(HostError, match="channel stable offers nothing yet") as refused:
        edit(CREATED)

    assert refused.value.hint == "promote a version first"


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda it: it.pause(change("paused", 1, "why")), id="pause"),
        pytest.param(lambda it: it.resume(change("resumed", 2)), id="resume"),
        pytest.param(lambda it: it.quarantine(V("9.0.0"), change("q")), id="quarantine"),
        pytest.param(lambda it: it.release_from_quarantine(V("9.0.0"), change("r")), id="free"),
        pytest.param(lambda it: it.set_floors([V("1.1.0"), V("1.0.0")], change("f")), id="floors"),
        pytest.param(
            lambda it: it.reschedule(change("w"), waves=SLOW, deadline=START), id="rollout"
        ),
        pytest.param(lambda it: it.promote(V("1.3.0"), change("p")), id="promote"),
    ],
)
def test_every_edit_done_twice_is_done_once(edit: Callable[[Channel], Channel]) -> None:
    once = edit(OFFERED)

    assert edit(once) is once


def test_a_pause_remembers_who_when_and_why_and_resuming_counts_it() -> None:
    paused = OFFERED.pause(change("paused", 10, "rack 7 is down"))
    resumed = paused.resume(change("resumed", 25))

    assert paused.paused
    assert (paused.paused.author, paused.paused.reason) == ("ann", "rack 7 is down")
    assert resumed.paused is None
    assert resumed.rollout
    assert resumed.rollout.held == 15 * 60
    assert [it.what for it in resumed.changes] == ["created", "promoted 1.2.0", "paused", "resumed"]


def test_other_waves_leave_the_clock_of_the_rollout() -> None:
    channel = OFFERED.reschedule(change("waves", 30), waves=SLOW, deadline=None)

    assert channel.rollout == Rollout(started=START, waves=SLOW)


def test_a_document_tells_of_the_last_twenty_changes() -> None:
    channel = OFFERED
    for number in range(30):
        channel = channel.quarantine(V(f"3.0.{number}"), change(f"q {number}"))

    assert [it.what for it in channel.changes] == [f"q {number}" for number in range(10, 30)]


def test_a_channel_comes_back_as_it_was_written() -> None:
    channel = (
        CREATED.promote(V("1.2.0"), change("p"), waves=SLOW, deadline=START)
        .pause(change("paused", 1, "fails"))
        .set_floors([V("1.1.0")], change("f"))
        .quarantine(V("1.1.5"), change("q"))
    )

    assert channels.decode(document.encode(channel), "stable") == channel


@pytest.mark.case(15)
def test_a_document_of_another_channel_is_refused() -> None:
    with pytest.raises(DocumentError, match="channel beta: the document is that of channel stable"):
        channels.decode(document.encode(OFFERED), "beta")


@pytest.mark.case(98)
@pytest.mark.case(100)
@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ('"channel": "stable"', '"channel": "../stable"'),
        ('"product": "os"', '"product": "o/s"'),
        ('"share": 1000000', '"share": 0'),
        ('"share": 1000000', '"share": 1010000'),
        ('"length": 3600', '"length": -1'),
        ('"length": 3600', '"length": 1e3'),
        ('"held": 0', '"held": false'),
        ('"version": "1.2.0"', '"version": null'),
        ('"format": 1', '"format": 2'),
    ],
)
def test_a_field_that_could_do_harm_is_refused(found: str, instead: str) -> None:
    channel = CREATED.promote(V("1.2.0"), change("p"), waves=SLOW)
    written = document.encode(channel).decode()
    assert found in written

    with pytest.raises(DocumentError, match="channel stable"):
        channels.decode(written.replace(found, instead, 1).encode(), "stable")


def test_fields_of_a_newer_publisher_are_ignored() -> None:
    written = (
        document.encode(OFFERED).decode().replace('"format": 1', '"format": 1, "mood": "good"')
    )

    assert channels.decode(written.encode(), "stable") == OFFERED


def test_a_document_for_many_versions_stays_below_its_size() -> None:
    many = tuple(V(f"1.0.{number}") for number in range(100))
    long = Change(time=START, author="a" * 500, what="w" * 500, reason="r" * 500)
    channel = replace(OFFERED, floors=many, quarantined=many, changes=(long,) * 20)

    assert channels.decode(document.encode(channel), "stable") == channel


# Halting -----------------------------------------------------------------------------------------


def test_a_halt_pauses_and_keeps_what_is_installed_from_being_booted() -> None:
    halted = OFFERED.halt(change("halted", 30, "they fail"))

    assert halted.paused
    assert halted.paused.reason == "they fail"
    assert halted.quarantined == (V("1.2.0"),)
    assert halted.halt(change("halted", 31)) is halted


def test_a_halt_of_what_is_paused_says_why_and_leaves_the_clock() -> None:
    paused = OFFERED.pause(change("paused", 1, "lunch"))

    halted = paused.halt(replace(change("halted", 2, "they fail"), author="bob"))

    assert halted.paused
    assert (halted.paused.author, halted.paused.reason) == ("bob", "they fail")
    assert halted.paused.since == START + timedelta(minutes=1)
    assert halted.quarantined == (V("1.2.0"),)
    assert halted.pause(change("paused", 3, "dinner")) is halted


def test_going_on_is_the_opposite_of_a_halt() -> None:
    went_on = OFFERED.halt(change("halted", 30)).go_on(change("resumed", 40))

    assert went_on.rollout
    assert (went_on.paused, went_on.rollout.held) == (None, 600)
    assert went_on.quarantined == ()
    assert went_on.go_on(change("resumed", 41)) is went_on


def test_going_on_leaves_other_versions_in_quarantine() -> None:
    channel = OFFERED.quarantine(V("1.1.0"), change("quarantined")).halt(change("halted", 1))

    assert channel.go_on(change("resumed", 2)).quarantined == (V("1.1.0"),)


@pytest.mark.parametrize("edit", [Channel.halt, Channel.go_on])
def test_what_offers_nothing_is_neither_halted_nor_gone_on_with(
    edit: Callable[[Channel, Change], Channel],
) -> None:
    with pytest.raises(HostError, match="offers nothing yet"):
        edit(CREATED, change("halted"))


def test_a_pause_of_people_takes_the_place_of_one_that_would_end_by_itself() -> None:
    waits = replace(change("paused", 1, "too few"), author=channels.BY_WAVES)
    held = OFFERED.pause(waits)

    paused = held.pause(change("paused", 5, "lunch"))
    halted = held.halt(change("halted", 5, "they fail"))

    assert held.pause(replace(waits, reason="still too few")) is held
    assert paused.paused
    assert (paused.paused.author, paused.paused.reason) == ("ann", "lunch")
    assert paused.paused.since == START + timedelta(minutes=1)
    assert paused.pause(waits) is paused
    assert halted.paused
    assert halted.paused.author == "ann"
