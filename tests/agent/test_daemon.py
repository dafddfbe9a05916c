"""The daemon, in a world of fakes: it decides, writes down, and never stands still."""

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.agent.fakes import (
    B_CONFIRMED,
    BY_PERSON,
    FOLLOWS,
    IMMEDIATE,
    NEW,
    OFFER,
    OLD,
    RELEASE,
    START,
    A,
    B,
    Case,
    Fakes,
    V,
    check,
    nothing,
    play,
    waiting,
)
from update_agent.agent.ports import Installed, NotPermittedError
from update_agent.core import document, record
from update_agent.core.lifecycle import Boot, State
from update_agent.core.reason import Reason, Wait
from update_agent.core.record import Outcome, Record
from update_agent.core.settings import Cluster, Reboot, Settings, Strategy
from update_agent.core.trust import ExpiredError, UntrustedError
from update_agent.core.wire import UnverifiedError
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host.bus import NotNowError
from update_agent.host.offer import Offer

ON_TRIAL = Boot(boot_id="b2", root_hash=NEW, successful=False)
IN_TURN = Settings(
    update=FOLLOWS,
    reboot=Reboot(strategy=Strategy.LOCK),
    cluster=Cluster(endpoints=("https://e.example",)),
)


def reason(case: Case) -> Reason | None:
    """Return what the host waits for."""
    return case.daemon.wait.reason if case.daemon.wait else None


def seconds(fakes: Fakes) -> float:
    """Return when something happens by itself."""
    assert fakes.timer
    return fakes.timer.seconds


# Stories -----------------------------------------------------------------------------------------


def test_a_release_is_found_installed_and_booted() -> None:
    fakes = Fakes(answers=[OFFER])

    case = play(check, fakes)

    assert case.state is State.REBOOTING
    assert fakes.did == [
        "give back", "install 1.1.0 for 1000", "installed", "ask to reboot", "arm", "reboot",
    ]  # fmt: skip
    attempt = case.daemon.record.attempt
    assert attempt
    assert (attempt.id, attempt.fetched, attempt.saved) == ("1" + "0" * 31, 10, 90)
    assert fakes.kept == case.daemon.record


def test_after_the_reboot_the_trial_is_confirmed_and_becomes_history() -> None:
    fakes = Fakes(answers=[OFFER])
    play(check, fakes)
    fakes.booted = Boot(boot_id="b2", root_hash=NEW, successful=False)

    async def confirm(case: Case) -> None:
        assert case.state is State.TRIAL
        await case.daemon.confirmed()
        assert case.state is State.TRIAL, "somebody said so, but the slot does not"
        fakes.booted = replace(fakes.booted, successful=True)
        await case.daemon.confirmed()

    case = play(confirm, fakes)

    assert case.state is State.IDLE
    past = case.daemon.record.history[-1]
    assert (past.outcome, past.attempt.id) == (Outcome.CONFIRMED, "1" + "0" * 31)
    assert fakes.did[-1] == "give back"


def test_a_trial_that_is_confirmed_without_a_word_is_noticed() -> None:
    fakes = Fakes(answers=[OFFER])
    play(check, fakes)
    fakes.booted = Boot(boot_id="b2", root_hash=NEW, successful=False)

    async def wait(case: Case) -> None:
        fakes.booted = replace(fakes.booted, successful=True)
        await case.pass_time()

    assert play(wait, fakes).state is State.IDLE


@pytest.mark.case(68)
def test_a_release_that_fell_back_is_not_tried_again_until_forced() -> None:
    fakes = Fakes(answers=[OFFER])
    play(check, fakes)
    fakes.booted = Boot(boot_id="b5", root_hash=OLD, successful=True)
    fakes.answers = [waiting(Reason.FAILED_HERE)]

    case = play(check, fakes)

    assert case.state is State.WAITING
    assert case.daemon.record.failed == (V("1.1.0"),)
    assert case.daemon.record.history[0].outcome is Outcome.FELL_BACK
    assert fakes.asked_for[-1].failed == {V("1.1.0")}
    told = fakes.did[fakes.did.index("reboot") + 1 :]
    assert told == ["tell of 1.1.0", "give back"]


def test_where_a_person_reboots_the_slot_is_armed_and_the_reason_shown() -> None:
    fakes = Fakes(answers=[OFFER])

    case = play(check, fakes, BY_PERSON)

    assert case.state is State.WAITING_TO_REBOOT
    assert case.daemon.record.wait
    assert case.daemon.record.wait.reason is Reason.PERSON
    assert fakes.did[-1] == "arm"
    assert "reboot" not in fakes.did


# Waiting -----------------------------------------------------------------------------------------


def test_up_to_date_is_idle_with_a_reason_and_asks_again_after_the_interval() -> None:
    fakes = Fakes(answers=[waiting(Reason.UP_TO_DATE)])

    async def story(case: Case) -> None:
        await check(case)
        assert fakes.timer
        assert fakes.timer.seconds == 30 * 60  # chance is in the middle

    case = play(story, fakes)

    assert case.state is State.IDLE
    assert case.daemon.record.wait
    assert case.daemon.record.wait.reason is Reason.UP_TO_DATE
    assert case.daemon.record.checked == START


def test_a_wave_that_opens_before_the_next_check_is_met_when_it_opens() -> None:
    soon = START + timedelta(minutes=7)
    fakes = Fakes(answers=[waiting(Reason.WAVE, soon), OFFER])

    async def wait(case: Case) -> None:
        await check(case)
        assert case.state is State.WAITING
        await case.pass_time()

    case = play(wait, fakes)

    assert fakes.now == soon
    assert case.state is State.REBOOTING


@pytest.mark.case(101)
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (HostError("no route to host"), Reason.UNREACHABLE),
        (UntrustedError("one signature of two"), Reason.UNTRUSTED),
        (ExpiredError("timestamp expired"), Reason.EXPIRED),
    ],
)
def test_an_unanswered_check_is_repeated_soon_then_later_and_says_why(
    error: UpdateAgentError, reason: Reason
) -> None:
    fakes = Fakes(answers=[error])

    async def again(case: Case) -> None:
        waits = []
        await check(case)
        for _ in range(8):
            assert case.daemon.record.wait
            assert case.daemon.record.wait.reason is reason
            assert fakes.timer
            waits.append(round(fakes.timer.seconds / 60))
            await case.pass_time()
        assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
        assert case.daemon.record.wait_since == START

    case = play(again, fakes)

    assert case.state is State.WAITING
    assert case.daemon.record.failures == 9


@pytest.mark.case(13)
def test_a_check_that_was_planned_by_a_clock_a_day_ahead_does_not_wait_for_that_day() -> None:
    fakes = Fakes(answers=[waiting(Reason.UP_TO_DATE)])

    async def story(case: Case) -> None:
        fakes.now += timedelta(days=1)
        await check(case)
        fakes.now -= timedelta(days=1)
        await case.daemon.resume()
        assert fakes.timer
        assert fakes.timer.seconds == 30 * 60
        assert case.daemon.next_check == START + timedelta(minutes=30)

    play(story, fakes)


def test_a_good_answer_ends_the_back_off() -> None:
    fakes = Fakes(answers=[HostError("x"), HostError("x"), waiting(Reason.UP_TO_DATE)])

    async def again(case: Case) -> None:
        await check(case)
        await case.pass_time()
        await case.pass_time()
        assert fakes.timer
        assert fakes.timer.seconds == 30 * 60

    case = play(again, fakes)

    assert case.daemon.record.failures == 0


def test_a_host_that_is_paused_here_installs_only_what_somebody_asks_for() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await case.daemon.pause("holidays")
        await check(case)
        assert case.state is State.WAITING
        assert case.daemon.record.wait
        assert case.daemon.record.wait.sentence == "updates are paused on this host: holidays"
        await case.daemon.install()
        await case.settle()

    assert play(story, fakes).state is State.REBOOTING


def test_a_pause_for_a_reason_in_lines_outlives_the_daemon() -> None:
    fakes = Fakes()

    async def story(case: Case) -> None:
        await case.daemon.pause("holidays,\nall week" + "." * 600)

    kept = document.encode(play(story, fakes).daemon.record)

    found, damage = record.decode(kept, START)
    assert damage is None
    assert found.paused == "holidays, all week" + "." * 482


def test_a_host_that_installs_by_hand_waits_for_a_person() -> None:
    by_hand = replace(IMMEDIATE, update=replace(FOLLOWS, automatic=False))
    fakes = Fakes(answers=[OFFER])

    case = play(check, fakes, by_hand)

    assert case.daemon.record.wait
    assert case.daemon.record.wait.reason is Reason.BY_HAND
    assert "installed" not in fakes.did


def test_force_reboots_no_host_that_a_person_reboots() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        for _ in range(2):
            await case.daemon.install(force=True)
            await case.settle()

    case = play(story, fakes, BY_PERSON)

    assert case.state is State.WAITING_TO_REBOOT
    assert "reboot" not in fakes.did


def test_who_resumes_asks_at_once() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await case.daemon.pause("lunch")
        await check(case)
        assert case.state is State.WAITING
        await case.daemon.resume()

    assert play(story, fakes).state is State.REBOOTING


def test_force_asks_as_a_forced_host() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await case.daemon.install(force=True)
        await case.settle()

    play(story, fakes)

    assert fakes.asked_for[0].forced


def test_without_a_repository_nothing_is_asked_by_itself() -> None:
    fakes = Fakes(answers=[OFFER])

    play(nothing, fakes, Settings())

    assert fakes.timer is None


def test_a_host_that_never_asked_does_so_soon_after_its_boot() -> None:
    async def story(case: Case) -> None:
        assert case.fakes.timer
        assert case.fakes.timer.seconds == 100  # half of a ninth of 30 minutes

    play(story, Fakes())


@pytest.mark.parametrize(("minutes_ago", "seconds"), [(10, 20 * 60), (45, 100), (-600, 30 * 60)])
def test_a_daemon_that_begins_anew_goes_on_with_the_interval(
    minutes_ago: int, seconds: float
) -> None:
    asked = START - timedelta(minutes=minutes_ago)

    async def story(case: Case) -> None:
        assert case.fakes.timer
        assert case.fakes.timer.seconds == seconds

    play(story, Fakes(kept=replace(record.fresh(START), checked=asked)))


def test_who_asks_while_the_repository_is_asked_waits_for_the_same_answer() -> None:
    fakes = Fakes(answers=[waiting(Reason.UP_TO_DATE)])

    async def story(case: Case) -> None:
        await case.daemon.check()
        await case.daemon.check()
        assert case.state is State.CHECKING
        await case.settle()

    case = play(story, fakes)

    assert case.state is State.IDLE
    assert len(fakes.asked_for) == 1


def test_checks_of_many_hosts_spread() -> None:
    fakes = Fakes(answers=[waiting(Reason.UP_TO_DATE)])
    case = play(check, fakes)
    found = set()
    for chance in (0.0, 0.25, 0.5, 0.999):
        case.daemon._world = replace(case.daemon._world, chance=lambda chance=chance: chance)  # type: ignore[misc]
        found.add(round(case.daemon._interval().total_seconds() / 60, 1))

    assert found == {20.0, 25.0, 30.0, 40.0}


# Installing --------------------------------------------------------------------------------------


def test_an_installation_that_stops_is_tried_again_with_the_reason_shown() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"installed": HostError("no space", hint="delete")})

    async def story(case: Case) -> None:
        await check(case)
        assert case.state is State.WAITING
        wait = case.daemon.record.wait
        assert wait
        assert (wait.reason, wait.ends) == (Reason.INSTALLATION, "delete")
        assert wait.sentence == "the installation of 1.1.0 stopped: no space"
        fakes.trouble.clear()
        await case.pass_time()

    case = play(story, fakes)

    assert case.state is State.REBOOTING
    assert [it.outcome for it in case.daemon.record.history] == [Outcome.INTERRUPTED]
    assert case.daemon.record.failed == ()


def test_a_release_that_cannot_be_trusted_is_avoided() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"installed": UntrustedError("not what was signed")})

    case = play(check, fakes)

    assert case.state is State.FAILED
    assert case.daemon.record.failed == (V("1.1.0"),)
    assert case.daemon.record.history[-1].why == "not what was signed"


def test_progress_is_told_while_it_installs_and_gone_after() -> None:
    fakes = Fakes(answers=[OFFER])

    case = play(check, fakes)

    shown = [progress for state, progress in fakes.told if state is State.INSTALLING and progress]
    assert [(it.done, it.size, it.seconds_left) for it in shown[:1]] == [(1, 2, 2.0)]
    assert case.daemon.progress is None


def test_cancelling_stops_an_installation_at_once_and_blames_nobody() -> None:
    fakes = Fakes(answers=[OFFER], gate=threading.Event())

    async def story(case: Case) -> None:
        await case.daemon.check()
        assert await asyncio.to_thread(fakes.installing.wait, 10)
        with pytest.raises(NotNowError, match="cannot check while installing"):
            await case.daemon.check()
        await case.daemon.cancel()
        await case.settle()

    case = play(story, fakes)

    assert case.state is State.IDLE
    assert case.daemon.record.failed == ()
    assert case.daemon.record.history[-1].outcome is Outcome.DROPPED


def test_a_daemon_that_stops_while_it_installs_goes_on_after_its_restart() -> None:
    fakes = Fakes(answers=[OFFER], gate=threading.Event())

    async def stop(case: Case) -> None:
        await case.daemon.check()
        assert await asyncio.to_thread(fakes.installing.wait, 10)
        await case.daemon.stop()

    attempt = play(stop, fakes).daemon.record.attempt
    assert attempt
    fakes.gate = None

    resumed = play(nothing, fakes)

    assert resumed.state is State.REBOOTING
    assert resumed.daemon.record.attempt
    assert resumed.daemon.record.attempt.id == attempt.id
    assert resumed.daemon.record.history == ()


def test_a_daemon_that_finds_another_release_after_its_restart_drops_the_first() -> None:
    fakes = Fakes(answers=[OFFER], gate=threading.Event())

    async def stop(case: Case) -> None:
        await case.daemon.check()
        assert await asyncio.to_thread(fakes.installing.wait, 10)
        await case.daemon.stop()

    play(stop, fakes)
    fakes.gate = None
    newer = replace(RELEASE, version=V("1.2.0"), root_hash="2" * 64)
    fakes.answers = [replace(OFFER, release=newer)]

    resumed = play(nothing, fakes)

    assert [it.outcome for it in resumed.daemon.record.history] == [Outcome.DROPPED]
    assert resumed.daemon.record.attempt
    assert resumed.daemon.record.attempt.version == V("1.2.0")


# Rebooting ---------------------------------------------------------------------------------------


def test_a_reboot_that_is_held_back_is_asked_for_again() -> None:
    opens = START + timedelta(hours=18)
    closed = Wait(reason=Reason.WINDOW, sentence="closed", ends="2 o'clock", until=opens)
    fakes = Fakes(answers=[OFFER], permission=closed)

    async def story(case: Case) -> None:
        await check(case)
        assert case.state is State.WAITING_TO_REBOOT
        assert case.daemon.record.wait == closed
        assert "arm" not in fakes.did, "a reboot by accident must boot the old release"
        while fakes.now < opens - FOLLOWS.interval:
            await case.pass_time()  # no clock is trusted for that long
        assert case.daemon.record.wait == closed
        fakes.permission = None
        await case.pass_time()

    case = play(story, fakes)

    assert fakes.now == opens
    assert case.state is State.REBOOTING


def test_a_reboot_that_the_system_refuses_disarms_and_waits_with_the_reason() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"reboot": HostError("inhibited by backup")})

    case = play(check, fakes)

    assert case.state is State.WAITING_TO_REBOOT
    assert case.daemon.record.wait
    assert case.daemon.record.wait.sentence == "inhibited by backup"
    assert fakes.did[-4:] == ["arm", "reboot", "disarm", "give back"]


def test_a_host_whose_reboot_is_refused_is_drained_less_and_less_often() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"drain": HostError("web-1 does not stop")})
    pauses: list[float] = []

    async def story(case: Case) -> None:
        await check(case)
        for _ in range(6):
            pauses.append(seconds(fakes) / 60)
            await case.pass_time()

    play(story, fakes)

    assert pauses == [2, 4, 8, 16, 30, 30]


def test_a_refused_reboot_slows_nobody_down_who_waits_in_turn() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"drain": HostError("web-1 does not stop")})

    async def story(case: Case) -> None:
        await check(case)
        for _ in range(3):
            await case.pass_time()
        fakes.permission = HELD
        await case.pass_time()
        assert seconds(fakes) == 60

    play(story, fakes, IN_TURN)


def test_what_is_not_verified_any_more_is_installed_again_less_and_less_often() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"arm": UnverifiedError("not as it was verified")})
    pauses: list[float] = []

    async def story(case: Case) -> None:
        await check(case)
        for _ in range(4):
            pauses.append(seconds(fakes) / 60)
            await case.pass_time()

    case = play(story, fakes)

    assert pauses == [2, 4, 8, 16]
    assert sum(it.startswith("install ") for it in fakes.did) == 5
    dropped = case.daemon.record.history[-1]
    assert (dropped.outcome, dropped.why) == (Outcome.DROPPED, "not as it was verified")


def test_who_waits_for_the_gap_between_two_reboots_keeps_its_place() -> None:
    gap = Wait(reason=Reason.LOCK_GAP, sentence="a gap", ends="it is over",
               until=START + timedelta(minutes=5))  # fmt: skip
    fakes = Fakes(answers=[OFFER], permission=gap)

    async def story(case: Case) -> None:
        await check(case)
        assert seconds(fakes) == 60

    play(story, fakes, IN_TURN)


def test_a_slot_that_cannot_be_armed_is_not_rebooted_into() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"arm": HostError("both tables are damaged")})

    case = play(check, fakes)

    assert case.state is State.WAITING_TO_REBOOT
    assert "reboot" not in fakes.did


@pytest.mark.case(96)
@pytest.mark.parametrize(
    "answer",
    [
        waiting(Reason.WITHDRAWN),
        waiting(Reason.QUARANTINED),
        waiting(Reason.UP_TO_DATE),
        replace(OFFER, release=replace(RELEASE, version=V("1.2.0"), root_hash="2" * 64)),
    ],
)
def test_what_nobody_wants_any_more_is_not_booted(answer: Offer) -> None:
    held = Wait(reason=Reason.WINDOW, sentence="closed", ends="later")
    fakes = Fakes(answers=[OFFER], permission=held)

    async def story(case: Case) -> None:
        await check(case)
        fakes.permission = None
        fakes.answers = [answer, waiting(Reason.UP_TO_DATE)]
        await case.pass_time()

    case = play(story, fakes)

    assert case.state is State.IDLE
    assert case.daemon.record.history[-1].outcome is Outcome.DROPPED
    assert "arm" not in fakes.did
    assert "disarm" in fakes.did


def test_what_is_staged_is_booted_even_when_no_server_answers_any_more() -> None:
    fakes = Fakes(answers=[OFFER, HostError("no route to host")])

    assert play(check, fakes).state is State.REBOOTING


def test_a_person_may_reboot_before_the_window_opens() -> None:
    held = Wait(reason=Reason.WINDOW, sentence="closed", ends="later")
    fakes = Fakes(answers=[OFFER], permission=held)

    async def story(case: Case) -> None:
        await check(case)
        await case.daemon.reboot()
        await case.settle()

    assert play(story, fakes).state is State.REBOOTING
    assert fakes.did[-2:] == ["arm", "reboot"]


@pytest.fixture
def staged() -> Fakes:
    held = Wait(reason=Reason.WINDOW, sentence="closed", ends="later")
    fakes = Fakes(answers=[OFFER], permission=held)
    play(check, fakes)
    return fakes


def test_cancelling_forgets_what_is_staged(staged: Fakes) -> None:
    async def cancel(case: Case) -> None:
        await case.daemon.cancel()

    case = play(cancel, staged)

    assert case.state is State.IDLE
    assert case.daemon.record.attempt is None


@pytest.mark.parametrize("restarts", [False, True])
def test_what_was_cancelled_is_disarmed_however_long_the_writer_does_not(*, restarts: bool) -> None:
    fakes = Fakes(answers=[OFFER])
    play(check, fakes, BY_PERSON)
    fakes.trouble["disarm"] = HostError("the writer does not answer")

    async def cancel(case: Case) -> None:
        await case.daemon.cancel()

    async def minute(case: Case) -> None:
        fakes.did.clear()
        assert seconds(fakes) == 60
        await case.pass_time()
        assert fakes.did == ["disarm"]
        assert reason(case) is Reason.SLOTS
        fakes.trouble.clear()
        await case.pass_time()
        assert fakes.did == ["disarm", "disarm"]
        assert reason(case) is None
        assert seconds(fakes) > 60

    async def both(case: Case) -> None:
        await cancel(case)
        await case.settle()
        await minute(case)

    if restarts:
        play(cancel, fakes, BY_PERSON)
        case = play(minute, fakes, BY_PERSON)
    else:
        case = play(both, fakes, BY_PERSON)

    assert (case.state, case.daemon.record.disarm) == (State.IDLE, False)


def test_who_cannot_disarm_asks_the_repository_all_the_same() -> None:
    fakes = Fakes(answers=[OFFER])
    play(check, fakes, BY_PERSON)
    fakes.trouble["disarm"] = HostError("both tables are damaged")

    async def story(case: Case) -> None:
        fakes.answers = [waiting(Reason.UP_TO_DATE)]
        fakes.asked_for.clear()
        await case.daemon.cancel()
        await case.settle()
        for _ in range(120):
            await case.pass_time()

    play(story, fakes, BY_PERSON)

    assert 2 <= len(fakes.asked_for) <= 6


def test_what_boots_though_it_was_to_be_disarmed_is_a_trial_like_others() -> None:
    fakes = Fakes(answers=[OFFER])
    play(check, fakes, BY_PERSON)
    fakes.trouble["disarm"] = HostError("the power goes")

    async def cancel(case: Case) -> None:
        await case.daemon.cancel()

    play(cancel, fakes, BY_PERSON)
    fakes.booted = ON_TRIAL
    fakes.did.clear()
    case = play(nothing, fakes, BY_PERSON)

    assert (case.state, case.daemon.record.disarm) == (State.TRIAL, False)
    assert "disarm" not in fakes.did


def test_a_restart_before_the_reboot_asks_again_and_installs_nothing(staged: Fakes) -> None:
    staged.permission = None
    staged.did.clear()

    case = play(nothing, staged)

    assert case.state is State.REBOOTING
    assert staged.did == ["ask to reboot", "arm", "reboot"]


@pytest.mark.parametrize("verb", ["cancel", "reboot"])
def test_what_makes_no_sense_now_is_refused_by_name(verb: str) -> None:
    async def story(case: Case) -> None:
        with pytest.raises(NotNowError, match="while idle"):
            await getattr(case.daemon, verb)()

    play(story, Fakes(answers=[waiting(Reason.UP_TO_DATE)]))


# The cluster -------------------------------------------------------------------------------------

IN_TURN = Settings(
    update=FOLLOWS,
    reboot=Reboot(strategy=Strategy.LOCK),
    cluster=Cluster(endpoints=("http://etcd.example",)),
)
HELD = Wait(reason=Reason.LOCK, sentence="the reboot slot is held by web-1", ends="it comes back")
BAD = Wait(reason=Reason.BAD_RELEASE, sentence="1.1.0 rolled back on web-1", ends="a newer one")


def test_a_release_that_is_bad_elsewhere_is_not_installed() -> None:
    fakes = Fakes(answers=[OFFER], bad={V("1.1.0"): BAD})

    case = play(check, fakes, IN_TURN)

    assert (case.state, case.daemon.record.wait) == (State.WAITING, BAD)
    assert fakes.did == ["give back"]


def test_what_nobody_can_be_asked_about_is_installed_and_not_booted() -> None:
    gone = NotPermittedError(replace(HELD, reason=Reason.LOCK_UNREACHABLE))
    fakes = Fakes(answers=[OFFER], trouble={"known bad": gone})

    case = play(check, fakes, IN_TURN)

    assert (case.state, case.daemon.record.wait) == (State.WAITING_TO_REBOOT, gone.wait)
    assert "installed" in fakes.did
    assert "arm" not in fakes.did


def test_whoever_is_called_asks_again_at_once() -> None:
    fakes = Fakes(answers=[OFFER], permission=HELD, calls=[True, True, False])

    async def story(case: Case) -> None:
        await check(case)
        assert fakes.timer

    case = play(story, fakes, IN_TURN)

    assert case.state is State.WAITING_TO_REBOOT
    assert fakes.did.count("ask to reboot") == 3


def test_a_reboot_past_the_lock_is_that_once() -> None:
    fakes = Fakes(answers=[OFFER], permission=HELD, trouble={"reboot without lock": BLOCKED})

    async def story(case: Case) -> None:
        await check(case)
        await case.daemon.reboot(without_lock=True)
        await case.settle()
        assert case.state is State.WAITING_TO_REBOOT
        fakes.permission = None
        await case.daemon.reboot()

    play(story, fakes, IN_TURN)

    assert fakes.did[-1] == "reboot"
    assert fakes.did.count("reboot without lock") == 1
    assert not fakes.lockless


BLOCKED = HostError("blocked by backup")


def test_force_past_the_lock_asks_nobody_on_the_whole_way() -> None:
    fakes = Fakes(answers=[OFFER], bad={V("1.1.0"): BAD})

    async def story(case: Case) -> None:
        await case.daemon.install(force=True, without_lock=True)

    play(story, fakes, IN_TURN)

    assert fakes.did[-1] == "reboot without lock"
    assert fakes.lockless
    assert fakes.hurried


def test_it_ends_though_somebody_does_not_answer_and_asks_again_when_it_begins() -> None:
    never = threading.Event()
    fakes = Fakes(answers=[OFFER])
    fakes.answer_after = never

    async def story(case: Case) -> None:
        await case.daemon.check()
        await asyncio.to_thread(fakes.was_asked.wait, 60)
        await case.daemon.stop()

    case = play(story, fakes, IN_TURN)
    never.set()
    assert case.state is State.CHECKING

    fakes.answer_after = None
    assert play(nothing, fakes, IN_TURN).state is State.REBOOTING


# What somebody wished for one update -------------------------------------------------------------


@pytest.mark.parametrize("first", [waiting(Reason.UP_TO_DATE), waiting(Reason.PAUSED), BLOCKED])
def test_what_was_forced_in_vain_forces_no_later_update(first: Offer | UpdateAgentError) -> None:
    fakes = Fakes(answers=[first, OFFER], permission=HELD)

    async def story(case: Case) -> None:
        await case.daemon.install(force=True, without_lock=True)
        await case.settle()
        await case.pass_time()

    case = play(story, fakes, IN_TURN)

    assert case.state is State.WAITING_TO_REBOOT
    assert (fakes.hurried, fakes.lockless) == (False, False)
    assert [it.forced for it in fakes.asked_for] == [True, False]


def test_a_reboot_in_turn_that_was_cancelled_hurries_no_later_one() -> None:
    fakes = Fakes(answers=[OFFER], permission=HELD)

    async def story(case: Case) -> None:
        await check(case)
        await case.daemon.reboot()
        await case.settle()
        assert fakes.hurried
        await case.daemon.cancel()
        await check(case)

    play(story, fakes, IN_TURN)

    assert not fakes.hurried


def test_a_reboot_past_the_lock_that_could_not_be_armed_is_that_once_too() -> None:
    fakes = Fakes(answers=[OFFER], permission=HELD, trouble={"arm": BLOCKED})

    async def story(case: Case) -> None:
        await check(case)
        await case.daemon.reboot(without_lock=True)
        await case.settle()
        assert case.state is State.WAITING_TO_REBOOT
        fakes.trouble.clear()
        await case.pass_time()

    case = play(story, fakes, IN_TURN)

    assert case.daemon.record.wait == HELD
    assert not fakes.lockless


def test_a_wish_that_was_tried_takes_no_other_one_along() -> None:
    inhibited = Wait(reason=Reason.INHIBITED, sentence="a backup runs", ends="it ends")
    fakes = Fakes(answers=[OFFER], permission=replace(HELD, reason=Reason.WINDOW))
    hurried = []

    async def story(case: Case) -> None:
        await check(case)
        fakes.permission = inhibited
        fakes.did.clear()
        await asyncio.gather(case.daemon.reboot(), case.daemon.reboot(without_lock=True))
        hurried.append(fakes.hurried)

    play(story, fakes)

    assert fakes.did == ["ask to reboot"] * 2
    assert hurried == [True]


def test_a_force_whose_slot_was_lost_at_the_last_moment_still_hurries() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"reboot": NotPermittedError(HELD)})

    async def story(case: Case) -> None:
        await case.daemon.install(force=True)
        await case.settle()
        assert case.state is State.WAITING_TO_REBOOT
        fakes.hurried = False
        await case.pass_time()

    play(story, fakes, IN_TURN)

    assert fakes.hurried


def test_what_could_not_be_written_down_is_not_wished_any_more() -> None:
    full = HostError("no space left on device")
    fakes = Fakes(answers=[OFFER], permission=HELD)

    async def story(case: Case) -> None:
        fakes.trouble["save"] = full
        with pytest.raises(HostError, match="no space left"):
            await case.daemon.install(force=True, without_lock=True)
        del fakes.trouble["save"]
        await check(case)

    play(story, fakes, IN_TURN)

    assert not fakes.lockless


# What is left to a person ------------------------------------------------------------------------


def test_what_waits_for_a_person_is_armed_once_and_asked_about_again_and_again() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await check(case)
        asked = len(fakes.asked_for)
        for _ in range(3):
            await case.pass_time()
        assert len(fakes.asked_for) == asked + 3
        assert case.daemon.record.checked == fakes.now

    case = play(story, fakes, BY_PERSON)

    assert case.state is State.WAITING_TO_REBOOT
    assert fakes.did.count("arm") == 1


@pytest.mark.case(65)
def test_what_waits_for_a_person_and_is_quarantined_meanwhile_boots_never() -> None:
    fakes = Fakes(answers=[OFFER, waiting(Reason.QUARANTINED)])

    async def story(case: Case) -> None:
        await check(case)
        await case.pass_time()

    case = play(story, fakes, BY_PERSON)

    assert case.state is State.WAITING
    assert fakes.did[-2:] == ["disarm", "give back"]
    assert case.daemon.record.history[-1].outcome is Outcome.DROPPED


NEWER = replace(OFFER, release=replace(RELEASE, version=V("1.2.0"), root_hash="2" * 64))


def test_what_waits_for_a_person_makes_room_only_for_what_this_host_would_install() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await check(case)
        fakes.answers = [NEWER, waiting(Reason.WAVE), NEWER, NEWER, NEWER]
        await case.pass_time()
        assert "disarm" not in fakes.did
        await case.pass_time()
        assert "install 1.2.0 for 1000" in fakes.did

    case = play(story, fakes, BY_PERSON)

    assert case.state is State.WAITING_TO_REBOOT
    assert fakes.did[-1] == "arm"


def test_what_waits_for_a_person_on_a_host_that_is_paused_stays() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await check(case)
        await case.daemon.pause("a freeze")
        fakes.answers = [NEWER]
        await case.pass_time()

    assert play(story, fakes, BY_PERSON).state is State.WAITING_TO_REBOOT
    assert "disarm" not in fakes.did


@pytest.mark.parametrize("settings", [BY_PERSON, IMMEDIATE, IN_TURN])
@pytest.mark.parametrize("without_lock", [False, True])
def test_nobody_reboots_into_what_is_quarantined(settings: Settings, *, without_lock: bool) -> None:
    fakes = Fakes(answers=[OFFER], permission=HELD)

    async def story(case: Case) -> None:
        await check(case)
        fakes.permission = None
        fakes.answers = [waiting(Reason.QUARANTINED)]
        await case.daemon.reboot(without_lock=without_lock)

    case = play(story, fakes, settings)

    assert case.state is State.WAITING
    assert not [it for it in fakes.did if it.startswith("reboot")]


# A reboot by accident ----------------------------------------------------------------------------


@pytest.mark.parametrize("refuses", ["arm", "reboot"])
def test_an_accident_after_a_reboot_that_was_refused_is_no_fall(refuses: str) -> None:
    fakes = Fakes(answers=[OFFER], trouble={refuses: BLOCKED})
    play(check, fakes, IN_TURN)
    fakes.did.clear()
    fakes.permission = HELD
    fakes.booted = Boot(boot_id="b2", root_hash=OLD, successful=True)

    case = play(nothing, fakes, IN_TURN)

    assert (case.state, case.daemon.record.failed) == (State.WAITING_TO_REBOOT, ())
    assert fakes.did == ["ask to reboot"]


def test_a_power_cut_before_the_slot_was_armed_is_no_fall() -> None:
    class Gone(Fakes):
        def arm(self) -> None:
            raise SystemError("the power goes now")

    fakes = Gone(answers=[OFFER])
    with pytest.raises(SystemError):
        play(check, fakes)
    assert fakes.kept
    assert fakes.kept.state is State.REBOOTING
    after = Fakes(kept=fakes.kept, answers=[OFFER])
    after.booted = Boot(boot_id="b2", root_hash=OLD, successful=True, untried=True)

    case = play(nothing, after)

    assert case.state is State.REBOOTING
    assert after.did == ["disarm", "ask to reboot", "arm", "reboot"]


class CutAfter(Fakes):
    """The power goes after something was done, and before that is written down."""

    last = ""

    def save(self, found: Record) -> None:
        if self.did and self.did[-1] == self.last:
            raise SystemError("the power goes now")
        super().save(found)


def test_a_power_cut_right_after_the_slot_was_armed_hides_no_fall() -> None:
    """The trial runs, ends at its deadline, and leaves the flags of a slot that never was armed."""
    fakes = CutAfter(answers=[OFFER])
    fakes.last = "arm"
    with pytest.raises(SystemError):
        play(check, fakes)
    assert fakes.kept
    trial = Fakes(kept=fakes.kept, answers=[OFFER])
    trial.booted = Boot(boot_id="b2", root_hash=NEW, successful=False)
    play(nothing, trial)
    assert trial.kept
    assert trial.kept.state is State.TRIAL
    after = Fakes(kept=trial.kept, answers=[OFFER])
    after.booted = Boot(boot_id="b3", root_hash=OLD, successful=True, untried=True)

    case = play(nothing, after)

    assert (case.state, case.daemon.record.failed) == (State.FAILED, (V("1.1.0"),))


@pytest.mark.parametrize("fails", [False, True])
def test_a_power_cut_while_a_slot_is_disarmed_is_no_fall(*, fails: bool) -> None:
    """The flags decide: those of a slot that could not be disarmed say so."""
    fakes = CutAfter(answers=[OFFER], trouble={"reboot": BLOCKED})
    fakes.last = "disarm"
    if fails:
        fakes.trouble["disarm"] = BLOCKED
    with pytest.raises(SystemError):
        play(check, fakes)
    assert fakes.kept
    after = Fakes(kept=fakes.kept, answers=[OFFER])
    after.booted = Boot(boot_id="b2", root_hash=OLD, successful=True, untried=not fails)

    case = play(nothing, after, BY_PERSON)

    assert case.state is (State.FAILED if fails else State.WAITING_TO_REBOOT)


# Two things at once ------------------------------------------------------------------------------


def test_several_people_may_ask_for_the_same_at_once() -> None:
    fakes = Fakes(answers=[waiting(Reason.UP_TO_DATE)])

    async def story(case: Case) -> None:
        await asyncio.gather(*(case.daemon.check() for _ in range(9)))

    play(story, fakes)

    assert len(fakes.asked_for) == 1


def test_several_people_who_reboot_at_once_reboot_once(staged: Fakes) -> None:
    staged.did.clear()

    async def story(case: Case) -> None:
        await asyncio.gather(*(case.daemon.reboot() for _ in range(9)))

    assert play(story, staged).state is State.REBOOTING
    assert staged.did.count("reboot") == 1


def test_of_several_people_who_cancel_at_once_one_does(staged: Fakes) -> None:
    async def story(case: Case) -> None:
        said = await asyncio.gather(
            *(case.daemon.cancel() for _ in range(9)), return_exceptions=True
        )
        assert [type(it) for it in said if it] == [NotNowError] * 8

    assert play(story, staged).state is State.IDLE


def test_a_pause_while_something_else_is_written_down_is_kept_and_so_is_that() -> None:
    fakes = Fakes(answers=[waiting(Reason.UP_TO_DATE)])

    async def story(case: Case) -> None:
        fakes.saving = threading.Event()
        called = [
            asyncio.ensure_future(it)
            for it in (case.daemon.check(), case.daemon.pause("lunch"), case.daemon.resume())
        ]
        called.append(asyncio.ensure_future(case.daemon.pause("an audit")))
        await asyncio.to_thread(fakes.saves.acquire)
        fakes.saving.set()
        await asyncio.gather(*called)

    case = play(story, fakes)

    assert fakes.kept == case.daemon.record
    assert case.daemon.record.paused == "an audit"
    assert case.daemon.record.checked == START
    assert fakes.most_saves == 1


def test_an_installation_cancelled_in_its_last_moment_is_not_booted() -> None:
    class Late(Fakes):
        def install(self, *words: Any) -> Installed:  # noqa: ANN401
            done = super().install(*words)
            words[-1].set()
            return done

    fakes = Late(answers=[OFFER])

    case = play(check, fakes)

    assert case.state is State.IDLE
    assert case.daemon.record.history[-1].outcome is Outcome.DROPPED
    assert "arm" not in fakes.did


# When the writer, or the reboot, does not answer -------------------------------------------------


@pytest.mark.case(57)
def test_a_host_that_cannot_see_its_slots_says_so_and_tries_again() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"boot": HostError("both copies are bad")})

    async def story(case: Case) -> None:
        wait = case.daemon.record.wait
        assert wait
        assert wait.reason is Reason.SLOTS
        assert "both copies are bad" in wait.sentence
        for call in (case.daemon.check, case.daemon.resume, case.daemon.rollback):
            with pytest.raises(NotNowError, match="before it is known"):
                await call()
        await case.pass_time()
        fakes.trouble.clear()
        await case.pass_time()
        await check(case)

    assert play(story, fakes).state is State.REBOOTING


def test_a_trial_is_looked_at_until_it_is_confirmed_whatever_the_writer_says() -> None:
    fakes = Fakes(booted=Boot(boot_id="b2", root_hash=NEW, successful=False), answers=[OFFER])

    async def story(case: Case) -> None:
        fakes.trouble["boot"] = HostError("the disk is busy")
        for _ in range(3):
            await case.pass_time()
        fakes.trouble.clear()
        fakes.booted = replace(fakes.booted, successful=True)
        await case.pass_time()

    assert play(story, fakes).state is State.IDLE


def test_a_reboot_that_never_comes_is_not_waited_for_for_ever() -> None:
    fakes = Fakes(answers=[OFFER])

    async def story(case: Case) -> None:
        await check(case)
        assert case.state is State.REBOOTING
        fakes.permission = HELD
        await case.pass_time()

    case = play(story, fakes)

    assert case.state is State.WAITING_TO_REBOOT
    assert case.daemon.record.wait
    assert case.daemon.record.wait.sentence == "the reboot was begun, and did not come"
    assert fakes.did[-2:] == ["disarm", "give back"]


# Rolling back ------------------------------------------------------------------------------------


async def roll_back(case: Case) -> None:
    await case.daemon.rollback()


async def roll_back_in_vain(case: Case) -> None:
    case.fakes.did.clear()
    with pytest.raises(HostError):
        await case.daemon.rollback()


def ready_to_roll_back(**more: Any) -> Fakes:  # noqa: ANN401  passed on
    return Fakes(answers=[waiting(Reason.UP_TO_DATE)], seen=(A, B_CONFIRMED), **more)


@pytest.mark.parametrize("refuses", ["drain", "rollback"])
def test_a_rollback_that_is_held_back_changes_nothing(refuses: str) -> None:
    fakes = ready_to_roll_back(trouble={refuses: HostError("a backup runs")})

    case = play(roll_back_in_vain, fakes)

    assert (case.state, case.daemon.record.failed) == (State.IDLE, ())
    assert "reboot" not in fakes.did
    assert fakes.did[-1] == "give back"


def test_a_rollback_that_the_system_refuses_in_the_end_is_undone() -> None:
    fakes = ready_to_roll_back(trouble={"reboot": HostError("logind is busy")})

    case = play(roll_back_in_vain, fakes)

    assert case.daemon.record.failed == ()
    assert fakes.did == ["rollback", "reboot", "disarm", "give back"]


def test_no_host_is_drained_to_roll_back_to_nothing() -> None:
    fakes = ready_to_roll_back()
    fakes.seen = A, B

    case = play(roll_back_in_vain, fakes)

    assert (fakes.did, case.daemon.record.failed) == (["give back"], ())


@pytest.mark.parametrize("held", [HELD, None], ids=["not permitted", "not drained"])
def test_a_trial_whose_rollback_is_held_back_keeps_its_reboot_slot(held: Wait | None) -> None:
    fakes = ready_to_roll_back(booted=ON_TRIAL, permission=held)
    fakes.trouble["drain"] = HostError("the load balancer says no")

    case = play(roll_back_in_vain, fakes, IN_TURN)

    assert case.state is State.TRIAL
    assert fakes.did == ["ask to reboot, and keep"]


def test_a_trial_that_was_turned_back_is_over_whatever_becomes_of_the_reboot() -> None:
    fakes = ready_to_roll_back(booted=ON_TRIAL, trouble={"reboot": HostError("logind is busy")})

    case = play(roll_back_in_vain, fakes, IN_TURN)

    assert fakes.did == ["ask to reboot, and keep", "rollback", "reboot"]
    assert case.daemon.record.failed == (V("1.0.0"),)
    assert not case.daemon.record.disarm


def test_a_trial_that_was_confirmed_before_it_was_turned_back_is_turned_again() -> None:
    fakes = ready_to_roll_back(booted=ON_TRIAL, drained=threading.Event())
    fakes.trouble = {name: HostError("busy") for name in ("reboot", "disarm")}

    async def story(case: Case) -> None:
        assert fakes.drained
        rolling = asyncio.ensure_future(roll_back_in_vain(case))
        await asyncio.to_thread(fakes.draining.wait)
        fakes.booted = replace(ON_TRIAL, successful=True)
        fakes.drained.set()
        await rolling
        del fakes.trouble["disarm"]
        await case.daemon.confirmed()
        await case.settle()

    case = play(story, fakes, IN_TURN)

    assert (case.state, case.daemon.record.disarm, case.daemon.record.failed) == (
        State.IDLE, False, (),
    )  # fmt: skip
    assert fakes.did[-2:] == ["disarm", "give back"]


def test_a_rollback_waits_for_nothing_that_is_still_to_be_decided() -> None:
    fakes = ready_to_roll_back(answer_after=threading.Event())

    async def story(case: Case) -> None:
        assert fakes.answer_after
        await case.daemon.check()
        with pytest.raises(NotNowError, match="cannot roll back while checking"):
            await case.daemon.rollback()
        fakes.answer_after.set()

    play(story, fakes)


def test_what_was_to_be_given_back_is_so_before_a_rollback_asks() -> None:
    fakes = ready_to_roll_back(booted=ON_TRIAL, saving=threading.Event())
    assert fakes.saving
    fakes.saving.set()

    async def story(case: Case) -> None:
        assert fakes.saving
        fakes.did.clear()
        fakes.saving.clear()
        fakes.saves = threading.Semaphore(0)
        fakes.booted = replace(ON_TRIAL, successful=True)
        confirming = asyncio.ensure_future(case.daemon.confirmed())
        await asyncio.to_thread(fakes.saves.acquire)
        rolling = asyncio.ensure_future(roll_back(case))
        asyncio.get_running_loop().call_later(0.05, fakes.saving.set)
        await asyncio.gather(confirming, rolling)

    play(story, fakes, IN_TURN)

    assert fakes.did == ["give back", "ask to reboot", "rollback", "reboot"]


def test_what_is_armed_though_its_reboot_was_refused_is_disarmed_within_a_minute() -> None:
    fakes = Fakes(answers=[OFFER], trouble={"drain": HostError("web-1 does not stop")})

    async def story(case: Case) -> None:
        await check(case)
        for _ in range(3):
            await case.pass_time()
        fakes.trouble["disarm"] = HostError("the writer does not answer")
        await case.pass_time()
        assert seconds(fakes) == 60
        assert reason(case) is Reason.SLOTS

    play(story, fakes)


def test_a_trial_that_is_confirmed_while_it_is_rolled_back_gives_nothing_back() -> None:
    fakes = ready_to_roll_back(booted=ON_TRIAL, drained=threading.Event())

    async def story(case: Case) -> None:
        assert fakes.drained
        rolling = asyncio.ensure_future(roll_back(case))
        await asyncio.to_thread(fakes.draining.wait)
        fakes.booted = replace(ON_TRIAL, successful=True)
        await case.daemon.confirmed()
        fakes.drained.set()
        await rolling
        await case.daemon.confirmed()
        assert seconds(fakes) == 15 * 60

    case = play(story, fakes, IN_TURN)

    assert case.state is State.TRIAL
    assert "give back" not in fakes.did


def test_nothing_begins_on_a_host_that_goes_down_to_roll_back() -> None:
    fakes = ready_to_roll_back()

    async def story(case: Case) -> None:
        await roll_back(case)
        fakes.did.clear()
        for call in (case.daemon.check, case.daemon.install, case.daemon.rollback):
            with pytest.raises(NotNowError, match="while this host goes down to roll back"):
                await call()
        await case.daemon.pause("let it rest")
        assert seconds(fakes) == 15 * 60

    case = play(story, fakes)

    assert (fakes.did, case.daemon.record.failed) == ([], (V("1.0.0"),))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_rollback_whose_reboot_never_comes_is_undone_and_updates_go_on(*, restarts: bool) -> None:
    fakes = ready_to_roll_back()

    async def undone(case: Case) -> None:
        assert sorted(fakes.did) == ["disarm", "give back"]
        fakes.answers = [OFFER]
        await check(case)

    async def story(case: Case) -> None:
        await roll_back(case)
        fakes.did.clear()
        if not restarts:
            await case.pass_time()
            await undone(case)

    case = play(story, fakes)
    if restarts:
        case = play(undone, fakes)

    assert case.state is State.REBOOTING
    assert case.daemon.record.failed == ()


def test_a_rollback_is_undone_however_long_the_writer_does_not() -> None:
    fakes = ready_to_roll_back(trouble={"reboot": HostError("logind is busy")})
    fakes.trouble["disarm"] = HostError("the disk is busy")

    async def story(case: Case) -> None:
        await roll_back_in_vain(case)
        assert case.daemon.record.disarm
        assert seconds(fakes) == 60
        fakes.trouble.clear()
        await case.pass_time()

    case = play(story, fakes)

    assert fakes.did[-1] == "disarm"
    assert (case.daemon.record.disarm, case.daemon.record.failed) == (False, ())


def test_a_rollback_whose_end_cannot_be_kept_stops_nothing() -> None:
    fakes = ready_to_roll_back(trouble={"drain": HostError("web-1 does not stop")})

    async def story(case: Case) -> None:
        fakes.trouble["save"] = HostError("no space left")
        await roll_back_in_vain(case)
        del fakes.trouble["save"]
        await check(case)

    assert play(story, fakes).state is State.IDLE


def test_a_rollback_goes_on_without_who_asked_for_it_and_not_without_the_daemon() -> None:
    fakes = ready_to_roll_back(drained=threading.Event())

    async def story(case: Case) -> None:
        assert fakes.drained
        rolling = asyncio.ensure_future(roll_back(case))
        await asyncio.to_thread(fakes.draining.wait)
        rolling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rolling
        with pytest.raises(NotNowError):
            await case.daemon.check()
        asyncio.get_running_loop().call_later(0.05, fakes.drained.set)
        await case.daemon.stop()

    case = play(story, fakes)

    assert "rollback" not in fakes.did
    assert case.daemon.record.failed == ()
