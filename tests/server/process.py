"""update-server as a process of its own, and callers of it."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from tests.bus import ROOT
from update_agent.core import document
from update_agent.core.report import Batch, Report
from update_agent.core.version import Version

PATIENCE = 30
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
QUEUE = "b" * 32


@dataclass
class Server:
    """A running server."""

    popen: "subprocess.Popen[str]"
    url: str
    tokens: dict[str, str]
    session: requests.Session = field(default_factory=requests.Session)

    def ask(
        self,
        method: str,
        path: str,
        *,
        by: str | None = None,
        **more: Any,  # noqa: ANN401
    ) -> requests.Response:
        """Ask for ``path``, by a known token or by any other text."""
        headers = dict(more.pop("headers", {}))
        if by is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(by, by)}"
        return self.session.request(
            method, self.url + path, headers=headers, timeout=PATIENCE, **more
        )

    def post(self, *reports: Report) -> Any:  # noqa: ANN401  what JSON holds
        """Post a batch and return the receipt."""
        answer = self.ask(
            "POST", "/v1/reports", by="hosts", data=document.encode(Batch(reports=reports))
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def api(self, path: str) -> Any:  # noqa: ANN401  what JSON holds
        """Return what an operator is told."""
        answer = self.ask("GET", path, by="operators")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def act(self, path: str, **words: object) -> requests.Response:
        """Do something as an operator."""
        return self.ask("POST", path, by="operators", data=json.dumps(words))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(PATIENCE)


_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
"""Starts a program with a listening socket, as systemd does."""


@contextmanager
def serving(
    folder: Path,
    *words: str,
    tokens: dict[str, str] | None = None,
    log: Path | None = None,
    listener: socket.socket | None = None,
) -> Iterator[Server]:
    """Run a server with its repository, online keys and state in ``folder``."""
    passed = [listener.fileno()] if listener else []
    before = ["-c", _AS_SYSTEMD, str(passed[0])] if passed else []
    (folder / "www").mkdir(exist_ok=True)
    keys = ["--keys", str(folder / "online")] if (folder / "online").exists() else []
    with (log or folder / "server.log").open("a") as errors:
        popen = subprocess.Popen(
            [
                sys.executable, *before, "-m", "update_agent.server.main", "serve",
                "--repository", str(folder / "www"), "--state", str(folder / "state"),
                "--port", "0", *keys, *words,
            ],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=errors, pass_fds=passed,
        )  # fmt: skip
    found = dict(tokens or {})
    url = ""
    assert popen.stdout is not None
    try:
        for line in popen.stdout:
            if made := re.match(r"token for (\w+), shown only now: (\S+)", line):
                found[made[1]] = made[2]
            elif where := re.search(r" at (https?://\S+)", line):
                url = where[1]
                break
        assert url, "it ended: see server.log"
        yield Server(popen, url, found)
    finally:
        popen.kill()
        popen.wait(PATIENCE)
        popen.stdout.close()


def host_named(number: int) -> str:
    """Return a host's id."""
    return f"{number:032x}"


def report(number: int = 1, sequence: int = 1, **fields: object) -> Report:
    """Return a report of a host, with whatever else of it."""
    known: dict[str, Any] = {
        "host": host_named(number), "queue": QUEUE, "sequence": sequence, "time": NOON,
        "name": f"web-{number}", "product": "os", "architecture": "x86_64",
        "version": Version("1.0.0"), "channel": "stable", "slot": "A", "state": "idle",
        "since": NOON,
    }  # fmt: skip
    return Report(**(known | fields))
