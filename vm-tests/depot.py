"""The release team's side of a story: a repository with its keys, and a web server that serves it.

What is published is signed by keys made on the spot; a machine trusts ``root``. The web server is
nginx on the loopback, which machines reach as ``machine.HOST``.
"""

import contextlib
import io
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from machine import HOST, free_port

from update_agent.publish.main import main

PRODUCT = "update-agent-os"
CHANNEL = "stable"

_CONFIG = """\
user root; daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
    uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
    log_format sent '$uri $status $bytes_sent';
    access_log {folder}/access.log sent;
    sendfile on;
    server {{ listen 127.0.0.1:{port}; root {www}; }}
}}
"""

_PATIENCE = 20.0


class DepotError(AssertionError):
    """Publishing or serving failed."""


@dataclass(kw_only=True)
class Depot:
    """A repository in ``folder``, made when it isn't there."""

    folder: Path
    port: int = 0
    """Of the web server; 0 takes a free one."""

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        if not self.root.exists():
            self.publish("init")
            self.publish("channel", "create", CHANNEL, "--product", PRODUCT)

    @property
    def www(self) -> Path:
        """What a web server serves."""
        return self.folder / "www"

    @property
    def root(self) -> Path:
        """The trusted root."""
        return self.www / "metadata/1.root.json"

    @property
    def url(self) -> str:
        """Where machines find it."""
        return f"http://{HOST}:{self.port}"

    def publish(self, *words: str) -> str:
        """Run ``update-publish`` with all keys; return what it printed."""
        return self.ask(*words, "--keys", str(self.folder / "keys"))

    def ask(self, *words: str) -> str:
        """Run an ``update-publish`` that needs no keys; return what it printed."""
        said, complaint = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
            try:
                code: object = main([*words, "--repository", str(self.www), "--json"])
            except SystemExit as wrong_usage:
                code = wrong_usage.code
        if code != 0:
            raise DepotError(f"update-publish {' '.join(words)}: {complaint.getvalue()}")
        return said.getvalue()

    def add(self, image: Path, version: str, *deltas: str, level: int | None = None) -> None:
        """Publish a release, with delta payloads from these versions; ``level`` is zstd's."""
        froms = [word for old in deltas or ("none",) for word in ("--from", str(old))]
        levels = ["--level", str(level)] if level else []
        names = ["--product", PRODUCT, "--version", version]
        self.publish("release", "add", str(image), *names, *froms, *levels)

    def promote(self, version: str, *words: str) -> None:
        """Offer a release to every host of the channel, at once."""
        self.publish("channel", "promote", CHANNEL, version, *words)

    def settings(self, more: str = "") -> Mapping[str, str]:
        """Return the first-boot configuration of a machine that follows this repository."""
        return {
            "server": self.url,
            "channel": CHANNEL,
            "root": self.root.read_text(),
            "settings": more or 'reboot.strategy = "immediate"',
        }

    @contextmanager
    def served(self) -> Iterator[None]:
        """Serve the repository, until the end."""
        process = self.start()
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    def start(self) -> "subprocess.Popen[bytes]":
        """Serve the repository, in the background; the process is in ``nginx/pid`` as well."""
        work = self.folder / "nginx"
        work.mkdir(exist_ok=True)
        config = work / "nginx.conf"
        config.write_text(_CONFIG.format(folder=work, www=self.www, port=self.port))
        with (work / "said.log").open("ab") as said:
            process = subprocess.Popen(
                ["nginx", "-c", str(config), "-p", str(work)],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        self._wait_until_served(process)
        return process

    def _wait_until_served(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + _PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                if self._pid() == process.pid:  # and it is not another one who has the port
                    return
        raise DepotError(f"nginx does not serve: {(self.folder / 'nginx/error.log').read_text()}")

    def _pid(self) -> int | None:
        """Return who says that he serves: nginx writes it when it has its port."""
        file = self.folder / "nginx/pid"
        said = file.read_text().strip() if file.exists() else ""
        return int(said) if said else None

    def sent(self, pattern: str = "") -> int:
        """Return how many bytes were sent for files like ``pattern``, headers and all."""
        lines = (self.folder / "nginx/access.log").read_text().splitlines()
        return sum(int(line.split()[2]) for line in lines if re.search(pattern, line.split()[0]))
