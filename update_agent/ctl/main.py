"""``update-agentctl``: what a host's people type. Parses, asks, prints."""

from collections.abc import Sequence

from update_agent import cli
from update_agent.ctl import config, offer, slots

_EPILOG = """\
examples:
  update-agentctl slots                     the disk this host was booted from
  update-agentctl slots --disk disk.img     an image file; needs no root
  update-agentctl offer --repository https://updates.example.com --root root.json
                                            what this host would install now, and why"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    command = cli.parser(slots.PROGRAM, "Look at and steer the A/B updates of this host.", _EPILOG)
    verbs = command.add_subparsers(title="verbs", metavar="VERB", required=True)
    slots.add_options(
        verbs.add_parser(
            "slots",
            help="show the two slots, their boot flags, and which boots next",
            description="Show the health of the partition table, the two slots with their boot "
            "flags, and which of them boots next and why. Writes nothing.",
        )
    )
    offer.add_options(
        verbs.add_parser(
            "offer",
            help="show what this host would install now, and why or why not",
            description="Ask a repository, as the daemon would: verify what it says, decide by the "
            "channel's rollout, and show the release with what would be fetched, or the reason why "
            "there is none. Installs nothing.",
        )
    )
    config.add_options(
        verbs.add_parser(
            "config",
            help="show all settings and where each comes from",
            description="Show every setting with its value and the file that says so, or the "
            "first that cannot be used, with the file to mend.",
        )
    )
    return cli.run(command, argv)
