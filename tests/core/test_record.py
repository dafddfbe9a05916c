"""The record: what is remembered, how long, and what another daemon's document still says."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from update_agent.core import document, record
from update_agent.core.lifecycle import State
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Attempt, Outcome, Record
from update_agent.core.version import Version

V = Version
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
ATTEMPT = Attempt(
    id="a" * 32, running=V("1.0.0"), version=V("1.1.0"), root_hash="b" * 64, began=NOW,
    armed_in="boot-1",
)  # fmt: skip
WAIT = Wait(reason=Reason.WAVE, sentence="later", ends="a wave", until=LATER)
FULL = (
    record.fresh(NOW)
    .began(replace(ATTEMPT, version=V("1.0.5"), armed_in=None))
    .ended(Outcome.REFUSED, NOW, "no good")
    .avoiding(V("1.0.5"))
    .began(ATTEMPT)
    .moved(State.REBOOTING, NOW, None)
)


def edited(found: Record, **fields: object) -> bytes:
    return json.dumps({**json.loads(document.encode(found)), **fields}).encode()


def test_a_record_comes_back_as_it_was_written() -> None:
    waiting = replace(FULL, paused="holidays", checked=NOW, failures=3).moved(
        State.WAITING, LATER, WAIT
    )

    assert record.decode(document.encode(waiting), NOW) == (waiting, None)


def test_what_was_said_in_lines_is_kept_as_one() -> None:
    said = FULL.ended(Outcome.REFUSED, LATER, "no good:\n\x1b[1m" + "x" * 600)

    assert record.decode(document.encode(said), NOW) == (said, None)
    assert said.history[-1].why.startswith("no good:  [1mxx")


def test_the_age_of_a_reason_goes_on_through_checks_that_change_nothing() -> None:
    first = record.fresh(NOW).moved(State.WAITING, NOW, WAIT)
    again = first.moved(State.CHECKING, LATER, None)
    longer = again.moved(State.WAITING, LATER, replace(WAIT, sentence="still later"))
    other = again.moved(State.WAITING, LATER, replace(WAIT, reason=Reason.PAUSED))
    over = longer.moved(State.INSTALLING, LATER, None)

    assert again.wait == WAIT
    assert (longer.wait_since, longer.since) == (NOW, LATER)
    assert longer.wait
    assert longer.wait.sentence == "still later"
    assert other.wait_since == LATER
    assert (over.wait, over.wait_since) == (None, None)


def test_the_age_of_a_state_goes_on_while_it_stays() -> None:
    first = record.fresh(NOW).moved(State.WAITING_TO_REBOOT, NOW, WAIT)
    other = replace(WAIT, reason=Reason.WINDOW)

    assert first.moved(State.WAITING_TO_REBOOT, LATER, other).since == NOW
    assert first.moved(State.WAITING_TO_REBOOT, LATER, other).wait_since == LATER


def test_an_attempt_that_ends_is_history() -> None:
    ended = FULL.ended(Outcome.FELL_BACK, LATER, "it panicked")

    assert ended.attempt is None
    assert [(it.attempt.version, it.outcome) for it in ended.history] == [
        (V("1.0.5"), Outcome.REFUSED), (V("1.1.0"), Outcome.FELL_BACK),
    ]  # fmt: skip
    assert ended.ended(Outcome.CONFIRMED, LATER, "") is ended


def test_history_and_failures_are_bounded_and_keep_the_newest() -> None:
    found = FULL
    for number in range(80):
        found = found.began(ATTEMPT).ended(Outcome.DROPPED, NOW, "w" * 9000)
        found = found.avoiding(V(f"2.0.{number}"))

    assert len(found.history) == len(found.failed) == 50
    assert found.failed[-1] == V("2.0.79")
    assert record.decode(document.encode(found), NOW) == (found, None)


@pytest.mark.case(52)
def test_fields_of_a_newer_daemon_are_left_out() -> None:
    assert record.decode(edited(FULL, mood="good"), LATER) == (FULL, None)


@pytest.mark.case(52)
@pytest.mark.case(68)
@pytest.mark.parametrize(
    "fields", [{"format": 2}, {"state": "hovering"}, {"since": "noon"}, {"failures": -1}]
)
def test_of_a_document_that_is_not_understood_what_matters_is_kept(fields: dict[str, Any]) -> None:
    found, wrong = record.decode(edited(FULL, **fields), LATER)

    assert wrong
    assert (found.attempt, found.failed, found.history) == (FULL.attempt, FULL.failed, FULL.history)
    assert found.state is State.REBOOTING
    assert found.since == LATER


@pytest.mark.case(52)
def test_what_is_damaged_itself_is_not_kept() -> None:
    found, _ = record.decode(edited(FULL, format=2, failed=["x"], history=7), LATER)

    assert (found.failed, found.history, found.attempt) == ((), (), FULL.attempt)


@pytest.mark.case(52)
@pytest.mark.parametrize("data", [b"", b"\0" * 4096, b"[]", b"{", b'{"format": 1}', b"\xff"])
def test_a_document_that_says_nothing_begins_anew(data: bytes) -> None:
    found, wrong = record.decode(data, NOW)

    assert found == record.fresh(NOW)
    assert wrong


@given(st.binary(max_size=200))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    assert record.decode(data, NOW)[0].format == 1


def test_the_pause_after_failures_doubles_up_to_the_interval() -> None:
    waits = [record.backoff(count, timedelta(minutes=45)) for count in (0, 1, 2, 5, 6, 1000)]

    assert waits == [timedelta(minutes=it) for it in (1, 2, 4, 32, 45, 45)]


def test_who_disarms_stays_with_what_runs_and_avoids_that_no_more() -> None:
    found = replace(record.fresh(NOW), failed=(V("1.1.0"), V("1.0.0")), disarm=True)

    assert found.disarmed(V("1.0.0")) == replace(found, failed=(V("1.1.0"),), disarm=False)
