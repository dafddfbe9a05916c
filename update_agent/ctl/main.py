"""``update-agentctl``: what a host's people type. Parses, asks, prints.

Only the verb that is typed is imported: ``status`` is asked by people in a hurry and by machines
every few seconds, and needs little of what ``doctor`` and ``offer`` need.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import NamedTuple

from update_agent import cli

PROGRAM = "update-agentctl"

_EPILOG = """\
examples:
  update-agentctl status                    how this host stands
  update-agentctl why                       why it does not update, and what would end that
  update-agentctl install                   install what is offered, now, and watch it
  update-agentctl doctor                    is everything there that an update will need?
  update-agentctl lock status               which hosts of the group reboot, and which wait
  update-agentctl slots --disk disk.img     an image file; needs no root

Reading is for everyone; changing is for root and the group update-agent."""


class Verb(NamedTuple):
    """A verb: the module that knows it, and the function there that adds its options.

    A tuple and no dataclass: to import those takes a quarter of what ``--version`` takes.
    """

    module: str
    help: str
    description: str
    function: str = "add_options"


_WAITS = (
    " Waits until it is over and shows how far it is; Ctrl-C ends the waiting, and nothing else."
)

VERBS = {
    "status": Verb(
        "status",
        "show how this host stands",
        "Show what the daemon does and why, since when and what would end it; what runs and what "
        "comes; slots, channel, checks. Without a daemon: what is known without it, and exit "
        "code 4.",
    ),
    "why": Verb(
        "status",
        "show why nothing happens now",
        "Show the reason why this host does not update now, and what would end it.",
        "add_why_options",
    ),
    "check": Verb(
        "steer",
        "ask the repository now",
        "Ask the repository now. What it offers is installed as always. Exit code 3 or 4 when it "
        "could not be asked or believed." + _WAITS,
        "add_check_options",
    ),
    "install": Verb(
        "steer",
        "install what is offered now",
        "Install what is offered to this host, even if it is paused or installs by hand. Exit code "
        "0 only when it is installed, or nothing newer is there." + _WAITS,
        "add_install_options",
    ),
    "force": Verb(
        "steer",
        "install now, past waves and the reboot window",
        "Install what the channel offers, past waves, earlier failures here, and the reboot "
        "window; never past signatures, a pause of the channel, or a quarantine; past the "
        "cluster's lock only with --without-lock." + _WAITS,
        "add_force_options",
    ),
    "reboot": Verb(
        "steer",
        "boot the installed release now",
        "Boot what is installed now, whatever the window says; where hosts reboot in turn, as soon "
        "as it is this one's. Programs in pre-reboot.d and those who block a reboot are respected."
        + _WAITS,
        "add_reboot_options",
    ),
    "rollback": Verb(
        "steer",
        "go back to the release in the other slot",
        "Boot the release in the other slot again, and do not install the one that runs now once "
        "more. Reboots.",
        "add_rollback_options",
    ),
    "cancel": Verb(
        "steer",
        "stop an installation, or forget what is installed and not booted",
        "Stop an installation, or forget what is installed and was not booted yet.",
        "add_cancel_options",
    ),
    "pause": Verb(
        "steer",
        "begin no update until resumed",
        "Begin no update by itself until 'update-agentctl resume'; what is under way goes on.",
        "add_pause_options",
    ),
    "resume": Verb("steer", "undo pause", "Undo 'update-agentctl pause'.", "add_resume_options"),
    "history": Verb(
        "status",
        "show the updates of this host and how they ended",
        "Show the updates that were attempted on this host, the newest first.",
        "add_history_options",
    ),
    "lock": Verb(
        "lock",
        "show and steer the reboot slots of this host's group",
        "Show and steer the reboot slots that hosts of a group take in turn "
        '(reboot.strategy = "lock"), and the releases that rolled back on them. Asks etcd, with '
        "this host's settings; needs no daemon.",
    ),
    "doctor": Verb(
        "doctor",
        "check everything that an update will need",
        "Check everything that an update will need, and say how to mend what is missing. Exit "
        "code 4 when something would keep an update from working.",
    ),
    "slots": Verb(
        "slots",
        "show the two slots, their boot flags, and which boots next",
        "Show the health of the partition table, the two slots with their boot flags, and which of "
        "them boots next and why. Writes nothing.",
    ),
    "offer": Verb(
        "offer",
        "show what this host would install now, and why or why not",
        "Ask a repository, as the daemon would: verify what it says, decide by the channel's "
        "rollout, and show the release with what would be fetched, or the reason why there is "
        "none. Installs nothing.",
    ),
    "config": Verb(
        "config",
        "show all settings and where each comes from",
        "Show every setting with its value and the file that says so, or the first that cannot be "
        "used, with the file to mend.",
    ),
    "completion": Verb(
        "completion",
        "print a completion script for a shell",
        "Print a completion script: source <(update-agentctl completion bash)",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    return cli.run(command(words), words)


def command(words: Sequence[str] | None = None) -> ArgumentParser:
    """Return what the program can be told: all of it, or what a command line of ``words`` needs."""
    whole = cli.parser(PROGRAM, "Look at and steer the A/B updates of this host.", _EPILOG)
    verbs = whole.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name in words[:1] if words and words[0] in VERBS else VERBS:
        verb = VERBS[name]
        made = verbs.add_parser(name, help=verb.help, description=verb.description)
        if words is None or name in words:
            module = import_module(f"update_agent.ctl.{verb.module}")
            add: Callable[..., None] = getattr(module, verb.function)
            if name == "completion":
                add = partial(add, whole=command)
            add(made)
    return whole
