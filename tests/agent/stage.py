"""A daemon of fakes on a real bus, in a thread with an event loop of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from tests.agent.fakes import HOST, IMMEDIATE, Fakes, Timer
from tests.bus import GROUP_ID, Bus
from update_agent.agent.bus import Service
from update_agent.agent.daemon import Daemon, World
from update_agent.agent.ports import Reboots
from update_agent.core.lifecycle import State
from update_agent.core.settings import Settings

T = TypeVar("T")
PATIENCE = 20


@dataclass
class Stage:
    """A daemon that others can call, and a door into its loop."""

    fakes: Fakes
    daemon: Daemon
    service: Service
    loop: asyncio.AbstractEventLoop
    errors: list[object]
    _changed: threading.Condition

    def do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something in the daemon's loop."""
        future: Future[T] = asyncio.run_coroutine_threadsafe(work(), self.loop)
        return future.result(PATIENCE)

    def until(self, state: State) -> None:
        """Wait until the daemon is in ``state``, and all that follows by itself was done."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.daemon.record.state is state, PATIENCE)
        self.do(self._settled)

    async def _settled(self) -> None:
        while self.daemon._tasks:
            await asyncio.gather(*self.daemon._tasks)


@contextmanager
def on_stage(
    bus: Bus, fakes: Fakes, settings: Settings = IMMEDIATE, reboots: Reboots | None = None
) -> Iterator[Stage]:
    """Play a daemon on ``bus``, with real ``reboots`` if there are any."""
    ready: Future[tuple[Stage, asyncio.Event]] = Future()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_play(bus, fakes, settings, ready, reboots))
        except BaseException as error:  # noqa: BLE001
            failed.append(error)
            if not ready.done():
                ready.set_exception(error)

    thread = threading.Thread(target=run, name="stage", daemon=True)
    thread.start()
    stage, ended = ready.result(PATIENCE)
    try:
        yield stage
    finally:
        stage.loop.call_soon_threadsafe(ended.set)
        if fakes.gate:
            fakes.gate.set()
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the daemon did not end"
    assert failed == []


async def _play(
    bus: Bus, fakes: Fakes, settings: Settings, ready: "Future[tuple[Stage, asyncio.Event]]",
    reboots: Reboots | None,
) -> None:  # fmt: skip
    loop, ended, changed = asyncio.get_running_loop(), asyncio.Event(), threading.Condition()
    errors: list[object] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    told: list[Callable[[Daemon], None]] = []

    def tell(it: Daemon) -> None:
        for each in told:
            each(it)
        with changed:
            changed.notify_all()

    daemon = Daemon(HOST, settings, world(fakes, tell, reboots))
    service = Service(daemon, group=GROUP_ID, address=bus.address, delays=(0.01,))
    told.append(service.tell)
    serving = loop.create_task(service.serve())
    try:
        await service.on_bus.wait()
        await daemon.start()
        await asyncio.gather(*daemon._tasks)
        fakes.did.clear()
        ready.set_result((Stage(fakes, daemon, service, loop, errors, changed), ended))
        await ended.wait()
        assert errors == []
    finally:
        serving.cancel()
        await daemon.stop()
        await asyncio.gather(serving, return_exceptions=True)


def world(fakes: Fakes, tell: Callable[[Daemon], None], reboots: Reboots | None = None) -> World:
    ids = iter(f"{number:032x}" for number in range(16**31, 16**31 + 99))

    def later(seconds: float, call: Callable[[], None]) -> Timer:
        fakes.timers.append(Timer(seconds, call))
        return fakes.timers[-1]

    return World(
        releases=fakes, slots=fakes, reboots=reboots or fakes, store=fakes,  # type: ignore[arg-type]
        now=lambda: fakes.now, chance=lambda: 0.5, new_id=lambda: next(ids),
        tell=tell, later=later,
    )  # fmt: skip


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def stage(bus: Bus, fakes: Fakes) -> Iterator[Stage]:
    with on_stage(bus, fakes) as played:
        yield played
