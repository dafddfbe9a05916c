"""Reports on their way into the database: many in one commit, and none answered before it.

A commit waits for the disk; so whatever comes in meanwhile is written by the next one, together.
When more waits than can be written soon, callers are told to come back, and hosts do.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import and_, case, or_
from sqlalchemy.engine import Connection

from update_agent.core.report import Report
from update_agent.errors import HostError, UpdateAgentError
from update_agent.server.tables import Database, attempts, events, hosts, seconds

logger = logging.getLogger(__name__)

MAX_WAITING = 20_000
"""Reports that wait for a commit at one time; a few seconds' work."""
_GROUP = 2_000
"""Reports in one commit at most."""


class BusyError(HostError):
    """More reports wait than the database takes; whoever comes again later is heard."""


@dataclass(frozen=True, slots=True)
class _Box:
    """Reports of one caller, and where that caller waits."""

    reports: Sequence[Report]
    done: "asyncio.Future[None]"
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def answer(self, error: UpdateAgentError | None) -> None:
        """Wake the caller, who may have left."""
        if self.done.done():
            return
        if error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class Intake:
    """One thread that writes what all callers bring."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self.commits = 0
        self._database = database
        self._now = now
        self._boxes: queue.SimpleQueue[_Box | None] = queue.SimpleQueue()
        self._waiting = 0
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Reports that came and are not written yet."""
        return self._waiting

    @property
    def alive(self) -> bool:
        """Whether anybody writes."""
        return self._thread.is_alive()

    async def take(self, reports: Sequence[Report]) -> None:
        """Keep ``reports``; durable on return. Raises BusyError, DatabaseError."""
        if not reports:
            return
        if self._waiting + len(reports) > MAX_WAITING:
            raise BusyError(f"{self._waiting} reports wait to be written", hint="come again later")
        box = _Box(reports, asyncio.get_running_loop().create_future())
        self._waiting += len(reports)
        try:
            self._boxes.put(box)
            await box.done
        finally:
            self._waiting -= len(reports)

    def close(self) -> None:
        """End when all that came is written."""
        self._boxes.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (box := self._boxes.get()) is not None:
            group, last = self._gathered(box)
            error = self._written(group)
            for one in group:
                one.loop.call_soon_threadsafe(one.answer, error)
            if last:
                return

    def _gathered(self, first: _Box) -> tuple[list[_Box], bool]:
        """Return everything that is there, up to a commit's worth, and whether it is the end."""
        group, count = [first], len(first.reports)
        while count < _GROUP:
            try:
                box = self._boxes.get_nowait()
            except queue.Empty:
                break
            if box is None:
                return group, True
            group.append(box)
            count += len(box.reports)
        return group, False

    def _written(self, group: Iterable[_Box]) -> UpdateAgentError | None:
        reports = [report for box in group for report in box.reports]
        try:
            with self._database.begin() as connection:
                store(self._database, connection, reports, self._now())
        except UpdateAgentError as error:
            logger.error("cannot keep %d reports: %s", len(reports), error)  # noqa: TRY400  no bug
            return error
        except Exception:
            logger.exception("a defect: cannot keep %d reports", len(reports))
            return HostError("a defect of the server", hint="its log says more")
        self.commits += 1
        return None


def store(
    database: Database, connection: Connection, reports: Iterable[Report], now: datetime
) -> None:
    """Write ``reports``; what is known already, or older than what is known, changes nothing.

    Older is what has a lower number and was not said later: a machine that was put back to a
    snapshot goes on with numbers that it has used before.

    Rows are written in the order of their keys, so that two servers never wait for one another.
    """
    received = int(now.timestamp())
    ordered = sorted(reports, key=lambda it: (it.host, it.queue, it.sequence))
    ended = [_ended(it, received) for it in ordered if it.ended]
    if ended:
        connection.execute(database.insert(attempts).on_conflict_do_nothing(), ended)
    changes = {(it.host, it.queue, it.sequence): _event(it, received) for it in ordered}
    connection.execute(database.insert(events).on_conflict_do_nothing(), list(changes.values()))
    newest: dict[tuple[str, str], Report] = {(it.host, it.queue): it for it in ordered}
    connection.execute(_upsert(database), [_host(it, received) for it in newest.values()])


def _upsert(database: Database) -> Any:  # noqa: ANN401  an insert of the database's dialect
    statement = database.insert(hosts)
    new = statement.excluded
    went_back = and_(new.sequence < hosts.c.sequence, new.time > hosts.c.time)
    changes = or_(new.queue != hosts.c.queue, new.sequence > hosts.c.sequence, went_back)
    return statement.on_conflict_do_update(
        index_elements=[hosts.c.host],
        set_={it.name: new[it.name] for it in hosts.columns if it.name not in ("host", "changed")}
        | {"changed": case((changes, new.changed), else_=hosts.c.changed)},
        where=or_(changes, new.sequence == hosts.c.sequence),
    )


def _host(it: Report, received: int) -> dict[str, object]:
    wait, progress = it.wait, it.progress
    return {
        "host": it.host, "queue": it.queue, "sequence": it.sequence,
        "time": seconds(it.time), "seen": received, "changed": received,
        "name": it.name,
        "product": it.product, "architecture": it.architecture, "version": it.version.text,
        "agent": it.agent, "channel": it.channel, "group": it.group, "slot": it.slot,
        "place": it.place, "state": it.state, "since": seconds(it.since),
        "reason": wait and wait.reason, "sentence": wait and wait.sentence,
        "waits_since": seconds(wait.since) if wait else None,
        "until": seconds(wait.until) if wait else None,
        "attempt": it.attempt, "target": it.target and it.target.text,
        "step": progress and progress.step, "done": progress and progress.done,
        "size": progress and progress.size, "rate": progress and progress.rate,
    }  # fmt: skip


def _event(it: Report, received: int) -> dict[str, object]:
    return {
        "host": it.host, "queue": it.queue, "sequence": it.sequence,
        "time": seconds(it.time), "seen": received, "version": it.version.text,
        "slot": it.slot, "state": it.state, "reason": it.wait and it.wait.reason,
        "sentence": it.wait and it.wait.sentence, "attempt": it.attempt,
        "target": it.target and it.target.text,
    }  # fmt: skip


def _ended(it: Report, received: int) -> dict[str, object]:
    past = it.ended
    if past is None:
        raise ValueError("no attempt ended")
    return {
        "host": it.host, "attempt": past.attempt, "channel": it.channel,
        "running": past.running.text, "version": past.version.text,
        "began": seconds(past.began), "ended": seconds(past.ended), "seen": received,
        "outcome": past.outcome, "why": past.why, "log": past.log,
        "fetched": past.fetched, "saved": past.saved,
    }  # fmt: skip
