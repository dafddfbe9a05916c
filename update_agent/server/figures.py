"""Questions to the database: how hosts stand, by channel, version, reason; what happened to one.

Whatever is shown of many hosts is counted by the database; lists come in pages. Times are seconds
since 1970 in UTC.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import sqlalchemy as sql
from msgspec import Meta
from sqlalchemy.engine import Connection

from update_agent.core.budget import Budget, Tally
from update_agent.core.reason import Reason
from update_agent.server.tables import attempts, audit, events, hosts, samples

LATELY = 86400
"""Seconds; a host that was not heard of for longer is counted no more, unless it failed.

Where nobody at all is heard, before the last one was: a fleet does not shrink by a cut cable.
"""
SIGN_OF_LIFE = 20 * 60
"""Seconds in which most hosts say that they live: two of their signs."""
HEARD_AGAIN = 45 * 60
"""Seconds after which those that live are heard, once they can be: the longest pause between their
tries, and a half."""
_AWAY = ("rebooting", "trial")
"""States between an old release and a new one that is confirmed.

Not those that wait, armed, for a person who reboots them: one that is quiet was switched off more
often than it was lost, and would halt a good rollout each night.
"""
_CONFIRMED = "confirmed"
_FAILED = ("fell-back", "refused")
_KEPT = (
    Reason.PAUSED_HERE, Reason.BY_HAND, Reason.NO_WAVE, Reason.DOWNGRADE, Reason.TOO_OLD,
    Reason.SLOTS,
)  # fmt: skip
"""Why hosts do not try what is offered until somebody does something about it."""
_UNABLE = (*_KEPT, Reason.FAILED_HERE, Reason.BAD_RELEASE)
"""The same, and those on which, or beside which, it failed."""
_IN_LINE = (Reason.WAVE, Reason.PAUSED)
"""Why hosts wait that heard of the rollout, and are not offered it yet."""
_CACHED = 120
"""Seconds for which caches may give an older timestamp to hosts that ask."""
_AT_REST = ("idle", "waiting", "failed")

SAMPLED = 300
"""Seconds between two samples of which versions run."""

Limit = Annotated[int, Meta(ge=1, le=500)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host as it reported last."""

    host: str
    name: str
    product: str
    architecture: str
    version: str
    agent: str
    channel: str
    group: str | None
    slot: str | None
    place: int | None
    state: str
    since: int
    reason: str | None
    sentence: str | None
    waits_since: int | None
    until: int | None
    attempt: str | None
    target: str | None
    step: str | None
    done: int | None
    size: int | None
    rate: int | None
    time: int
    seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which hosts to list, and where to begin."""

    channel: str | None = None
    version: str | None = None
    state: str | None = None
    reason: str | None = None
    group: str | None = None
    heard: Literal["yes", "no"] | None = None
    """Lately, as all that is counted; or not for a day."""
    search: Annotated[str, Meta(max_length=100)] = ""
    """A part of the name, or the beginning of the id."""
    after: Annotated[str, Meta(max_length=400)] = ""
    """``next`` of the page before."""
    limit: Limit = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some hosts, by name; ``next`` leads to the page after it."""

    hosts: tuple[Host, ...]
    total: int
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many hosts have one version."""

    version: str
    hosts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many hosts are in one state for one reason; one of their sentences stands for all."""

    state: str
    reason: str | None
    wave: int | None
    """Of those that wait for one: which, from 1."""
    hosts: int
    sentence: str | None
    until: int | None
    """When the first of them goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """On how many hosts attempts ended in one way for one cause."""

    version: str
    outcome: str
    why: str
    hosts: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change of a host."""

    time: int
    version: str
    slot: str | None
    state: str
    reason: str | None
    sentence: str | None
    attempt: str | None
    target: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt that ended. Sizes in bytes."""

    attempt: str
    running: str
    version: str
    began: int
    ended: int
    outcome: str
    why: str
    log: str
    fetched: int
    saved: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """What somebody did to a channel."""

    time: int
    author: str
    channel: str
    action: str
    reason: str
    result: str


def page(connection: Connection, wanted: Wanted, now: int) -> Page:
    """Return some hosts."""
    conditions = _conditions(wanted)
    if wanted.heard:
        lately = _all_lately(connection, wanted.channel, now)
        conditions.append(lately if wanted.heard == "yes" else sql.not_(lately))
    total = connection.scalar(sql.select(sql.func.count()).select_from(hosts).where(*conditions))
    if wanted.after:
        name, _, host = wanted.after.rpartition(" ")
        conditions.append(sql.tuple_(hosts.c.name, hosts.c.host) > sql.tuple_(name, host))
    rows = connection.execute(
        sql.select(hosts)
        .where(*conditions)
        .order_by(hosts.c.name, hosts.c.host)
        .limit(wanted.limit + 1)
    ).all()
    found = tuple(_host(row) for row in rows[: wanted.limit])
    more = len(rows) > wanted.limit
    return Page(
        hosts=found, total=total or 0, next=f"{found[-1].name} {found[-1].host}" if more else None
    )


def host(connection: Connection, name: str) -> Host | None:
    """Return one host, by its id."""
    row = connection.execute(sql.select(hosts).where(hosts.c.host == name)).first()
    return _host(row) if row else None


def timeline(connection: Connection, name: str, limit: int = 200) -> list[Event]:
    """Return what happened to a host, the newest first."""
    columns = [events.c[it] for it in Event.__dataclass_fields__]
    rows = connection.execute(
        sql.select(*columns).where(events.c.host == name).order_by(events.c.id.desc()).limit(limit)
    )
    return [Event(**row._mapping) for row in rows]  # noqa: SLF001  SQLAlchemy's public name


def attempts_of(connection: Connection, name: str, limit: int = 50) -> list[Attempt]:
    """Return a host's attempts that ended, the newest first."""
    columns = [attempts.c[it] for it in Attempt.__dataclass_fields__]
    rows = connection.execute(
        sql.select(*columns)
        .where(attempts.c.host == name)
        .order_by(attempts.c.ended.desc())
        .limit(limit)
    )
    return [Attempt(**row._mapping) for row in rows]  # noqa: SLF001


def versions(connection: Connection, channel: str, now: int) -> list[Share]:
    """Return how many hosts of a channel that are heard run what, the most first."""
    rows = connection.execute(
        sql.select(hosts.c.version, sql.func.count().label("count"))
        .where(_lately(connection, channel, now))
        .group_by(hosts.c.version)
        .order_by(sql.desc("count"), hosts.c.version)
    )
    return [Share(version=row.version, hosts=row.count) for row in _typed(rows)]


def waiting(
    connection: Connection, channel: str, now: int, waves: Sequence[int] = ()
) -> list[Waiting]:
    """Return how many hosts of a channel are in which state, and why, the most first.

    Of those that are heard.

    ``waves`` are the shares up to which the waves of its rollout go.
    """
    lately = _lately(connection, channel, now)
    rows = connection.execute(
        sql.select(hosts.c.state, hosts.c.reason, sql.func.count().label("count"))
        .where(lately)
        .group_by(hosts.c.state, hosts.c.reason)
    )
    found = [
        it
        for row in _typed(rows)
        for it in _by_wave(connection, lately, row.state, row.reason, waves)
    ]
    return sorted(found, key=lambda it: (-it.hosts, it.state, it.wave or 0))


def _by_wave(
    connection: Connection,
    lately: Any,  # noqa: ANN401
    state: str,
    reason: str | None,
    waves: Sequence[int],
) -> Iterator[Waiting]:
    """Yield the hosts in one state for one reason, by wave where they wait for one."""
    group = sql.and_(lately, hosts.c.state == state, hosts.c.reason == reason)
    parts: list[tuple[int | None, Any]] = [(None, group)]
    if reason == Reason.WAVE and waves:
        ends = zip((0, *waves), waves, strict=False)
        parts = [
            (number, sql.and_(group, hosts.c.place >= first, hosts.c.place < share))
            for number, (first, share) in enumerate(ends, start=1)
        ]
        others = sql.or_(hosts.c.place.is_(None), hosts.c.place >= waves[-1])
        parts.append((None, sql.and_(group, others)))
    for wave, part in parts:
        count = connection.scalar(sql.select(sql.func.count()).select_from(hosts).where(part)) or 0
        if count:
            sentence, until = _said(connection, part, in_line=wave is not None)
            yield Waiting(
                state=state, reason=reason, wave=wave, hosts=count, sentence=sentence, until=until
            )


def _said(connection: Connection, group: Any, *, in_line: bool) -> tuple[str | None, int | None]:  # noqa: ANN401
    """Return what one host of a group says, and when the first goes on, if they know.

    Of a group that is ``in_line``, the host with the lowest place goes first.
    """
    columns = (hosts.c.sentence, hosts.c.until)
    one = connection.execute(
        sql.select(*columns).where(group).order_by(hosts.c.place).limit(1)
    ).first()
    if one is None or one.until is None or in_line:
        return (one.sentence, one.until) if one else (None, None)
    return one.sentence, connection.scalar(sql.select(sql.func.min(hosts.c.until)).where(group))


def failures(connection: Connection, channel: str, since: int, limit: int = 50) -> list[Failure]:
    """Return on how many hosts of a channel what failed since then, by cause, the most first."""
    rows = connection.execute(
        sql.select(
            attempts.c.version, attempts.c.outcome, attempts.c.why,
            sql.func.count(attempts.c.host.distinct()).label("count"),
            sql.func.max(attempts.c.seen).label("last"),
        )
        .where(
            attempts.c.channel == channel, attempts.c.outcome.in_(_FAILED),
            attempts.c.seen >= since,
        )
        .group_by(attempts.c.version, attempts.c.outcome, attempts.c.why)
        .order_by(sql.desc("count"), sql.desc("last"))
        .limit(limit)
    )  # fmt: skip
    return [
        Failure(
            version=row.version, outcome=row.outcome, why=row.why, hosts=row.count, last=row.last
        )
        for row in _typed(rows)
    ]


def sample(connection: Connection, insert: Any, now: int) -> bool:  # noqa: ANN401
    """Remember how many hosts run what, and return whether nobody had done so yet.

    ``insert`` is of the database's dialect.
    """
    time = now - now % SAMPLED
    if connection.scalar(sql.select(samples.c.time).where(samples.c.time == time).limit(1)):
        return False
    found = [
        {"channel": channel, "version": it.version, "time": time, "hosts": it.hosts}
        for channel in by_channel(connection)
        for it in versions(connection, channel, now)
    ]
    if found:
        connection.execute(insert.on_conflict_do_nothing(), found)
    return True


def listened(connection: Connection) -> int | None:
    """Return when a server last listened to hosts, to some minutes; None: never."""
    found: int | None = connection.scalar(sql.select(sql.func.max(samples.c.time)))
    return found


def history(connection: Connection, channel: str, since: int) -> list[tuple[int, str, int]]:
    """Return (time, version, hosts) of a channel from then on, the oldest first."""
    rows = connection.execute(
        sql.select(samples.c.time, samples.c.version, samples.c.hosts)
        .where(samples.c.channel == channel, samples.c.time >= since)
        .order_by(samples.c.time)
    )
    return [(row.time, row.version, row.hosts) for row in _typed(rows)]


def tally(
    connection: Connection, channel: str, version: str, budget: Budget, *, since: int, now: int
) -> Tally:
    """Return how the hosts of a channel stand with ``version``, counted from ``since`` on.

    A host that went away before then, and was not lost yet, is one that nobody knew of. One on
    which it failed, and that was lost when it tried again, is counted once.
    """
    lately = _lately(connection, channel, now)
    runs = sql.and_(hosts.c.version == version, hosts.c.state != "trial")
    stands = connection.execute(
        sql.select(sql.func.count().label("hosts"), _count(runs).label("running")).where(lately)
    ).one()
    tried = sql.and_(
        attempts.c.channel == channel, attempts.c.version == version, attempts.c.seen >= since
    )
    failed = sql.select(attempts.c.host).where(tried, attempts.c.outcome.in_(_FAILED))
    quiet = hosts.c.seen <= now - budget.silence
    away = connection.execute(
        sql.select(_count(quiet).label("silent"), _count(sql.not_(quiet)).label("stuck")).where(
            hosts.c.channel == channel, hosts.c.state.in_(_AWAY), hosts.c.target == version,
            hosts.c.changed > since - budget.silence, hosts.c.changed <= now - budget.silence,
            hosts.c.host.not_in(failed),
        )
    ).one()  # fmt: skip
    unable = connection.scalar(
        sql.select(sql.func.count())
        .select_from(hosts)
        .where(lately, hosts.c.state.in_(_AT_REST), hosts.c.reason.in_(_UNABLE), sql.not_(runs))
    )
    outcomes = _outcomes(connection, tried, failed)
    return Tally(
        hosts=stands.hosts, running=stands.running or 0, silent=away.silent or 0,
        stuck=away.stuck or 0, unable=unable or 0, confirmed=outcomes[_CONFIRMED],
        fell_back=outcomes.get("fell-back", 0), refused=outcomes.get("refused", 0),
    )  # fmt: skip


def _outcomes(connection: Connection, tried: Any, failed: Any) -> dict[str, int]:  # noqa: ANN401
    """Return how many hosts ``tried`` with which outcome, each counted by its newest.

    Whoever tries again and again on one host learns of that host alone. Only of hosts on which it
    ``failed``, which are few, attempts are put in order.
    """
    order = (attempts.c.seen.desc(), attempts.c.ended.desc(), attempts.c.attempt)
    number = sql.func.row_number().over(partition_by=attempts.c.host, order_by=order)
    ended = (
        sql.select(attempts.c.outcome, number.label("number"))
        .where(tried, attempts.c.outcome.in_((_CONFIRMED, *_FAILED)), attempts.c.host.in_(failed))
        .subquery()
    )
    newest = connection.execute(
        sql.select(ended.c.outcome, sql.func.count().label("count"))
        .where(ended.c.number == 1)
        .group_by(ended.c.outcome)
    )
    found = {row.outcome: row.count for row in _typed(newest)}
    others = connection.scalar(
        sql.select(sql.func.count())
        .select_from(attempts)
        .where(tried, attempts.c.outcome == _CONFIRMED, attempts.c.host.not_in(failed))
    )
    return found | {_CONFIRMED: found.get(_CONFIRMED, 0) + (others or 0)}


def placed(connection: Connection, channel: str, share: int, promoted: int, now: int) -> int:
    """Return how many hosts of a channel may have a place below ``share``, if nobody keeps them.

    A host tells its place in the rollout that it heard of last. Only one that began to wait for its
    turn after this one was ``promoted``, by its clock and by the server's, surely has another.
    """
    asked = promoted + _CACHED
    outside = sql.and_(
        hosts.c.place >= share, hosts.c.reason.in_(_IN_LINE),
        hosts.c.since > asked, hosts.c.changed > asked,
    )  # fmt: skip
    found = connection.scalar(
        sql.select(_count(sql.not_(sql.func.coalesce(outside, sql.false())))).where(
            _lately(connection, channel, now),
            sql.or_(hosts.c.reason.is_(None), hosts.c.reason.not_in(_KEPT)),
        )
    )
    return found or 0


def hears(connection: Connection, channel: str, since: int, now: int) -> bool:
    """Return whether at least half of a channel's hosts were heard ``since`` then.

    If not shortly, it is hardly the hosts: the network, a proxy or this server's database failed.
    Hosts that reboot are not asked, for these a bad release may have taken.
    """
    stays = sql.and_(_lately(connection, channel, now), hosts.c.state.not_in(_AWAY))
    heard = connection.execute(
        sql.select(
            sql.func.count().label("hosts"), _count(hosts.c.seen > since).label("heard")
        ).where(stays)
    ).one()
    return bool(2 * (heard.heard or 0) >= heard.hosts)


def _lately(connection: Connection, channel: str, now: int) -> Any:  # noqa: ANN401  a condition
    """Select the hosts of a channel that are heard: within a day, or one of the last that was.

    Only where nobody was heard shortly, all are asked for the last.
    """
    of_channel, last = hosts.c.channel == channel, now
    heard = sql.select(hosts.c.seen).where(of_channel, hosts.c.seen > now - SIGN_OF_LIFE).limit(1)
    if connection.scalar(heard) is None:
        newest = connection.scalar(sql.select(sql.func.max(hosts.c.seen)).where(of_channel))
        last = newest or now
    return sql.and_(of_channel, hosts.c.seen >= last - LATELY)


def _all_lately(connection: Connection, channel: str | None, now: int) -> Any:  # noqa: ANN401
    """Select the hosts that are heard, of one channel or of each."""
    names = [channel] if channel else by_channel(connection)
    return sql.or_(sql.false(), *(_lately(connection, it, now) for it in names))


def by_channel(connection: Connection) -> dict[str, int]:
    """Return how many hosts follow each channel."""
    rows = connection.execute(
        sql.select(hosts.c.channel, sql.func.count().label("count")).group_by(hosts.c.channel)
    )
    return {row.channel: row.count for row in _typed(rows)}


def by_state(connection: Connection, channel: str, now: int) -> dict[str, int]:
    """Return how many hosts of a channel that are heard are in each state."""
    rows = connection.execute(
        sql.select(hosts.c.state, sql.func.count().label("count"))
        .where(_lately(connection, channel, now))
        .group_by(hosts.c.state)
    )
    return {row.state: row.count for row in _typed(rows)}


def deeds(connection: Connection, channel: str | None = None, limit: int = 100) -> list[Deed]:
    """Return what was done to channels, the newest first."""
    question = sql.select(*(audit.c[it] for it in Deed.__dataclass_fields__))
    if channel:
        question = question.where(audit.c.channel == channel)
    rows = connection.execute(question.order_by(audit.c.id.desc()).limit(limit))
    return [Deed(**row._mapping) for row in rows]  # noqa: SLF001


def _conditions(wanted: Wanted) -> list[Any]:
    named = ("channel", "version", "state", "reason", "group")
    found: list[Any] = [
        hosts.c[name] == value for name in named if (value := getattr(wanted, name))
    ]
    if wanted.search:
        found.append(
            sql.or_(
                hosts.c.name.contains(wanted.search, autoescape=True),
                hosts.c.host.startswith(wanted.search, autoescape=True),
            )
        )
    return found


def _count(condition: Any) -> Any:  # noqa: ANN401  expressions of SQL
    return sql.func.sum(sql.case((condition, 1), else_=0))


def _host(row: Any) -> Host:  # noqa: ANN401
    known = row._mapping  # noqa: SLF001
    return Host(**{name: known[name] for name in Host.__dataclass_fields__})


def _typed(rows: Any) -> Sequence[Any]:  # noqa: ANN401  rows whose columns we named
    found: Sequence[Any] = rows.all()
    return found
