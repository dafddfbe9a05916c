"""``update-agent-drain``: run the programs in pre-reboot.d as root, for the daemon.

systemd starts it for each connection to ``update-agent-drain.socket``, with the connection as its
input and output. Words: ``host/drain.py``.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from update_agent import cli
from update_agent.errors import HostError
from update_agent.host import drain, programs

_LINE = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    command = cli.parser(
        "update-agent-drain", "Run pre-reboot.d before a reboot; for systemd, not for people."
    )
    command.add_argument("--folder", type=Path, default=programs.PRE_REBOOT, metavar="FOLDER")
    options = command.parse_args(argv)
    ran: list[Path] = []
    failed = None
    try:
        limit = drain.read_limit(os.read(sys.stdin.fileno(), _LINE))
        ran = programs.run_all(options.folder, limit)
    except HostError as error:
        failed = error
        cli.complain(command.prog, error)
    os.write(sys.stdout.fileno(), drain.answer(ran, failed))
    return failed.exit_code if failed else 0
