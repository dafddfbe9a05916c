"""update-agentd as it is installed, but for what this machine is; a process for ``host.py``.

python -m tests.bench.idle SETTINGS STATE SOCKET-OF-THE-WRITER
"""

import sys
from functools import partial
from pathlib import Path

from update_agent.agent import main
from update_agent.agent.slots import WriterSlots
from update_agent.core.release import Host
from update_agent.core.version import Version
from update_agent.host.identity import architecture

HOST = Host(
    product="os", architecture=architecture(), version=Version("1.0.0"), machine_id="0" * 32
)


def run(settings: str, state: str, socket: str) -> int:
    """Be the daemon."""
    main.this_host = lambda: HOST
    main.WriterSlots = partial(  # type: ignore[assignment,attr-defined]
        WriterSlots, path=Path(socket)
    )
    return main.main(["--settings", settings, "--state", state])


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
