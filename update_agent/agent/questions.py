"""Questions that may take long, each in a thread of its own, for which nobody waits at the end.

Only what changes nothing when its answer is never heard is asked like this: a repository, or etcd,
where this host's disk knows what was begun.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Questions:
    """What is being asked. Used from one event loop alone."""

    def __init__(self) -> None:
        self._open: set[asyncio.Future[Any]] = set()

    def __len__(self) -> int:
        return len(self._open)

    async def ask(self, question: Callable[P, T], *words: P.args, **more: P.kwargs) -> T:
        """Return what ``question`` returns, raise what it raises; cancelled by ``give_up``."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def answered(settle: Callable[[], None]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lambda: None if answer.done() else settle())

        def work() -> None:
            try:
                found = question(*words, **more)
            except BaseException as error:  # noqa: BLE001  is raised where it was asked
                failed = error
                answered(lambda: answer.set_exception(failed))
            else:
                answered(lambda: answer.set_result(found))

        self._open.add(answer)
        threading.Thread(target=work, name="question", daemon=True).start()
        try:
            return await answer
        finally:
            self._open.discard(answer)

    def give_up(self) -> None:
        """Cancel whoever waits for an answer."""
        for answer in self._open:
            answer.cancel()
