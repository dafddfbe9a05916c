"""The life of an update on one host, as a table: what happened, and what comes of it.

Everything that decides the next state is here. An event that is not in the table for a state is out
of turn, and changes nothing. Who performs the effects, and who knows that something happened, is
the daemon; what a restart finds is an event like any other (``awakened``).

    idle -> checking -> installing -> staged -> waiting-to-reboot -> rebooting -> trial -> idle

README's diagram of it is drawn from the table.

The rule kept here: the other slot is armed only on the way to a reboot that was permitted, or when
nobody but a person reboots this host; so a reboot by accident boots the old release.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where an update stands."""

    IDLE = "idle"
    CHECKING = "checking"
    WAITING = "waiting"
    INSTALLING = "installing"
    STAGED = "staged"
    WAITING_TO_REBOOT = "waiting-to-reboot"
    REBOOTING = "rebooting"
    TRIAL = "trial"
    FAILED = "failed"


class Event(StrEnum):
    """What happened."""

    CHECK = "check"
    """It is time to ask, or somebody wants to know."""
    NOTHING = "nothing"
    """The repository has nothing newer."""
    HELD = "held"
    """It has something, but not for this host now; or it could not be asked."""
    OFFERED = "offered"
    """It has a release for this host, now."""
    VERIFIED = "verified"
    """The other slot holds the release, every byte of it verified."""
    INTERRUPTED = "interrupted"
    """The installation stopped for a reason that goes away: network, disk, writer, a person."""
    REFUSED = "refused"
    """The release cannot be trusted or used."""
    DROPPED = "dropped"
    """What is staged is not wanted any more: withdrawn, quarantined, superseded, cancelled."""
    LEFT = "left"
    """Nobody but a person reboots this host."""
    HELD_BACK = "held-back"
    """This host may not reboot now."""
    PERMITTED = "permitted"
    """This host may reboot, and holds what it needs for that."""
    NOT_REBOOTED = "not-rebooted"
    """Arming failed, or the system refused to reboot."""
    RESTARTED = "restarted"
    """The daemon began anew, and the host was not rebooted."""
    ON_TRIAL = "on-trial"
    """The host runs the new release, which is not confirmed yet."""
    CONFIRMED = "confirmed"
    """The running release is confirmed."""
    FELL_BACK = "fell-back"
    """The host runs the old release, and not the one that it was going to."""


class Effect(StrEnum):
    """What has to be done, in the order given."""

    ASK = "ask"
    """the repository, and decide by what it says"""
    BEGIN = "begin"
    """an attempt, with an id of its own"""
    INSTALL = "install"
    """the release into the other slot"""
    ASK_TO_REBOOT = "ask-to-reboot"
    """whoever permits it: a person, the window, the cluster"""
    ARM = "arm"
    """the other slot"""
    DISARM = "disarm"
    """the other slot; what it holds stays verified"""
    REBOOT = "reboot"
    """the host"""
    GIVE_BACK = "give-back"
    """the permission to reboot"""
    WARN = "warn"
    """the cluster: the release rolled back here"""
    AVOID = "avoid"
    """the release on this host: it failed"""
    END = "end"
    """the attempt; tell how it ended"""


@dataclass(frozen=True, slots=True)
class Step:
    """The next state, and what is done on the way."""

    state: State
    effects: tuple[Effect, ...] = ()


class OutOfTurnError(RuntimeError):
    """An event that cannot happen in a state: a defect of the daemon, never of its peers."""


_HOLD_NOTHING = (Effect.GIVE_BACK,)
"""A daemon that ended before it gave back does so now."""
_ASK = Step(State.CHECKING, (Effect.ASK,))
_ASK_ANEW = Step(State.CHECKING, (*_HOLD_NOTHING, Effect.ASK))
_REBOOT = Step(State.REBOOTING, (Effect.ARM, Effect.REBOOT))
_FELL_BACK = Step(State.FAILED, (Effect.WARN, Effect.AVOID, Effect.GIVE_BACK, Effect.END))
_CONFIRMED = Step(State.IDLE, (Effect.GIVE_BACK, Effect.END))
_DROPPED = Step(State.IDLE, (Effect.DISARM, Effect.GIVE_BACK, Effect.END))

TABLE: Mapping[tuple[State, Event], Step] = {
    (State.IDLE, Event.CHECK): _ASK,
    (State.IDLE, Event.RESTARTED): Step(State.IDLE, _HOLD_NOTHING),
    (State.IDLE, Event.ON_TRIAL): Step(State.TRIAL),  # armed by hand
    (State.CHECKING, Event.NOTHING): Step(State.IDLE),
    (State.CHECKING, Event.HELD): Step(State.WAITING),
    (State.CHECKING, Event.OFFERED): Step(State.INSTALLING, (Effect.BEGIN, Effect.INSTALL)),
    (State.CHECKING, Event.RESTARTED): _ASK_ANEW,
    (State.CHECKING, Event.ON_TRIAL): Step(State.TRIAL),
    (State.WAITING, Event.CHECK): _ASK,
    (State.WAITING, Event.RESTARTED): Step(State.WAITING, _HOLD_NOTHING),
    (State.WAITING, Event.ON_TRIAL): Step(State.TRIAL),
    (State.INSTALLING, Event.VERIFIED): Step(State.STAGED, (Effect.ASK_TO_REBOOT,)),
    (State.INSTALLING, Event.INTERRUPTED): Step(State.WAITING, (Effect.END,)),
    (State.INSTALLING, Event.REFUSED): Step(State.FAILED, (Effect.AVOID, Effect.END)),
    (State.INSTALLING, Event.DROPPED): Step(State.IDLE, (Effect.END,)),
    (State.INSTALLING, Event.RESTARTED): _ASK_ANEW,  # what is right in the slot is kept
    (State.INSTALLING, Event.ON_TRIAL): Step(State.TRIAL),
    (State.STAGED, Event.LEFT): Step(State.WAITING_TO_REBOOT, (Effect.ARM,)),
    (State.STAGED, Event.HELD_BACK): Step(State.WAITING_TO_REBOOT),
    (State.STAGED, Event.PERMITTED): _REBOOT,
    (State.STAGED, Event.DROPPED): _DROPPED,
    (State.STAGED, Event.RESTARTED): Step(State.STAGED, (Effect.ASK_TO_REBOOT,)),
    (State.STAGED, Event.ON_TRIAL): Step(State.TRIAL),
    (State.WAITING_TO_REBOOT, Event.LEFT): Step(State.WAITING_TO_REBOOT, (Effect.ARM,)),
    (State.WAITING_TO_REBOOT, Event.HELD_BACK): Step(State.WAITING_TO_REBOOT),
    (State.WAITING_TO_REBOOT, Event.PERMITTED): _REBOOT,
    (State.WAITING_TO_REBOOT, Event.NOT_REBOOTED): Step(State.WAITING_TO_REBOOT, (Effect.DISARM,)),
    (State.WAITING_TO_REBOOT, Event.DROPPED): _DROPPED,
    (State.WAITING_TO_REBOOT, Event.RESTARTED): Step(
        State.WAITING_TO_REBOOT, (Effect.ASK_TO_REBOOT,)
    ),
    (State.WAITING_TO_REBOOT, Event.ON_TRIAL): Step(State.TRIAL),
    (State.WAITING_TO_REBOOT, Event.CONFIRMED): _CONFIRMED,
    (State.WAITING_TO_REBOOT, Event.FELL_BACK): _FELL_BACK,
    (State.REBOOTING, Event.NOT_REBOOTED): Step(
        State.WAITING_TO_REBOOT, (Effect.DISARM, Effect.GIVE_BACK)
    ),
    (State.REBOOTING, Event.RESTARTED): Step(
        State.WAITING_TO_REBOOT, (Effect.DISARM, Effect.ASK_TO_REBOOT)
    ),
    (State.REBOOTING, Event.ON_TRIAL): Step(State.TRIAL),
    (State.REBOOTING, Event.CONFIRMED): _CONFIRMED,
    (State.REBOOTING, Event.FELL_BACK): _FELL_BACK,
    (State.TRIAL, Event.CONFIRMED): _CONFIRMED,
    (State.TRIAL, Event.FELL_BACK): _FELL_BACK,
    (State.TRIAL, Event.RESTARTED): Step(State.TRIAL),
    (State.TRIAL, Event.ON_TRIAL): Step(State.TRIAL),  # another boot of the same trial
    (State.FAILED, Event.CHECK): _ASK,
    (State.FAILED, Event.RESTARTED): Step(State.FAILED, _HOLD_NOTHING),
    (State.FAILED, Event.ON_TRIAL): Step(State.TRIAL),
}
"""All that can happen."""


def step(state: State, event: Event) -> Step:
    """Return what comes of ``event`` in ``state``. Raises OutOfTurnError."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise OutOfTurnError(f"{event} while {state}") from None


def takes(state: State, event: Event) -> bool:
    """Return whether ``event`` can happen in ``state``."""
    return (state, event) in TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What a daemon finds when it begins."""

    boot_id: str
    root_hash: str
    """Of the slot that the host runs from."""
    successful: bool
    """The booted slot is confirmed."""
    untried: bool = False
    """By its flags, the other slot may never have been armed since it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """The release that a host is on its way to."""

    root_hash: str
    armed_in: str | None = None
    """The boot in which its slot was to be armed; the next one is its trial."""
    armed: bool = False
    """It was."""


def awakened(goal: Goal | None, boot: Boot) -> Event:
    """Return what happened while no daemon ran.

    A host whose other slot was armed, and that runs the old one after a boot, fell back: whether
    the new release panicked, hung, was unhealthy or never started is all the same. But not where
    the power went right before it was armed.
    """
    if not boot.successful:
        return Event.ON_TRIAL
    if goal is None or goal.armed_in in (None, boot.boot_id):
        return Event.RESTARTED
    if boot.root_hash == goal.root_hash:
        return Event.CONFIRMED
    return Event.RESTARTED if boot.untried and not goal.armed else Event.FELL_BACK
