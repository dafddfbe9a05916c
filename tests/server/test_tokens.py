"""Who holds a token, while the database is slow or gone."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import Connection

from update_agent.server import tables
from update_agent.server.tables import Database, DatabaseError
from update_agent.server.tokens import Role, Tokens

PATIENCE = 20


class Moody(Database):
    """Answers when it is let, and not when it is broken."""

    def __init__(self, path: Path) -> None:
        super().__init__(tables.opened(f"sqlite:///{path}").engine)
        self.reads = 0
        self.let = threading.Event()
        self.broken = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        self.reads += 1
        assert self.let.wait(PATIENCE)
        if self.broken:
            raise DatabaseError("the database failed: it is gone")
        with super().read() as connection:
            yield connection


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Moody]:
    made = Moody(tmp_path / "x.sqlite")
    yield made
    made.close()


def test_a_database_that_hangs_takes_one_thread_whoever_asks(database: Moody) -> None:
    tokens = Tokens(database)
    ours = tokens.add("ann", Role.OPERATOR, datetime.now(UTC))

    async def story() -> list[str | None]:
        asked = [asyncio.ensure_future(tokens.holder(it)) for it in [ours, "ua_other"] * 500]
        await asyncio.to_thread(lambda: None)  # the loop turns, and threads are free
        assert not any(it.done() for it in asked)
        database.let.set()
        return [it.name if it else None for it in await asyncio.gather(*asked)]

    assert asyncio.run(story()) == ["ann", None] * 500
    assert database.reads == 1


def test_a_database_that_is_gone_fails_all_who_asked_and_the_next_asks_again(
    database: Moody,
) -> None:
    tokens = Tokens(database)
    ours = tokens.add("ann", Role.OPERATOR, datetime.now(UTC))
    database.let.set()

    async def story() -> None:
        database.broken = True
        said = await asyncio.gather(
            *(tokens.holder(ours) for _ in range(9)), return_exceptions=True
        )
        assert [type(it) for it in said] == [DatabaseError] * 9
        database.broken = False
        assert await tokens.holder(ours)

    asyncio.run(story())
    assert database.reads == 2
