"""``update-agent-reboot``: drain and reboot the host as root, for the daemon, which is nobody.

systemd starts it for each connection to ``update-agent-reboot.socket``, with the connection as its
input and output. Words: ``host/reboot.py``. logind obeys root even against those who block a
shutdown, so they are asked here once more, after the programs in pre-reboot.d have run. The last
word is the daemon's, which may hold a reboot slot no more by then.
"""

import os
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from update_agent import cli
from update_agent.errors import HostError
from update_agent.host import login, programs, reboot

_PROGRAM = "update-agent-reboot"

_EPILOG = """\
update-agent-reboot.socket starts it when update-agentd may reboot this host; people type
'update-agentctl reboot'. What is to happen before is an executable in
/etc/update-agent/pre-reboot.d; one that fails, and whoever blocks a shutdown, keeps the host up.

  systemd-inhibit --what=shutdown --mode=block COMMAND     no reboot while it runs
  journalctl -u 'update-agent-reboot@*'                    what kept this host up

Settings: reboot.drain (time for all programs together)."""

_MESSAGE = "An update of the operating system reboots this host now."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = command().parse_args(argv)
    ran: list[Path] = []
    failed = None
    try:
        limit = reboot.read_limit(reboot.read_line(sys.stdin.fileno()))
        ran = programs.run_all(options.folder, limit)
        if held := login.held(login.blockers()):
            raise HostError(held, hint=login.HINT)  # noqa: TRY301  is answered like the others
        _say(reboot.answer(ran, None))
        reboot.hear_go(sys.stdin.fileno())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of the shutdown that begins: it answers
        login.reboot(_MESSAGE)
    except HostError as error:
        failed = error
        cli.complain(_PROGRAM, error)
    _say(reboot.answer(ran, failed))
    return failed.exit_code if failed else 0


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(_PROGRAM, "Run pre-reboot.d and reboot the host, for systemd.", _EPILOG)
    made.add_argument("--folder", type=Path, default=programs.PRE_REBOOT, metavar="FOLDER",
                      help="programs that must succeed (default: %(default)s)")  # fmt: skip
    return made


def _say(answer: bytes) -> None:
    """Answer, if there is still somebody to hear it."""
    with suppress(OSError):
        os.write(sys.stdout.fileno(), answer)
