"""Reports: what a host is, what it does and why it waits, and how its last attempt ended.

A report is whole: whoever reads the newest one of a host knows how it stands. It has a number in
its host's queue, which goes up with every change; a sign of life between two changes repeats the
number of the last. So a report that arrives twice, or late, changes nothing. A host that lost its
disk begins another queue; one that was put back to a snapshot uses numbers again, at later times.

Words of states, reasons and outcomes are taken as they come, so that a server understands hosts
that are newer than itself.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

from msgspec import Meta

from update_agent.core import document
from update_agent.core.document import Count, DocumentError, Format, Id, Name, Size, Text, Time
from update_agent.core.rollout import RING
from update_agent.core.version import Version

MAX_SIZE = 256 * 1024
"""Bytes of a batch."""
MAX_REPORTS = 100
"""Reports in a batch."""

Code = Annotated[str, Meta(pattern=r"\A[a-z][a-z-]{0,39}\Z")]
"""A state, reason or outcome."""
Short = Annotated[str, Meta(max_length=64, pattern=r"\A[^\x00-\x1f\x7f-\x9f]*\Z")]
Log = Annotated[str, Meta(max_length=4000, pattern=r"\A[^\x00-\x09\x0b-\x1f\x7f-\x9f]*\Z")]
"""Lines of a journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Why nothing happens on a host."""

    reason: Code
    sentence: Text
    since: Time | None = None
    until: Time | None = None
    """When it ends by itself, if that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Works:
    """How far an installation is: bytes, and bytes a second."""

    step: Short
    done: Size
    size: Size
    rate: Size = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an attempt ended. Sizes in bytes."""

    attempt: Id
    running: Version
    """What the host ran when it began."""
    version: Version
    began: Time
    ended: Time
    outcome: Code
    why: Text = ""
    fetched: Size = 0
    saved: Size = 0
    log: Log = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One host at one time."""

    host: Id
    """From ``host_id``."""
    queue: Id
    sequence: Count
    time: Time
    """Of the host's clock."""
    name: Text
    """The host's, for people."""
    product: Name
    architecture: Name
    version: Version
    """It runs this."""
    agent: Short = ""
    """Version of the agent."""
    channel: Name
    group: Name | None = None
    """Within which it reboots in turn."""
    slot: Annotated[str, Meta(pattern=r"\A[AB]\Z")] | None = None
    """It runs from this."""
    place: Annotated[int, Meta(ge=0, lt=RING)] | None = None
    """In the rollout of what is offered."""
    state: Code
    since: Time
    wait: Waits | None = None
    attempt: Id | None = None
    """Under way."""
    target: Version | None = None
    """What the attempt leads to."""
    progress: Works | None = None
    ended: Ended | None = None
    """The last attempt that ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a host posts: reports in their order."""

    format: Format = 1
    reports: Annotated[tuple[Report, ...], Meta(min_length=1, max_length=MAX_REPORTS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A report that is not understood, by its place in the batch, from 0."""

    index: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a server answers: so many reports are kept, durably; the others are not sent again."""

    format: Format = 1
    taken: int
    refused: tuple[Refused, ...] = ()


def host_id(machine_id: str) -> str:
    """Return the name by which reports call a host.

    A machine id is not to be shown around, machine-id(5); this can't be turned back into one.
    """
    return sha256(f"update-agent report\0{machine_id}".encode()).hexdigest()[:32]


def read(data: bytes) -> tuple[list[Report], tuple[Refused, ...]]:
    """Return the reports of a batch and those that are refused. Raises DocumentError.

    One bad report does not take the others with it.
    """
    value = document.parse(data, "batch", max_size=MAX_SIZE)
    listed = value.get("reports") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(listed, list):
        raise DocumentError("batch: wanted an object with reports")
    if value.get("format", 1) != 1:
        raise DocumentError(f"batch: format {value['format']!r} is not known, wanted 1")
    if not 0 < len(listed) <= MAX_REPORTS:
        raise DocumentError(f"batch: {len(listed)} reports, wanted 1 to {MAX_REPORTS}")
    taken, refused = [], []
    for index, one in enumerate(listed):
        try:
            taken.append(document.shaped(one, Report, f"report {index}"))
        except DocumentError as error:
            refused.append(Refused(index=index, why=str(error)))
    return taken, tuple(refused)
