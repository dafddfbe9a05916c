"""``update-agent-writer``: starts, finds out what host this is, and answers callers."""

import logging
import os
import socket
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from update_agent import cli
from update_agent.core.settings import Limits, SettingError
from update_agent.core.version import Version
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host import config, governor, identity, systemd
from update_agent.host.root import read_root
from update_agent.writer import memory
from update_agent.writer.host import Host, this_host
from update_agent.writer.installation import Terms
from update_agent.writer.server import Server, turn_away, uid_of
from update_agent.writer.slots import HostSlots

STATE = Path("/var/lib/update-agent-writer")
USER = "update-agent"

_EPILOG = """\
It is started by update-agent-writer.socket when update-agentd has something to write, and ends by
itself. It has no network. It takes signed metadata, verifies it from the trusted root down, asks
for what it needs, and writes only what hashes right, only into the slot that is not booted.

by hand:
  journalctl -u update-agent-writer            every request, and why one was refused
  systemctl status update-agent-writer.socket  is it listening?

on a disk image, for tests:
  update-agent-writer --listen /tmp/writer --disk disk.img --booted 2 \\
      --product os --running 1.0.0 --root root.json --state /tmp/state"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(
        "update-agent-writer",
        "Write releases into the slot that is not booted, and boot flags, for update-agentd.",
        _EPILOG,
    )
    made.add_argument(
        "--listen", type=Path, metavar="PATH",
        help="make a socket there (default: the one that systemd passes)",
    )  # fmt: skip
    made.add_argument(
        "--user", default=USER, metavar="NAME",
        help=f"who may ask, besides root (default: {USER})",
    )  # fmt: skip
    made.add_argument(
        "--root", type=Path, metavar="FILE",
        help="the trusted root (default: what the settings say, update.root)",
    )  # fmt: skip
    made.add_argument(
        "--state", type=Path, default=STATE, metavar="FOLDER",
        help=f"what it remembers (default: {STATE})",
    )  # fmt: skip
    cli.add_settings(made, config.FOLDERS)
    image = made.add_argument_group("instead of the host this runs on")
    image.add_argument("--disk", type=Path, metavar="FILE-OR-DEVICE", help="a disk or an image")
    image.add_argument("--booted", type=int, metavar="N", help="the partition that is booted there")
    image.add_argument("--product", metavar="NAME", help="the product that runs there")
    image.add_argument(
        "--running", type=cli.argument(Version), metavar="VERSION", help="and its version"
    )
    made.set_defaults(run=serve)
    return made


def serve(options: Namespace) -> int:
    """Answer callers until there are none."""
    _log_to_the_journal()
    with _listening(options.listen) as sock:
        try:
            return _serve(options, sock)
        except UpdateAgentError as error:
            turn_away(sock, error)
            raise


def _serve(options: Namespace, sock: socket.socket) -> int:
    host = _host(options)
    users = frozenset({uid_of(options.user)})
    folders = options.settings or config.FOLDERS
    _rest(host, folders)
    with memory.opened(options.state) as known:
        terms = Terms(
            slots=HostSlots(host, known),
            trusted=lambda: read_root(options.root or Path(config.settings(folders).update.root)),
            clock=identity.clock,
            limits=lambda: config.settings(folders).limits,
        )
        logging.getLogger(__name__).info(
            "%s %s runs from partition %s of %s",
            host.product, host.version, host.booted, host.disk,
        )  # fmt: skip
        Server(sock, terms, users=users, notifier=systemd.Notifier()).serve()
    return 0


def _host(options: Namespace) -> Host:
    named = (options.disk, options.booted, options.product, options.running)
    if not any(it is not None for it in named):
        return this_host()
    if any(it is None for it in named):
        raise HostError("--disk, --booted, --product and --running go together")
    return Host(
        disk=options.disk,
        booted=options.booted,
        product=options.product,
        version=options.running,
        architecture=identity.architecture(),
    )


def _rest(host: Host, folders: Sequence[Path]) -> None:
    """Undo the limit that a writer left which was killed."""
    try:
        limits = config.settings(folders).limits
    except SettingError as error:  # the slots can be seen and armed all the same
        logging.getLogger(__name__).warning("nothing can be installed: %s", error)
        limits = Limits()
    governor.rest(host.disk, limits)


def _listening(path: Path | None) -> socket.socket:
    """Return the socket at which callers come."""
    if path is None:
        return systemd.passed_socket()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        unheard = path.with_name(f".{path.name}")  # who finds the address is to be heard there
        unheard.unlink(missing_ok=True)
        sock.bind(str(unheard))
        unheard.chmod(0o666)  # who may ask is decided by who he is
        sock.listen(64)
        unheard.rename(path)
    except OSError as error:
        raise HostError(f"cannot listen at {path}: {error.strerror}") from error
    return sock


def _log_to_the_journal() -> None:
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(systemd.PriorityFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
