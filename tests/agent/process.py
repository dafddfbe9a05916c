"""update-agentd as a process of its own, with a writer and a repository that do as they are told.

python -m tests.agent.process FOLDER [OFFER|HANG|DEFECT]
"""

import sys
import threading
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
from update_agent.core.settings import Reports
from update_agent.errors import UpdateAgentError
from update_agent.host import login
from update_agent.host.offer import Offer


class Slots(Fakes):
    """The writer: installs at once."""

    def arm(self) -> None:
        self.do("arm")


def ask(repository: Repository, host: Host) -> Offer:
    del repository, host
    match sys.argv[2:]:
        case ["OFFER"]:
            return OFFER
        case ["HANG"]:
            print("hanging", flush=True)
            threading.Event().wait()
        case ["DEFECT"]:
            raise ZeroDivisionError
    return waiting(Reason.UP_TO_DATE)


def run(folder: Path) -> int:
    main.log_to_stderr()
    Repository.ask = ask  # type: ignore[assignment,method-assign]
    main.LocalReboots = partial(  # type: ignore[assignment,attr-defined]
        LocalReboots, carry_out=lambda _: login.reboot("now")
    )
    folder.mkdir(exist_ok=True)
    reports = Reports(textfile=str(folder / "update-agent.prom"))
    parts = main.Parts(
        host=HOST, settings=replace(IMMEDIATE, reports=reports), store=FileStore(folder),
        slots=Slots(), group=GROUP_ID, folder=folder, patience=0.1,
    )  # fmt: skip
    try:
        with parts.store.locked():
            return main.to_the_end(main.serve(parts))
    except UpdateAgentError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
