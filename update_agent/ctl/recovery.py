"""``update-agent-slots``: change boot flags by hand, on images and on hosts that need help.

The daily life of a slot is the writer's; this tool asks nobody and verifies no content. It keeps
the rules of ``core/slot.py`` and the power-cut safety of ``host/disk.py``, and never touches a slot
that is in use.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from update_agent import cli
from update_agent.core import slot
from update_agent.core.slot import SlotName, Slots
from update_agent.ctl.slots import (
    View,
    add_disk_options,
    as_json,
    look,
    slot_lines,
    slots_as_json,
)
from update_agent.errors import HostError
from update_agent.host import disk as disks
from update_agent.host import udev

_EPILOG = """\
a slot's life:
  retire B, write and verify it, arm B, boot B (a try is used), confirm B

examples:
  update-agent-slots retire B --disk disk.img
  update-agent-slots rollback A --disk /dev/sda --dry-run
  update-agent-slots repair --disk /dev/sda      when one copy of the table is damaged

'update-agentctl slots --disk ...' shows the result."""

_Operation = Callable[[Slots, SlotName], Slots]

_OPERATIONS: dict[str, tuple[_Operation, str]] = {
    "retire": (slot.retire, "make a slot unbootable, before it is overwritten"),
    "arm": (slot.arm, "make a written and verified slot the next to boot, on trial"),
    "confirm": (slot.confirm, "make a slot that is known to work boot without a try"),
    "rollback": (slot.rollback, "make a successful slot the next to boot"),
}

BOOTED, OTHER = "booted", "other"
"""Name the slot that this host runs from, whichever it is, and the one that it doesn't."""

_REPLACES = {"retire", "arm"}
"""Operations for a slot whose content changes hands: it must be in nobody's use."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return cli.run(command(), argv)


def command() -> ArgumentParser:
    """Return what the program can be told."""
    made = cli.parser(
        "update-agent-slots",
        "Change boot flags by hand: for disk images and for recovery. Hosts do this by themselves.",
        _EPILOG,
    )
    verbs = made.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (_, meaning) in _OPERATIONS.items():
        verb = verbs.add_parser(name, help=meaning, description=f"{meaning}.")
        add_disk_options(verb, required=False)
        verb.add_argument("slot", choices=(*SlotName, BOOTED, OTHER), metavar="A|B|booted|other",
                          help="the slot; 'booted' is the one this host runs from")  # fmt: skip
        verb.set_defaults(run=change, operation=name, wrong_usage=verb.error)
        verb.add_argument("--dry-run", action="store_true", help="show it, write nothing")
        verb.add_argument("--json", action="store_true", help="print JSON")
    meaning = "mend a damaged copy of the partition table by the good one"
    verb = verbs.add_parser("repair", help=meaning, description=f"{meaning}.")
    add_disk_options(verb, required=True)
    verb.add_argument("--json", action="store_true",
                      help="print what 'update-agentctl slots --json' prints then")  # fmt: skip
    verb.set_defaults(run=repair)
    return made


def change(options: Namespace) -> int:
    """Carry out one operation on one slot and print both slots as they then stand."""
    operation, _ = _OPERATIONS[options.operation]
    if options.disk is None and options.slot not in (BOOTED, OTHER):
        options.wrong_usage("--disk is required, but for the slots 'booted' and 'other'")
    before = look(options.disk, options.sector_size)
    if isinstance(before.slots, HostError):
        raise before.slots
    name = _named(options.slot, before)
    with _unused(options.operation, before, name):
        if options.dry_run:
            after = operation(before.slots, name)
        else:
            with disks.open_disk(
                before.disk, writable=True, sector_size=options.sector_size
            ) as disk:
                after = disks.change_slots(disk, lambda slots: operation(slots, name))
    if options.json:
        print(json.dumps({"slots": slots_as_json(after), "why": slot.explain(after)}, indent=2))
    else:
        print(*slot_lines(after, before.booted), "", slot.explain(after), sep="\n")
    return 0


def _named(text: str, view: View) -> SlotName:
    if text not in (BOOTED, OTHER):
        return SlotName(text)
    if view.booted is None:
        raise HostError(
            f"this host runs from no slot of {view.disk}", hint=f"say A or B instead of '{text}'"
        )
    return view.booted if text == BOOTED else view.booted.other


def _unused(operation: str, view: View, name: SlotName) -> AbstractContextManager[None]:
    if operation not in _REPLACES or isinstance(view.slots, HostError):
        return nullcontext()
    if view.booted is name:
        raise HostError(
            f"slot {name} is the one this host runs from; it is not touched",
            hint=f"roll back to slot {name.other} and reboot first",
        )
    return udev.unused(view.disk, view.slots[name].number)


def repair(options: Namespace) -> int:
    """Repair the partition table and say what was wrong with it."""
    before = look(options.disk, options.sector_size)
    with disks.open_disk(before.disk, writable=True, sector_size=options.sector_size) as disk:
        after = disks.repair(disk)
    if options.json:
        print(json.dumps(as_json(look(before.disk, options.sector_size)), indent=2))
    elif before.tables == after:
        print(f"{before.disk}: both copies of the partition table are good; nothing was written")
    else:
        print(f"{before.disk}: both copies of the partition table are good now")
    return 0
