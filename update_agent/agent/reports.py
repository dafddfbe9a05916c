"""Telling the update server how this host stands: after every change, and now and then anyway.

Nothing else waits for this. A change is first kept on the disk, then posted with what waits there,
the oldest first; a server that does not answer is asked again later and later, and each host at
another time. What a server cannot understand is dropped, with a line in the log: sent again, it
would keep all that follows from being heard.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from update_agent import __version__
from update_agent.agent.daemon import Daemon
from update_agent.agent.ports import Progress
from update_agent.core import document, record
from update_agent.core.document import line
from update_agent.core.record import Past, Record
from update_agent.core.report import Batch, Ended, Receipt, Report, Waits, Works, host_id
from update_agent.core.settings import Settings, Strategy
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host.http import Limits, Network, StatusError, Way, post

logger = logging.getLogger(__name__)

_SOME = 20
"""Reports in one post; each has a few kilobytes at most."""
_ANSWER = 64 * 1024
"""Bytes of a receipt."""
_DEADLINE = 60.0
"""Seconds for a post."""
_LONGEST = timedelta(minutes=30)
"""Between two tries while the server does not answer."""
_NONSENSE = (400, 413, 422)
"""Answers by which a server says that it never takes these bytes. Others are not its word on them:
a captive portal, a proxy, a wrong address, a token that is put right tomorrow."""
_LATER = "0" * 32
"""Stands for the queue until the outbox gives a number."""


class Outbox(Protocol):
    """Where reports wait."""

    def put(self, report: Report) -> Report:
        """Keep ``report``, with a number; durable on return."""
        ...

    def waiting(self, limit: int) -> list[Report]:
        """Return the oldest reports."""
        ...

    def drop(self, upto: int) -> None:
        """Forget the reports up to this number."""
        ...


Post = Callable[[Batch], Receipt]
"""Posts a batch to the server. Raises HostError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """All that a reporter touches."""

    outbox: Outbox
    post: Post
    name: str
    """The host's, for people."""
    interval: timedelta
    now: Callable[[], datetime]
    chance: Callable[[], float]
    """From 0 to 1."""
    excerpt: Callable[[Past], str] = lambda _: ""
    """What the journal says about an attempt. Raises HostError."""
    backoff: Callable[[int], timedelta] = lambda failures: record.backoff(failures - 1, _LONGEST)
    """How long to wait after so many failures in a row."""


class Reporter:
    """Tells how a daemon stands. Used from its event loop alone."""

    def __init__(self, world: Reporting) -> None:
        self._world = world
        self._begun = world.now()
        self._told: Report | None = None
        """The newest, as the daemon told it."""
        self._sent: Report | None = None
        """The last change, with its number."""
        self._changes: list[tuple[Report, Past | None]] = []
        """With the attempt that the change is about, if it ended."""
        self._explained: str | None = None
        """The attempt that the journal was asked about."""
        self._news = asyncio.Event()
        self._failures = 0
        self._stopping = False

    def tell(self, daemon: Daemon) -> None:
        """Take note of how ``daemon`` stands. Never fails, never waits."""
        found = described(daemon, self._world.name, self._world.now())
        if self._told is None or _lasting(found) != _lasting(self._told):
            self._changes.append((found, self._ended_just_now(daemon.record)))
            self._news.set()
        self._told = found

    async def run(self) -> None:
        """Keep and post, until stopped."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopping:
            if await self._keep() and not self._failures:
                due = loop.time()
            if loop.time() >= due and not self._stopping:
                await self._try()
                due = loop.time() + self._pause().total_seconds()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._news.wait()
        await self._keep()

    def stop(self) -> None:
        """Let ``run`` end, once all that changed is on the disk."""
        self._stopping = True
        self._news.set()

    async def _keep(self) -> bool:
        """Put what changed on the disk; return whether something did."""
        self._news.clear()
        changes, self._changes = self._changes, []
        for change, past in changes:
            try:
                told = await asyncio.to_thread(self._explained_by, change, past)
                self._sent = await asyncio.to_thread(self._world.outbox.put, told)
            except UpdateAgentError as error:
                logger.warning("%s; the next change tells how this host stands", error)
        return bool(changes)

    def _ended_just_now(self, found: Record) -> Past | None:
        """Return the last attempt if it ended since this daemon runs, the first time."""
        past = found.history[-1] if found.history else None
        if past is None or past.ended < self._begun or past.attempt.id == self._explained:
            return None
        self._explained = past.attempt.id
        return past

    def _explained_by(self, change: Report, past: Past | None) -> Report:
        """Return ``change`` with what the journal says about the attempt that it tells of."""
        if past is None or change.ended is None:
            return change
        try:
            log = self._world.excerpt(past)
        except UpdateAgentError as error:
            logger.warning("cannot read the journal of the attempt that failed: %s", error)
            return change
        return replace(change, ended=replace(change.ended, log=log))

    async def _try(self) -> None:
        try:
            await self._post_all()
        except UpdateAgentError as error:
            self._failures += 1
            if self._failures == 1:
                logger.warning("cannot report: %s; reports wait here until it works", error)
        else:
            self._failures = 0

    def _pause(self) -> timedelta:
        """Return how long not to post: after failures, a time that grows."""
        failures, world = self._failures, self._world
        interval = world.backoff(failures) if failures else world.interval
        return interval * (2 / 3 + self._world.chance() * 2 / 3)

    async def _post_all(self) -> None:
        """Post what waits; when nothing does, a sign of life. Raises HostError."""
        waiting = await asyncio.to_thread(self._world.outbox.waiting, _SOME)
        if not waiting and self._sent and self._told:
            alive = replace(
                self._told, time=self._world.now(),
                queue=self._sent.queue, sequence=self._sent.sequence,
            )  # fmt: skip
            await self._post([alive])
        while waiting:
            await self._post(waiting)
            await asyncio.to_thread(self._world.outbox.drop, waiting[-1].sequence)
            waiting = await asyncio.to_thread(self._world.outbox.waiting, _SOME)

    async def _post(self, reports: list[Report]) -> None:
        """Post ``reports``; those that the server refuses for good count as posted."""
        try:
            receipt = await asyncio.to_thread(self._world.post, Batch(reports=tuple(reports)))
        except StatusError as error:
            if error.status not in _NONSENSE:
                raise
            if len(reports) == 1:
                logger.error("a report is lost: %s", error)  # noqa: TRY400  no bug of ours
                return
            for each in reports:
                await self._post([each])
            return
        for refused in receipt.refused:
            logger.error("a report is lost: %s", refused.why)


def described(daemon: Daemon, name: str, now: datetime) -> Report:
    """Return how ``daemon`` and its host stand, not yet with a number."""
    found, offer = daemon.record, daemon.offer
    booted = next((it.name for it in daemon.slots or () if it.booted), None)
    locks = daemon.settings.reboot.strategy is Strategy.LOCK
    return Report(
        host=host_id(daemon.host.machine_id), queue=_LATER, sequence=1, time=now, name=line(name),
        product=daemon.host.product, architecture=daemon.host.architecture,
        version=daemon.host.version, agent=__version__, channel=daemon.settings.update.channel,
        group=daemon.settings.cluster.group if locks else None,
        slot=booted, place=offer.place if offer else None,
        state=found.state, since=found.since, wait=_waits(daemon),
        attempt=found.attempt.id if found.attempt else None,
        target=found.attempt.version if found.attempt else None,
        progress=_works(daemon.progress),
        ended=_ended(found.history[-1]) if found.history else None,
    )  # fmt: skip


def _works(progress: Progress | None) -> Works | None:
    if progress is None:
        return None
    return Works(
        step=progress.step, done=progress.done, size=progress.size, rate=int(progress.rate)
    )


def _waits(daemon: Daemon) -> Waits | None:
    wait = daemon.wait
    if wait is None:
        return None
    return Waits(
        reason=wait.reason, sentence=line(wait.sentence), since=daemon.wait_since, until=wait.until
    )


def _ended(past: Past) -> Ended:
    attempt = past.attempt
    return Ended(
        attempt=attempt.id, running=attempt.running, version=attempt.version,
        began=attempt.began, ended=past.ended, outcome=past.outcome, why=past.why,
        fetched=attempt.fetched, saved=attempt.saved,
    )  # fmt: skip


def _lasting(found: Report) -> Report:
    """Return ``found`` without what changes all the time."""
    return replace(found, time=found.since, progress=None)


def sender(settings: Settings) -> Post:
    """Return the way to the server that ``settings`` name."""
    url = f"{(settings.reports.url or '').rstrip('/')}/v1/reports"
    network, token_file = settings.network, Path(settings.reports.token_file)
    certificate = _certificate(settings)

    def send(batch: Batch) -> Receipt:
        limits = Limits(deadline=_DEADLINE)
        way = Way(proxy=network.proxy, ca_file=network.ca, certificate=certificate)
        headers = {} if certificate else {"Authorization": f"Bearer {_token(token_file)}"}
        data = document.encode(batch)
        answer = post(Network(limits, way), url, data, headers, max_size=_ANSWER)
        return document.decode(answer, Receipt, f"the answer of {url}")

    return send


def _certificate(settings: Settings) -> tuple[str, str] | None:
    """Return the files by which the server knows this host, if that is how. Raises HostError."""
    match settings.reports.certificate, settings.reports.key:
        case (None, None):
            return None
        case (str(certificate), str(key)):
            return certificate, key
        case _:
            raise HostError(
                "reports.certificate and reports.key belong together", hint="set both, or neither"
            )


def _token(path: Path) -> str:
    """Return the token in ``path``, read anew each time: it may be changed. Raises HostError."""
    hint = "'update-server token add NAME --role fleet' makes one; see reports.token_file"
    try:
        found = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise HostError(f"cannot read the report token {path}: {why}", hint=hint) from error
    if not found.isascii() or not found.isprintable() or not found:
        raise HostError(f"{path} holds no token", hint=hint)
    return found
