"""The lifecycle: a few ways through it told as stories, and promises about the whole table."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from update_agent.core.lifecycle import (
    TABLE,
    Boot,
    Effect,
    Event,
    Goal,
    OutOfTurnError,
    State,
    awakened,
    step,
    takes,
)

NEW, OLD = "n" * 64, "o" * 64
UNDER_WAY = (State.STAGED, State.WAITING_TO_REBOOT, State.REBOOTING, State.TRIAL)


def follow(events: Iterable[Event], state: State = State.IDLE) -> tuple[State, list[Effect]]:
    done: list[Effect] = []
    for event in events:
        taken = step(state, event)
        state, done = taken.state, [*done, *taken.effects]
    return state, done


# Stories -----------------------------------------------------------------------------------------


def test_an_update_from_check_to_confirmed_boot() -> None:
    state, done = follow([
        Event.CHECK, Event.OFFERED, Event.VERIFIED, Event.HELD_BACK, Event.PERMITTED,
        Event.ON_TRIAL, Event.CONFIRMED,
    ])  # fmt: skip

    assert state is State.IDLE
    assert done == [
        Effect.ASK, Effect.BEGIN, Effect.INSTALL, Effect.ASK_TO_REBOOT, Effect.ARM, Effect.REBOOT,
        Effect.GIVE_BACK, Effect.END,
    ]  # fmt: skip


def test_a_bad_release_is_avoided_and_the_permission_given_back() -> None:
    state, done = follow([
        Event.CHECK, Event.OFFERED, Event.VERIFIED, Event.PERMITTED, Event.FELL_BACK,
    ])  # fmt: skip

    assert state is State.FAILED
    assert done[-3:] == [Effect.AVOID, Effect.GIVE_BACK, Effect.END]


def test_a_reboot_that_the_system_refuses_disarms_and_waits() -> None:
    state, done = follow([
        Event.CHECK, Event.OFFERED, Event.VERIFIED, Event.PERMITTED, Event.NOT_REBOOTED,
    ])  # fmt: skip

    assert state is State.WAITING_TO_REBOOT
    assert done[-2:] == [Effect.DISARM, Effect.GIVE_BACK]


def test_where_a_person_reboots_the_slot_is_armed_at_once() -> None:
    state, done = follow([Event.CHECK, Event.OFFERED, Event.VERIFIED, Event.LEFT])

    assert state is State.WAITING_TO_REBOOT
    assert done[-1] is Effect.ARM


def test_an_interrupted_installation_is_tried_again_by_the_next_check() -> None:
    state, _ = follow([Event.CHECK, Event.OFFERED, Event.INTERRUPTED])

    assert state is State.WAITING
    assert step(state, Event.CHECK).effects == (Effect.ASK,)


# The whole table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached_and_left_for_idle(state: State) -> None:
    assert state in reachable(State.IDLE)
    assert State.IDLE in reachable(state)


def reachable(start: State) -> set[State]:
    found, edge = {start}, [start]
    while edge:
        here = edge.pop()
        for (state, _), taken in TABLE.items():
            if state is here and taken.state not in found:
                found.add(taken.state)
                edge.append(taken.state)
    return found


@pytest.mark.parametrize("state", State)
def test_every_state_outlives_a_restart_of_the_daemon(state: State) -> None:
    assert takes(state, Event.RESTARTED)


@pytest.mark.parametrize("state", State)
def test_a_new_release_on_trial_is_believed_whatever_was_written_down(state: State) -> None:
    assert step(state, Event.ON_TRIAL).state is State.TRIAL


@pytest.mark.parametrize("state", State)
def test_an_event_out_of_turn_is_refused_by_name(state: State) -> None:
    others = [event for event in Event if not takes(state, event)]

    assert others
    for event in others:
        with pytest.raises(OutOfTurnError, match=f"^{event} while {state}$"):
            step(state, event)


def test_the_slot_is_armed_only_with_permission_or_for_a_person() -> None:
    arming = {event for (_, event), taken in TABLE.items() if Effect.ARM in taken.effects}

    assert arming == {Event.PERMITTED, Event.LEFT}


def test_the_host_is_rebooted_only_with_permission_and_only_armed() -> None:
    for (_, event), taken in TABLE.items():
        if Effect.REBOOT in taken.effects:
            assert event is Event.PERMITTED
            assert taken.effects == (Effect.ARM, Effect.REBOOT)


def test_the_permission_is_given_back_whenever_an_attempt_that_could_hold_it_ends() -> None:
    for (state, _), taken in TABLE.items():
        if state in UNDER_WAY and taken.state not in UNDER_WAY:
            assert Effect.GIVE_BACK in taken.effects


def test_an_attempt_that_begins_ends_once_on_every_way() -> None:
    open_states = {State.INSTALLING, *UNDER_WAY}
    for (state, event), taken in TABLE.items():
        if state in open_states and taken.state not in open_states:
            asks_again = Effect.ASK in taken.effects
            assert Effect.END in taken.effects or asks_again, (state, event)
        else:
            assert Effect.END not in taken.effects, (state, event)


def test_a_failed_release_is_avoided_before_its_attempt_ends() -> None:
    for taken in TABLE.values():
        if Effect.AVOID in taken.effects:
            assert taken.state is State.FAILED
            assert taken.effects.index(Effect.AVOID) < taken.effects.index(Effect.END)


def test_whoever_ended_before_it_gave_back_does_so_when_it_begins_anew() -> None:
    for state in set(State) - {*UNDER_WAY}:
        assert step(state, Event.RESTARTED).effects[0] is Effect.GIVE_BACK


def test_others_are_told_of_a_release_that_rolled_back_before_a_reboot_slot_is_free() -> None:
    falls = [taken.effects for (_, event), taken in TABLE.items() if event is Event.FELL_BACK]

    assert falls
    for effects in falls:
        assert effects.index(Effect.WARN) < effects.index(Effect.GIVE_BACK)


# Waking up ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "boot", "event"),
    [
        pytest.param(None, ("b1", OLD, True), Event.RESTARTED, id="nothing-under-way"),
        pytest.param((NEW, None), ("b2", OLD, True), Event.RESTARTED, id="not-armed-yet"),
        pytest.param((NEW, "b1"), ("b1", OLD, True), Event.RESTARTED, id="before-the-reboot"),
        pytest.param((NEW, "b1"), ("b2", NEW, False), Event.ON_TRIAL, id="trial"),
        pytest.param((NEW, "b1"), ("b2", NEW, True), Event.CONFIRMED, id="confirmed-without-us"),
        pytest.param((NEW, "b1"), ("b4", OLD, True), Event.FELL_BACK, id="fell-back"),
        pytest.param(None, ("b2", NEW, False), Event.ON_TRIAL, id="armed-by-hand"),
    ],
)
def test_what_happened_is_seen_from_what_runs(
    goal: tuple[str, str | None] | None, boot: tuple[str, str, bool], event: Event
) -> None:
    to = goal and Goal(root_hash=goal[0], armed_in=goal[1])
    found = Boot(boot_id=boot[0], root_hash=boot[1], successful=boot[2])

    assert awakened(to, found) is event


def test_who_was_never_started_did_not_fall_back() -> None:
    """The power went between what was written down and the flags."""
    goal = Goal(root_hash=NEW, armed_in="b1")
    found = Boot(boot_id="b2", root_hash=OLD, successful=True, untried=True)

    assert awakened(goal, found) is Event.RESTARTED
    assert awakened(replace(goal, armed=True), found) is Event.FELL_BACK  # at its deadline
    assert takes(State.REBOOTING, Event.RESTARTED)
    assert takes(State.WAITING_TO_REBOOT, Event.RESTARTED)
    assert awakened(goal, replace(found, root_hash=NEW)) is Event.CONFIRMED
