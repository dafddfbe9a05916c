"""``update-agent-confirm``: what a release on trial has to show before it may stay.

systemd runs it when the boot was judged complete, and again whenever it failed, until the deadline
of the trial (``update-agent-trial.timer``). What it asks for: the programs in health.d are content,
the daemon runs (a host whose agent is broken could never be updated again), and both still hold
after the soak time. Then the booted slot is confirmed, by the writer.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from update_agent import cli
from update_agent.core.lifecycle import State
from update_agent.core.settings import Trial
from update_agent.ctl.agent import Agent, asked
from update_agent.errors import HostError, UpdateAgentError
from update_agent.host import config, programs, systemd, writer
from update_agent.host.writer import Writer

_PROGRAM = "update-agent-confirm"

_EPILOG = """\
update-agent-confirm.service starts it in a trial boot; nobody else needs to. A check of your own
is an executable in /etc/update-agent/health.d, or a unit with Before= and RequiredBy=
boot-complete.target.

  journalctl -u update-agent-confirm     what a trial waits for
  systemctl list-timers update-agent-trial.timer     when it ends

Settings: trial.health (time for all programs together), trial.soak."""


class UnhealthyError(HostError):
    """The release on trial lacks something."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(
        _PROGRAM, "Confirm the booted slot once the release in it has proved itself.", _EPILOG
    )
    made.add_argument("--health", type=Path, default=programs.HEALTH, metavar="FOLDER",
                         help="programs that must succeed (default: %(default)s)")  # fmt: skip
    made.add_argument("--writer", type=Path, default=writer.PATH, metavar="SOCKET",
                         help="who confirms (default: %(default)s)")  # fmt: skip
    made.set_defaults(run=run)
    return made


def run(options: Namespace) -> int:
    """Confirm the booted slot. Raises HostError with what it lacks."""
    confirm(config.settings().trial, options.health, options.writer)
    return 0


def confirm(
    trial: Trial, health: Path, address: Path, wait: Callable[[float], object] = time.sleep
) -> None:
    """Have the booted slot confirmed by the writer at ``address``, after the soak time."""
    tell = systemd.Notifier().status
    _want_healthy(health, trial)
    soak = trial.soak.total_seconds()
    print(f"healthy; soaking for {soak:.0f} s", flush=True)
    tell(f"healthy, soaking for {soak:.0f} s")
    wait(soak)
    _want_healthy(health, trial)
    with Writer(address) as slots:
        slots.confirm()
    print("still healthy; the booted slot is confirmed", flush=True)
    _tell_daemon()


def _want_healthy(health: Path, trial: Trial) -> None:
    programs.run_all(health, trial.health.total_seconds())
    found = asked(Agent.properties)
    if found["State"] != State.TRIAL:
        raise UnhealthyError(
            f"update-agentd does not see the trial: it is {found['State']}",
            hint="journalctl -u update-agentd",
        )


def _tell_daemon() -> None:
    """Spare the daemon the minute until it looks by itself."""
    try:
        asked(lambda agent: agent.call("Confirmed"))
    except UpdateAgentError as error:
        cli.complain(_PROGRAM, error)
