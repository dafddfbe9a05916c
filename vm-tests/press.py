"""The release team of a campaign: which releases come, good ones and bad ones, and how they differ.

``issues`` is pure: the same chance makes the same releases, in the same order.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cluster import serves
from depot import Depot
from releases import LEAN, NEVER_COMPLETE, PANICS, SICK, WITHOUT_PYTHON, Files, Workshop, deadline

FIRST = "1.0.0"
"""What machines are made with."""

NEWS = 8 << 20
"""Bytes that are new in each release, and that nothing makes much smaller."""


class Flaw(StrEnum):
    """What is wrong with a release."""

    PANICS = "panics"
    NEVER_COMPLETE = "is never complete"
    UNHEALTHY = "is unhealthy"
    NO_AGENT = "has no agent"


_FLAWS: Mapping[Flaw, Files] = {
    Flaw.PANICS: PANICS,
    Flaw.NEVER_COMPLETE: NEVER_COMPLETE,
    Flaw.UNHEALTHY: {SICK: "yes\n"},
    Flaw.NO_AGENT: WITHOUT_PYTHON,
}

_COMES_UP = (Flaw.NEVER_COMPLETE, Flaw.UNHEALTHY)
"""Is left the time of a boot; the others are as bad after a minute."""
_MINUTE = 60
_LATEST = 900
"""Seconds after which a good release is given up as well, should faults keep it unconfirmed."""

PATIENCE = (600.0, 1200.0)
"""Seconds after which the next release is offered, whatever became of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """A release that is to come."""

    version: str
    flaw: Flaw | None = None
    patience: float = 0

    def __str__(self) -> str:
        return f"{self.version}, which {self.flaw}" if self.flaw else self.version


def issues(chance: random.Random) -> Iterator[Issue]:
    """Yield releases without an end: a good one first, two of three are, and no two bad in turn."""
    flaws: list[Flaw] = []
    number = 0
    while True:
        bad = chance.choice((1, 2))
        for place in range(3):
            number += 1
            if not flaws:
                flaws = chance.sample(list(Flaw), len(Flaw))
            yield Issue(
                version=f"1.{number}.0",
                flaw=flaws.pop() if place == bad else None,
                patience=chance.uniform(*PATIENCE),
            )


@dataclass(kw_only=True)
class Press:
    """Makes releases for hosts with these numbers, and offers them."""

    workshop: Workshop
    depot: Depot
    numbers: Sequence[int]
    seed: int
    boot: int = 300
    """Seconds that a boot may take here."""
    images: dict[str, Path] = field(default_factory=dict)
    """What was signed, by version; kept, so that disks can be held against them."""
    made: list[Issue] = field(default_factory=list)

    def first(self) -> Path:
        """Return the image that machines are made with."""
        self.images[FIRST] = self.workshop.release(FIRST, serves(self.numbers))
        return self.images[FIRST]

    def make(self, issue: Issue) -> None:
        """Build, sign and publish a release; nobody is offered it yet."""
        image = self.workshop.release(issue.version, self._files(issue))
        self.images[issue.version] = image
        self.depot.add(image, issue.version, level=1)

    def offer(self, issue: Issue) -> None:
        """Offer it to everyone."""
        self.made.append(issue)
        self.depot.promote(issue.version)

    @property
    def bad(self) -> set[str]:
        """The versions that nobody should ever confirm."""
        return {it.version for it in self.made if it.flaw}

    def _files(self, issue: Issue) -> Files:
        new = random.Random(f"{self.seed} {issue.version}").randbytes(NEWS)  # noqa: S311  no secret
        good = serves(self.numbers) | deadline(_LATEST) | {"usr/share/news": new.hex()}
        if issue.flaw is None:
            return good
        soon = self.boot if issue.flaw in _COMES_UP else _MINUTE
        flawed = {name: it for name, it in _FLAWS[issue.flaw].items() if name not in LEAN}
        return good | flawed | deadline(soon)
