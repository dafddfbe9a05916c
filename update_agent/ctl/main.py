"""``update-agentctl``: what a host's people type. Parses, asks, prints."""

from collections.abc import Sequence

from update_agent import cli
from update_agent.ctl import slots

_EPILOG = """\
examples:
  update-agentctl slots                     the disk this host was booted from
  update-agentctl slots --disk disk.img     an image file; needs no root"""


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
    return cli.run(command, argv)
