"""What the server remembers, as tables: hosts as they stand, what happened, who may do what.

SQLite in a file, or PostgreSQL for several servers side by side. Times are whole seconds since 1970
in UTC. What pages show of 100,000 hosts is counted by these indexes (``figures.py``), and never in
Python.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, overload

import sqlalchemy as sql
from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from update_agent.errors import HostError
from update_agent.host import files

metadata = MetaData()

SCHEMA = 3
"""Goes up when tables change so that an older server cannot use them."""

_BUSY = 10.0
"""Seconds that SQLite waits for another writer."""
_KIND = 0xFF
"""The bits of an error code of SQLite that say of which kind it is."""
_PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
"""Seconds, and milliseconds, that PostgreSQL may be silent; the URL may say otherwise."""

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits on both."""

schema = Table("schema", metadata, Column("version", Integer, primary_key=True))

hosts = Table(
    "hosts",
    metadata,
    Column("host", Text, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("sequence", Number, nullable=False),
    Column("time", Number, nullable=False),
    Column("seen", Number, nullable=False),
    Column("changed", Number, nullable=False),
    Column("name", Text, nullable=False),
    Column("product", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("group", Text),
    Column("slot", Text),
    Column("place", Integer),
    Column("state", Text, nullable=False),
    Column("since", Number, nullable=False),
    Column("reason", Text),
    Column("sentence", Text),
    Column("waits_since", Number),
    Column("until", Number),
    Column("attempt", Text),
    Column("target", Text),
    Column("step", Text),
    Column("done", Number),
    Column("size", Number),
    Column("rate", Number),
    Index("hosts_by_version", "channel", "version", "state", "seen"),
    Index("hosts_by_state", "channel", "state", "reason", "place", "seen"),
    Index("hosts_by_name", "name"),
)
"""The newest report of each host. Of the server's clock: when it was ``seen``, and ``changed``.

How hosts stand, and in which wave they wait, is counted every few seconds, from indexes alone.
"""

events = Table(
    "events",
    metadata,
    Column("id", Number, primary_key=True),
    Column("host", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("sequence", Number, nullable=False),
    Column("time", Number, nullable=False),
    Column("seen", Number, nullable=False),
    Column("version", Text, nullable=False),
    Column("slot", Text),
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("sentence", Text),
    Column("attempt", Text),
    Column("target", Text),
    Index("events_once", "host", "queue", "sequence", unique=True),
    Index("events_by_age", "seen"),
)
"""Every change of a host."""

attempts = Table(
    "attempts",
    metadata,
    Column("host", Text, primary_key=True),
    Column("attempt", Text, primary_key=True),
    Column("channel", Text, nullable=False),
    Column("running", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("began", Number, nullable=False),
    Column("ended", Number, nullable=False),
    Column("seen", Number, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("log", Text, nullable=False),
    Column("fetched", Number, nullable=False),
    Column("saved", Number, nullable=False),
    Index("attempts_by_outcome", "channel", "version", "outcome", "seen", "host"),
    Index("attempts_by_age", "seen"),
)
"""Attempts that ended."""

tokens = Table(
    "tokens",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("created", Number, nullable=False),
    Column("revoked", Number),
)
"""Who may do what. Of a token, its SHA-256."""

audit = Table(
    "audit",
    metadata,
    Column("id", Number, primary_key=True),
    Column("time", Number, nullable=False),
    Column("author", Text, nullable=False),
    Column("channel", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("result", Text, nullable=False),
    Index("audit_by_channel", "channel", "id"),
)
"""What people and the server itself did to channels, and what came of it."""

rollouts = Table(
    "rollouts",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("budget", Text, nullable=False),
    Column("version", Text),
    Column("counted_from", Number, nullable=False),
    Column("promoted", Number, nullable=False, server_default="0"),
    Column("resumed", Number, nullable=False, server_default="0"),
    Column("unheard", Number, nullable=False, server_default="0"),
    Column("deaf", Number, nullable=False, server_default="0"),
)
"""What a channel's rollout may cost (JSON), since when that is counted, when too few were heard."""

_CHANGES = {
    1: (
        "ALTER TABLE rollouts DROP COLUMN halted",
        "ALTER TABLE rollouts ADD COLUMN promoted BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE rollouts ADD COLUMN resumed BIGINT NOT NULL DEFAULT 0",
    ),
    2: (
        "ALTER TABLE rollouts ADD COLUMN unheard BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE rollouts ADD COLUMN deaf BIGINT NOT NULL DEFAULT 0",
        "DROP INDEX hosts_by_state",
        "CREATE INDEX hosts_by_state ON hosts (channel, state, reason, place, seen)",
        "DROP INDEX attempts_by_outcome",
        "CREATE INDEX attempts_by_outcome ON attempts (channel, version, outcome, seen, host)",
    ),
}
"""What makes tables of one kind those of the next."""


samples = Table(
    "samples",
    metadata,
    Column("channel", Text, primary_key=True),
    Column("time", Number, primary_key=True),
    Column("version", Text, primary_key=True),
    Column("hosts", Integer, nullable=False),
)
"""How many hosts of a channel ran what, every few minutes."""


class _Upsert(Protocol):
    """What both dialects' inserts offer."""

    def __call__(self, table: Table) -> Any: ...  # noqa: ANN401


class DatabaseError(HostError):
    """The database cannot be used."""


class Database:
    """A database with our tables in it."""

    def __init__(self, engine: Engine, folder: int | None = None) -> None:
        self.engine = engine
        self._folder = folder
        self.insert: _Upsert = (
            sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert
        )

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection that commits at the end. Raises DatabaseError."""
        with _translated(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection to look with. Raises DatabaseError."""
        with _translated(), self.engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close all connections, and let others replace the file."""
        self.engine.dispose()
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


def opened(url: str) -> Database:
    """Return the database at ``url``, with tables. Raises DatabaseError.

    One in a file is shared until it is closed: ``restore`` replaces no file that somebody uses, and
    nobody opens one that is being replaced.
    """
    with _translated():
        engine = _engine(url)
        database = Database(engine, _shared(engine.url))
    try:
        _prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: Database) -> None:
    """Make the tables, or change those of an older kind."""
    with database.begin() as connection:
        metadata.create_all(connection)
        found = connection.scalar(sql.select(schema.c.version))
        if found is None:
            connection.execute(
                database.insert(schema).values(version=SCHEMA).on_conflict_do_nothing()
            )
        else:
            _want_known(found)
            _bring_up(connection, found)


def _bring_up(connection: Connection, found: int) -> None:
    """Change tables of an older kind; of several servers that begin at once, one does."""
    for version in range(found, SCHEMA):
        step = sql.update(schema).where(schema.c.version == version).values(version=version + 1)
        if connection.execute(step).rowcount:
            for change in _CHANGES[version]:
                connection.exec_driver_sql(change)


def copy(database: Database, to: Path) -> None:
    """Copy a SQLite database as it is at one moment to the file ``to``. Raises DatabaseError."""
    if to.exists():
        raise DatabaseError(f"{to} is there already", hint="name a new file")
    with _translated(), database.engine.connect() as connection:
        connection.exec_driver_sql("VACUUM INTO ?", (str(to),))


def restore(copy: Path, to: Path) -> None:
    """Let the SQLite database ``to`` be what ``copy`` holds. Raises DatabaseError.

    Refused while anybody has ``to`` open; a server that begins meanwhile waits. What it has written
    is folded into it first, and only then replaced: its log, left beside another database, would
    destroy that one. Whenever the power goes, the old database stands or the new one.
    """
    _want_whole(copy)
    try:
        with files.alone(to.parent):
            if to.exists():
                _fold(to)
            _replace(to, copy)
    except BlockingIOError as error:
        raise _in_use(to) from error
    except OSError as error:
        raise DatabaseError(f"cannot restore {to}: {error.strerror}") from error


def _replace(to: Path, copy: Path) -> None:
    for end in ("-wal", "-shm", "-journal"):
        to.with_name(to.name + end).unlink(missing_ok=True)
    files.flush_folder(to.parent)
    with copy.open("rb") as source, files.replaced(to) as target:
        shutil.copyfileobj(source, target)
        owner = to.parent.stat()  # whoever restores it, the server is to use it
        os.fchown(target.fileno(), owner.st_uid, owner.st_gid)


def _in_use(database: Path) -> DatabaseError:
    return DatabaseError(f"{database} is in use", hint="stop the server, and restore again")


def _want_whole(copy: Path) -> None:
    """Raise DatabaseError unless the file, without a log beside it, is a database of ours."""
    alone = f"{copy.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(alone, uri=True)) as found:
            [[said], *_] = found.execute("PRAGMA quick_check").fetchall()
            [[version]] = found.execute("SELECT version FROM schema").fetchall()
    except (sqlite3.Error, ValueError) as error:
        raise DatabaseError(
            f"{copy} is no copy of the database: {error}", hint="update-server backup makes one"
        ) from error
    if said != "ok":
        raise DatabaseError(f"{copy} is damaged: {said}", hint="take an older copy")
    _want_known(version)


def _fold(database: Path) -> None:
    """Fold its log into a database, which nobody else may have open; not into one that is broken.

    SQLite leaves the mode with a log only where no other connection is: also none of a program that
    shares no folder with us, such as its shell.
    """
    try:
        with closing(sqlite3.connect(database, timeout=1)) as found:
            found.execute("PRAGMA journal_mode = DELETE").fetchall()
    except sqlite3.Error as error:
        if error.sqlite_errorcode & _KIND == sqlite3.SQLITE_BUSY:
            raise _in_use(database) from error


def _want_known(version: int) -> None:
    if version > SCHEMA:
        raise DatabaseError(
            f"the database has tables of the kind {version}, wanted {SCHEMA}",
            hint="run the update-server that made them, or a newer one",
        )


def forget(connection: Connection, before: int, limit: int) -> int:
    """Remove at most ``limit`` of each of what is from before that time; return how many.

    Hosts that were not heard since, changes, attempts, samples. A host's newest attempt stays: the
    host, should it come back, tells of it again and again, and it would come as new.
    """
    old_events = sql.select(events.c.id).where(events.c.seen < before).limit(limit)
    newer = attempts.alias()
    passed = sql.exists().where(newer.c.host == attempts.c.host, newer.c.seen > attempts.c.seen)
    key = (attempts.c.host, attempts.c.attempt)
    old_attempts = sql.select(*key).where(attempts.c.seen < before, passed).limit(limit)
    old_hosts = sql.select(hosts.c.host).where(hosts.c.seen < before).limit(limit)
    removals = (
        sql.delete(hosts).where(hosts.c.host.in_(old_hosts)),
        sql.delete(events).where(events.c.id.in_(old_events)),
        sql.delete(attempts).where(sql.tuple_(*key).in_(old_attempts)),
    )
    count = sum(connection.execute(it).rowcount for it in removals)
    old_samples = sql.delete(samples).where(samples.c.time < before)
    return count + connection.execute(old_samples).rowcount


@overload
def seconds(time: datetime) -> int: ...
@overload
def seconds(time: None) -> None: ...
def seconds(time: datetime | None) -> int | None:
    """Return ``time`` as tables hold it."""
    return None if time is None else int(time.timestamp())


def moment(seconds: int) -> datetime:
    """Return a time in a table."""
    return datetime.fromtimestamp(seconds, UTC)


def _engine(url: str) -> Engine:
    found = sql.make_url(url)
    if found.get_backend_name() == "postgresql":
        patience = {name: it for name, it in _PATIENCE.items() if name not in found.query}
        return sql.create_engine(
            found.set(drivername="postgresql+psycopg"), pool_size=8, pool_pre_ping=True,
            connect_args=patience,
        )  # fmt: skip
    if found.get_backend_name() != "sqlite":
        raise DatabaseError(
            f"databases of the kind {found.get_backend_name()} are not known",
            hint="sqlite:///FILE or postgresql://USER@HOST/NAME",
        )
    engine = sql.create_engine(found, pool_size=8, connect_args={"timeout": _BUSY})
    sql.event.listen(engine, "connect", _durable)
    return engine


def _shared(url: sql.URL) -> int | None:
    """Return the folder of a database in a file, shared; None where there is no such folder."""
    folder = Path(url.database or "").parent
    if url.get_backend_name() != "sqlite" or not folder.is_dir():
        return None
    try:
        return files.shared(folder)
    except OSError as error:
        raise DatabaseError(f"cannot use {folder}: {error.strerror}") from error


def _durable(connection: Any, _: object) -> None:  # noqa: ANN401  sqlite3's own
    """Let readers not wait for writers, and let a commit be there after a power cut."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA cache_size = -65536")
    cursor.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise DatabaseError(f"the database failed: {why}", hint="see --database") from error
