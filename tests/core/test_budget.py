"""When a rollout stops by itself: by hand-made numbers, and for 100,000 hosts through a day."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from update_agent.core import plan
from update_agent.core.budget import Budget, Course, Tally, judge
from update_agent.core.channel import Change, Channel
from update_agent.core.rollout import Rollout
from update_agent.core.version import Version

V = Version("1.1.0")
START = datetime(2026, 11, 24, 8, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
PLAN = "1%:1h 10%:4h@+3h 100%:12h@+9h"
BUDGET = Budget()


def judged(
    tally: Tally, after: timedelta = HOUR, budget: Budget = BUDGET, rollout: Rollout | None = None
) -> tuple[Course, str]:
    rollout = rollout or Rollout(started=START, waves=plan.read(PLAN))
    verdict = judge(budget, V, rollout, tally, START + after, lead=MINUTE)
    return verdict.course, verdict.why


# Failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tally", "course"),
    [
        pytest.param(Tally(hosts=0, running=0), Course.GO, id="no-hosts"),
        pytest.param(Tally(hosts=1000, running=0, fell_back=2), Course.GO, id="98-may-do-well"),
        pytest.param(Tally(hosts=1000, running=0, fell_back=3), Course.HALT, id="97-cannot-help"),
        pytest.param(
            Tally(hosts=1000, running=98, confirmed=98, fell_back=2), Course.GO, id="2-of-100"
        ),
        pytest.param(
            Tally(hosts=1000, running=97, confirmed=97, fell_back=3), Course.HALT, id="3-of-100"
        ),
        pytest.param(
            Tally(hosts=10, running=9, confirmed=9, silent=1), Course.HALT, id="small-channel"
        ),
        pytest.param(Tally(hosts=10, running=0, silent=1), Course.HALT, id="9-cannot-help"),
        pytest.param(
            Tally(hosts=1000, running=980, fell_back=1, unable=1), Course.GO, id="980-proved-it"
        ),
        pytest.param(
            Tally(hosts=1000, running=980, fell_back=3, unable=3), Course.HALT, id="3-of-the-last"
        ),
        pytest.param(
            Tally(hosts=40, running=35, fell_back=1, unable=1), Course.HALT, id="small-and-proved"
        ),
        pytest.param(
            Tally(hosts=50, running=0, fell_back=1, unable=2), Course.HALT, id="1-of-48-and-1"
        ),
        pytest.param(
            Tally(hosts=1000, running=96, confirmed=96, silent=1, stuck=1, refused=1, fell_back=1),
            Course.HALT, id="of-every-kind",
        ),
    ],
)  # fmt: skip
def test_a_rollout_halts_when_more_than_its_share_failed_of_enough(
    tally: Tally, course: Course
) -> None:
    assert judged(tally)[0] is course


def test_it_says_how_many_failed_and_how() -> None:
    tally = Tally(hosts=9999, running=90, confirmed=90, fell_back=6, silent=3, stuck=1)

    assert judged(tally)[1] == (
        "10 of 100 hosts that tried 1.1.0 failed (10.0%; 2 % are allowed): 6 fell back, 3 did not"
        " come back, 1 came back and were not confirmed"
    )


# Waves -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "after", "course"),
    [
        pytest.param(0, -HOUR, Course.GO, id="the-first-needs-nobody"),
        pytest.param(0, 2 * HOUR, Course.GO, id="long-before-the-second"),
        pytest.param(49, 3 * HOUR - MINUTE, Course.HOLD, id="a-minute-before-with-too-few"),
        pytest.param(50, 3 * HOUR - MINUTE, Course.GO, id="half-of-1-percent-of-10000"),
        pytest.param(50, 3 * HOUR, Course.GO, id="within-the-second"),
        pytest.param(499, 9 * HOUR - MINUTE, Course.HOLD, id="half-of-10-percent"),
        pytest.param(0, 30 * HOUR, Course.GO, id="after-the-last"),
    ],
)
def test_a_wave_opens_when_enough_hosts_before_it_run_the_release(
    running: int, after: timedelta, course: Course
) -> None:
    assert judged(Tally(hosts=10_000, running=running), after)[0] is course


@pytest.mark.parametrize(("placed", "course"), [(0, Course.GO), (8, Course.HOLD), (7, Course.GO)])
def test_no_wave_waits_for_more_hosts_than_have_a_place(placed: int, course: Course) -> None:
    tally = Tally(hosts=10_000, running=7 if placed else 0, placed=placed)

    assert judged(tally, 3 * HOUR - MINUTE)[0] is course


def test_no_wave_opens_while_too_few_are_heard() -> None:
    tally = Tally(hosts=10_000, running=10_000, deaf=True)

    assert judged(tally, 3 * HOUR - 2 * MINUTE)[0] is Course.GO
    course, why = judged(tally, 3 * HOUR - MINUTE)
    assert course is Course.HOLD
    assert why == (
        "too few hosts are heard to know how 1.1.0 does; the wave after 1 % of all opens when they"
        " are, or when somebody resumes it"
    )


def test_a_deadline_opens_nothing_that_too_few_have_proved() -> None:
    waves = plan.read("1%:1h")
    rollout = Rollout(started=START, waves=waves, deadline=START + 5 * HOUR)

    def course(running: int, after: timedelta) -> Course:
        return judged(Tally(hosts=10_000, running=running), after, rollout=rollout)[0]

    assert course(0, 4 * HOUR) is Course.GO
    assert course(49, 5 * HOUR - MINUTE) is Course.HOLD
    assert course(50, 5 * HOUR - MINUTE) is Course.GO
    assert course(0, 6 * HOUR) is Course.GO


def test_it_says_what_the_wave_waits_for() -> None:
    assert judged(Tally(hosts=10_000, running=7), 3 * HOUR - MINUTE)[1] == (
        "7 hosts run 1.1.0; the wave after 1 % of all opens when 50 do"
    )


# A day of a fleet --------------------------------------------------------------------------------

HOSTS = 100_000
OLD, INSTALLING, AWAY, CONFIRMED, FELL_BACK, LOST = range(6)


@dataclass
class Fleet:
    """100,000 hosts that ask every 45 minutes, more or less, install, reboot, and come back or not.

    ``fails`` is the share of hosts on which the release does not come up; ``lost`` of these never
    come back, the others fall back after three boots. Times are minutes.
    """

    fails: float
    lost: float = 0.0
    seed: int = 1
    channel: Channel = field(init=False)
    hold: int = 0

    def __post_init__(self) -> None:
        self.chance = np.random.default_rng(self.seed)
        self.place = self.chance.integers(0, 1_000_000, HOSTS)
        self.state = np.full(HOSTS, OLD)
        self.due = self.chance.uniform(0, 45, HOSTS)
        self.rebooted = np.zeros(HOSTS)
        self.bad = self.chance.random(HOSTS) < self.fails
        self.gone = self.bad & (self.chance.random(HOSTS) < self.lost)
        change = Change(time=START, author="release team", what="promoted")
        made = Channel.created("stable", "os", change)
        self.channel = made.promote(V, change, waves=plan.read(PLAN))

    def step(self, minute: int) -> None:
        """Let a minute pass on every host."""
        rollout = self.channel.rollout
        assert rollout
        now, due = START + minute * MINUTE, self.due <= minute
        offered = self.place < rollout.share(now)
        if rollout.paused:
            offered &= False
        if V in self.channel.quarantined:  # what is installed is not booted
            self.state[self.state == INSTALLING] = OLD
        asks = due & (self.state == OLD)
        begins, waits = asks & offered, asks & ~offered
        reboots = due & (self.state == INSTALLING)
        back = due & (self.state == AWAY)
        self._to(begins, INSTALLING, minute + self.chance.uniform(3, 10, HOSTS))
        self.due[waits] = minute + self.chance.uniform(30, 60, HOSTS)[waits]
        self._to(reboots, AWAY, minute + np.where(self.gone, 1e9, np.where(self.bad, 50, 4)))
        self.rebooted = np.where(reboots, minute, self.rebooted)
        self._to(back & ~self.bad, CONFIRMED, np.full(HOSTS, 1e9))
        self._to(back & self.bad, FELL_BACK, np.full(HOSTS, 1e9))

    def _to(self, which: "np.typing.NDArray[np.bool_]", state: int, due: object) -> None:
        self.state[which] = state
        self.due[which] = np.asarray(due)[which]

    def tally(self, minute: int) -> Tally:
        """Return what the server counts."""
        away = (self.state == AWAY) & (self.rebooted <= minute - BUDGET.silence / 60)
        confirmed = int((self.state == CONFIRMED).sum())
        return Tally(
            hosts=HOSTS, running=confirmed, confirmed=confirmed,
            fell_back=int((self.state == FELL_BACK).sum()), silent=int(away.sum()),
        )  # fmt: skip

    def hurt(self) -> int:
        """Return how many hosts ran the release and did not come up with it."""
        return int((((self.state == AWAY) & self.bad) | (self.state == FELL_BACK)).sum())

    def day(self) -> int | None:
        """Live through a day; return the minute in which the rollout was halted."""
        for minute in range(24 * 60):
            self.step(minute)
            halted = self._watched(minute)
            if halted:
                for after in range(minute + 1, minute + 120):
                    self.step(after)
                return minute
        return None

    def _watched(self, minute: int) -> bool:
        now, rollout = START + minute * MINUTE, self.channel.rollout
        assert rollout
        verdict = judge(BUDGET, V, rollout, self.tally(minute), now, lead=2 * MINUTE)
        change = Change(time=now, author="update-server", what="", reason=verdict.why)
        match verdict.course:
            case Course.HALT:
                self.channel = self.channel.halt(change)
                return True
            case Course.HOLD:
                self.channel = self.channel.pause(change)
                self.hold += 1
            case Course.GO:
                self.channel = self.channel.resume(change)
        return False


def test_a_good_release_reaches_everybody_by_its_plan(figure: Callable[[str], None]) -> None:
    fleet = Fleet(fails=0.002)  # some hosts fail at anything

    assert fleet.day() is None
    running = int((fleet.state == CONFIRMED).sum())
    figure(
        f"a good release, 100,000 hosts: {running} run it after 24 h (plan: all offered by 21 h);"
        f" held {fleet.hold} min; {fleet.hurt()} hurt, of 0.2 % who fail at anything"
    )
    assert running >= 0.997 * HOSTS
    assert fleet.hold <= 5


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("fails", "lost", "what"),
    [
        pytest.param(0.05, 0.0, "falls back on 5 %", id="falls-back-on-5-percent"),
        pytest.param(0.05, 1.0, "never comes back on 5 %", id="lost-on-5-percent"),
        pytest.param(1.0, 1.0, "never comes back", id="never-comes-back"),
        pytest.param(1.0, 0.0, "always falls back", id="always-falls-back"),
    ],
)
def test_a_bad_release_is_halted_before_one_percent_of_the_fleet_is_hurt(
    fails: float, lost: float, what: str, seed: int, figure: Callable[[str], None]
) -> None:
    fleet = Fleet(fails=fails, lost=lost, seed=seed)

    halted = fleet.day()

    assert halted is not None
    figure(
        f"a release that {what}, 100,000 hosts: halted after {halted} min, {fleet.hurt()} hurt"
        f" ({fleet.hurt() / HOSTS:.2%})"
    )
    assert fleet.hurt() < HOSTS / 100
    assert V in fleet.channel.quarantined
