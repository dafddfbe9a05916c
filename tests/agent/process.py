"""update-agentd as a process of its own, with a writer and a repository that do as they are told.

python -m tests.agent.process FOLDER [OFFER|HANG|DEFECT|FULL|OFFER IN-TURN]
"""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.agent.fakes import HOST, IMMEDIATE, OFFER, Fakes, waiting
from tests.bus import GROUP_ID
from update_agent.agent import main
from update_agent.agent.reboots import LocalReboots
from update_agent.agent.repository import Repository
from update_agent.agent.store import FileStore
from update_agent.core.reason import Reason
from update_agent.core.release import Host
from update_agent.core.settings import Cluster, Reboot, Reports, Strategy
from update_agent.errors import UpdateAgentError
from update_agent.host import login
from update_agent.host.offer import Offer

IN_TURN = replace(
    IMMEDIATE,
    reboot=Reboot(strategy=Strategy.LOCK),
    cluster=Cluster(endpoints=("http://127.0.0.1:9",)),
)
"""Hosts reboot in turn, and etcd is not there."""


class Slots(Fakes):
    """The writer: installs at once."""

    def arm(self) -> None:
        self.do("arm")


def ask(repository: Repository, host: Host) -> Offer:
    del repository, host
    match sys.argv[2:]:
        case ["OFFER", *_]:
            return OFFER
        case ["HANG"]:
            print("hanging", flush=True)
            threading.Event().wait()
        case ["DEFECT"]:
            raise ZeroDivisionError
        case ["FULL"]:
            _fill(Path(sys.argv[1]))
    return waiting(Reason.UP_TO_DATE)


def _fill(folder: Path) -> None:
    """Leave no room on the disk of ``folder``."""
    with suppress(OSError), (folder / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def reboots_at_once(limit: float, last_word: Callable[[], None]) -> None:
    """Be the root of a host that needs no draining."""
    del limit
    last_word()
    login.reboot("now")


def run(folder: Path) -> int:
    main.log_to_stderr()
    Repository.ask = ask  # type: ignore[assignment,method-assign]
    main.LocalReboots = partial(  # type: ignore[assignment,attr-defined]
        LocalReboots, carry_out=reboots_at_once
    )
    folder.mkdir(exist_ok=True)
    reports = Reports(textfile=str(folder / "update-agent.prom"))
    parts = main.Parts(
        host=HOST, settings=replace(IN_TURN if sys.argv[3:] else IMMEDIATE, reports=reports),
        store=FileStore(folder), slots=Slots(), group=GROUP_ID, folder=folder, patience=0.1,
    )  # fmt: skip
    try:
        with parts.store.locked():
            return main.to_the_end(main.serve(parts))
    except UpdateAgentError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
