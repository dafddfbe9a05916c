"""How this host stands, for Prometheus: a file for the textfile collector of its node exporter.

Written anew when something changed that lasts; how far an installation is, is not in it. That the
file cannot be written is said once, and stops nothing.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from update_agent import __version__
from update_agent.agent.daemon import Daemon
from update_agent.core.lifecycle import State
from update_agent.host import files

logger = logging.getLogger(__name__)

_HELP = {
    "info": "What this host runs, and follows",
    "state": "Which state the updates of this host are in",
    "state_since_seconds": "Since when, in seconds since 1970",
    "waits": "Why nothing happens; none, if something does",
    "waits_since_seconds": "Since when, in seconds since 1970",
    "checked_seconds": "When the repository last answered well, in seconds since 1970",
    "failures": "Checks and installations in a row that did not work out",
    "avoided_releases": "Releases that failed here and are not tried again",
    "attempt_ended_seconds": "When the last attempt ended, in seconds since 1970, and how",
}


class Textfile:
    """Keeps a file up to date with a daemon. Used from its event loop alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wanted = ""
        self._news = asyncio.Event()
        self._stopping = False
        self._failing = False

    def tell(self, daemon: Daemon) -> None:
        """Take note of how ``daemon`` stands. Never fails, never waits."""
        found = described(daemon)
        if found != self._wanted:
            self._wanted = found
            self._news.set()

    async def run(self) -> None:
        """Write what is new, until stopped."""
        while not self._stopping or self._news.is_set():
            await self._news.wait()
            self._news.clear()
            await self._write()

    def stop(self) -> None:
        """Let ``run`` end, once what is new is written."""
        self._stopping = True
        self._news.set()

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(files.replace, self._path, self._wanted.encode())
        except OSError as error:
            if not self._failing:
                logger.warning("cannot write %s: %s", self._path, error.strerror)
            self._failing = True
        else:
            self._failing = False


def described(daemon: Daemon) -> str:
    """Return how ``daemon`` and its host stand, in the format that Prometheus reads."""
    return "".join(
        f"# HELP update_agent_{name} {_HELP[name]}\n# TYPE update_agent_{name} gauge\n"
        + "".join(f"update_agent_{name}{_labels(labels)} {value}\n" for labels, value in samples)
        for name, samples in _gauges(daemon)
    )


_Samples = list[tuple[Mapping[str, str], int]]


def _gauges(daemon: Daemon) -> Iterator[tuple[str, _Samples]]:
    found = daemon.record
    booted = next((it.name for it in daemon.slots or () if it.booted), "")
    about = {
        "product": daemon.host.product, "version": str(daemon.host.version), "slot": booted,
        "channel": daemon.settings.update.channel, "agent": __version__,
    }  # fmt: skip
    yield "info", [(about, 1)]
    yield "state", [({"state": it}, int(it is found.state)) for it in State]
    yield "state_since_seconds", [({}, _seconds(found.since))]
    if daemon.wait:
        yield "waits", [({"reason": daemon.wait.reason}, 1)]
        yield "waits_since_seconds", [({}, _seconds(daemon.wait_since or found.since))]
    if found.checked:
        yield "checked_seconds", [({}, _seconds(found.checked))]
    yield "failures", [({}, found.failures)]
    yield "avoided_releases", [({}, len(found.failed))]
    if found.history:
        past = found.history[-1]
        ended = {"outcome": past.outcome, "version": str(past.attempt.version)}
        yield "attempt_ended_seconds", [(ended, _seconds(past.ended))]


def _seconds(time: datetime) -> int:
    return int(time.timestamp())


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_quoted(value)}"' for name, value in labels.items()) + "}"


def _quoted(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
