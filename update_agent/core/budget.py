"""What a rollout may cost, and when it stops by itself.

Two questions, asked again every few seconds. Did too many of the hosts fail that tried the release?
Then the rollout is halted, for people to look at. Does the next wave open soon, while too few of
the hosts before it run the release? Then the rollout's clock is held until they do; and while too
few hosts are heard to know.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import Annotated

from msgspec import Meta

from update_agent.core.document import Format, Text
from update_agent.core.rollout import RING, Rollout, percent
from update_agent.core.version import Version

Share = Annotated[int, Meta(ge=0, le=RING, description="Of 1,000,000 hosts.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a channel's rollouts may cost."""

    format: Format = 1
    failures: Share = 20_000
    """Of the hosts that tried a release, how many may fail."""
    sample: Annotated[int, Meta(ge=1, le=1_000_000, description="Hosts.")] = 100
    """So many are to try before good ones outweigh bad ones; all who can, in a small channel."""
    confirmed: Share = 500_000
    """Of the hosts in the waves that are open, how many run the release before the next opens."""
    silence: Annotated[int, Meta(ge=60, le=7 * 86400, description="Seconds.")] = 30 * 60
    """After which a host that went to reboot is taken for lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How many hosts of a channel stand how, with the release that it offers."""

    hosts: int
    """That were heard of lately."""
    running: int
    """It, confirmed."""
    confirmed: int = 0
    """Of the attempts that are counted; so are the others below."""
    fell_back: int = 0
    refused: int = 0
    """Could not trust or use it."""
    stuck: int = 0
    """Came back, and are on trial for too long."""
    silent: int = 0
    """Did not come back from the reboot into it."""
    unable: int = 0
    """Will not try it by themselves: it failed on them, or their people keep them from it."""
    placed: int | None = None
    """Have a place in the waves that have begun, and are kept from it by nobody; None: all may."""
    deaf: bool = False
    """Too few hosts are heard, or were until just now: it is not known how those stand."""

    @property
    def failed(self) -> int:
        """All that did not come to run it."""
        return self.fell_back + self.refused + self.stuck + self.silent

    @property
    def tried(self) -> int:
        """All of which is known how it ended."""
        return self.confirmed + self.failed

    @property
    def left(self) -> int:
        """All that may still try it."""
        return max(0, self.hosts - self.running - self.unable - self.silent - self.stuck)


class Course(StrEnum):
    """How a rollout goes on."""

    GO = "go"
    HOLD = "hold"
    HALT = "halt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a rollout goes on, and why."""

    course: Course
    why: Text = ""


_GO = Verdict(course=Course.GO)


def judge(
    budget: Budget, version: Version, rollout: Rollout, tally: Tally, now: datetime,
    *, lead: timedelta,
) -> Verdict:  # fmt: skip
    """Return how the rollout of ``version`` goes on.

    ``lead`` is how long before a wave opens it must be known whether it may: as long as it takes
    to ask again, and until hosts hear of the answer.
    """
    if tally.failed * RING > budget.failures * _sampled(budget, tally):
        return Verdict(course=Course.HALT, why=_failures(budget, version, tally))
    share = _ends_soon(rollout, now, lead)
    if share is None:
        return _GO
    if tally.deaf:
        why = (
            f"too few hosts are heard to know how {version} does; the wave after {percent(share)}"
            " of all opens when they are, or when somebody resumes it"
        )
        return Verdict(course=Course.HOLD, why=why)
    wanted = _wanted(budget, share, tally)
    if tally.running >= wanted:
        return _GO
    why = (
        f"{tally.running} hosts run {version}; the wave after {percent(share)} of all opens when"
        f" {wanted} do"
    )
    return Verdict(course=Course.HOLD, why=why)


def _sampled(budget: Budget, tally: Tally) -> int:
    """Return of how many hosts the failures are a share.

    While fewer have tried than are to be sampled: as if the others of the sample, as far as there
    are any who can, did well. So a few failures halt nothing that the next hosts would prove good,
    and what not even they could is halted before they try. Who runs it, and tried it before what is
    counted, is one of the others: one of the last hosts halts nothing that all before them proved.
    """
    before = max(0, tally.running - tally.confirmed)
    return max(tally.tried, min(budget.sample, before + tally.tried + tally.left))


def _wanted(budget: Budget, share: int, tally: Tally) -> int:
    """Return how many hosts are to run it before more than ``share`` opens.

    Never more than have a place there: among few hosts a wave reaches few or nobody, and who waits
    for nobody would wait for ever.
    """
    wanted = ceil(tally.hosts * share * budget.confirmed / RING**2)
    return wanted if tally.placed is None else min(wanted, tally.placed)


def _ends_soon(rollout: Rollout, now: datetime, lead: timedelta) -> int | None:
    """Return the share that is open, if more of it opens within ``lead``; None if not."""
    clock, share = rollout.clock(now), rollout.begun(now)
    follows = next((wave.opens for wave in rollout.waves if wave.opens > clock), None)
    soon = follows is not None and follows - clock <= lead.total_seconds()
    return share if 0 < share < RING and (soon or _is_due(rollout, now, lead)) else None


def _is_due(rollout: Rollout, now: datetime, lead: timedelta) -> bool:
    """Return whether the deadline opens everything soon; one that has passed has done so."""
    deadline = rollout.deadline
    if deadline is None:
        return False
    until = min(now, rollout.paused.since) if rollout.paused else now
    return until < deadline <= now + lead


def _failures(budget: Budget, version: Version, tally: Tally) -> str:
    kinds = (
        (tally.fell_back, "fell back"), (tally.silent, "did not come back"),
        (tally.stuck, "came back and were not confirmed"), (tally.refused, "refused it"),
    )  # fmt: skip
    said = ", ".join(f"{count} {what}" for count, what in kinds if count)
    return (
        f"{tally.failed} of {tally.tried} hosts that tried {version} failed"
        f" ({tally.failed / tally.tried:.1%}; {percent(budget.failures)} are allowed): {said}"
    )
