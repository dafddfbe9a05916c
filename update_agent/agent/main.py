"""``update-agentd``: the daemon in the real world, from the settings to the event loop and its end.

It ends in one of three ways: asked to by SIGTERM; because it cannot begin (settings, identity,
another daemon); or by a defect, or a disk that keeps nothing, and then at once, for systemd to
start it anew from what is on the disk. Threads that wait for a slow server or disk are not waited
for: all that counts is durable.
"""

import asyncio
import logging
import os
import platform
import random
import signal
import sys
import threading
import uuid
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from update_agent import cli
from update_agent.agent.bus import Service, group_id
from update_agent.agent.cluster import ClusterReboots, holds
from update_agent.agent.daemon import Daemon, World
from update_agent.agent.ports import Reboots, Slots
from update_agent.agent.reboots import LocalReboots
from update_agent.agent.reports import Reporter, Reporting, sender
from update_agent.agent.repository import Repository
from update_agent.agent.slots import WriterSlots
from update_agent.agent.store import FileStore
from update_agent.agent.textfile import Textfile
from update_agent.core.release import Host
from update_agent.core.settings import Settings, Strategy
from update_agent.core.version import Version
from update_agent.errors import UpdateAgentError
from update_agent.host import config, excerpt, identity, paths
from update_agent.host.outbox import Outbox
from update_agent.host.systemd import Notifier, PriorityFormatter

logger = logging.getLogger(__name__)

PROGRAM = "update-agentd"
_ENDS = (signal.SIGTERM, signal.SIGINT)
_DEFECT = 1
_LAST_WORDS = 2.0
"""Seconds to put on the disk what the update server was not told yet."""
_WATCHDOG = 30.0
"""Seconds between two signs of life where systemd wants none; they cost nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a daemon is made of, before it runs."""

    host: Host
    settings: Settings
    store: FileStore
    slots: Slots
    group: int | None
    folder: Path
    patience: float = 10.0
    """Seconds for the work under way to end, when the daemon is to end."""


_EPILOG = """\
update-agentd.service starts it. It asks the repository for releases, has update-agent-writer put
what is offered into the other slot, asks for the reboot as reboot.strategy says, and tells the
update server. It has the network and no disk, and no capability.

  update-agentctl status            what it does, and why
  journalctl -u update-agentd       each attempt, under its id
  busctl introspect org.updateagent.Agent1 /org/updateagent/Agent1     for programs

SIGTERM ends it; the next one goes on where it was."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(PROGRAM, "Keep this host up to date.", _EPILOG)
    cli.add_settings(made, config.FOLDERS)
    made.add_argument("--state", type=Path, default=paths.FOLDER, metavar="FOLDER",
                         help="what outlives the daemon (default: %(default)s)")  # fmt: skip
    made.set_defaults(run=run)
    return made


def run(options: Namespace) -> int:
    """Run the daemon until it is told to end. Raises HostError when it cannot begin."""
    log_to_stderr()
    settings = config.settings(options.settings or config.FOLDERS)
    parts = Parts(
        host=this_host(),
        settings=settings,
        store=FileStore(options.state),
        slots=WriterSlots(settings, identity.clock, options.state / paths.TRUST),
        group=group_id(),
        folder=options.state,
    )
    with parts.store.locked():
        return to_the_end(serve(parts))


def this_host() -> Host:
    """Return what this host is. Raises HostError when it runs no image of ours."""
    product, version = identity.image()
    return Host(
        product=product,
        architecture=identity.architecture(),
        version=Version(version),
        machine_id=identity.machine_id(),
    )


async def serve(parts: Parts, *, address: str | None = None) -> int:
    """Be the daemon, on the bus at ``address``, and return its exit code."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    loop.set_exception_handler(lambda _, context: _failed(ended, context))
    notifier = Notifier()
    tellers = list(_tellers(parts))
    told: list[Callable[[Daemon], None]] = [lambda it: notifier.status(sentence(it))]
    told += [it.tell for it in tellers]
    daemon = Daemon(parts.host, parts.settings, _world(parts, told, address))
    service = Service(daemon, group=parts.group, address=address)
    told.append(service.tell)
    _name_attempts(daemon)
    with _ended_by_signals(loop, ended):
        on_bus = loop.create_task(service.serve())
        alive = loop.create_task(_stay_alive(notifier))
        telling = [loop.create_task(it.run()) for it in tellers]
        for task in (on_bus, *telling):
            task.add_done_callback(partial(_task_ended, ended))
        try:
            await _first(_begun(daemon, service), ended)
            if not ended.done():
                notifier.ready(sentence(daemon))
            return await ended
        finally:
            notifier.stopping()
            alive.cancel()
            on_bus.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(parts.patience):
                    await daemon.stop()
            for teller in tellers:
                teller.stop()
            if telling:
                await asyncio.wait(telling, timeout=_LAST_WORDS)
            for task in telling:
                task.cancel()
            await asyncio.gather(on_bus, alive, *telling, return_exceptions=True)


def sentence(daemon: Daemon) -> str:
    """Return what the daemon does, in the words of ``update-agentctl status``."""
    record = daemon.record
    target = f" {record.attempt.version}" if record.attempt else ""
    why = f": {daemon.wait.sentence}" if daemon.wait else ""
    return f"{record.state}{target}{why}"


def _tellers(parts: Parts) -> Iterator[Reporter | Textfile]:
    """Yield who tells the update server and Prometheus, if they are to be told."""
    reports = parts.settings.reports
    if reports.url:
        yield Reporter(
            Reporting(
                outbox=Outbox(parts.folder / "reports"), post=sender(parts.settings),
                name=platform.node(), interval=reports.interval, now=identity.clock,
                chance=random.SystemRandom().random, excerpt=excerpt.of,
            )
        )  # fmt: skip
    if reports.textfile:
        yield Textfile(Path(reports.textfile))


def _world(parts: Parts, told: Sequence[Callable[[Daemon], None]], address: str | None) -> World:
    chance = random.SystemRandom()

    def tell(daemon: Daemon) -> None:
        for each in told:
            each(daemon)

    return World(
        releases=Repository(parts.settings, identity.clock, parts.folder / paths.TRUST),
        slots=parts.slots,
        reboots=_reboots(parts, address),
        store=parts.store,
        now=identity.clock,
        chance=chance.random,
        new_id=lambda: uuid.uuid4().hex,
        tell=tell,
        later=lambda seconds, call: asyncio.get_running_loop().call_later(seconds, call),
    )


def _reboots(parts: Parts, address: str | None) -> Reboots:
    settings = parts.settings
    local = LocalReboots(settings, address=address)
    locks = settings.reboot.strategy is Strategy.LOCK
    if not locks and not (settings.cluster.endpoints and holds(parts.folder)):
        return local
    in_turn = ClusterReboots(local, settings.cluster, parts.host, parts.folder)
    if locks:
        return in_turn
    return LocalReboots(settings, address=address, give_back=in_turn.give_back)


# How it ends -------------------------------------------------------------------------------------


def to_the_end(work: Coroutine[Any, Any, int]) -> int:
    """Run ``work``, and end the process when threads of it would not let go."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    code: int = loop.run_until_complete(work)
    if threading.active_count() > 1:
        logging.shutdown()
        os._exit(code)  # interpreters wait for threads that wait for servers
    loop.close()
    return code


def _failed(ended: "asyncio.Future[int]", context: dict[str, Any]) -> None:
    """Note what nobody expected, or nobody can go on after, and end with it."""
    error, code = context.get("exception"), _DEFECT
    if isinstance(error, UpdateAgentError):
        logger.error("%s; ending, to begin anew from what is on the disk", error)
        code = error.exit_code
    else:
        logger.critical("%s", context["message"], exc_info=error)
    if not ended.done():
        ended.set_result(code)


def _task_ended(ended: "asyncio.Future[int]", task: "asyncio.Task[None]") -> None:
    error = None if task.cancelled() else task.exception()
    if error and not ended.done():
        ended.set_exception(error)


async def _begun(daemon: Daemon, service: Service) -> None:
    await daemon.start()
    await service.tried.wait()


async def _first(work: Coroutine[Any, Any, None], ended: "asyncio.Future[int]") -> None:
    """Wait for ``work``, or for the end if that comes before it."""
    task = asyncio.get_running_loop().create_task(work)
    both: set[asyncio.Future[Any]] = {task, ended}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    else:
        task.cancel()


@contextmanager
def _ended_by_signals(
    loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[int]"
) -> Iterator[None]:
    """End with 0 at SIGTERM and SIGINT."""

    def end(number: signal.Signals) -> None:
        logger.info("ending: %s", number.name)
        if not ended.done():
            ended.set_result(0)

    for number in _ENDS:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in _ENDS:
            loop.remove_signal_handler(number)


async def _stay_alive(notifier: Notifier) -> None:
    while True:
        notifier.alive()
        await asyncio.sleep((notifier.watchdog_seconds or 2 * _WATCHDOG) / 2)


# What it says ------------------------------------------------------------------------------------


def log_to_stderr() -> None:
    """Log as the journal likes it: priorities in front, the attempt at the end."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PriorityFormatter("%(message)s%(attempt)s", defaults={"attempt": ""}))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # Of garbled headers it warns with a traceback; what comes of them is told by who asked.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _name_attempts(daemon: Daemon) -> None:
    """Let every line that is logged during an attempt carry its id."""

    def named(record: logging.LogRecord) -> bool:
        attempt = daemon.record.attempt
        record.attempt = f" [{attempt.id}]" if attempt else ""
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(named)
