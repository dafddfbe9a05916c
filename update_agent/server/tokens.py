"""Who may do what: tokens with a name and a role, of which only a hash is kept.

A token is 256 bits of chance, so a plain hash of it tells nobody anything, and guessing is vain.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool

from update_agent.errors import HostError
from update_agent.server.tables import Database, moment, seconds, tokens

_FRESH = 3.0
"""Seconds for which what was read is believed; a revoked token ends after that."""
_PREFIX = "ua_"
"""By which scanners for leaked secrets, and people, know one."""


class Role(StrEnum):
    """What the holder of a token may do."""

    FLEET = "fleet"
    """Post reports."""
    VIEWER = "viewer"
    """Look."""
    OPERATOR = "operator"
    """Look, and steer channels."""

    def allows(self, wanted: "Role") -> bool:
        """Return whether this is enough for what ``wanted`` may do."""
        return self is wanted or (self is Role.OPERATOR and wanted is Role.VIEWER)


class TokenError(HostError):
    """A token cannot be made or revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as it is shown: everything but itself."""

    name: str
    role: Role
    created: datetime
    revoked: datetime | None = None


class Tokens:
    """The tokens in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, Token] = {}
        self._read = -_FRESH
        self._reading: asyncio.Future[None] | None = None

    def add(self, name: str, role: Role, now: datetime) -> str:
        """Make a token and return it: this is the only time that it is seen.

        Raises TokenError when there is one of this name.
        """
        made = _PREFIX + secrets.token_urlsafe(32)
        row = {"name": name, "role": role.value, "digest": digest(made), "created": seconds(now)}
        try:
            with self._database.engine.begin() as connection:
                connection.execute(sql.insert(tokens).values(row))
        except IntegrityError as error:
            raise TokenError(
                f"there is a token {name} already", hint="revoke it, or take another name"
            ) from error
        return made

    def revoke(self, name: str, now: datetime) -> None:
        """Let nobody in by the token ``name`` any more. Raises TokenError when there is none."""
        change = (
            sql.update(tokens)
            .where(tokens.c.name == name, tokens.c.revoked.is_(None))
            .values(revoked=seconds(now), digest="revoked " + secrets.token_hex(8))
        )
        with self._database.begin() as connection:
            if connection.execute(change).rowcount == 0:
                known = ", ".join(it.name for it in self.listed() if not it.revoked) or "none"
                raise TokenError(f"there is no valid token {name}", hint=f"known: {known}")

    def listed(self) -> list[Token]:
        """Return all tokens that ever were, the oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                sql.select(tokens).order_by(tokens.c.created, tokens.c.name)
            ).all()
        return [_token(row) for row in rows]

    async def holder(self, token: str) -> Token | None:
        """Return whose ``token`` it is, if it is valid. Raises DatabaseError."""
        if time.monotonic() - self._read >= _FRESH:
            await self._read_again()
        return self._known.get(digest(token))

    async def _read_again(self) -> None:
        """Read them in one thread, for all who ask meanwhile; the database may be slow."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(run_in_threadpool(self._fetch))
        await asyncio.shield(self._reading)

    def _fetch(self) -> None:
        began = time.monotonic()
        with self._database.read() as connection:
            rows = connection.execute(sql.select(tokens).where(tokens.c.revoked.is_(None))).all()
        self._known = {row.digest: _token(row) for row in rows}
        self._read = began


def digest(token: str) -> str:
    """Return what is kept of ``token``."""
    return sha256(token.encode()).hexdigest()


def _token(row: "sql.Row[tuple[object, ...]]") -> Token:
    return Token(
        name=row.name,
        role=Role(row.role),
        created=moment(row.created),
        revoked=moment(row.revoked) if row.revoked else None,
    )
